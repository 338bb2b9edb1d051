package lkg

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/keeper/lkg/safety"
)

// holds reports whether any generation or the safety file of s has the text.
func (r *rig) holds(s *Store, text string) (places []string) {
	r.t.Helper()
	if err := s.Past(func(f *feed.Frame) error {
		if bytes.Contains(f.Entry, []byte(text)) || bytes.Contains(f.Record, []byte(text)) {
			places = append(places, "generations")
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	if err := s.Safety(func(e safety.Entry) error {
		if bytes.Contains(e.Pin, []byte(text)) {
			places = append(places, "safety file")
		}
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	slices.Sort(places)
	return slices.Compact(places)
}

// Once an org that left was erased, the next generation is the only one, and
// nothing on this disk has its name: after a crash at any point, too.
func TestWhatWasErasedLeavesTheDisk(t *testing.T) {
	const mark = "wanderer"
	r := newRig(t)
	s := r.open()
	org := &registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: "org_any_1xV3rn0000000001", Created: 1, Updated: 2},
		Org: &registry.Org{Name: mark, Jurisdiction: "any"}}
	stays := &registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: "pol"}, Policy: &registry.Policy{Org: "o", Residency: "eu"}}
	put := func(rec *registry.Record) registry.Change { return registry.Change{Op: registry.OpPut, Record: rec} }
	gone := []registry.Change{
		{Op: registry.OpDelete, Kind: registry.KindRelocation, ID: registry.RelocationID(org.Meta.ID)},
		{Op: registry.OpDelete, Kind: registry.KindOrg, ID: org.Meta.ID},
	}
	r.generation(s, snapshot(1)...)
	r.append(s, entry(2, put(org), put(stays)))
	r.generation(s, append(snapshot(2), entry(3, put(org)))...)
	r.append(s, entry(4, put(org)))
	if got := r.holds(s, mark); len(got) != 2 {
		t.Fatalf("the scan sees it in %v only", got)
	}
	if s.Due() {
		t.Fatal("due before anything was erased")
	}
	first := must(os.ReadFile(filepath.Join(s.dir, fileName(1, 1))))

	r.append(s, entry(5, gone...))
	if !s.Due() {
		t.Error("no generation is due although an org was erased")
	}
	died(s)
	s = r.open()
	if !s.Due() {
		t.Error("after a crash nobody knows that an org was erased")
	}
	// One that began before it was erased does not count.
	r.generation(s, append(snapshot(4), entry(5, gone...))...)
	if !s.Due() {
		t.Error("a generation that has the erased and its deletion is taken for clean")
	}
	stays.Meta.Revision = 2
	r.generation(s, with(snapshot(5), stays)...)
	if got := r.holds(s, mark); len(got) != 0 {
		t.Errorf("it is still in the %v", got)
	}
	if s.Due() {
		t.Error("a clean generation, and another is due")
	}
	if got := r.revoked(s); got != "pin:pol@2" {
		t.Errorf("pins %q", got)
	}
	// Killed before the older ones were removed.
	died(s)
	if err := os.WriteFile(filepath.Join(s.dir, fileName(1, 1)), first, 0o600); err != nil {
		t.Fatal(err)
	}
	s = r.open()
	entries := must(os.ReadDir(s.dir))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "000000000004") {
			t.Errorf("%s is left", e.Name())
		}
	}
	if got := r.holds(s, mark); len(got) != 0 {
		t.Errorf("after a start it is in the %v", got)
	}
	// Later ones stay as ever.
	for seq := uint64(6); seq < 10; seq++ {
		r.generation(s, with(snapshot(seq), stays)...)
	}
	if files := must(s.list()); len(files) != keep {
		t.Errorf("%d generations, want %d", len(files), keep)
	}
	r.close(s)
}

// with puts records into a snapshot.
func with(frames []*feed.Frame, records ...*registry.Record) []*feed.Frame {
	end := frames[len(frames)-1]
	frames = slices.Clone(frames[:len(frames)-1])
	for _, rec := range records {
		rec.Meta.Shard = end.Shard
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: end.Shard, Record: must(registry.EncodeRecord(rec))})
	}
	return append(frames, end)
}

