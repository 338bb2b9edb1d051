package importer

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	lag      *prometheus.GaugeVec
	isolated *prometheus.GaugeVec
	age      []prometheus.Collector
}

// newMetrics makes them; ages tell, by region, how long ago it was heard.
func newMetrics(ages map[string]func() float64) *metrics {
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"region", "shard"})
	}
	m := &metrics{
		lag:      gauge("ringmain_feed_lag_entries", "Entries of another region's shard that this region has not applied yet."),
		isolated: gauge("ringmain_feed_isolated", "1 if another region's shard cannot be imported, by entries or as a whole, and is left alone for a while."),
	}
	for region, age := range ages {
		m.age = append(m.age, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmain_feed_age_seconds", Help: "Seconds since this node heard from the region's feed; since the start if never.",
			ConstLabels: prometheus.Labels{"region": region}}, age))
	}
	return m
}

func (m *metrics) all() []prometheus.Collector {
	return append([]prometheus.Collector{m.lag, m.isolated}, m.age...)
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
