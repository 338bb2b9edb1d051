package check

import (
	"fmt"
	"slices"

	"ringmain/controlplane/ownership"
)

const (
	maxLives = 6
	maxSlots = 5
)

// life is what one life of a region has on its disk.
type life struct {
	log       logID
	promised  uint8 // number of the epoch
	confirmed uint8
	cut       uint8 // quarantine: set of writes
	safety    uint8 // safety set
	gone      uint8 // 1: not begun, or its disk is lost
}

// report is a life's answer to a seal.
type report struct {
	log       logID
	confirmed uint8
	said      uint8
}

// slot is all that was ever said of one epoch.
type slot struct {
	log       logID // longest history its home has sent; 0: not opened
	epoch     uint8
	owner     uint8 // life that campaigns
	option    uint8
	confirmed uint8 // how far its home has called it confirmed
	base      uint8 // epoch that a planned move ended
	accepted  [maxLives]uint8
	reports   [maxLives]report
}

type state struct {
	lives    [maxLives]life
	slots    [maxSlots]slot // by epoch; unused ones last, with epoch 0
	writes   uint8
	safety   uint8
	openings uint8
	changes  uint8
}

// action is one step: what, and its arguments.
type action struct {
	kind            kind
	slot, life, arg uint8
}

type kind uint8

const (
	campaign kind = iota + 1
	seal
	open
	write
	revoke
	feed
	adopt
	confirm
	learn
	restore
	forget
	lose
)

type model struct {
	cfg       Config
	rules     Rules
	h         *histories
	options   []Option
	region    []uint8 // of a life
	regions   int
	violation string

	accepts map[acceptKey]acceptResult
	plans   map[planKey][]ownership.Plan
	tallies map[tallyKey]uint8
}

type acceptKey struct {
	copy   life
	sender uint8
	entry  logID
}

type acceptResult struct {
	log       logID
	confirmed uint8
	ok        bool
}

type planKey struct {
	owner, epoch, option uint8
	reports              [maxLives]report
}

type tallyKey struct {
	log             logID
	owner, promised uint8
	confirmed       uint8
	accepted        [maxLives]uint8
}

func newModel(cfg Config, rules Rules) *model {
	m := &model{cfg: cfg, rules: rules,
		accepts: make(map[acceptKey]acceptResult), plans: make(map[planKey][]ownership.Plan), tallies: make(map[tallyKey]uint8)}
	var regions []string
	for _, l := range cfg.Lives {
		if i := slices.Index(regions, l.Region); i >= 0 {
			m.region = append(m.region, uint8(i))
			continue
		}
		m.region = append(m.region, uint8(len(regions)))
		regions = append(regions, l.Region)
	}
	m.regions = len(regions)
	m.h = newHistories(regions, cfg.Counters)
	m.options = append([]Option{{}}, cfg.Options...)
	if cfg.Moves {
		for i := range regions {
			m.options = append(m.options, Option{from: i + 1})
		}
	}
	return m
}

// first is the founding: epoch 1 of the first life.
func (m *model) first() state {
	var s state
	founders := slices.Clone(m.cfg.Lives[:m.cfg.Founders])
	log := m.h.push(0, entry{epoch: 1, members: m.h.membership(founders)})
	s.slots[0] = slot{epoch: 1, log: log}
	for i := range maxLives {
		begins := slices.ContainsFunc(m.cfg.Restores, func(r Restore) bool { return r.To == i })
		if i >= len(m.cfg.Lives) || begins {
			s.lives[i].gone = 1
		} else if i == 0 || i < m.cfg.Founders && !m.cfg.Cold {
			s.lives[i] = life{log: log, promised: 1}
			s.slots[0].accepted[i] = 1
		}
	}
	m.settle(&s)
	return s
}

func (m *model) copyOf(l life) ownership.Copy {
	n := &m.h.nodes[l.log]
	return ownership.Copy{Promised: m.h.epochs[l.promised], Last: n.last, Spans: n.spans, Confirmed: uint64(l.confirmed)}
}

func (m *model) epoch(counter int, region uint8) uint8 {
	return uint8((counter-1)*m.regions) + region + 1
}

