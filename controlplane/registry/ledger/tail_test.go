package ledger

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/tree"
	"ringmain/internal/testkit/recordkit"
)

var (
	east = recordkit.East
	fra  = ownership.Member{Region: "eu-fra"}
	one  = recordkit.One
	two  = recordkit.Two
)

func raise(t testing.TB, s *State) Outcome {
	t.Helper()
	return raiseTo(t, s, registry.Version)
}

func raiseTo(t testing.TB, s *State, version uint64) Outcome {
	t.Helper()
	out := apply(t, s, &registry.Command{Type: registry.CmdVersion, Version: version})
	if out.Err != nil {
		t.Fatal(out.Err)
	}
	return out
}

func mustApply(t testing.TB, s *State, cmd *registry.Command) Outcome {
	t.Helper()
	out := apply(t, s, cmd)
	if out.Err != nil {
		t.Fatalf("%+v: %v", cmd, out.Err)
	}
	return out
}

func confirm(t testing.TB, s *State, shard controlplane.Shard) {
	t.Helper()
	c := s.Copy(shard)
	mustApply(t, s, &registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: shard, Epoch: c.Last.Epoch, Seq: c.Last.Seq}})
}

// deposed returns a state of version 2 with everything that it can hold: a tail
// with undone predecessors in the quarantine, a sealed shard, staging.
func deposed(t testing.TB) *State {
	s := full(t)
	raiseTo(t, s, registry.VersionOwnership)
	confirm(t, s, anyEast)
	base := s.Copy(anyEast).Last
	e, err := s.Next(anyEast, []registry.Change{
		put(key(keyAny, anyEast, prjAny, "live")), put(project("prj_any_0000000009", anyEast, orgAny, "new")),
		{Op: registry.OpRevoke, Kind: registry.KindKey, ID: keyAny, At: 3, Expires: 9},
	})
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}, Levels: []registry.Level{registry.LevelMultiRegion}})
	opened := &registry.Entry{Shard: anyEast, Epoch: two, Seq: base.Seq + 1, Prev: base.Epoch, Changes: []registry.Change{open("eu-fra", "us-east", "eu-fra")}}
	next := registry.NextAfter(anyEast, opened.Point(), []registry.Change{del(registry.KindPolicy, polAny), put(org(orgNew, anyEast, "any", "scale", "verified"))})
	mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, opened), entry(t, next)}, Confirmed: base.Seq})
	mustApply(t, s, &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: "any-eu-fra", Epoch: two}})
	return s
}

func TestCutGoesBackAndIsKept(t *testing.T) {
	s := deposed(t)
	if _, found := s.Get(registry.KindProject, "prj_any_0000000009"); found {
		t.Error("what was cut is still in force")
	}
	if r, _ := s.Get(registry.KindKey, keyAny); r.Key.Revoked != 3 || r.Meta.Revision == s.Copy(anyEast).Last.Seq {
		t.Errorf("the key is %+v of %+v: the revocation must stay, and nothing else", r.Key, r.Meta)
	}
	lost := slices.Collect(s.Quarantine(anyEast))
	if len(lost) != 1 || lost[0].Level != registry.LevelMultiRegion || lost[0].By != two || lost[0].Branch.Epoch != one || len(lost[0].Entry.Changes) != 3 {
		t.Fatalf("in quarantine: %+v", lost)
	}
	if len(s.Shards()) != 4 || len(s.Copies()) != 5 {
		t.Errorf("a shard that was only sealed shows, or is forgotten: %d, %d", len(s.Shards()), len(s.Copies()))
	}
	out := mustApply(t, s, &registry.Command{Type: registry.CmdResolve, Resolve: &registry.Resolve{Shard: anyEast, Verdict: registry.VerdictReplayed, Entries: []controlplane.Point{lost[0].Entry.Point(), {}}}})
	if len(out.Reports) != 1 || len(slices.Collect(s.Quarantine(anyEast))) != 0 {
		t.Error("a resolved entry stays in quarantine")
	}
}

