package node

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// heldTeller tells a control node at once that this data node's worker was given
// an entry that revokes: somebody waits to hear it. Gossip says it a second later.
type heldTeller struct {
	given  atomic.Pointer[func() controlplane.Position] // nil until the keeper runs
	queue  chan feed.Held
	region string
	node   string
	post   func(context.Context, []feed.Held) error
	log    *slog.Logger
}

const (
	heldQueue = 256             // more wait for gossip
	tellIn    = 3 * time.Second // one try
)

// after is sink, and what it took is told. The caller's next frame does not wait.
func (t *heldTeller) after(sink func(*feed.Frame) error) func(*feed.Frame) error {
	return func(f *feed.Frame) error {
		err := sink(f)
		if err != nil || f.Type != feed.FrameEntry {
			return err
		}
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil || !slices.ContainsFunc(e.Changes, func(c registry.Change) bool { return c.Op == registry.OpRevoke }) {
			return err
		}
		given := t.given.Load()
		if given == nil {
			return nil
		}
		if at := (*given)()[e.Shard]; at.Epoch == e.Epoch && at.Seq >= e.Seq {
			select {
			case t.queue <- feed.Held{Region: t.region, Node: t.node, Shard: e.Shard, Point: at}:
			default:
			}
		}
		return nil
	}
}

// run tells until ctx ends, the newest of each shard.
func (t *heldTeller) run(ctx context.Context) {
	for {
		var newest map[controlplane.Shard]feed.Held
		select {
		case h := <-t.queue:
			newest = map[controlplane.Shard]feed.Held{h.Shard: h}
		case <-ctx.Done():
			return
		}
		for len(t.queue) > 0 {
			h := <-t.queue
			newest[h.Shard] = h
		}
		all := make([]feed.Held, 0, len(newest))
		for _, h := range newest {
			all = append(all, h)
		}
		try, cancel := context.WithTimeout(ctx, tellIn)
		if err := t.post(try, all); err != nil && ctx.Err() == nil {
			t.log.Debug("no control node was told at once which revocations this node has", "err", err)
		}
		cancel()
	}
}
