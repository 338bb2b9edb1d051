// Package push carries what never waits for a commit: verdicts of keys,
// revocations before the log has them, and what data nodes say that they hold.
// A Board keeps them in bounded tables, for the watchers of its node, and tells
// the other control nodes of the cluster. Nothing of it reaches Raft or a disk.
//
// What may not enter: the history, how watchers are served, and who may hold
// which shard: the Board asks.
package push

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Peer is another control node.
type Peer struct{ Region, Node, Addr string }

// Config configures a Board. Zero values take the defaults in brackets.
type Config struct {
	Cluster string
	Region  string
	Node    string
	Source  interface{ View(func(*ledger.State)) } // the state beside it

	// MayHold says which of the shards that this node holds peer may hold too,
	// as of now.
	MayHold func(peer identity.ID) func(controlplane.Shard) bool
	// Changed is called once there is something new to take. It must not block.
	Changed func()

	// Peers are the other control nodes of the cluster, in all regions. It is
	// asked often and must not block. [none]
	Peers func() []Peer
	// HTTP gives the client for the peers of a region: mutual TLS, with the
	// control nodes of that region and no others, because what is posted is
	// told before an answer says by whom it was heard. Needed with Peers.
	HTTP func(region string) *http.Client

	// Hinted is told of each revocation that is announced here before it is
	// committed, or without. It must not block. [nobody]
	Hinted func(registry.Revocation)

	Verdicts int // kept in memory, newest win [262,144]
	Hints    int // revocation hints kept until committed, newest win [16,384]

	Logger     *slog.Logger          // [discards]
	Registerer prometheus.Registerer // [nobody reads the metrics]
}

func (c *Config) fill() error {
	if c.Cluster == "" || c.Region == "" || c.Source == nil || c.MayHold == nil || c.Changed == nil {
		return errors.New("feed push: cluster, region, source, MayHold and Changed are needed")
	}
	if c.Peers != nil && c.HTTP == nil {
		return errors.New("feed push: peers need HTTP clients")
	}
	if c.Peers == nil {
		c.Peers = func() []Peer { return nil }
	}
	if c.Hinted == nil {
		c.Hinted = func(registry.Revocation) {}
	}
	c.Verdicts = cmp.Or(c.Verdicts, 256<<10)
	c.Hints = cmp.Or(c.Hints, 16<<10)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	return nil
}

// Board is one control node's.
type Board struct {
	cfg     Config
	metrics *metrics
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	group   *errgroup.Group
	out     chan feed.Batch // to every other control node

	mu       sync.RWMutex // guards what follows; held for microseconds only
	closed   bool
	asked    bool // a peer's tables were, or are being, asked for
	verdicts *shelf[string, feed.Verdict]
	hints    *shelf[hintKey, registry.Revocation]

	holders *holders
}

type hintKey struct {
	kind registry.Kind
	id   string
}

// Open makes an empty one. It does not touch cfg.Source before it is told
// something.
func Open(ctx context.Context, cfg Config) (*Board, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	b := &Board{
		cfg:      cfg,
		metrics:  newMetrics(),
		out:      make(chan feed.Batch, 1024),
		verdicts: newShelf[string, feed.Verdict](cfg.Verdicts),
		hints:    newShelf[hintKey, registry.Revocation](cfg.Hints),
		holders:  newHolders(),
	}
	if err := cfg.Registerer.Register(b.metrics); err != nil {
		return nil, err
	}
	ctx, b.cancel = context.WithCancel(ctx)
	b.group, b.ctx = errgroup.WithContext(ctx)
	b.group.Go(func() error { return b.forward(b.ctx) })
	return b, nil
}

// Close stops telling others, and returns the first failure.
func (b *Board) Close() error {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	b.cfg.Registerer.Unregister(b.metrics)
	return b.group.Wait()
}

// Inherit begins to ask peers for what they know, once.
func (b *Board) Inherit() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed && !b.asked {
		b.asked = true
		b.group.Go(func() error { return b.inherit(b.ctx) })
	}
}

// PushVerdicts shares verdicts made at this node: with its watchers, and with
// every other control node. It never blocks; a verdict that is lost on the way
// costs somebody one bcrypt.
func (b *Board) PushVerdicts(verdicts []feed.Verdict) {
	b.keep(b.own(), feed.Batch{Verdicts: verdicts})
}

// PushRevocations tells data nodes everywhere of revocations, before or
// without a commit: call it on receipt. It never blocks. Hints are kept, and
// repeated to each new watcher, until the revocation is committed.
func (b *Board) PushRevocations(revocations []registry.Revocation) {
	b.keep(b.own(), feed.Batch{Revocations: revocations})
}

// Announced reports whether a revocation that is not committed here yet was
// pushed to this board.
func (b *Board) Announced(kind registry.Kind, id string) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, ok := b.hints.get(hintKey{kind, id})
	return ok
}

// own is this node as a peer of itself.
func (b *Board) own() identity.ID {
	return identity.ID{Cluster: b.cfg.Cluster, Region: b.cfg.Region, Role: identity.RoleControl, Node: b.cfg.Node}
}

// Receive takes a verdict or hint frame that another control node sent.
func (b *Board) Receive(from identity.ID, f *feed.Frame) {
	switch f.Type {
	case feed.FrameVerdicts:
		b.keep(from, feed.Batch{Verdicts: f.Verdicts})
	case feed.FrameRevocation:
		b.keep(from, feed.Batch{Revocations: []registry.Revocation{*f.Revocation}})
	}
}

// Keep takes what another node posted.
func (b *Board) Keep(from identity.ID, told feed.Batch) {
	b.metrics.count(told)
	b.keep(from, told)
}

