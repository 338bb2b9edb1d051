package walk

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/route"
)

// leg is one stop of the way, and whether it may still be asked.
type leg struct {
	route.Stop
	spent bool
	asked bool
	mute  bool      // it kept silent
	turn  int       // round in which it was last considered, from 1; 0 = in none
	model string    // public name of the one it is asked for
	from  time.Time // not asked before: it said so
}

// recall tells legs of a new plan what is known of them from those before. A
// node that failed for one model is asked for another, if it spoke.
func (w *Walk) recall(legs []leg) {
	for i := range w.past {
		p := &w.past[i]
		for j := range legs {
			l := &legs[j]
			if l.Region == p.Region && w.circuit(l) == w.circuit(p) && (l.Upstream != nil || p.mute || p.model == l.model) {
				l.spent, l.asked, l.turn, l.mute, l.from = p.spent, p.asked, p.turn, p.mute, p.from
			}
		}
	}
}

// begin starts the walk over what the present plan offers.
func (w *Walk) begin() {
	for i := range w.legs {
		if w.legs[i].turn > 0 || w.legs[i].spent {
			w.past = append(w.past, w.legs[i])
		}
	}
	w.legs, w.whole, w.round = w.few[:0], false, 0
	if !w.request.Front || !w.Plan.HintAway() {
		w.lay(w.Plan.Local(), true)
		return
	}
	var hinted, rest []route.Stop
	for _, s := range w.Plan.Remote() {
		if s.Region == w.request.Hint {
			hinted = append(hinted, s)
		} else {
			rest = append(rest, s)
		}
	}
	w.lay(hinted, false)
	w.lay(w.Plan.Local(), true)
	w.lay(rest, false)
	w.whole = true
}

// extend adds other nodes to the legs, once.
func (w *Walk) extend() {
	if !w.whole && w.request.Front {
		w.whole = true
		w.lay(w.Plan.Remote(), true)
	}
}

// lay adds stops to the legs, those that are to be spared last if demoted.
func (w *Walk) lay(stops []route.Stop, demoted bool) {
	from := len(w.legs)
	for _, s := range stops {
		w.legs = append(w.legs, leg{Stop: s, model: w.Plan.Route.Model})
	}
	if demoted {
		w.demote(w.legs[from:])
	}
	if len(w.past) > 0 {
		w.recall(w.legs[from:])
	}
}

// demote puts stops behind the others that asked to be left alone for now, or
// that are on slow start after a failure and not drawn for this request. They
// are still asked where the others fail.
func (w *Walk) demote(legs []leg) {
	if len(legs) < 2 {
		return
	}
	now := time.Now()
	var back []leg
	front := legs[:0]
	for i := range legs {
		share := w.circuits(&legs[i]).Share(w.circuit(&legs[i]), now)
		if share >= 1 || float64(random()>>11)/(1<<53) < share {
			front = append(front, legs[i])
		} else {
			back = append(back, legs[i])
		}
	}
	copy(legs[len(front):], back)
}

// nextModel turns to the next model that the request's own falls back on. It
// reports false if there is none, or none that this request may use.
func (w *Walk) nextModel() bool {
	for len(w.models) > 0 {
		model := w.models[0]
		w.models = w.models[1:]
		if w.fallBack(model) {
			return true
		}
	}
	return false
}

func (w *Walk) fallBack(model string) bool {
	plan, refused := w.planFor(model)
	if refused != nil {
		return false
	}
	w.Plan = plan
	w.begin()
	return true
}

func (w *Walk) circuit(l *leg) breaker.Key {
	if l.Upstream == nil {
		return breaker.Peer(l.Peer.Node)
	}
	return breaker.Key{Owner: l.Upstream.Upstream.Name, Part: l.Model, Path: w.request.Path}
}

// who asks, to circuits of upstreams: the org that is billed. What peers fail at is
// their upstreams', and not told by requests.
func (w *Walk) who(l *leg) string {
	if b := w.request.Decision.Billed; b != nil && l.Upstream != nil {
		return b.Project.Org
	}
	return ""
}

func (w *Walk) circuits(l *leg) *breaker.Set {
	if l.Upstream == nil {
		return w.ground.PeerNodes
	}
	return w.ground.Upstreams
}

func (w *Walk) shut(l *leg) bool { return w.circuits(l).OpenTo(w.circuit(l), w.who(l)) }

// judge notes what a failed attempt at leg i means for the others, and for what
// the client is told if it was the last.
func (w *Walk) judge(res *relay.Result, i int) {
	l := &w.legs[i]
	switch {
	case errors.Is(res.Cause, relay.ErrNoSockets): // in a moment, an open connection may be free
		w.fail = Failure{Err: ErrShed}
		return
	case res.Peer != nil && res.Peer.Outcome == relay.OutcomeBehind:
		l.spent = true
		if w.fail.Err == ErrNoRoute {
			w.fail = Failure{Err: ErrBehind, Behind: true}
		}
		return
	case res.Peer != nil && res.Peer.Outcome == relay.OutcomeFailed:
		l.spent = true
		e := ErrorOf(breaker.ServerError)
		for _, known := range []*dialect.Error{errTimeout, errSaturated, ErrNoRoute, ErrShed, ErrMetering, ErrEnding, ErrPinned, errNoZero} {
			if known.Code == res.Peer.Code {
				e = known
			}
		}
		// Its neighbours would ask the same upstreams. What is wrong with that
		// node alone is worth one more try in its region, not one at every node.
		alone := e == ErrShed || e == ErrMetering || e == ErrEnding || e == errNoZero
		if !alone || w.failedIn(l.Region) > 1 {
			for j := range w.legs {
				w.legs[j].spent = w.legs[j].spent || w.legs[j].Upstream == nil && w.legs[j].Region == l.Region
			}
		}
		w.fail = Failure{Err: e, Wait: res.RetryAfter}
		return
	}
	if res.Silent || res.RetryAfter > maxWait || res.Outcome == breaker.Expired {
		l.spent, l.mute = true, res.Silent
	}
	l.from = time.Now().Add(res.RetryAfter)
	w.fail = Failure{Err: ErrorOf(res.Outcome), Wait: res.RetryAfter}
}

// failedIn counts the nodes of region that were asked in vain.
func (w *Walk) failedIn(region string) int {
	n := 0
	for i := range w.legs {
		if l := &w.legs[i]; l.Upstream == nil && l.Region == region && l.asked && l.spent {
			n++
		}
	}
	return n
}

// pause waits before the legs that may be asked again are, if there are any:
// until the first of them lets itself be asked, and a little in any case.
func (w *Walk) pause(ctx context.Context) bool {
	wait, now := time.Duration(-1), time.Now()
	for i := range w.legs {
		l := &w.legs[i]
		if l.spent || w.shut(l) || l.Upstream != nil && l.asked && !w.ground.Budgets.Room(l.Upstream.Upstream.Name, now) {
			continue
		}
		if left := max(0, l.from.Sub(now)); wait < 0 || left < wait {
			wait = left
		}
	}
	if wait < 0 || w.left <= 0 {
		return false
	}
	if wait == 0 {
		wait = firstPause << (w.round - 1)
		wait = wait/2 + rand.N(wait/2) //nolint:gosec // jitter
	}
	if wait > time.Until(w.deadline)-minDeadline {
		return false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return true // the next attempt finds out who is gone
	case <-timer.C:
		return true
	}
}
