// Package gossip spreads health: which nodes are there, what each says about
// itself, and which regions observers can reach. It is the one importer of
// hashicorp/memberlist, and runs a group per region (LAN) and one over all
// regions (WAN), each encrypted under its own key.
//
// Everything here is advisory. Configuration, keys and decisions never travel
// by gossip; a key holder can claim anything about any node.
package gossip

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/gossip/bulletin"
)

// Config is what Open needs. Fields without a default named must be set.
type Config struct {
	Cluster string // only nodes of the same cluster merge
	Region  string
	Node    string // unique in the cluster
	Role    string // control or data; goes into the digest

	LANBind      string // IP:port, TCP and UDP; port 0 picks one, for tests
	WANBind      string
	LANAdvertise string // IP:port others reach it at; empty = LANBind
	WANAdvertise string
	LANKey       []byte   // 32 bytes, shared by the region
	WANKey       []byte   // 32 bytes, shared by the cluster
	LANSeeds     []string // host:port of some nodes of the region; its own address may be among them
	WANSeeds     []string // host:port of some nodes of any region

	// Digest is the first one. Incarnation must be the node's start in Unix
	// milliseconds, or anything else that grows with each restart.
	Digest bulletin.Digest

	// OnConflict is told when another node that is alive uses this one's name;
	// nil = it is only logged. It must not block.
	OnConflict func(err error)

	Tunables   Tunables
	Logger     *slog.Logger          // nil = none
	Registerer prometheus.Registerer // nil = none

	transport func(g group) memberlist.NodeAwareTransport // tests; nil = sockets
}

// ErrNameTaken says that another live node uses this node's name: give one of
// them another name.
var ErrNameTaken = errors.New("another node uses this node's name: give one of them another name")

// Gossip is a running member of both groups. It is safe for concurrent use.
type Gossip struct {
	cfg      Config
	log      *slog.Logger
	self     bulletin.Key
	lan, wan *member
	inbox    chan []byte
	changed  chan struct{}
	wake     chan struct{}
	cancel   context.CancelFunc
	work     *errgroup.Group
	metrics  *metrics
	started  time.Time

	life   sync.Mutex // Leave and Close, one after the other
	closed bool

	// mu guards what follows. Memberlist calls in here with its own locks held,
	// so nothing may call memberlist while holding mu.
	mu       sync.Mutex
	table    *bulletin.Table
	own      bulletin.Digest
	dirty    urgency
	sent     time.Time // when the own digest last was
	bid      time.Time // when it last had to outbid another
	leaving  bool
	claims   map[string]*ownClaim
	shown    map[string]bool // published state, as last logged
	conflict conflict
}

// urgency is how soon the own digest must be sent again.
type urgency int

const (
	quiet   urgency = iota
	figures         // in flight, position: gathered
	state           // everything else: at once
)

type ownClaim struct {
	claim bulletin.Claim
	sent  time.Time
}

// Open starts both groups and returns as soon as it listens; joining goes on in
// the background until Close, so peers may come later. Ctx bounds the life of
// the background work; Close must be called all the same.
func Open(ctx context.Context, cfg Config) (*Gossip, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Tunables = cfg.Tunables.withDefaults()
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	now := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	g := &Gossip{
		cfg:     cfg,
		log:     cfg.Logger,
		self:    bulletin.Key{Region: cfg.Region, Node: cfg.Node},
		inbox:   make(chan []byte, 1024),
		changed: make(chan struct{}, 1),
		wake:    make(chan struct{}, 1),
		cancel:  cancel,
		started: now,
		table:   bulletin.New(),
		own:     cfg.Digest,
		dirty:   state,
		claims:  map[string]*ownClaim{},
		shown:   map[string]bool{},
	}
	g.own.Region, g.own.Node, g.own.Role, g.own.Seq = cfg.Region, cfg.Node, cfg.Role, 0
	g.own = fit(g.own)
	g.table.Merge(g.own, now)
	g.table.SetMember(g.self, true, now)
	g.lan = newMember(g, lan, cfg.Tunables.LAN)
	g.wan = newMember(g, wan, cfg.Tunables.WAN)
	g.metrics = newMetrics(g)

	g.work, ctx = errgroup.WithContext(ctx)
	for _, start := range []func() error{
		func() error { return g.lan.start(ctx, cfg.LANBind, cfg.LANAdvertise, cfg.LANKey, cfg.LANSeeds) },
		func() error { return g.wan.start(ctx, cfg.WANBind, cfg.WANAdvertise, cfg.WANKey, cfg.WANSeeds) },
		func() error { return g.metrics.register(cfg.Registerer) },
	} {
		if err := start(); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	g.work.Go(func() error { g.receive(ctx); return nil })
	g.work.Go(func() error { g.send(ctx); return nil })
	g.work.Go(func() error { g.lan.rejoin(ctx); return nil })
	g.work.Go(func() error { g.wan.rejoin(ctx); return nil })
	return g, nil
}

// Publish changes what this node says about itself. Identity and version are
// not f's to change. A changed state (ready, draining, breakers, …) is sent at
// once; figures (in flight, position) are gathered.
func (g *Gossip) Publish(f func(*bulletin.Digest)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := g.own
	f(&d)
	d.Region, d.Node, d.Role, d.Incarnation, d.Seq = g.own.Region, g.own.Node, g.own.Role, g.own.Incarnation, g.own.Seq
	d = fit(d)
	switch {
	case !reflect.DeepEqual(withoutFigures(d), withoutFigures(g.own)):
		g.mark(state)
	case d.InFlight != g.own.InFlight || d.Position != g.own.Position || d.StateAge != g.own.StateAge:
		g.mark(figures)
	}
	g.own = d
}

// Bar refuses the node from now on: it is no member, and nothing that it says,
// or that others say of it, is taken. Whoever holds a group's key can lie about
// its name, so the keys want changing too.
func (g *Gossip) Bar(region, node string) {
	k, now := bulletin.Key{Region: region, Node: node}, time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	if k == g.self || g.table.Barred(k) {
		return
	}
	g.table.Bar(k, now)
	for _, m := range []*member{g.lan, g.wan} {
		delete(m.present, k.String())
		delete(m.gone, k.String())
		m.size.Store(int64(len(m.present)))
	}
	g.log.Warn("node is revoked: nothing of it is heard any more", "node", k)
	g.notify()
}

func withoutFigures(d bulletin.Digest) bulletin.Digest {
	d.InFlight, d.Position, d.StateAge = 0, "", 0
	if len(d.Breakers) == 0 {
		d.Breakers = nil
	}
	return d
}

// Claim says whether this node can reach a region. Observers call it on every
// round: it is sent when it changes, and repeated so that it keeps counting.
func (g *Gossip) Claim(subject string, up bool) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.claims[subject]
	if c == nil {
		c = &ownClaim{}
		g.claims[subject] = c
	} else if c.claim.Up == up && now.Sub(c.sent) < g.cfg.Tunables.ClaimInterval {
		return
	}
	// The clock orders claims across restarts and needs no counter on disk.
	seq := max(c.claim.Seq+1, uint64(now.UnixMilli()))
	c.claim = bulletin.Claim{Region: g.self.Region, Node: g.self.Node, Subject: subject, Up: up, Incarnation: g.own.Incarnation, Seq: seq}
	c.sent = now
	if g.table.MergeClaim(c.claim, now) {
		g.queue(claimName(&c.claim), kindClaim, &c.claim)
		g.notify()
	}
}

