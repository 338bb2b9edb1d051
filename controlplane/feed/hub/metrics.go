package feed

import (
	"github.com/prometheus/client_golang/prometheus"
)

type hubMetrics struct {
	watchers      prometheus.Gauge
	resets        prometheus.Counter
	snapshots     prometheus.Counter
	snapshotBytes prometheus.Counter
	dropped       prometheus.Counter
	received      *prometheus.CounterVec
}

func (m *hubMetrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.watchers, m.resets, m.snapshots, m.snapshotBytes, m.dropped, m.received}
}

func (m *hubMetrics) register(r prometheus.Registerer) error {
	m.watchers = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ringmain_feed_watchers", Help: "Feeds being served by this node."})
	m.resets = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ringmain_feed_resets_total", Help: "Shard snapshots sent because a watcher could not be resumed."})
	m.snapshots = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ringmain_feed_snapshots_total", Help: "Shard snapshots encoded; each is sent to all watchers that need it within seconds."})
	m.snapshotBytes = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ringmain_feed_snapshot_bytes_total", Help: "Bytes of shard snapshots sent."})
	m.dropped = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "ringmain_feed_forward_dropped_total", Help: "Batches of verdicts or revocation hints that a peer could not be given."})
	m.received = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "ringmain_feed_pushed_total", Help: "Verdicts and revocation hints received."}, []string{"what"})
	return registerAll(r, m.all())
}

func (m *hubMetrics) unregister(r prometheus.Registerer) { unregisterAll(r, m.all()) }

type importMetrics struct {
	lag      *prometheus.GaugeVec
	isolated *prometheus.GaugeVec
	age      []prometheus.Collector
}

func (m *importMetrics) all() []prometheus.Collector {
	return append([]prometheus.Collector{m.lag, m.isolated}, m.age...)
}

func (m *importMetrics) register(r prometheus.Registerer, age map[string]func() float64) error {
	m.lag = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ringmain_feed_lag_entries", Help: "Entries of another region's shard that this region has not applied yet."},
		[]string{"region", "shard"})
	m.isolated = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "ringmain_feed_isolated", Help: "1 if another region's shard cannot be imported, by entries or as a whole, and is left alone for a while."},
		[]string{"region", "shard"})
	for region, f := range age {
		m.age = append(m.age, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ringmain_feed_age_seconds", Help: "Seconds since this node heard from the region's feed; since the start if never.",
			ConstLabels: prometheus.Labels{"region": region}}, f))
	}
	return registerAll(r, m.all())
}

func (m *importMetrics) unregister(r prometheus.Registerer) { unregisterAll(r, m.all()) }

// registerAll registers all or none.
func registerAll(r prometheus.Registerer, cs []prometheus.Collector) error {
	if r == nil {
		return nil
	}
	for i, c := range cs {
		if err := r.Register(c); err != nil {
			unregisterAll(r, cs[:i])
			return err
		}
	}
	return nil
}

func unregisterAll(r prometheus.Registerer, cs []prometheus.Collector) {
	if r == nil {
		return
	}
	for _, c := range cs {
		r.Unregister(c)
	}
}
