package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// expelled keeps revoked nodes out of what this one talks to.
type expelled struct {
	bundle *identity.Bundle
	log    *slog.Logger

	told chan identity.ID // nodes whose connections are to be closed in lastWord

	mu    sync.Mutex
	known map[identity.ID]struct{}
	room  *gossipRoom // nil until gossip is open
}

// lastWord is how long the connections with a revoked node go on, or twice that,
// so that it hears of its revocation over them: new ones are refused at once.
const lastWord = time.Second

func newExpelled(bundle *identity.Bundle, log *slog.Logger) *expelled {
	return &expelled{bundle: bundle, log: log, told: make(chan identity.ID, 1024), known: make(map[identity.ID]struct{})}
}

// take refuses a node, if that is what was revoked.
func (e *expelled) take(r registry.Revocation) {
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

// hush keeps what is and will be revoked out of gossip, too.
func (e *expelled) hush(room *gossipRoom) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.room = room
	for id := range e.known {
		room.Bar(id.Region, id.Node)
	}
}

// part ends what there is with revoked nodes, a while after they were refused.
func (e *expelled) part(ctx context.Context) {
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

// wait returns an error once this node itself is revoked; nil if ctx ends first.
func (e *expelled) wait(ctx context.Context) error {
	select {
	case <-e.bundle.Revoked():
		e.log.Error("this node is revoked, for good: it stops serving; give the machine another name, and a certificate for that", "node", e.bundle.ID().String())
		return fmt.Errorf("this node stops serving: %s: %w", e.bundle.ID(), identity.ErrRevoked)
	case <-ctx.Done():
		return nil
	}
}

// follow takes the revocations that the state of a control node holds, each
// time that kick says there may be others.
func (e *expelled) follow(ctx context.Context, view func(func(*ledger.State)), kick <-chan struct{}) {
	for {
		var all []registry.Revocation
		view(func(s *ledger.State) { all = s.Revocations(controlplane.ShardGlobal) })
		for _, r := range all {
			e.take(r)
		}
		select {
		case <-kick:
		case <-ctx.Done():
			return
		}
	}
}

// client calls control nodes; what it has with one that is revoked ends.
func client(b *identity.Bundle, allow func(identity.ID) error) *http.Client {
	c := feed.NewHTTPClient(b.Client([]string{"h2"}, allow))
	if t, ok := c.Transport.(*http.Transport); ok {
		t.DialTLSContext = b.Dialer(&net.Dialer{Timeout: 3 * time.Second}, []string{"h2"}, allow)
	}
	return c
}
