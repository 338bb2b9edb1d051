package dataplane

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
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
}

var (
	errUpstream  = dialect.Fail(dialect.UpstreamError, "The upstream failed, and no other may serve this request: the gateway's own retries are used up.")
	errTimeout   = dialect.Fail(dialect.UpstreamTimeout, "The upstream did not answer in time.")
	errSaturated = dialect.Fail(dialect.UpstreamSaturated, "The upstreams for this model are at their limits: retry shortly.")
	errNoRoute   = dialect.Fail(dialect.NoHealthyRoute, route.NoRoute().Message)
	errBehind    = dialect.Fail(dialect.NotReady, "The regions that can serve this request have not learned of it yet: retry shortly.")
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

// leg is one stop of the way, and whether it may still be asked.
type leg struct {
	route.Stop
	spent bool
	from  time.Time // not asked before: it said so
}

const (
	rounds      = 3               // over stops that failed, but spoke
	maxWait     = 2 * time.Second // for an upstream that says when to come back
	firstPause  = 100 * time.Millisecond
	minDeadline = 10 * time.Millisecond
)

// ask goes from stop to stop until one answers, within the attempts and the
// time that are left. A stop that kept silent is not asked twice.
func (x *exchange) ask(ctx context.Context) (*relay.Result, failure) {
	legs, whole := x.start()
	fail := failure{err: errNoRoute}
	for round := range rounds {
		if round > 0 && !x.pause(ctx, round, legs) {
			break
		}
		for i := 0; x.left > 0; i++ {
			if i == len(legs) && !whole && x.front {
				legs, whole = append(legs, remoteLegs(x.plan.Remote())...), true
			}
			if i >= len(legs) {
				break
			}
			if legs[i].spent || time.Now().Before(legs[i].from) {
				continue
			}
			if time.Until(x.deadline) < minDeadline {
				return nil, failure{err: errTimeout}
			}
			res := x.attempt(ctx, &legs[i])
			if res == nil {
				continue // its circuit is open
			}
			switch res.Outcome {
			case breaker.OK, breaker.Refused, breaker.ClientError:
				return res, failure{}
			case breaker.ClientGone:
				res.Release()
				return nil, failure{gone: true}
			}
			fail = x.judge(res, legs, i, fail)
			x.w.log.Debug("attempt failed", "request", x.id, "region", legs[i].Region, "outcome", res.Outcome.String(), "error", res.Cause)
			res.Release()
		}
	}
	return nil, fail
}

// start gives the first legs. whole: other regions are among them already.
func (x *exchange) start() (legs []leg, whole bool) {
	local := x.plan.Local()
	if !x.front || !x.plan.HintAway() {
		legs = make([]leg, 0, len(local))
		for _, s := range local {
			legs = append(legs, leg{Stop: s})
		}
		return legs, false
	}
	var rest []leg
	for _, l := range remoteLegs(x.plan.Remote()) {
		if l.Region == x.asked.RegionHint {
			legs = append(legs, l)
		} else {
			rest = append(rest, l)
		}
	}
	for _, s := range local {
		legs = append(legs, leg{Stop: s})
	}
	return append(legs, rest...), true
}

func remoteLegs(stops []route.Stop) []leg {
	legs := make([]leg, len(stops))
	for i, s := range stops {
		legs[i].Stop = s
	}
	return legs
}

// judge notes what a failed attempt means for the legs, and for what the
// client is told if it was the last.
func (x *exchange) judge(res *relay.Result, legs []leg, i int, before failure) failure {
	switch {
	case res.Peer != nil && res.Peer.Outcome == relay.OutcomeBehind:
		legs[i].spent = true
		if before.err == errNoRoute {
			return failure{err: errBehind, behind: true}
		}
		return before
	case res.Peer != nil && res.Peer.Outcome == relay.OutcomeFailed:
		for j := range legs { // its neighbours would ask the same upstreams
			legs[j].spent = legs[j].spent || legs[j].Region == legs[i].Region
		}
		e := errorOf(breaker.ServerError)
		for _, known := range []*dialect.Error{errTimeout, errSaturated, errNoRoute, errShed, errMetering} {
			if known.Code == res.Peer.Code {
				e = known
			}
		}
		return failure{err: e, wait: res.RetryAfter}
	}
	if res.Silent || res.RetryAfter > maxWait || res.Outcome == breaker.Expired {
		legs[i].spent = true
	}
	legs[i].from = time.Now().Add(res.RetryAfter)
	return failure{err: errorOf(res.Outcome), wait: res.RetryAfter}
}

// pause waits before the legs that may be asked again are, if there are any:
// until the first of them lets itself be asked, and a little in any case.
func (x *exchange) pause(ctx context.Context, round int, legs []leg) bool {
	wait := time.Duration(-1)
	for i := range legs {
		if legs[i].spent || x.shut(&legs[i]) {
			continue
		}
		if w := max(0, time.Until(legs[i].from)); wait < 0 || w < wait {
			wait = w
		}
	}
	if wait < 0 || x.left <= 0 {
		return false
	}
	if wait == 0 {
		wait = firstPause << (round - 1)
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

// attempt asks l, or gives nil if its circuit is open.
func (x *exchange) attempt(ctx context.Context, l *leg) *relay.Result {
	ticket, ok := x.circuits(l).Allow(l.circuit())
	if !ok {
		return nil
	}
	t := relay.TimeoutsOf(x.plan.Route.Timeouts)
	t.Total = time.Until(x.deadline)
	if l.Upstream == nil {
		res := x.attemptPeer(ctx, l, t)
		ticket.Done(res.Outcome)
		return res
	}
	res := x.w.client.Upstream(ctx, &relay.Ask{
		Upstream: l.Upstream, Path: x.endpoint, Dialect: x.dialect, Streamed: x.query.Stream,
		// The entry node reads the usage chunk too, and hides it itself.
		WantsUsage: x.query.WantsUsage || !x.front,
		Body:       x.query.Upstream(x.body.bytes, l.Model).Held(x.body.hold),
		Client:     x.r.Header, Timeouts: t,
	})
	ticket.Done(res.Outcome)
	name := l.Upstream.Upstream.Name
	x.w.metrics.attempt(name, res.Outcome)
	x.attempts++
	if res.Reached {
		x.left--
	}
	if res.Status != 0 {
		x.upstream, x.upstreamID, x.served, x.remote = name, res.RequestID, l.Model, nil
	}
	return res
}

// attemptPeer asks a node of another region.
func (x *exchange) attemptPeer(ctx context.Context, l *leg, t relay.Timeouts) *relay.Result {
	h := http.Header{
		relay.HeaderRequestID: {x.id},
		relay.HeaderPath:      {x.endpoint},
		relay.HeaderKey:       {x.caller.Key.ID},
		relay.HeaderProject:   {x.decision.Billed.Meta.ID},
		relay.HeaderEntry:     {x.w.fixed.self},
		relay.HeaderRoute:     {x.way},
		relay.HeaderLeft:      {strconv.Itoa(x.left)},
		relay.HeaderDeadline:  {strconv.FormatInt(t.Total.Milliseconds(), 10)},
	}
	if x.decision.Pin != "" {
		h[relay.HeaderResidency] = []string{x.decision.Pin}
	}
	res := x.w.client.Peer(ctx, &relay.AskPeer{
		Region: l.Region, Node: l.Peer.Node, Dialect: x.dialect, Streamed: x.query.Stream, WantsUsage: x.query.WantsUsage,
		Body: dialect.WholeBody(x.body.bytes).Held(x.body.hold), Client: x.r.Header, Forward: h, Timeouts: t,
	})
	x.w.metrics.attempt("peer/"+l.Region, res.Outcome)
	switch {
	case res.Peer != nil:
		made := min(max(res.Peer.Attempts, 0), x.left)
		x.attempts += made
		x.left -= made
	case res.Reached:
		x.attempts++
		x.left--
	}
	if res.Peer != nil && (res.Peer.Outcome == relay.OutcomeAnswer || res.Peer.Outcome == relay.OutcomeFinal) {
		from := res.Peer.Header
		x.remote = &remote{region: []string{l.Region}, node: []string{l.Peer.Node}, way: bounded(from.Get(hRoute), 512)}
		x.upstream, x.upstreamID = bounded(from.Get(hUpstream), 128), bounded(from.Get(hUpstreamID), 128)
		x.served = bounded(from.Get(relay.HeaderServed), dialect.MaxModelName)
	}
	return res
}

func bounded(s string, most int) string { return s[:min(len(s), most)] }
