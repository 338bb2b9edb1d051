package admission

import (
	"math"
	"testing"
	"time"
)

// TestFewWaitsSayNothing: the slowest tenth of a handful is the one that a
// noisy machine kept waiting.
func TestFewWaitsSayNothing(t *testing.T) {
	bounds := []float64{math.Inf(-1), 1e-6, 1e-3, 0.025, 1, math.Inf(1)}
	for _, c := range []struct {
		waits []uint64
		want  time.Duration
	}{
		{[]uint64{0, 0, 0, 0, 0}, 0},
		{[]uint64{0, 2, 0, 1, 0}, 0},
		{[]uint64{0, 20, 20, 20, 0}, 0},
		{[]uint64{0, 1000, 0, 50, 0}, time.Microsecond},
		{[]uint64{0, 1000, 0, 150, 0}, 25 * time.Millisecond},
		{[]uint64{0, 0, 0, 0, 300}, time.Second},
		{[]uint64{300, 0, 0, 0, 0}, 0},
	} {
		before := []uint64{9, 9, 9, 9, 9}
		after := make([]uint64, len(before))
		for i := range after {
			after[i] = before[i] + c.waits[i]
		}
		if got := slowest(before, after, bounds); got != c.want {
			t.Errorf("%v: %v, want %v", c.waits, got, c.want)
		}
	}
}
