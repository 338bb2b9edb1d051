package homes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/hub"
	"ringmain/controlplane/feed/importer"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testCluster = "test"

// world is some regions, a shard that the first is born home of, and what
// connects them.
type world struct {
	t       testing.TB
	net     *network
	shard   controlplane.Shard
	regions []*region
	dir     string // of real logs; "" = bare ones
	sealer  *seal.Sealer
	adjust  func(*Config)
	log     *slog.Logger

	mu  sync.Mutex // guards what follows where the player's goroutine is not alone
	old []*region  // peers of regions that were recovered without them
}

// region is one control node, which leads its region.
type region struct {
	w     *world
	name  string
	place string // of its directory and address: the name, but for old peers

	kept  *committed // of a bare log
	since uint64     // which life of the region a real log begins

	life  chan struct{} // held while starting or stopping: nothing else may wait on a mutex, or fake time stands still
	homes atomic.Pointer[Homes]

	mu       sync.Mutex
	log      log
	hub      *hub.Hub
	importer *importer.Importer
	up       bool
}

// source is a log that is still to be opened.
type source struct{ log atomic.Pointer[log] }

func (s *source) View(f func(*ledger.State)) { (*s.log.Load()).View(f) }

func newWorld(t testing.TB, seed uint64, real bool, names ...string) *world {
	w := &world{t: t, net: newNetwork(seed), shard: controlplane.ShardAny(names[0]), log: slog.New(slog.DiscardHandler)}
	if os.Getenv("HOMES_LOG") != "" {
		w.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if real {
		w.dir, w.sealer = diskkit.Fast(t), diskkit.Sealer(t)
	}
	for _, name := range names {
		w.regions = append(w.regions, &region{w: w, name: name, place: name, kept: &committed{st: ledger.New()}, life: make(chan struct{}, 1)})
	}
	return w
}

func (w *world) names() (out []string) {
	for _, r := range w.regions {
		out = append(out, r.name)
	}
	return out
}

func (w *world) region(place string) *region {
	for _, r := range slices.Concat(w.regions, w.old) {
		if r.place == place {
			return r
		}
	}
	w.t.Fatalf("there is no region %q", place)
	return nil
}

func (w *world) startAll() {
	for _, r := range w.regions {
		r.start()
	}
}

func (w *world) stopAll() {
	for _, r := range slices.Concat(w.regions, w.old) {
		r.stop()
	}
}

// specs are the shards that the region is born home of.
func (r *region) specs() []quorum.ShardSpec {
	if r.name != r.w.regions[0].name {
		return nil
	}
	return []quorum.ShardSpec{{Shard: r.w.shard, Members: r.w.names()}}
}

func (r *region) start() {
	r.life <- struct{}{}
	defer func() { <-r.life }()
	if _, _, up := r.running(); up {
		return
	}
	t, logger, src := r.w.t, r.w.log.With("region", r.name), new(source)
	served, err := hub.Open(context.Background(), hub.Config{Cluster: testCluster, Region: r.name, Node: r.name + "-c1", Source: src, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	apply := func(out ledger.Outcome, sender controlplane.Epoch) {
		served.Applied(out, sender)
		if h := r.homes.Load(); h != nil {
			h.Applied(out)
		}
	}
	l := r.open(apply, logger)
	src.log.Store(&l)
	var sources []importer.Source
	for _, name := range r.w.names() {
		if name != r.name {
			sources = append(sources, importer.Source{Region: name, HTTP: r.w.net.client(r.name),
				Targets: func() []feed.Target { return feed.Fixed(r.w.addresses(name)...)() }})
		}
	}
	imports, err := importer.Open(context.Background(), importer.Config{
		Cluster: testCluster, Region: r.name, Sources: sources, State: src, Propose: l.ProposeCommand, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Cluster: testCluster, Region: r.name, Node: r.name + "-c1", Store: l, Snapshot: served.ServeSnapshot,
		Addresses: r.w.addresses,
		HTTP:      func(string) *http.Client { return r.w.net.client(r.name) }, Logger: logger, Retake: imports.Retake,
		Since: func() uint64 { return r.lives(l) },
	}
	if r.w.adjust != nil {
		r.w.adjust(&cfg)
	}
	h, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	r.homes.Store(h)
	mux := http.NewServeMux()
	mux.Handle("/feed/v1/", served.Handler())
	mux.Handle(Prefix, h.Handler())
	r.mu.Lock()
	r.log, r.hub, r.importer, r.up = l, served, imports, true
	r.mu.Unlock()
	r.w.net.set(r.place+":1", mux)
}

// running is the region's log and importer, while it runs.
func (r *region) running() (log, *importer.Importer, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log, r.importer, r.up
}

func (r *region) open(apply func(ledger.Outcome, controlplane.Epoch), logger *slog.Logger) log {
	if r.w.dir == "" {
		b := openBare(r.name, r.kept, 2*time.Millisecond, apply)
		r.found(b)
		return b
	}
	ctx, cancel := context.WithCancel(context.Background())
	q, err := quorum.Open(ctx, quorum.Config{
		Cluster: testCluster, Region: r.name, Node: r.name + "-c1", Dir: filepath.Join(r.w.dir, r.place),
		Peers: []quorum.Peer{{Node: r.name + "-c1", Addr: r.name + ":2"}}, Homes: r.specs(), Listener: &deaf{closed: make(chan struct{})},
		Dial:  func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") },
		Since: r.since, Sealer: r.w.sealer, OnApply: apply, Tunables: quorum.Tunables{SegmentBytes: 1 << 20}, Logger: logger,
	})
	if err != nil {
		r.w.t.Fatal(err)
	}
	return realLog{q, cancel}
}

// found opens what the region is born home of, as quorum does when it first leads.
func (r *region) found(l log) {
	for _, spec := range r.specs() {
		var held bool
		l.View(func(s *ledger.State) { _, held = s.Shard(spec.Shard) })
		if held {
			continue
		}
		var cmd *registry.Command
		l.View(func(s *ledger.State) {
			e, err := s.Next(spec.Shard, []registry.Change{{Op: registry.OpOpen, Members: slices.Sorted(slices.Values(spec.Members)), Home: r.name}})
			if err != nil {
				r.w.t.Fatal(err)
			}
			enc, err := registry.EncodeEntry(e)
			if err != nil {
				r.w.t.Fatal(err)
			}
			cmd = &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}}
		})
		if _, err := l.ProposeCommand(context.Background(), cmd); err != nil {
			r.w.t.Fatal(err)
		}
	}
}

// stop ends the node. What it committed stays.
func (r *region) stop() {
	r.life <- struct{}{}
	defer func() { <-r.life }()
	l, imports, up := r.running()
	if !up {
		return
	}
	r.mu.Lock()
	r.up = false
	r.mu.Unlock()
	r.w.net.set(r.place+":1", nil)
	if b, ok := l.(*bareLog); ok {
		b.die()
	}
	h := r.homes.Swap(nil)
	if err := errors.Join(imports.Close(), h.Close(), l.close(), r.hub.Close()); err != nil {
		r.w.t.Errorf("stop %s: %v", r.name, err)
	}
}

// backup keeps a real log's directory as it is now, for restore.
func (r *region) backup() {
	r.stop()
	dir := filepath.Join(r.w.dir, r.place)
	if err := errors.Join(os.RemoveAll(dir+".backup"), os.CopyFS(dir+".backup", os.DirFS(dir))); err != nil {
		r.w.t.Fatal(err)
	}
	r.start()
}

// oldPeers is the end of their place.
const oldPeers = "-old"

// recover begins the region anew from one node's copy. Its other nodes, which
// were given up as lost, are back at their place: they have a majority of the
// region's log as it was, and the region's certificates.
func (r *region) recover() {
	r.stop()
	dir := filepath.Join(r.w.dir, r.place)
	err := errors.Join(os.CopyFS(dir+oldPeers, os.DirFS(dir)),
		quorum.RecoverWith(dir, testCluster, r.name, []quorum.Peer{{Node: r.name + "-c1", Addr: r.name + ":2"}}))
	if err != nil {
		r.w.t.Fatal(err)
	}
	old := &region{w: r.w, name: r.name, place: r.place + oldPeers, life: make(chan struct{}, 1)}
	r.w.mu.Lock()
	r.w.old = append(r.w.old, old)
	r.w.mu.Unlock()
	r.start()
	old.start()
}

// addresses are those at which nodes of the region may answer: its old peers
// first, if it was recovered without them.
func (w *world) addresses(name string) (addrs []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.old {
		if r.name == name {
			addrs = append(addrs, r.place+":1")
		}
	}
	return append(addrs, name+":1")
}

// lives is which life of the region l is of.
func (r *region) lives(l log) uint64 {
	if q, ok := l.(realLog); ok {
		return q.Since()
	}
	return r.since
}

// restore begins another life of the region with the backup.
func (r *region) restore() {
	r.stop()
	dir := filepath.Join(r.w.dir, r.place)
	if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(dir+".backup"))); err != nil {
		r.w.t.Fatal(err)
	}
	r.since = uint64(time.Now().UnixMilli())
	r.start()
}

