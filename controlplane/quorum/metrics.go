package quorum

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what /metrics shows of one Quorum.
type metrics struct {
	commit      prometheus.Histogram
	flush       prometheus.Histogram
	elections   prometheus.Counter
	candidacies prometheus.Counter

	registerer prometheus.Registerer
	registered []prometheus.Collector
}

func newMetrics() *metrics {
	return &metrics{
		commit: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ringmain_raft_commit_seconds",
			Help:    "Time from a proposal's turn to its application on the leader.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		flush: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "ringmain_raft_image_flush_seconds",
			Help:    "Time to make the registry's image on disk catch up.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		elections: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmain_raft_elections_total",
			Help: "Times this node was elected leader, handovers included.",
		}),
		candidacies: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmain_raft_candidacies_total",
			Help: "Times this node stood for election, or asked in vain whether it might: the others heard a leader.",
		}),
	}
}

// register adds all metrics of q to r, which may be nil.
func (m *metrics) register(r prometheus.Registerer, q *Quorum) error {
	if r == nil {
		return nil
	}
	m.registerer = r
	gauge := func(name, help string, value func(Stats) float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return value(q.Stats()) })
	}
	for _, c := range []prometheus.Collector{
		m.commit, m.flush, m.elections, m.candidacies,
		gauge("ringmain_raft_leader", "1 if this node leads its region and accepts proposals.", func(s Stats) float64 {
			if s.Leading {
				return 1
			}
			return 0
		}),
		gauge("ringmain_raft_term", "Current term.", func(s Stats) float64 { return float64(s.Term) }),
		gauge("ringmain_raft_applied_index", "Index of the last entry applied.", func(s Stats) float64 { return float64(s.Applied) }),
		gauge("ringmain_raft_last_index", "Index of the last entry in the log.", func(s Stats) float64 { return float64(s.LastIndex) }),
	} {
		if err := r.Register(c); err != nil {
			m.unregister()
			return errors.Join(errors.New("quorum: register metrics"), err)
		}
		m.registered = append(m.registered, c)
	}
	return nil
}

func (m *metrics) unregister() {
	for _, c := range m.registered {
		m.registerer.Unregister(c)
	}
}
