package feed

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = "test"

// testCA issues node certificates; one per test.
type testCA struct {
	t  *testing.T
	ca *identity.CA
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir(), testCluster)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{t, ca}
}

func (c *testCA) bundle(region, role, node string) *identity.Bundle {
	c.t.Helper()
	issued, err := c.ca.IssueNode(identity.ID{Cluster: testCluster, Region: region, Role: role, Node: node},
		[]net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := issued.Bundle()
	if err != nil {
		c.t.Fatal(err)
	}
	return b
}

// caller is a node's HTTP client whose connections can be cut.
type caller struct {
	*http.Client
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func (c *testCA) caller(region, role, node string) *caller {
	c.t.Helper()
	k := &caller{conns: make(map[net.Conn]struct{})}
	k.Client = NewHTTPClient(c.bundle(region, role, node).Client([]string{"h2"}, identity.AllowControl("")))
	tr := k.Transport.(*http.Transport)
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err == nil {
			k.mu.Lock()
			k.conns[conn] = struct{}{}
			k.mu.Unlock()
		}
		return conn, err
	}
	c.t.Cleanup(func() { k.cut(); k.CloseIdleConnections() })
	return k
}

func (k *caller) cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		_ = c.Close()
	}
	clear(k.conns)
}

// node is a control node without Raft: a state behind a mutex, a hub, a listener.
type node struct {
	t      *testing.T
	region string
	addr   string
	tune   func(*HubConfig)

	mu sync.RWMutex
	st *registry.State

	hub   atomic.Pointer[Hub]
	drop  atomic.Int64 // proposals to lose silently
	fail  atomic.Int64 // proposals to refuse
	calls atomic.Int64
}

func (n *node) View(f func(*registry.State)) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	f(n.st)
}

func (c *testCA) node(region, name string, tune func(*HubConfig)) *node {
	c.t.Helper()
	n := &node{t: c.t, region: region, st: registry.New(), tune: tune}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	n.addr = ln.Addr().String()
	if tune == nil {
		n.tune = func(*HubConfig) {}
	}
	demux := identity.Listener(ln, c.bundle(region, identity.RoleControl, name).Server([]string{"h2"},
		identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))), "h2")
	n.start()
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n.hub.Load().Handler().ServeHTTP(w, r) }),
		ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(demux.For("h2"))
	}()
	c.t.Cleanup(func() {
		if err := n.hub.Load().Close(); err != nil {
			n.t.Errorf("hub: %v", err)
		}
		_ = srv.Close()
		_ = demux.Close()
		<-served
	})
	return n
}

