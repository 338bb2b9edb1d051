package feed

import (
	"maps"
	"slices"
	"time"
)

// Target is a control node that may be watched.
type Target struct {
	Addr string // its internal address, host:port
	Rank int    // those of a lower rank are watched while they serve well
}

// Fixed is a list of equals that never changes.
func Fixed(addrs ...string) func() []Target {
	var all []Target
	for _, a := range addrs {
		all = append(all, Target{Addr: a})
	}
	return func() []Target { return all }
}

// chooser picks whom to watch. It knows who failed lately.
type chooser struct {
	shun   time.Duration // how long a target that failed is left alone while there are others
	failed map[string]time.Time
}

// good are the targets that did not fail lately, of the lowest rank there is
// among them.
func (c *chooser) good(all []Target, now time.Time) (good []Target) {
	for _, t := range all {
		if at, ok := c.failed[t.Addr]; ok && now.Sub(at) < c.shun {
			continue
		}
		switch {
		case len(good) == 0 || t.Rank < good[0].Rank:
			good = append(good[:0], t)
		case t.Rank == good[0].Rank:
			good = append(good, t)
		}
	}
	return good
}

// pick gives a good target, by random, or else the one whose failure is the
// oldest: alone says so. It is false if there is none at all.
func (c *chooser) pick(all []Target, now time.Time, random func(n int) int) (t Target, alone, ok bool) {
	maps.DeleteFunc(c.failed, func(addr string, _ time.Time) bool {
		return !slices.ContainsFunc(all, func(t Target) bool { return t.Addr == addr })
	})
	if good := c.good(all, now); len(good) > 0 {
		return good[random(len(good))], false, true
	}
	for _, o := range all {
		if !ok || c.failed[o.Addr].Before(c.failed[t.Addr]) {
			t, ok = o, true
		}
	}
	return t, true, ok
}

func (c *chooser) fail(t Target, now time.Time) { c.failed[t.Addr] = now }

// outranked reports whether a better target than t may be watched now.
func (c *chooser) outranked(t Target, all []Target, now time.Time) bool {
	good := c.good(all, now)
	return len(good) > 0 && good[0].Rank < t.Rank
}
