package dataplane

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
)

// skip is why a stop was not asked.
type skip uint8

const (
	askedIt   skip = iota
	openIt         // its circuit is open
	fullIt         // this node has as many requests there as it may
	wearyOfIt      // its retry budget is used up
)

// place is a place among the requests under way at an upstream's model.
type place struct {
	circuit breaker.Key // zero: none is held
	sign    admission.Sign
	began   time.Time
}

// give gives a place back.
func (w *Worker) give(p *place, now time.Time) {
	if p.circuit != (breaker.Key{}) {
		w.limits.Release(p.circuit.Owner, p.circuit.Part, p.sign, p.began, now)
		*p = place{}
	}
}

// leaveUpstream gives back the place at the upstream that was asked last, if
// any: its answer is over, or of no more interest.
func (x *exchange) leaveUpstream() { x.w.give(&x.place, time.Now()) }

// signOf is what an outcome says about an upstream's load.
func signOf(o breaker.Outcome, status int) admission.Sign {
	switch {
	case o == breaker.OK:
		return admission.Good
	case o == breaker.Throttled, o == breaker.Timeout, status == http.StatusServiceUnavailable:
		return admission.Overloaded
	default:
		return admission.Neutral
	}
}

// again reports whether others were asked for this request before, here or at
// the entry node; or an upstream would have been, had it been there.
func (x *exchange) again() bool {
	return x.attempts > 0 || slices.ContainsFunc(x.tried, func(a receipt.Attempt) bool { return a.Upstream != "" }) ||
		!x.front && x.r.Header.Get(relay.HeaderRetry) == "true"
}

// attempt asks l, or says why not.
func (x *exchange) attempt(ctx context.Context, l *leg) (*relay.Result, skip) {
	t := relay.TimeoutsOf(x.plan.Route.Timeouts)
	t.Total = time.Until(x.deadline)
	if l.Upstream == nil {
		ticket, ok := x.w.peerNodes.Allow(l.circuit())
		if !ok {
			return nil, openIt
		}
		res := x.attemptPeer(ctx, l, t)
		ticket.Done(res.Outcome)
		return res, askedIt
	}
	return x.attemptUpstream(ctx, l, t)
}

func (x *exchange) attemptUpstream(ctx context.Context, l *leg, t relay.Timeouts) (*relay.Result, skip) {
	if !x.query.Stream && x.plan.Route.Timeouts.FirstByteMS == 0 {
		t.FirstByte = t.Total // a plain answer's head comes when all of it is ready
	}
	up, retry, now := l.Upstream.Upstream, x.again(), time.Now()
	name := up.Name
	ticket, ok := x.w.upstreams.Allow(l.circuit())
	if !ok {
		return nil, openIt
	}
	place := place{circuit: l.circuit(), began: now}
	if !x.w.limits.Acquire(name, l.Model, up.Concurrency, now) {
		ticket.Done(breaker.ClientGone) // nothing was learned
		return nil, fullIt
	}
	if retry && (l.asked && !x.w.budgets.Take(name, now) || !l.asked && !x.w.budgets.Room(name, now)) {
		ticket.Done(breaker.ClientGone)
		x.w.give(&place, now)
		l.spent = true
		return nil, wearyOfIt
	}
	if !l.asked {
		x.w.budgets.Asked(name, now)
	}
	x.place = place
	over := false
	defer func() {
		if !over { // a panic: a circuit's only trial does not stay under way for ever
			ticket.Done(breaker.ClientGone)
		}
	}()
	res := x.w.client.Upstream(ctx, &relay.Ask{
		Upstream: l.Upstream, Endpoint: x.endpoint, ContentType: x.query.ContentType(x.contentType()), Streamed: x.query.Stream, Choices: x.query.Choices,
		// The entry node reads the usage chunk too, and hides it itself.
		WantsUsage: x.query.WantsUsage || !x.front,
		Body:       x.query.Upstream(x.body.bytes(), l.Model, request.Rewriting{ZeroRetention: x.decision.ZeroRetention}).Held(x.body.hold),
		Client:     x.r.Header, Timeouts: t,
	})
	over = true
	ticket.Done(res.Outcome)
	x.place.sign = signOf(res.Outcome, res.Status)
	if breaker.Classify(res.Outcome) == breaker.Failure {
		if retry && !l.asked {
			x.w.budgets.Spend(name, time.Now())
		}
		if res.RetryAfter > 0 {
			x.w.upstreams.Pause(l.circuit(), time.Now().Add(min(res.RetryAfter, maxRetryAfter)))
		}
	}
	l.asked = true
	x.w.metrics.attempt(name, res.Outcome)
	if res.Reached || res.Outcome != breaker.ClientGone { // who left before anybody was asked tried nobody
		x.tried = append(x.tried, receipt.Attempt{Region: l.Region, Node: x.w.setup.Node, Upstream: name, Outcome: res.Outcome.String()})
	}
	if res.Reached {
		x.attempts++
		x.left--
	}
	if res.Status != 0 {
		x.upstream, x.upstreamID, x.served, x.remote = name, res.RequestID, l.Model, nil
	}
	return res, askedIt
}

