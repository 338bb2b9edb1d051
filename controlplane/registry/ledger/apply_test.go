package ledger

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

// unchanged fails if f changes what s holds.
func unchanged(t *testing.T, s *State, f func()) {
	t.Helper()
	before := recordkit.Snapshot(t, s)
	f()
	if !bytes.Equal(before, recordkit.Snapshot(t, s)) {
		t.Error("the state changed")
	}
}

func TestRefusedEntryKeepsItsPlace(t *testing.T) {
	s := world(t)
	before, _ := s.Shard(anyEast)
	digest := s.Digest(anyEast)
	out := propose(t, s, anyEast, put(project("prj_any_0000000009", anyEast, orgAny, "new")), del(registry.KindOrg, orgAny))
	rule := ruleError(t, out.Err)
	if rule == nil || rule.Code != controlplane.RuleConflict || out.Refused[0] != rule {
		t.Fatalf("outcome %+v", out)
	}
	after, _ := s.Shard(anyEast)
	if after.Last.Seq != before.Last.Seq+1 || out.Points[anyEast] != after.Last {
		t.Errorf("at %v after %v", after.Last, before.Last)
	}
	if len(out.Effective) != 1 || out.Effective[0].Changes != nil || len(out.Touched) != 0 || s.Digest(anyEast) != digest {
		t.Errorf("a refused entry had an effect: %+v", out)
	}
	if _, found := s.Get(registry.KindProject, "prj_any_0000000009"); found {
		t.Error("half of an entry took effect")
	}
}

func TestRefusedOpeningNeverWas(t *testing.T) {
	s := world(t)
	unchanged(t, s, func() {
		out := propose(t, s, pinEU, open("eu-fra", "eu-fra", "us-east"))
		if rule := ruleError(t, out.Err); rule == nil || rule.Code != controlplane.RuleForbidden || len(out.Effective) != 0 {
			t.Errorf("outcome %+v", out)
		}
	})
}

func TestProposalsThatDoNotFit(t *testing.T) {
	s := world(t)
	good := func() *registry.Entry {
		e, err := s.Next(anyEast, []registry.Change{revoke(keyAny, 5)})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	tests := map[string]struct {
		change  func(e *registry.Entry)
		notHome bool
	}{
		"sequence ahead":   {func(e *registry.Entry) { e.Seq++ }, false},
		"sequence again":   {func(e *registry.Entry) { e.Seq-- }, false},
		"previous epoch":   {func(e *registry.Entry) { e.Prev.Counter++ }, false},
		"epoch before":     {func(e *registry.Entry) { e.Epoch.Counter-- }, true},
		"epoch after":      {func(e *registry.Entry) { e.Epoch.Counter++ }, true},
		"epoch of another": {func(e *registry.Entry) { e.Epoch.Region = "eu-fra" }, true},
		"no such shard":    {func(e *registry.Entry) { e.Shard = "any-eu-fra" }, true},
		"opening of another": {func(e *registry.Entry) {
			e.Changes, e.Epoch = []registry.Change{open("us-east", "us-east")}, controlplane.Epoch{Counter: 2, Region: "eu-fra"}
		}, true},
		"opening below": {func(e *registry.Entry) { e.Changes = []registry.Change{open("us-east", "us-east")} }, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			e := good()
			tt.change(e)
			unchanged(t, s, func() {
				out := apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}})
				var structure *StructureError
				if !errors.As(out.Err, &structure) || errors.Is(out.Err, controlplane.ErrNotHome) != tt.notHome {
					t.Errorf("%v", out.Err)
				}
				if structure != nil && e.Shard == anyEast && structure.Last != pointBefore(good()) {
					t.Errorf("the error names %v as the end", structure.Last)
				}
			})
		})
	}
	unchanged(t, s, func() { // all or nothing
		second := good()
		second.Seq += 2
		if out := apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, good()), entry(t, second)}}); out.Err == nil {
			t.Error("a gap within a command was accepted")
		}
	})
	unchanged(t, s, func() {
		opening, err := s.Next(pinEU, []registry.Change{open("eu-fra", "eu-fra")})
		if err != nil {
			t.Fatal(err)
		}
		if out := apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, good()), entry(t, opening)}}); out.Err == nil {
			t.Error("an opening among others was accepted")
		}
	})
}

