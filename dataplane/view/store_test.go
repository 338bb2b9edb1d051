package view

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

var epoch1 = controlplane.Epoch{Counter: 1, Region: "us-east"}

func entryFrame(t testing.TB, shard controlplane.Shard, seq uint64, changes ...registry.Change) *feed.Frame {
	t.Helper()
	e := &registry.Entry{Shard: shard, Epoch: epoch1, Seq: seq, Changes: changes}
	if seq > 1 {
		e.Prev = epoch1
	}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return &feed.Frame{Type: feed.FrameEntry, Shard: shard, Sender: epoch1, Entry: b}
}

func put(r *registry.Record) registry.Change { return registry.Change{Op: registry.OpPut, Record: r} }

func keyRecord(id string, shard controlplane.Shard) *registry.Record {
	return &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: shard, Updated: 1000}, Key: &registry.Key{
		Project: "prj_any_0000000001", Class: "live", Hash: make([]byte, 60),
	}}
}

func apply(t testing.TB, s *Store, frames ...*feed.Frame) {
	t.Helper()
	for _, f := range frames {
		if err := s.Apply(f); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSnapshotTakesEffectAtItsEnd(t *testing.T) {
	s := New(Config{})
	apply(t, s, entryFrame(t, "eu", 1, put(keyRecord("old", "eu")), put(keyRecord("both", "eu"))))
	apply(t, s,
		&feed.Frame{Type: feed.FrameReset, Shard: "eu"},
		&feed.Frame{Type: feed.FrameRecord, Shard: "eu", Record: encoded(t, keyRecord("both", "eu"))},
		&feed.Frame{Type: feed.FrameRecord, Shard: "eu", Record: encoded(t, keyRecord("new", "eu"))},
		&feed.Frame{Type: feed.FrameRevocation, Shard: "eu", Revocation: &registry.Revocation{Kind: registry.KindKey, ID: "both", At: 7}},
	)
	if _, ok := s.View().Key("old"); !ok {
		t.Error("the old content must serve until the snapshot ends")
	}
	if _, ok := s.View().Key("new"); ok {
		t.Error("a record of an unfinished snapshot must not show")
	}
	if k, _ := s.View().Key("both"); k.Revoked != 7 {
		t.Error("a revocation must not wait for the end of the snapshot")
	}
	before := s.View()
	apply(t, s, &feed.Frame{Type: feed.FrameEnd, Shard: "eu", Point: controlplane.Point{Epoch: epoch1, Seq: 4}})
	if _, ok := s.View().Key("old"); ok {
		t.Error("a record that the snapshot lacks must be gone")
	}
	if _, ok := s.View().Key("new"); !ok {
		t.Error("the snapshot's record must be there")
	}
	if _, ok := before.Key("old"); !ok {
		t.Error("a view that a request holds must not change")
	}
}

func TestOlderSnapshotIsIgnored(t *testing.T) {
	s := New(Config{})
	apply(t, s, entryFrame(t, "eu", 1), entryFrame(t, "eu", 2, put(keyRecord("k", "eu"))),
		&feed.Frame{Type: feed.FrameReset, Shard: "eu"},
		&feed.Frame{Type: feed.FrameEnd, Shard: "eu", Point: controlplane.Point{Epoch: epoch1, Seq: 1}})
	if _, ok := s.View().Key("k"); !ok {
		t.Error("a snapshot older than the view must not roll it back")
	}
}

func TestRevocationOutlivesEverything(t *testing.T) {
	s := New(Config{})
	gone := &feed.Frame{Type: feed.FrameRevocation, Revocation: &registry.Revocation{Kind: registry.KindKey, ID: "k", At: 7}}
	apply(t, s, gone, entryFrame(t, "eu", 1, put(keyRecord("k", "eu"))))
	if k, ok := s.View().Key("k"); !ok || k.Revoked != 7 {
		t.Errorf("a key revoked before its record arrived: %+v, %v", k, ok)
	}
	apply(t, s, entryFrame(t, "eu", 2, registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: "k"}),
		entryFrame(t, "eu", 3, put(keyRecord("k", "eu"))))
	if k, _ := s.View().Key("k"); k.Revoked != 7 {
		t.Error("putting the record again must not revive the key")
	}
	// In an entry that does not fit, too.
	err := s.Apply(entryFrame(t, "eu", 9, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: "other", At: 8}))
	if !errors.Is(err, ErrGap) {
		t.Errorf("a gap: %v", err)
	}
	if _, ok := s.View().Revoked(registry.KindKey, "other"); !ok {
		t.Error("a revocation in an entry that does not fit must count")
	}
}

