package trial

import (
	"slices"
	"time"

	"ringmain/controlplane"
)

// Report is what a node says about its trials.
type Report struct {
	Proven   controlplane.Point // of the shard that is rolled out: a worker lives with it
	Suspects []Span             // a process died on it once
	Isolated []Span             // twice: it is left out here
}

// Node is a data node as gossip knows it.
type Node struct {
	Region, Name string
	Ready        bool // it is heard, and not draining
	Left         bool // it said goodbye
	Report
}

// Patience bounds how long a node waits for others. The first is how long each
// of the first nodes of the order has to show how it fares.
const (
	Patience    = 5 * time.Second
	homePart    = 3 * Patience // of all that: the home region's
	maxRank     = 3            // nodes beyond it do not wait longer
	suspectPart = time.Minute  // while some node died once and has not died twice
)

// Wait is a change of a shard on its way to one node: which may take it once
// others have shown that they live with it. The order is one node of the home
// region, all of it, then in each other region one node and all.
type Wait struct {
	Shard controlplane.Shard
	Point controlplane.Point
	since time.Time
	home  string
	self  Node
	order map[string][]string // by region: the nodes that were ready, by name
}

// newWait begins to wait for a change that region home made. Nodes need not
// hold self, which counts as ready. One that has not proven anything (it just
// started, or is of a release that does not say) is not waited for.
func newWait(shard controlplane.Shard, p controlplane.Point, home string, self Node, nodes []Node, now time.Time) *Wait {
	w := &Wait{Shard: shard, Point: p, since: now, home: home, self: self, order: map[string][]string{self.Region: {self.Name}}}
	for _, n := range nodes {
		if n.Ready && n.Proven != (controlplane.Point{}) && !self.is(n) {
			w.order[n.Region] = append(w.order[n.Region], n.Name)
		}
	}
	for _, names := range w.order {
		slices.Sort(names)
	}
	return w
}

func (n Node) is(o Node) bool { return n.Region == o.Region && n.Name == o.Name }

// Next reports whether the node, which is at at, may take the change, and what of
// it others died on and must be left out first, unless it is already.
func (w *Wait) Next(at controlplane.Point, nodes []Node, leftOut func(Span) bool, now time.Time) (may bool, refused []Span) {
	waited := now.Sub(w.since)
	suspect := false
	for _, n := range nodes {
		if w.self.is(n) {
			continue
		}
		for _, s := range n.Isolated {
			if w.within(s, at) {
				s = Span{w.Shard, max(s.From, at.Seq+1), min(s.To, w.Point.Seq), w.Point.Epoch}
				if !leftOut(s) {
					refused = append(refused, s)
				}
			}
		}
		suspect = suspect || slices.ContainsFunc(n.Suspects, func(s Span) bool { return w.within(s, at) })
	}
	switch {
	case len(refused) > 0:
		return false, refused
	case suspect:
		return waited >= suspectPart, nil
	}
	if w.self.Region != w.home && len(w.order[w.home]) > 0 {
		if waited -= homePart; waited < 0 && !w.all(w.home, nodes) {
			return false, nil
		}
		waited = max(waited, 0)
	}
	rank := slices.Index(w.order[w.self.Region], w.self.Name)
	return rank == 0 || w.any(w.self.Region, nodes) || waited >= time.Duration(min(rank, maxRank))*Patience, nil
}

// within reports whether s is part of what follows at, up to the change.
func (w *Wait) within(s Span, at controlplane.Point) bool {
	return s.Shard == w.Shard && s.From <= w.Point.Seq && s.To > at.Seq && s.with(w.Point) && s.with(at)
}

func (w *Wait) proven(n Node) bool { return n.Proven.Compare(w.Point) >= 0 }

// any reports whether some node of the region lives with the change.
func (w *Wait) any(region string, nodes []Node) bool {
	return slices.ContainsFunc(nodes, func(n Node) bool { return n.Region == region && w.proven(n) })
}

// all reports whether every node of the region that is ready now, and was, does.
func (w *Wait) all(region string, nodes []Node) bool {
	return w.any(region, nodes) && !slices.ContainsFunc(nodes, func(n Node) bool {
		return n.Region == region && n.Ready && slices.Contains(w.order[region], n.Name) && !w.proven(n)
	})
}
