package view

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// twin is the store written the slow way: flat maps, rescanned for everything.
type twin struct {
	records  map[string]*registry.Record // kind/id
	revoked  map[string]int64
	stages   map[controlplane.Shard]map[string]*registry.Record
	position controlplane.Position
}

func twinKey(kind registry.Kind, id string) string { return fmt.Sprintf("%d/%s", kind, id) }

func newTwin() *twin {
	return &twin{
		records: map[string]*registry.Record{}, revoked: map[string]int64{},
		stages: map[controlplane.Shard]map[string]*registry.Record{}, position: controlplane.Position{},
	}
}

func (t *twin) revoke(kind registry.Kind, id string, at int64) {
	if _, ok := t.revoked[twinKey(kind, id)]; !ok {
		t.revoked[twinKey(kind, id)] = at
	}
}

// apply returns whether the frame fits.
func (t *twin) apply(f *feed.Frame) bool {
	switch f.Type {
	case feed.FrameReset:
		t.stages[f.Shard] = map[string]*registry.Record{}
	case feed.FrameRecord:
		if t.stages[f.Shard] == nil {
			return false
		}
		r, err := registry.DecodeRecord(f.Record)
		if err != nil {
			panic(err)
		}
		t.stages[f.Shard][twinKey(r.Kind, r.Meta.ID)] = r
	case feed.FrameRevocation:
		t.revoke(f.Revocation.Kind, f.Revocation.ID, f.Revocation.At)
	case feed.FrameEnd:
		st := t.stages[f.Shard]
		delete(t.stages, f.Shard)
		if st == nil {
			return false
		}
		if t.position[f.Shard].Compare(f.Point) > 0 {
			return true
		}
		maps.DeleteFunc(t.records, func(_ string, r *registry.Record) bool { return r.Meta.Shard == f.Shard })
		maps.Copy(t.records, st)
		t.position[f.Shard] = f.Point
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			panic(err)
		}
		for _, c := range e.Changes {
			if c.Op == registry.OpRevoke {
				t.revoke(c.Kind, c.ID, c.At)
			}
		}
		last := t.position[e.Shard]
		if e.Seq <= last.Seq && e.Epoch.Compare(last.Epoch) <= 0 {
			return true
		}
		if e.Seq != last.Seq+1 || e.Prev != last.Epoch || f.Sender.Compare(last.Epoch) < 0 {
			return false
		}
		delete(t.stages, e.Shard)
		for _, c := range e.Changes {
			switch c.Op {
			case registry.OpPut:
				r := *c.Record
				r.Meta.Revision = e.Seq
				t.records[twinKey(r.Kind, r.Meta.ID)] = &r
			case registry.OpDelete:
				delete(t.records, twinKey(c.Kind, c.ID))
			}
		}
		t.position[e.Shard] = e.Point()
	}
	return true
}

// compare checks every lookup of v against a scan of the twin's records.
func (t *twin) compare(tb rapid.TB, v *View) {
	keys := 0
	for _, kind := range kinds {
		for n := range 4 {
			for _, shard := range shards {
				id := recordID(kind, shard, n)
				want := t.records[twinKey(kind, id)]
				if want != nil && kind == registry.KindKey {
					keys++
				}
				t.compareOne(tb, v, kind, id, want)
			}
		}
	}
	if v.Keys() != keys {
		tb.Fatalf("the view counts %d keys, the twin %d", v.Keys(), keys)
	}
	if !maps.Equal(v.Position(), t.position) {
		tb.Fatalf("position %v, want %v", v.Position(), t.position)
	}
	var models []string
	for _, r := range v.Routes() {
		models = append(models, r.Route.Model)
	}
	var want []string
	for _, r := range t.records {
		if r.Kind == registry.KindRoute {
			want = append(want, r.Route.Model)
		}
	}
	slices.Sort(want)
	if !slices.Equal(models, slices.Compact(want)) {
		tb.Fatalf("routes %v, want %v", models, want)
	}
}

