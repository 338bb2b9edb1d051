// Package ownership holds the rules by which the regions of a shard agree who
// writes it: what one region's copy may promise, accept, cut and confirm, when
// a candidate may open a new epoch, and how far a home's writes are confirmed.
//
// It is pure: no payload, clock, randomness, goroutine, logger, disk or network
// may enter. Values share their slices and never write to them. DESIGN.md has
// the rules, the properties they are checked for, and by which counterexamples
// each of them is needed; ownership/check explores them exhaustively.
package ownership

import (
	"cmp"
	"slices"
	"strings"

	"ringmain/controlplane"
)

// Member is a region that holds a shard, in one of its lives: a region that may
// have lost commits (restored, recovered without its majority) starts another,
// and what its former life promised or accepted counts for it no more.
type Member struct {
	_      struct{} `cbor:",toarray"`
	Region string
	Since  uint64 // higher than that of every former life of the region, and than the counters of their epochs
}

func (m Member) compare(n Member) int {
	return cmp.Or(strings.Compare(m.Region, n.Region), cmp.Compare(m.Since, n.Since))
}

// Above is the lowest epoch that m may open above all with this counter. A
// life's epochs begin at its Since, where those of its former lives ended, known
// or not: Since is a time in milliseconds, and no life opens one each of them.
func (m Member) Above(counter uint64) controlplane.Epoch {
	return controlplane.Epoch{Counter: max(counter+1, m.Since), Region: m.Region}
}

// Majority is how many of n members decide.
func Majority(n int) int { return n/2 + 1 }

// Span is where an epoch begins in a shard's history, and what its opening said.
type Span struct {
	_       struct{} `cbor:",toarray"`
	Epoch   controlplane.Epoch
	Start   uint64   // sequence of the opening
	Members []Member // by region, one life of each
	Forced  bool     // opened without the word of members declared lost: memberships before it count no more
}

// Header is an entry without its content.
type Header struct {
	Epoch   controlplane.Epoch
	Seq     uint64             // the first is 1
	Prev    controlplane.Epoch // epoch of the entry at Seq-1; zero at 1
	Members []Member           // of an opening, which is the first entry of its epoch; nil for others
	Forced  bool               // of an opening
}

// Opens reports the first entry of an epoch.
func (h Header) Opens() bool { return h.Epoch != h.Prev }

// Point is the position right after h.
func (h Header) Point() controlplane.Point { return controlplane.Point{Epoch: h.Epoch, Seq: h.Seq} }

// Copy is one region's copy of one shard without its content: the durable part
// of an acceptor. Every change is one command in the region's log and is
// answered after its commit. The zero Copy holds nothing.
type Copy struct {
	Promised  controlplane.Epoch // highest epoch sealed or followed: lower senders are refused
	Last      controlplane.Point
	Spans     []Span // by ascending start, as far back as is known
	Confirmed uint64 // highest sequence known to be confirmed; never cut
}

// Role is what a region may do with a copy.
type Role uint8

// Roles. Only Home writes; all of them read.
const (
	Outside   Role = iota // not a member, or not in this life of the region: it may follow, its word does not count
	Follower              // holds the opening of the epoch it promised
	Sealed                // promised an epoch above that of its last entry
	Candidate             // Sealed for an epoch of its own
	Opening               // opened its own epoch; confirms it, writes nothing
	Home                  // its epoch's opening is confirmed, or was forced
)

func (r Role) String() string {
	return [...]string{"outside", "follower", "sealed", "candidate", "opening", "home"}[r]
}

// Role is what self may do with c.
func (c Copy) Role(self Member) Role {
	if !slices.Contains(c.Members(), self) {
		return Outside
	}
	opened, own := c.Last.Epoch == c.Promised, c.Promised.Region == self.Region
	switch last := c.Spans[len(c.Spans)-1]; {
	case !opened && own:
		return Candidate
	case !opened:
		return Sealed
	case !own:
		return Follower
	case last.Start > c.Confirmed && !last.Forced:
		return Opening
	}
	return Home
}

// Members are those that the last opening in c named.
func (c Copy) Members() []Member {
	if len(c.Spans) == 0 {
		return nil
	}
	return c.Spans[len(c.Spans)-1].Members
}

// Memberships are those whose majorities count: of the last opening known to be
// confirmed, or of the last forced one if that is later, and of every opening
// after it, because any of these may be confirmed by now or in force elsewhere.
func (c Copy) Memberships() [][]Member {
	return memberships(c.Spans, c.Confirmed)
}

func memberships(spans []Span, confirmed uint64) [][]Member {
	var all [][]Member
	for _, s := range spans[inForce(spans, confirmed):] {
		if n := len(all); n == 0 || !slices.Equal(all[n-1], s.Members) {
			all = append(all, s.Members)
		}
	}
	return all
}

// inForce is the index of the first span whose members count.
func inForce(spans []Span, confirmed uint64) int {
	first := 0
	for i, s := range spans {
		if s.Forced || s.Start <= confirmed {
			first = i
		}
	}
	return first
}

// Holds reports whether the entry at p, and so everything before it, is in c.
func (c Copy) Holds(p controlplane.Point) bool {
	if p.Seq > c.Last.Seq {
		return false
	}
	if p.Seq == 0 {
		return p == controlplane.Point{}
	}
	epoch, exact := epochAt(c.Spans, p.Seq)
	if exact {
		return epoch == p.Epoch
	}
	return p.Epoch.Compare(epoch) <= 0
}

// EpochAt is the epoch of the entry at seq. Of entries older than the spans
// that are known (exact false) it is the epoch that theirs cannot exceed.
func (c Copy) EpochAt(seq uint64) (epoch controlplane.Epoch, exact bool) {
	return epochAt(c.Spans, seq)
}

func epochAt(spans []Span, seq uint64) (controlplane.Epoch, bool) {
	for _, s := range slices.Backward(spans) {
		if s.Start <= seq {
			return s.Epoch, true
		}
	}
	if len(spans) == 0 {
		return controlplane.Epoch{}, false
	}
	return spans[0].Epoch, false
}

// Common is the last sequence through which two histories are the same. Two
// entries of one epoch and sequence are one entry, with one history before it.
func (c Copy) Common(last controlplane.Point, spans []Span) uint64 {
	seq := min(c.Last.Seq, last.Seq)
	for seq > 0 {
		ours, theirs := spanAt(c.Spans, seq), spanAt(spans, seq)
		if ours == nil || theirs == nil || ours.Epoch == theirs.Epoch {
			return seq // before the spans that are known, everything was confirmed
		}
		seq = max(ours.Start, theirs.Start) - 1
	}
	return 0
}

func spanAt(spans []Span, seq uint64) *Span {
	for i := len(spans) - 1; i >= 0; i-- {
		if spans[i].Start <= seq {
			return &spans[i]
		}
	}
	return nil
}