// What two of five regions cut for a home that went under turns out to be
// history after all, entry by entry or as a whole: then it leaves the
// quarantine, and what took its place enters.
func TestCutThatTurnsOutToBeHistory(t *testing.T) {
	before := world(t)
	raise(t, before)
	confirm(t, before, anyEast)
	base := before.Copy(anyEast).Last
	members := []string{"ap-sg", "eu-fra", "us-east"}
	three := controlplane.Epoch{Counter: 3, Region: "ap-sg"}
	first := registry.NextAfter(anyEast, base, []registry.Change{put(project("prj_any_0000000009", anyEast, orgAny, "new"))})
	second := registry.NextAfter(anyEast, first.Point(), []registry.Change{revoke(keyAny, 7)})
	opened := &registry.Entry{Shard: anyEast, Epoch: three, Seq: second.Seq + 1, Prev: base.Epoch, Changes: []registry.Change{open("ap-sg", members...)}}
	lost := &registry.Entry{Shard: anyEast, Epoch: two, Seq: base.Seq + 1, Prev: base.Epoch, Changes: []registry.Change{open("eu-fra", members...)}}
	history := &registry.Command{Type: registry.CmdAccept, Sender: three, Entries: [][]byte{entry(t, first), entry(t, second), entry(t, opened)}}
	winner := before.Clone()
	mustApply(t, winner, history)
	for _, whole := range []bool{false, true} {
		s := before.Clone()
		mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: base.Epoch, Entries: [][]byte{entry(t, first), entry(t, second)}})
		mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, lost)}})
		if n := len(slices.Collect(s.Quarantine(anyEast))); n != 2 {
			t.Fatalf("%d entries in quarantine", n)
		}
		if whole {
			snap, _ := winner.ShardSnapshot(anyEast)
			stageAll(t, s, chunks(t, snap, "s3", 9))
			cmd := adopt(snap, "s3")
			cmd.Adopt.Spans = snap.Info.Spans
			mustApply(t, s, cmd)
		} else {
			mustApply(t, s, history)
		}
		q := slices.Collect(s.Quarantine(anyEast))
		if len(q) != 1 || q[0].Entry.Point() != lost.Point() || s.Digest(anyEast) != winner.Digest(anyEast) {
			t.Errorf("as a whole %v: %d entries in quarantine, or a copy that differs", whole, len(q))
		}
	}
}

// The changes of one entry build on each other; undone, they come off in turn.
func TestUndoOfChangesThatBuildOnEachOther(t *testing.T) {
	s := world(t)
	raise(t, s)
	confirm(t, s, anyEast)
	base, digest := s.Copy(anyEast).Last, s.Digest(anyEast)
	mustPropose(t, s, anyEast,
		put(project(prjAny, anyEast, orgAny, "second")), put(project(prjAny, anyEast, orgAny, "third")),
		put(project("prj_any_0000000009", anyEast, orgAny, "web")), put(key("key_any_0000000000000009", anyEast, "prj_any_0000000009", "test")))
	mustPropose(t, s, anyEast, put(policy(polAny, anyEast, orgAny, prjAny)), del(registry.KindPolicy, polAny))
	mustPropose(t, s, anyEast, put(policy(polAny, anyEast, orgAny, "")), put(org(orgNew, anyEast, "any", "scale", "suspended")))
	opened := &registry.Entry{Shard: anyEast, Epoch: two, Seq: base.Seq + 1, Prev: one, Changes: []registry.Change{open("eu-fra", "us-east", "eu-fra")}}
	mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, opened)}})
	if s.Digest(anyEast) != digest {
		t.Error("undone, the records are not what they were")
	}
	if r, _ := s.ProjectByName(orgAny, "web"); r == nil || r.Meta.ID != prjAny || len(s.PoliciesOf(orgAny, "", 0)) != 0 {
		t.Error("undone, the indexes are not what they were")
	}
}

// What another home holds confirmed beyond the entries it sent says nothing of
// what this copy has in their place.
func TestConfirmedBeyondWhatWasSent(t *testing.T) {
	s := world(t)
	raise(t, s)
	confirm(t, s, anyEast)
	base := s.Copy(anyEast).Last
	next := registry.NextAfter(anyEast, base, nil)
	own := registry.NextAfter(anyEast, next.Point(), nil)
	mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: one, Entries: [][]byte{entry(t, next), entry(t, own)}})
	for _, tt := range []struct{ told, want uint64 }{{base.Seq, base.Seq}, {own.Seq + 3, next.Seq}} {
		mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, next)}, Confirmed: tt.told})
		if c := s.Copy(anyEast); c.Confirmed != tt.want {
			t.Errorf("confirmed through %d when told of %d, not %d", c.Confirmed, tt.told, tt.want)
		}
	}
}

