package push

import (
	"github.com/prometheus/client_golang/prometheus"

	"ringmain/controlplane/feed"
)

// GatherFor is how long verdicts wait for company.
const GatherFor = gatherFor

// Put takes a verdict as if it had come before the key's record.
func (b *Board) Put(v feed.Verdict) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.verdicts.put(v.Key, v)
}

// Has reports whether there is a verdict of key.
func (b *Board) Has(key string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, ok := b.verdicts.get(key)
	return ok
}

// Verdicts is how many are kept.
func (b *Board) Verdicts() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.verdicts.len()
}

// Hints is how many are kept.
func (b *Board) Hints() int {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.hints.len()
}

// Dropped counts what a peer could not be given.
func (b *Board) Dropped() prometheus.Counter { return b.metrics.dropped }