func TestDeposedHomeIsRefused(t *testing.T) {
	s := New(Config{})
	second := controlplane.Epoch{Counter: 2, Region: "eu-fra"}
	open, err := registry.EncodeEntry(&registry.Entry{Shard: "eu", Epoch: second, Seq: 2, Prev: epoch1})
	if err != nil {
		t.Fatal(err)
	}
	apply(t, s, entryFrame(t, "eu", 1), &feed.Frame{Type: feed.FrameEntry, Sender: second, Entry: open})
	if err := s.Apply(entryFrame(t, "eu", 3)); !errors.Is(err, ErrGap) {
		t.Errorf("an entry of a former epoch: %v", err)
	}
}

func TestFailedEntryChangesNothing(t *testing.T) {
	s := New(Config{})
	apply(t, s, entryFrame(t, "eu", 1, put(keyRecord("a", "eu"))))
	bad := &registry.Record{Kind: registry.KindRoute, Meta: registry.Meta{ID: "r", Shard: "eu"}}
	before := s.View()
	err := s.Apply(entryFrame(t, "eu", 2, put(keyRecord("b", "eu")), put(bad)))
	if !errors.Is(err, controlplane.ErrUnknownEntry) {
		t.Fatalf("a record without a body: %v", err)
	}
	if s.View() != before {
		t.Error("half an entry was published")
	}
	apply(t, s, entryFrame(t, "eu", 2, put(keyRecord("c", "eu"))))
	if _, ok := s.View().Key("b"); ok {
		t.Error("the failed entry left something behind")
	}
	if _, ok := s.View().Key("c"); !ok {
		t.Error("the entry after a failed one must apply")
	}
}

// TestPins: what the safety file knew of holds until the data is as new.
func TestPins(t *testing.T) {
	s := New(Config{})
	org := func(roaming bool) *registry.Record {
		return &registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: "o", Shard: "eu", Revision: 9},
			Org: &registry.Org{Jurisdiction: "any", Roaming: roaming}}
	}
	apply(t, s, entryFrame(t, "eu", 1, put(org(true))))
	pin := &registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: "p", Shard: "eu", Revision: 3},
		Policy: &registry.Policy{Org: "o", Residency: "eu", NoRetention: true, Dedicated: true}}
	roam := org(false)
	roam.Meta.Revision = 3
	for _, rec := range []*registry.Record{pin, roam} {
		if err := s.Pin(encoded(t, rec), 0); err != nil {
			t.Fatal(err)
		}
	}
	strict := func() bool {
		p := s.View().Policy("o", "any project")
		o, _ := s.View().Org("o")
		return p.Residency == "eu" && p.NoRetention && p.Dedicated && !o.Org.Roaming
	}
	if !strict() {
		t.Error("a pin newer than the data must hold")
	}
	apply(t, s, entryFrame(t, "eu", 2))
	if !strict() {
		t.Error("a pin must hold until the data reaches its revision")
	}
	apply(t, s, entryFrame(t, "eu", 3))
	if p := s.View().Policy("o", ""); p.Residency != "" || p.NoRetention || p.Dedicated {
		t.Errorf("the data is as new as the pin and says otherwise: %+v", p)
	}
}

func TestHeardAtAndAsOf(t *testing.T) {
	now := time.UnixMilli(50_000)
	s := New(Config{Now: func() time.Time { return now }})
	apply(t, s, entryFrame(t, "eu", 1, put(keyRecord("k", "eu"))))
	if !s.View().HeardAt().IsZero() || !s.View().AsOf("eu").Equal(time.UnixMilli(1000)) {
		t.Errorf("replayed from disk: heard %v, as of %v", s.View().HeardAt(), s.View().AsOf("eu"))
	}
	s.SetLoaded(false)
	ahead := controlplane.Position{"eu": {Epoch: epoch1, Seq: 2}}
	apply(t, s, &feed.Frame{Type: feed.FrameHeartbeat, Position: ahead, At: 60_000})
	if !s.View().AsOf("eu").Equal(time.UnixMilli(1000)) || !s.View().HeardAt().Equal(now) {
		t.Errorf("a heartbeat ahead of the view: heard %v, as of %v", s.View().HeardAt(), s.View().AsOf("eu"))
	}
	apply(t, s, entryFrame(t, "eu", 2), &feed.Frame{Type: feed.FrameHeartbeat, Position: ahead, At: 61_000})
	if !s.View().AsOf("eu").Equal(time.UnixMilli(61_000)) {
		t.Errorf("as of %v", s.View().AsOf("eu"))
	}
	ahead[controlplane.ShardGlobal] = controlplane.Point{Epoch: epoch1, Seq: 9}
	apply(t, s, &feed.Frame{Type: feed.FrameHeartbeat, Position: ahead, At: 62_000})
	if !s.View().AsOf("eu").Equal(time.UnixMilli(62_000)) {
		t.Errorf("a change of the configuration that waits for other nodes ages the keys: as of %v", s.View().AsOf("eu"))
	}
}