func TestOutcomeOfACut(t *testing.T) {
	s := world(t)
	raise(t, s)
	confirm(t, s, anyEast)
	base := s.Copy(anyEast).Last
	mustPropose(t, s, anyEast, put(project("prj_any_0000000009", anyEast, orgAny, "new")))
	opened := &registry.Entry{Shard: anyEast, Epoch: two, Seq: base.Seq + 1, Prev: one, Changes: []registry.Change{open("eu-fra", "us-east", "eu-fra")}}
	out := mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, opened)}})
	if want := []Cut{{Shard: anyEast, Branch: base, By: two, Count: 1}}; !slices.Equal(out.Cut, want) {
		t.Errorf("cut %+v, not %+v", out.Cut, want)
	}
	if want := []registry.Ref{{Shard: anyEast, Kind: registry.KindProject, ID: "prj_any_0000000009"}}; !slices.Equal(out.Touched, want) || !slices.Equal(out.Reset, []controlplane.Shard{anyEast}) || len(out.Replaced) != 0 {
		t.Errorf("touched %v, reset %v, replaced %v", out.Touched, out.Reset, out.Replaced)
	}
	if want := []Report{{Shard: anyEast, Promised: two, Last: opened.Point(), Confirmed: base.Seq}}; !slices.Equal(out.Reports, want) {
		t.Errorf("reports %+v, not %+v", out.Reports, want)
	}
	known := mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, opened)}})
	if len(known.Reports)+len(known.Effective)+len(known.Reset) != 0 {
		t.Errorf("known entries are news: %+v", known)
	}
	three := controlplane.Epoch{Counter: 3, Region: "eu-fra"}
	if out := mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: three, Entries: [][]byte{entry(t, opened)}}); len(out.Reports) != 1 || out.Reports[0].Promised != three {
		t.Errorf("a promise is no news: %+v", out)
	}
}

func TestRaising(t *testing.T) {
	s := world(t)
	unchanged(t, s, func() {
		for _, cmd := range []*registry.Command{
			{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: anyEast, Epoch: two}},
			{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: anyEast, Epoch: one, Seq: 1}},
			{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, &registry.Entry{Shard: anyEast})}, Confirmed: 1},
		} {
			var structure *StructureError
			if out := apply(t, s, cmd); !errors.As(out.Err, &structure) {
				t.Errorf("%+v at version 1: %v", cmd, out.Err)
			}
			if plain, err := cmd.At(1); (err == nil) != (cmd.Type == registry.CmdAccept) || err == nil && plain.Confirmed != 0 {
				t.Errorf("%+v as of version 1: %+v, %v", cmd, plain, err)
			}
		}
		if out := apply(t, s, &registry.Command{Type: registry.CmdVersion, Version: registry.Version + 1}); !errors.Is(out.Err, controlplane.ErrUnknownEntry) {
			t.Errorf("an unknown version: %v", out.Err)
		}
	})
	if out := raise(t, s); len(out.Reports) != 4 || s.Version() != registry.Version {
		t.Errorf("raised: %+v", out)
	}
	if out := raise(t, s); len(out.Reports) != 0 {
		t.Errorf("raised again: %+v", out)
	}
	alone, shared := s.Copy(pinUS), s.Copy(anyEast)
	if alone.Confirmed != alone.Last.Seq || alone.Role(east) != ownership.Home {
		t.Errorf("the only member: %+v is %s", alone, alone.Role(east))
	}
	if shared.Confirmed != 0 || shared.Role(east) != ownership.Opening || shared.Role(fra) != ownership.Follower {
		t.Errorf("one of two: %+v is %s", shared, shared.Role(east))
	}
	restored, err := Restore(bytes.NewReader(recordkit.Snapshot(t, s)))
	if err != nil || !bytes.Equal(recordkit.Snapshot(t, restored), recordkit.Snapshot(t, s)) {
		t.Errorf("restored: %v", err)
	}
}

