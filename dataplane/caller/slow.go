package caller

import (
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"ringmain/controlplane/apikey"
	"ringmain/dataplane/view"
)

// slowLane is where bcrypt runs: a bounded pool behind a single flight, with
// memory of what failed and budgets for what may fail.
type slowLane struct {
	slots   chan struct{}
	queue   int64
	waiting atomic.Int64
	flights singleflight.Group

	mu    sync.Mutex
	wrong map[wrongKey]int64 // until, Unix milliseconds
	first purse              // for keys that are presented for the first time
	again purse              // for keys that come again after they found first empty
	asked repeats
}

// wrongKey is a key known to be wrong at one revision of its record.
type wrongKey struct {
	mac      [32]byte
	revision uint64
}

const (
	wrongFor   = time.Minute
	maxEntries = 1 << 14 // of each table
)

var (
	errQueueFull = errors.New("too many hashes wait")
	errSpent     = errors.New("too many hashes of this key id failed")
)

func newSlowLane(workers, queue int) *slowLane {
	return &slowLane{
		slots: make(chan struct{}, workers), queue: int64(queue), wrong: make(map[wrongKey]int64),
		first: newPurse(first), again: newPurse(again),
	}
}

// match is which of a key's hashes fits.
type match int

const (
	matchNone match = iota
	matchCurrent
	matchFormer
)

// hash checks key with bcrypt, once for all who wait for the same answer. A
// caller whose client leaves meanwhile still waits: the queue bounds how long.
func (c *Checker) hash(ref *view.KeyRef, key, remote string, mac [32]byte, inGrace bool, now time.Time) *Refusal {
	wrong := wrongKey{mac, ref.Revision}
	if c.slow.knows(wrong, now) {
		return errInvalid
	}
	by := payerOf(ref.ID, c.orgOf(ref), source(remote))
	hash, prev := ref.Hash, ref.PrevHash
	if !inGrace {
		prev = nil
	}
	// Of one record at one revision: what held for a former one may not now.
	flight := strconv.AppendUint(append([]byte(ref.ID), mac[:]...), ref.Revision, 10)
	flight = strconv.AppendBool(flight, inGrace)
	got, err, _ := c.slow.flights.Do(string(flight), func() (any, error) {
		if c.remembers(ref, mac) { // a flight ended since we looked
			return matchCurrent, nil
		}
		paid, err := c.slow.pay(wrong, by, now)
		if err != nil {
			return matchNone, err
		}
		m, err := c.slow.compare(hash, prev, key)
		c.slow.settle(paid, wrong, by, m == matchNone && err == nil, now)
		if !errors.Is(err, errQueueFull) {
			c.cfg.Counted(resultName(m, err))
		}
		if m == matchCurrent {
			c.remember(ref, mac)
		}
		return m, err
	})
	switch {
	case errors.Is(err, errSpent):
		return errBudget
	case err != nil:
		return errBusy
	case got == matchCurrent:
		return nil
	case got == matchFormer:
		c.former.put(ref, mac)
		return nil
	}
	return errInvalid
}

// orgOf is whose the key is; empty while the record of its project is on its way.
func (c *Checker) orgOf(ref *view.KeyRef) string {
	if project, ok := c.cfg.Store.View().Project(ref.Project); ok {
		return project.Project.Org
	}
	return ""
}

func resultName(m match, err error) string {
	switch {
	case err != nil:
		return "error"
	case m == matchNone:
		return "bad"
	}
	return "good"
}

// compare hashes when a slot is free.
func (s *slowLane) compare(hash, prev []byte, key string) (match, error) {
	if s.waiting.Add(1) > s.queue+int64(cap(s.slots)) {
		s.waiting.Add(-1)
		return matchNone, errQueueFull
	}
	defer s.waiting.Add(-1)
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	err := apikey.Match(hash, key)
	if err == nil {
		return matchCurrent, nil
	}
	if !errors.Is(err, apikey.ErrMismatch) {
		return matchNone, err
	}
	if len(prev) == 0 {
		return matchNone, nil
	}
	switch err := apikey.Match(prev, key); {
	case err == nil:
		return matchFormer, nil
	case errors.Is(err, apikey.ErrMismatch):
		return matchNone, nil
	default:
		return matchNone, err
	}
}

// knows says whether the key is known to be wrong.
func (s *slowLane) knows(wrong wrongKey, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	until, ok := s.wrong[wrong]
	return ok && now.UnixMilli() < until
}

// pay takes the price of a hash that fails out of a purse: before it runs, so
// that no more run at once than may fail. A key that comes again has a purse of
// its own, since whoever guesses does not try the same twice, but the owner of a
// key that nobody remembers does, and is not to be kept out by guesses at it.
func (s *slowLane) pay(wrong wrongKey, by payer, now time.Time) (*purse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.first.take(by, now)
	if err == nil {
		return &s.first, nil
	}
	if s.asked.again(wrong, now) && s.again.take(by, now) == nil {
		return &s.again, nil
	}
	return nil, err
}

// settle gives the price back unless the key was wrong.
func (s *slowLane) settle(paid *purse, wrong wrongKey, by payer, failed bool, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !failed {
		paid.give(by)
		return
	}
	evict(s.wrong, func(until int64) bool { return now.UnixMilli() >= until })
	s.wrong[wrong] = now.Add(wrongFor).UnixMilli()
}

// evict keeps m bounded: of a full map what is over goes first, else any one.
func evict[K comparable, V any](m map[K]V, over func(V) bool) {
	if len(m) < maxEntries {
		return
	}
	for k, v := range m {
		if over(v) {
			delete(m, k)
		}
	}
	for k := range m {
		if len(m) < maxEntries {
			return
		}
		delete(m, k)
	}
}

// formers remembers verdicts on secrets that a rotation replaced. They end at
// PrevUntil, which a shared verdict cannot say; so they stay on this node.
type formers struct {
	mu sync.RWMutex
	m  map[string]former
}

type former struct {
	revision uint64
	mac      [32]byte
	until    int64
}

func newFormers() *formers { return &formers{m: make(map[string]former)} }

// has compares in variable time: mac is keyed with a secret, so a caller
// cannot steer it towards the one remembered.
func (f *formers) has(ref *view.KeyRef, mac [32]byte) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	got, ok := f.m[ref.ID]
	return ok && got.revision == ref.Revision && got.mac == mac
}

func (f *formers) put(ref *view.KeyRef, mac [32]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	evict(f.m, func(former) bool { return false })
	f.m[ref.ID] = former{ref.Revision, mac, ref.PrevUntil}
}
