package ledger

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// twin is the registry as one would write it without a thought for speed: a
// list of records and a list of revocations, rescanned every time.
type twin struct {
	records []registry.Record
	revoked []registry.Revocation
	last    map[controlplane.Shard]controlplane.Point
}

func (w *twin) find(shard controlplane.Shard, kind registry.Kind, id string) *registry.Record {
	for i := range w.records {
		if r := &w.records[i]; r.Meta.Shard == shard && r.Kind == kind && r.Meta.ID == id {
			return r
		}
	}
	return nil
}

func (w *twin) any(shard controlplane.Shard, holds func(r *registry.Record) bool) bool {
	return slices.ContainsFunc(w.records, func(r registry.Record) bool { return r.Meta.Shard == shard && holds(&r) })
}

func (w *twin) revocation(id string) *registry.Revocation {
	for i := range w.revoked {
		if w.revoked[i].ID == id {
			return &w.revoked[i]
		}
	}
	return nil
}

func (w *twin) clone() *twin {
	c := &twin{slices.Clone(w.records), slices.Clone(w.revoked), map[controlplane.Shard]controlplane.Point{}}
	for s, p := range w.last {
		c.last[s] = p
	}
	return c
}

// allowed is what the rules say of changes whose every field is well-formed.
func (w *twin) allowed(shard controlplane.Shard, c registry.Change) bool {
	kind, id := c.Kind, c.ID
	if c.Op == registry.OpPut {
		kind, id = c.Record.Kind, c.Record.Meta.ID
	}
	old := w.find(shard, kind, id)
	switch {
	case c.Op == registry.OpOpen:
		return true
	case c.IfRevision == registry.RevisionAbsent && old != nil:
		return false
	case c.IfRevision != registry.RevisionAbsent && c.IfRevision != 0 && (old == nil || old.Meta.Revision != c.IfRevision):
		return false
	case c.Op == registry.OpRevoke:
		return old != nil
	case c.Op == registry.OpDelete:
		return old != nil && !w.any(shard, func(r *registry.Record) bool {
			switch {
			case r.Project != nil:
				return r.Project.Org == id
			case r.Key != nil:
				return r.Key.Project == id || r.Meta.ID == id && w.revocation(id) == nil
			case r.Policy != nil:
				return r.Policy.Org == id || r.Policy.Project == id
			case r.Route != nil && old.Upstream != nil:
				return slices.ContainsFunc(r.Route.Targets, func(t registry.Target) bool { return t.Upstream == old.Upstream.Name })
			}
			return false
		})
	}
	return w.putAllowed(shard, c.Record, old)
}

func (w *twin) putAllowed(shard controlplane.Shard, r, old *registry.Record) bool {
	other := func(o *registry.Record) bool { return o.Kind == r.Kind && o.Meta.ID != r.Meta.ID }
	switch r.Kind {
	case registry.KindProject:
		return w.find(shard, registry.KindOrg, r.Project.Org) != nil &&
			(old == nil || old.Project.Org == r.Project.Org) &&
			!w.any(shard, func(o *registry.Record) bool { return other(o) && *o.Project == *r.Project })
	case registry.KindKey:
		p := w.find(shard, registry.KindProject, r.Key.Project)
		return p != nil && (old == nil || old.Key.Project == r.Key.Project && old.Key.Class == r.Key.Class) &&
			(r.Key.Class == "test" || w.find(shard, registry.KindOrg, p.Project.Org).Org.State == "verified")
	case registry.KindPolicy:
		p := w.find(shard, registry.KindProject, r.Policy.Project)
		return w.find(shard, registry.KindOrg, r.Policy.Org) != nil &&
			(r.Policy.Project == "" || p != nil && p.Project.Org == r.Policy.Org) &&
			(old == nil || old.Policy.Org == r.Policy.Org && old.Policy.Project == r.Policy.Project) &&
			!w.any(shard, func(o *registry.Record) bool {
				return other(o) && o.Policy.Org == r.Policy.Org && o.Policy.Project == r.Policy.Project
			})
	case registry.KindUpstream:
		return !w.any(shard, func(o *registry.Record) bool {
			return other(o) && o.Upstream.Name == r.Upstream.Name || o.Route != nil && old != nil && old.Upstream.Name != r.Upstream.Name &&
				slices.ContainsFunc(o.Route.Targets, func(t registry.Target) bool { return t.Upstream == old.Upstream.Name })
		})
	case registry.KindRoute:
		for _, t := range r.Route.Targets {
			if !w.any(shard, func(o *registry.Record) bool { return o.Upstream != nil && o.Upstream.Name == t.Upstream }) {
				return false
			}
		}
		return !w.any(shard, func(o *registry.Record) bool { return other(o) && o.Route.Model == r.Route.Model })
	}
	return true
}