// copyOf is the region's copy of the shard, and whether it runs.
func (r *region) copyOf() (c ownership.Copy, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.up {
		return c, false
	}
	r.log.View(func(s *ledger.State) {
		var info registry.ShardInfo
		if info, ok = s.Shard(r.w.shard); s.Version() < registry.VersionOwnership {
			ok = false
		}
		c = info.Copy()
	})
	return c, ok
}

// role is what the region is to the shard, "down" if it does not run.
func (r *region) role() string {
	c, ok := r.copyOf()
	if !ok {
		return "down"
	}
	return c.Role(ownership.Member{Region: r.name, Since: r.lives(r.log)}).String()
}

func (w *world) eventually(limit time.Duration, what string, ok func() bool) bool {
	for end := time.Now().Add(limit); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Errorf("after %s there is not: %s\n%s", limit, what, w.dump())
			return false
		}
	}
	return true
}

func (w *world) dump() string {
	var b strings.Builder
	for _, r := range w.regions {
		c, _ := r.copyOf()
		fmt.Fprintf(&b, "%s: %s promised %s last %s.%d confirmed %d spans %v\n", r.name, r.role(), c.Promised, c.Last.Epoch, c.Last.Seq, c.Confirmed, c.Spans)
	}
	return b.String()
}

// content is what the region holds of the shard, as one text.
func (r *region) content() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.up {
		return "down"
	}
	var text string
	r.log.View(func(s *ledger.State) {
		info, _ := s.Shard(r.w.shard)
		text = fmt.Sprintf("%v %x", info.Last, s.Digest(r.w.shard))
	})
	return text
}

