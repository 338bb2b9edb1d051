package homes

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry/ledger"
)

type metrics struct {
	role        *prometheus.GaugeVec
	unconfirmed *prometheus.GaugeVec
	isolated    *prometheus.GaugeVec
	quarantined *prometheus.GaugeVec
	takeovers   *prometheus.CounterVec
	drift       *prometheus.CounterVec
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.role, m.unconfirmed, m.isolated, m.quarantined, m.takeovers, m.drift}
}

func (m *metrics) register(r prometheus.Registerer) error {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, append([]string{"shard"}, labels...))
	}
	m.role = gauge("ringmain_shard_role", "1 for what the region is to the shard: home, opening, candidate, sealed, follower or outside. Leader only.", "role")
	m.unconfirmed = gauge("ringmain_shard_unconfirmed_entries", "Entries of a shard written here that a majority of its members has not accepted yet. Leader of the home only.")
	m.isolated = gauge("ringmain_shard_isolated_seconds", "For how long no majority of the shard's members has answered its home; 0 while one does. Leader of the home only.")
	m.quarantined = gauge("ringmain_shard_quarantined_entries", "Entries that were cut here because another home's history won, and wait for somebody's decision. Leader only.")
	m.takeovers = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ringmain_shard_takeovers_total",
		Help: "Attempts of this node's region to become home of a shard, by kind (takeover, move) and result (ok, failed)."}, []string{"kind", "result"})
	m.drift = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ringmain_shard_drift_total",
		Help: "Copies found to differ from their home's at the same point, and taken anew."}, []string{"shard"})
	if r == nil {
		return nil
	}
	var errs []error
	for _, c := range m.all() {
		errs = append(errs, r.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		m.unregister(r)
		return err
	}
	return nil
}

func (m *metrics) unregister(r prometheus.Registerer) {
	if r == nil {
		return
	}
	for _, c := range m.all() {
		r.Unregister(c)
	}
}

// forget drops what only a leader knows.
func (m *metrics) forget() {
	m.role.Reset()
	m.unconfirmed.Reset()
	m.isolated.Reset()
	m.quarantined.Reset()
}

func (m *metrics) tookOver(kind string, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	m.takeovers.WithLabelValues(kind, result).Inc()
}

func (m *metrics) show(s *standing, isolated, now time.Time) {
	shard := string(s.shard)
	for r := ownership.Outside; r <= ownership.Home; r++ {
		value := 0.0
		if r == s.role {
			value = 1
		}
		m.role.WithLabelValues(shard, r.String()).Set(value)
	}
	m.unconfirmed.DeleteLabelValues(shard)
	m.isolated.DeleteLabelValues(shard)
	if s.role != ownership.Home && s.role != ownership.Opening {
		return
	}
	m.unconfirmed.WithLabelValues(shard).Set(float64(s.copy.Last.Seq - min(s.copy.Last.Seq, s.confirmed)))
	seconds := 0.0
	if !isolated.IsZero() {
		seconds = now.Sub(isolated).Seconds()
	}
	m.isolated.WithLabelValues(shard).Set(seconds)
}

// showQuarantine counts what waits for a decision.
func (m *metrics) showQuarantine(s *ledger.State) {
	for _, info := range s.Shards() {
		n := 0
		for range s.Quarantine(info.Shard) {
			n++
		}
		m.quarantined.WithLabelValues(string(info.Shard)).Set(float64(n))
	}
}
