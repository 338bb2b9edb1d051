package quorum

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/memnet"
	"ringmain/internal/testkit/synckit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Names that store gives its files.
const (
	nameOwner = "owner.json"
	nameLock  = "lock"
	nameLog   = "log"
	nameTail  = "log.tail"
	nameProbe = "probe"
)

const (
	testRegion = "us-east"
	testShard  = controlplane.Shard("any-us-east")
)

// heard is what OnApply was told, as far as tests ask.
type heard struct {
	mu     sync.Mutex
	points []controlplane.Point // of effective entries, in order
	resets int
}

func (h *heard) onApply(out ledger.Outcome, _ controlplane.Epoch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range out.Effective {
		h.points = append(h.points, e.Point())
	}
	h.resets += len(out.Reset)
}

func (h *heard) all() []controlplane.Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.points)
}

func (h *heard) resetCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.resets
}

// node is one member of a cluster under test.
type node struct {
	name   string
	addr   string
	dir    string
	peers  []Peer // that it knows; nil = all of the cluster's
	q      *Quorum
	cancel context.CancelFunc
	heard  *heard
}

// cluster is one region. Its nodes share a network in memory, or real sockets.
type cluster struct {
	t      testing.TB
	dir    string
	net    *memnet.Net // nil = loopback sockets
	sealer *seal.Sealer
	nodes  []*node
	peers  []Peer
	tune   Tunables
	adjust func(*Config)

	owners   sync.Map // address -> name of the node that listened there last
	restarts int
}

func newCluster(t testing.TB, dir string, n int) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: dir, net: memnet.New(), sealer: diskkit.Sealer(t), tune: Tunables{SegmentBytes: 1 << 20}}
	for i := range n {
		nd := &node{name: fmt.Sprintf("c%d", i+1), addr: fmt.Sprintf("10.0.0.%d:7000", i+1), dir: filepath.Join(dir, fmt.Sprintf("c%d", i+1))}
		c.nodes = append(c.nodes, nd)
		c.peers = append(c.peers, Peer{Node: nd.name, Addr: nd.addr})
	}
	return c
}

// inFakeTime runs a test of n nodes that are not started yet, in fake time.
func inFakeTime(t *testing.T, n int, test func(t *testing.T, c *cluster)) {
	t.Helper()
	dir := diskkit.Fast(t)
	synckit.Test(t, func(t *testing.T) { test(t, newCluster(t, dir, n)) })
}

func (c *cluster) config(nd *node) Config {
	nd.heard = new(heard)
	cfg := Config{
		Cluster: "test", Region: testRegion, Node: nd.name, Dir: nd.dir,
		Peers:   c.peers,
		Homes:   []ShardSpec{{controlplane.ShardGlobal, []string{testRegion, "eu-fra"}}, {testShard, []string{testRegion, "eu-fra"}}},
		Sealer:  c.sealer,
		OnApply: nd.heard.onApply, Tunables: c.tune,
	}
	if nd.peers != nil {
		cfg.Peers = nd.peers
	}
	if c.net != nil {
		cfg.Listener = c.net.Listen(nd.addr)
		c.owners.Store(nd.addr, nd.name)
		cfg.Dial = func(ctx context.Context, to, addr string) (net.Conn, error) {
			if at, ok := c.owners.Load(addr); ok && at != to {
				return nil, fmt.Errorf("%s is at %s, not %s", at, addr, to) // as its certificate would show
			}
			return c.net.Dial(ctx, nd.addr, addr)
		}
	} else {
		var lc net.ListenConfig
		l, err := lc.Listen(context.Background(), "tcp", nd.addr)
		if err != nil {
			c.t.Fatal(err)
		}
		cfg.Listener = l
		cfg.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	if os.Getenv("QUORUM_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", nd.name)
	}
	if c.adjust != nil {
		c.adjust(&cfg)
	}
	return cfg
}

func (c *cluster) start(nd *node) {
	c.t.Helper()
	if err := c.tryStart(nd); err != nil {
		c.t.Fatalf("start %s: %v", nd.name, err)
	}
}

func (c *cluster) tryStart(nd *node) error {
	ctx, cancel := context.WithCancel(context.Background())
	q, err := Open(ctx, c.config(nd))
	if err != nil {
		cancel()
		return err
	}
	nd.q, nd.cancel = q, cancel
	return nil
}

// startAll starts all nodes, in fake time one after the other: founders that find
// each other at the same moment all ask for votes, and then it is the dice's to
// say how long an election takes.
func (c *cluster) startAll() {
	c.t.Helper()
	for i, nd := range c.nodes {
		if i > 0 && c.net != nil {
			time.Sleep(10 * time.Millisecond)
		}
		c.start(nd)
	}
}

// kill drops the node: for its peers it is gone at once.
func (c *cluster) kill(nd *node) {
	nd.q.trans.Cut()
	nd.cancel()
	<-nd.q.stopped
	nd.q = nil
}

