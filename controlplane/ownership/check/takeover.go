package check

import (
	"errors"
	"fmt"
	"slices"

	"ringmain/controlplane/ownership"
)

// campaigns: a member that is not home, or a home that changes the members,
// seals an epoch of its own.
func (m *model) campaigns(s *state, i int, send func(action, *state)) {
	if int(s.openings) >= m.cfg.Openings || m.cfg.Campaign != nil && !slices.Contains(m.cfg.Campaign, i) {
		return
	}
	c := m.copyOf(s.lives[i])
	role := m.rules.Role(c, m.cfg.Lives[i])
	for counter := 1; counter <= m.cfg.Counters; counter++ {
		e := m.epoch(counter, m.region[i])
		for o, option := range m.options {
			switch {
			case role == ownership.Outside && !m.returns(c, i, option), role == ownership.Outside && counter < int(m.rules.Above(m.cfg.Lives[i], 0).Counter),
				m.over(i, counter):
				continue
			case o == 0 && role == ownership.Home && len(m.options) > 0, o > 0 && int(s.changes) >= m.cfg.Changes,
				option.By != nil && !slices.Contains(option.By, i), option.from == int(m.region[i])+1:
				continue
			}
			sealed, err := m.rules.Seal(c, m.h.epochs[e])
			if err != nil || s.lives[i].promised == e {
				continue
			}
			t := *s
			t.openings++
			if o > 0 {
				t.changes++
			}
			t.lives[i].promised = e
			k := t.slotOf(e)
			if k < 0 {
				for k = maxSlots - 1; k > 0 && (t.slots[k-1].epoch == 0 || t.slots[k-1].epoch > e); k-- {
					t.slots[k] = t.slots[k-1]
				}
				t.slots[k] = slot{epoch: e}
			}
			sl := &t.slots[k]
			if int(sl.owner) != i { // what was reported to another life is not for this one
				sl.reports = [maxLives]report{}
			}
			sl.owner, sl.option = uint8(i), uint8(o)
			sl.reports[i] = report{log: t.lives[i].log, confirmed: t.lives[i].confirmed, said: 1}
			m.unchanged(sealed, &t, i)
			send(action{campaign, e, uint8(i), uint8(o)}, &t)
		}
	}
}

// returns reports that by the option life i takes the place of its former one.
func (m *model) returns(c ownership.Copy, i int, o Option) bool {
	return o.Force && slices.Contains(o.Add, i) && slices.ContainsFunc(o.Remove, func(j int) bool {
		return m.region[j] == m.region[i] && slices.Contains(c.Members(), m.cfg.Lives[j])
	})
}

// over reports that life i opens no epoch of this counter, because its next
// life, which begins without the other members' word, starts there.
func (m *model) over(i, counter int) bool {
	next := m.successor(i)
	return next >= 0 && counter >= int(m.cfg.Lives[next].Since)
}

// successor is the life that may take the place of life i by its own word; -1
// if none may.
func (m *model) successor(i int) int {
	for _, r := range m.cfg.Restores {
		if r.From == i && slices.ContainsFunc(m.options, func(o Option) bool { return o.Force && slices.Contains(o.Add, r.To) }) {
			return r.To
		}
	}
	return -1
}

// givenUp reports that log need not hold what life i confirmed in the epoch:
// after it, a life that takes a former one's place declared i lost.
func (m *model) givenUp(i int, epoch uint8, log logID) bool {
	for _, o := range m.options {
		if !o.Force || !slices.Contains(o.Remove, i) {
			continue
		}
		for _, next := range o.Add {
			if slices.ContainsFunc(m.h.nodes[log].spans, func(s ownership.Span) bool {
				return s.Forced && s.Epoch.Compare(m.h.epochs[epoch]) > 0 && slices.Contains(s.Members, m.cfg.Lives[next])
			}) {
				return true
			}
		}
	}
	return false
}

func (m *model) seals(s *state, k, i int, send func(action, *state)) {
	sl := &s.slots[k]
	if int(sl.owner) == i || sl.reports[i].said == 1 || sl.log != 0 && (len(m.cfg.Restores) == 0 || s.lives[sl.owner].promised != sl.epoch) {
		return
	}
	c, err := m.rules.Seal(m.copyOf(s.lives[i]), m.h.epochs[sl.epoch])
	if err != nil {
		return
	}
	t := *s
	t.lives[i].promised = sl.epoch
	t.slots[k].reports[i] = report{log: t.lives[i].log, confirmed: t.lives[i].confirmed, said: 1}
	m.unchanged(c, &t, i)
	send(action{seal, sl.epoch, uint8(i), 0}, &t)
}

// openings: with any sufficient part of the reports that were ever sent.
func (m *model) openings(s *state, k int, send func(action, *state)) {
	sl := &s.slots[k]
	i := int(sl.owner)
	l := s.lives[i]
	if l.gone == 1 || l.promised != sl.epoch || m.h.nodes[l.log].entry.epoch == sl.epoch || sl.reports[i].said == 0 {
		return
	}
	for n, plan := range m.plansOf(sl) {
		if plan.Forced && !plan.Lossless && !m.cfg.Lossy {
			continue
		}
		t := *s
		if m.take(&t, k, plan) {
			send(action{open, sl.epoch, uint8(i), uint8(n)}, &t)
		}
	}
}