func TestWritable(t *testing.T) {
	s := world(t)
	is := func(what string, self ownership.Member, want error) {
		t.Helper()
		if err := s.Writable(anyEast, self); !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", what, err, want)
		}
	}
	is("home at version 1", east, nil)
	is("follower at version 1", fra, controlplane.ErrNotHome)
	raise(t, s)
	is("opening", east, controlplane.ErrNoHome)
	confirm(t, s, anyEast)
	is("home", east, nil)
	is("follower", fra, controlplane.ErrNotHome)
	is("another life of home", ownership.Member{Region: "us-east", Since: 7}, controlplane.ErrNotHome)
	if err := s.Writable("any-ap-sg", east); err != nil {
		t.Errorf("a shard that does not exist is for the rules to refuse: %v", err)
	}
	mustApply(t, s, &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: anyEast, Epoch: two}})
	is("sealed", east, controlplane.ErrNoHome)
	is("candidate", fra, controlplane.ErrNoHome)
	if out := propose1(t, s, 9); !errors.Is(out.Err, controlplane.ErrNoHome) {
		t.Errorf("what was in flight when it was sealed: %v", out.Err)
	}
}

// propose1 proposes an entry under the epoch that was open.
func propose1(t testing.TB, s *State, at int64) Outcome {
	return apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, registry.NextAfter(anyEast, s.Copy(anyEast).Last, []registry.Change{revoke(keyAny, at)}))}})
}

// A home takes no more than it may have to undo; a follower that nobody tells
// what is confirmed lets go of its oldest.
func TestTailIsBounded(t *testing.T) {
	s := world(t)
	raise(t, s)
	confirm(t, s, anyEast)
	start := s.Copy(anyEast).Last
	// As if n entries without effect had been accepted.
	lengthen := func(n int) {
		sh := *s.orNew(anyEast)
		all := slices.Collect(sh.tail.All())
		for range n {
			e := registry.NextAfter(anyEast, sh.info.Last, nil)
			sh.info.Last = e.Point()
			all = append(all, &Held{Entry: e, bytes: 50})
			sh.tailBytes += 50
		}
		sh.tail = tree.New(compareHeld, all...)
		s.set(&sh)
	}
	grow := func(n int) {
		t.Helper()
		for range n {
			mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: one, Entries: [][]byte{entry(t, registry.NextAfter(anyEast, s.Copy(anyEast).Last, nil))}})
		}
	}
	lengthen(MaxTail - 1)
	if err := s.Writable(anyEast, east); err != nil {
		t.Errorf("one short of the bound: %v", err)
	}
	grow(1)
	if err := s.Writable(anyEast, east); !errors.Is(err, controlplane.ErrTailFull) {
		t.Errorf("at the bound: %v", err)
	}
	if entries, ok := s.Tail(anyEast, start, 10); !ok || len(entries) != 10 || entries[0].Entry.Seq != start.Seq+1 {
		t.Errorf("%d entries of the tail, %v", len(entries), ok)
	}
	lengthen(MaxTail)
	grow(5)
	if entries, ok := s.Tail(anyEast, start, 0); ok {
		t.Errorf("%d entries at twice the bound", len(entries))
	}
	unchanged(t, s, func() {
		opened := &registry.Entry{Shard: anyEast, Epoch: two, Seq: start.Seq + 1, Prev: one, Changes: []registry.Change{open("eu-fra", "us-east", "eu-fra")}}
		out := apply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, opened)}})
		var structure *StructureError
		if !errors.As(out.Err, &structure) || !structure.Snapshot {
			t.Errorf("cut further back than it can: %v", out.Err)
		}
	})
	confirm(t, s, anyEast)
	if err := s.Writable(anyEast, east); err != nil {
		t.Errorf("when all is confirmed: %v", err)
	}
	if n := s.orNew(anyEast).tailBytes; n != 0 {
		t.Errorf("an empty tail has %d bytes", n)
	}
}

// A copy that drifted is mended on request, and only then.
func TestRepair(t *testing.T) {
	s := world(t)
	raise(t, s)
	confirm(t, s, anyEast)
	drifted := s.Clone()
	sh := *drifted.orNew(anyEast)
	sh.content.Apply(registry.Change{Op: registry.OpDelete, Kind: registry.KindKey, ID: keyAny}, 0, registry.Version)
	drifted.set(&sh)
	snap, _ := s.ShardSnapshot(anyEast)
	for _, repair := range []bool{false, true} {
		stageAll(t, drifted, chunks(t, snap, "s1", 9))
		cmd := adopt(snap, "s1")
		cmd.Adopt.Spans, cmd.Adopt.Repair = snap.Info.Spans, repair
		out := mustApply(t, drifted, cmd)
		if mended := drifted.Digest(anyEast) == s.Digest(anyEast); mended != repair || len(out.Replaced) == 1 != repair {
			t.Errorf("repair %v: mended %v, %+v", repair, mended, out)
		}
		if _, staged := drifted.Staged(anyEast); staged {
			t.Error("still staged")
		}
	}
}

