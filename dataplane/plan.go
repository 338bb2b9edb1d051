package dataplane

import (
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/route"
)

// wanted is the public name of the model to serve: the body's, unless the
// entry node fell back on another.
func (x *exchange) wanted(model string) string {
	if !x.front {
		if fallback := x.r.Header.Get(relay.HeaderModel); fallback != "" {
			return fallback
		}
	}
	return model
}

// planFor plans the way to model. Where nothing of it is in service, the plan
// is there nevertheless if it names models to fall back on.
func (x *exchange) planFor(model string) (*route.Plan, *policy.Refusal) {
	in := route.Input{
		View: x.view, Decision: &x.decision, Model: model, Dialect: x.dialect.String(), Path: x.path, Hint: x.asked.RegionHint,
		Region: x.w.setup.Region, Jurisdiction: x.w.setup.Jurisdiction, Pools: x.w.setup.Pools, LocalOnly: !x.front,
		Peers: x.w.cfg.Peers, RTT: x.w.trips.region, InFlight: x.w.limits.Used, Random: random,
	}
	switch {
	case !x.front:
		in.Provider = x.r.Header.Get(relay.HeaderProvider)
	case x.plan != nil: // a fallback changes the model, not the provider
		in.Provider = x.plan.Provider()
	}
	p, refused := route.New(in)
	if refused != nil && p != nil && x.front && len(p.Route.Fallbacks) > 0 {
		return p, nil
	}
	return p, refused
}

// walk is how far a request has come on its way from stop to stop.
type walk struct {
	legs  []leg
	few   [2]leg // memory of legs, where they are few
	whole bool   // other nodes are among them already
	round int    // over legs that failed, but spoke
	at    int    // leg that answered last
	begun bool   // somebody was asked
	past  []leg  // that were asked before the way was planned again, in turn
	fail  failure
	// models that may be asked yet if this one has no more to offer.
	models []string
	// context: the model for prompts that were too long may be asked yet.
	context string
}

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
func (k *walk) recall(legs []leg) {
	for i := range k.past {
		p := &k.past[i]
		for j := range legs {
			l := &legs[j]
			if l.Region == p.Region && l.circuit() == p.circuit() && (l.Upstream != nil || p.mute || p.model == l.model) {
				l.spent, l.asked, l.turn, l.mute, l.from = p.spent, p.asked, p.turn, p.mute, p.from
			}
		}
	}
}

// begin starts the walk over what the present plan offers.
func (x *exchange) begin() {
	k := &x.walk
	for i := range k.legs {
		if k.legs[i].turn > 0 || k.legs[i].spent {
			k.past = append(k.past, k.legs[i])
		}
	}
	k.legs, k.whole, k.round = k.few[:0], false, 0
	if !x.front || !x.plan.HintAway() {
		x.lay(x.plan.Local(), true)
		return
	}
	var hinted, rest []route.Stop
	for _, s := range x.plan.Remote() {
		if s.Region == x.asked.RegionHint {
			hinted = append(hinted, s)
		} else {
			rest = append(rest, s)
		}
	}
	x.lay(hinted, false)
	x.lay(x.plan.Local(), true)
	x.lay(rest, false)
	k.whole = true
}

// extend adds other nodes to the legs, once.
func (x *exchange) extend() {
	if k := &x.walk; !k.whole && x.front {
		k.whole = true
		x.lay(x.plan.Remote(), true)
	}
}

// lay adds stops to the legs, those that are to be spared last if demoted.
func (x *exchange) lay(stops []route.Stop, demoted bool) {
	k := &x.walk
	from := len(k.legs)
	for _, s := range stops {
		k.legs = append(k.legs, leg{Stop: s, model: x.plan.Route.Model})
	}
	if demoted {
		x.demote(k.legs[from:])
	}
	if len(k.past) > 0 {
		k.recall(k.legs[from:])
	}
}

// demote puts stops behind the others that asked to be left alone for now, or
// that are on slow start after a failure and not drawn for this request. They
// are still asked where the others fail.
func (x *exchange) demote(legs []leg) {
	if len(legs) < 2 {
		return
	}
	now := time.Now()
	var back []leg
	front := legs[:0]
	for i := range legs {
		share := x.circuits(&legs[i]).Share(legs[i].circuit(), now)
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
func (x *exchange) nextModel() bool {
	k := &x.walk
	for len(k.models) > 0 {
		model := k.models[0]
		k.models = k.models[1:]
		if x.fallBack(model) {
			return true
		}
	}
	return false
}

func (x *exchange) fallBack(model string) bool {
	plan, refused := x.planFor(model)
	if refused != nil {
		return false
	}
	x.plan = plan
	x.begin()
	return true
}

func (l *leg) circuit() breaker.Key {
	if l.Upstream == nil {
		return breaker.Peer(l.Peer.Node)
	}
	return breaker.Key{Owner: l.Upstream.Upstream.Name, Part: l.Model}
}

func (x *exchange) circuits(l *leg) *breaker.Set {
	if l.Upstream == nil {
		return x.w.peerNodes
	}
	return x.w.upstreams
}

func (x *exchange) shut(l *leg) bool { return x.circuits(l).Open(l.circuit()) }