func (w *twin) change(shard controlplane.Shard, c registry.Change, seq uint64) {
	switch c.Op {
	case registry.OpPut:
		r := *c.Record
		r.Meta.Revision = seq
		if old := w.find(shard, r.Kind, r.Meta.ID); old != nil {
			r.Meta.Created = old.Meta.Created
			*old = r
		} else {
			w.records = append(w.records, r)
		}
	case registry.OpDelete:
		w.records = slices.DeleteFunc(w.records, func(r registry.Record) bool { return r.Meta.Shard == shard && r.Meta.ID == c.ID })
	case registry.OpRevoke:
		if v := w.revocation(c.ID); v == nil {
			w.revoked = append(w.revoked, registry.Revocation{Kind: c.Kind, ID: c.ID, Shard: shard, At: c.At, Expires: c.Expires})
		} else {
			v.At = min(v.At, c.At)
			never := v.Expires == 0 || c.Expires == 0
			if v.Expires = max(v.Expires, c.Expires); never {
				v.Expires = 0
			}
		}
	}
	for i := range w.records { // whoever is revoked shows it, whatever was put
		r := &w.records[i]
		if r.Key == nil {
			continue
		}
		k, v := *r.Key, w.revocation(r.Meta.ID)
		if k.Revoked = 0; v != nil {
			k.Revoked = v.At
		}
		if c.Op == registry.OpRevoke && k.Revoked != r.Key.Revoked {
			r.Meta.Revision, r.Meta.Updated = seq, max(r.Meta.Updated, c.At)
		}
		r.Key = &k
	}
}

// propose returns whether the entry fits the history, and whether the rules allow it.
func (w *twin) propose(e *registry.Entry) (fits, allowed bool) {
	last := w.last[e.Shard]
	opens := len(e.Changes) > 0 && e.Changes[0].Op == registry.OpOpen
	if e.Seq != last.Seq+1 || e.Prev != last.Epoch || !opens && e.Epoch != last.Epoch || opens && e.Epoch.Compare(last.Epoch) <= 0 {
		return false, false
	}
	next := w.clone()
	allowed = true
	for _, c := range e.Changes {
		if allowed = allowed && next.allowed(e.Shard, c); allowed {
			next.change(e.Shard, c, e.Seq)
		}
	}
	if allowed {
		*w = *next
	}
	w.last[e.Shard] = e.Point()
	return true, allowed
}

// compare checks every lookup of s against a scan of the twin.
func (w *twin) compare(t *rapid.T, s *State) {
	for kind := registry.KindOrg; kind <= registry.KindRegion; kind++ {
		var want []*registry.Record
		for i := range w.records {
			if w.records[i].Kind == kind {
				want = append(want, &w.records[i])
			}
		}
		slices.SortFunc(want, func(a, b *registry.Record) int { return cmp.Compare(a.Meta.ID, b.Meta.ID) })
		same(t, "list of "+kind.String(), s.List(kind, "", 0, nil), want)
		for i, r := range want {
			got, _ := s.Get(kind, r.Meta.ID)
			same(t, "get", []*registry.Record{got}, []*registry.Record{r})
			same(t, "page", s.List(kind, r.Meta.ID, 2, nil), want[i+1:min(i+3, len(want))])
			w.compareLinks(t, s, r)
		}
	}
	var revoked []registry.Revocation
	for _, info := range s.Shards() {
		revoked = append(revoked, s.Revocations(info.Shard)...)
	}
	byID := func(a, b registry.Revocation) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortFunc(revoked, byID)
	if want := slices.SortedFunc(slices.Values(w.revoked), byID); !slices.Equal(revoked, want) {
		t.Fatalf("revoked %v, not %v", revoked, want)
	}
	if p := s.Position(); !reflect.DeepEqual(map[controlplane.Shard]controlplane.Point(p), w.last) {
		t.Fatalf("position %v, not %v", p, w.last)
	}
}

