package dataplane

import (
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
)

// carried is what other nodes decided of a request: the entry node, or, at the
// entry node, those that it asked. The stricter wins, wherever it was known.
type carried struct {
	pin  string
	zero bool
	pool string
}

// learn keeps what the peer that was asked last holds the request to.
func (x *exchange) learn(p *relay.PeerAnswer) {
	if pin := p.Header.Get(hResidency); pin != "" && pin != policy.Unpinned {
		x.carried.pin = bounded(pin, 8)
	}
	x.carried.zero = x.carried.zero || p.Header.Get(hRetention) == "zero"
	if pool := p.Header.Get(hPool); pool == policy.DedicatedPool(x.caller.Org.Meta.ID) {
		x.carried.pool = pool
	}
}

// renew decides again, on the state as it is now, before somebody else is asked
// for a request that was asked for before: its key may be revoked by now, its
// org suspended, a pin or a policy tightened, an upstream given up. The walk
// goes on over what is left; or it is over, and the failure says why.
func (x *exchange) renew() (failure, bool) {
	before, view, plan := x.decision, x.view, x.plan
	x.view, x.decided = x.w.cfg.Store.View(), false
	fail := failure{}
	if x.front {
		fail.err = x.identify()
	} else {
		var outcome string
		outcome, fail.err = x.recheck()
		fail.behind, fail.final = outcome == relay.OutcomeBehind, outcome == relay.OutcomeFinal
	}
	if fail.err == nil && (x.view != view || !same(&before, &x.decision)) {
		fail = x.replan(&before)
	}
	if fail.err != nil { // what was done was done as it was decided
		x.decision, x.decided, x.plan = before, true, plan
		return fail, false
	}
	return failure{}, true
}

// same reports whether b puts a request in the same class as a did.
func same(a, b *policy.Decision) bool {
	return a.Pin == b.Pin && a.ZeroRetention == b.ZeroRetention && a.Pool == b.Pool && a.Class == b.Class &&
		a.Billed.Meta.ID == b.Billed.Meta.ID
}

// replan plans the way again, and keeps in mind who was asked.
func (x *exchange) replan(before *policy.Decision) failure {
	if x.written && !same(before, &x.decision) { // its head says how the answer is dealt with
		return failure{err: errNoRoute}
	}
	if e := x.suits(); e != nil {
		return failure{err: e, final: true}
	}
	model := x.plan.Route.Model
	x.plan = nil
	plan, refused := x.planFor(x.wanted(x.query.Model))
	if plan != nil && plan.Route.Model != model { // a fallback: of the same provider as the first choice
		x.plan = plan
		plan, refused = x.planFor(model)
	}
	if refused != nil {
		e := refusal(refused)
		return failure{err: e, final: outcomeOf(e.Code) == relay.OutcomeFinal}
	}
	x.plan = plan
	round := x.walk.round
	x.begin()
	x.walk.round = round
	return failure{}
}

// suits checks what the request's class forbids it to contain.
func (x *exchange) suits() *dialect.Error {
	if x.query.Geo && x.decision.Pin != "" {
		return errGeo
	}
	if x.decision.ZeroRetention {
		if e := request.StorageRefusal(x.endpoint, &x.query, x.r.Header); e != nil {
			return e
		}
	}
	// The accounts of upstreams that are not an org's own are shared by all callers.
	if !x.decision.Dedicated() {
		if e := request.SharedRefusal(&x.query); e != nil {
			return e
		}
	}
	return nil
}
