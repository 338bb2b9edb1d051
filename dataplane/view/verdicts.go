package view

import (
	"sync"

	"ringmain/controlplane/feed"
)

// Verdicts remembers which keys were checked against their bcrypt hash, here
// or on another node. It lives in memory only. Safe for concurrent use.
type Verdicts struct {
	limit  int // ids per piece
	pieces [64]verdictPiece
}

type verdictPiece struct {
	mu sync.RWMutex
	m  map[string]VerdictSet
}

// VerdictSet is what is known of one key: up to two codes, because a rotated
// key has two good secrets for a while.
type VerdictSet struct {
	Revision uint64 // of the key record they were checked against; at any other revision they say nothing
	Count    int
	MACs     [2][32]byte // the first Count; the newest last
}

// defaultVerdicts is how many keys a table remembers: about 40 MB when full.
const defaultVerdicts = 1 << 18

func newVerdicts(limit int) *Verdicts {
	if limit <= 0 {
		limit = defaultVerdicts
	}
	t := &Verdicts{limit: max(1, limit/len(Verdicts{}.pieces))}
	for i := range t.pieces {
		t.pieces[i].m = make(map[string]VerdictSet)
	}
	return t
}

// piece picks by the id's last bytes, which are random.
func (t *Verdicts) piece(id string) *verdictPiece {
	var h uint32
	for i := max(0, len(id)-4); i < len(id); i++ {
		h = h*31 + uint32(id[i])
	}
	return &t.pieces[h%uint32(len(t.pieces))]
}

// Get returns what is known of key id.
func (t *Verdicts) Get(id string) (VerdictSet, bool) {
	p := t.piece(id)
	p.mu.RLock()
	defer p.mu.RUnlock()
	set, ok := p.m[id]
	return set, ok
}

// Put adds a verdict and reports whether it was new. One of an older revision
// is ignored; a newer revision forgets the older ones. A full table forgets
// some other key.
func (t *Verdicts) Put(v feed.Verdict) bool {
	p := t.piece(v.Key)
	p.mu.Lock()
	defer p.mu.Unlock()
	set, known := p.m[v.Key]
	if known && v.Revision < set.Revision {
		return false
	}
	if !known || v.Revision > set.Revision {
		set = VerdictSet{Revision: v.Revision}
	}
	// Known codes are compared in variable time: the sender is a node of this
	// cluster, and what it sends is not a guess of a client's.
	for i := range set.Count {
		if set.MACs[i] == v.MAC {
			return false
		}
	}
	if set.Count == len(set.MACs) {
		copy(set.MACs[:], set.MACs[1:])
		set.Count--
	}
	set.MACs[set.Count] = v.MAC
	set.Count++
	if !known && len(p.m) >= t.limit {
		for other := range p.m {
			delete(p.m, other)
			break
		}
	}
	p.m[v.Key] = set
	return true
}

// All returns every verdict of t, for a node that starts with none.
func (t *Verdicts) All() []feed.Verdict {
	var all []feed.Verdict
	for i := range t.pieces {
		p := &t.pieces[i]
		p.mu.RLock()
		for id, set := range p.m {
			for _, mac := range set.MACs[:set.Count] {
				all = append(all, feed.Verdict{Key: id, Revision: set.Revision, MAC: mac})
			}
		}
		p.mu.RUnlock()
	}
	return all
}
