// Package walk takes a request from stop to stop until one of them answers:
// upstreams here, nodes elsewhere, then the models that the route falls back
// on. It keeps to the attempts and the time that the request has, to circuits,
// limits and retry budgets, and has it decided again what the request may do
// before it asks a second stop.
//
// It writes nothing to the client, and passes no answer on.
package walk

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"ringmain/dataplane/admission"
	"ringmain/dataplane/body"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/request"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/route"
	"ringmain/dataplane/view"
)

// Ground is what all walks of a node share. Its fields are not changed.
type Ground struct {
	Region, Node, Jurisdiction string
	Pools                      []string // of this node
	Client                     *relay.Client
	Upstreams                  *breaker.Set // circuits per (upstream, model, endpoint)
	PeerNodes                  *breaker.Set // per peer node
	Limits                     *admission.Limits
	Budgets                    *breaker.Budgets // of retries, per upstream
	Peers                      func() link.Peers
	RTT                        func(region string) (rtt time.Duration, ok bool)
	Log                        *slog.Logger
	// Attempted counts one attempt at an upstream or, as peer/<region>, a node.
	Attempted func(at string, o breaker.Outcome)
}

// Request is what the stops are asked.
type Request struct {
	ID          string
	Path        string // of the endpoint, as clients name it
	Endpoint    *dialect.Endpoint
	Query       *request.Request
	Body        *body.Body
	ContentType string
	Header      http.Header // as it came: the client's, or with what the entry node says
	Front       bool        // this node answers the client; else it asks no other node
	Hint        string      // region that the client prefers
	Way         string      // idc-route up to this node
	Key         string      // id of the caller's record
	Decision    *policy.Decision
	Arrived     time.Time
	Attempts    int           // most that may be made
	Within      time.Duration // since Arrived; 0 = what the route says, which bounds it in any case
	// Decider is asked between two stops.
	Decider Decider
}

// Decider knows what a request may do.
type Decider interface {
	// Renew decides again, on the state as it is now, and plans the way again
	// if the decision or the state moved. A Failure with an error ends the walk.
	Renew() Failure
	// Learn is told what a peer that was asked says of the request's class.
	Learn(p *relay.PeerAnswer)
}

// Answerer is who answered, or was asked last.
type Answerer struct {
	Upstream   string
	UpstreamID string  // the upstream's own name for the request
	Served     string  // the model's name there
	Remote     *Remote // set if another node answered
}

// Remote is what an answering node says of itself, in the form of headers.
type Remote struct {
	Region, Node []string
	Way          string
}

// Walk is how far a request has come on its way from stop to stop. Its zero
// value has made no step.
type Walk struct {
	By       Answerer
	Plan     *route.Plan // the present one; nil before Start
	Attempts int         // made
	Tried    []receipt.Attempt

	ground   *Ground
	request  Request
	view     *view.View
	left     int // attempts
	deadline time.Time
	place    place // at the upstream that is being asked
	fewTried [2]receipt.Attempt

	legs  []leg
	few   [2]leg // memory of legs, where they are few
	whole bool   // other nodes are among them already
	round int    // over legs that failed, but spoke
	at    int    // leg that answered last
	begun bool   // somebody was asked
	past  []leg  // that were asked before the way was planned again, in turn
	fail  Failure
	// models that may be asked yet if this one has no more to offer.
	models []string
	// context: the model for prompts that were too long may be asked yet.
	context string
}

// Start plans the way of r, whose Decision was made on v.
func (w *Walk) Start(g *Ground, v *view.View, r *Request) *dialect.Error {
	w.ground, w.view, w.request = g, v, *r
	w.left = r.Attempts
	plan, refused := w.planFor(w.wanted())
	if refused != nil {
		return failOf(refused)
	}
	w.Plan = plan
	w.deadline = r.Arrived.Add(relay.TimeoutsOf(plan.Route.Timeouts, r.Query.Stream).Total)
	if by := r.Arrived.Add(r.Within); r.Within > 0 && by.Before(w.deadline) {
		w.deadline = by
	}
	return nil
}