func (w *twin) compareLinks(t *rapid.T, s *State, r *registry.Record) {
	of := func(kind registry.Kind, holds func(c *registry.Record) bool) (want []*registry.Record) {
		for i := range w.records {
			if c := &w.records[i]; c.Kind == kind && holds(c) {
				want = append(want, c)
			}
		}
		slices.SortFunc(want, func(a, b *registry.Record) int { return cmp.Compare(a.Meta.ID, b.Meta.ID) })
		return want
	}
	switch r.Kind {
	case registry.KindOrg:
		same(t, "projects", s.ProjectsOf(r.Meta.ID, "", 0), of(registry.KindProject, func(c *registry.Record) bool { return c.Project.Org == r.Meta.ID }))
		same(t, "policies", s.PoliciesOf(r.Meta.ID, "", 0), of(registry.KindPolicy, func(c *registry.Record) bool { return c.Policy.Org == r.Meta.ID }))
	case registry.KindProject:
		keys := of(registry.KindKey, func(c *registry.Record) bool { return c.Key.Project == r.Meta.ID })
		same(t, "keys", s.KeysOf(r.Meta.ID, "", 0), keys)
		if len(keys) > 1 {
			same(t, "page of keys", s.KeysOf(r.Meta.ID, keys[0].Meta.ID, 1), keys[1:2])
		}
		got, _ := s.ProjectByName(r.Project.Org, r.Project.Name)
		same(t, "project by name", []*registry.Record{got}, []*registry.Record{r})
	case registry.KindUpstream, registry.KindRoute, registry.KindRegion:
		var n string
		switch {
		case r.Upstream != nil:
			n = r.Upstream.Name
		case r.Route != nil:
			n = r.Route.Model
		default:
			n = r.Region.Name
		}
		got, _ := s.ByName(r.Kind, n)
		same(t, "by name", []*registry.Record{got}, []*registry.Record{r})
		if _, found := s.ByName(r.Kind, n+"-not"); found {
			t.Fatalf("%s-not found by name", n)
		}
	}
}

func same(t *rapid.T, what string, got, want []*registry.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d records, not %d", what, len(got), len(want))
	}
	for i := range got {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Fatalf("%s: %s, not %s", what, text(got[i]), text(want[i]))
		}
	}
}

func text(r *registry.Record) string {
	if r == nil {
		return "nothing"
	}
	return fmt.Sprintf("%+v %+v %+v %+v %+v %+v", r.Meta, r.Org, r.Project, r.Key, r.Route, r.Policy)
}

var tenantShards = []controlplane.Shard{anyEast, pinEU}

// drawChange draws a change with well-formed fields, often one that the rules
// refuse: ids and names come from small pools.
func drawChange(t *rapid.T, shard controlplane.Shard, at int64) registry.Change {
	pick := func(label string, from ...string) string { return rapid.SampledFrom(from).Draw(t, label) }
	jurisdiction := "any"
	if shard == pinEU {
		jurisdiction = "eu"
	}
	id := func(kind registry.Kind, n int) string {
		body := "000000000" + fmt.Sprint(rapid.IntRange(1, n).Draw(t, "id"))
		switch {
		case kind == registry.KindKey:
			body = "000000" + body
		case kind.Global():
			return kind.Prefix() + "_" + body
		}
		return kind.Prefix() + "_" + jurisdiction + "_" + body
	}
	var r *registry.Record
	if shard == controlplane.ShardGlobal {
		if rapid.Bool().Draw(t, "route") {
			r = route(id(registry.KindRoute, 2), pick("model", "a", "b"), pick("upstream", "x", "y", "z"))
		} else {
			r = upstream(id(registry.KindUpstream, 3), pick("name", "x", "y", "z"), "us-east")
		}
	} else {
		switch rapid.IntRange(0, 7).Draw(t, "kind") {
		case 0:
			r = org(id(registry.KindOrg, 2), shard, jurisdiction, "build", pick("state", "verified", "verified", "suspended"))
		case 1, 2:
			r = project(id(registry.KindProject, 3), shard, id(registry.KindOrg, 2), pick("name", "p", "q"))
		case 3:
			r = policy(id(registry.KindPolicy, 2), shard, id(registry.KindOrg, 2), "")
			if rapid.Bool().Draw(t, "project") {
				r.Policy.Project = id(registry.KindProject, 3)
			}
		default:
			r = key(id(registry.KindKey, 5), shard, id(registry.KindProject, 3), pick("class", "live", "test", "test"))
			r.Key.Name = pick("name", "n", "m")
		}
	}
	r.Meta.Created, r.Meta.Updated = at, at
	c := put(r)
	switch rapid.IntRange(0, 9).Draw(t, "op") {
	case 0, 1:
		c = del(r.Kind, r.Meta.ID)
	case 2, 3:
		if r.Kind == registry.KindKey || r.Kind == registry.KindUpstream {
			c = registry.Change{Op: registry.OpRevoke, Kind: r.Kind, ID: r.Meta.ID, At: rapid.Int64Range(1, 9).Draw(t, "at"), Expires: rapid.Int64Range(0, 3).Draw(t, "expires")}
		}
	}
	if rapid.IntRange(0, 5).Draw(t, "conditional") == 0 {
		c.IfRevision = rapid.SampledFrom([]uint64{registry.RevisionAbsent, 1, 2, 3, 4}).Draw(t, "revision")
	}
	return c
}

