package hub

import (
	"cmp"
	"context"
	"errors"
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
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/push"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Source is the state beside a hub. View calls its argument under whatever
// lock guards the state and returns after it.
type Source interface {
	View(func(*ledger.State))
}

// Config configures a Hub. Zero values take the defaults in brackets.
type Config struct {
	Cluster string
	Region  string
	Node    string
	Source  Source

	// Contact says when this node last knew that it was current: now on a
	// leader; of others, age knows. Watchers leave a node whose contact is
	// too long ago. [always now]
	Contact func() time.Time
	// Members is who runs this region's control plane, as watchers read it;
	// empty = not known now. [watchers are not told]
	Members func() []byte

	// What never waits for a commit goes to a Board, which has these: see
	// push.Config.
	Peers    func() []push.Peer
	HTTP     func(region string) *http.Client
	Hinted   func(registry.Revocation)
	Verdicts int
	Hints    int

	Ring         int           // entries held per shard [65,536]
	RingBytes    int           // and their bytes [32 MiB]
	Watchers     int           // at a time; more are refused with 503 [4,096]
	Snapshots    int           // watchers taking snapshots at a time; more are refused with 503 [32]
	SnapshotKeep time.Duration // how long an encoded snapshot waits for others that need it [5 s]
	Heartbeat    time.Duration // [1 s]
	WriteTimeout time.Duration // a watcher that takes nothing for so long is dropped [15 s]

	Logger     *slog.Logger          // [discards]
	Registerer prometheus.Registerer // [nobody reads the metrics]
}

func (c *Config) fill() error {
	if c.Cluster == "" || c.Region == "" || c.Source == nil {
		return fmt.Errorf("feed hub: cluster, region and source are needed")
	}
	c.Ring = cmp.Or(c.Ring, 64<<10)
	c.RingBytes = cmp.Or(c.RingBytes, 32<<20)
	c.Watchers = cmp.Or(c.Watchers, 4096)
	c.Snapshots = cmp.Or(c.Snapshots, 32)
	c.SnapshotKeep = cmp.Or(c.SnapshotKeep, 5*time.Second)
	c.Heartbeat = cmp.Or(c.Heartbeat, time.Second)
	c.WriteTimeout = cmp.Or(c.WriteTimeout, 15*time.Second)
	if c.Contact == nil {
		c.Contact = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registerer == nil {
		c.Registerer = prometheus.NewRegistry()
	}
	return nil
}

// Hub serves feeds of one control node's state.
type Hub struct {
	cfg     Config
	metrics *metrics
	mux     *http.ServeMux
	board   *push.Board
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	group   *errgroup.Group
	serving sync.WaitGroup // handlers under way
	slots   chan struct{}  // one per watcher taking snapshots

	snapMu sync.Mutex
	snaps  map[controlplane.Shard]*snapshot

	memberMu  sync.Mutex
	members   []byte // as of membersAt, encoded once for all watchers
	membersAt time.Time

	mu       sync.RWMutex // guards what follows; held for microseconds only
	closed   bool
	rings    map[controlplane.Shard]*ring
	gaps     uint64 // how often a ring was left incomplete, beginning with none known
	filled   uint64 // the gaps of which a look at the state made up for: all, or steady looks again
	watchers int
	wake     chan struct{} // closed and replaced when something arrives
}

// Open starts a Hub. It does not touch cfg.Source before Handler, Push…, or
// a request asks for it, so that Applied may be called while the source is
// still being opened.
func Open(ctx context.Context, cfg Config) (*Hub, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	h := &Hub{
		cfg:     cfg,
		slots:   make(chan struct{}, cfg.Snapshots),
		snaps:   make(map[controlplane.Shard]*snapshot),
		rings:   make(map[controlplane.Shard]*ring),
		wake:    make(chan struct{}),
		gaps:    1,
		metrics: newMetrics(),
	}
	var err error
	h.board, err = push.Open(ctx, push.Config{
		Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node, Source: cfg.Source, MayHold: h.mayHoldWhich, Changed: h.changed,
		Peers: cfg.Peers, HTTP: cfg.HTTP, Hinted: cfg.Hinted, Verdicts: cfg.Verdicts, Hints: cfg.Hints,
		Logger: cfg.Logger, Registerer: cfg.Registerer,
	})
	if err != nil {
		return nil, err
	}
	if err := cfg.Registerer.Register(h.metrics); err != nil {
		return nil, errors.Join(err, h.board.Close())
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.group, h.ctx = errgroup.WithContext(ctx)
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
	h.cfg.Registerer.Unregister(h.metrics)
	return errors.Join(h.group.Wait(), h.board.Close())
}

// Board is what never waits for a commit.
func (h *Hub) Board() *push.Board { return h.board }

// Applied tells the hub what a command did. Call it for every command, in
// apply order. It never waits for a watcher.
func (h *Hub) Applied(o ledger.Outcome, sender controlplane.Epoch) {
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
	h.add(entries, items)
	h.board.Settle(entries)
}

func (h *Hub) add(entries []*registry.Entry, items []item) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, e := range entries {
		r := h.ring(e.Shard)
		if items[i].frame == nil {
			r.clear() // the watchers get it with a snapshot
		} else {
			r.add(e, items[i], h.cfg.Ring, h.cfg.RingBytes)
		}
		r.follow(items[i].sender, e)
		if !r.complete() {
			h.gaps++
		}
	}
	h.notify()
}

// promise notes epochs promised without an entry: a shard whose home this
// region was is no longer offered to other regions.
func (h *Hub) promise(reports []ledger.Report) {
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
		b, err = feed.AppendFrame(nil, &feed.Frame{Type: feed.FrameEntry, Shard: e.Shard, Sender: sender, Entry: b})
	}
	if err != nil {
		h.cfg.Logger.Error("feed: entry cannot be sent as such; watchers take a snapshot",
			"shard", e.Shard, "seq", e.Seq, "err", err)
		return nil
	}
	return b
}

// Reset forgets what the rings hold of the given shards, or of all if none is
// given, because the state took over a snapshot. Call it in apply order, after
// the state has changed. Watchers that are behind take a snapshot.
func (h *Hub) Reset(shards ...controlplane.Shard) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gaps++
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

func (h *Hub) changed() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.notify()
}