func (t *twin) compareOne(tb rapid.TB, v *View, kind registry.Kind, id string, want *registry.Record) {
	at, gone := v.Revoked(kind, id)
	wantAt, wantGone := t.revoked[twinKey(kind, id)]
	if gone != wantGone || at != wantAt {
		tb.Fatalf("revoked(%v, %s) = %d, %v; want %d, %v", kind, id, at, gone, wantAt, wantGone)
	}
	var got *registry.Record
	found := false
	switch kind {
	case registry.KindKey:
		k, ok := v.Key(id)
		if ok != (want != nil) {
			tb.Fatalf("key %s: found %v, want %v", id, ok, want != nil)
		}
		if !ok {
			return
		}
		w := want.Key
		if k.Project != w.Project || k.Class != w.Class || !bytes.Equal(k.Hash, w.Hash) || !bytes.Equal(k.PrevHash, w.PrevHash) ||
			k.PrevUntil != w.PrevUntil || k.Expires != w.Expires || k.Revision != want.Meta.Revision || k.Shard != want.Meta.Shard {
			tb.Fatalf("key %s is %+v, want %+v", id, k, want)
		}
		if (k.Revoked != 0) != (w.Revoked != 0 || wantGone) {
			tb.Fatalf("key %s revoked at %d, record says %d, safety set %v", id, k.Revoked, w.Revoked, wantGone)
		}
		return
	case registry.KindOrg:
		got, found = v.Org(id)
	case registry.KindProject:
		got, found = v.Project(id)
	case registry.KindRoute:
		if want != nil {
			got, found = v.Route(want.Route.Model)
		}
	case registry.KindUpstream:
		if want != nil {
			got, found = v.Upstream(want.Upstream.Name)
			if wantGone {
				if found {
					tb.Fatalf("upstream %s is revoked and still found", id)
				}
				return
			}
		}
	case registry.KindPolicy:
		t.comparePolicy(tb, v, id)
		return
	}
	if found != (want != nil) || found && got.Meta != want.Meta {
		tb.Fatalf("%v %s: got %v, want %v", kind, id, got, want)
	}
}

func (t *twin) comparePolicy(tb rapid.TB, v *View, id string) {
	rec := t.records[twinKey(registry.KindPolicy, id)]
	if rec == nil {
		return
	}
	org, project := rec.Policy.Org, rec.Policy.Project
	residency := map[string]bool{}
	zero, dedicated := false, false
	for _, r := range t.records {
		if r.Kind == registry.KindPolicy && r.Policy.Org == org && (r.Policy.Project == "" || r.Policy.Project == project) {
			if r.Policy.Residency != "" {
				residency[r.Policy.Residency] = true
			}
			zero = zero || r.Policy.NoRetention
			dedicated = dedicated || r.Policy.Dedicated
		}
	}
	p := v.Policy(org, project)
	if p.Conflict != (len(residency) > 1) || p.NoRetention != zero || p.Dedicated != dedicated || (p.Residency != "") != (len(residency) > 0) {
		tb.Fatalf("policy(%s, %s) = %+v; pins %v, zero retention %v", org, project, p, residency, zero)
	}
	for _, model := range []string{"a", "b", "c"} {
		allowed := true
		for _, r := range t.records {
			if r.Kind == registry.KindPolicy && r.Policy.Org == org && (r.Policy.Project == "" || r.Policy.Project == project) {
				allowed = allowed && (len(r.Policy.Models) == 0 || slices.Contains(r.Policy.Models, model))
			}
		}
		if p.Allows(model) != allowed {
			tb.Fatalf("policy(%s, %s) allows %s: %v, want %v", org, project, model, !allowed, allowed)
		}
	}
}

var (
	shards = []controlplane.Shard{"global", "any-us-east", "eu"}
	kinds  = []registry.Kind{
		registry.KindOrg, registry.KindProject, registry.KindKey,
		registry.KindUpstream, registry.KindRoute, registry.KindPolicy,
	}
)

func recordID(kind registry.Kind, shard controlplane.Shard, n int) string {
	return fmt.Sprintf("%d_%s_%d", kind, shard, n)
}

func drawRecord(t *rapid.T, shard controlplane.Shard) *registry.Record {
	kind := rapid.SampledFrom(kinds).Draw(t, "kind")
	n := rapid.IntRange(0, 3).Draw(t, "n")
	r := &registry.Record{Kind: kind, Meta: registry.Meta{
		ID: recordID(kind, shard, n), Shard: shard,
		Revision: rapid.Uint64Range(1, 50).Draw(t, "revision"), Updated: 1,
	}}
	switch kind {
	case registry.KindOrg:
		r.Org = &registry.Org{Name: "o"}
	case registry.KindProject:
		r.Project = &registry.Project{Name: "p"}
	case registry.KindKey:
		r.Key = &registry.Key{
			Project: recordID(registry.KindProject, shard, rapid.IntRange(0, 3).Draw(t, "project")),
			Class:   rapid.SampledFrom([]string{"live", "test"}).Draw(t, "class"),
			Hash:    rapid.SliceOfN(rapid.Byte(), 60, 60).Draw(t, "hash"),
			Expires: rapid.Int64Range(0, 1<<40).Draw(t, "expires"),
			Revoked: rapid.Int64Range(0, 1).Draw(t, "revoked"),
		}
		if rapid.Bool().Draw(t, "rotated") {
			r.Key.PrevHash, r.Key.PrevUntil = []byte("before"), 77
		}
	case registry.KindUpstream:
		r.Upstream = &registry.Upstream{Name: r.Meta.ID}
	case registry.KindRoute:
		r.Route = &registry.Route{Model: r.Meta.ID}
	case registry.KindPolicy:
		r.Policy = &registry.Policy{
			Org:         recordID(registry.KindOrg, shard, n/2),
			Project:     rapid.SampledFrom([]string{"", "p1", "p2"}).Draw(t, "of"),
			Residency:   rapid.SampledFrom([]string{"", "eu", "us"}).Draw(t, "residency"),
			NoRetention: rapid.Bool().Draw(t, "zero"), Dedicated: rapid.Bool().Draw(t, "dedicated"),
			Models: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID[string]).Draw(t, "models"),
		}
	}
	return r
}

