// Package route orders the ways to serve a request: upstreams of this region,
// then nodes of other regions, nearest first, within what policy allows. It is
// pure: measurements and randomness are arguments.
package route

import (
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/view"
)

// classTest is the class of keys that reach simulated upstreams only.
const classTest = "test"

// Input of New. View and the records in it are not changed.
type Input struct {
	View     *view.View
	Decision *policy.Decision
	Model    string // public name
	Dialect  string // of the endpoint; an upstream must speak it
	Path     string // of the endpoint; an upstream must serve it. Empty = any
	Hint     string // region to prefer; empty = none
	// Provider is the only one that may be asked, where that was decided before:
	// for another model of the same request, or by the entry node. Empty = as
	// Decision says.
	Provider string

	Region       string   // of this node
	Jurisdiction string   // of this node
	Pools        []string // of this node; empty = standard and zero-retention
	// LocalOnly: another node forwarded the request here; it is not forwarded on.
	LocalOnly bool

	// Peers is asked only if other nodes come into play.
	Peers func() link.Peers
	// RTT is the measured round trip to a region; ok is false where none is known.
	RTT func(region string) (rtt time.Duration, ok bool)
	// InFlight is how many requests this node has under way at an upstream; nil =
	// it is not counted.
	InFlight func(upstream string) int
	Random   func() uint64
}

// Stop is one way to serve: an upstream here, or another node.
type Stop struct {
	Region   string
	Upstream *registry.Record // nil for another node
	Model    string           // the model's name at Upstream
	Peer     *link.Peer       // set where Upstream is nil
}

// Plan is what Input leaves possible, in order.
type Plan struct {
	Route *registry.Route
	in    Input
	// provider is the only one that may be asked; empty = any.
	provider string
	lacks    bool // this node is not of the request's pool
	regions  []region
	local    []Stop
	few      [2]region // memory of regions, where they are few
	one      [1]Stop   // and of local
}

// region is one that has an upstream for the model.
type region struct {
	name    string
	mayRun  bool // by policy
	drained bool
}

func (r *region) eligible() bool { return r.mayRun && !r.drained }

// New makes the plan, or says why there is none. With no_healthy_route comes a
// plan without stops.
func New(in Input) (*Plan, *policy.Refusal) {
	rec, ok := in.View.Route(in.Model)
	if !ok {
		return nil, notFound("The model is not known: list the models with GET /v1/models.")
	}
	if !in.Decision.AllowsModel(in.Model) {
		return nil, &policy.Refusal{Code: "model_not_allowed", Message: "The policy of this organisation or project does not allow this model: choose another, or ask its owner."}
	}
	p := &Plan{Route: rec.Route, in: in, lacks: !has(in.Pools, in.Decision.Pool)}
	p.regions, p.local = p.few[:0], p.one[:0]
	servable, usable := p.scan()
	switch {
	case !servable:
		return nil, notFound("The model is not served over this endpoint for this key: list the models with GET /v1/models.")
	case !usable && in.Decision.ZeroRetention:
		return nil, policy.NoZeroRetention()
	case p.lacks && in.LocalOnly:
		return nil, p.Unreachable()
	}
	for i := range p.regions {
		if p.regions[i].eligible() {
			return p, nil
		}
	}
	if in.Decision.Pin != "" {
		return nil, &policy.Refusal{Code: "residency_unavailable", Message: "No upstream for this model is available in jurisdiction `" + in.Decision.Pin + "`, to which this request is pinned: it was not sent elsewhere."}
	}
	return p, NoRoute()
}

// NoRoute is the refusal when every way is shut at the moment.
func NoRoute() *policy.Refusal {
	return &policy.Refusal{Code: "no_healthy_route", Message: "No healthy upstream for this model can be reached at the moment: retry shortly."}
}