// grant is how many attempts a peer gets of those that are left. One is kept
// back as long as somebody else could be asked: a peer that dies does not say
// how many it made, and then all of its grant counts.
func (x *exchange) grant(l *leg) int {
	if x.left < 2 {
		return x.left
	}
	for i := range x.walk.legs {
		if o := &x.walk.legs[i]; o != l && !o.spent && !x.shut(o) {
			return x.left - 1
		}
	}
	return x.left
}

// attemptPeer asks another node.
func (x *exchange) attemptPeer(ctx context.Context, l *leg, t relay.Timeouts) *relay.Result {
	granted := x.grant(l)
	h := http.Header{
		relay.HeaderRequestID: {x.id},
		relay.HeaderPath:      {x.path},
		relay.HeaderKey:       {x.caller.Key.ID},
		relay.HeaderProject:   {x.decision.Billed.Meta.ID},
		relay.HeaderEntry:     {x.w.fixed.self},
		relay.HeaderRoute:     {x.way},
		relay.HeaderPool:      {x.decision.Pool},
		relay.HeaderLeft:      {strconv.Itoa(granted)},
		relay.HeaderDeadline:  {strconv.FormatInt(t.Total.Milliseconds(), 10)},
	}
	for name, value := range map[string]string{relay.HeaderResidency: x.decision.Pin, relay.HeaderProvider: x.plan.Provider()} {
		if value != "" {
			h[name] = []string{value}
		}
	}
	if x.decision.ZeroRetention {
		h[relay.HeaderZero] = x.w.fixed.yes
	}
	if x.plan.Route.Model != x.model {
		h[relay.HeaderModel] = []string{x.plan.Route.Model}
	}
	if x.again() {
		h[relay.HeaderRetry] = x.w.fixed.yes
	}
	res := x.w.client.Peer(ctx, &relay.AskPeer{
		Region: l.Region, Node: l.Peer.Node, Endpoint: x.endpoint, ContentType: x.contentType(),
		Streamed: x.query.Stream, WantsUsage: x.query.WantsUsage, Choices: x.query.Choices,
		Body: dialect.WholeBody(x.body.bytes()).Held(x.body.hold), Client: x.r.Header, Forward: h, Timeouts: t,
	})
	x.w.metrics.attempt("peer/"+l.Region, res.Outcome)
	l.asked = true
	switch {
	case res.Peer != nil:
		made := min(max(res.Peer.Attempts, 0), granted)
		x.attempts += made
		x.left -= made
	case res.Reached:
		x.attempts++
		x.left -= granted
	}
	x.triedBy(l, res)
	if res.Peer != nil {
		x.learn(res.Peer)
	}
	if res.Peer != nil && (res.Peer.Outcome == relay.OutcomeAnswer || res.Peer.Outcome == relay.OutcomeFinal) {
		from := res.Peer.Header
		x.remote = &remote{region: []string{l.Region}, node: []string{l.Peer.Node}, way: bounded(from.Get(hRoute), 512)}
		x.upstream, x.upstreamID = bounded(from.Get(hUpstream), 128), bounded(from.Get(hUpstreamID), 128)
		x.served = bounded(from.Get(relay.HeaderServed), request.MaxModelName)
	}
	return res
}

// triedBy notes the attempts that a peer made, as it says; one at least.
func (x *exchange) triedBy(l *leg, res *relay.Result) {
	one := receipt.Attempt{Region: l.Region, Node: l.Peer.Node, Outcome: res.Outcome.String()}
	if res.Peer == nil {
		x.tried = append(x.tried, one)
		return
	}
	list := res.Peer.Header[relay.HeaderTried]
	for i := 0; i+1 < len(list) && i < 2*maxTried; i += 2 {
		one.Upstream, one.Outcome = bounded(list[i], 128), bounded(list[i+1], 32)
		x.tried = append(x.tried, one)
	}
	if len(list) == 0 && res.Peer.Outcome != relay.OutcomeBehind {
		one.Upstream = bounded(res.Peer.Header.Get(hUpstream), 128)
		x.tried = append(x.tried, one)
	}
}

// maxTried bounds what a peer may say of its attempts.
const maxTried = 8

// triedHeader is the value of relay.HeaderTried: upstream and outcome of each
// attempt that this node made, in turn.
func (x *exchange) triedHeader() []string {
	list := make([]string, 0, 2*len(x.tried))
	for i := range x.tried[:min(len(x.tried), maxTried)] {
		list = append(list, x.tried[i].Upstream, x.tried[i].Outcome)
	}
	return list
}

func bounded(s string, most int) string { return s[:min(len(s), most)] }