func encoded(t rapid.TB, r *registry.Record) []byte {
	b, err := registry.EncodeRecord(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// drawFrame makes a frame that usually fits the twin's state and sometimes does not.
func drawFrame(t *rapid.T, tw *twin) *feed.Frame {
	shard := rapid.SampledFrom(shards).Draw(t, "shard")
	last := tw.position[shard]
	what := rapid.IntRange(0, 9).Draw(t, "what")
	switch {
	case what == 0:
		return &feed.Frame{Type: feed.FrameReset, Shard: shard}
	case what <= 3 && tw.stages[shard] != nil:
		return &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: encoded(t, drawRecord(t, shard))}
	case what == 4:
		return &feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{
			Epoch: controlplane.Epoch{Counter: max(1, last.Epoch.Counter), Region: "r"},
			Seq:   uint64(max(0, int64(last.Seq)+rapid.Int64Range(-2, 5).Draw(t, "ahead"))),
		}}
	case what == 5:
		kind := rapid.SampledFrom(kinds).Draw(t, "kind")
		return &feed.Frame{Type: feed.FrameRevocation, Shard: shard, Revocation: &registry.Revocation{
			Kind: kind, ID: recordID(kind, shard, rapid.IntRange(0, 3).Draw(t, "n")), Shard: shard, At: 5,
		}}
	}
	e := &registry.Entry{
		Shard: shard, Epoch: controlplane.Epoch{Counter: max(1, last.Epoch.Counter) + rapid.Uint64Range(0, 1).Draw(t, "newer"), Region: "r"},
		Seq: last.Seq + 1, Prev: last.Epoch,
	}
	switch rapid.IntRange(0, 9).Draw(t, "fit") {
	case 0:
		e.Seq++
	case 1:
		e.Seq, e.Epoch = max(e.Seq, 3)-2, last.Epoch
	case 2:
		e.Prev.Counter++
	}
	for range rapid.IntRange(0, 4).Draw(t, "changes") {
		r := drawRecord(t, shard)
		switch rapid.IntRange(0, 3).Draw(t, "op") {
		case 0:
			e.Changes = append(e.Changes, registry.Change{Op: registry.OpDelete, Kind: r.Kind, ID: r.Meta.ID})
		case 1:
			e.Changes = append(e.Changes, registry.Change{Op: registry.OpRevoke, Kind: r.Kind, ID: r.Meta.ID, At: 9})
		default:
			e.Changes = append(e.Changes, registry.Change{Op: registry.OpPut, Record: r})
		}
	}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return &feed.Frame{Type: feed.FrameEntry, Shard: shard, Sender: e.Epoch, Entry: b}
}

// TestTwin drives the store and the twin with the same random frames, and
// checks that views handed out earlier never change.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, tw := New(Config{}), newTwin()
		type memory struct {
			view *View
			twin *twin
		}
		var earlier []memory
		for range rapid.IntRange(1, 60).Draw(t, "frames") {
			f := drawFrame(t, tw)
			err := s.Apply(f)
			if fits := tw.apply(f); fits != (err == nil) {
				t.Fatalf("frame %+v: %v; the twin says it fits: %v", f, err, fits)
			}
			tw.compare(t, s.View())
			if rapid.IntRange(0, 9).Draw(t, "remember") == 0 {
				earlier = append(earlier, memory{s.View(), &twin{
					records: maps.Clone(tw.records), revoked: maps.Clone(tw.revoked), position: tw.position.Clone(),
				}})
			}
		}
		for _, m := range earlier {
			m.twin.compare(t, m.view)
		}
	})
}
