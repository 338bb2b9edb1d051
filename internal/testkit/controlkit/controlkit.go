// Package controlkit runs regions of control nodes for tests of the management
// API and its clients: the real API, over real TLS, on a real registry, with
// Raft and feeds replaced by one lock and function calls. Tests only.
package controlkit

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ringmain/controlplane"
	"ringmain/controlplane/admin"
	"ringmain/controlplane/admin/forward"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Token is an admin token that every node knows.
const Token = "test-admin-token"

// Cluster is a set of regions. The first is home of the global shard.
type Cluster struct {
	Regions []*Region
	Roots   *x509.CertPool // for operators
	RootPEM []byte         // the same

	t  *testing.T
	ca *identity.CA
	// Broken, if set, is asked before a node proposes; an error is its answer.
	// after is true once the change has been committed.
	Broken func(node string, after bool) error
}

// Region is one region's nodes and their common copy of the registry.
type Region struct {
	Name, Jurisdiction string
	Nodes              []*Node
	Lag                time.Duration // before entries of other homes arrive here

	cluster *Cluster
	queue   chan delayed // entries of other homes, in order
	early   chan struct{}
	mu      sync.Mutex // guards what is below
	state   *ledger.State
	changed chan struct{} // closed and replaced at each change
	leader  *Node         // nil = no leader
}

type delayed struct {
	due time.Time
	cmd *registry.Command
}

// Arrive has the next of what other homes sent arrive now.
func (r *Region) Arrive() { r.early <- struct{}{} }

// arrive applies what other homes sent, each after its delay, until stop.
func (r *Region) arrive(stop <-chan struct{}) {
	for {
		select {
		case d := <-r.queue:
			select {
			case <-time.After(time.Until(d.due)):
			case <-r.early:
			case <-stop:
				return
			}
			r.accept(d.cmd)
		case <-stop:
			return
		}
	}
}

// Node is one control node. It is an admin.Store.
type Node struct {
	Name     string
	URL      string // of the operators' listener
	Internal string // host:port of the internal listener

	region  *Region
	servers []*http.Server

	mu          sync.Mutex
	Verdicts    []feed.Verdict
	Revocations []registry.Revocation
}

// Option changes the configuration of every node.
type Option func(*admin.Config)

// Start runs regions, each "name:jurisdiction" or "name:jurisdiction:nodes",
// until the test ends. Its region records exist already.
func Start(t *testing.T, logs io.Writer, regions []string, options ...Option) *Cluster {
	t.Helper()
	ca, err := identity.CreateCA(t.TempDir(), "test")
	check(t, err)
	c := &Cluster{t: t, ca: ca, Roots: x509.NewCertPool(), RootPEM: ca.ServerRoots()}
	c.Roots.AppendCertsFromPEM(ca.ServerRoots())
	for _, spec := range regions {
		parts := strings.Split(spec+":1", ":")
		r := &Region{Name: parts[0], Jurisdiction: parts[1], cluster: c, state: ledger.New(), changed: make(chan struct{}), queue: make(chan delayed, 1024), early: make(chan struct{})}
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			r.arrive(stop)
		}()
		t.Cleanup(func() { close(stop); <-done })
		c.Regions = append(c.Regions, r)
		for i := range int(parts[2][0] - '0') {
			r.Nodes = append(r.Nodes, &Node{Name: fmt.Sprintf("%s-c%d", r.Name, i+1), region: r})
		}
		r.leader = r.Nodes[0]
	}
	c.open()
	listeners := map[*Node]net.Listener{} // all addresses are known before any node starts
	for _, r := range c.Regions {
		for _, n := range r.Nodes {
			l := listen(t)
			listeners[n], n.Internal = l, l.Addr().String()
		}
	}
	for _, r := range c.Regions {
		for _, n := range r.Nodes {
			n.start(listeners[n], slog.New(slog.NewJSONHandler(logs, nil)), options)
		}
	}
	return c
}

// open opens all shards and writes the region records.
func (c *Cluster) open() {
	home := map[controlplane.Shard]*Region{controlplane.ShardGlobal: c.Regions[0]}
	members := map[controlplane.Shard][]string{}
	for _, r := range c.Regions {
		pinned := controlplane.ShardPinned(r.Jurisdiction)
		home[controlplane.ShardAny(r.Name)] = r
		if home[pinned] == nil {
			home[pinned] = r
		}
		members[pinned] = append(members[pinned], r.Name)
	}
	for shard, r := range home {
		who := members[shard]
		if who == nil {
			for _, other := range c.Regions {
				who = append(who, other.Name)
			}
		}
		_, err := r.leader.Propose(context.Background(), shard, []registry.Change{{Op: registry.OpOpen, Members: who, Home: r.Name}})
		check(c.t, err)
	}
	for _, r := range c.Regions {
		_, err := c.Regions[0].leader.Propose(context.Background(), controlplane.ShardGlobal, []registry.Change{{Op: registry.OpPut, Record: &registry.Record{
			Kind: registry.KindRegion, Meta: registry.Meta{ID: registry.RegionID(r.Name), Shard: controlplane.ShardGlobal},
			Region: &registry.Region{Name: r.Name, Jurisdiction: r.Jurisdiction, Endpoint: "https://" + r.Name + ".example.com", State: "active"},
		}}})
		check(c.t, err)
	}
}

