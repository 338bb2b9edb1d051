package dataplane

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/route"
)

func random() uint64 { return rand.Uint64() } //nolint:gosec // spreads load, guards nothing

// failure is why nobody answered.
type failure struct {
	err    *dialect.Error
	wait   time.Duration // as the upstream asked; 0 = it did not
	gone   bool          // the client left
	behind bool          // only nodes whose state lags were found
	final  bool          // nobody else is to be asked for this request
}

var (
	errUpstream  = dialect.Fail(dialect.UpstreamError, "The upstream failed, and no other may serve this request: the gateway's own retries are used up.")
	errTimeout   = dialect.Fail(dialect.UpstreamTimeout, "The upstream did not answer in time.")
	errSaturated = dialect.Fail(dialect.UpstreamSaturated, "The upstreams for this model are at their limits: retry shortly.")
	errNoRoute   = dialect.Fail(dialect.NoHealthyRoute, route.NoRoute().Message)
	errBehind    = dialect.Fail(dialect.NotReady, "The regions that can serve this request have not learned of it yet: retry shortly.")
	errNoZero    = dialect.Fail(dialect.ZeroRetentionUnavailable, policy.NoZeroRetention().Message)
	errMetering  = dialect.Fail(dialect.MeteringUnavailable, "The request cannot be metered at the moment: retry shortly.")
)

// errorOf is what the client is told when attempts ended with o.
func errorOf(o breaker.Outcome) *dialect.Error {
	switch o {
	case breaker.Throttled:
		return errSaturated
	case breaker.Timeout, breaker.Expired:
		return errTimeout
	default:
		return errUpstream
	}
}

const (
	rounds      = 3               // over stops that failed, but spoke
	maxWait     = 2 * time.Second // for an upstream that says when to come back
	firstPause  = 100 * time.Millisecond
	minDeadline = 10 * time.Millisecond
)

// ask goes from stop to stop until one answers, within the attempts and the
// time that are left, and then to the models that the route falls back on. A
// stop that kept silent is not asked twice.
func (x *exchange) ask(ctx context.Context) (*relay.Result, failure) {
	k := &x.walk
	k.fail, x.tried = failure{err: errNoRoute}, x.fewTried[:0]
	if x.front {
		k.models, k.context = x.plan.Route.Fallbacks, x.plan.Route.ContextFallback
	}
	x.begin()
	res, fail := x.askModels(ctx)
	if res != nil && k.context != "" && res.Problem.ContextLength && res.Outcome == breaker.ClientError {
		return x.askLonger(ctx, res)
	}
	return res, fail
}

// askModels walks over the present model, and then over those in reserve.
func (x *exchange) askModels(ctx context.Context) (*relay.Result, failure) {
	for {
		res, over := x.walkOn(ctx)
		if res != nil || over {
			return res, x.walk.fail
		}
		reserve := len(x.walk.models)
		switch {
		case x.left > 0 && x.nextModel():
		case x.left > 0 && reserve > 0: // none of them may be asked: back to this one
		default:
			return nil, x.lastWord()
		}
	}
}

// lastWord is what the client is told if nobody answered.
func (x *exchange) lastWord() failure {
	if x.walk.fail.err == errNoRoute {
		return failure{err: refusal(x.plan.Unreachable())}
	}
	return x.walk.fail
}

// askLonger asks the model that takes longer prompts, once, because tooLong
// refused this one. Where nobody answers, that refusal stands.
func (x *exchange) askLonger(ctx context.Context, tooLong *relay.Result) (*relay.Result, failure) {
	k := &x.walk
	plan, upstream, id, served, remote := x.plan, x.upstream, x.upstreamID, x.served, x.remote
	longer := k.context
	k.context, k.models, k.fail = "", nil, failure{err: errNoRoute}
	if x.left > 0 && x.fallBack(longer) {
		x.leaveUpstream()
		res, fail := x.askModels(ctx)
		if res != nil || fail.gone {
			tooLong.Release()
			return res, fail
		}
	}
	x.plan, x.upstream, x.upstreamID, x.served, x.remote = plan, upstream, id, served, remote
	return tooLong, failure{}
}

// askElsewhere goes on after the stop that answered last broke off: it counts
// as spent. Only the same model is asked, within the attempts and the time
// that are left.
func (x *exchange) askElsewhere(ctx context.Context) (*relay.Result, failure) {
	k := &x.walk
	x.leaveUpstream()
	if k.at < len(k.legs) {
		k.legs[k.at].spent = true
	}
	k.models, k.context, k.fail = nil, "", failure{err: errNoRoute}
	return x.askModels(ctx)
}