func orgRecord(id, name string) *registry.Record {
	return &registry.Record{Kind: registry.KindOrg, Meta: registry.Meta{ID: id, Revision: 1, Created: 1, Updated: 2}, Org: &registry.Org{Name: name, Jurisdiction: "any"}}
}

// A node that was away while an org left gets a snapshot without it and never
// the entry that erased it: that counts for as much.
func TestWhatWasErasedMeanwhileLeavesTheDisk(t *testing.T) {
	const mark = "wanderer"
	leaves, stays := orgRecord("org_any_1xV3rn0000000001", mark), orgRecord("org_any_1xV3rn0000000002", "settler")
	begin := func(t *testing.T) (*rig, *Store) {
		r := newRig(t)
		s := r.open()
		for seq := range uint64(keep) {
			r.generation(s, with(snapshot(seq+1), leaves, stays)...)
		}
		return r, s
	}
	clean := func(t *testing.T, r *rig, s *Store) {
		t.Helper()
		if got := r.holds(s, mark); len(got) != 0 {
			t.Errorf("it is still in the %v", got)
		}
		if s.Due() {
			t.Error("a clean generation, and another is due")
		}
		if got := must(filepath.Glob(filepath.Join(r.cfg.Dir, "*.bad"))); len(got) != 0 {
			t.Errorf("%v is left", got)
		}
		r.close(s)
	}
	t.Run("among the deltas", func(t *testing.T) {
		r, s := begin(t)
		r.append(s, with(snapshot(9), stays)...)
		if !s.Due() {
			t.Error("no generation is due")
		}
		died(s)
		s = r.open()
		if !s.Due() {
			t.Fatal("after a crash nobody knows that an org was erased")
		}
		r.generation(s, with(snapshot(9), stays)...)
		clean(t, r, s)
	})
	t.Run("of an org that came as an entry", func(t *testing.T) {
		r, s := begin(t)
		late := orgRecord("org_any_1xV3rn0000000003", "late")
		r.append(s, entry(4, registry.Change{Op: registry.OpPut, Record: late}))
		r.append(s, with(snapshot(9), leaves, stays)...)
		if !s.Due() {
			t.Error("no generation is due")
		}
		died(s)
	})
	t.Run("by a generation that is written anyway", func(t *testing.T) {
		r, s := begin(t)
		if err := os.WriteFile(filepath.Join(r.cfg.Dir, safetyName), []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
		died(s)
		s = r.open()
		r.generation(s, with(snapshot(9), stays)...)
		clean(t, r, s)
	})
	t.Run("with its shard", func(t *testing.T) {
		r, s := begin(t)
		elsewhere := with(snapshot(9), stays)
		for _, f := range elsewhere {
			f.Shard = "any-eu-fra"
		}
		r.generation(s, elsewhere...)
		clean(t, r, s)
	})
	t.Run("not", func(t *testing.T) {
		r, s := begin(t)
		gone := registry.Change{Op: registry.OpDelete, Kind: registry.KindOrg, ID: leaves.Meta.ID} // an account that was closed here
		r.append(s, with(snapshot(9), stays, leaves)...)
		r.append(s, entry(10, gone))
		r.append(s, with(snapshot(11), stays)...)
		died(s)
		s = r.open()
		if s.Due() {
			t.Error("a generation is due although nothing was missed")
		}
		r.generation(s, with(snapshot(11), stays)...)
		if files := must(s.list()); len(files) != keep {
			t.Errorf("%d generations are left", len(files))
		}
		r.close(s)
	})
}

// Whatever an org's record holds, its beginning is what it is told by.
func TestOrgsAreTold(t *testing.T) {
	for _, rec := range oneOfEach(shard) {
		b := must(registry.EncodeRecord(rec))
		f := raw(&feed.Frame{Type: feed.FrameRecord, Shard: shard, Sender: epoch, Record: b})
		if is := rec.Kind == registry.KindOrg; bytes.HasPrefix(b, orgStart) != is || bytes.Contains(f, orgStart) != is {
			t.Errorf("a record of kind %d begins with %x", rec.Kind, b[:6])
		}
	}
}

// The safety file holds what the full state says, what a generation on disk is
// too old to know, and what was revoked and not yet forgotten: not more.
func TestTheSafetyFileIsBounded(t *testing.T) {
	r := newRig(t)
	s := r.open()
	past, coming := time.Now().Add(-2*spentAfter).UnixMilli(), time.Now().Add(time.Hour).UnixMilli()
	ends := func(id string, at int64) *feed.Frame {
		return &feed.Frame{Type: feed.FrameRevocation, Shard: shard, Revocation: &registry.Revocation{Kind: registry.KindKey, ID: id, Shard: shard, At: 5, Expires: at}}
	}
	policy := func(residency string) *registry.Record {
		return &registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: "pol"}, Policy: &registry.Policy{Org: "o", Residency: residency}}
	}
	put := func(rec *registry.Record) registry.Change { return registry.Change{Op: registry.OpPut, Record: rec} }
	r.generation(s, snapshot(1)...)
	for n := range 50 {
		f := ends(fmt.Sprint("spent", n), past)
		r.append(s, f)
	}
	r.append(s, ends("ending", coming), ends("endless", 0), ends("known", past))
	node := ends("node", past)
	node.Revocation.Kind = registry.KindNode
	r.append(s, node)
	r.append(s, entry(2, put(policy("eu"))), entry(3, put(policy(""))))
	if got := s.Stats().Revocations; got != 54 {
		t.Fatalf("%d revocations", got)
	}
	full := snapshot(3)
	full = slices.Insert(full, 1, ends("known", past))
	r.generation(s, full...)
	for _, when := range []string{"after a full state", "after two"} {
		if got := r.revoked(s); !strings.Contains(got, "spent9") || !strings.Contains(got, "pin:pol@2") {
			t.Errorf("%s: %q: a generation on disk still has the policy as it was before the pin, and may have the keys", when, got)
		}
		died(s)
		s = r.open()
		r.generation(s, full...)
	}
	if got, want := r.revoked(s), "ending endless known node"; got != want {
		t.Errorf("with no generation that is older: %q, want %q", got, want)
	}
	died(s)
	s = r.open()
	if st := s.Stats(); st.Unknown || st.Revocations != 4 || st.Dropped != 50 {
		t.Errorf("what was dropped is taken for lost: %+v\n%s", st, r.log)
	}
	// It comes again, and a file that loses entries is still found out.
	r.append(s, entry(4, put(policy("eu"))), ends("last", 0))
	r.generation(s, full...)
	if got := r.revoked(s); !strings.Contains(got, "pin:pol@4") {
		t.Errorf("%q: narrowed again, and not known", got)
	}
	r.close(s)
	info := must(os.Stat(filepath.Join(r.cfg.Dir, safetyName)))
	if err := os.Truncate(filepath.Join(r.cfg.Dir, safetyName), info.Size()/2); err != nil {
		t.Fatal(err)
	}
	s = r.open()
	if !s.Stats().Unknown {
		t.Error("half of the file is missing, and nobody knows")
	}
	r.close(s)
}

