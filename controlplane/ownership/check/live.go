package check

import (
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// lively checks L in s: whichever regions survive, if they are majorities of
// the memberships that count, then each member among them, alone in trying, can
// take over, write and see its write confirmed.
func (m *model) lively(s *state) {
	for survivors := 1; survivors < 1<<len(m.cfg.Lives); survivors++ {
		alive := true
		for i := range m.cfg.Lives {
			if survivors>>i&1 == 1 && s.lives[i].gone != 0 {
				alive = false
			}
		}
		if !alive || !m.enough(s, survivors) {
			continue
		}
		for i := range m.cfg.Lives {
			if survivors>>i&1 == 1 && m.violation == "" {
				m.candidate(s, survivors, i)
			}
		}
	}
}

// best is the highest copy of the survivors, and what of it they know is confirmed.
func (m *model) best(s *state, survivors int) (best int, confirmed uint8) {
	best = -1
	for i := range m.cfg.Lives {
		if survivors>>i&1 == 1 && (best < 0 || m.h.nodes[s.lives[i].log].last.Compare(m.h.nodes[s.lives[best].log].last) > 0) {
			best = i
		}
	}
	for i, l := range s.lives[:len(m.cfg.Lives)] {
		if survivors>>i&1 == 1 && m.h.contains(s.lives[best].log, m.h.prefix(l.log, l.confirmed)) {
			confirmed = max(confirmed, l.confirmed)
		}
	}
	return best, confirmed
}

func (m *model) enough(s *state, survivors int) bool {
	best, confirmed := m.best(s, survivors)
	spans := m.h.nodes[s.lives[best].log].spans
	if len(spans) == 0 {
		return false
	}
	for i := range m.cfg.Lives {
		if next := m.successor(i); next < 0 {
			continue
		} else if s.lives[next].gone == 0 && survivors>>i&1 == 1 {
			return false // it was declared lost
		}
		for j, o := range s.lives[:len(m.cfg.Lives)] {
			if survivors>>j&1 == 1 && !m.h.contains(s.lives[best].log, m.h.prefix(o.log, o.confirmed)) {
				return false // it follows what was confirmed to nobody else, and given up
			}
		}
	}
	for k := len(spans) - 1; k >= 0; k-- {
		n := 0
		for i, l := range m.cfg.Lives {
			for _, member := range spans[k].Members {
				if survivors>>i&1 == 1 && member == l {
					n++
				}
			}
		}
		if 2*n <= len(spans[k].Members) || spans[k].Forced && n < 2 && !noOther(spans[:k+1], confirmed) {
			return false
		}
		if spans[k].Forced || spans[k].Start <= uint64(confirmed) {
			break
		}
	}
	return true
}

// noOther reports that since what is confirmed only one region was a member.
func noOther(spans []ownership.Span, confirmed uint8) bool {
	first := 0
	for i, span := range spans {
		if span.Start <= uint64(confirmed) {
			first = i
		}
	}
	return len(spans) > 1 && !slices.ContainsFunc(spans[first:], func(s ownership.Span) bool {
		return len(s.Members) != 1 || s.Members[0].Region != spans[len(spans)-1].Members[0].Region
	})
}

// candidate plays one undisturbed takeover.
func (m *model) candidate(s *state, survivors, self int) {
	best, _ := m.best(s, survivors)
	me := m.cfg.Lives[self]
	last := m.h.nodes[s.lives[best].log].spans
	if !slices.Contains(last[len(last)-1].Members, me) || m.rules.Role(m.copyOf(s.lives[self]), me) == ownership.Outside {
		return
	}
	epoch := controlplane.Epoch{Counter: uint64(m.cfg.Counters) + 1, Region: me.Region}
	copies := make([]ownership.Copy, len(m.cfg.Lives))
	c := ownership.Campaign{Self: me, Epoch: epoch}
	for i := range m.cfg.Lives {
		if survivors>>i&1 == 1 {
			var err error
			if copies[i], err = m.rules.Seal(m.copyOf(s.lives[i]), epoch); err != nil {
				m.fail("L: %s does not seal %s: %v", name(m.cfg.Lives[i]), epoch, err)
				return
			}
			c = c.Hear(ownership.Report{From: m.cfg.Lives[i], Copy: copies[i]})
		}
	}
	plan := m.rules.Next(c)
	if plan.Move != ownership.Take {
		m.fail("L: %s, having heard of %b, would %s", name(me), survivors, plan.Move)
		return
	}
	base := s.lives[slices.Index(m.cfg.Lives, plan.From)].log
	var headers []ownership.Header
	for id := base; id != 0; id = m.h.nodes[id].parent {
		headers = append([]ownership.Header{m.h.nodes[id].header}, headers...)
	}
	opening := ownership.Header{Epoch: epoch, Seq: plan.Base.Seq + 1, Prev: plan.Base.Epoch, Members: plan.Members}
	headers = append(headers[:plan.Base.Seq:plan.Base.Seq], opening,
		ownership.Header{Epoch: epoch, Seq: opening.Seq + 1, Prev: epoch})
	for _, end := range []uint64{opening.Seq, opening.Seq + 1} {
		var heard []Heard
		for n := range m.cfg.Lives {
			i := (self + n) % len(m.cfg.Lives)
			if survivors>>i&1 == 0 {
				continue
			}
			from := copies[i].Common(plan.Base, m.h.nodes[base].spans)
			for seq := from + 1; seq <= end; seq++ {
				step, err := m.rules.Accept(copies[i], epoch, headers[seq-1])
				if err != nil {
					m.fail("L: %s refuses entry %d of %s: %v", name(m.cfg.Lives[i]), seq, epoch, err)
					return
				}
				copies[i] = step.Copy
				if known, ok := m.rules.Confirm(copies[i], plan.Known); ok && i == self {
					copies[i] = known
				}
			}
			heard = append(heard, Heard{m.cfg.Lives[i], copies[i].Last})
		}
		if copies[self].Confirmed = m.rules.Confirmed(heard, me, copies[self]); copies[self].Confirmed != end {
			m.fail("L: %s confirms through %d, not %d, although %b accepted", name(me), copies[self].Confirmed, end, survivors)
			return
		}
		if m.rules.Role(copies[self], me) != ownership.Home {
			m.fail("L: %s is not home of its confirmed epoch", name(me))
		}
	}
}