// Replan plans the way again, on v and the request's Decision as they are now,
// and keeps in mind who was asked. On an error the present plan stays.
func (w *Walk) Replan(v *view.View) *dialect.Error {
	before := w.Plan
	w.view, w.Plan = v, nil
	plan, refused := w.planFor(w.wanted())
	if plan != nil && plan.Route.Model != before.Route.Model { // a fallback: of the same provider as the first choice
		w.Plan = plan
		plan, refused = w.planFor(before.Route.Model)
	}
	if w.Plan = before; refused != nil {
		return failOf(refused)
	}
	w.Plan = plan
	round := w.round
	w.begin()
	w.round = round
	return nil
}

// Ask goes from stop to stop until one answers, within the attempts and the
// time that are left, and then to the models that the route falls back on. A
// stop that kept silent is not asked twice.
func (w *Walk) Ask(ctx context.Context) (*relay.Result, Failure) {
	w.fail, w.Tried = Failure{Err: ErrNoRoute}, w.fewTried[:0]
	if w.request.Front {
		w.models, w.context = w.Plan.Route.Fallbacks, w.Plan.Route.ContextFallback
	}
	w.begin()
	res, fail := w.askModels(ctx)
	if res != nil && w.context != "" && res.Problem.ContextLength && res.Outcome == breaker.ClientError {
		return w.askLonger(ctx, res)
	}
	return res, fail
}

// AskElsewhere goes on after the stop that answered last broke off: it counts
// as spent. Only the same model is asked, within the attempts and the time
// that are left.
func (w *Walk) AskElsewhere(ctx context.Context) (*relay.Result, Failure) {
	w.Leave()
	if w.at < len(w.legs) {
		w.legs[w.at].spent = true
	}
	w.models, w.context, w.fail = nil, "", Failure{Err: ErrNoRoute}
	return w.askModels(ctx)
}

// Spent reports whether no attempt is left.
func (w *Walk) Spent() bool { return w.left <= 0 }

// Leave gives back the place at the upstream that was asked last, if any: its
// answer is over, or of no more interest.
func (w *Walk) Leave() { w.ground.give(&w.place, time.Now()) }

// Blame tells the circuit of whoever answered that the answer broke, and Tried
// too.
func (w *Walk) Blame(o breaker.Outcome) {
	if n := len(w.Tried); n > 0 {
		w.Tried[n-1].Outcome = o.String()
	}
	set, key, who := w.ground.Upstreams, breaker.Key{Owner: w.By.Upstream, Part: w.By.Served, Path: w.request.Path}, w.request.Decision.Billed.Project.Org
	if w.By.Remote != nil {
		set, key, who = w.ground.PeerNodes, breaker.Peer(w.By.Remote.Node[0]), ""
		if o != breaker.Transport && o != breaker.Timeout {
			return // the peer passed on what its upstream did
		}
	}
	if ticket, ok := set.AllowTo(key, who); ok {
		ticket.Done(o)
	}
}

// wanted is the public name of the model to serve: the body's, unless the
// entry node fell back on another.
func (w *Walk) wanted() string {
	if !w.request.Front {
		if fallback := w.request.Header.Get(relay.HeaderModel); fallback != "" {
			return fallback
		}
	}
	return w.request.Query.Model
}

// planFor plans the way to model. Where nothing of it is in service, the plan
// is there nevertheless if it names models to fall back on.
func (w *Walk) planFor(model string) (*route.Plan, *policy.Refusal) {
	g, r := w.ground, &w.request
	in := route.Input{
		View: w.view, Decision: r.Decision, Model: model, Dialect: r.Endpoint.Dialect.String(), Path: r.Path, Hint: r.Hint,
		Region: g.Region, Jurisdiction: g.Jurisdiction, Pools: g.Pools, LocalOnly: !r.Front,
		Peers: g.Peers, RTT: g.RTT, InFlight: g.Limits.Used, Random: random,
	}
	switch {
	case !r.Front:
		in.Provider = r.Header.Get(relay.HeaderProvider)
	case w.Plan != nil: // a fallback changes the model, not the provider
		in.Provider = w.Plan.Provider()
	}
	p, refused := route.New(in)
	if refused != nil && p != nil && r.Front && len(p.Route.Fallbacks) > 0 {
		return p, nil
	}
	return p, refused
}

func random() uint64 { return rand.Uint64() } //nolint:gosec // spreads load, guards nothing

func failOf(r *policy.Refusal) *dialect.Error {
	e := dialect.Fail(dialect.Code(r.Code), r.Message)
	if strings.HasPrefix(r.Code, "model_") {
		e.Param = "model"
	}
	return e
}
