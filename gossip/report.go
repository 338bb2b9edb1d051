package gossip

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what goes wrong and reads the rest when scraped.
type metrics struct {
	g          *Gossip
	registerer prometheus.Registerer
	dropped    prometheus.Counter
	unreadable prometheus.Counter
	members    *prometheus.Desc
	queue      *prometheus.Desc
	health     *prometheus.Desc
}

func newMetrics(g *Gossip) *metrics {
	return &metrics{
		g: g,
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmain_gossip_dropped_total", Help: "Broadcasts dropped because too many waited."}),
		unreadable: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "ringmain_gossip_unreadable_total", Help: "Messages of peers that could not be decoded."}),
		members: prometheus.NewDesc("ringmain_gossip_members", "Members of the group as this node sees them.", []string{"group", "state"}, nil),
		queue:   prometheus.NewDesc("ringmain_gossip_queue_messages", "Broadcasts waiting to be sent.", []string{"group"}, nil),
		health:  prometheus.NewDesc("ringmain_gossip_health_score", "How sick this node thinks it is: 0 is well.", []string{"group"}, nil),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	if err := r.Register(m); err != nil {
		return err
	}
	m.registerer = r
	return nil
}

func (m *metrics) unregister() {
	if m.registerer != nil {
		m.registerer.Unregister(m)
	}
}

// Describe is prometheus.Collector's.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.members
	ch <- m.queue
	ch <- m.health
	m.dropped.Describe(ch)
	m.unreadable.Describe(ch)
}

// Collect is prometheus.Collector's.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	lanCounts, wanCounts := m.g.Members()
	for _, of := range []struct {
		*member
		Counts
	}{{m.g.lan, lanCounts}, {m.g.wan, wanCounts}} {
		name := of.group.String()
		gauge(m.members, of.Alive, name, "alive")
		gauge(m.members, of.Dead, name, "dead")
		gauge(m.members, of.Left, name, "left")
		gauge(m.queue, of.member.queue.NumQueued(), name)
		gauge(m.health, of.list.GetHealthScore(), name)
	}
	m.dropped.Collect(ch)
	m.unreadable.Collect(ch)
}

// logWriter turns memberlist's lines into records, one level lower than
// memberlist says: when one node dies, all its peers print errors, and none of
// them has to act. Strangers' packets make lines too, so there is a limit.
type logWriter struct {
	log *slog.Logger

	mu      sync.Mutex
	second  int64
	lines   int
	dropped int
}

const maxLines = 20 // a second

func (w *logWriter) Write(line []byte) (int, error) {
	text := string(bytes.TrimSpace(line))
	level := slog.LevelDebug
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if name, rest, ok := strings.Cut(rest, "] "); ok {
			text = strings.TrimPrefix(rest, "memberlist: ")
			switch name {
			case "ERR", "ERROR":
				level = slog.LevelWarn
			case "WARN":
				level = slog.LevelInfo
			}
		}
	}
	if ctx := context.Background(); w.log.Enabled(ctx, level) && w.allow(time.Now().Unix()) {
		w.log.Log(ctx, level, "memberlist: "+text)
	}
	return len(line), nil
}

func (w *logWriter) allow(second int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if second != w.second {
		if w.dropped > 0 {
			w.log.Warn("memberlist: lines left out", "lines", w.dropped)
		}
		w.second, w.lines, w.dropped = second, 0, 0
	}
	if w.lines++; w.lines > maxLines {
		w.dropped++
		return false
	}
	return true
}
