package ownership

import (
	"slices"

	"ringmain/controlplane"
)

// Step is a change of a copy, and what it means for the content. Entries from
// Cut on (0 = none) are undone and enter the quarantine in the same command;
// what the quarantine holds of the new history leaves it. Then, if Append is
// set, the entry is applied.
type Step struct {
	Copy   Copy
	Cut    uint64
	Append bool
}

// Seal is rule 1: the region promises e, and its report is the returned copy.
// From then on it refuses lower senders. It promises an epoch once: whoever
// missed the report seals a higher one, because a region restored from a backup
// may ask again with an epoch of its former life.
func (c Copy) Seal(e controlplane.Epoch) (Copy, error) {
	switch {
	case e.Counter == 0 || e.Region == "":
		return c, c.refuse(Malformed)
	case e.Compare(c.Promised) <= 0:
		return c, c.refuse(Deposed)
	}
	c.Promised = e
	return c, nil
}

// Accept is rule 3: the entry h from the home of the epoch sender, or, of the
// candidate's own epoch, from the copy that it takes over. What is compared
// with the promise is the sender's epoch: when catching up, entries are older.
// Matching entries are never cut. If the home said that it is confirmed, follow
// with Confirm.
func (c Copy) Accept(sender controlplane.Epoch, h Header) (Step, error) {
	switch {
	case sender.Compare(c.Promised) < 0:
		return Step{}, c.refuse(Deposed)
	case h.Epoch.Compare(sender) > 0 || !h.wellFormed():
		return Step{}, c.refuse(Malformed)
	case !c.Holds(controlplane.Point{Epoch: h.Prev, Seq: h.Seq - 1}):
		r := c.refuse(Gap)
		if h.Seq-1 < c.Last.Seq {
			r.Have.Seq = h.Seq - 1
			r.Have.Epoch, _ = epochAt(c.Spans, h.Seq-1)
		}
		return Step{}, r
	}
	step := Step{Copy: c}
	step.Copy.Promised = sender
	if c.Holds(h.Point()) {
		return step, nil
	}
	if h.Seq <= c.Last.Seq {
		if h.Seq <= c.Confirmed {
			return Step{}, c.refuse(Diverged)
		}
		step.Cut = h.Seq
		step.Copy.Spans = through(c.Spans, h.Seq-1)
	}
	step.Append = true
	step.Copy.Last = h.Point()
	if h.Opens() {
		step.Copy.Spans = append(slices.Clip(step.Copy.Spans), Span{Epoch: h.Epoch, Start: h.Seq, Members: h.Members, Forced: h.Forced})
	}
	return step, nil
}

func (h Header) wellFormed() bool {
	if h.Seq == 0 || h.Epoch.Counter == 0 || (h.Seq == 1) != (h.Prev == controlplane.Epoch{}) {
		return false
	}
	if !h.Opens() {
		return h.Members == nil && !h.Forced
	}
	return h.Epoch.Compare(h.Prev) > 0 && wellFormed(h.Members, h.Epoch.Region)
}

// wellFormed members are in order, name each region once, and the home.
func wellFormed(members []Member, home string) bool {
	for i := 1; i < len(members); i++ {
		if members[i-1].Region >= members[i].Region {
			return false
		}
	}
	return slices.ContainsFunc(members, func(m Member) bool { return m.Region == home })
}

// through is spans without those that begin after seq.
func through(spans []Span, seq uint64) []Span {
	for len(spans) > 0 && spans[len(spans)-1].Start > seq {
		spans = spans[:len(spans)-1]
	}
	return slices.Clip(spans)
}

// Snapshot is a whole copy of a shard without its content.
type Snapshot struct {
	Last      controlplane.Point
	Spans     []Span
	Confirmed uint64
}

// Snapshot is c as it is sent.
func (c Copy) Snapshot() Snapshot {
	return Snapshot{Last: c.Last, Spans: c.Spans, Confirmed: c.Confirmed}
}

// Adopt is rule 5: a snapshot from the home of the epoch sender, which holds
// that epoch's opening and is ahead of this copy, replaces it. Entries before
// Cut are in its history too. The same point again changes the promise alone.
func (c Copy) Adopt(sender controlplane.Epoch, s Snapshot) (Step, error) {
	switch n := s.Last.Compare(c.Last); {
	case sender.Compare(c.Promised) < 0:
		return Step{}, c.refuse(Deposed)
	case s.Last.Epoch != sender || !s.wellFormed():
		return Step{}, c.refuse(Malformed)
	case n < 0:
		return Step{}, c.refuse(Behind)
	case n == 0:
		c.Promised, c.Confirmed = sender, max(c.Confirmed, s.Confirmed)
		return Step{Copy: c}, nil
	}
	return c.replace(sender, s)
}

// Inherit is rule 2 for a candidate whose base can only be had as a snapshot:
// of the epoch it sealed, s replaces its copy. It is part of the command that
// ends with Open.
func (c Copy) Inherit(e controlplane.Epoch, s Snapshot) (Step, error) {
	switch {
	case e != c.Promised || s.Last.Epoch.Compare(e) >= 0:
		return Step{}, c.refuse(Unsealed)
	case !s.wellFormed():
		return Step{}, c.refuse(Malformed)
	case s.Last.Compare(c.Last) < 0:
		return Step{}, c.refuse(Behind)
	}
	return c.replace(e, s)
}

func (c Copy) replace(promised controlplane.Epoch, s Snapshot) (Step, error) {
	step := Step{Copy: Copy{Promised: promised, Last: s.Last, Spans: s.Spans, Confirmed: max(c.Confirmed, s.Confirmed)}}
	if same := c.Common(s.Last, s.Spans); same < c.Last.Seq {
		if same < c.Confirmed {
			return Step{}, c.refuse(Diverged)
		}
		step.Cut = same + 1
	}
	return step, nil
}

func (s Snapshot) wellFormed() bool {
	if len(s.Spans) == 0 || s.Confirmed > s.Last.Seq {
		return false
	}
	for i, span := range s.Spans {
		if i > 0 && (span.Start <= s.Spans[i-1].Start || span.Epoch.Compare(s.Spans[i-1].Epoch) <= 0) {
			return false
		}
	}
	end := s.Spans[len(s.Spans)-1]
	return end.Epoch == s.Last.Epoch && end.Start <= s.Last.Seq && wellFormed(end.Members, end.Epoch.Region)
}

// Open is the last part of rule 2: in the command that made the candidate's
// copy end in exactly base, the opening of e becomes the next entry.
func (c Copy) Open(e controlplane.Epoch, base controlplane.Point, members []Member, forced bool) (Copy, error) {
	h := Header{Epoch: e, Seq: base.Seq + 1, Prev: base.Epoch, Members: members, Forced: forced}
	if e != c.Promised || base != c.Last || base.Epoch == e {
		return c, c.refuse(Unsealed)
	}
	step, err := c.Accept(e, h)
	if err != nil {
		return c, err
	}
	return step.Copy, nil
}

// Confirm is what one copy may take of rule 6: its home, or whoever holds its
// word, says that the entry at p and everything before it are confirmed. That
// stays true whatever was promised since, but tells a copy only of entries that
// it holds; false if it holds less, or knew.
//
// A follower that accepts the entry h from a home confirmed through p takes h
// itself as confirmed while h.Seq <= p.Seq, and p afterwards.
func (c Copy) Confirm(p controlplane.Point) (Copy, bool) {
	if p.Seq <= c.Confirmed || !c.Holds(p) {
		return c, false
	}
	c.Confirmed = p.Seq
	return c, true
}
