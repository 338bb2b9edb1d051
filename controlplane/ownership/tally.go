package ownership

import (
	"slices"

	"ringmain/controlplane"
)

// Tally is a home's volatile part: how far the members accepted its epoch. A
// home that restarts begins an empty one; the members tell it again. The zero
// Tally has heard nothing.
type Tally struct {
	heard []accepted
}

type accepted struct {
	from Member
	last controlplane.Point
}

// Hear notes that the member's copy ended at last, committed. Such a word stays
// true; it counts for the epoch of last alone, since a copy that does not hold
// an epoch's opening confirms nothing of it.
func (t Tally) Hear(from Member, last controlplane.Point) Tally {
	i := slices.IndexFunc(t.heard, func(a accepted) bool { return a.from == from })
	if i >= 0 && t.heard[i].last.Compare(last) >= 0 {
		return t
	}
	t.heard = slices.Clone(t.heard)
	if i < 0 {
		t.heard = append(t.heard, accepted{from, last})
	} else {
		t.heard[i].last = last
	}
	return t
}

// Confirmed is rule 6: the last sequence that a majority of every membership
// that counts accepted under self's epoch, itself included, if that is at or
// after the epoch's opening; otherwise what c knows already. After a forced
// opening nothing is confirmed until two regions hold it, unless only former
// lives of self were members before: then there is no other half.
func (t Tally) Confirmed(self Member, c Copy) uint64 {
	if r := c.Role(self); r != Home && r != Opening {
		return c.Confirmed
	}
	through := c.Last.Seq
	for _, members := range c.Memberships() {
		through = min(through, t.nth(self, c, members, Majority(len(members))))
	}
	if first := inForce(c.Spans, c.Confirmed); c.Spans[first].Forced && c.Spans[first].Start > c.Confirmed && !alone(self, c.Spans[:first], c.Confirmed) {
		through = min(through, t.nth(self, c, c.Members(), 2))
	}
	if through < c.Spans[len(c.Spans)-1].Start {
		return c.Confirmed
	}
	return max(through, c.Confirmed)
}

// alone reports that since the last opening known to be confirmed no other
// region than self's was a member.
func alone(self Member, before []Span, confirmed uint64) bool {
	for _, s := range slices.Backward(before) {
		if len(s.Members) != 1 || s.Members[0].Region != self.Region {
			return false
		}
		if s.Start <= confirmed || s.Start == 1 {
			return true
		}
	}
	return false
}

// nth is the sequence that n of the members reached in c's epoch.
func (t Tally) nth(self Member, c Copy, members []Member, n int) uint64 {
	reached := make([]uint64, 0, len(members))
	for _, m := range members {
		if m == self {
			reached = append(reached, c.Last.Seq)
			continue
		}
		for _, a := range t.heard {
			if a.from == m && a.last.Epoch == c.Last.Epoch {
				reached = append(reached, min(a.last.Seq, c.Last.Seq))
			}
		}
	}
	if len(reached) < n {
		return 0
	}
	slices.SortFunc(reached, func(a, b uint64) int { return int(int64(b) - int64(a)) })
	return reached[n-1]
}
