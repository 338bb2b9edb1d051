package bulletin

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// Times of the published region state.
const (
	// claimLife is how long a claim counts. Observers repeat theirs well within it.
	claimLife = 15 * time.Second
	// holdBase is how long a region that was down must be clean before it is up.
	holdBase = 15 * time.Second
	// holdMax bounds the hold-down of a flapping region.
	holdMax = 4 * time.Minute
	// calm is how long a region must be up for its next failure to count as the first.
	calm = 10 * time.Minute
)

// RegionView is the published state of a region. It is advisory: it drives what
// is shown and automatic takeover, while requests follow their own node's
// probes and breakers.
type RegionView struct {
	// Up is what to act on. At least one region is always Up.
	Up bool
	// LastHealthy says that observers hold the region to be down, and that it
	// stays Up because no other one is.
	LastHealthy bool
	// Since is when Up last changed here; zero if it never did.
	Since time.Time
	// Observers is how many outside the region were heard lately, and Down how
	// many of them cannot reach it.
	Observers, Down int
	// Known is how many outside observers were ever heard. Down*2 > Known means
	// that no partition can have made the verdict.
	Known int
}

// region is the state machine behind a RegionView.
type region struct {
	up     bool
	seenUp bool // observers have reached it before
	since  time.Time
	clean  time.Time // while down: since when no majority says so; zero if one does
	back   time.Time // when it last came up after a hold-down
	hold   time.Duration
}

type votes struct{ observers, down, known int }

// majorityDown: more than half of the outside observers heard lately.
func (v votes) majorityDown() bool { return 2*v.down > v.observers }

// Published gives every known region's state at now, which must not go back.
//
// A region is down as soon as a majority of the observers outside it says so
// (an observer says so after three misses), and up again when no majority did
// for 15 s. Each failure within ten minutes of the last recovery doubles that,
// up to four minutes. A region never reached before comes up at once.
func (t *Table) Published(now time.Time) map[string]RegionView {
	t.advance(now)
	views := make(map[string]RegionView, len(t.regions))
	anyUp := false
	for name, r := range t.regions {
		v := t.votes(name, now)
		views[name] = RegionView{Up: r.up, Since: r.since, Observers: v.observers, Down: v.down, Known: v.known}
		anyUp = anyUp || r.up
	}
	if !anyUp && len(views) > 0 {
		name := lastHealthy(views)
		v := views[name]
		v.Up, v.LastHealthy = true, true
		views[name] = v
	}
	return views
}

// lastHealthy picks the region to keep when all are down: the one that went
// last, else the one most observers still reach.
func lastHealthy(views map[string]RegionView) string {
	return slices.MinFunc(slices.Collect(maps.Keys(views)), func(a, b string) int {
		va, vb := views[a], views[b]
		return cmp.Or(vb.Since.Compare(va.Since), cmp.Compare(va.Down*vb.Observers, vb.Down*va.Observers), cmp.Compare(a, b))
	})
}

func (t *Table) know(name string) {
	if t.regions[name] == nil {
		t.regions[name] = &region{up: true, hold: holdBase}
	}
}

// advance moves every region's state machine to now. All votes are counted
// before any state changes, so that the order of regions does not matter.
func (t *Table) advance(now time.Time) {
	counted := make(map[string]votes, len(t.regions))
	for name := range t.regions {
		counted[name] = t.votes(name, now)
	}
	for name, r := range t.regions {
		r.advance(counted[name], now)
	}
}

func (r *region) advance(v votes, now time.Time) {
	switch {
	case r.up && v.majorityDown():
		if !r.back.IsZero() && now.Sub(r.back) < calm {
			r.hold = min(2*r.hold, holdMax)
		} else {
			r.hold = holdBase
		}
		r.up, r.since, r.clean = false, now, time.Time{}
	case r.up:
		r.seenUp = r.seenUp || v.observers > 0
	case v.majorityDown():
		r.clean = time.Time{}
	case !r.seenUp:
		r.up, r.seenUp, r.since = true, v.observers > 0, now
	default:
		if r.clean.IsZero() {
			r.clean = now
		}
		if now.Sub(r.clean) >= r.hold {
			r.up, r.since, r.back = true, now, now
		}
	}
}

// votes counts the observers outside the region. Those of a region that is
// itself down do not count: they may be the ones cut off.
func (t *Table) votes(name string, now time.Time) votes {
	var v votes
	for key, h := range t.claims {
		if key.subject != name || key.observer.Region == name {
			continue
		}
		v.known++
		if now.Sub(h.at) > claimLife || !t.regions[key.observer.Region].up {
			continue
		}
		v.observers++
		if !h.claim.Up {
			v.down++
		}
	}
	return v
}
