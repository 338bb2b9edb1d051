package quorum

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/recordkit"
	"ringmain/internal/testkit/synckit"
)

// A release is what a node of some version left on disk, stopped cleanly or
// killed: its directory, the region's key and what it held. Directories below
// testdata/releases are named by the commit that wrote them and never change.
// To add the present version's:
//
//	QUORUM_RELEASE=testdata/releases/COMMIT go test -run TestMakeRelease .
const releases = "testdata/releases"

// Ways in which a release's node stopped.
const (
	stoppedCleanly = "clean"  // snapshots taken, log cut, image complete
	wasKilled      = "killed" // by SIGKILL: no snapshot, the image behind the log
)

func TestReleases(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(releases, "*"))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no releases: %v", err)
	}
	for _, release := range dirs {
		for _, state := range []string{stoppedCleanly, wasKilled} {
			t.Run(filepath.Base(release)+"/"+state, func(t *testing.T) {
				dir := diskkit.Fast(t)
				synckit.Test(t, func(t *testing.T) { openRelease(t, dir, release, state) })
			})
		}
	}
}

func openRelease(t *testing.T, dir, release, state string) {
	diskkit.Unpack(t, filepath.Join(release, state+".tar.gz"), filepath.Join(dir, "c1"))
	c := releaseCluster(t, dir, release)
	want, err := os.ReadFile(filepath.Join(release, state+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	nd := c.nodes[0]
	c.start(nd)
	c.leader()
	if got := describe(nd.q); got != string(want) {
		t.Fatalf("it holds\n%s\nand held\n%s", got, want)
	}
	// What was staged is whole: the rest of it is adopted.
	chunks, adopt := fraShard(t)
	for _, cmd := range append(chunks[2:], adopt) {
		if _, err := nd.q.ProposeCommand(context.Background(), cmd); err != nil {
			t.Fatalf("the staged snapshot goes on: %v", err)
		}
	}
	if _, err := nd.q.Propose(context.Background(), "us", pinned("org_us_0000000000000009", "us")); err != nil {
		t.Fatalf("a write: %v", err)
	}
	after := describe(nd.q)
	if !strings.Contains(after, "org_us_0000000000000009") || !strings.Contains(after, "org_any_fra0000000003") {
		t.Fatalf("it goes on with\n%s", after)
	}
	c.stop(nd)
	c.start(nd)
	c.leader()
	if got := describe(nd.q); got != after {
		t.Errorf("started again it holds\n%s\nwant\n%s", got, after)
	}
	c.stop(nd)
}

// releaseCluster is the one node that every release is of.
func releaseCluster(t *testing.T, dir, release string) *cluster {
	t.Helper()
	c := newCluster(t, dir, 1)
	key := filepath.Join(dir, "release.key")
	text, err := os.ReadFile(filepath.Join(release, "region.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, text, 0o600); err != nil { // git keeps no mode that seal accepts
		t.Fatal(err)
	}
	h, err := seal.OpenFileHolder(key)
	if err != nil {
		t.Fatal(err)
	}
	c.sealer = seal.New(h)
	c.adjust = func(cfg *Config) { cfg.Homes = nil } // opens nothing by itself
	return c
}

func TestMakeRelease(t *testing.T) {
	release := os.Getenv("QUORUM_RELEASE")
	if release == "" {
		t.Skip("writes the present version's release: set QUORUM_RELEASE")
	}
	if err := os.MkdirAll(release, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := seal.CreateKeyFile(filepath.Join(release, "region.key")); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{stoppedCleanly, wasKilled} {
		dir := t.TempDir()
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestReleaseWriter$", "-test.v")
		child.Env = append(os.Environ(), "QUORUM_RELEASE_WRITER="+dir, "QUORUM_RELEASE_STATE="+state)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			t.Log(lines.Text())
			if lines.Text() == "written" && state == wasKilled {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); (err == nil) != (state == stoppedCleanly) {
			t.Fatalf("%s: %v", state, err)
		}
		text, err := os.ReadFile(filepath.Join(dir, "held"))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(release, state+".txt"), text, 0o644); err != nil {
			t.Fatal(err)
		}
		diskkit.Pack(t, filepath.Join(release, state+".tar.gz"), filepath.Join(dir, "c1"))
	}
}

// TestReleaseWriter is the node of TestMakeRelease, in a process of its own.
func TestReleaseWriter(t *testing.T) {
	dir, state := os.Getenv("QUORUM_RELEASE_WRITER"), os.Getenv("QUORUM_RELEASE_STATE")
	if dir == "" {
		t.Skip("a part of TestMakeRelease")
	}
	c := releaseCluster(t, dir, os.Getenv("QUORUM_RELEASE"))
	c.tune = Tunables{SegmentBytes: 4 << 10, Flush: time.Hour, SnapshotEvery: time.Hour}
	if state == stoppedCleanly {
		c.tune = Tunables{SegmentBytes: 4 << 10, TrailingLogs: 8, SnapshotEntries: 1 << 30}
	}
	c.adjust = func(cfg *Config) {
		cfg.Homes = []ShardSpec{{controlplane.ShardGlobal, []string{testRegion, "eu-fra"}}, {testShard, []string{testRegion, "eu-fra"}}, {"us", []string{testRegion}}}
	}
	nd := c.nodes[0]
	c.start(nd)
	c.leader()
	writeRelease(t, nd.q, state)
	if err := os.WriteFile(filepath.Join(dir, "held"), []byte(describe(nd.q)), 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Println("written")
	if state == wasKilled {
		select {}
	}
	c.stop(nd)
}

// writeRelease gives the node one of everything, and more than one of some.
func writeRelease(t *testing.T, q *Quorum, state string) {
	propose := func(shard controlplane.Shard, changes ...registry.Change) {
		t.Helper()
		if _, err := q.Propose(context.Background(), shard, changes); err != nil {
			t.Fatal(err)
		}
	}
	puts := func(shard controlplane.Shard, records ...*registry.Record) {
		t.Helper()
		for _, r := range records {
			r.Meta.Shard = shard
			propose(shard, registry.Change{Op: registry.OpPut, Record: r})
		}
	}
	middle := func() {
		t.Helper()
		if state == stoppedCleanly {
			if err := q.raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		} else if err := q.machine.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	puts(controlplane.ShardGlobal, globalRecords()...)
	puts(testShard, accountRecords("any")...)
	middle()
	puts("us", accountRecords("us")...)
	for _, v := range []struct {
		kind  registry.Kind
		shard controlplane.Shard
		id    string
	}{{registry.KindKey, testShard, keyID("any", 1)}, {registry.KindKey, "us", keyID("us", 2)}, {registry.KindUpstream, controlplane.ShardGlobal, "ups_0000000003"}} {
		propose(v.shard, registry.Change{Op: registry.OpRevoke, Kind: v.kind, ID: v.id, At: 1_800_000_000_500, Expires: 1_900_000_000_000})
	}
	propose(testShard, registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: keyID("any", 1)})
	middle()
	// Another home's shard, then its entries, then half of yet another's.
	chunks, adopt := euShard(t)
	for _, cmd := range append(chunks, adopt) {
		if _, err := q.ProposeCommand(context.Background(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	e := registry.NextAfter("eu", controlplane.Point{Epoch: euEpoch, Seq: 7}, []registry.Change{{Op: registry.OpDelete, Kind: registry.KindOrg, ID: "org_eu_0000000000000001"}})
	enc, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := q.ProposeCommand(context.Background(), &registry.Command{Type: registry.CmdAccept, Sender: euEpoch, Entries: [][]byte{enc}}); err != nil {
		t.Fatal(err)
	}
	staged, _ := fraShard(t)
	for _, cmd := range staged[:2] {
		if _, err := q.ProposeCommand(context.Background(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	if state == stoppedCleanly {
		middle()
	}
	raise(t, q)
	for i := range 12 {
		puts(testShard, &registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: orgID(i), Created: 1, Updated: int64(i)},
			Org: &registry.Org{Name: "tail", Plan: "trial", State: "unverified", Jurisdiction: "any"}})
	}
	loseSome(t, q)
}

// raise has the region take up its release's cluster version, and the other
// member of testShard confirm what there is of it.
func raise(t *testing.T, q *Quorum) {
	t.Helper()
	if err := q.Raise(context.Background()); err != nil {
		t.Fatal(err)
	}
	last := lastOf(q, testShard)
	confirm := &registry.Confirm{Shard: testShard, Epoch: last.Epoch, Seq: last.Seq}
	if _, err := q.ProposeCommand(context.Background(), &registry.Command{Type: registry.CmdConfirm, Confirm: confirm}); err != nil {
		t.Fatal(err)
	}
}

// loseSome has another region take testShard over without its last three entries.
func loseSome(t *testing.T, q *Quorum) {
	t.Helper()
	last := lastOf(q, testShard)
	two := controlplane.Epoch{Counter: last.Epoch.Counter + 1, Region: "eu-fra"}
	enc, err := registry.EncodeEntry(&registry.Entry{Shard: testShard, Epoch: two, Seq: last.Seq - 2, Prev: last.Epoch,
		Changes: []registry.Change{{Op: registry.OpOpen, Home: "eu-fra", Members: []string{"eu-fra", testRegion}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*registry.Command{
		{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: testShard, Epoch: two}},
		{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{enc}},
	} {
		if _, err := q.ProposeCommand(context.Background(), cmd); err != nil {
			t.Fatal(err)
		}
	}
}

func lastOf(q *Quorum, shard controlplane.Shard) (last controlplane.Point) {
	q.View(func(s *ledger.State) {
		info, _ := s.Shard(shard)
		last = info.Last
	})
	return last
}

func meta(id string) registry.Meta {
	return registry.Meta{ID: id, Created: 1_800_000_000_000, Updated: 1_800_000_000_001}
}

func keyID(jurisdiction string, n int) string { return fmt.Sprintf("key_%s_%016d", jurisdiction, n) }

func globalRecords() []*registry.Record {
	terms := registry.Terms{Retention: "zero", PromptCache: "memory", Training: "never", BAA: true, Contract: strings.Repeat("0f", 32), Dated: "2026-11-01"}
	ups := func(n int, more registry.Upstream) *registry.Record {
		more.Name, more.Provider, more.Region, more.Dialect = fmt.Sprintf("ups-%d", n), "openai", testRegion, "openai"
		more.BaseURL, more.Auth, more.Terms, more.Credential = "https://api.example.com", "bearer", terms, fmt.Appendf(nil, "sk-%d", n)
		return &registry.Record{Kind: registry.KindUpstream, Meta: meta(fmt.Sprintf("ups_%010d", n)), Upstream: &more}
	}
	region := func(name, jurisdiction string) *registry.Record {
		return &registry.Record{Kind: registry.KindRegion, Meta: meta(registry.RegionID(name)),
			Region: &registry.Region{Name: name, Jurisdiction: jurisdiction, Endpoint: "https://" + name + ".example.com", State: "active", Brownout: 2}}
	}
	route := func(n int, r registry.Route) *registry.Record {
		r.Model = fmt.Sprintf("model-%d", n)
		return &registry.Record{Kind: registry.KindRoute, Meta: meta(fmt.Sprintf("rte_%010d", n)), Route: &r}
	}
	return []*registry.Record{
		region(testRegion, "us"), region("eu-fra", "eu"),
		ups(1, registry.Upstream{Endpoints: []string{"/v1/embeddings"}, Headers: []registry.Header{{Name: "x-team", Value: "a"}}, Query: "v=1", Concurrency: 7}),
		ups(2, registry.Upstream{Simulated: true}), ups(3, registry.Upstream{Disabled: true}),
		route(1, registry.Route{Targets: []registry.Target{{Upstream: "ups-1", Model: "m", Weight: 2, Order: 1}}, Timeouts: registry.Timeouts{TotalMS: 5}}),
		route(2, registry.Route{Targets: []registry.Target{{Upstream: "ups-2", Model: "m"}}, Fallbacks: []string{"model-1"}, ContextFallback: "model-1", Deterministic: true}),
	}
}

// accountRecords are an org with a project, keys and policies.
func accountRecords(jurisdiction string) []*registry.Record {
	org, project := fmt.Sprintf("org_%s_0000000001", jurisdiction), fmt.Sprintf("prj_%s_0000000001", jurisdiction)
	key := func(n int, k registry.Key) *registry.Record {
		k.Project, k.Name, k.Class, k.Hash, k.Hint = project, fmt.Sprintf("key %d", n), "live", fmt.Appendf(nil, "hash-%d", n), fmt.Sprintf("%04d", n)
		return &registry.Record{Kind: registry.KindKey, Meta: meta(keyID(jurisdiction, n)), Key: &k}
	}
	policy := func(n int, p registry.Policy) *registry.Record {
		p.Org = org
		return &registry.Record{Kind: registry.KindPolicy, Meta: meta(fmt.Sprintf("pol_%s_%010d", jurisdiction, n)), Policy: &p}
	}
	return []*registry.Record{
		{Kind: registry.KindOrg, Meta: meta(org), Org: &registry.Org{Name: "Acme", Plan: "enterprise", State: "verified", Jurisdiction: jurisdiction, Roaming: jurisdiction == "any"}},
		{Kind: registry.KindProject, Meta: meta(project), Project: &registry.Project{Org: org, Name: "web", CrossProvider: true, Class: "batch"}},
		key(1, registry.Key{}), key(2, registry.Key{Expires: 1_900_000_000_000}), key(3, registry.Key{PrevHash: []byte("before"), PrevUntil: 1_800_000_100_000}),
		policy(1, registry.Policy{NoRetention: true, Models: []string{"model-1"}, Dedicated: true}), policy(2, registry.Policy{Project: project, Residency: "us"}),
	}
}

func pinned(id, jurisdiction string) []registry.Change {
	return []registry.Change{{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindOrg,
		Meta: registry.Meta{ID: id, Shard: controlplane.Shard(jurisdiction), Created: 1, Updated: 1},
		Org:  &registry.Org{Name: "New", Plan: "enterprise", State: "verified", Jurisdiction: jurisdiction}}}}
}

// fraShard is another region's unpinned shard, in four chunks and a revocation.
func fraShard(t *testing.T) (chunks []*registry.Command, adopt *registry.Command) {
	t.Helper()
	const shard = controlplane.Shard("any-eu-fra")
	s := ledger.New()
	apply := func(changes ...registry.Change) {
		if out := s.Apply(recordkit.Command(t, s, shard, changes...)); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	apply(registry.Change{Op: registry.OpOpen, Members: []string{"eu-fra", testRegion}, Home: "eu-fra"})
	for i := range 4 {
		apply(registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindOrg,
			Meta: registry.Meta{ID: fmt.Sprintf("org_any_fra%010d", i), Shard: shard, Created: 1, Updated: 1},
			Org:  &registry.Org{Name: "n", Plan: "build", State: "verified", Jurisdiction: "any"}}})
	}
	snap, _ := s.ShardSnapshot(shard)
	for r := range snap.Records {
		enc, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, &registry.Command{Type: registry.CmdStage, Stage: &registry.Stage{
			Shard: shard, Snapshot: "half", Chunk: uint64(len(chunks)), Records: [][]byte{enc}}})
	}
	digest := snap.Digest()
	return chunks, &registry.Command{Type: registry.CmdAdopt, Sender: euEpoch, Adopt: &registry.Adopt{
		Shard: shard, Snapshot: "half", Members: snap.Info.Members, Home: snap.Info.Home, Point: snap.Info.Last, Digest: digest[:]}}
}

// describe says all that a node holds, in words that do not depend on how it
// is encoded.
func describe(q *Quorum) string {
	var b strings.Builder
	q.View(func(s *ledger.State) {
		if v := s.Version(); v > 1 {
			fmt.Fprintf(&b, "cluster version %d\n", v)
		}
		for _, name := range []controlplane.Shard{"any-eu-fra", testShard, "eu", controlplane.ShardGlobal, "us"} {
			if g, ok := s.Staged(name); ok {
				fmt.Fprintf(&b, "%s: %d chunks of %s are staged\n", name, g.Chunks, g.Snapshot)
			}
			snap, ok := s.ShardSnapshot(name)
			if !ok {
				continue
			}
			i := snap.Info
			fmt.Fprintf(&b, "%s: %v of %s at %s.%d, promised to %s, spans", name, i.Members, i.Home, i.Last.Epoch, i.Last.Seq, i.Epoch)
			for _, span := range i.Spans {
				fmt.Fprintf(&b, " %s from %d", span.Epoch, span.Start)
			}
			b.WriteByte('\n')
			for r := range snap.Records {
				text, err := json.Marshal(r)
				if err != nil {
					panic(err)
				}
				fmt.Fprintf(&b, "  %s", text)
				if r.Key != nil {
					fmt.Fprintf(&b, " %s %s", r.Key.Hash, r.Key.PrevHash)
				}
				if r.Upstream != nil {
					fmt.Fprintf(&b, " %s", r.Upstream.Credential)
				}
				b.WriteByte('\n')
			}
			for v := range snap.Revocations {
				fmt.Fprintf(&b, "  %s %s is revoked since %d, until %d\n", v.Kind, v.ID, v.At, v.Expires)
			}
			for l := range s.Quarantine(name) {
				fmt.Fprintf(&b, "  %s.%d is in quarantine, by %s\n", l.Entry.Epoch, l.Entry.Seq, l.By)
			}
		}
	})
	return b.String()
}