func (n *Node) start(internal net.Listener, logger *slog.Logger, options []Option) {
	t, c := n.region.cluster.t, n.region.cluster
	loopback := []net.IP{net.IPv4(127, 0, 0, 1)}
	bundle := c.Bundle(n.region.Name, identity.RoleControl, n.Name)
	client := forward.New(forward.Config{Bundle: bundle, Addresses: c.addresses})
	cfg := admin.Config{
		Cluster: "test", Region: n.region.Name, Node: n.Name, Store: n, Forwarder: client,
		Tokens:        []admin.Token{{Name: "tester", SHA256: sha256.Sum256([]byte(Token)), Expires: time.Now().Add(time.Hour)}},
		ClusterSecret: []byte("0123456789abcdef0123456789abcdef"), Verdicts: n, Revocations: n,
		Random: rand.Reader, Hash: cheap, Logger: logger,
	}
	for _, o := range options {
		o(&cfg)
	}
	a, err := admin.New(cfg)
	check(t, err)
	server, err := c.ca.IssueServer([]string{"localhost"}, loopback, time.Hour)
	check(t, err)
	cert, err := tls.X509KeyPair(server.Chain, server.Key)
	check(t, err)
	public := listen(t)
	n.URL = "https://" + public.Addr().String()
	n.serve(public, identity.Public(cert, []string{"h2", "http/1.1"}), a.Handler(), logger)
	n.serve(internal, bundle.Server([]string{"h2"}, identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))), a.Internal(), logger)
	t.Cleanup(func() {
		n.Kill()
		client.Close()
	})
}

// cheap hashes as apikey.Hash does, for 64 times less: under the race detector
// on a busy machine a dozen real hashes take longer than a request may.
func cheap(whole controlplane.Secret) ([]byte, error) {
	sum := sha256.Sum256([]byte(whole.Reveal()))
	return bcrypt.GenerateFromPassword([]byte(base64.StdEncoding.EncodeToString(sum[:])), bcrypt.MinCost)
}

func (n *Node) serve(l net.Listener, tlsConfig *tls.Config, h http.Handler, logger *slog.Logger) {
	srv := admin.Server(h, logger)
	srv.TLSConfig = tlsConfig
	n.servers = append(n.servers, srv)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.ServeTLS(l, "", "") // ends with Kill
	}()
	n.region.cluster.t.Cleanup(func() { <-done })
}

// Bundle makes the identity of a node.
func (c *Cluster) Bundle(region, role, node string) *identity.Bundle {
	c.t.Helper()
	issued, err := c.ca.IssueNode(identity.ID{Cluster: "test", Region: region, Role: role, Node: node}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	check(c.t, err)
	bundle, err := issued.Bundle()
	check(c.t, err)
	return bundle
}

// Kill stops the node's listeners and connections, as a dead process would.
func (n *Node) Kill() {
	for _, s := range n.servers {
		_ = s.Close()
	}
}

func (c *Cluster) addresses(region string) []string {
	var all []string
	for _, r := range c.Regions {
		if r.Name != region {
			continue
		}
		for _, n := range r.Nodes {
			all = append(all, n.Internal)
		}
	}
	return all
}

// Region finds a region by name.
func (c *Cluster) Region(name string) *Region {
	i := slices.IndexFunc(c.Regions, func(r *Region) bool { return r.Name == name })
	return c.Regions[i]
}

// Lead makes n the leader of the region; nil for none.
func (r *Region) Lead(n *Node) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leader = n
}

// Raise has the region take up cluster version 2.
func (r *Region) Raise() {
	r.mu.Lock()
	defer r.mu.Unlock()
	check(r.cluster.t, r.state.Apply(&registry.Command{Type: registry.CmdVersion, Version: registry.Version}).Err)
}

// View implements admin.Store.
func (n *Node) View(f func(*ledger.State)) {
	n.region.mu.Lock()
	defer n.region.mu.Unlock()
	f(n.region.state)
}