// tenant returns changes that put an org, a project and two keys.
func tenant(shard controlplane.Shard) []registry.Change {
	jurisdiction := "any"
	if shard == pinEU {
		jurisdiction = "eu"
	}
	o, p, k := "org_"+jurisdiction+"_0000000001", "prj_"+jurisdiction+"_0000000001", "key_"+jurisdiction+"_000000000000000"
	return []registry.Change{
		put(org(o, shard, jurisdiction, "build", "verified")), put(project(p, shard, o, "p")),
		put(key(k+"1", shard, p, "live")), put(key(k+"2", shard, p, "test")),
	}
}

// TestTwin drives a home's State and its twin through random proposals, some of
// which are late or wrong, and a follower through whatever order a feed could
// bring the outcome in.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		home, second := New(), New()
		w := &twin{last: map[controlplane.Shard]controlplane.Point{}}
		f := &follower{state: New(), history: map[controlplane.Shard][]*registry.Entry{}, digests: map[moment][32]byte{}}
		do := func(e *registry.Entry) {
			checked := home.Check(e.Shard, e.Changes)
			fits, allowed := w.propose(e)
			if fits && allowed != (checked == nil) {
				t.Fatalf("Check of %+v: %v, but allowed %v", e, checked, allowed)
			}
			cmd := &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entryBytes(t, e)}}
			out := home.Apply(cmd)
			if again := second.Apply(cmd); !reflect.DeepEqual(out, again) {
				t.Fatalf("two replicas answer %+v and %+v", out, again)
			}
			var structure *StructureError
			var rule *controlplane.RuleError
			if errors.As(out.Err, &structure) == fits || fits && errors.As(out.Err, &rule) == allowed {
				t.Fatalf("entry %+v: %v, but fits %v, allowed %v", e, out.Err, fits, allowed)
			}
			if fits {
				f.history[e.Shard] = append(f.history[e.Shard], out.Effective...)
				f.digests[moment{e.Shard, e.Point()}] = home.Digest(e.Shard)
			}
		}
		for _, shard := range append(slices.Clone(tenantShards), controlplane.ShardGlobal) {
			e := registry.NextAfter(shard, controlplane.Point{}, []registry.Change{open("us-east", "us-east", "eu-fra")})
			if shard == controlplane.ShardGlobal {
				e.Changes = append(e.Changes, put(region("us-east", "us")), put(region("eu-fra", "eu")))
			}
			if shard == pinEU {
				e.Changes[0], e.Epoch.Region = open("eu-fra", "eu-fra"), "eu-fra"
			}
			do(e)
			if shard != controlplane.ShardGlobal { // random draws alone rarely get as far as keys
				do(registry.NextAfter(shard, e.Point(), tenant(shard)))
			}
		}
		for step := range rapid.IntRange(1, 120).Draw(t, "steps") {
			shard := rapid.SampledFrom([]controlplane.Shard{anyEast, anyEast, pinEU, controlplane.ShardGlobal}).Draw(t, "shard")
			changes := make([]registry.Change, rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "changes"))
			for i := range changes {
				changes[i] = drawChange(t, shard, created+int64(step))
			}
			e, err := home.Next(shard, changes)
			if err != nil {
				t.Fatal(err)
			}
			switch rapid.IntRange(0, 19).Draw(t, "mishap") {
			case 0:
				e.Seq += uint64(rapid.SampledFrom([]int{1, 2}).Draw(t, "ahead"))
			case 1:
				e.Seq--
			case 2:
				e.Epoch.Counter--
			case 3:
				e.Prev.Counter++
			case 4:
				info, _ := home.Shard(shard)
				if e, err = home.Next(shard, []registry.Change{open(info.Home, info.Members...)}); err != nil {
					t.Fatal(err)
				}
			case 5, 6:
				f.hear(t, shard, home)
			case 7:
				f.adopt(t, shard, home)
			}
			do(e)
		}
		w.compare(t, home)
		f.finish(t, home)
		restored, err := Restore(bytes.NewReader(snapshotBytes(t, home)))
		if err != nil {
			t.Fatal(err)
		}
		w.compare(t, restored)
		if !bytes.Equal(snapshotBytes(t, restored), snapshotBytes(t, second)) {
			t.Fatal("a restored replica differs from one that applied everything")
		}
	})
}

func entryBytes(t *rapid.T, e *registry.Entry) []byte {
	b, err := registry.EncodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func snapshotBytes(t *rapid.T, s *State) []byte {
	var b bytes.Buffer
	if err := s.Snapshot(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The twin's own vocabulary must not drift from the registry's.
func TestTwinDrawsWellFormedChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		shard := rapid.SampledFrom(append(slices.Clone(tenantShards), controlplane.ShardGlobal)).Draw(t, "shard")
		c := drawChange(t, shard, created)
		if err := c.WellFormed(shard, 0); err != nil && !strings.Contains(err.Message, "stamped") {
			t.Fatal(err)
		}
	})
}
