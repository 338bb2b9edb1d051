package feed

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// Source is the state beside a hub. View calls its argument under whatever
// lock guards the state and returns after it.
type Source interface {
	View(func(*registry.State))
}

// HubConfig configures a Hub. Zero values take the defaults in brackets.
type HubConfig struct {
	Cluster string
	Region  string
	Node    string
	Source  Source

	// Contact says when this node last knew that it was current: now on a
	// leader; of others, Abreast knows. Watchers leave a node whose contact is
	// too long ago. [always now]
	Contact func() time.Time
	// Leads says whether this node leads its region, so that others may compare
	// their copies with its own. [it does not]
	Leads func() bool
	// Members is who runs this region's control plane, as watchers read it;
	// empty = not known now. [watchers are not told]
	Members func() []byte

	// Peers are the other control nodes of the cluster, in all regions, to
	// which verdicts and revocation hints are forwarded. It is asked often and
	// must not block. [none]
	Peers func() []Peer
	// HTTP calls them: mutual TLS, control nodes of any region. Needed with Peers.
	HTTP *http.Client

	// Hinted is told of each revocation that is announced here before it is
	// committed, or without. It must not block. [nobody]
	Hinted func(registry.Revocation)

	Ring         int           // entries held per shard [65,536]
	RingBytes    int           // and their bytes [32 MiB]
	Watchers     int           // at a time; more are refused with 503 [4,096]
	Snapshots    int           // watchers taking snapshots at a time; more are refused with 503 [32]
	SnapshotKeep time.Duration // how long an encoded snapshot waits for others that need it [5 s]
	Heartbeat    time.Duration // [1 s]
	WriteTimeout time.Duration // a watcher that takes nothing for so long is dropped [15 s]
	Verdicts     int           // kept in memory, newest win [262,144]
	Hints        int           // revocation hints kept until committed, newest win [16,384]

	Logger     *slog.Logger          // [discards]
	Registerer prometheus.Registerer // nil = no metrics
}

// Peer is another control node.
type Peer struct{ Region, Node, Addr string }

