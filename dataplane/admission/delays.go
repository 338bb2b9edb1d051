package admission

import (
	"math"
	sched "runtime/metrics"
	"time"
)

// Delays measures how long goroutines that could run waited for a
// processor, which is what overload of this process looks like: its own work
// is short, and everything else is waiting for others.
type Delays struct {
	sample [1]sched.Sample
	before []uint64
}

const (
	// delayPart is the share of waits that are longer than what Since gives.
	delayPart = 0.1
	// fewestWaits is how many a window must have had. An idle process has some
	// dozens, and a few late ones say something of its machine, nothing of it.
	fewestWaits = 200
)

// Since gives the delay that the slowest tenth exceeded since the last call.
func (d *Delays) Since() time.Duration {
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
