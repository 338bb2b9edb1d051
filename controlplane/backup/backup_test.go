package backup_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/backup"
	"ringmain/controlplane/quorum"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/recordkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	region = "us-east"
	shard  = controlplane.Shard("any-us-east")
)

func apply(t testing.TB, s *ledger.State, shard controlplane.Shard, changes ...registry.Change) {
	t.Helper()
	if out := s.Apply(recordkit.Command(t, s, shard, changes...)); out.Err != nil {
		t.Fatal(out.Err)
	}
}

func put(r *registry.Record, shard controlplane.Shard, id string) registry.Change {
	r.Meta = registry.Meta{ID: id, Shard: shard, Created: 1_800_000_000_000, Updated: 1_800_000_000_000}
	return registry.Change{Op: registry.OpPut, Record: r}
}

// region with some keys in two shards, one of them revoked.
func someState(t testing.TB, keys int) *ledger.State {
	t.Helper()
	s := ledger.New()
	apply(t, s, controlplane.ShardGlobal, registry.Change{Op: registry.OpOpen, Members: []string{region}, Home: region})
	apply(t, s, controlplane.ShardGlobal, put(&registry.Record{Kind: registry.KindRegion, Region: &registry.Region{
		Name: region, Jurisdiction: "us", Endpoint: "https://us.example.com", State: "active"}}, controlplane.ShardGlobal, "reg_us-east"))
	apply(t, s, shard, registry.Change{Op: registry.OpOpen, Members: []string{region}, Home: region})
	apply(t, s, shard, put(&registry.Record{Kind: registry.KindOrg, Org: &registry.Org{Name: "Acme", Plan: "build", State: "verified", Jurisdiction: "any"}}, shard, "org_any_0000000001"),
		put(&registry.Record{Kind: registry.KindProject, Project: &registry.Project{Org: "org_any_0000000001", Name: "web"}}, shard, "prj_any_0000000001"))
	for i := 0; i < keys; {
		var changes []registry.Change
		for ; i < keys && len(changes) < registry.MaxChanges; i++ {
			id := fmt.Sprintf("key_any_%016d", i)
			changes = append(changes, put(&registry.Record{Kind: registry.KindKey, Key: &registry.Key{Project: "prj_any_0000000001", Name: "k", Class: "live",
				Hash: fmt.Appendf(nil, "$2a$10$%053d", i), Hint: id[len(id)-4:]}}, shard, id))
		}
		apply(t, s, shard, changes...)
	}
	apply(t, s, shard, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: "key_any_0000000000000001", At: 5})
	return s
}

func source() backup.Source {
	return backup.Source{Cluster: "test", Region: region, Node: "c1", Program: "dev", Taken: time.Unix(1_800_000_000, 5), Contact: time.Unix(1_800_000_000, 0), Applied: 4711, Term: 3}
}

func create(t testing.TB, sealer *seal.Sealer, s *ledger.State) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := backup.Create(&b, sealer, source(), s); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func digests(s *ledger.State) (all string) {
	for _, i := range s.Shards() {
		all += fmt.Sprintf("%s %v %v %x\n", i.Shard, i.Last, i.Epoch, s.Digest(i.Shard))
	}
	return all
}

func TestInspect(t *testing.T) {
	sealer, s := diskkit.Sealer(t), someState(t, 300)
	file := create(t, sealer, s)
	if bytes.Contains(file, []byte("Acme")) || bytes.Contains(file, []byte("$2a$10$")) || bytes.Contains(file, []byte("org_any_0000000001")) {
		t.Error("the file holds content in the clear")
	}
	info, err := backup.Inspect(bytes.NewReader(file), sealer)
	if err != nil {
		t.Fatal(err)
	}
	if info.Cluster != "test" || info.Region != region || info.Applied != 4711 || !info.Taken.Equal(source().Taken) || len(info.Shards) != 2 {
		t.Errorf("it says %+v", info)
	}
	any := info.Shards[0]
	if any.Shard != shard || any.Records["key"] != 300 || any.Records["org"] != 1 || any.Records["project"] != 1 || any.Revocations != 1 || any.Last.Seq != 6 || any.Home != region {
		t.Errorf("of %s it says %+v", shard, any)
	}
	_, again, err := backup.Read(bytes.NewReader(file), sealer)
	if err != nil || digests(again) != digests(s) {
		t.Errorf("%v, it reads\n%s\nwant\n%s", err, digests(again), digests(s))
	}
	if _, err := backup.Inspect(bytes.NewReader(file), diskkit.Sealer(t)); !errors.Is(err, seal.ErrUnknownKey) {
		t.Errorf("with another key: %v", err)
	}
	if _, err := backup.Inspect(strings.NewReader("not a backup at all"), sealer); !errors.Is(err, seal.ErrNotSealed) {
		t.Errorf("something else: %v", err)
	}
}