// View is everything known at one moment.
type View struct {
	Nodes   []bulletin.NodeView            // by region and name
	Regions map[string]bulletin.RegionView // published state, by name
}

// Table returns what is known now. The caller owns it, but for the maps and
// slices inside digests, which nobody may change.
func (g *Gossip) Table() View {
	g.mu.Lock()
	defer g.mu.Unlock()
	return View{Nodes: g.table.Nodes(), Regions: g.table.Published(time.Now())}
}

// Changed receives after Table changed: one value for any number of changes.
// One reader only.
func (g *Gossip) Changed() <-chan struct{} { return g.changed }

// Members counts the members of both groups as this node sees them.
func (g *Gossip) Members() (lan, wan Counts) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lan.counts(), g.wan.counts()
}

// Contacts are addresses of other members of each group, at most n, control
// nodes in front: seeds for a later start, when those configured are gone.
func (g *Gossip) Contacts(n int) (lan, wan []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lan.contacts(n), g.wan.contacts(n)
}

// Addrs are the addresses others reach this node at.
func (g *Gossip) Addrs() (lan, wan string) { return g.lan.addr(), g.wan.addr() }

// Leave tells the others that this node goes, so that nobody has to detect it.
// It returns once word is out, at ctx's deadline or after five seconds; Close
// comes after it.
func (g *Gossip) Leave(ctx context.Context) error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return nil
	}
	g.mu.Lock()
	g.leaving = true
	o := bulletin.Obituary{Region: g.self.Region, Node: g.self.Node, Incarnation: g.own.Incarnation, Seq: g.own.Seq, By: g.self.Node}
	g.table.MergeObituary(o, time.Now())
	g.queue(obituaryName(&o), kindObituary, &o)
	g.mu.Unlock()
	var both errgroup.Group
	for _, m := range []*member{g.lan, g.wan} {
		both.Go(func() error { return m.leave(ctx) })
	}
	return both.Wait()
}

// Close stops both groups and waits. Without Leave before, the others have to
// find out.
func (g *Gossip) Close() error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	g.cancel()
	err := errors.Join(g.lan.stop(), g.wan.stop(), g.work.Wait())
	g.metrics.unregister()
	return err
}

// mark asks send to send the own digest.
func (g *Gossip) mark(u urgency) {
	g.dirty = max(g.dirty, u)
	select {
	case g.wake <- struct{}{}:
	default: // it is awake
	}
}

func (g *Gossip) notify() {
	select {
	case g.changed <- struct{}{}:
	default: // the reader has not looked yet
	}
}

// queue hands a message of this node to both groups.
func (g *Gossip) queue(name string, kind byte, body any) {
	for _, b := range g.relay(name, kind, body) {
		g.lan.push(b.name, b.msg)
		g.wan.push(b.name, b.msg)
	}
}

// relay encodes a message: one broadcast, or none if it cannot be sent.
func (g *Gossip) relay(name string, kind byte, body any) []broadcast {
	msg, err := encode(kind, body)
	if err != nil || len(msg) > maxBroadcast {
		g.log.Debug("not a broadcast", "name", name, "bytes", len(msg), "err", err)
		return nil
	}
	return []broadcast{{name, msg}}
}