func (c *HubConfig) fill() error {
	if c.Cluster == "" || c.Region == "" || c.Source == nil {
		return fmt.Errorf("feed hub: cluster, region and source are needed")
	}
	if c.Peers != nil && c.HTTP == nil {
		return fmt.Errorf("feed hub: peers need an HTTP client")
	}
	def(&c.Ring, 64<<10)
	def(&c.RingBytes, 32<<20)
	def(&c.Watchers, 4096)
	def(&c.Snapshots, 32)
	def(&c.SnapshotKeep, 5*time.Second)
	def(&c.Heartbeat, time.Second)
	def(&c.WriteTimeout, 15*time.Second)
	def(&c.Verdicts, 256<<10)
	def(&c.Hints, 16<<10)
	if c.Contact == nil {
		c.Contact = time.Now
	}
	if c.Hinted == nil {
		c.Hinted = func(registry.Revocation) {}
	}
	if c.Peers == nil {
		c.Peers = func() []Peer { return nil }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Hub serves feeds of one control node's state.
type Hub struct {
	cfg     HubConfig
	metrics hubMetrics
	mux     *http.ServeMux
	begin   sync.Once       // inherits the tables of a peer
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	group   *errgroup.Group
	serving sync.WaitGroup // handlers under way
	out     chan Batch     // to every other control node
	slots   chan struct{}  // one per watcher taking snapshots

	snapMu sync.Mutex
	snaps  map[controlplane.Shard]*snapshot

	memberMu  sync.Mutex
	members   []byte // as of membersAt, encoded once for all watchers
	membersAt time.Time

	mu       sync.RWMutex // guards what follows; held for microseconds only
	closed   bool
	rings    map[controlplane.Shard]*ring
	resets   uint64 // how often a ring lost what it knew
	watchers int
	wake     chan struct{} // closed and replaced when something arrives
	verdicts *shelf[string, Verdict]
	hints    *shelf[hintKey, registry.Revocation]

	holders *holders
}

type hintKey struct {
	kind registry.Kind
	id   string
}

// OpenHub starts a Hub. It does not touch cfg.Source before Handler, Push…, or
// a request asks for it, so that Applied may be called while the source is
// still being opened.
func OpenHub(ctx context.Context, cfg HubConfig) (*Hub, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h := &Hub{
		cfg:      cfg,
		out:      make(chan Batch, 1024),
		slots:    make(chan struct{}, cfg.Snapshots),
		snaps:    make(map[controlplane.Shard]*snapshot),
		rings:    make(map[controlplane.Shard]*ring),
		wake:     make(chan struct{}),
		verdicts: newShelf[string, Verdict](cfg.Verdicts),
		hints:    newShelf[hintKey, registry.Revocation](cfg.Hints),
		holders:  newHolders(),
	}
	if err := h.metrics.register(cfg.Registerer); err != nil {
		return nil, err
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.group, h.ctx = errgroup.WithContext(ctx)
	h.group.Go(func() error { return h.forward(h.ctx) })
	h.mux = h.routes()
	return h, nil
}

// Close ends every stream, waits for the handlers and returns the first failure.
func (h *Hub) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.serving.Wait()
	h.snapMu.Lock()
	for _, s := range h.snaps {
		s.expire.Stop()
	}
	clear(h.snaps)
	h.snapMu.Unlock()
	h.metrics.unregister(h.cfg.Registerer)
	return h.group.Wait()
}

// Applied tells the hub what a command did. Call it for every command, in
// apply order. It never waits for a watcher.
func (h *Hub) Applied(o registry.Outcome, sender controlplane.Epoch) {
	if len(o.Reset) > 0 {
		h.Reset(o.Reset...)
	}
	h.promise(o.Reports)
	if len(o.Effective) > 0 {
		h.Publish(sender, o.Effective)
	}
}

// Publish adds applied entries, sent by a home whose epoch is sender (zero:
// the epoch of each entry), to the rings and wakes the watchers. Call it in
// apply order. It never waits for a watcher.
func (h *Hub) Publish(sender controlplane.Epoch, entries []*registry.Entry) {
	items := make([]item, len(entries))
	for i, e := range entries {
		it := item{point: e.Point(), sender: sender}
		if e.Epoch.Compare(sender) > 0 {
			it.sender = e.Epoch
		}
		it.frame = h.encodeEntry(e, it.sender)
		items[i] = it
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, e := range entries {
		r := h.ring(e.Shard)
		if items[i].frame == nil {
			r.clear() // the watchers get it with a snapshot
			h.resets++
		} else {
			r.add(e, items[i], h.cfg.Ring, h.cfg.RingBytes)
		}
		r.follow(items[i].sender, e)
		h.settle(e)
	}
	h.notify()
}

// promise notes epochs promised without an entry: a shard whose home this
// region was is no longer offered to other regions.
func (h *Hub) promise(reports []registry.Report) {
	if len(reports) == 0 {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, rep := range reports {
		if r := h.rings[rep.Shard]; r != nil && rep.Promised.Compare(r.epoch) > 0 {
			r.epoch = rep.Promised
		}
	}
}

func (h *Hub) encodeEntry(e *registry.Entry, sender controlplane.Epoch) []byte {
	b, err := registry.EncodeEntry(e)
	if err == nil {
		b, err = appendFrame(nil, &Frame{Type: FrameEntry, Shard: e.Shard, Sender: sender, Entry: b})
	}
	if err != nil {
		h.cfg.Logger.Error("feed: entry cannot be sent as such; watchers take a snapshot",
			"shard", e.Shard, "seq", e.Seq, "err", err)
		return nil
	}
	return b
}

// settle drops verdicts and hints that e overtakes. h.mu is held.
func (h *Hub) settle(e *registry.Entry) {
	for i := range e.Changes {
		switch c := &e.Changes[i]; c.Op {
		case registry.OpRevoke:
			h.hints.drop(hintKey{c.Kind, c.ID})
			if c.Kind == registry.KindKey {
				h.verdicts.drop(c.ID)
			}
		case registry.OpDelete:
			if c.Kind == registry.KindKey {
				h.verdicts.drop(c.ID)
			}
		case registry.OpPut:
			if c.Record == nil || c.Record.Kind != registry.KindKey {
				continue
			}
			if v, ok := h.verdicts.get(c.Record.Meta.ID); ok && v.Revision < e.Seq {
				h.verdicts.drop(v.Key)
			}
		case registry.OpOpen:
		}
	}
}

// Reset forgets what the rings hold of the given shards, or of all if none is
// given, because the state took over a snapshot. Call it in apply order, after
// the state has changed. Watchers that are behind take a snapshot.
func (h *Hub) Reset(shards ...controlplane.Shard) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.resets++
	if len(shards) == 0 {
		for s := range h.rings {
			shards = append(shards, s)
		}
	}
	for _, s := range shards {
		*h.ring(s) = ring{}
	}
	h.notify()
}

// ring returns the shard's ring, new if need be. h.mu is held.
func (h *Hub) ring(shard controlplane.Shard) *ring {
	r := h.rings[shard]
	if r == nil {
		r = new(ring)
		h.rings[shard] = r
	}
	return r
}

// notify wakes everybody who waits on h.wake. h.mu is held.
func (h *Hub) notify() {
	close(h.wake)
	h.wake = make(chan struct{})
}

// refresh completes the rings from the state: the point of those that nothing
// was published to since the start or a reset, and who may see each shard. A
// ring whose shard the state does not hold (any more) is dropped. At its end
// every ring is complete, until the next reset.
func (h *Hub) refresh() {
	for {
		h.mu.RLock()
		resets := h.resets
		h.mu.RUnlock()
		var infos []registry.ShardInfo
		h.cfg.Source.View(func(s *registry.State) { infos = s.Shards() })
		if h.prime(infos, resets) {
			return
		}
	}
}

// steady calls f with h.mu held, by way of lock, and every ring complete: what
// f offers is all that the state holds, and what it takes it takes once. A
// reset may come at any moment, so it looks again until there was none.
func (h *Hub) steady(lock sync.Locker, f func()) {
	for !h.ifComplete(lock, f) {
		h.refresh()
	}
}

func (h *Hub) ifComplete(lock sync.Locker, f func()) bool {
	lock.Lock()
	defer lock.Unlock()
	for _, r := range h.rings {
		if !r.complete() {
			return false
		}
	}
	f()
	return true
}

// prime is false if a reset made infos old in the meantime.
func (h *Hub) prime(infos []registry.ShardInfo, resets uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.resets != resets {
		return false
	}
	for _, info := range infos {
		r := h.ring(info.Shard)
		if !r.known {
			r.known, r.base = true, info.Last
		}
		if !r.primed {
			r.primed, r.members, r.home = true, slices.Clone(info.Members), info.Home
		}
		if info.Epoch.Compare(r.epoch) > 0 {
			r.epoch = info.Epoch
		}
	}
	maps.DeleteFunc(h.rings, func(_ controlplane.Shard, r *ring) bool { return !r.complete() })
	return true
}

// holdsAny reports whether the state, as of the last refresh, holds a shard. A
// region's first entries open the shards it is home of, so a node without any
// has not heard from its leader yet, and nobody should wait for it.
func (h *Hub) holdsAny() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.rings) > 0
}

// mayHold reports whether peer may learn what r's shard holds: nodes of this
// region all that the region holds, another region's control nodes what their
// region is a member of. What the peer asks for plays no part. h.mu is held.
func (h *Hub) mayHold(peer identity.ID, r *ring) bool {
	if peer.Region == h.cfg.Region {
		return true
	}
	return peer.Role == identity.RoleControl && r != nil && slices.Contains(r.members, peer.Region)
}

// mayHear is mayHold for a verdict or hint that concerns shard; "" concerns
// every node of the cluster. h.mu is held.
func (h *Hub) mayHear(peer identity.ID, shard controlplane.Shard) bool {
	return shard == "" || h.mayHold(peer, h.rings[shard])
}

// present is cfg.Members, asked no more often than a heartbeat needs.
func (h *Hub) present() []byte {
	h.memberMu.Lock()
	defer h.memberMu.Unlock()
	if now := time.Now(); now.Sub(h.membersAt) >= h.cfg.Heartbeat/2 {
		h.members, h.membersAt = h.cfg.Members(), now
	}
	return h.members
}

// inheritOnce starts asking peers for their tables, unless the hub is closing.
func (h *Hub) inheritOnce() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.closed {
		h.begin.Do(func() { h.group.Go(func() error { return h.inherit(h.ctx) }) })
	}
}

// enter counts a handler in; false if the hub is closing.
func (h *Hub) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.serving.Add(1)
	return true
}
