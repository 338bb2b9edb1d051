package feed

import (
	"context"
	"net/http"
	"slices"
	"sync"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
)

// Held says that a data node's worker was given a shard up to a point. Gossip
// says so too, within a second; this is said at once, of entries that revoke.
type Held struct {
	Region string             `cbor:"1,keyasint"`
	Node   string             `cbor:"2,keyasint"`
	Shard  controlplane.Shard `cbor:"3,keyasint"`
	Point  controlplane.Point `cbor:"4,keyasint"`
}

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
func (h *Hub) HeldBy(region, node string, shard controlplane.Shard) (controlplane.Point, bool) {
	h.holders.mu.Lock()
	defer h.holders.mu.Unlock()
	p, ok := h.holders.at[holder{region, node, shard}]
	return p, ok
}

// HeldChanged is closed when HeldBy may answer otherwise.
func (h *Hub) HeldChanged() <-chan struct{} {
	h.holders.mu.Lock()
	defer h.holders.mu.Unlock()
	return h.holders.wake
}

// keep takes what from may speak of, and returns it. What a data node says
// replaces what it said, even if that was further: it may have lost its state.
func (h *holders) keep(from identity.ID, all []Held) (news []Held) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, a := range all {
		own := from.Role == identity.RoleData && a.Node == from.Node
		if a.Region != from.Region || from.Role != identity.RoleControl && !own {
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

func (h *Hub) receiveHeld(w http.ResponseWriter, r *http.Request, peer identity.ID) error {
	var b Batch
	if err := h.decode(r, &b.Cluster, &b); err != nil {
		return err
	}
	if len(b.Verdicts)+len(b.Revocations) > 0 {
		return refuse(http.StatusBadRequest, "verdicts go to %s, revocations to %s", PathVerdicts, PathRevoke)
	}
	h.metrics.received.WithLabelValues("held").Add(float64(len(b.Held)))
	news := h.holders.keep(peer, h.real(peer, b.Held))
	if peer.Role == identity.RoleData {
		h.passOn(news)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// real leaves out shards that peer may not hold, or nobody: their names would
// take room without end.
func (h *Hub) real(peer identity.ID, all []Held) []Held {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return slices.DeleteFunc(all, func(a Held) bool {
		r := h.rings[a.Shard]
		return r == nil || !h.mayHold(peer, r)
	})
}

// passOn queues what a data node said for the other control nodes. What is lost
// on the way gossip brings.
func (h *Hub) passOn(news []Held) {
	for part := range slices.Chunk(news, maxBatch) {
		select {
		case h.out <- Batch{Held: part}:
		default:
			h.metrics.dropped.Inc()
		}
	}
}

// PostHeld tells the control node at addr (host:port) in region what this data
// node holds. A failure costs the asker of a revocation a second.
func PostHeld(ctx context.Context, client *http.Client, region, addr, cluster string, held []Held) error {
	for part := range slices.Chunk(held, maxBatch) {
		if err := post(ctx, client, region, addr, PathHeld, Batch{Cluster: cluster, Held: part}); err != nil {
			return err
		}
	}
	return nil
}
