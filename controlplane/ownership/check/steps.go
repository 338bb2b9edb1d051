package check

import (
	"ringmain/controlplane/ownership"
)

func (m *model) writes(s *state, i int, send func(action, *state)) {
	l := s.lives[i]
	if int(s.writes) >= m.cfg.Writes {
		return
	}
	c := m.copyOf(l)
	if m.rules.Role(c, m.cfg.Lives[i]) != ownership.Home {
		return
	}
	k := s.slotOf(l.promised)
	for _, what := range []kind{write, revoke} {
		if what == revoke && int(s.safety) >= m.cfg.Safety {
			continue
		}
		t := *s
		t.writes++
		if what == revoke {
			t.safety++
		}
		log := m.h.push(l.log, entry{epoch: l.promised, write: t.writes, safety: what == revoke})
		step, err := ownership.Copy.Accept(c, c.Promised, m.h.nodes[log].header)
		if err != nil {
			m.fail("a home cannot write: %v", err)
			send(action{what, l.promised, uint8(i), 0}, &t)
			return
		}
		if s.slots[k].log != l.log {
			m.fail("S1: %s writes after %q, but its epoch went on to %q", name(m.cfg.Lives[i]), m.h.text(l.log), m.h.text(s.slots[k].log))
		}
		for j := range s.slots {
			if s.slots[j].base == l.promised && s.slots[j].epoch != 0 {
				m.fail("S6: %s writes although it handed over to %s", name(m.cfg.Lives[i]), m.h.epochs[s.slots[j].epoch])
			}
		}
		t.slots[k].log = log
		t.slots[k].accepted[i] = m.h.nodes[log].seq
		m.replace(&t, i, log, false)
		m.unchanged(step.Copy, &t, i)
		send(action{what, l.promised, uint8(i), 0}, &t)
	}
}

// feeds: any entry or snapshot that the epoch's home ever had, and what it
// called confirmed.
func (m *model) feeds(s *state, k, i int, send func(action, *state)) {
	sl := &s.slots[k]
	if sl.log == 0 || int(sl.owner) == i {
		return
	}
	l := s.lives[i]
	first := m.opening(sl.log)
	end := m.h.nodes[sl.log].seq
	for seq := uint8(1); seq <= end && (seq <= m.h.nodes[l.log].seq+1 || m.rules.Early); seq++ {
		id := m.h.prefix(sl.log, seq)
		r, failed := m.accept(l, sl.epoch, id)
		early := !r.ok && m.rules.Early && seq == first && l.promised <= sl.epoch
		if !r.ok && !early && !failed {
			continue
		}
		t := *s
		if r.ok || early {
			t.lives[i].promised = max(sl.epoch, l.promised)
		}
		if seq >= first || m.rules.Prefix {
			t.slots[k].accepted[i] = max(sl.accepted[i], seq)
		}
		if r.ok && r.log != l.log {
			t.lives[i].confirmed = r.confirmed
			m.replace(&t, i, r.log, false)
		}
		if early || r.ok && (r.log != l.log || m.cfg.Lazy && t != *s) || t.slots[k] != *sl || m.violation != "" {
			send(action{feed, sl.epoch, uint8(i), seq}, &t)
		}
	}
	if m.cfg.Adopts && l.promised <= sl.epoch {
		for seq := first; seq <= end; seq++ {
			m.adopts(s, k, i, seq, send)
		}
	}
}

func (m *model) learns(s *state, k, i int, send func(action, *state)) {
	t := *s
	if m.learn(&t, k, i) {
		send(action{learn, s.slots[k].epoch, uint8(i), t.lives[i].confirmed}, &t)
	}
}

// learn tells life i the last that the home of slot k called confirmed, of what
// the life holds.
func (m *model) learn(s *state, k, i int) bool {
	sl, l := &s.slots[k], &s.lives[i]
	for seq := sl.confirmed; seq > l.confirmed; seq-- {
		if m.h.prefix(l.log, seq) != m.h.prefix(sl.log, seq) && m.h.nodes[l.log].seq < seq {
			continue
		}
		if c, ok := m.rules.Confirm(m.copyOf(*l), m.h.nodes[m.h.prefix(sl.log, seq)].last); ok {
			l.confirmed = uint8(c.Confirmed)
			return true
		}
	}
	return false
}

