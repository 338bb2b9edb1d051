package walk

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
)

// Names under which another node's answer says who answered.
const (
	hRoute      = "Idc-Route"
	hUpstream   = "Idc-Upstream"
	hUpstreamID = "Idc-Upstream-Request-Id"
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
	upstream, model string // empty: none is held
	sign            admission.Sign
	began           time.Time
}

// give gives a place back.
func (g *Ground) give(p *place, now time.Time) {
	if p.upstream != "" {
		g.Limits.Release(p.upstream, p.model, p.sign, p.began, now)
		*p = place{}
	}
}

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
func (w *Walk) again() bool {
	return w.Attempts > 0 || slices.ContainsFunc(w.Tried, func(a receipt.Attempt) bool { return a.Upstream != "" }) ||
		!w.request.Front && w.request.Header.Get(relay.HeaderRetry) == "true"
}

// attempt asks l, or says why not.
func (w *Walk) attempt(ctx context.Context, l *leg) (*relay.Result, skip) {
	t := relay.TimeoutsOf(w.Plan.Route.Timeouts, w.request.Query.Stream)
	t.Total = time.Until(w.deadline)
	if l.Upstream == nil {
		ticket, ok := w.ground.PeerNodes.Allow(w.circuit(l))
		if !ok {
			return nil, openIt
		}
		outcome := breaker.ClientGone // of a panic
		defer func() { ticket.Done(outcome) }()
		res := w.attemptPeer(ctx, l, t)
		outcome = res.Outcome
		return res, askedIt
	}
	return w.attemptUpstream(ctx, l, t)
}

func (w *Walk) attemptUpstream(ctx context.Context, l *leg, t relay.Timeouts) (*relay.Result, skip) {
	up, retry, now := l.Upstream.Upstream, w.again(), time.Now()
	name := up.Name
	circuit := w.circuit(l)
	ticket, ok := w.ground.Upstreams.AllowTo(circuit, w.who(l))
	if !ok {
		return nil, openIt
	}
	place := place{upstream: name, model: l.Model, began: now}
	if !w.ground.Limits.Acquire(name, l.Model, up.Concurrency, now) {
		ticket.Done(breaker.ClientGone) // nothing was learned
		return nil, fullIt
	}
	if retry && (l.asked && !w.ground.Budgets.Take(name, now) || !l.asked && !w.ground.Budgets.Room(name, now)) {
		ticket.Done(breaker.ClientGone)
		w.ground.give(&place, now)
		l.spent = true
		return nil, wearyOfIt
	}
	if !l.asked {
		w.ground.Budgets.Asked(name, now)
	}
	w.place = place
	over := false
	defer func() {
		if !over { // a panic: a circuit's only trial does not stay under way for ever
			ticket.Done(breaker.ClientGone)
		}
	}()
	how := request.Rewriting{ZeroRetention: w.request.Decision.ZeroRetention}.At(up.BaseURL)
	res := w.ground.Client.Upstream(ctx, &relay.Ask{
		Upstream: l.Upstream, Endpoint: w.request.Endpoint, ContentType: w.request.Query.ContentType(w.request.ContentType), Streamed: w.request.Query.Stream, Choices: w.request.Query.Choices,
		// The entry node reads the usage chunk too, and hides it itself.
		WantsUsage: w.request.Query.WantsUsage || !w.request.Front,
		Body:       w.request.Body.Lend(w.request.Query.Upstream(w.request.Body.Bytes(), l.Model, how)),
		Client:     w.request.Header, Timeouts: t,
	})
	over = true
	ticket.Done(res.Outcome)
	w.place.sign = signOf(res.Outcome, res.Status)
	if breaker.Classify(res.Outcome) == breaker.Failure {
		if retry && !l.asked {
			w.ground.Budgets.Spend(name, time.Now())
		}
		if res.RetryAfter > 0 {
			w.ground.Upstreams.Pause(circuit, time.Now().Add(min(res.RetryAfter, maxRest)))
		}
	}
	l.asked = true
	w.ground.Attempted(name, res.Outcome)
	if res.Reached || res.Outcome != breaker.ClientGone { // who left before anybody was asked tried nobody
		w.Tried = append(w.Tried, receipt.Attempt{Region: l.Region, Node: w.ground.Node, Upstream: name, Outcome: res.Outcome.String()})
	}
	if res.Reached {
		w.Attempts++
		w.left--
	}
	if res.Status != 0 {
		w.By = Answerer{Upstream: name, UpstreamID: res.RequestID, Served: l.Model}
	}
	return res, askedIt
}

