// Package feedkit has both ends of a feed for tests: control nodes without Raft,
// histories to feed them with, and a naive twin of a watcher that checks what it
// is sent. Tests only.
package feedkit

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

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/memnet"
)

// Cluster is the name of every test's cluster.
const Cluster = "test"

// CA issues node certificates; one per test.
type CA struct {
	t  *testing.T
	ca *identity.CA

	listen func() (net.Listener, error)
	dial   func(ctx context.Context, network, addr string) (net.Conn, error)
}

// NewCA makes one whose nodes talk over the loopback.
func NewCA(t *testing.T) *CA {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir(), Cluster)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{t: t, ca: ca, dial: new(net.Dialer).DialContext,
		listen: func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }}
}

func (c *CA) bundle(region, role, node string) *identity.Bundle {
	c.t.Helper()
	issued, err := c.ca.IssueNode(identity.ID{Cluster: Cluster, Region: region, Role: role, Node: node},
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

// NewMemoryCA makes one whose nodes talk in memory, so that time may be fake.
func NewMemoryCA(t *testing.T) *CA {
	t.Helper()
	c, mem, next := NewCA(t), memnet.New(), 0
	c.listen = func() (net.Listener, error) {
		next++
		return mem.Listen(fmt.Sprintf("127.0.0.1:%d", next)), nil
	}
	c.dial = func(ctx context.Context, _, addr string) (net.Conn, error) { return mem.Dial(ctx, "caller", addr) }
	return c
}

// Caller is a node's HTTP client whose connections can be cut.
type Caller struct {
	*http.Client
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

// Caller makes one for a node, to control nodes of any region.
func (c *CA) Caller(region, role, node string) *Caller {
	c.t.Helper()
	return c.CallerTo("", region, role, node)
}

// CallerTo makes one to control nodes of the region named first.
func (c *CA) CallerTo(to, region, role, node string) *Caller {
	c.t.Helper()
	k := &Caller{conns: make(map[net.Conn]struct{})}
	k.Client = feed.NewHTTPClient(c.bundle(region, role, node).Client([]string{"h2"}, identity.AllowControl(to)))
	tr := k.Transport.(*http.Transport)
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := c.dial(ctx, network, addr)
		if err == nil {
			k.mu.Lock()
			k.conns[conn] = struct{}{}
			k.mu.Unlock()
		}
		return conn, err
	}
	c.t.Cleanup(func() { k.Cut(); k.CloseIdleConnections() })
	return k
}

// Cut ends the connections there are.
func (k *Caller) Cut() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c := range k.conns {
		_ = c.Close()
	}
	clear(k.conns)
}

// Hub is what a control node tells of its state, and what it serves.
type Hub interface {
	Applied(out ledger.Outcome, sender controlplane.Epoch)
	Handler() http.Handler
	Close() error
}

// Node is a control node without Raft: a state behind a mutex, a hub, a listener.
type Node struct {
	T      *testing.T
	Region string
	Addr   string
	Open   func(*Node) Hub     // at the start and at each restart
	Heard  func(*http.Request) // of each request, if set before the first one

	mu sync.RWMutex
	st *ledger.State

	hub      atomic.Pointer[Hub]
	watchers atomic.Int64

	Drop  atomic.Int64 // proposals to lose silently
	Fail  atomic.Int64 // proposals to refuse
	Calls atomic.Int64 // proposals so far
}

// View reads the state.
func (n *Node) View(f func(*ledger.State)) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	f(n.st)
}

// Hub is the present one.
func (n *Node) Hub() Hub { return *n.hub.Load() }

// Watchers is how many watches are being served.
func (n *Node) Watchers() int { return int(n.watchers.Load()) }

// ServeHTTP serves the hub, whichever it is.
func (n *Node) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if n.Heard != nil {
		n.Heard(r)
	}
	if r.URL.Path == feed.PathWatch {
		n.watchers.Add(1)
		defer n.watchers.Add(-1)
	}
	n.Hub().Handler().ServeHTTP(w, r)
}

// Node starts a node of region.
func (c *CA) Node(region, name string, open func(*Node) Hub) *Node {
	c.t.Helper()
	n := &Node{T: c.t, Region: region, Open: open, st: ledger.New()}
	ln, err := c.listen()
	if err != nil {
		c.t.Fatal(err)
	}
	n.Addr = ln.Addr().String()
	demux := identity.Listener(ln, c.bundle(region, identity.RoleControl, name).Server([]string{"h2"},
		identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))), "h2")
	n.start()
	srv := &http.Server{Handler: n, ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(demux.For("h2"))
	}()
	c.t.Cleanup(func() {
		if err := n.Hub().Close(); err != nil {
			n.T.Errorf("hub: %v", err)
		}
		_ = srv.Close()
		_ = demux.Close()
		<-served
	})
	return n
}

func (n *Node) start() {
	h := n.Open(n)
	n.hub.Store(&h)
	h.Handler()
}

// Restart loses what a process loses: rings, tables, streams.
func (n *Node) Restart() {
	old := n.Hub()
	n.mu.Lock() // nothing is applied between the two hubs
	n.start()
	n.mu.Unlock()
	if err := old.Close(); err != nil {
		n.T.Errorf("hub: %v", err)
	}
}