// steady calls f with h.mu held, by way of lock, and every ring complete: what
// f offers is all that the state holds, and what it takes it takes once. A
// reset may come at any moment, so it looks again until there was none.
func (h *Hub) steady(lock sync.Locker, f func()) {
	for !h.ifComplete(lock, f) {
		h.mu.RLock()
		gaps := h.gaps
		h.mu.RUnlock()
		var infos []registry.ShardInfo
		h.cfg.Source.View(func(s *ledger.State) { infos = s.Shards() })
		h.fill(infos, gaps)
	}
}

func (h *Hub) ifComplete(lock sync.Locker, f func()) bool {
	lock.Lock()
	defer lock.Unlock()
	if h.filled != h.gaps {
		return false
	}
	f()
	return true
}

// fill completes the rings from the state: the point of those that nothing was
// published to since the start or a reset, and who may see each shard. A ring
// whose shard the state does not hold (any more) is dropped. It does nothing if
// there is a gap that infos may be older than.
func (h *Hub) fill(infos []registry.ShardInfo, gaps uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.gaps != gaps {
		return
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
	h.filled = gaps
}

// holdsAny reports whether the state holds a shard. A region's first entries
// open the shards it is home of, so a node without any has not heard from its
// leader yet, and nobody should wait for it.
func (h *Hub) holdsAny() (yes bool) {
	h.steady(h.mu.RLocker(), func() { yes = len(h.rings) > 0 })
	return yes
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

// mayHoldWhich is mayHold for the Board.
func (h *Hub) mayHoldWhich(peer identity.ID) func(controlplane.Shard) bool {
	var may []controlplane.Shard
	h.steady(h.mu.RLocker(), func() {
		for shard, r := range h.rings {
			if h.mayHold(peer, r) {
				may = append(may, shard)
			}
		}
	})
	return func(shard controlplane.Shard) bool { return slices.Contains(may, shard) }
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