func pointBefore(e *registry.Entry) controlplane.Point {
	return controlplane.Point{Epoch: e.Prev, Seq: e.Seq - 1}
}

func TestPipelinedEntries(t *testing.T) {
	s := world(t)
	first, err := s.Next(anyEast, []registry.Change{put(org("org_any_0000000009", anyEast, "any", "build", "verified"))})
	if err != nil {
		t.Fatal(err)
	}
	second := registry.NextAfter(anyEast, first.Point(), []registry.Change{put(project("prj_any_0000000009", anyEast, "org_any_0000000009", "x"))})
	out := apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, first), entry(t, second)}})
	want := []registry.Ref{{Shard: anyEast, Kind: registry.KindOrg, ID: "org_any_0000000009"}, {Shard: anyEast, Kind: registry.KindProject, ID: "prj_any_0000000009"}}
	if out.Err != nil || !slices.Equal(out.Touched, want) || len(out.Effective) != 2 || len(out.Points) != 1 {
		t.Errorf("outcome %+v", out)
	}
	if r, _ := s.Get(registry.KindProject, "prj_any_0000000009"); r == nil || r.Meta.Revision != second.Seq || out.Effective[1].Changes[0].Record != r {
		t.Error("the entry does not carry what was stored")
	}
}

func TestRevokedStaysRevoked(t *testing.T) {
	s := world(t)
	revoked := func(when string) {
		t.Helper()
		v, inSet := s.Revoked(registry.KindKey, keyAny)
		if !inSet || v != (registry.Revocation{Kind: registry.KindKey, ID: keyAny, Shard: anyEast, At: 77}) {
			t.Errorf("%s: the safety set holds %+v", when, v)
		}
		if r, ok := s.Get(registry.KindKey, keyAny); ok && r.Key.Revoked != 77 {
			t.Errorf("%s: revoked at %d", when, r.Key.Revoked)
		}
	}
	out := mustPropose(t, s, anyEast, revoke(keyAny, 77))
	revoked("after revocation")
	r, _ := s.Get(registry.KindKey, keyAny)
	if r.Meta.Revision != out.Points[anyEast].Seq || r.Meta.Created != created {
		t.Errorf("meta %+v", r.Meta)
	}
	rotated := key(keyAny, anyEast, prjAny, "live")
	rotated.Key.Hash = []byte("$2a$10$other")
	out = mustPropose(t, s, anyEast, put(rotated))
	revoked("after a put")
	if out.Effective[0].Changes[0].Record.Key.Revoked != 77 {
		t.Error("the feed would tell that the key is in force")
	}
	mustPropose(t, s, anyEast, revoke(keyAny, 99))
	revoked("after a later revocation")
	mustPropose(t, s, anyEast, del(registry.KindKey, keyAny))
	revoked("after deletion")
	mustPropose(t, s, anyEast, put(key(keyAny, anyEast, prjAny, "live")))
	revoked("after it was put again")
	if r, _ := s.Get(registry.KindKey, keyAny); r == nil || r.Key.Revoked != 77 {
		t.Error("a key that was put again is in force")
	}
	if got := s.Revocations(anyEast); len(got) != 1 {
		t.Errorf("revocations %v", got)
	}
}

func TestRevocationsMergeInAnyOrder(t *testing.T) {
	news := []registry.Revocation{{At: 9, Expires: 20}, {At: 5, Expires: 30}, {At: 7, Expires: 0}}
	tests := []struct {
		heard []int
		want  registry.Revocation
	}{
		{[]int{0}, registry.Revocation{At: 9, Expires: 20}},
		{[]int{0, 1}, registry.Revocation{At: 5, Expires: 30}}, {[]int{1, 0, 0}, registry.Revocation{At: 5, Expires: 30}},
		{[]int{0, 2}, registry.Revocation{At: 7}}, {[]int{2, 0}, registry.Revocation{At: 7}},
		{[]int{2, 1, 0}, registry.Revocation{At: 5}}, {[]int{0, 1, 2}, registry.Revocation{At: 5}}, {[]int{1, 2, 0}, registry.Revocation{At: 5}},
	}
	for _, tt := range tests {
		s := world(t)
		for _, i := range tt.heard {
			mustPropose(t, s, anyEast, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: keyAny, At: news[i].At, Expires: news[i].Expires})
		}
		v, _ := s.Revoked(registry.KindKey, keyAny)
		if r, _ := s.Get(registry.KindKey, keyAny); v.At != tt.want.At || v.Expires != tt.want.Expires || r.Key.Revoked != v.At {
			t.Errorf("heard %v: %+v", tt.heard, v)
		}
	}
}

