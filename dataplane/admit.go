package dataplane

import (
	"context"
	"math"
	sched "runtime/metrics"
	"time"

	"ringmain/controlplane/apikey"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/dialect"
)

var errShed = dialect.Fail(dialect.CapacityShed, "This node is at capacity: retry shortly.")

// admit takes a place among the requests under way, if there is one.
func (w *Worker) admit() bool { return w.gate.Arrive() }

func (w *Worker) leave() { w.gate.Leave() }

// arrive finds out who asks, takes a place, which departs gives back, and finds
// out what the caller may do.
func (x *exchange) arrive() *dialect.Error {
	if e := x.meet(); e != nil {
		return e
	}
	if x.placed = x.w.admit(); !x.placed {
		return errShed
	}
	return x.decide()
}

func (x *exchange) departs() {
	if x.placed {
		x.placed = false
		x.w.leave()
	}
}

// welcome decides by importance, as soon as it is known who asks.
func (x *exchange) welcome() bool {
	p := admission.PriorityOf(x.caller.Org.Org.Plan, x.decision.Batch, x.caller.Key.Class == apikey.ClassTest)
	return x.w.gate.Pass(p, random())
}

const loadWindow = 250 * time.Millisecond

// watchLoad tells the gate how overloaded this process is, until ctx ends.
func (w *Worker) watchLoad(ctx context.Context) {
	tick := time.NewTicker(loadWindow)
	defer tick.Stop()
	var delays schedDelays
	delays.since()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			w.gate.Force(w.brownout())
			before := w.gate.Step()
			w.gate.Window(delays.since())
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

// schedDelays measures how long goroutines that could run waited for a
// processor, which is what overload of this process looks like: its own work
// is short, and everything else is waiting for others.
type schedDelays struct {
	sample [1]sched.Sample
	before []uint64
}

const (
	// delayPart is the share of waits that are longer than what since gives.
	delayPart = 0.1
	// fewestWaits is how many a window must have had. An idle process has some
	// dozens, and a few late ones say something of its machine, nothing of it.
	fewestWaits = 200
)

// since gives the delay that the slowest tenth exceeded since the last call.
func (d *schedDelays) since() time.Duration {
	d.sample[0].Name = "/sched/latencies:seconds"
	sched.Read(d.sample[:])
	if d.sample[0].Value.Kind() != sched.KindFloat64Histogram {
		return 0 // a later Go without it: no shedding by load
	}
	h := d.sample[0].Value.Float64Histogram()
	if len(d.before) != len(h.Counts) {
		d.before = append([]uint64(nil), h.Counts...)
		return 0
	}
	delay := slowest(d.before, h.Counts, h.Buckets)
	copy(d.before, h.Counts)
	return delay
}

// slowest gives the delay that the slowest tenth exceeded between two counts of
// a histogram with bounds in seconds; 0 if there were too few to tell.
func slowest(before, after []uint64, bounds []float64) time.Duration {
	total := uint64(0)
	for i, n := range after {
		total += n - before[i]
	}
	if total < fewestWaits {
		return 0
	}
	rest := uint64(float64(total) * delayPart)
	for i := len(after) - 1; i >= 0; i-- {
		n := after[i] - before[i]
		if n > rest {
			return time.Duration(max(0, min(bounds[i], math.MaxInt64/1e10)) * float64(time.Second))
		}
		rest -= n
	}
	return 0
}