// walkOn asks stop after stop of the present plan. over: there is no use in
// asking another model; walk.fail says why.
func (x *exchange) walkOn(ctx context.Context) (res *relay.Result, over bool) {
	k := &x.walk
	renewed := false
	for ; k.round < rounds; k.round++ {
		// Another model is asked before one that failed is asked again.
		if k.round > 0 && (len(k.models) > 0 || !x.pause(ctx)) {
			return nil, false
		}
		for i := 0; x.left > 0; i++ {
			if i == len(k.legs) {
				x.extend()
			}
			if i >= len(k.legs) {
				break
			}
			l := &k.legs[i]
			if l.spent || l.turn > k.round || time.Now().Before(l.from) {
				continue
			}
			if time.Until(x.deadline) < minDeadline {
				k.fail = failure{err: errTimeout}
				return nil, true
			}
			if k.begun && !renewed {
				plan := x.plan
				if fail, ok := x.renew(); !ok {
					k.fail = fail
					return nil, true
				}
				if renewed = x.plan != plan; renewed {
					i = -1
					continue
				}
			}
			renewed, l.turn = false, k.round+1
			res, skipped := x.attempt(ctx, l)
			if skipped == fullIt && k.fail.err == errNoRoute {
				k.fail = failure{err: errSaturated}
			}
			if res == nil {
				continue
			}
			k.at, k.begun = i, true
			if errors.Is(res.Cause, relay.ErrAnswerTooLarge) { // another's would be as large
				res.Release()
				x.leaveUpstream()
				k.fail = failure{err: errAnswerSize}
				return nil, true
			}
			switch res.Outcome {
			case breaker.OK, breaker.Refused, breaker.ClientError:
				k.fail = failure{}
				return res, true
			case breaker.ClientGone:
				res.Release()
				x.leaveUpstream()
				k.fail = failure{gone: true}
				return nil, true
			}
			x.judge(res, i)
			x.w.log.Debug("attempt failed", "request", x.id, "region", l.Region, "outcome", res.Outcome.String(), "error", res.Cause)
			res.Release()
			x.leaveUpstream()
		}
	}
	return nil, false
}

// judge notes what a failed attempt at leg i means for the others, and for what
// the client is told if it was the last.
func (x *exchange) judge(res *relay.Result, i int) {
	k := &x.walk
	l := &k.legs[i]
	switch {
	case res.Peer != nil && res.Peer.Outcome == relay.OutcomeBehind:
		l.spent = true
		if k.fail.err == errNoRoute {
			k.fail = failure{err: errBehind, behind: true}
		}
		return
	case res.Peer != nil && res.Peer.Outcome == relay.OutcomeFailed:
		l.spent = true
		e := errorOf(breaker.ServerError)
		for _, known := range []*dialect.Error{errTimeout, errSaturated, errNoRoute, errShed, errMetering, errNoZero} {
			if known.Code == res.Peer.Code {
				e = known
			}
		}
		// Its neighbours would ask the same upstreams. What is wrong with that
		// node alone is worth one more try in its region, not one at every node.
		alone := e == errShed || e == errMetering || e == errNoZero
		if !alone || x.failedIn(l.Region) > 1 {
			for j := range k.legs {
				k.legs[j].spent = k.legs[j].spent || k.legs[j].Upstream == nil && k.legs[j].Region == l.Region
			}
		}
		k.fail = failure{err: e, wait: res.RetryAfter}
		return
	}
	if res.Silent || res.RetryAfter > maxWait || res.Outcome == breaker.Expired {
		l.spent, l.mute = true, res.Silent
	}
	l.from = time.Now().Add(res.RetryAfter)
	k.fail = failure{err: errorOf(res.Outcome), wait: res.RetryAfter}
}

// failedIn counts the nodes of region that were asked in vain.
func (x *exchange) failedIn(region string) int {
	n := 0
	for i := range x.walk.legs {
		if l := &x.walk.legs[i]; l.Upstream == nil && l.Region == region && l.asked && l.spent {
			n++
		}
	}
	return n
}

// pause waits before the legs that may be asked again are, if there are any:
// until the first of them lets itself be asked, and a little in any case.
func (x *exchange) pause(ctx context.Context) bool {
	wait, now := time.Duration(-1), time.Now()
	for i := range x.walk.legs {
		l := &x.walk.legs[i]
		if l.spent || x.shut(l) || l.Upstream != nil && l.asked && !x.w.budgets.Room(l.Upstream.Upstream.Name, now) {
			continue
		}
		if w := max(0, l.from.Sub(now)); wait < 0 || w < wait {
			wait = w
		}
	}
	if wait < 0 || x.left <= 0 {
		return false
	}
	if wait == 0 {
		wait = firstPause << (x.walk.round - 1)
		wait = wait/2 + rand.N(wait/2) //nolint:gosec // jitter
	}
	if wait > time.Until(x.deadline)-minDeadline {
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