func TestVerdictsAreBounded(t *testing.T) {
	table := newVerdicts(640)
	mac := func(n byte) [32]byte { return [32]byte{n} }
	for i := range 10_000 {
		table.Put(feed.Verdict{Key: fmt.Sprintf("key_any_%016d", i), Revision: 1, MAC: mac(1)})
	}
	if n := len(table.All()); n > 640 || n < 320 {
		t.Errorf("%d verdicts in a table of 640", n)
	}
	id := "key_any_x"
	for n := byte(1); n <= 3; n++ {
		if !table.Put(feed.Verdict{Key: id, Revision: 5, MAC: mac(n)}) {
			t.Errorf("verdict %d is new", n)
		}
	}
	if set, _ := table.Get(id); set.Count != 2 || set.MACs[1] != mac(3) || set.MACs[0] != mac(2) {
		t.Errorf("two newest verdicts: %+v", set)
	}
	if table.Put(feed.Verdict{Key: id, Revision: 4, MAC: mac(9)}) || table.Put(feed.Verdict{Key: id, Revision: 5, MAC: mac(3)}) {
		t.Error("an older or known verdict is not new")
	}
	table.Put(feed.Verdict{Key: id, Revision: 6, MAC: mac(7)})
	if set, _ := table.Get(id); set.Count != 1 || set.Revision != 6 {
		t.Errorf("a newer record forgets verdicts of the older: %+v", set)
	}
}

// TestReadersDuringChanges lets the race detector watch readers while pieces
// are copied, arenas grow and a snapshot is adopted.
func TestReadersDuringChanges(t *testing.T) {
	s := New(Config{})
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(r)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.View()
				id := fmt.Sprintf("key_any_%016d", rng.IntN(500))
				if k, ok := v.Key(id); ok && (len(k.Hash) != 60 || k.Hash[0] != k.Hash[59]) {
					t.Errorf("a torn key: %v", k)
					return
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(2, 2))
	for seq := uint64(1); seq <= 3000; seq++ {
		rec := keyRecord(fmt.Sprintf("key_any_%016d", rng.IntN(500)), "eu")
		for i := range rec.Key.Hash {
			rec.Key.Hash[i] = byte(seq)
		}
		c := put(rec)
		if rng.IntN(3) == 0 {
			c = registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: rec.Meta.ID}
		}
		apply(t, s, entryFrame(t, "eu", seq, c))
		if seq%500 == 0 {
			apply(t, s, &feed.Frame{Type: feed.FrameReset, Shard: "eu"})
			apply(t, s, &feed.Frame{Type: feed.FrameRecord, Shard: "eu", Record: encoded(t, rec)})
			apply(t, s, &feed.Frame{Type: feed.FrameEnd, Shard: "eu", Point: controlplane.Point{Epoch: epoch1, Seq: seq}})
		}
	}
	close(stop)
	readers.Wait()
}

// BenchmarkMillionKeys reports what a key costs: bytes, and time to load from a
// snapshot, to change and to find.
func BenchmarkMillionKeys(b *testing.B) {
	const n = 1_000_000
	rec := keyRecord("", "any-us-east")
	copy(rec.Key.Hash, "$2a$10$abcdefghijklmnopqrstuvabcdefghijklmnopqrstuvwxyzabcde")
	rec.Key.Hint, rec.Key.Name, rec.Meta.Revision = "abcd", "some name of a key", 1_000_000
	id := func(i int) string { return fmt.Sprintf("key_any_%016d", i) }
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := New(Config{})
	start := time.Now()
	apply(b, s, &feed.Frame{Type: feed.FrameReset, Shard: "any-us-east"})
	for i := range n {
		rec.Meta.ID = id(i)
		apply(b, s, &feed.Frame{Type: feed.FrameRecord, Shard: "any-us-east", Record: encoded(b, rec)})
	}
	apply(b, s, &feed.Frame{Type: feed.FrameEnd, Shard: "any-us-east", Point: controlplane.Point{Epoch: epoch1, Seq: 1}})
	loaded := time.Since(start)
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Run("find", func(b *testing.B) {
		v := s.View()
		b.ReportAllocs()
		for i := range b.N {
			if _, ok := v.Key("key_any_0000000000123456"); !ok {
				b.Fatal(i)
			}
		}
	})
	seq := uint64(1)
	b.Run("change", func(b *testing.B) {
		for range b.N {
			seq++
			rec.Meta.ID = id(int(seq) % n)
			apply(b, s, entryFrame(b, "any-us-east", seq, put(rec)))
		}
	})
	b.Run("held", func(b *testing.B) {
		for range b.N {
			_ = s.View()
		}
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/key")
		b.ReportMetric(loaded.Seconds(), "s/load")
	})
	runtime.KeepAlive(s)
}