func TestCreatedStays(t *testing.T) {
	s := world(t)
	r := project(prjAny, anyEast, orgAny, "renamed")
	r.Meta.Created, r.Meta.Updated = created+5, created+5
	mustPropose(t, s, anyEast, put(r))
	got, _ := s.Get(registry.KindProject, prjAny)
	if got.Meta.Created != created || got.Meta.Updated != created+5 {
		t.Errorf("meta %+v", got.Meta)
	}
	if _, found := s.ProjectByName(orgAny, "web"); found {
		t.Error("found by its former name")
	}
}

func TestClonesAndSnapshotsStandStill(t *testing.T) {
	s := world(t)
	clone, before := s.Clone(), recordkit.Snapshot(t, s)
	snap, _ := s.ShardSnapshot(anyEast)
	digest := snap.Digest()
	old, _ := s.Get(registry.KindKey, keyAny)
	mustPropose(t, s, anyEast, revoke(keyAny, 5), del(registry.KindKey, keyAny))
	mustPropose(t, clone, anyEast, put(org("org_any_0000000009", anyEast, "any", "build", "verified")))
	if snap.Digest() != digest || old.Key.Revoked != 0 {
		t.Error("a snapshot or record changed under its reader")
	}
	if _, found := s.Get(registry.KindOrg, "org_any_0000000009"); found {
		t.Error("the clone's change reached the original")
	}
	if bytes.Equal(before, recordkit.Snapshot(t, s)) {
		t.Error("nothing happened")
	}
}

// accept applies entries as the feed of another home brings them.
func accept(t *testing.T, s *State, sender controlplane.Epoch, entries ...*registry.Entry) Outcome {
	t.Helper()
	cmd := &registry.Command{Type: registry.CmdAccept, Sender: sender}
	for _, e := range entries {
		cmd.Entries = append(cmd.Entries, entry(t, e))
	}
	return apply(t, s, cmd)
}

