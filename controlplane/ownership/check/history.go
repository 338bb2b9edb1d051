package check

import (
	"fmt"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// logID names a whole history: logs are interned, so equal ids are equal logs,
// and a log's prefixes are its ancestors.
type logID uint16

type entry struct {
	epoch   uint8
	write   uint8 // number of the write from 1; 0 for an opening
	safety  bool  // a revocation
	members uint8 // of an opening: index into histories.memberships
	forced  bool
}

type node struct {
	parent logID
	entry  entry
	seq    uint8
	writes uint8 // set of the writes in the log
	safety uint8 // set of the revocations in it
	header ownership.Header
	last   controlplane.Point
	spans  []ownership.Span
}

type histories struct {
	epochs      []controlplane.Epoch // by number; 0 is none
	nodes       []node               // by logID; 0 is the empty log
	ids         map[nodeKey]logID
	memberships [][]ownership.Member
}

type nodeKey struct {
	parent logID
	entry  entry
}

func newHistories(regions []string, counters int) *histories {
	h := &histories{epochs: make([]controlplane.Epoch, 1), nodes: make([]node, 1), ids: make(map[nodeKey]logID)}
	for counter := range counters {
		for _, r := range regions {
			h.epochs = append(h.epochs, controlplane.Epoch{Counter: uint64(counter + 1), Region: r})
		}
	}
	return h
}

// membership numbers a list of members.
func (h *histories) membership(members []ownership.Member) uint8 {
	for i, m := range h.memberships {
		if equal(m, members) {
			return uint8(i)
		}
	}
	h.memberships = append(h.memberships, members)
	return uint8(len(h.memberships) - 1)
}

func equal(a, b []ownership.Member) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// push is the log id with e after it.
func (h *histories) push(id logID, e entry) logID {
	key := nodeKey{id, e}
	if next, ok := h.ids[key]; ok {
		return next
	}
	p := h.nodes[id]
	n := node{parent: id, entry: e, seq: p.seq + 1, writes: p.writes, safety: p.safety, spans: p.spans}
	n.header = ownership.Header{Epoch: h.epochs[e.epoch], Seq: uint64(n.seq), Prev: h.epochs[p.entry.epoch]}
	if e.write == 0 {
		n.header.Members, n.header.Forced = h.memberships[e.members], e.forced
		span := ownership.Span{Epoch: n.header.Epoch, Start: n.header.Seq, Members: n.header.Members, Forced: e.forced}
		n.spans = append(append([]ownership.Span(nil), p.spans...), span)
	} else {
		n.writes |= 1 << (e.write - 1)
		if e.safety {
			n.safety |= 1 << (e.write - 1)
		}
	}
	n.last = controlplane.Point{Epoch: n.header.Epoch, Seq: n.header.Seq}
	if len(h.nodes) > 1<<16-1 {
		panic("more histories than a logID can name")
	}
	next := logID(len(h.nodes))
	h.nodes = append(h.nodes, n)
	h.ids[key] = next
	return next
}

// prefix is the log's first n entries.
func (h *histories) prefix(id logID, n uint8) logID {
	for h.nodes[id].seq > n {
		id = h.nodes[id].parent
	}
	return id
}

// contains reports that the log begins with the other.
func (h *histories) contains(id, other logID) bool { return h.prefix(id, h.nodes[other].seq) == other }

// text writes the log as its entries: "1/a: o w1 w2, 2/b: o".
func (h *histories) text(id logID) string {
	if id == 0 {
		return "nothing"
	}
	var parts []string
	for ; id != 0; id = h.nodes[id].parent {
		n := h.nodes[id]
		s := fmt.Sprintf("w%d", n.entry.write)
		if n.entry.safety {
			s = fmt.Sprintf("revocation%d", n.entry.write)
		}
		if n.entry.write == 0 {
			s = fmt.Sprintf("%s{%s}", n.header.Epoch, names(n.header.Members))
			if n.entry.forced {
				s += "forced"
			}
		}
		parts = append([]string{s}, parts...)
	}
	return strings.Join(parts, " ")
}

func names(members []ownership.Member) string {
	var out []string
	for _, m := range members {
		out = append(out, name(m))
	}
	return strings.Join(out, " ")
}

func name(m ownership.Member) string { return m.Region + strings.Repeat("'", int(m.Since)) }