// opening is the sequence of the epoch's opening.
func (m *model) opening(id logID) uint8 {
	spans := m.h.nodes[id].spans
	return uint8(spans[len(spans)-1].Start)
}

// unlearnt is l as it was before it heard that entries are confirmed which the
// history id lacks. Where everybody learns at once, this is how to see what
// becomes of a copy that has not heard yet, and follows a deposed home.
func (m *model) unlearnt(l life, id logID) life {
	for seq := min(l.confirmed, m.h.nodes[id].seq); !m.cfg.Lazy && m.h.prefix(l.log, seq) != m.h.prefix(id, seq); seq-- {
		l.confirmed = seq - 1
	}
	return l
}

// accept is rules.Accept on the logs, remembered.
func (m *model) accept(l life, sender uint8, id logID) (r acceptResult, failed bool) {
	key := acceptKey{life{log: l.log, promised: l.promised, confirmed: l.confirmed}, sender, id}
	if r, ok := m.accepts[key]; ok {
		return r, false
	}
	n := &m.h.nodes[id]
	l = m.unlearnt(l, id)
	step, err := m.rules.Accept(m.copyOf(l), m.h.epochs[sender], n.header)
	if err != nil {
		if m.refused(err, "entry %d of %s", n.seq, m.h.epochs[sender]) {
			return r, true
		}
		m.accepts[key] = r
		return r, false
	}
	r = acceptResult{log: l.log, confirmed: l.confirmed, ok: true}
	if step.Cut > 0 {
		r.log = m.h.prefix(r.log, uint8(step.Cut-1))
	}
	if step.Append {
		r.log = m.h.push(r.log, m.h.nodes[id].entry)
	}
	var s state
	s.lives[0] = life{log: r.log, promised: max(sender, l.promised), confirmed: l.confirmed}
	m.unchanged(step.Copy, &s, 0)
	m.accepts[key] = r
	return r, m.violation != ""
}

func (m *model) adopts(s *state, k, i int, seq uint8, send func(action, *state)) {
	sl, l := &s.slots[k], s.lives[i]
	id := m.h.prefix(sl.log, seq)
	n := &m.h.nodes[id]
	l = m.unlearnt(l, id)
	step, err := m.rules.Adopt(m.copyOf(l), m.h.epochs[sl.epoch], ownership.Snapshot{Last: n.last, Spans: n.spans})
	if err != nil && !m.refused(err, "snapshot at %d of %s", seq, m.h.epochs[sl.epoch]) {
		return
	}
	t := *s
	if err == nil {
		t.lives[i].promised = sl.epoch
		t.slots[k].accepted[i] = max(sl.accepted[i], seq)
		if id != l.log {
			t.lives[i].confirmed = l.confirmed
			m.replace(&t, i, id, true)
			if same := m.h.prefix(l.log, uint8(max(step.Cut, 1)-1)); step.Cut > 0 && !m.h.contains(id, same) {
				m.fail("S4: %s would cut from %d only", name(m.cfg.Lives[i]), step.Cut)
			}
		}
		m.unchanged(step.Copy, &t, i)
	}
	if t != *s || m.violation != "" {
		send(action{adopt, sl.epoch, uint8(i), seq}, &t)
	}
}

func (m *model) confirms(s *state, k int, send func(action, *state)) {
	t := *s
	if m.confirm(&t, k) {
		send(action{confirm, s.slots[k].epoch, s.slots[k].owner, t.slots[k].confirmed}, &t)
	}
}

