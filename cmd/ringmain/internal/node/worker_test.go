package node

import (
	"context"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
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

type told struct {
	drain chan struct{}
	by    time.Time
}

func (k *told) Drain() <-chan struct{} { return k.drain }
func (k *told) DrainBy() time.Time     { return k.by }

// TestDraining: a worker waits as long as its keeper says, also when a signal came
// to it first, as systemd sends one to all processes of a unit.
func TestDraining(t *testing.T) {
	for _, c := range []struct {
		asked, kills time.Duration // after the worker's signal; 0 = never
		want         time.Duration
	}{
		{0, 0, 5 * time.Minute},
		{time.Nanosecond, 31 * time.Second, 28 * time.Second},
		{time.Second, 31 * time.Second, 28 * time.Second},
		{time.Second, time.Hour, time.Hour - 3*time.Second},
		{time.Second, 0, workerDrain + time.Second},
	} {
		synckit.Test(t, func(t *testing.T) {
			began, keeper := time.Now(), &told{drain: make(chan struct{})}
			if c.kills > 0 {
				keeper.by = began.Add(c.kills)
			}
			ctx, done := draining(context.Background(), keeper)
			defer done()
			if c.asked > 0 {
				time.Sleep(c.asked)
				close(keeper.drain)
			}
			<-ctx.Done()
			if took := time.Since(began); took != c.want {
				t.Errorf("%+v: it drained for %v", c, took)
			}
		})
	}
}