// Only who founds a shard, or is all of it, opens an epoch by itself.
func TestOpeningsByOneRegion(t *testing.T) {
	s := world(t)
	raise(t, s)
	confirm(t, s, anyEast)
	for _, tt := range []struct {
		shard controlplane.Shard
		fits  bool
	}{{anyEast, false}, {pinUS, true}, {"any-ap-sg", true}} {
		e, err := s.Next(tt.shard, []registry.Change{open("us-east", "us-east", "ap-sg")})
		if tt.shard == pinUS {
			e.Changes[0] = open("us-east", "us-east", "us-west")
		}
		if err != nil {
			t.Fatal(err)
		}
		clone := s.Clone()
		out := apply(t, clone, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}})
		if (out.Err == nil) != tt.fits || !tt.fits && !errors.Is(out.Err, controlplane.ErrNotHome) {
			t.Errorf("%s: %v", tt.shard, out.Err)
		}
	}
	mustApply(t, s, &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: "any-ap-sg", Epoch: two}})
	e := registry.NextAfter("any-ap-sg", controlplane.Point{}, []registry.Change{open("us-east", "us-east", "eu-fra")})
	e.Epoch.Counter = 3
	if out := apply(t, s, &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}}); !errors.Is(out.Err, controlplane.ErrNotHome) {
		t.Errorf("founded above another's seal: %v", out.Err)
	}
}

func TestTakeRefused(t *testing.T) {
	base := world(t)
	raise(t, base)
	confirm(t, base, anyEast)
	last := base.Copy(anyEast).Last
	mustApply(t, base, &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: anyEast, Epoch: two}})
	members := []ownership.Member{fra, east}
	good := func() *registry.Take {
		return &registry.Take{Shard: anyEast, Epoch: two, Base: last, Members: members, Known: last}
	}
	mustApply(t, base.Clone(), &registry.Command{Type: registry.CmdTake, Take: good()})
	next := entry(t, registry.NextAfter(anyEast, last, nil))
	for name, change := range map[string]func(*registry.Take){
		"another epoch":   func(x *registry.Take) { x.Epoch.Counter++ },
		"below the end":   func(x *registry.Take) { x.Base.Seq-- },
		"above the end":   func(x *registry.Take) { x.Base.Seq++ },
		"beyond the base": func(x *registry.Take) { x.Entries = [][]byte{next} },
		"without self":    func(x *registry.Take) { x.Members = members[1:] },
		"no members":      func(x *registry.Take) { x.Members = nil },
		"disorder":        func(x *registry.Take) { x.Members = []ownership.Member{east, fra} },
		"nothing staged": func(x *registry.Take) {
			x.Snapshot = &registry.Adopt{Shard: anyEast, Snapshot: "s9", Point: last, Home: "us-east", Members: []string{"us-east"}}
		},
		"another's stage":   func(x *registry.Take) { x.Snapshot = &registry.Adopt{Shard: pinEU, Snapshot: "s1", Point: last} },
		"shard without one": func(x *registry.Take) { x.Shard = pinUS },
	} {
		t.Run(name, func(t *testing.T) {
			s, take := base.Clone(), good()
			change(take)
			unchanged(t, s, func() {
				out := apply(t, s, &registry.Command{Type: registry.CmdTake, Take: take})
				var structure *StructureError
				if !errors.As(out.Err, &structure) && ruleError(t, out.Err) == nil {
					t.Errorf("%v", out.Err)
				}
			})
		})
	}
}

// What the first release wrote is read, and gets no byte it does not know,
// until the region goes over.
func TestFirstReleaseIsRead(t *testing.T) {
	b := frozen(t, "snapshot")
	s, err := Restore(bytes.NewReader(b))
	if err != nil || !bytes.Equal(recordkit.Snapshot(t, s), b) {
		t.Fatalf("its snapshot: %v", err)
	}
	raise(t, s)
	if bytes.HasPrefix(recordkit.Snapshot(t, s), b[:4]) {
		t.Error("a snapshot of version 2 begins like one of version 1")
	}
}