func (c *cluster) stop(nd *node) {
	c.t.Helper()
	if nd.q == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := nd.q.Close(ctx); err != nil {
		c.t.Errorf("close %s: %v", nd.name, err)
	}
	nd.cancel()
	nd.q = nil
}

func (c *cluster) stopAll() {
	c.t.Helper()
	var wg sync.WaitGroup
	for _, nd := range c.nodes {
		wg.Go(func() { c.stop(nd) })
	}
	wg.Wait()
}

// isolate changes the links of nd to all others.
func (c *cluster) isolate(nd *node, state memnet.State) {
	for _, other := range c.nodes {
		if other != nd {
			c.net.Set(nd.addr, other.addr, state)
		}
	}
}

func (c *cluster) live() []*node {
	return slices.DeleteFunc(slices.Clone(c.nodes), func(nd *node) bool { return nd.q == nil })
}

// supervise starts nodes again that gave up.
func (c *cluster) supervise() {
	c.t.Helper()
	for _, nd := range c.live() {
		if nd.q.Err() != nil {
			_ = nd.q.Close(context.Background()) // its reason is in Err
			nd.cancel()
			c.start(nd)
			c.restarts++
		}
	}
}

// leader waits for a node that accepts proposals.
func (c *cluster) leader() *node {
	c.t.Helper()
	var found *node
	c.eventually(30*time.Second, "a leader", func() bool {
		c.supervise()
		for _, nd := range c.live() {
			if nd.q.IsLeader() {
				found = nd
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) eventually(limit time.Duration, what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("after %s there is not: %s", limit, what)
		}
	}
}

// converged waits until all live nodes applied the same, and compares them.
func (c *cluster) converged() {
	c.t.Helper()
	defer func() {
		if c.t.Failed() {
			for _, nd := range c.live() {
				c.t.Logf("%s: %+v\n%s", nd.name, nd.q.Stats(), digests(nd.q))
			}
		}
	}()
	c.eventually(30*time.Second, "equal states", func() bool {
		c.supervise()
		want := digests(c.live()[0].q)
		for _, nd := range c.live()[1:] {
			if digests(nd.q) != want {
				return false
			}
		}
		return true
	})
}

func digests(q *Quorum) (all string) {
	q.View(func(s *ledger.State) {
		for _, info := range s.Shards() {
			all += fmt.Sprintf("%s %v %v %x;", info.Shard, info.Last, info.Epoch, s.Digest(info.Shard))
		}
	})
	return all
}

// put creates or replaces an org.
func put(id, name string) []registry.Change {
	return []registry.Change{{Op: registry.OpPut, Record: &registry.Record{
		Kind: registry.KindOrg,
		Meta: registry.Meta{ID: id, Shard: testShard, Created: 1, Updated: 1},
		Org:  &registry.Org{Name: name, Plan: "build", State: "verified", Jurisdiction: "any"},
	}}}
}

func create(id, name string) []registry.Change {
	c := put(id, name)
	c[0].IfRevision = registry.RevisionAbsent
	return c
}

func orgID(n int) string { return fmt.Sprintf("org_any_000000%010d", n) }

func nameOf(q *Quorum, id string) (name string) {
	q.View(func(s *ledger.State) {
		if r, ok := s.Get(registry.KindOrg, id); ok {
			name = r.Org.Name
		}
	})
	return name
}

func (c *cluster) mustPropose(nd *node, changes []registry.Change) ledger.Outcome {
	c.t.Helper()
	out, err := nd.q.Propose(context.Background(), testShard, changes)
	if err != nil {
		c.t.Fatalf("propose at %s: %v", nd.name, err)
	}
	return out
}

// writeAgain writes wherever it can, as callers that retry do.
func (c *cluster) writeAgain(changes []registry.Change) {
	c.t.Helper()
	c.eventually(30*time.Second, "a write", func() bool {
		for _, nd := range c.live() {
			if _, err := nd.q.Propose(context.Background(), testShard, changes); err == nil {
				return true
			}
		}
		return false
	})
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// leaderBeside waits until a node beside one leads.
func (c *cluster) leaderBeside(one *node) (next *node) {
	c.t.Helper()
	c.eventually(10*time.Second, "a leader in the majority", func() bool {
		i := slices.IndexFunc(c.nodes, func(nd *node) bool { return nd != one && nd.q.IsLeader() })
		if i >= 0 {
			next = c.nodes[i]
		}
		return i >= 0
	})
	return next
}

// concurrently does b.N times, by so many at once, and reports how long each took.
func concurrently(b *testing.B, workers int, unit string, do func(i int) error) {
	b.Helper()
	times := make([][]time.Duration, workers)
	var next atomic.Int64
	b.ResetTimer()
	start := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				begin := time.Now()
				if err := do(int(i)); err != nil {
					b.Error(err)
					return
				}
				times[w] = append(times[w], time.Since(begin))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	all := slices.Sorted(slices.Values(slices.Concat(times...)))
	if len(all) == 0 {
		return
	}
	b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	b.ReportMetric(float64(len(all))/time.Since(start).Seconds(), unit)
}