// keep takes what from may speak of. What a data node or this node says is
// forwarded; what another control node says is not, since that told everybody.
func (b *Board) keep(from identity.ID, told feed.Batch) {
	if empty(told) {
		return
	}
	hears, holds := b.hears(from)
	news := feed.Batch{
		Verdicts:    b.keepVerdicts(hears, told.Verdicts),
		Revocations: b.keepHints(hears, told.Revocations),
		Held:        b.holders.keep(from, holds, told.Held),
	}
	if from.Role == identity.RoleData || from == b.own() {
		b.offer(news)
	}
}

// hears tells of which shards peer may hear and speak: nodes of this region of
// all, another region's of those that it may hold; and which those are. The
// shard "" concerns every node of the cluster.
func (b *Board) hears(peer identity.ID) (hears, holds func(controlplane.Shard) bool) {
	holds = b.cfg.MayHold(peer)
	return func(shard controlplane.Shard) bool {
		return shard == "" || peer.Region == b.cfg.Region || holds(shard)
	}, holds
}

// keyShard is the pinned shard of a key, as its id says; "" for unpinned keys.
func keyShard(id string) controlplane.Shard {
	parts := strings.SplitN(id, "_", 3)
	if len(parts) != 3 || parts[1] == controlplane.JurisdictionAny {
		return ""
	}
	return controlplane.ShardPinned(parts[1])
}

// keepVerdicts puts into the table what is not overtaken by the key's record,
// and returns what was news.
func (b *Board) keepVerdicts(hears func(controlplane.Shard) bool, verdicts []feed.Verdict) (news []feed.Verdict) {
	if len(verdicts) == 0 {
		return nil
	}
	valid := make([]feed.Verdict, 0, len(verdicts))
	b.cfg.Source.View(func(s *ledger.State) {
		for _, v := range verdicts {
			if _, revoked := s.Revoked(registry.KindKey, v.Key); revoked || !hears(keyShard(v.Key)) {
				continue
			}
			if rec, ok := s.Get(registry.KindKey, v.Key); !ok || rec.Meta.Revision <= v.Revision {
				valid = append(valid, v)
			}
		}
	})
	b.mu.Lock()
	for _, v := range valid {
		if old, ok := b.verdicts.get(v.Key); ok && (old.Revision > v.Revision || old == v) {
			continue
		}
		b.verdicts.put(v.Key, v)
		news = append(news, v)
	}
	b.mu.Unlock()
	if len(news) > 0 {
		b.cfg.Changed()
	}
	return news
}

// keepHints is keepVerdicts for revocations. Known ones, committed or not, are no news.
func (b *Board) keepHints(hears func(controlplane.Shard) bool, revocations []registry.Revocation) (news []registry.Revocation) {
	if len(revocations) == 0 {
		return nil
	}
	valid := make([]registry.Revocation, 0, len(revocations))
	b.cfg.Source.View(func(s *ledger.State) {
		for _, r := range revocations {
			if _, done := s.Revoked(r.Kind, r.ID); !done && r.ID != "" && hears(r.Shard) {
				valid = append(valid, r)
			}
		}
	})
	b.mu.Lock()
	for _, r := range valid {
		key := hintKey{r.Kind, r.ID}
		if _, ok := b.hints.get(key); ok {
			continue
		}
		b.hints.put(key, r)
		if r.Kind == registry.KindKey {
			b.verdicts.drop(r.ID)
		}
		news = append(news, r)
	}
	b.mu.Unlock()
	if len(news) > 0 {
		b.cfg.Changed()
	}
	for _, r := range news {
		b.cfg.Hinted(r)
	}
	return news
}

// Settle drops what applied entries overtake. Call it once watchers can take
// the entries.
func (b *Board) Settle(entries []*registry.Entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range entries {
		for i := range e.Changes {
			b.settle(e, &e.Changes[i])
		}
	}
}

func (b *Board) settle(e *registry.Entry, c *registry.Change) {
	switch c.Op {
	case registry.OpRevoke:
		b.hints.drop(hintKey{c.Kind, c.ID})
		if c.Kind == registry.KindKey {
			b.verdicts.drop(c.ID)
		}
	case registry.OpDelete:
		if c.Kind == registry.KindKey {
			b.verdicts.drop(c.ID)
		}
	case registry.OpPut:
		if c.Record == nil || c.Record.Kind != registry.KindKey {
			return
		}
		if v, ok := b.verdicts.get(c.Record.Meta.ID); ok && v.Revision < e.Seq {
			b.verdicts.drop(v.Key)
		}
	case registry.OpOpen:
	}
}

// Cursor is how far somebody has taken. The zero value begins with all there is.
type Cursor struct{ hints, verdicts uint64 }

// Urgent reports whether there are revocations after the cursor.
func (b *Board) Urgent(at Cursor) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.hints.next != at.hints
}

// Take returns what peer may hear after the cursor, which moves on, and whether
// there is more.
func (b *Board) Take(at *Cursor, peer identity.ID, verdicts bool) (news feed.Batch, more bool) {
	var left bool
	b.mu.RLock()
	news.Revocations, at.hints, more = b.hints.after(at.hints, feed.MaxBatch)
	if verdicts {
		news.Verdicts, at.verdicts, left = b.verdicts.after(at.verdicts, feed.MaxBatch)
	}
	b.mu.RUnlock()
	if empty(news) {
		return news, more || left
	}
	hears, _ := b.hears(peer) // asked after: whom a shard concerns is known when something is said of it
	news.Revocations = slices.DeleteFunc(news.Revocations, func(r registry.Revocation) bool { return !hears(r.Shard) })
	news.Verdicts = slices.DeleteFunc(news.Verdicts, func(v feed.Verdict) bool { return !hears(keyShard(v.Key)) })
	return news, more || left
}
