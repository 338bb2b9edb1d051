package push

import (
	"sync"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
)

// holders are what data nodes said that they hold.
type holders struct {
	mu   sync.Mutex
	at   map[holder]controlplane.Point
	wake chan struct{} // closed and replaced when somebody says something
}

type holder struct {
	region, node string
	shard        controlplane.Shard
}

// maxHolders bounds what is remembered of data nodes: shards times nodes.
const maxHolders = 1 << 17

func newHolders() *holders {
	return &holders{at: make(map[holder]controlplane.Point), wake: make(chan struct{})}
}

// HeldBy is how far the data node was in the shard when it last said so here;
// false if it never did.
func (b *Board) HeldBy(region, node string, shard controlplane.Shard) (controlplane.Point, bool) {
	b.holders.mu.Lock()
	defer b.holders.mu.Unlock()
	p, ok := b.holders.at[holder{region, node, shard}]
	return p, ok
}

// HeldChanged is closed when HeldBy may answer otherwise.
func (b *Board) HeldChanged() <-chan struct{} {
	b.holders.mu.Lock()
	defer b.holders.mu.Unlock()
	return b.holders.wake
}

// keep takes what from may speak of, and returns it: of shards that holds knows,
// since other names would take room without end. What a data node says replaces
// what it said, even if that was further: it may have lost its state.
func (h *holders) keep(from identity.ID, holds func(controlplane.Shard) bool, all []feed.Held) (news []feed.Held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range all {
		own := from.Role == identity.RoleData && a.Node == from.Node
		if a.Region != from.Region || from.Role != identity.RoleControl && !own || !holds(a.Shard) {
			continue
		}
		key := holder{a.Region, a.Node, a.Shard}
		if _, known := h.at[key]; !known && len(h.at) >= maxHolders {
			clear(h.at) // gossip tells it within a second
		}
		h.at[key] = a.Point
		news = append(news, a)
	}
	if len(news) > 0 {
		close(h.wake)
		h.wake = make(chan struct{})
	}
	return news
}