// confirm lets the home of slot k count all that was ever accepted; having
// heard of less is having counted earlier.
func (m *model) confirm(s *state, k int) bool {
	sl := &s.slots[k]
	l := &s.lives[sl.owner]
	if l.gone != 0 || sl.log == 0 || l.promised != sl.epoch || m.h.nodes[l.log].entry.epoch != sl.epoch {
		return false
	}
	through := m.tally(sl, *l)
	if through <= l.confirmed {
		return false
	}
	l.confirmed = through
	sl.confirmed = max(sl.confirmed, through)
	fact := m.h.prefix(sl.log, through)
	for j := range s.slots {
		if o := &s.slots[j]; o.log != 0 && o.epoch > sl.epoch && !m.givenUp(int(sl.owner), sl.epoch, o.log) && !m.h.contains(o.log, fact) {
			m.fail("S3: %s confirms %q, which the later %s lacks: %q", m.h.epochs[sl.epoch], m.h.text(fact), m.h.epochs[o.epoch], m.h.text(o.log))
		}
	}
	return true
}

// settle takes the steps that can be taken at once without losing sight of a
// violation, unless the configuration is lazy: what may be confirmed is, and
// everybody who can know does, since knowing enlarges what must not be lost and
// shortens the list of memberships whose majorities count. It also forgets
// facts that nobody can use any more. For the same reason a step that does
// nothing but raise a promise is left out of the exploration: it only forbids.
func (m *model) settle(s *state) {
	if m.cfg.Lazy {
		return
	}
	for changed := true; changed; {
		changed = false
		for k := range s.slots {
			if s.slots[k].log == 0 {
				continue
			}
			changed = m.confirm(s, k) || changed
			for i := range m.cfg.Lives {
				if s.lives[i].gone == 0 && s.lives[i].confirmed < s.slots[k].confirmed {
					changed = m.learn(s, k, i) || changed
				}
			}
		}
	}
	for k := 0; k < maxSlots && s.slots[k].epoch != 0; k++ {
		sl := &s.slots[k]
		done := s.lives[sl.owner].gone != 0 || s.lives[sl.owner].promised > sl.epoch
		if done {
			sl.accepted = [maxLives]uint8{}
		}
		if len(m.cfg.Restores) > 0 {
			continue
		}
		switch {
		case sl.log != 0:
			sl.reports, sl.option = [maxLives]report{}, 0
		case done:
			copy(s.slots[k:], s.slots[k+1:])
			s.slots[maxSlots-1] = slot{}
			k--
		}
	}
}

func (m *model) tally(sl *slot, l life) uint8 {
	key := tallyKey{l.log, sl.owner, l.promised, l.confirmed, sl.accepted}
	if through, ok := m.tallies[key]; ok {
		return through
	}
	var heard []Heard
	for j, seq := range sl.accepted[:len(m.cfg.Lives)] {
		if seq > 0 {
			heard = append(heard, Heard{m.named(j), m.h.nodes[m.h.prefix(sl.log, seq)].last})
		}
	}
	through := uint8(m.rules.Confirmed(heard, m.cfg.Lives[sl.owner], m.copyOf(l)))
	m.tallies[key] = through
	return through
}

// restores: the disk is lost; the next life begins with what any earlier
// backup held.
func (m *model) restores(s *state, n int, r Restore, send func(action, *state)) {
	old := s.lives[r.From]
	for seq := uint8(0); seq <= m.h.nodes[old.log].seq; seq++ {
		t := *s
		if !r.Zombie {
			t.lives[r.From].gone = 2
		}
		log := m.h.prefix(old.log, seq)
		t.lives[r.To] = life{log: log, promised: m.h.nodes[log].entry.epoch, confirmed: min(old.confirmed, seq), safety: m.h.nodes[log].safety}
		send(action{restore, uint8(n), uint8(r.To), seq}, &t)
	}
}

// crashes lose nothing, unless a bug is planted.
func (m *model) crashes(s *state, i int, send func(action, *state)) {
	l := s.lives[i]
	if last := m.h.nodes[l.log].entry.epoch; m.rules.Forgets && l.promised != last {
		t := *s
		t.lives[i].promised = last
		send(action{forget, 0, uint8(i), 0}, &t)
	}
	if seq := m.h.nodes[l.log].seq; m.rules.Loses && seq > 1 {
		t := *s
		t.lives[i].log = m.h.prefix(l.log, seq-1)
		t.lives[i].promised = m.h.nodes[t.lives[i].log].entry.epoch
		t.lives[i].confirmed = min(l.confirmed, seq-1)
		send(action{lose, 0, uint8(i), 0}, &t)
	}
}