// grant is how many attempts a peer gets of those that are left. One is kept
// back as long as somebody else could be asked: a peer that dies does not say
// how many it made, and then all of its grant counts.
func (w *Walk) grant(l *leg) int {
	if w.left < 2 {
		return w.left
	}
	for i := range w.legs {
		if o := &w.legs[i]; o != l && !o.spent && !w.shut(o) {
			return w.left - 1
		}
	}
	return w.left
}

// attemptPeer asks another node.
func (w *Walk) attemptPeer(ctx context.Context, l *leg, t relay.Timeouts) *relay.Result {
	granted := w.grant(l)
	h := http.Header{
		relay.HeaderRequestID: {w.request.ID},
		relay.HeaderPath:      {w.request.Path},
		relay.HeaderKey:       {w.request.Key},
		relay.HeaderProject:   {w.request.Decision.Billed.Meta.ID},
		relay.HeaderEntry:     {w.ground.Region + "/" + w.ground.Node},
		relay.HeaderRoute:     {w.request.Way},
		relay.HeaderPool:      {w.request.Decision.Pool},
		relay.HeaderLeft:      {strconv.Itoa(granted)},
		relay.HeaderDeadline:  {strconv.FormatInt(t.Total.Milliseconds(), 10)},
	}
	for name, value := range map[string]string{relay.HeaderResidency: w.request.Decision.Pin, relay.HeaderProvider: w.Plan.Provider()} {
		if value != "" {
			h[name] = []string{value}
		}
	}
	if w.request.Decision.ZeroRetention {
		h[relay.HeaderZero] = []string{"true"}
	}
	if w.Plan.Route.Model != w.request.Query.Model {
		h[relay.HeaderModel] = []string{w.Plan.Route.Model}
	}
	if w.again() {
		h[relay.HeaderRetry] = []string{"true"}
	}
	res := w.ground.Client.Peer(ctx, &relay.AskPeer{
		Region: l.Region, Node: l.Peer.Node, Endpoint: w.request.Endpoint, ContentType: w.request.ContentType,
		Streamed: w.request.Query.Stream, WantsUsage: w.request.Query.WantsUsage, Choices: w.request.Query.Choices,
		Body: w.request.Body.Whole(), Client: w.request.Header, Forward: h, Timeouts: t,
	})
	w.ground.Attempted("peer/"+l.Region, res.Outcome)
	l.asked = true
	switch {
	case res.Peer != nil:
		made := min(max(res.Peer.Attempts, 0), granted)
		w.Attempts += made
		w.left -= made
	case res.Reached:
		w.Attempts++
		w.left -= granted
	}
	w.triedBy(l, res)
	if res.Peer != nil {
		w.request.Decider.Learn(res.Peer)
	}
	if res.Peer != nil && (res.Peer.Outcome == relay.OutcomeAnswer || res.Peer.Outcome == relay.OutcomeFinal) {
		from := res.Peer.Header
		w.By = Answerer{
			Upstream: bounded(from.Get(hUpstream), 128), UpstreamID: bounded(from.Get(hUpstreamID), 128),
			Served: bounded(from.Get(relay.HeaderServed), request.MaxModelName),
			Remote: &Remote{Region: []string{l.Region}, Node: []string{l.Peer.Node}, Way: bounded(from.Get(hRoute), 512)},
		}
	}
	return res
}

// triedBy notes the attempts that a peer made, and what confines it, as it says;
// one attempt at least, since it was sent the request.
func (w *Walk) triedBy(l *leg, res *relay.Result) {
	one := receipt.Attempt{Region: l.Region, Node: l.Peer.Node, Outcome: res.Outcome.String()}
	if res.Peer == nil {
		w.Tried = append(w.Tried, one)
		return
	}
	if said := res.Peer.Header[relay.HeaderConfined]; len(said) == 1 {
		if c, ok := receipt.ParseConfinement(said[0]); ok {
			one.Confinement = &c
		}
	}
	list := res.Peer.Header[relay.HeaderTried]
	for i := 0; i+1 < len(list) && i < 2*maxTried; i += 2 {
		one.Upstream, one.Outcome = bounded(list[i], 128), bounded(list[i+1], 32)
		w.Tried = append(w.Tried, one)
	}
	if len(list) == 0 {
		one.Upstream = bounded(res.Peer.Header.Get(hUpstream), 128)
		w.Tried = append(w.Tried, one)
	}
}

// maxTried bounds what a peer may say of its attempts.
const maxTried = 8

// TriedHeader is the value of relay.HeaderTried: upstream and outcome of each
// attempt that this node made, in turn.
func (w *Walk) TriedHeader() []string {
	list := make([]string, 0, 2*len(w.Tried))
	for i := range w.Tried[:min(len(w.Tried), maxTried)] {
		list = append(list, w.Tried[i].Upstream, w.Tried[i].Outcome)
	}
	return list
}

func bounded(s string, most int) string { return s[:min(len(s), most)] }