func TestAccept(t *testing.T) {
	one, two, other := controlplane.Epoch{Counter: 1, Region: "a"}, controlplane.Epoch{Counter: 2, Region: "b"}, controlplane.Epoch{Counter: 2, Region: "a"}
	shard := controlplane.Shard("any-a")
	opening := func(epoch, prev controlplane.Epoch, seq uint64) *registry.Entry {
		return &registry.Entry{Shard: shard, Epoch: epoch, Prev: prev, Seq: seq, Changes: []registry.Change{open(epoch.Region, "b", "a")}}
	}
	plain := func(epoch controlplane.Epoch, seq uint64, changes ...registry.Change) *registry.Entry {
		return &registry.Entry{Shard: shard, Epoch: epoch, Prev: epoch, Seq: seq, Changes: changes}
	}
	dangling := project("prj_any_0000000001", shard, "org_any_0000000001", "x")
	base := New()
	if out := accept(t, base, two, opening(one, controlplane.Epoch{}, 1), plain(one, 2, put(dangling)), plain(one, 3), opening(two, one, 4), plain(two, 5)); out.Err != nil {
		t.Fatal(out.Err)
	}
	info, _ := base.Shard(shard)
	want := registry.ShardInfo{Shard: shard, Members: []string{"a", "b"}, Home: "b", Epoch: two,
		Last: controlplane.Point{Epoch: two, Seq: 5}, Spans: []registry.Span{{Epoch: one, Start: 1}, {Epoch: two, Start: 4}}}
	if !reflect.DeepEqual(info, want) {
		t.Errorf("info %+v, not %+v", info, want)
	}
	if r, found := base.Get(registry.KindProject, dangling.Meta.ID); !found || r.Meta.Revision != 2 {
		t.Error("a record with a dangling reference was not taken")
	}
	three := controlplane.Epoch{Counter: 3, Region: "a"}
	tests := []struct {
		name    string
		sender  controlplane.Epoch
		entries []*registry.Entry
		seq     uint64 // afterwards; 0 = refused
		notHome bool
	}{
		{"next", two, []*registry.Entry{plain(two, 6)}, 6, false},
		{"again and next", two, []*registry.Entry{plain(one, 2), plain(two, 5), plain(two, 6)}, 6, false},
		{"all known", two, []*registry.Entry{plain(one, 3), opening(two, one, 4)}, 5, false},
		{"from a new home", three, []*registry.Entry{opening(three, two, 6), plain(three, 7)}, 7, false},
		{"catching up from a new home", three, []*registry.Entry{plain(two, 6)}, 6, false},
		{"from a deposed home", one, []*registry.Entry{plain(one, 6)}, 0, true},
		{"from a rival", other, []*registry.Entry{plain(other, 6)}, 0, true},
		{"known, from a deposed home", one, []*registry.Entry{plain(one, 2)}, 0, true},
		{"gap", two, []*registry.Entry{plain(two, 7)}, 0, false},
		{"gap within", two, []*registry.Entry{plain(two, 6), plain(two, 8)}, 0, false},
		{"newer than its sender", two, []*registry.Entry{opening(three, two, 6)}, 0, false},
		{"other history", two, []*registry.Entry{plain(two, 3)}, 0, false},
		{"other history, older epoch", two, []*registry.Entry{plain(one, 5)}, 0, false},
		{"does not follow", three, []*registry.Entry{opening(three, one, 6)}, 0, false},
		{"epoch without opening", three, []*registry.Entry{{Shard: shard, Epoch: three, Prev: two, Seq: 6}}, 0, false},
		{"opening without epoch", two, []*registry.Entry{opening(two, two, 6)}, 0, false},
		{"opening for another", three, []*registry.Entry{{Shard: shard, Epoch: three, Prev: two, Seq: 6, Changes: []registry.Change{open("b", "a", "b")}}}, 0, false},
		{"sequence zero", two, []*registry.Entry{plain(two, 0)}, 0, false},
		{"malformed record", two, []*registry.Entry{plain(two, 6, put(project("prj_eu_0000000001", shard, orgEU, "x")))}, 0, false},
		{"put of nothing", two, []*registry.Entry{plain(two, 6, registry.Change{Op: registry.OpPut})}, 0, false},
		{"unopened shard", two, []*registry.Entry{{Shard: "any-x", Epoch: two, Prev: two, Seq: 1}}, 0, false},
		{"epoch zero", two, []*registry.Entry{{Shard: "any-x", Seq: 1}}, 0, false},
		{"no shard", one, []*registry.Entry{{Shard: "x-y", Epoch: one, Seq: 1, Changes: []registry.Change{open("a", "a")}}}, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := base.Clone()
			out := accept(t, s, tt.sender, tt.entries...)
			info, _ := s.Shard(shard)
			switch {
			case tt.seq == 0:
				var structure *StructureError
				if !errors.As(out.Err, &structure) || errors.Is(out.Err, controlplane.ErrNotHome) != tt.notHome {
					t.Errorf("%v", out.Err)
				}
				if !bytes.Equal(recordkit.Snapshot(t, s), recordkit.Snapshot(t, base)) {
					t.Error("the state changed")
				}
			case out.Err != nil || info.Last.Seq != tt.seq || info.Epoch != tt.sender || out.Points[shard] != info.Last:
				t.Errorf("%v; at %v, promised %s, points %v", out.Err, info.Last, info.Epoch, out.Points)
			}
		})
	}
}

func TestNobodyProposesBeforeTheNewHomeOpened(t *testing.T) {
	s := New()
	one, two := controlplane.Epoch{Counter: 1, Region: "a"}, controlplane.Epoch{Counter: 2, Region: "b"}
	accept(t, s, two, &registry.Entry{Shard: "any-a", Epoch: one, Seq: 1, Changes: []registry.Change{open("a", "a", "b")}})
	if _, err := s.Next("any-a", []registry.Change{revoke(keyAny, 1)}); !errors.Is(err, controlplane.ErrNotHome) {
		t.Errorf("next: %v", err)
	}
	early := &registry.Entry{Shard: "any-a", Epoch: two, Prev: one, Seq: 2, Changes: []registry.Change{revoke("key_any_0000000000000001", 1)}}
	unchanged(t, s, func() {
		if out := apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, early)}}); !errors.Is(out.Err, controlplane.ErrNotHome) {
			t.Errorf("proposed before the opening: %v", out.Err)
		}
	})
	e, err := s.Next("any-a", []registry.Change{open("a", "a")})
	if err != nil || e.Epoch != (controlplane.Epoch{Counter: 3, Region: "a"}) || e.Prev != one || e.Seq != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	if _, err := New().Next("any-a", []registry.Change{revoke(keyAny, 1)}); !errors.Is(err, controlplane.ErrNotHome) {
		t.Errorf("next of an unknown shard: %v", err)
	}
}

