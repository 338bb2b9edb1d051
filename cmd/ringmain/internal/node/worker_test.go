package node

import (
	"testing"
	"time"
)

// TestDrainFor: a worker ends a little before its keeper kills it, and by itself
// not before the longest stream may.
func TestDrainFor(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		killed time.Time
		want   time.Duration
	}{
		{now.Add(2 * time.Hour), 2*time.Hour - 3*time.Second},
		{now.Add(30 * time.Second), 27 * time.Second},
		{now.Add(time.Second), 750 * time.Millisecond},
		{now.Add(-time.Second), 0},
	} {
		if got := drainFor(c.killed, now); got != c.want {
			t.Errorf("killed in %v, it drains for %v", c.killed.Sub(now), got)
		}
	}
	if got := drainFor(time.Time{}, now); got < time.Hour {
		t.Errorf("by itself it drains for %v", got)
	}
}
