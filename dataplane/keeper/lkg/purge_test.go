package lkg

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
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
	if err := s.Safety(func(e SafetyEntry) error {
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
	r.generation(s, snapshot(5)...)
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
		r.generation(s, snapshot(seq)...)
	}
	if files := must(s.list()); len(files) != keep {
		t.Errorf("%d generations, want %d", len(files), keep)
	}
	r.close(s)
}
