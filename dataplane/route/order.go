package route

import (
	"cmp"
	"math"
	"slices"
	"time"

	"ringmain/dataplane/link"
)

// Local gives the upstreams of this region: lower order first, within an order
// by lot, as their weights say. Where those of the first order weigh the same,
// the less busy of the first two drawn comes first: the power of two choices
// (Mitzenmacher, 2001).
func (p *Plan) Local() []Stop {
	if len(p.local) < 2 {
		return p.local
	}
	type ticket struct {
		stop   Stop
		order  uint32
		weight uint32
		lot    float64
	}
	var memory [4]ticket
	tickets := memory[:0]
	for _, s := range p.local {
		for i := range p.Route.Targets {
			t := &p.Route.Targets[i]
			if t.Upstream == s.Upstream.Upstream.Name && t.Model == s.Model {
				tickets = append(tickets, ticket{s, t.Order, max(t.Weight, 1), p.lot(t.Weight)})
				break
			}
		}
	}
	slices.SortStableFunc(tickets, func(a, b ticket) int {
		return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.lot, b.lot))
	})
	if a, b := &tickets[0], &tickets[1]; p.in.InFlight != nil && a.order == b.order {
		equal := true
		for i := range tickets {
			equal = equal && (tickets[i].order != a.order || tickets[i].weight == a.weight)
		}
		if equal && p.busy(&b.stop) < p.busy(&a.stop) {
			*a, *b = *b, *a
		}
	}
	for i := range tickets {
		p.local[i] = tickets[i].stop
	}
	return p.local
}

func (p *Plan) busy(s *Stop) int { return p.in.InFlight(s.Upstream.Upstream.Name) }

// lot draws a number such that, among several draws, each is the smallest as
// often as its weight's share of all weights: an exponential of rate weight.
func (p *Plan) lot(weight uint32) float64 {
	u := (float64(p.in.Random()>>11) + 0.5) / (1 << 53)
	return -math.Log(u) / float64(max(weight, 1))
}

// near is a region as Remote compares it.
type near struct {
	name   string
	hinted bool
	down   bool // as published
	shut   bool // all its nodes say that their circuits for the model are open
	full   bool // all its nodes are at capacity
	known  bool // rtt is measured
	rtt    time.Duration
}

// Remote gives the nodes of other regions: the hinted region first, then those
// published as up, then those whose circuits are closed and which have room,
// then the nearest by measured round trip. A node that is not alive, not
// ready, draining or not of the request's pool is left out. Nodes of this
// region come first, and only if this one is not of the pool.
func (p *Plan) Remote() []Stop {
	regions := make([]near, 0, len(p.regions))
	peers := p.in.Peers()
	for i := range p.regions {
		r := &p.regions[i]
		own := r.name == p.in.Region
		if !r.eligible() || own && !p.lacks {
			continue
		}
		n := near{name: r.name, known: own, down: down(peers.Regions, r.name)}
		n.hinted = r.name == p.in.Hint && !n.down
		if p.in.RTT != nil && !own {
			n.rtt, n.known = p.in.RTT(r.name)
		}
		n.shut, n.full = p.reported(peers.Nodes, r.name)
		regions = append(regions, n)
	}
	slices.SortFunc(regions, func(a, b near) int {
		return cmp.Or(first(a.hinted, b.hinted), first(!a.down, !b.down), first(!a.shut, !b.shut), first(!a.full, !b.full),
			first(a.known, b.known), cmp.Compare(a.rtt, b.rtt), cmp.Compare(a.name, b.name))
	})
	var stops []Stop
	for _, r := range regions {
		stops = p.nodes(stops, peers.Nodes, r.name)
	}
	return stops
}

// first orders those for whom something holds before the others.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	default:
		return 1
	}
}

// down reports whether region is published as down.
func down(published []link.PeerRegion, region string) bool {
	for i := range published {
		if published[i].Region == region {
			return !published[i].Up
		}
	}
	return false
}

// candidate reports whether n may be asked, as far as gossip knows.
func (p *Plan) candidate(n *link.Peer, region string) bool {
	return n.Region == region && n.Alive && n.Ready && !n.Draining && has(n.Pools, p.in.Decision.Pool)
}

// reported sums up what all candidates of a region say of themselves. It is
// advice: such a region is asked later, not never.
func (p *Plan) reported(all []link.Peer, region string) (shut, full bool) {
	shut, full = true, true
	found := false
	for i := range all {
		n := &all[i]
		if !p.candidate(n, region) {
			continue
		}
		found = true
		shut = shut && p.saysShut(n)
		full = full && n.Capacity > 0 && n.InFlight >= n.Capacity
	}
	return found && shut, found && full
}

// saysShut reports whether n holds the circuits of every upstream that could
// serve the request there open.
func (p *Plan) saysShut(n *link.Peer) bool {
	if len(n.Breakers) == 0 {
		return false
	}
	any := false
	for i := range p.Route.Targets {
		t := &p.Route.Targets[i]
		up, ok := p.usable(t)
		if !ok || up.Upstream.Disabled || up.Upstream.Region != n.Region {
			continue
		}
		if n.Breakers[t.Upstream+"/"+t.Model+p.in.Path] != "open" {
			return false
		}
		any = true
	}
	return any
}

// nodes appends the nodes of one region, the less loaded of a random two
// first, those whose circuits are open last.
func (p *Plan) nodes(stops []Stop, all []link.Peer, name string) []Stop {
	from := len(stops)
	for i := range all {
		if n := &all[i]; p.candidate(n, name) {
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
	slices.SortStableFunc(nodes, func(a, b Stop) int { return first(!p.saysShut(a.Peer), !p.saysShut(b.Peer)) })
	return stops
}

func load(n *link.Peer) float64 { return float64(n.InFlight) / float64(max(n.Capacity, 1)) }
