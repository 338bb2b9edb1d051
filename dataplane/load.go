package dataplane

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ringmain/dataplane/admission"
	"ringmain/dataplane/edge"
)

const loadWindow = 250 * time.Millisecond

// watchLoad tells the gate how overloaded this process is, until ctx ends.
func (w *Worker) watchLoad(ctx context.Context) {
	tick := time.NewTicker(loadWindow)
	defer tick.Stop()
	var delays admission.Delays
	delays.Since()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.gate.Force(w.brownout())
			before := w.gate.Step()
			w.gate.Window(delays.Since())
			if step := w.gate.Step(); step != before {
				w.log.Warn("brown-out step changed", "step", step, "before", before, "forced", w.brownout())
			}
		}
	}
}

// brownout is the step that an operator asks of this region.
func (w *Worker) brownout() int {
	if rec, ok := w.cfg.Store.View().Region(w.setup.Region); ok {
		return int(rec.Region.Brownout)
	}
	return 0
}

// loadMetrics shows what admission and the edge do, as it is when asked.
type loadMetrics struct {
	gate   *admission.Gate
	limits *admission.Limits
	guard  *edge.Guard
}

func loadDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

var (
	descInflight = loadDesc("ringmain_inflight", "Requests under way.")
	descStep     = loadDesc("ringmain_brownout_step", "0 all served, 1 no optional work, 2 no batch and test, 3 no trial, 4 only enterprise and scale.")
	descForced   = loadDesc("ringmain_brownout_forced", "The least step that an operator asked for.")
	descServed   = loadDesc("ringmain_admission_cut", "Share of the range of priorities that is served, 0 to 1.")
	descShed     = loadDesc("ringmain_shed_total", "Requests shed, by priority; full: at capacity, before it was known whose they were.", "priority")
	descLimit    = loadDesc("ringmain_upstream_limit", "Adaptive limit of requests at once.", "upstream", "model")
	descConns    = loadDesc("ringmain_connections", "Open client connections; silent: that have not sent a request yet.", "state")
	descWrong    = loadDesc("ringmain_wrong_keys_total", "Requests with keys of nobody: answered at once (prompt), likewise, and then their connections were not read for a while (rested), made to wait (late), without an answer as too many waited (dropped).", "answer")
	descWaiting  = loadDesc("ringmain_wrong_keys_waiting", "Refusals of wrong keys that wait at the moment.")
	descTurned   = loadDesc("ringmain_connections_refused_total", "Client connections reset at the door (source), or broken for breaking off requests (resets).", "reason")
)

// Describe implements prometheus.Collector.
func (l *loadMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descInflight, descStep, descForced, descServed, descShed, descLimit, descConns, descTurned, descWrong, descWaiting} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (l *loadMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	s := l.gate.State()
	gauge(descInflight, float64(s.InFlight))
	gauge(descStep, float64(s.Step))
	gauge(descForced, float64(s.Forced))
	gauge(descServed, s.Cut)
	for p, n := range s.Shed {
		counter(descShed, n, admission.Priority(p).String())
	}
	counter(descShed, s.Refused, "full")
	l.limits.Each(func(upstream, model string, most int) { gauge(descLimit, float64(most), upstream, model) })
	c := l.guard.Counts()
	gauge(descConns, float64(c.Open-c.Silent), "active")
	gauge(descConns, float64(c.Silent), "silent")
	counter(descTurned, c.Turned, "source")
	counter(descTurned, c.Expelled, "resets")
	counter(descWrong, c.Wrong.Prompt, "prompt")
	counter(descWrong, c.Wrong.Rested, "rested")
	counter(descWrong, c.Wrong.Late, "late")
	counter(descWrong, c.Wrong.Dropped, "dropped")
	gauge(descWaiting, float64(c.Wrong.Waiting))
}