// same waits until the regions hold the same.
func (w *world) same(limit time.Duration, names ...string) bool {
	return w.eventually(limit, "equal copies in "+strings.Join(names, ", "), func() bool {
		want := w.region(names[0]).content()
		for _, n := range names[1:] {
			if w.region(n).content() != want {
				return false
			}
		}
		return want != "down"
	})
}

// org is a record whose name says which write it comes from.
func (w *world) org(name string) []registry.Change {
	return []registry.Change{{Op: registry.OpPut, IfRevision: registry.RevisionAbsent, Record: &registry.Record{
		Kind: registry.KindOrg, Meta: registry.Meta{ID: orgID(name), Shard: w.shard, Created: 1, Updated: 1},
		Org: &registry.Org{Name: name, Plan: "build", State: "verified", Jurisdiction: "any"},
	}}}
}

// key is a key, its project and its org.
func (w *world) key(name string) []registry.Change {
	id := keyID(name)
	project := strings.Replace(id, "key_", "prj_", 1)
	return append(w.org(name),
		registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindProject,
			Meta:    registry.Meta{ID: project, Shard: w.shard, Created: 1, Updated: 1},
			Project: &registry.Project{Org: orgID(name), Name: name}}},
		registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindKey,
			Meta: registry.Meta{ID: id, Shard: w.shard, Created: 1, Updated: 1},
			Key:  &registry.Key{Project: project, Name: name, Class: "live", Hash: bytes.Repeat([]byte{1}, 60), Hint: id[len(id)-4:]}}})
}

func orgID(name string) string {
	return fmt.Sprintf("org_any_%016s", strings.ReplaceAll(name, "-", "0"))
}

func keyID(name string) string {
	return fmt.Sprintf("key_any_%016s", strings.ReplaceAll(name, "-", "0"))
}

// propose writes at the region, as admin does on its leader.
func (r *region) propose(ctx context.Context, changes []registry.Change) (controlplane.Point, error) {
	r.mu.Lock()
	l, up := r.log, r.up
	r.mu.Unlock()
	if !up {
		return controlplane.Point{}, controlplane.ErrUnreachable
	}
	out, err := l.Propose(ctx, r.w.shard, changes)
	if err == nil {
		err = out.Err
	}
	return out.Points[r.w.shard], err
}

func (r *region) holds(name string) (held bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.up {
		r.log.View(func(s *ledger.State) { _, held = s.Get(registry.KindOrg, orgID(name)) })
	}
	return held
}

func (r *region) revoked(name string) (held bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.up {
		r.log.View(func(s *ledger.State) { _, held = s.Revoked(registry.KindKey, keyID(name)) })
	}
	return held
}

// quarantined names the orgs in quarantine.
func (r *region) quarantined() (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.up {
		return nil
	}
	r.log.View(func(s *ledger.State) {
		for q := range s.Quarantine(r.w.shard) {
			for _, c := range q.Entry.Changes {
				if c.Op == registry.OpPut && c.Record.Org != nil {
					names = append(names, c.Record.Org.Name)
				}
			}
		}
	})
	return names
}

func seeded(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