func (m *model) fail(format string, args ...any) {
	if m.violation == "" {
		m.violation = fmt.Sprintf(format, args...)
	}
}

func (s *state) slotOf(epoch uint8) int {
	for i := range s.slots {
		if s.slots[i].epoch == epoch {
			return i
		}
	}
	return -1
}

// successors calls emit with every state that follows s, until it returns
// false. A violation is set before the call for the state that shows it.
func (m *model) successors(s *state, emit func(action, *state) bool) {
	more := true
	send := func(a action, t *state) {
		if more {
			m.settle(t)
			more = emit(a, t)
		}
	}
	for i := range m.cfg.Lives {
		if !more {
			return
		}
		if s.lives[i].gone == 0 {
			m.campaigns(s, i, send)
			m.writes(s, i, send)
			m.crashes(s, i, send)
		}
	}
	for k := range s.slots {
		if !more || s.slots[k].epoch == 0 {
			break
		}
		m.openings(s, k, send)
		if m.cfg.Lazy {
			m.confirms(s, k, send)
		}
		for i := range m.cfg.Lives {
			if more && s.lives[i].gone == 0 {
				m.seals(s, k, i, send)
				m.feeds(s, k, i, send)
				if m.cfg.Lazy {
					m.learns(s, k, i, send)
				}
			}
		}
	}
	for n, r := range m.cfg.Restores {
		if s.lives[r.From].gone == 0 && s.lives[r.To].gone == 1 && more {
			m.restores(s, n, r, send)
		}
	}
}

// unchanged checks that the model's view of life i is the core's.
func (m *model) unchanged(c ownership.Copy, s *state, i int) {
	want := m.copyOf(s.lives[i])
	same := func(a, b ownership.Span) bool {
		return a.Epoch == b.Epoch && a.Start == b.Start && a.Forced == b.Forced && equal(a.Members, b.Members)
	}
	if c.Promised != want.Promised || c.Last != want.Last || c.Confirmed != want.Confirmed || !slices.EqualFunc(c.Spans, want.Spans, same) {
		m.fail("the rules' copy and the payload log differ: %v, %v", c, want)
	}
}

// replace makes log the content of life i: what is cut enters the quarantine,
// what is found leaves it, revocations join the safety set.
func (m *model) replace(s *state, i int, log logID, snapshot bool) {
	l := &s.lives[i]
	before, old, now := *l, &m.h.nodes[l.log], &m.h.nodes[log]
	if !m.rules.Unquarantine {
		l.cut |= old.writes
	}
	l.cut &^= now.writes
	if snapshot && m.rules.Overwrites {
		l.safety = 0
	}
	l.safety |= now.safety
	l.log = log
	m.content(s, i, before)
}

// content checks what a command did to the content of a life.
func (m *model) content(s *state, i int, before life) {
	l, old, now := s.lives[i], &m.h.nodes[before.log], &m.h.nodes[s.lives[i].log]
	if lost := (old.writes | before.cut) &^ (now.writes | l.cut); lost != 0 {
		m.fail("S4: %s dropped what it held: writes %b", name(m.cfg.Lives[i]), lost)
	}
	if before.safety&^l.safety != 0 || now.safety&^l.safety != 0 {
		m.fail("S5: the safety set of %s lacks a revocation", name(m.cfg.Lives[i]))
	}
	if !m.h.contains(l.log, m.h.prefix(before.log, before.confirmed)) {
		m.fail("S2: %s cut a confirmed entry", name(m.cfg.Lives[i]))
	}
	for id := l.log; id != 0; id = m.h.nodes[id].parent {
		n := &m.h.nodes[id]
		if id != l.log && n.entry.epoch == m.h.nodes[l.log].entry.epoch {
			continue
		}
		if k := s.slotOf(n.entry.epoch); k >= 0 && m.h.prefix(s.slots[k].log, n.seq) != id {
			m.fail("S1: %s holds %q, the home of %s wrote %q", name(m.cfg.Lives[i]), m.h.text(id), n.header.Epoch, m.h.text(s.slots[k].log))
			return
		}
	}
}