func (n *node) start() {
	cfg := HubConfig{Cluster: testCluster, Region: n.region, Node: "c1", Source: n, Heartbeat: 50 * time.Millisecond}
	n.tune(&cfg)
	h, err := OpenHub(context.Background(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.hub.Store(h)
	h.Handler()
}

// restart loses what a process loses: rings, tables, streams.
func (n *node) restart() {
	old := n.hub.Load()
	n.mu.Lock() // nothing is applied between the two hubs
	n.start()
	n.mu.Unlock()
	if err := old.Close(); err != nil {
		n.t.Errorf("hub: %v", err)
	}
}

// apply is what quorum does after a commit.
func (n *node) apply(cmd *registry.Command) registry.Outcome {
	b, err := registry.EncodeCommand(cmd)
	if err == nil {
		cmd, err = registry.DecodeCommand(b)
	}
	if err != nil {
		n.t.Errorf("command: %v", err)
		return registry.Outcome{Err: err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.st.Apply(cmd)
	n.hub.Load().Applied(out, cmd.Sender)
	return out
}

// propose stands for Raft under an importer.
func (n *node) propose(ctx context.Context, cmd *registry.Command) (registry.Outcome, error) {
	n.calls.Add(1)
	if n.fail.Load() > 0 && n.fail.Add(-1) >= 0 {
		return registry.Outcome{}, controlplane.ErrNoLeader
	}
	if n.drop.Load() > 0 && n.drop.Add(-1) >= 0 {
		return registry.Outcome{}, nil
	}
	if ctx.Err() != nil {
		return registry.Outcome{}, ctx.Err()
	}
	return n.apply(cmd), nil
}

// accept applies entries of home's.
func (n *node) accept(entries ...*registry.Entry) {
	n.t.Helper()
	for _, e := range entries {
		b, err := registry.EncodeEntry(e)
		if err != nil {
			n.t.Fatal(err)
		}
		out := n.apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}})
		if out.Err != nil {
			n.t.Fatalf("apply: %v", out.Err)
		}
	}
}

func (n *node) watchers() int {
	h := n.hub.Load()
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.watchers
}

func (n *node) position() (p controlplane.Position) {
	n.View(func(s *registry.State) { p = s.Position() })
	return p
}

// history makes the entries of one shard.
type history struct {
	shard controlplane.Shard
	at    controlplane.Point
	rng   *rand.Rand
	n     int
	keys  []string        // that exist, in force or not
	dead  map[string]bool // revoked ever
}

func newHistory(shard controlplane.Shard, home string, seed uint64) *history {
	return &history{
		shard: shard, at: controlplane.Point{Epoch: controlplane.Epoch{Region: home}},
		rng: rand.New(rand.NewPCG(seed, 7)), dead: make(map[string]bool),
	}
}

func (h *history) open(home string, members ...string) *registry.Entry {
	e := &registry.Entry{Shard: h.shard, Epoch: controlplane.Epoch{Counter: h.at.Epoch.Counter + 1, Region: home},
		Seq: h.at.Seq + 1, Prev: h.at.Epoch, Changes: []registry.Change{{Op: registry.OpOpen, Members: members, Home: home}}}
	if h.at.Seq == 0 {
		e.Prev = controlplane.Epoch{}
	}
	h.at = e.Point()
	return e
}

func (h *history) jurisdiction() string {
	if strings.HasPrefix(string(h.shard), "any-") {
		return "any"
	}
	return string(h.shard)
}

func (h *history) key(id string) *registry.Record {
	h.n++
	return &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: h.shard, Created: 1, Updated: int64(h.n)},
		Key: &registry.Key{Project: "prj_" + h.jurisdiction() + "_0000000000000001", Name: fmt.Sprintf("key %d", h.n),
			Class: "live", Hash: bytes.Repeat([]byte{byte(h.n)}, 60), Hint: id[len(id)-4:]}}
}

func (h *history) entry(changes ...registry.Change) *registry.Entry {
	e := registry.NextAfter(h.shard, h.at, changes)
	h.at = e.Point()
	return e
}

func (h *history) newKey() string {
	id := fmt.Sprintf("key_%s_%016d", h.jurisdiction(), h.rng.IntN(1_000_000_000))
	h.keys = append(h.keys, id)
	return id
}

// next is a random entry: keys are made, changed, revoked, deleted, and put
// again by somebody who did not hear of their revocation.
func (h *history) next() *registry.Entry {
	n := len(h.keys)
	switch k := h.rng.IntN(10); {
	case n < 3 || k < 3:
		return h.entry(registry.Change{Op: registry.OpPut, Record: h.key(h.newKey())})
	case k < 6:
		return h.entry(registry.Change{Op: registry.OpPut, Record: h.key(h.keys[h.rng.IntN(n)])})
	case k < 8:
		id := h.keys[h.rng.IntN(n)]
		h.dead[id] = true
		return h.entry(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: id, At: int64(1000 + h.n)})
	case k < 9:
		i := h.rng.IntN(n)
		id := h.keys[i]
		h.keys = slices.Delete(h.keys, i, i+1)
		return h.entry(registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: id})
	default:
		return h.entry() // refused: no effect
	}
}

// eventually polls until check returns "".
func eventually(t *testing.T, check func() string) {
	t.Helper()
	var why string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if why = check(); why == "" {
			return
		}
	}
	t.Fatal(why)
}
