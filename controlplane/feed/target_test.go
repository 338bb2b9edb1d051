package feed

import (
	"testing"
	"time"
)

func TestChooser(t *testing.T) {
	c := chooser{shun: time.Minute, failed: map[string]time.Time{}}
	now := time.Unix(1000, 0)
	all := []Target{{"v1:1", 1}, {"r1:1", 0}, {"v2:1", 1}, {"r2:1", 0}}
	last := func(n int) int { return n - 1 }
	is := func(want string, alone bool) {
		t.Helper()
		got, a, ok := c.pick(all, now, last)
		if !ok || got.Addr != want || a != alone {
			t.Errorf("picked %v (alone: %v), want %s", got, a, want)
		}
	}
	if _, _, ok := c.pick(nil, now, last); ok {
		t.Error("picked somebody from nobody")
	}
	is("r2:1", false)
	c.fail(all[3], now)
	is("r1:1", false)
	now = now.Add(time.Second)
	c.fail(all[1], now)
	is("v2:1", false)
	if c.outranked(all[0], all, now) {
		t.Error("readers that failed outrank a voter")
	}
	now = now.Add(time.Second)
	c.fail(all[2], now)
	c.fail(all[0], now)
	is("r2:1", true) // the oldest failure
	now = now.Add(time.Minute - 2*time.Second)
	is("r2:1", false)
	if !c.outranked(all[0], all, now) || c.outranked(all[1], all, now) {
		t.Error("a reader that may be well again is not seen")
	}
	all = all[:1]
	is("v1:1", true)
	if len(c.failed) != 1 {
		t.Errorf("remembers who is gone: %v", c.failed)
	}
}