func (m *model) campaignOf(sl *slot) ownership.Campaign {
	o := m.options[sl.option]
	c := ownership.Campaign{Self: m.cfg.Lives[sl.owner], Epoch: m.h.epochs[sl.epoch], Force: o.Force}
	for _, i := range o.Add {
		c.Add = append(c.Add, m.cfg.Lives[i])
	}
	for _, i := range o.Remove {
		c.Remove = append(c.Remove, m.cfg.Lives[i])
	}
	if o.from > 0 {
		c.From = m.h.epochs[o.from].Region
	}
	return c
}

// plansOf are the openings that some part of the reports allows.
func (m *model) plansOf(sl *slot) []ownership.Plan {
	key := planKey{sl.owner, sl.epoch, sl.option, sl.reports}
	if plans, ok := m.plans[key]; ok {
		return plans
	}
	var plans []ownership.Plan
	for subset := 1; subset < 1<<len(m.cfg.Lives); subset++ {
		c, said := m.campaignOf(sl), true
		for i, r := range sl.reports[:len(m.cfg.Lives)] {
			if subset>>i&1 == 1 {
				said = said && r.said == 1
				c = c.Hear(m.reportOf(sl.epoch, i, r))
			}
		}
		if !said {
			continue
		}
		plan := m.rules.Next(c)
		same := func(p ownership.Plan) bool {
			return p.Base == plan.Base && p.Known == plan.Known && p.Lossless == plan.Lossless && equal(p.Members, plan.Members)
		}
		if plan.Move == ownership.Take && !slices.ContainsFunc(plans, same) {
			plans = append(plans, plan)
		}
	}
	m.plans[key] = plans
	return plans
}

func (m *model) reportOf(epoch uint8, i int, r report) ownership.Report {
	return ownership.Report{From: m.named(i), Copy: m.copyOf(life{log: r.log, promised: epoch, confirmed: r.confirmed})}
}

// named is how life i signs what it says.
func (m *model) named(i int) ownership.Member {
	if m.rules.Nameless {
		i = slices.Index(m.region, m.region[i])
	}
	return m.cfg.Lives[i]
}

// take is the command by which a candidate adopts the base and opens.
func (m *model) take(s *state, k int, plan ownership.Plan) bool {
	sl := &s.slots[k]
	i := int(sl.owner)
	var base logID
	for j, r := range sl.reports[:len(m.cfg.Lives)] {
		if r.said == 1 && m.h.nodes[r.log].seq >= uint8(plan.Base.Seq) && m.reportOf(sl.epoch, j, r).From == plan.From {
			base = m.h.prefix(r.log, uint8(plan.Base.Seq))
		}
	}
	s.lives[i] = m.unlearnt(s.lives[i], base)
	before := s.lives[i]
	own := m.copyOf(before)
	e := m.h.epochs[sl.epoch]
	baseNode := &m.h.nodes[base]
	c := own
	for seq := own.Common(baseNode.last, baseNode.spans) + 1; seq <= plan.Base.Seq; seq++ {
		step, err := m.rules.Accept(c, e, m.h.nodes[m.h.prefix(base, uint8(seq))].header)
		if err != nil {
			return m.refused(err, "%s takes entry %d", e, seq)
		}
		c = step.Copy
	}
	if base != before.log {
		if step, err := m.rules.Inherit(own, e, ownership.Snapshot{Last: baseNode.last, Spans: baseNode.spans}); err != nil {
			return m.refused(err, "%s inherits", e)
		} else if step.Copy.Last != c.Last || step.Copy.Confirmed != c.Confirmed {
			m.fail("entries lead to %v, the snapshot of them to %v", c.Last, step.Copy.Last)
		}
	}
	if known, ok := m.rules.Confirm(c, plan.Known); ok {
		c = known
	}
	c, err := m.rules.Open(c, e, plan.Base, plan.Members, plan.Forced)
	if err != nil {
		return m.refused(err, "%s opens", e)
	}
	log := m.h.push(base, entry{epoch: sl.epoch, members: m.h.membership(plan.Members), forced: plan.Forced})
	if sl.log != 0 {
		m.fail("S1: epoch %s is opened twice", e)
	}
	if m.options[sl.option].from > 0 {
		sl.base = baseNode.entry.epoch
		if old := s.slotOf(sl.base); s.slots[old].log != base {
			m.fail("S6: %s is handed over without %q, which ends at %q", m.h.epochs[sl.base], m.h.text(s.slots[old].log), m.h.text(base))
		}
	}
	sl.log = log
	sl.accepted[i] = m.h.nodes[log].seq
	m.replace(s, i, log, false)
	s.lives[i].confirmed = uint8(c.Confirmed)
	m.unchanged(c, s, i)
	for j := range s.slots {
		if o := &s.slots[j]; o.epoch != 0 && o.epoch < sl.epoch && o.confirmed > 0 && !m.givenUp(int(o.owner), o.epoch, sl.log) && !m.h.contains(log, m.h.prefix(o.log, o.confirmed)) {
			m.fail("S3: %s opens on %q without %q, which %s has confirmed", e, m.h.text(base), m.h.text(m.h.prefix(o.log, o.confirmed)), m.h.epochs[o.epoch])
		}
	}
	return true
}

// refused reports a refusal that the rules should never give. That a confirmed
// entry would be cut is not one: some home below it may be heard of late. It
// must not stand in the way of a takeover, which is L.
func (m *model) refused(err error, format string, args ...any) bool {
	var r *ownership.Refused
	if errors.As(err, &r) && r.Reason == ownership.Malformed {
		m.fail("%s: %v", fmt.Sprintf(format, args...), err)
		return true
	}
	return false
}
