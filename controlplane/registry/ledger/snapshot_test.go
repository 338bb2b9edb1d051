package ledger

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

// full returns a state with every kind of content, staged content too.
func full(t testing.TB) *State {
	s := world(t)
	mustPropose(t, s, anyEast, put(policy(polAny, anyEast, orgAny, prjAny)), revoke(keyAny, 5))
	snap, _ := s.ShardSnapshot(pinEU)
	stageAll(t, s, chunks(t, snap, "s1", 2))
	snap, _ = s.ShardSnapshot(anyEast)
	snap.Info.Shard = anyEast
	stageAll(t, s, chunks(t, snap, "s2", 3))
	return s
}

func TestSnapshotRoundTrip(t *testing.T) {
	for name, s := range map[string]*State{"empty": New(), "full": full(t)} {
		b := recordkit.Snapshot(t, s)
		restored, err := Restore(iotest.OneByteReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !bytes.Equal(recordkit.Snapshot(t, restored), b) {
			t.Errorf("%s: the restored state differs", name)
		}
	}
}

func TestDamagedSnapshots(t *testing.T) {
	b := recordkit.Snapshot(t, full(t))
	for i := range b {
		damaged := slices.Clone(b)
		damaged[i] ^= 0x41
		if _, err := Restore(bytes.NewReader(damaged)); !errors.Is(err, ErrDamaged) && !errors.Is(err, controlplane.ErrUnknownEntry) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if _, err := Restore(bytes.NewReader(b[:i])); !errors.Is(err, ErrDamaged) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := Restore(bytes.NewReader(append(slices.Clone(b), 0))); !errors.Is(err, ErrDamaged) {
		t.Errorf("one byte more: %v", err)
	}
	failure := errors.New("disk on fire")
	if _, err := Restore(io.MultiReader(bytes.NewReader(b[:len(b)/2]), iotest.ErrReader(failure))); !errors.Is(err, failure) || errors.Is(err, ErrDamaged) {
		t.Errorf("failing reader: %v", err)
	}
	if err := full(t).Snapshot(failingWriter{failure}); !errors.Is(err, failure) {
		t.Errorf("failing writer: %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

func TestLoader(t *testing.T) {
	s := world(t)
	mustPropose(t, s, anyEast, revoke(keyAny, 5))
	info, _ := s.Shard(anyEast)
	snap, _ := s.ShardSnapshot(anyEast)
	records := slices.Collect(snap.Records)
	load := func(info *registry.ShardInfo, records []*registry.Record, revocations ...registry.Revocation) (*State, error) {
		l := NewLoader()
		var errs []error
		for _, r := range slices.Backward(records) { // any order will do
			c := *r
			errs = append(errs, l.Record(&c))
		}
		for _, v := range revocations {
			errs = append(errs, l.Revocation(v))
		}
		if info != nil {
			errs = append(errs, l.Shard(*info))
		}
		loaded, err := l.State()
		return loaded, errors.Join(append(errs, err)...)
	}
	loaded, err := load(&info, records, s.Revocations(anyEast)...)
	if err != nil || loaded.Digest(anyEast) != s.Digest(anyEast) || len(loaded.KeysOf(prjAny, "", 0)) != 1 {
		t.Errorf("loaded state differs: %v", err)
	}
	healed, err := load(&info, records, registry.Revocation{Kind: registry.KindKey, ID: keyAny, Shard: anyEast, At: 3})
	if r, _ := healed.Get(registry.KindKey, keyAny); err != nil || r.Key.Revoked != 3 {
		t.Error("a record does not follow the safety set")
	}
	refused := func(what string, change func(i *registry.ShardInfo), records []*registry.Record, revocations ...registry.Revocation) {
		t.Helper()
		c := info
		change(&c)
		if _, err := load(&c, records, revocations...); err == nil {
			t.Errorf("%s was loaded", what)
		}
	}
	fine := func(*registry.ShardInfo) {}
	refused("a record twice", fine, append(slices.Clone(records), records[0]))
	refused("a revocation twice", fine, records, s.Revocations(anyEast)[0], s.Revocations(anyEast)[0])
	refused("a malformed record", fine, []*registry.Record{{Kind: registry.KindOrg, Meta: registry.Meta{ID: orgAny, Shard: anyEast}}})
	refused("a malformed revocation", fine, nil, registry.Revocation{Shard: anyEast, ID: "x"})
	refused("a shard that never began", func(i *registry.ShardInfo) { i.Last = controlplane.Point{} }, records)
	refused("a shard past its promise", func(i *registry.ShardInfo) { i.Epoch = controlplane.Epoch{} }, records)
	refused("a shard without epochs", func(i *registry.ShardInfo) { i.Spans = nil }, records)
	refused("a shard without members", func(i *registry.ShardInfo) { i.Members = nil }, records)
	refused("no shard", func(i *registry.ShardInfo) { i.Shard = "x-y" }, nil)
	if _, err := load(nil, records); err == nil {
		t.Error("records without a shard were loaded")
	}
	l := NewLoader()
	if err := errors.Join(l.Shard(info), l.Shard(info)); err == nil {
		t.Error("a shard was loaded twice")
	}
}

func TestGolden(t *testing.T) {
	digest := full(t).Digest(anyEast)
	golden(t, "digest", digest[:])
	golden(t, "snapshot", recordkit.Snapshot(t, full(t)))
	golden(t, "snapshot-2", recordkit.Snapshot(t, deposed(t)))
}
