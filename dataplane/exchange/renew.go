package exchange

import (
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/walk"
)

// carried is what other nodes decided of a request: the entry node, or, at the
// entry node, those that it asked. The stricter wins, wherever it was known.
type carried struct {
	pin  string
	zero bool
	pool string
}

// Learn keeps what the peer that was asked last holds the request to.
func (x *exchange) Learn(p *relay.PeerAnswer) {
	if pin := p.Header.Get(hResidency); pin != "" && pin != policy.Unpinned {
		x.carried.pin = bounded(pin, 8)
	}
	x.carried.zero = x.carried.zero || p.Header.Get(hRetention) == "zero"
	if pool := p.Header.Get(hPool); pool == policy.DedicatedPool(x.caller.Org.Meta.ID) {
		x.carried.pool = pool
	}
}

// Renew decides again, on the state as it is now, before somebody else is asked
// for a request that was asked for before: its key may be revoked by now, its
// org suspended, a pin or a policy tightened, an upstream given up. The walk
// goes on over what is left; or it is over, and the failure says why.
func (x *exchange) Renew() walk.Failure {
	before, view := x.decision, x.view
	x.view, x.decided = x.node.Store.View(), false
	fail := walk.Failure{}
	if x.front {
		fail.Err = x.identify()
	} else {
		var outcome string
		outcome, fail.Err = x.recheck()
		fail.Behind, fail.Final = outcome == relay.OutcomeBehind, outcome == relay.OutcomeFinal
	}
	if fail.Err == nil && (x.view != view || !same(&before, &x.decision)) {
		fail = x.replan(&before)
	}
	if fail.Err != nil { // what was done was done as it was decided
		x.decision, x.decided = before, true
	}
	return fail
}

// same reports whether b puts a request in the same class as a did.
func same(a, b *policy.Decision) bool {
	return a.Pin == b.Pin && a.ZeroRetention == b.ZeroRetention && a.Pool == b.Pool && a.Class == b.Class &&
		a.Billed.Meta.ID == b.Billed.Meta.ID
}

// replan plans the way again, unless the answer's head says already how the
// request is dealt with.
func (x *exchange) replan(before *policy.Decision) walk.Failure {
	if x.written && !same(before, &x.decision) {
		return walk.Failure{Err: walk.ErrNoRoute}
	}
	if e := x.suits(); e != nil {
		return walk.Failure{Err: e, Final: true}
	}
	if e := x.walk.Replan(x.view); e != nil {
		return walk.Failure{Err: e, Final: outcomeOf(e.Code) == relay.OutcomeFinal}
	}
	return walk.Failure{}
}

// suits checks what the request's class forbids it to contain.
func (x *exchange) suits() *dialect.Error {
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
	if x.decision.Pin != "" {
		return request.AwayRefusal(&x.query)
	}
	return nil
}