func TestUnknownContentHalts(t *testing.T) {
	s := world(t)
	e, err := s.Next(anyEast, []registry.Change{revoke(keyAny, 5)})
	if err != nil {
		t.Fatal(err)
	}
	newer := entry(t, e)
	newer[0] = 3
	for name, b := range map[string][]byte{
		"version": newer, "empty": {}, "garbage": {registry.FormatVersion, 0xff},
		"operation": entry(t, &registry.Entry{Shard: anyEast, Changes: []registry.Change{{Op: 99}}}),
		"kind":      entry(t, &registry.Entry{Shard: anyEast, Changes: []registry.Change{{Op: registry.OpDelete, Kind: 99}}}),
		"record":    entry(t, &registry.Entry{Shard: anyEast, Changes: []registry.Change{{Op: registry.OpPut, Record: &registry.Record{Kind: 99}}}}),
		"trailing":  append(entry(t, e), 0),
	} {
		cmd := &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{b}}
		unchanged(t, s, func() {
			if out := s.Apply(cmd); !errors.Is(out.Err, controlplane.ErrUnknownEntry) {
				t.Errorf("%s: %v", name, out.Err)
			}
		})
		if err := cmd.Readable(); !errors.Is(err, controlplane.ErrUnknownEntry) {
			t.Errorf("%s is readable: %v", name, err)
		}
	}
	if err := (&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}}).Readable(); err != nil {
		t.Error(err)
	}
	newer[0] = 2 // for what the first can say
	if _, err := registry.DecodeEntry(newer); !errors.Is(err, controlplane.ErrUnknownEntry) {
		t.Errorf("a second encoding of one entry: %v", err)
	}
	for _, cmd := range []*registry.Command{{}, {Type: registry.CmdEntry}, {Type: registry.CmdStage}, {Type: 9}, {Type: registry.CmdAdopt, Adopt: &registry.Adopt{}, Stage: &registry.Stage{}}} {
		if out := s.Apply(cmd); !errors.Is(out.Err, controlplane.ErrUnknownEntry) {
			t.Errorf("%+v: %v", cmd, out.Err)
		}
		if _, err := registry.EncodeCommand(cmd); err == nil {
			t.Errorf("%+v was encoded", cmd)
		}
	}
}

func TestLookupsOfNothing(t *testing.T) {
	s := world(t)
	if _, found := s.Get(registry.KindKey, "key_any_000000000000000"); found {
		t.Error("a malformed id was found")
	}
	if _, found := s.Get(registry.KindOrg, prjAny); found {
		t.Error("a project was found among orgs")
	}
	if got := s.List(99, "", 0, nil); got != nil {
		t.Errorf("unknown kind: %v", got)
	}
	if got := s.List(registry.KindKey, "", 1, func(r *registry.Record) bool { return r.Key.Class == "test" }); len(got) != 1 || got[0].Meta.ID != keyEU {
		t.Errorf("filtered: %v", got)
	}
	if got := s.KeysOf("prj_any_0000000099", "", 0); got != nil {
		t.Errorf("keys of nobody: %v", got)
	}
	if _, found := s.ByName(registry.KindProject, "web"); found {
		t.Error("a project was found by name alone")
	}
	for id, want := range map[string]controlplane.Shard{keyAny: anyEast, keyEU: pinEU, "key_eu_0000000000000099": pinEU, "key_any_0000000000000099": "", "key_eu_1": ""} {
		if got, found := s.ShardOf(registry.KindKey, id); got != want || found != (want != "") {
			t.Errorf("shard of %s: %q, %v", id, got, found)
		}
	}
	if got, _ := s.ShardOf(registry.KindRoute, "rte_0000000099"); got != controlplane.ShardGlobal {
		t.Errorf("shard of a route: %q", got)
	}
	if r, found := s.GetIn(pinEU, keyEU); !found || !strings.HasSuffix(r.Meta.ID, r.Key.Hint) {
		t.Error("not found in its shard")
	}
	if _, found := s.GetIn("any-x", keyEU); found {
		t.Error("found in a shard that does not exist")
	}
}
