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
// memory of what failed.
type slowLane struct {
	slots   chan struct{}
	queue   int64
	waiting atomic.Int64
	flights singleflight.Group

	mu       sync.Mutex
	failures map[string]bucket  // by id and source
	wrong    map[wrongKey]int64 // until, Unix milliseconds
}

// wrongKey is a key known to be wrong at one revision of its record.
type wrongKey struct {
	mac      [32]byte
	revision uint64
}

// bucket is a failure budget: it holds failBurst and regains one each failEvery.
type bucket struct {
	spent float64
	at    time.Time
}

const (
	failBurst  = 10
	failEvery  = 6 * time.Second
	wrongFor   = time.Minute
	maxEntries = 1 << 14 // of each table
)

var errQueueFull = errors.New("too many hashes wait")

func newSlowLane(workers, queue int) *slowLane {
	return &slowLane{
		slots: make(chan struct{}, workers), queue: int64(queue),
		failures: make(map[string]bucket), wrong: make(map[wrongKey]int64),
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
	budget := ref.ID + " " + source(remote)
	if known, spent := c.slow.judge(wrong, budget, now); known {
		return errInvalid
	} else if spent {
		return errBudget
	}
	hash, prev := ref.Hash, ref.PrevHash
	if !inGrace {
		prev = nil
	}
	// Of one record at one revision: what held for a former one may not now.
	flight := strconv.AppendUint(append([]byte(ref.ID), mac[:]...), ref.Revision, 10)
	flight = strconv.AppendBool(flight, inGrace)
	got, err, _ := c.slow.flights.Do(string(flight), func() (any, error) {
		m, err := c.slow.compare(hash, prev, key)
		if m == matchNone && err == nil {
			c.slow.failed(wrong, budget, now)
		}
		if !errors.Is(err, errQueueFull) {
			c.cfg.Counted(resultName(m, err))
		}
		return m, err
	})
	switch {
	case err != nil:
		return errBusy
	case got == matchCurrent:
		c.remember(ref, mac)
		return nil
	case got == matchFormer:
		c.former.put(ref, mac)
		return nil
	}
	return errInvalid
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

// judge says whether the key is known to be wrong, or the budget is spent.
func (s *slowLane) judge(wrong wrongKey, budget string, now time.Time) (known, spent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until, ok := s.wrong[wrong]; ok && now.UnixMilli() < until {
		return true, false
	}
	return false, s.failures[budget].regained(now).spent >= failBurst
}

// regained is b with what it regained until now.
func (b bucket) regained(now time.Time) bucket {
	back := float64(now.Sub(b.at)) / float64(failEvery)
	return bucket{max(0, b.spent-back), now}
}

func (s *slowLane) failed(wrong wrongKey, budget string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	evict(s.wrong, func(until int64) bool { return now.UnixMilli() >= until })
	evict(s.failures, func(b bucket) bool { return b.regained(now).spent == 0 })
	s.wrong[wrong] = now.Add(wrongFor).UnixMilli()
	b := s.failures[budget].regained(now)
	b.spent++
	s.failures[budget] = b
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
