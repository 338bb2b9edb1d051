package hub

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	watchers      prometheus.Gauge
	resets        prometheus.Counter
	snapshots     prometheus.Counter
	snapshotBytes prometheus.Counter
}

func newMetrics() *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	return &metrics{
		watchers: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ringmain_feed_watchers", Help: "Feeds being served by this node."}),
		resets:        counter("ringmain_feed_resets_total", "Shard snapshots sent because a watcher could not be resumed."),
		snapshots:     counter("ringmain_feed_snapshots_total", "Shard snapshots encoded; each is sent to all watchers that need it within seconds."),
		snapshotBytes: counter("ringmain_feed_snapshot_bytes_total", "Bytes of shard snapshots sent."),
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.watchers, m.resets, m.snapshots, m.snapshotBytes}
}

// Describe and Collect make them one collector: all are registered, or none.
func (m *metrics) Describe(to chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(to)
	}
}

func (m *metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(to)
	}
}
