package content

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

const version = registry.Version

// drawn are changes of a few records, so that they meet.
func drawn(t *rapid.T) registry.Change {
	digit := func(what string) int { return rapid.IntRange(0, 2).Draw(t, what) }
	org := fmt.Sprintf("org_any_000000000%d", digit("org"))
	prj := fmt.Sprintf("prj_any_000000000%d", digit("project"))
	key := fmt.Sprintf("key_any_000000000000000%d", digit("key"))
	named := string(rune('a' + digit("name")))
	return rapid.SampledFrom([]registry.Change{
		recordkit.Put(recordkit.Org(org, recordkit.AnyEast, "any", "build", "verified")),
		recordkit.Put(recordkit.Project(prj, recordkit.AnyEast, org, named)),
		recordkit.Put(recordkit.Key(key, recordkit.AnyEast, prj, "live")),
		recordkit.Put(recordkit.Policy("pol_any_0000000001", recordkit.AnyEast, org, prj)),
		recordkit.Delete(registry.KindOrg, org), recordkit.Delete(registry.KindProject, prj), recordkit.Delete(registry.KindKey, key),
		{Op: registry.OpRevoke, Kind: registry.KindKey, ID: key, At: int64(1 + digit("at"))},
		{Op: registry.OpForget, Kind: registry.KindKey, ID: key, At: 1, Now: 1},
	}).Draw(t, "change")
}

// marked is what a record says where the safety set is that of sh.
func marked(sh *Shard, r *registry.Record) string {
	c := *r
	if r.Key != nil {
		key := *r.Key
		key.Revoked = 0
		if v, ok := sh.Revocation(registry.KindKey, r.Meta.ID); ok {
			key.Revoked = v.At
		}
		c.Key = &key
	}
	b, err := registry.EncodeRecord(&c)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// same holds what sh yields against the records of was, looked through one by one.
func same(t *rapid.T, sh, was *Shard) {
	var want []*registry.Record
	for r := range was.Records() {
		want = append(want, r)
	}
	got := slices.Collect(sh.Records())
	if len(got) != len(want) {
		t.Fatalf("%d records, not %d", len(got), len(want))
	}
	children := map[string][]string{}
	first := map[string]string{} // the lowest id of a name
	for i, r := range got {
		b, err := registry.EncodeRecord(r)
		if err != nil || string(b) != marked(sh, want[i]) {
			t.Fatalf("%s is not what it was (%v)", r.Meta.ID, err)
		}
		if p := Parent(r); p != "" {
			children[r.Kind.String()+p] = append(children[r.Kind.String()+p], r.Meta.ID)
		}
		if r.Project != nil {
			if n := r.Project.Org + r.Project.Name; first[n] == "" {
				first[n] = r.Meta.ID
			}
		}
	}
	for _, r := range got {
		var ids []string
		for c := range sh.Children(r.Kind, Parent(r), "") {
			ids = append(ids, c.Meta.ID)
		}
		if Parent(r) != "" && !slices.Equal(ids, children[r.Kind.String()+Parent(r)]) {
			t.Fatalf("children of %s: %v", Parent(r), ids)
		}
		if r.Project != nil {
			if by, ok := sh.ByName(registry.KindProject, r.Project.Org, r.Project.Name); !ok || by.Meta.ID != first[r.Project.Org+r.Project.Name] {
				t.Fatalf("%s is not found by its name", r.Meta.ID)
			}
		}
	}
}

func TestUndoRestoresWhatWasThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type step struct {
			was    Shard
			change registry.Change
			before *registry.Record
		}
		sh := New(recordkit.AnyEast)
		var steps []step
		for seq := range rapid.IntRange(1, 30).Draw(t, "changes") {
			was := sh
			c, before := sh.Apply(drawn(t), uint64(seq+1), version)
			steps = append(steps, step{was, c, before})
		}
		for _, s := range slices.Backward(steps) {
			sh.Undo(s.change, s.before)
			same(t, &sh, &s.was)
		}
	})
}

func TestLoadedInAnyOrderIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sh := New(recordkit.AnyEast)
		for seq := range rapid.IntRange(1, 30).Draw(t, "changes") {
			sh.Apply(drawn(t), uint64(seq+1), version)
		}
		records, revoked := slices.Collect(sh.Records()), slices.Collect(sh.Revocations())
		r := rand.New(rand.NewPCG(1, rapid.Uint64().Draw(t, "order")))
		r.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
		r.Shuffle(len(revoked), func(i, j int) { revoked[i], revoked[j] = revoked[j], revoked[i] })
		loaded, err := Load(recordkit.AnyEast, records, revoked)
		if err != nil {
			t.Fatal(err)
		}
		same(t, &loaded, &sh)
		if len(records) > 0 {
			if _, err := Load(recordkit.AnyEast, append(records, records[0]), nil); err == nil {
				t.Fatal("a record was loaded twice")
			}
		}
		staging := NewStaging(recordkit.AnyEast)
		for r := range sh.Records() {
			b, err := registry.EncodeRecord(r)
			if err != nil {
				t.Fatal(err)
			}
			if err := staging.Record(b); err != nil {
				t.Fatal(err)
			}
			if staging.Record(b) == nil {
				t.Fatal("a record was staged twice")
			}
		}
		copied, err := staging.Clone()
		if err != nil {
			t.Fatal(err)
		}
		for v := range sh.Revocations() {
			if err := copied.Revocation(*v); err != nil {
				t.Fatal(err)
			}
		}
		staged := copied.Content()
		same(t, &staged, &sh)
		all := func(yield func(registry.Revocation) bool) {
			for v := range sh.Revocations() {
				if !yield(*v) {
					return
				}
			}
		}
		if copied.Sum() != registry.DigestOf(sh.Records(), all) {
			t.Fatal("what was staged has another digest")
		}
	})
}

// Revocations that are merged mark the records, whichever came first.
func TestMergedRevocationsMarkRecords(t *testing.T) {
	sh := New(recordkit.AnyEast)
	sh.Apply(recordkit.Put(recordkit.Key(recordkit.KeyAny, recordkit.AnyEast, recordkit.PrjAny, "live")), 1, version)
	was := sh
	v := registry.Revocation{Kind: registry.KindKey, ID: recordkit.KeyAny, At: 7, Expires: 9}
	later := v
	later.At, later.Expires = 8, 0
	sh.Merge(slices.Values([]*registry.Revocation{&later, &v}))
	if r, _ := sh.Get(recordkit.KeyAny); r.Key.Revoked != 7 {
		t.Errorf("revoked at %d", r.Key.Revoked)
	}
	if got, ok := sh.Revocation(registry.KindKey, recordkit.KeyAny); !ok || got.At != 7 || got.Expires != 0 || got.Shard != recordkit.AnyEast {
		t.Errorf("%+v", got)
	}
	if r, _ := was.Get(recordkit.KeyAny); r.Key.Revoked != 0 {
		t.Error("a copy moved on")
	}
}
