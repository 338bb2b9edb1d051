package trial

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/internal/testkit/diskkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shard = controlplane.Shard("any-us")

func project(t *testing.T, id, name string, seq uint64) []byte {
	t.Helper()
	b, err := registry.EncodeRecord(&registry.Record{Kind: registry.KindProject,
		Meta: registry.Meta{ID: id, Shard: shard, Revision: seq}, Project: &registry.Project{Name: name}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func entry(t *testing.T, seq uint64, changes ...registry.Change) *feed.Frame {
	t.Helper()
	b, err := registry.EncodeEntry(&registry.Entry{Shard: shard, Epoch: epoch, Prev: epoch, Seq: seq, Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	return &feed.Frame{Type: feed.FrameEntry, Shard: shard, Sender: epoch, Entry: b}
}

func put(t *testing.T, id, name string) registry.Change {
	t.Helper()
	rec, err := registry.DecodeRecord(project(t, id, name, 0))
	if err != nil {
		t.Fatal(err)
	}
	return registry.Change{Op: registry.OpPut, Record: rec}
}

func TestDeaths(t *testing.T) {
	var l Ledger
	wide := Span{Shard: shard, From: 3, To: 9, Epoch: epoch}
	if s := l.Died(wide); s.Deaths != 1 {
		t.Errorf("%+v", s)
	}
	if s := l.Died(One(shard, at(20))); s.Deaths != 1 {
		t.Errorf("entries that have nothing to do with each other: %+v", s)
	}
	if s := l.Died(Span{Shard: shard, From: 8, To: 12, Epoch: epoch}); s.Deaths != 2 || s.From != 8 || s.To != 9 {
		t.Errorf("two deaths share %+v, want 8 to 9", s)
	}
	if !l.prove(controlplane.Position{shard: at(15)}, shard) || len(l.Suspects) != 1 || l.Suspects[0].To != 20 {
		t.Errorf("after 15 was proven: %+v", l.Suspects)
	}
	if l.prove(controlplane.Position{shard: at(15)}, shard) {
		t.Error("proving the same again is news")
	}
	if _, ok := Since(shard, l.Proven, controlplane.Position{shard: at(15)}); ok {
		t.Error("nothing came since, and something is suspected")
	}
}

func TestScreen(t *testing.T) {
	var l Ledger
	past := NewPast(One(shard, at(5)))
	disk := []*feed.Frame{
		{Type: feed.FrameReset, Shard: shard},
		{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_a", "first", 2)},
		{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_b", "other", 3)},
		{Type: feed.FrameEnd, Shard: shard, Point: at(3)},
		entry(t, 4, put(t, "prj_a", "second")),
		entry(t, 5, put(t, "prj_a", "bad"), put(t, "prj_c", "new"), registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: "key_x", At: 1}),
		entry(t, 6, put(t, "prj_b", "later")),
	}
	for _, look := range []func(*feed.Frame) error{past.Touch, past.Keep} {
		for _, f := range disk {
			if err := look(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, err := past.Before()
	if err != nil {
		t.Fatal(err)
	}
	if !l.Isolate(Isolated{Span: One(shard, at(5)), Before: before, Own: true, Build: "v1"}) {
		t.Fatal("not isolated")
	}
	screen := func(f *feed.Frame) *feed.Frame {
		t.Helper()
		out, err := l.Screen(f)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, i := range []int{0, 1, 2, 3, 4, 6} {
		if screen(disk[i]) != disk[i] {
			t.Errorf("frame %d did not pass as it is", i)
		}
	}
	e, err := registry.DecodeEntry(screen(disk[5]).Entry)
	if err != nil || e.Point() != at(5) || len(e.Changes) != 1 || e.Changes[0].Op != registry.OpRevoke {
		t.Errorf("the bad entry became %+v, %v: its revocation alone should stay", e, err)
	}
	out := screen(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_a", "bad", 5)})
	if rec, err := registry.DecodeRecord(out.Record); err != nil || rec.Project.Name != "second" || rec.Meta.Revision != 4 {
		t.Errorf("in the place of the bad record stands %+v, %v", rec, err)
	}
	if out := screen(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_c", "new", 5)}); out != nil {
		t.Errorf("a bad record without a past became %+v", out)
	}
	if f := (&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_a", "mended", 7)}); screen(f) != f {
		t.Error("a newer version did not pass")
	}
	if l.Release("v1") || !l.Release("v2") || l.screens(shard) {
		t.Error("another build does not try again")
	}
	l.Isolate(Isolated{Span: One(shard, at(5))})
	if l.Release("v2") || !l.screens(shard) {
		t.Error("what was heard while no worker ran is forgotten by the first one")
	}
	opening := registry.Change{Op: registry.OpOpen, Home: "eu", Members: []string{"eu"}}
	if replayed := entry(t, 4, opening); screen(replayed) != replayed || !l.screens(shard) {
		t.Error("the opening that the bad entry followed, replayed from the disk, let it in")
	}
	b, err := registry.EncodeEntry(&registry.Entry{Shard: shard, Epoch: controlplane.Epoch{Counter: 2, Region: "eu"}, Prev: epoch, Seq: 5, Changes: []registry.Change{opening}})
	if err != nil {
		t.Fatal(err)
	}
	other := &feed.Frame{Type: feed.FrameEntry, Shard: shard, Entry: b}
	if screen(other) != other || l.screens(shard) {
		t.Error("the first entry of another history was taken for the one isolated")
	}
}

// An upstream that has to stay as it was before a change that is left out is
// not called as that change forbids.
func TestIsolationNarrows(t *testing.T) {
	upstream := func(id, retention string, seq uint64) *registry.Record {
		return &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: id, Shard: shard, Revision: seq},
			Upstream: &registry.Upstream{Name: id, Region: "us", Auth: "none", BaseURL: "https://" + retention, Terms: registry.Terms{Retention: retention, PromptCache: "none"}}}
	}
	encoded := func(r *registry.Record) []byte {
		t.Helper()
		b, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	past := NewPast(One(shard, at(5)))
	bad := entry(t, 5, registry.Change{Op: registry.OpPut, Record: upstream("ups_a", "30d", 0)}, registry.Change{Op: registry.OpDelete, Kind: registry.KindUpstream, ID: "ups_b"})
	for _, look := range []func(*feed.Frame) error{past.Touch, past.Keep} {
		for _, f := range []*feed.Frame{
			{Type: feed.FrameRecord, Shard: shard, Record: encoded(upstream("ups_a", "zero", 2))},
			{Type: feed.FrameRecord, Shard: shard, Record: encoded(upstream("ups_b", "zero", 3))},
			bad,
		} {
			if err := look(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	before, err := past.Before()
	if err != nil {
		t.Fatal(err)
	}
	var l Ledger
	l.Isolate(Isolated{Span: One(shard, at(5)), Before: before})
	want := func(rec *registry.Record, retention string, disabled bool) {
		t.Helper()
		if rec.Upstream.Terms.Retention != retention || rec.Upstream.Disabled != disabled || rec.Upstream.BaseURL != "https://zero" {
			t.Errorf("%s stays as %+v", rec.Meta.ID, *rec.Upstream)
		}
	}
	f, err := l.Screen(bad)
	if err != nil {
		t.Fatal(err)
	}
	e, err := registry.DecodeEntry(f.Entry)
	if err != nil || len(e.Changes) != 2 || e.Changes[0].Op != registry.OpPut || e.Changes[1].Op != registry.OpPut {
		t.Fatalf("a worker that holds both was given %+v, %v", e, err)
	}
	want(e.Changes[0].Record, "30d", false)
	want(e.Changes[1].Record, "zero", true)
	f, err = l.Screen(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: encoded(upstream("ups_a", "30d", 5))})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := registry.DecodeRecord(f.Record)
	if err != nil {
		t.Fatal(err)
	}
	want(rec, "30d", false)
	// What stood before is lost.
	l = Ledger{}
	l.Isolate(Isolated{Span: One(shard, at(5))})
	if f, err = l.Screen(bad); err != nil {
		t.Fatal(err)
	}
	e, err = registry.DecodeEntry(f.Entry)
	if err != nil || len(e.Changes) != 2 || e.Changes[0].Op != registry.OpDelete || e.Changes[0].ID != "ups_a" || e.Changes[1].ID != "ups_b" {
		t.Errorf("upstreams of which nobody knows what they were stay: %+v, %v", e, err)
	}
}

// What was found out about entries of a history that was cut off is not held
// against those that took their place, though nobody saw the opening between.
func TestACutHistoryIsNotHeldAgainstTheNext(t *testing.T) {
	later := controlplane.Epoch{Counter: 2, Region: "eu"}
	next := func(seq uint64) *feed.Frame {
		b, err := registry.EncodeEntry(&registry.Entry{Shard: shard, Epoch: later, Prev: later, Seq: seq, Changes: []registry.Change{put(t, "prj_a", "new")}})
		if err != nil {
			t.Fatal(err)
		}
		return &feed.Frame{Type: feed.FrameEntry, Shard: shard, Sender: later, Entry: b}
	}
	var l Ledger
	l.Isolate(Isolated{Span: One(shard, at(5)), Own: true})
	if f := next(5); must(l.Screen(f)) != f {
		t.Error("an entry of the new history is left out for one that was cut off")
	}
	if f := entry(t, 5, put(t, "prj_a", "bad")); must(l.Screen(f)) == f {
		t.Error("the entry itself, replayed from the disk, passed")
	}
	l.Died(One(shard, at(5)))
	bad := One(shard, controlplane.Point{Epoch: later, Seq: 5})
	if s := l.Died(bad); s.Deaths != 1 {
		t.Errorf("a death on another entry counts: %+v", s)
	}
	if s := l.Died(bad); s.Deaths != 2 || len(l.Suspects) != 1 {
		t.Errorf("%+v of %+v", s, l.Suspects)
	}
	if !l.Isolate(Isolated{Span: bad, Own: true}) {
		t.Error("what the new history holds there cannot be left out")
	}
	if f := next(5); must(l.Screen(f)) == f {
		t.Error("and is not")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A second bad version of a record is not replaced by the first one.
func TestTwoBadVersions(t *testing.T) {
	for _, order := range [][]uint64{{5, 7}, {7, 5}} {
		var l Ledger
		for _, seq := range order {
			before := map[string][]byte{"prj_a": project(t, "prj_a", "good", 4)}
			if seq == 7 {
				before["prj_a"] = project(t, "prj_a", "bad", 5)
			}
			l.Isolate(Isolated{Span: One(shard, at(seq)), Before: before})
		}
		f, err := l.Screen(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_a", "worse", 7)})
		if err != nil {
			t.Fatal(err)
		}
		if rec, err := registry.DecodeRecord(f.Record); err != nil || rec.Project.Name != "good" {
			t.Errorf("%v: %+v, %v stands for it", order, rec.Project, err)
		}
	}
	l := Ledger{}
	l.Isolate(Isolated{Span: One(shard, at(5))})
	l.Isolate(Isolated{Span: One(shard, at(7)), Before: map[string][]byte{"prj_a": project(t, "prj_a", "bad", 5)}})
	if f, err := l.Screen(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_a", "worse", 7)}); f != nil || err != nil {
		t.Errorf("%+v, %v stands for a record that was never good", f, err)
	}
}

// While nothing is left out, a disk that hangs with the ledger delays no frame.
func TestScreeningWaitsForNoDisk(t *testing.T) {
	b := Book{ledger: new(Ledger)}
	b.mu.Lock() // as save does
	defer b.mu.Unlock()
	f := entry(t, 5)
	passed := make(chan bool, 1)
	go func() {
		out, err := b.Screen(f)
		passed <- out == f && err == nil
	}()
	select {
	case ok := <-passed:
		if !ok {
			t.Error("it did not pass as it is")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a frame waits for the ledger's disk")
	}
}

// The epoch of a record in a snapshot is known only if the state had it before.
func TestARecordOfAnUnknownEpoch(t *testing.T) {
	f := &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: project(t, "prj_a", "bad", 5)}
	for seq, want := range map[uint64]controlplane.Epoch{4: {}, 5: epoch} {
		if s, ok := SpanOf(f, nil, controlplane.Position{shard: at(seq)}); !ok || s.Epoch != want || s.To != 5 {
			t.Errorf("on the way to %d: %+v", seq, s)
		}
	}
}

func TestHollow(t *testing.T) {
	var l Ledger
	s, ok := SpanOf(&feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: at(40)}, nil, nil)
	if !ok || s.From != 1 || s.To != 40 {
		t.Fatalf("%+v", s)
	}
	l.Isolate(Isolated{Span: s})
	if !l.Hollow() || !l.Begin() || l.Hollow() || l.Begin() {
		t.Error("a shard that is left out as a whole is no state to serve by, until it is tried again")
	}
}

func TestFile(t *testing.T) {
	f := File{Dir: t.TempDir(), Name: "test/d1", Sealer: diskkit.Sealer(t)}
	l, err := f.Load()
	if err != nil || len(l.Suspects) != 0 {
		t.Fatal(l, err)
	}
	l.Died(One(shard, at(4)))
	l.Isolate(Isolated{Span: One(shard, at(3)), Before: map[string][]byte{"a": {1}}, Own: true})
	l.prove(controlplane.Position{shard: at(2)}, shard)
	if err := f.Save(l); err != nil {
		t.Fatal(err)
	}
	again, err := f.Load()
	if err != nil || len(again.Suspects) != 1 || again.Suspects[0].Deaths != 1 || !again.screens(shard) || again.Proven[shard] != at(2) {
		t.Errorf("%+v, %v", again, err)
	}
	f.Name = "test/d2"
	if l, err := f.Load(); err == nil || l == nil || l.screens(shard) {
		t.Errorf("another node's ledger: %+v, %v", l, err)
	}
	f.Name = "test/d1"
	path := filepath.Join(f.Dir, FileName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("a flipped bit: %v", err)
	}
}

func FuzzParseSpan(f *testing.F) {
	for _, text := range []string{"global=1/us-east.57", "any-us=3/eu.5-9", "global=1/us", "=1/a.1", "a=1/b.2-", "a=/b.2"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSpan(text)
		if err != nil {
			return
		}
		if again, err := ParseSpan(s.String()); err != nil || again != s {
			t.Errorf("%q is %+v, written %q, read %+v, %v", text, s, s, again, err)
		}
	})
}

func FuzzLedger(f *testing.F) {
	l := Ledger{Proven: controlplane.Position{shard: at(2)}}
	l.Died(One(shard, at(4)))
	l.Isolate(Isolated{Span: One(shard, at(3)), Before: map[string][]byte{"a": {1}}, Own: true, Build: "v1", At: 5})
	b, err := encode(&l)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decode(b)
		if err != nil {
			return
		}
		once, err := encode(l)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(once)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if twice, err := encode(again); err != nil || !bytes.Equal(once, twice) {
			t.Errorf("%x became %x, %v", once, twice, err)
		}
	})
}
