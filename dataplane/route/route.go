// Package route orders the ways to serve a request: upstreams of this region,
// then nodes of other regions, nearest first, within what policy allows. It is
// pure: measurements and randomness are arguments.
package route

import (
	"cmp"
	"slices"
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
	Hint     string // region to prefer; empty = none

	Region       string // of this node
	Jurisdiction string // of this node
	// LocalOnly: another node forwarded the request here; it is not forwarded on.
	LocalOnly bool

	// Peers is asked only if other regions come into play.
	Peers func() link.Peers
	// RTT is the measured round trip to a region; ok is false where none is known.
	RTT    func(region string) (rtt time.Duration, ok bool)
	Random func() uint64
}

// Stop is one way to serve: an upstream here, or a node of another region.
type Stop struct {
	Region   string
	Upstream *registry.Record // nil for a node of another region
	Model    string           // the model's name at Upstream
	Peer     *link.Peer       // set where Upstream is nil
}

// Plan is what Input leaves possible, in order.
type Plan struct {
	Route *registry.Route
	in    Input
	// provider is the only one that may be asked; empty = any.
	provider string
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

// New makes the plan, or says why there is none.
func New(in Input) (*Plan, *policy.Refusal) {
	rec, ok := in.View.Route(in.Model)
	if !ok {
		return nil, notFound("The model is not known: list the models with GET /v1/models.")
	}
	if !in.Decision.AllowsModel(in.Model) {
		return nil, &policy.Refusal{Code: "model_not_allowed", Message: "The policy of this organisation or project does not allow this model: choose another, or ask its owner."}
	}
	p := &Plan{Route: rec.Route, in: in}
	p.regions, p.local = p.few[:0], p.one[:0]
	if !p.scan() {
		return nil, notFound("The model is not served over this endpoint for this key: list the models with GET /v1/models.")
	}
	for i := range p.regions {
		if p.regions[i].eligible() {
			return p, nil
		}
	}
	if in.Decision.Pin != "" {
		return nil, &policy.Refusal{Code: "residency_unavailable", Message: "No upstream for this model is available in jurisdiction `" + in.Decision.Pin + "`, to which this request is pinned: it was not sent elsewhere."}
	}
	return nil, NoRoute()
}

// NoRoute is the refusal when every way is shut at the moment.
func NoRoute() *policy.Refusal {
	return &policy.Refusal{Code: "no_healthy_route", Message: "No healthy upstream for this model can be reached at the moment: retry shortly."}
}

func notFound(message string) *policy.Refusal {
	return &policy.Refusal{Code: "model_not_found", Message: message}
}

// scan sorts the route's targets into local stops and regions. It reports
// whether any target could ever serve such a request.
func (p *Plan) scan() bool {
	in, servable := &p.in, false
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
	for i := range p.Route.Targets {
		t := &p.Route.Targets[i]
		up, ok := p.servable(t)
		if !ok || up.Upstream.Disabled || p.provider != "" && up.Upstream.Provider != p.provider {
			continue
		}
		if up.Upstream.Region == in.Region {
			if in.Decision.MayRun(in.Jurisdiction) {
				p.local = append(p.local, Stop{Region: in.Region, Upstream: up, Model: t.Model})
			}
			p.note(in.Region, in.Decision.MayRun(in.Jurisdiction), false)
			continue
		}
		if in.LocalOnly {
			continue
		}
		if rec, ok := in.View.Region(up.Upstream.Region); ok {
			p.note(rec.Region.Name, in.Decision.MayRun(rec.Region.Jurisdiction), rec.Region.State == "drained")
		}
	}
	return servable
}

// servable finds the upstream of t, if it is of a kind that such a request may use.
func (p *Plan) servable(t *registry.Target) (*registry.Record, bool) {
	up, ok := p.in.View.Upstream(t.Upstream)
	if !ok || up.Upstream.Dialect != p.in.Dialect {
		return nil, false
	}
	if p.in.Decision.Class == classTest && !up.Upstream.Simulated {
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

// HintAway reports whether the hint leads to another region that may serve, so
// that Remote goes before Local.
func (p *Plan) HintAway() bool {
	if p.in.Hint == "" || p.in.Hint == p.in.Region {
		return false
	}
	for i := range p.regions {
		if p.regions[i].name == p.in.Hint {
			return p.regions[i].eligible()
		}
	}
	return false
}

// Local gives the upstreams of this region: lower order first, within an order
// by lot, as their weights say.
func (p *Plan) Local() []Stop {
	if len(p.local) < 2 {
		return p.local
	}
	type ticket struct {
		stop  Stop
		order uint32
		lot   float64
	}
	tickets := make([]ticket, 0, len(p.local))
	for _, s := range p.local {
		for i := range p.Route.Targets {
			t := &p.Route.Targets[i]
			if t.Upstream == s.Upstream.Upstream.Name && t.Model == s.Model {
				tickets = append(tickets, ticket{s, t.Order, p.lot(t.Weight)})
				break
			}
		}
	}
	slices.SortStableFunc(tickets, func(a, b ticket) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.lot, b.lot))
	})
	for i := range tickets {
		p.local[i] = tickets[i].stop
	}
	return p.local
}

// Remote gives the nodes of other regions: the hinted region first, then those
// published as up, then the nearest by measured round trip. A node that is not
// alive, not ready or draining is left out.
func (p *Plan) Remote() []Stop {
	type near struct {
		name   string
		hinted bool
		down   bool
		known  bool
		rtt    time.Duration
	}
	regions := make([]near, 0, len(p.regions))
	peers := p.in.Peers()
	for i := range p.regions {
		r := &p.regions[i]
		if !r.eligible() || r.name == p.in.Region {
			continue
		}
		n := near{name: r.name, hinted: r.name == p.in.Hint}
		if p.in.RTT != nil {
			n.rtt, n.known = p.in.RTT(r.name)
		}
		for _, pub := range peers.Regions {
			if pub.Region == r.name {
				n.down = !pub.Up
			}
		}
		regions = append(regions, n)
	}
	no := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	slices.SortFunc(regions, func(a, b near) int {
		return cmp.Or(cmp.Compare(no(a.hinted), no(b.hinted)), cmp.Compare(no(!a.down), no(!b.down)),
			cmp.Compare(no(a.known), no(b.known)), cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.name, b.name))
	})
	var stops []Stop
	for _, r := range regions {
		stops = p.nodes(stops, peers.Nodes, r.name)
	}
	return stops
}

// nodes appends the nodes of one region, the less loaded of a random two first.
func (p *Plan) nodes(stops []Stop, all []link.Peer, name string) []Stop {
	from := len(stops)
	for i := range all {
		n := &all[i]
		if n.Region == name && n.Alive && n.Ready && !n.Draining {
			stops = append(stops, Stop{Region: name, Peer: n})
		}
	}
	nodes := stops[from:]
	for i := len(nodes) - 1; i > 0; i-- {
		j := int(p.in.Random() % uint64(i+1))
		nodes[i], nodes[j] = nodes[j], nodes[i]
	}
	if len(nodes) > 1 && load(nodes[1].Peer) < load(nodes[0].Peer) {
		nodes[0], nodes[1] = nodes[1], nodes[0]
	}
	return stops
}

func load(n *link.Peer) float64 { return float64(n.InFlight) / float64(max(n.Capacity, 1)) }
