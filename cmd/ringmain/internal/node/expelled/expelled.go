// Package expelled keeps revoked nodes out of what a node talks to: connections
// and gossip, its own part in the cluster too. What is revoked it is told.
package expelled

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Nodes are those that are revoked.
type Nodes struct {
	bundle *identity.Bundle
	log    *slog.Logger

	told chan identity.ID // nodes whose connections are to be closed in lastWord

	mu    sync.Mutex
	known map[identity.ID]struct{}
	room  Gossip // nil until gossip is open
}

// Gossip has a node's word left out.
type Gossip interface{ Bar(region, node string) }

// lastWord is how long the connections with a revoked node go on, or twice that,
// so that it hears of its revocation over them: new ones are refused at once.
const lastWord = time.Second

// New knows of none yet.
func New(bundle *identity.Bundle, log *slog.Logger) *Nodes {
	return &Nodes{bundle: bundle, log: log, told: make(chan identity.ID, 1024), known: make(map[identity.ID]struct{})}
}

// Take refuses a node, if that is what was revoked.
func (e *Nodes) Take(r registry.Revocation) {
	region, role, node, ok := registry.ParseNodeID(r.ID)
	if r.Kind != registry.KindNode || !ok {
		return
	}
	id := identity.ID{Cluster: e.bundle.ID().Cluster, Region: region, Role: role, Node: node}
	e.bundle.Refuse(id)
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, known := e.known[id]; known {
		return
	}
	e.known[id] = struct{}{}
	select {
	case e.told <- id:
	default: // that many at once are not told
		e.bundle.Revoke(id)
	}
	if e.room != nil {
		e.room.Bar(region, node)
	}
}

// Hush keeps what is and will be revoked out of gossip, too.
func (e *Nodes) Hush(room Gossip) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.room = room
	for id := range e.known {
		room.Bar(id.Region, id.Node)
	}
}

// Part ends what there is with revoked nodes, a while after they were refused.
func (e *Nodes) Part(ctx context.Context) {
	for {
		var all []identity.ID
		select {
		case id := <-e.told:
			all = append(all, id)
		case <-ctx.Done():
			return
		}
		for len(e.told) > 0 {
			all = append(all, <-e.told)
		}
		select {
		case <-time.After(lastWord):
		case <-ctx.Done():
			return
		}
		for _, id := range all {
			e.bundle.Revoke(id)
		}
	}
}

// Wait returns an error once this node itself is revoked; nil if ctx ends first.
func (e *Nodes) Wait(ctx context.Context) error {
	select {
	case <-e.bundle.Revoked():
		e.log.Error("this node is revoked, for good: it stops serving; give the machine another name, and a certificate for that", "node", e.bundle.ID().String())
		return fmt.Errorf("this node stops serving: %s: %w", e.bundle.ID(), identity.ErrRevoked)
	case <-ctx.Done():
		return nil
	}
}

// Follow takes the revocations that the state of a control node holds, each
// time that kick says there may be others.
func (e *Nodes) Follow(ctx context.Context, view func(func(*ledger.State)), kick <-chan struct{}) {
	for {
		var all []registry.Revocation
		view(func(s *ledger.State) { all = s.Revocations(controlplane.ShardGlobal) })
		for _, r := range all {
			e.Take(r)
		}
		select {
		case <-kick:
		case <-ctx.Done():
			return
		}
	}
}
