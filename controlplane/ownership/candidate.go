package ownership

import (
	"slices"

	"ringmain/controlplane"
)

// Campaign is a candidate's volatile part: why it takes over, and what it heard.
// A candidate that restarts abandons its epoch and the campaign with it. The
// candidate has committed its own seal of Epoch before it asks anybody.
type Campaign struct {
	Self  Member
	Epoch controlplane.Epoch

	// From is the home that hands over in a planned move: its report is
	// required, must be the highest, and must end in an epoch of its own.
	// Empty for a takeover.
	From string

	// Add and Remove change the members. A life that is added replaces another
	// of its region.
	Add, Remove []Member
	// Force declares those to be removed lost for ever: nobody waits for their
	// word, everybody else's is required. Unless Plan.Lossless is true, records
	// acknowledged multi-region may be lost. If the lost live on, and are
	// forced too, the shard has two histories; only one of them will stay.
	//
	// A candidate in another life than the members' takes the former one's place
	// if that is among the lost and Self among Add.
	Force bool

	Reports []Report
}

// Report is a member's answer to seal: its copy right after.
type Report struct {
	From Member
	Copy Copy
}

// Move is what a candidate does next.
type Move uint8

// Moves.
const (
	Wait   Move = iota // for the reports of some of Plan.Missing
	Take               // copy the tail of Plan.From through Base and open the epoch on it, in one command
	GiveUp             // this region is no member, or the planned move cannot be: leave the epoch unused
)

func (m Move) String() string { return [...]string{"wait", "take", "give up"}[m] }

// Plan is the next move of a candidate.
type Plan struct {
	Move     Move
	Missing  []Member           // Wait
	From     Member             // Take: whose copy to end in; the candidate itself if its own is the highest
	Base     controlplane.Point // Take: exactly where to end; nothing lower will do, nor anything higher
	Known    controlplane.Point // Take: the last entry that a report calls confirmed; Confirm it in the same command
	Members  []Member           // Take: members of the new epoch
	Forced   bool               // Take
	Lossless bool               // Take: every record acknowledged multi-region is in Base, if the memberships are what they seem
}

// Hear adds the report r, unless it answers another seal. It must be the answer
// to a request of this very campaign: not of another life of the region.
func (c Campaign) Hear(r Report) Campaign {
	known := func(k Report) bool { return k.From == r.From }
	if r.Copy.Promised != c.Epoch || r.Copy.Last.Epoch == c.Epoch || slices.ContainsFunc(c.Reports, known) {
		return c
	}
	c.Reports = append(slices.Clip(c.Reports), r)
	return c
}

// Next is rule 2: with reports from a majority of every membership that counts,
// its own report included, the candidate takes the highest end reported, epoch
// before sequence, and nothing else.
func (c Campaign) Next() Plan {
	own := slices.IndexFunc(c.Reports, func(r Report) bool { return r.From == c.Self })
	if own < 0 {
		return Plan{Missing: []Member{c.Self}}
	}
	best := c.Reports[own]
	for _, r := range c.Reports {
		if r.Copy.Last.Compare(best.Copy.Last) > 0 {
			best = r
		}
	}
	known := c.known(best.Copy)
	counted := memberships(best.Copy.Spans, known.Seq)
	if missing := c.missing(counted); len(missing) > 0 {
		return Plan{Missing: missing}
	}
	members := c.change(best.Copy.Members())
	if !c.belongs(best.Copy.Members()) || !wellFormed(members, c.Self.Region) || !slices.Contains(members, c.Self) {
		return Plan{Move: GiveUp}
	}
	if c.From != "" {
		old := slices.IndexFunc(c.Reports, func(r Report) bool { return r.From.Region == c.From })
		if old < 0 {
			return Plan{Move: GiveUp}
		}
		if last := c.Reports[old].Copy.Last; last != best.Copy.Last || last.Epoch.Region != c.From {
			return Plan{Move: GiveUp}
		}
	}
	return Plan{Move: Take, From: best.From, Base: best.Copy.Last, Known: known, Members: members, Forced: c.Force, Lossless: c.lossless(counted)}
}

// belongs reports that the candidate is one of the members, or that a former
// life of it is, which is declared lost. That is the only way back for a region
// whose shard has no other member: nobody else could add it.
func (c Campaign) belongs(members []Member) bool {
	return slices.ContainsFunc(members, func(m Member) bool {
		return m == c.Self || c.Force && m.Region == c.Self.Region && slices.Contains(c.Remove, m)
	})
}

// known is the last entry in best that any report calls confirmed. What others
// call confirmed and best does not hold says nothing about best's memberships:
// it says that the reports do not suffice yet.
func (c Campaign) known(best Copy) controlplane.Point {
	var known controlplane.Point
	for _, r := range c.Reports {
		epoch, _ := epochAt(r.Copy.Spans, r.Copy.Confirmed)
		p := controlplane.Point{Epoch: epoch, Seq: r.Copy.Confirmed}
		if p.Seq > known.Seq && best.Holds(p) {
			known = p
		}
	}
	return known
}

func (c Campaign) reported(m Member) bool {
	return slices.ContainsFunc(c.Reports, func(r Report) bool { return r.From == m })
}

// missing lists the members whose reports may help; none if there are enough.
func (c Campaign) missing(counted [][]Member) []Member {
	var missing []Member
	add := func(m Member) {
		if !c.reported(m) && !slices.Contains(missing, m) {
			missing = append(missing, m)
		}
	}
	for _, members := range counted {
		silent := slices.DeleteFunc(slices.Clone(members), c.reported)
		if c.Force {
			silent = slices.DeleteFunc(silent, func(m Member) bool { return slices.Contains(c.Remove, m) })
		} else if len(members)-len(silent) >= Majority(len(members)) {
			silent = nil
		}
		for _, m := range silent {
			add(m)
		}
	}
	if len(counted) > 0 && c.From != "" {
		for _, m := range counted[len(counted)-1] {
			if m.Region == c.From {
				add(m)
			}
		}
	}
	return missing
}

// lossless reports that whoever confirmed a record is among those who reported.
func (c Campaign) lossless(counted [][]Member) bool {
	for _, members := range counted {
		n := 0
		for _, m := range members {
			if c.reported(m) {
				n++
			}
		}
		if n+Majority(len(members)) <= len(members) {
			return false
		}
	}
	return true
}

func (c Campaign) change(members []Member) []Member {
	out := slices.DeleteFunc(slices.Clone(members), func(m Member) bool {
		return slices.Contains(c.Remove, m) || slices.ContainsFunc(c.Add, func(a Member) bool { return a.Region == m.Region })
	})
	out = append(out, c.Add...)
	slices.SortFunc(out, Member.compare)
	return out
}