// Whatever byte is altered, and wherever the file ends, it is found.
func TestEveryByteCounts(t *testing.T) {
	sealer := diskkit.Sealer(t)
	file := create(t, sealer, someState(t, 3))
	for i := range file {
		bad := bytes.Clone(file)
		bad[i] ^= 1 << (i % 8)
		if _, err := backup.Inspect(bytes.NewReader(bad), sealer); err == nil {
			t.Errorf("byte %d of %d was altered unnoticed", i, len(file))
		}
		if _, err := backup.Inspect(bytes.NewReader(file[:i]), sealer); err == nil {
			t.Errorf("an end after %d of %d bytes went unnoticed", i, len(file))
		}
	}
	if _, err := backup.Inspect(bytes.NewReader(append(bytes.Clone(file), 0)), sealer); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("a byte too many: %v", err)
	}
}

func TestFailingWriter(t *testing.T) {
	full := errors.New("no room")
	w := writerFunc(func([]byte) (int, error) { return 0, full })
	if _, err := backup.Create(w, diskkit.Sealer(t), source(), someState(t, 3)); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// node is a region of one in this process.
func node(t testing.TB, dir, cluster string, sealer *seal.Sealer) *quorum.Quorum {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	q, err := quorum.Open(context.Background(), quorum.Config{
		Cluster: cluster, Region: region, Node: "c1", Dir: dir, Peers: []quorum.Peer{{Node: "c1", Addr: l.Addr().String()}},
		Homes: []quorum.ShardSpec{{Shard: shard, Members: []string{region}}}, Sealer: sealer, Listener: l,
		Dial: func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("nobody else is there")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); !q.IsLeader(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not lead")
		}
	}
	return q
}

func target(dir string, sealer *seal.Sealer) backup.Target {
	return backup.Target{Dir: dir, Cluster: "new", Region: region, Node: "c1", Peers: []quorum.Peer{{Node: "c1", Addr: "127.0.0.1:1"}}, Sealer: sealer, Since: uint64(time.Now().UnixMilli())}
}

func TestRestore(t *testing.T) {
	old, fresh := diskkit.Sealer(t), diskkit.Sealer(t)
	s := someState(t, 300)
	file := create(t, old, s)
	dir := filepath.Join(t.TempDir(), "quorum")
	info, err := backup.Restore(bytes.NewReader(file), old, target(dir, fresh))
	if err != nil || info.Applied != 4711 {
		t.Fatalf("%+v, %v", info, err)
	}
	q := node(t, dir, "new", fresh)
	state, applied, _ := q.Freeze()
	if digests(state) != digests(s) {
		t.Errorf("it holds\n%s\nwant\n%s", digests(state), digests(s))
	}
	if _, lost := q.MayHaveLost(); !lost || applied < 4711 {
		t.Errorf("at %d it does not know that it may have lost commits", applied)
	}
	if _, revoked := state.Revoked(registry.KindKey, "key_any_0000000000000001"); !revoked {
		t.Error("a revocation is missing")
	}
	// It is a region like any other: it writes, and can be backed up again.
	if _, err := q.Propose(context.Background(), shard, []registry.Change{put(&registry.Record{Kind: registry.KindOrg,
		Org: &registry.Org{Name: "New", Plan: "trial", State: "unverified", Jurisdiction: "any"}}, shard, "org_any_0000000002")}); err != nil {
		t.Error(err)
	}
	state, _, _ = q.Freeze()
	if again := create(t, old, state); bytes.Equal(again, file) {
		t.Error("the next backup is the same")
	}
}

func TestRestoreRefuses(t *testing.T) {
	sealer := diskkit.Sealer(t)
	file := create(t, sealer, someState(t, 3))
	live := filepath.Join(t.TempDir(), "quorum")
	q := node(t, live, "new", sealer)
	restore := func(change func(*backup.Target)) error {
		to := target(filepath.Join(t.TempDir(), "quorum"), sealer)
		change(&to)
		_, err := backup.Restore(bytes.NewReader(file), sealer, to)
		return err
	}
	if err := restore(func(to *backup.Target) { to.Dir = live }); err == nil || !strings.Contains(err.Error(), live) || !strings.Contains(err.Error(), "empty directory") {
		t.Errorf("over live data: %v", err)
	}
	if _, err := q.Propose(context.Background(), shard, []registry.Change{put(&registry.Record{Kind: registry.KindOrg,
		Org: &registry.Org{Name: "x", Plan: "trial", State: "unverified", Jurisdiction: "any"}}, shard, "org_any_0000000002")}); err != nil {
		t.Errorf("the live region: %v", err)
	}
	if err := restore(func(to *backup.Target) { to.Region = "eu-fra" }); !errors.Is(err, controlplane.ErrWrongCluster) {
		t.Errorf("another region: %v", err)
	}
	if err := restore(func(to *backup.Target) { to.Peers = nil }); err == nil || !strings.Contains(err.Error(), "c1") {
		t.Errorf("no peers: %v", err)
	}
	// A damaged file leaves nothing behind.
	dir := filepath.Join(t.TempDir(), "quorum")
	if _, err := backup.Restore(bytes.NewReader(file[:len(file)-1]), sealer, target(dir, sealer)); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("a damaged file: %v", err)
	}
	if left, err := filepath.Glob(dir + "*"); err != nil || len(left) > 0 {
		t.Errorf("it left %v, %v", left, err)
	}
	// What an attempt left that was stopped is no hindrance.
	if err := errors.Join(os.MkdirAll(dir+".new", 0o700), os.WriteFile(filepath.Join(dir+".new", "half"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Restore(bytes.NewReader(file), sealer, target(dir, sealer)); err != nil {
		t.Error(err)
	}
}

// FuzzRead gives the reader frames that are sealed well and mean anything.
func FuzzRead(f *testing.F) {
	sealer := diskkit.Sealer(f)
	var body bytes.Buffer
	if err := someState(f, 3).Snapshot(&body); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{1, 0xa0}, body.Bytes())
	f.Add([]byte{2}, []byte{})
	f.Add([]byte{1, 0xb9, 0xff, 0xff}, []byte("rmR1"))
	f.Fuzz(func(t *testing.T, head, body []byte) {
		var file bytes.Buffer
		w, err := sealer.NewWriter(&file, "backup/1")
		if err == nil {
			err = errors.Join(w.Frame(head), w.Frame(body), w.Close())
		}
		if err != nil {
			t.Skip(err)
		}
		info, state, err := backup.Read(&file, sealer)
		if err != nil {
			return
		}
		if _, err := backup.Create(io.Discard, sealer, info.Source, state); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

func BenchmarkBackup(b *testing.B) {
	sealer, s := diskkit.Sealer(b), someState(b, 100_000)
	file := create(b, sealer, s)
	b.Run("create", func(b *testing.B) {
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			create(b, sealer, s)
		}
	})
	b.Run("inspect", func(b *testing.B) {
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if _, err := backup.Inspect(bytes.NewReader(file), sealer); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(int64(len(file)))
		for b.Loop() {
			if _, err := backup.Restore(bytes.NewReader(file), sealer, target(filepath.Join(b.TempDir(), "quorum"), sealer)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
