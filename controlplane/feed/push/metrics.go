package push

import (
	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane/feed"
)

type metrics struct {
	dropped  prometheus.Counter
	received *prometheus.CounterVec
}

func newMetrics() *metrics {
	return &metrics{
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmain_feed_forward_dropped_total", Help: "Batches of verdicts or revocation hints that a peer could not be given."}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ringmain_feed_pushed_total", Help: "Verdicts and revocation hints received."}, []string{"what"}),
	}
}

func (m *metrics) count(b feed.Batch) {
	for what, n := range map[string]int{"verdict": len(b.Verdicts), "revocation": len(b.Revocations), "held": len(b.Held)} {
		if n > 0 {
			m.received.WithLabelValues(what).Add(float64(n))
		}
	}
}

// Describe and Collect make them one collector: all are registered, or none.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	m.dropped.Describe(to)
	m.received.Describe(to)
}

func (m *metrics) Collect(to chan<- prometheus.Metric) {
	m.dropped.Collect(to)
	m.received.Collect(to)
}
