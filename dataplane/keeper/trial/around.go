package trial

import (
	"cmp"
	"slices"
	"time"

	"ringmain/controlplane"
)

// Peer is another data node, as this one remembers it over a restart.
type Peer struct {
	_      struct{} `cbor:",toarray"`
	Region string
	Name   string
}

// memory is how long a node goes by what it last heard once it hears it no more.
const memory = time.Hour

// MaxSaid is how many spans of a kind a node says of itself, the newest: one
// that says so many may hold others to be bad as well.
const MaxSaid = 4

// Heard notes what gossip knows of the nodes, at intervals. Who hears somebody
// remembers them, and lets go what it left out on the word of others and nobody
// has said for an hour. Who hears nobody forgets after an hour whom it knew, and
// at once who said goodbye.
func (b *Book) Heard(self Node, nodes []Node, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	peers, news := b.ledger.Peers, false
	if others := ready(self, nodes); len(others) > 0 {
		peers = remembered(others)
		b.heard = now
		news = b.letGo(nodes, now)
	} else {
		if b.heard.IsZero() {
			b.heard = now
		}
		for span := range b.said {
			b.said[span] = now
		}
		peers = slices.DeleteFunc(slices.Clone(peers), func(p Peer) bool {
			return now.Sub(b.heard) > memory ||
				slices.ContainsFunc(nodes, func(n Node) bool { return n.Left && n.Region == p.Region && n.Name == p.Name })
		})
	}
	if news || !slices.Equal(peers, b.ledger.Peers) {
		b.ledger.Peers = peers
		b.save()
		b.known.Store(&peers)
	}
}

// Around is nodes, or with them, if none of them is heard, those that were when
// last any was: a node whose gossip fails takes its turn as if they did not
// answer.
func (b *Book) Around(self Node, nodes []Node) []Node {
	peers := b.known.Load()
	if peers == nil || len(ready(self, nodes)) > 0 {
		return nodes
	}
	nodes = slices.Clip(nodes)
	for _, p := range *peers {
		something := Report{Proven: controlplane.Point{Seq: 1}} // else it is not waited for
		nodes = append(nodes, Node{Region: p.Region, Name: p.Name, Ready: true, Report: something})
	}
	return nodes
}

// ready is who is heard of the others.
func ready(self Node, nodes []Node) (others []Node) {
	for _, n := range nodes {
		if n.Ready && !self.is(n) {
			others = append(others, n)
		}
	}
	return others
}

// remembered is who has to be known of them: the first of each region.
func remembered(nodes []Node) (peers []Peer) {
	for _, n := range nodes {
		peers = append(peers, Peer{Region: n.Region, Name: n.Name})
	}
	slices.SortFunc(peers, func(a, b Peer) int { return cmp.Or(cmp.Compare(a.Region, b.Region), cmp.Compare(a.Name, b.Name)) })
	of := 0
	kept := peers[:0]
	for i, p := range peers {
		if i > 0 && p.Region != peers[i-1].Region {
			of = 0
		}
		if of++; of <= maxRank+1 {
			kept = append(kept, p)
		}
	}
	return kept
}

// letGo ends what is left out on the word of others and nobody has said for so
// long: it is tried with the worker's next start. It reports whether there was
// such. b.mu is held.
func (b *Book) letGo(nodes []Node, now time.Time) bool {
	said := make(map[Span]time.Time)
	n := len(b.ledger.Isolated)
	b.ledger.Isolated = slices.DeleteFunc(b.ledger.Isolated, func(i Isolated) bool {
		if i.Own {
			return false
		}
		last, known := b.said[i.Span]
		if !known || slices.ContainsFunc(nodes, func(n Node) bool { return n.maySay(i.Span) }) {
			last = now
		}
		if now.Sub(last) > memory {
			b.log.Warn("a change that was left out on the word of other nodes is tried again with the next worker: none of them says so any more", "change", i.Span)
			return true
		}
		said[i.Span] = last
		return false
	})
	b.said = said
	return n != len(b.ledger.Isolated)
}

func (n Node) maySay(s Span) bool {
	return len(n.Isolated) >= MaxSaid ||
		slices.ContainsFunc(n.Isolated, func(o Span) bool { return o.Shard == s.Shard && o.From <= s.To && s.From <= o.To })
}