// A key's end can be changed: one that a generation on disk has without an end
// stays revoked for as long as that is there, over starts too.
func TestARevocationOutlivesTheGenerationsBeforeIt(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.generation(s, snapshot(1, "k")...)
	r.append(s, entry(2, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: "k", At: 5, Expires: time.Now().Add(-2 * spentAfter).UnixMilli()}))
	for n := range keep {
		r.generation(s, snapshot(3)...)
		want := "k"
		if n == keep-1 {
			want = ""
		}
		if got := r.revoked(s); got != want {
			t.Errorf("after %d full states without it: %q, want %q", n+1, got, want)
		}
		died(s)
		s = r.open()
	}
	r.close(s)
}

// A full state of a control node that is behind ends no pin that came after it.
func TestAPinOutlivesAFullStateThatIsBehind(t *testing.T) {
	r := newRig(t)
	s := r.open()
	pinned := &registry.Record{Kind: registry.KindPolicy, Meta: registry.Meta{ID: "pol", Revision: 5}, Policy: &registry.Policy{Org: "o", Residency: "eu"}}
	for range keep {
		r.generation(s, with(snapshot(9), pinned)...)
	}
	r.generation(s, snapshot(4)...)
	if got, want := r.revoked(s), "pin:pol@5"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	r.close(s)
}