// IsLeader implements admin.Store.
func (n *Node) IsLeader() bool {
	n.region.mu.Lock()
	defer n.region.mu.Unlock()
	return n.region.leader == n
}

// Leader implements admin.Store.
func (n *Node) Leader() (node, addr string, ok bool) {
	n.region.mu.Lock()
	defer n.region.mu.Unlock()
	if n.region.leader == nil {
		return "", "", false
	}
	return n.region.leader.Name, n.region.leader.Internal, true
}

// ProposeCommand implements admin.Store: it applies cmd to this region's copy.
func (n *Node) ProposeCommand(_ context.Context, cmd *registry.Command) (ledger.Outcome, error) {
	if !n.IsLeader() {
		return ledger.Outcome{}, controlplane.ErrNotLeader
	}
	n.region.mu.Lock()
	defer n.region.mu.Unlock()
	return n.region.state.Apply(cmd), nil
}

// Read implements admin.Store: one lock stands for the region's log.
func (n *Node) Read(context.Context) error {
	if !n.IsLeader() {
		return controlplane.ErrNotLeader
	}
	return nil
}

// Contact implements admin.Store.
func (n *Node) Contact() time.Time { return time.Now() }

// Propose is ProposeLevel of a write that asks for nothing.
func (n *Node) Propose(ctx context.Context, shard controlplane.Shard, changes []registry.Change) (ledger.Outcome, error) {
	return n.ProposeLevel(ctx, shard, 0, changes)
}

// ProposeLevel implements admin.Store: check, apply, and tell the other members.
func (n *Node) ProposeLevel(_ context.Context, shard controlplane.Shard, _ registry.Level, changes []registry.Change) (ledger.Outcome, error) {
	broken := n.region.cluster.Broken
	if broken != nil {
		if err := broken(n.Name, false); err != nil {
			return ledger.Outcome{}, err
		}
	}
	out, members, err := n.apply(shard, changes)
	if err != nil {
		return out, err
	}
	for _, e := range out.Effective {
		b, err := registry.EncodeEntry(e)
		if err != nil {
			return out, err
		}
		cmd := &registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}}
		for _, r := range n.region.cluster.Regions {
			if r == n.region || !slices.Contains(members, r.Name) {
				continue
			}
			if r.Lag == 0 {
				r.accept(cmd)
			} else {
				r.queue <- delayed{time.Now().Add(r.Lag), cmd}
			}
		}
	}
	if broken != nil {
		if err := broken(n.Name, true); err != nil {
			return ledger.Outcome{}, err
		}
	}
	return out, nil
}

func (n *Node) apply(shard controlplane.Shard, changes []registry.Change) (ledger.Outcome, []string, error) {
	r := n.region
	r.mu.Lock()
	defer r.mu.Unlock()
	switch info, ok := r.state.Shard(shard); {
	case r.leader == nil:
		return ledger.Outcome{}, nil, controlplane.ErrNoLeader
	case r.leader != n:
		return ledger.Outcome{}, nil, controlplane.ErrNotLeader
	case ok && info.Home != r.Name:
		return ledger.Outcome{}, nil, controlplane.ErrNotHome
	}
	if err := r.state.Check(shard, changes); err != nil {
		return ledger.Outcome{}, nil, err
	}
	e, err := r.state.Next(shard, changes)
	if err != nil {
		return ledger.Outcome{}, nil, err
	}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		return ledger.Outcome{}, nil, err
	}
	out := r.state.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{b}})
	close(r.changed)
	r.changed = make(chan struct{})
	info, _ := r.state.Shard(shard)
	return out, info.Members, out.Err
}

func (r *Region) accept(cmd *registry.Command) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if out := r.state.Apply(cmd); out.Err != nil {
		r.cluster.t.Errorf("%s does not accept: %v", r.Name, out.Err)
	}
	close(r.changed)
	r.changed = make(chan struct{})
}

// Wait implements admin.Store.
func (n *Node) Wait(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error {
	for {
		n.region.mu.Lock()
		info, _ := n.region.state.Shard(shard)
		changed := n.region.changed
		n.region.mu.Unlock()
		if info.Last.Compare(point) >= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// PushVerdicts implements admin.VerdictSink.
func (n *Node) PushVerdicts(v []feed.Verdict) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Verdicts = append(n.Verdicts, v...)
}

// PushRevocations implements admin.RevocationSink.
func (n *Node) PushRevocations(v []registry.Revocation) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.Revocations = append(n.Revocations, v...)
}

// Client speaks to operators' listeners.
func (c *Cluster) Client() *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.Roots, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: true}
	c.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	return l
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