// Unreachable is the refusal when the plan holds no stop that could be asked.
func (p *Plan) Unreachable() *policy.Refusal {
	if p.lacks && p.in.Decision.ZeroRetention {
		return policy.NoZeroRetention()
	}
	return NoRoute()
}

func notFound(message string) *policy.Refusal {
	return &policy.Refusal{Code: "model_not_found", Message: message}
}

// Provider is the only provider that may be asked, for this model or another
// in its place; empty = any.
func (p *Plan) Provider() string { return p.provider }

// scan sorts the route's targets into local stops and regions. servable:
// some target could ever serve such a request; usable: policy allows one.
func (p *Plan) scan() (servable, usable bool) {
	in := &p.in
	first := ^uint32(0)
	for i := range p.Route.Targets { // the provider of the customer's choice
		t := &p.Route.Targets[i]
		up, ok := p.servable(t)
		if !ok {
			continue
		}
		if !servable || t.Order < first {
			first = t.Order
			p.provider = up.Upstream.Provider
		}
		servable = true
	}
	if in.Decision.CrossProvider {
		p.provider = ""
	}
	if in.Provider != "" {
		p.provider = in.Provider
	}
	for i := range p.Route.Targets {
		t := &p.Route.Targets[i]
		up, ok := p.usable(t)
		if !ok {
			continue
		}
		usable = true
		if up.Upstream.Disabled {
			continue
		}
		if up.Upstream.Region == in.Region {
			mayRun := in.Decision.MayRun(in.Jurisdiction)
			if mayRun && !p.lacks {
				p.local = append(p.local, Stop{Region: in.Region, Upstream: up, Model: t.Model})
			}
			p.note(in.Region, mayRun, false)
			continue
		}
		if in.LocalOnly {
			continue
		}
		if rec, ok := in.View.Region(up.Upstream.Region); ok {
			p.note(rec.Region.Name, in.Decision.MayRun(rec.Region.Jurisdiction), rec.Region.State == "drained")
		}
	}
	return servable, usable
}

// servable finds the upstream of t, if it is of a kind that such a request may use.
func (p *Plan) servable(t *registry.Target) (*registry.Record, bool) {
	up, ok := p.in.View.Upstream(t.Upstream)
	if !ok || up.Upstream.Dialect != p.in.Dialect || !serves(up.Upstream, p.in.Path) || !reaches(p.in.Decision, up.Upstream) {
		return nil, false
	}
	return up, true
}

// usable finds the upstream of t, if policy allows it too.
func (p *Plan) usable(t *registry.Target) (*registry.Record, bool) {
	up, ok := p.servable(t)
	if !ok || !permits(p.in.Decision, up.Upstream) || p.provider != "" && up.Upstream.Provider != p.provider {
		return nil, false
	}
	return up, true
}

func (p *Plan) note(name string, mayRun, drained bool) {
	for i := range p.regions {
		if p.regions[i].name == name {
			return
		}
	}
	p.regions = append(p.regions, region{name, mayRun, drained})
}

// Hint says what became of the region hint, given the region that executed the
// request (empty = none did): honoured, policy (it may not run there, or
// nothing there serves the model) or unhealthy. Empty without a hint.
func (p *Plan) Hint(executed string) string {
	switch p.in.Hint {
	case "":
		return ""
	case executed:
		return "honoured"
	}
	for i := range p.regions {
		if p.regions[i].name == p.in.Hint && p.regions[i].mayRun {
			return "unhealthy"
		}
	}
	return "policy"
}

// HintAway reports whether the hint leads to another region that may serve and
// is not published as down, so that Remote goes before Local.
func (p *Plan) HintAway() bool {
	if p.in.Hint == "" || p.in.Hint == p.in.Region {
		return false
	}
	for i := range p.regions {
		if p.regions[i].name == p.in.Hint {
			return p.regions[i].eligible() && !(p.in.Peers != nil && down(p.in.Peers().Regions, p.in.Hint))
		}
	}
	return false
}