// Apply is what quorum does after a commit.
func (n *Node) Apply(cmd *registry.Command) ledger.Outcome {
	b, err := registry.EncodeCommand(cmd)
	if err == nil {
		cmd, err = registry.DecodeCommand(b)
	}
	if err != nil {
		n.T.Errorf("command: %v", err)
		return ledger.Outcome{Err: err}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	out := n.st.Apply(cmd)
	n.Hub().Applied(out, cmd.Sender)
	return out
}

// Propose stands for Raft under an importer.
func (n *Node) Propose(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error) {
	n.Calls.Add(1)
	if n.Fail.Load() > 0 && n.Fail.Add(-1) >= 0 {
		return ledger.Outcome{}, controlplane.ErrNoLeader
	}
	if n.Drop.Load() > 0 && n.Drop.Add(-1) >= 0 {
		return ledger.Outcome{}, nil
	}
	if ctx.Err() != nil {
		return ledger.Outcome{}, ctx.Err()
	}
	return n.Apply(cmd), nil
}

// Accept applies entries of home's.
func (n *Node) Accept(entries ...*registry.Entry) {
	n.T.Helper()
	for _, e := range entries {
		b, err := registry.EncodeEntry(e)
		if err != nil {
			n.T.Fatal(err)
		}
		out := n.Apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}})
		if out.Err != nil {
			n.T.Fatalf("apply: %v", out.Err)
		}
	}
}

// Position is how far the state is.
func (n *Node) Position() (p controlplane.Position) {
	n.View(func(s *ledger.State) { p = s.Position() })
	return p
}

// History makes the entries of one shard.
type History struct {
	Shard controlplane.Shard
	At    controlplane.Point
	Rand  *rand.Rand
	n     int
	Keys  []string        // that exist, in force or not
	dead  map[string]bool // revoked ever
}

// NewHistory begins one of which there is nothing yet.
func NewHistory(shard controlplane.Shard, home string, seed uint64) *History {
	return &History{
		Shard: shard, At: controlplane.Point{Epoch: controlplane.Epoch{Region: home}},
		Rand: rand.New(rand.NewPCG(seed, 7)), dead: make(map[string]bool),
	}
}

// Open opens an epoch.
func (h *History) Open(home string, members ...string) *registry.Entry {
	e := &registry.Entry{Shard: h.Shard, Epoch: controlplane.Epoch{Counter: h.At.Epoch.Counter + 1, Region: home},
		Seq: h.At.Seq + 1, Prev: h.At.Epoch, Changes: []registry.Change{{Op: registry.OpOpen, Members: members, Home: home}}}
	if h.At.Seq == 0 {
		e.Prev = controlplane.Epoch{}
	}
	h.At = e.Point()
	return e
}

func (h *History) jurisdiction() string {
	if strings.HasPrefix(string(h.Shard), "any-") {
		return "any"
	}
	return string(h.Shard)
}

// Key is a record of the key id, different each time.
func (h *History) Key(id string) *registry.Record {
	h.n++
	return &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: h.Shard, Created: 1, Updated: int64(h.n)},
		Key: &registry.Key{Project: "prj_" + h.jurisdiction() + "_0000000000000001", Name: fmt.Sprintf("key %d", h.n),
			Class: "live", Hash: bytes.Repeat([]byte{byte(h.n)}, 60), Hint: id[len(id)-4:]}}
}

// Entry is the next entry, with these changes.
func (h *History) Entry(changes ...registry.Change) *registry.Entry {
	e := registry.NextAfter(h.Shard, h.At, changes)
	h.At = e.Point()
	return e
}

// NewKey draws an id.
func (h *History) NewKey() string {
	id := fmt.Sprintf("key_%s_%016d", h.jurisdiction(), h.Rand.IntN(1_000_000_000))
	h.Keys = append(h.Keys, id)
	return id
}

// Next is a random entry: keys are made, changed, revoked, deleted, and put
// again by somebody who did not hear of their revocation.
func (h *History) Next() *registry.Entry {
	n := len(h.Keys)
	switch k := h.Rand.IntN(10); {
	case n < 3 || k < 3:
		return h.Entry(registry.Change{Op: registry.OpPut, Record: h.Key(h.NewKey())})
	case k < 6:
		return h.Entry(registry.Change{Op: registry.OpPut, Record: h.Key(h.Keys[h.Rand.IntN(n)])})
	case k < 8:
		id := h.Keys[h.Rand.IntN(n)]
		h.dead[id] = true
		return h.Entry(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: id, At: int64(1000 + h.n)})
	case k < 9:
		i := h.Rand.IntN(n)
		id := h.Keys[i]
		h.Keys = slices.Delete(h.Keys, i, i+1)
		return h.Entry(registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: id})
	default:
		return h.Entry() // refused: no effect
	}
}

// Eventually polls until check returns "".
func Eventually(t *testing.T, check func() string) {
	t.Helper()
	var why string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if why = check(); why == "" {
			return
		}
	}
	t.Fatal(why)
}

// OpenAs opens a later epoch.
func (h *History) OpenAs(counter uint64, home string, members ...string) *registry.Entry {
	e := h.Open(home, members...)
	e.Epoch.Counter = counter
	h.At = e.Point()
	return e
}

// Fill gives n a shard with some history, and returns the history.
func Fill(n *Node, shard controlplane.Shard, home string, entries int, members ...string) *History {
	h := NewHistory(shard, home, 1)
	n.Accept(h.Open(home, members...))
	for range entries {
		n.Accept(h.Next())
	}
	return h
}
