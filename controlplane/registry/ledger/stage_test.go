package ledger

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

// chunks splits a shard's snapshot into stages of n records, then one of revocations.
func chunks(t testing.TB, snap ShardSnapshot, name string, n int) []*registry.Stage {
	t.Helper()
	var out []*registry.Stage
	next := func() *registry.Stage {
		st := &registry.Stage{Shard: snap.Info.Shard, Snapshot: name, Chunk: uint64(len(out))}
		out = append(out, st)
		return st
	}
	for part := range slices.Chunk(slices.Collect(snap.Records), n) {
		st := next()
		for _, r := range part {
			b, err := registry.EncodeRecord(r)
			if err != nil {
				t.Fatal(err)
			}
			st.Records = append(st.Records, b)
		}
	}
	next().Revocations = slices.Collect(snap.Revocations)
	return out
}

func adopt(snap ShardSnapshot, name string) *registry.Command {
	sum := snap.Digest()
	return &registry.Command{Type: registry.CmdAdopt, Sender: snap.Info.Epoch, Adopt: &registry.Adopt{
		Shard: snap.Info.Shard, Snapshot: name, Members: snap.Info.Members, Home: snap.Info.Home, Point: snap.Info.Last, Digest: sum[:],
	}}
}

func stageAll(t testing.TB, s *State, stages []*registry.Stage) {
	t.Helper()
	for _, st := range stages {
		if out := apply(t, s, &registry.Command{Type: registry.CmdStage, Stage: st}); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
}

func TestAdopt(t *testing.T) {
	home := world(t)
	follower := home.Clone()
	const lost = "key_any_0000000000000055" // revoked at the follower only
	mustPropose(t, follower, anyEast, put(key(lost, anyEast, prjAny, "live")))
	mustPropose(t, follower, anyEast, revoke(lost, 50), revoke(keyAny, 60))
	for range 4 {
		mustPropose(t, home, anyEast, put(key(lost, anyEast, prjAny, "live")))
	}
	mustPropose(t, home, anyEast, put(key("key_any_0000000000000056", anyEast, prjAny, "test")))
	mustPropose(t, home, anyEast, revoke("key_any_0000000000000056", 70))
	snap, _ := home.ShardSnapshot(anyEast)
	stageAll(t, follower, chunks(t, snap, "s1", 2))
	if info, staged := follower.Staged(anyEast); !staged || info.Snapshot != "s1" || info.Chunks != 5 {
		t.Errorf("staged %+v, %v", info, staged)
	}
	others := follower.Digest(pinEU)
	out := apply(t, follower, adopt(snap, "s1"))
	if out.Err != nil || !slices.Equal(out.Reset, []controlplane.Shard{anyEast}) || out.Points[anyEast] != snap.Info.Last {
		t.Fatalf("outcome %+v", out)
	}
	if _, staged := follower.Staged(anyEast); staged {
		t.Error("still staged")
	}
	info, _ := follower.Shard(anyEast)
	if info.Last != snap.Info.Last || info.Epoch != snap.Info.Epoch || info.Home != "us-east" {
		t.Errorf("info %+v", info)
	}
	for id, at := range map[string]int64{lost: 50, keyAny: 60, "key_any_0000000000000056": 70} {
		r, _ := follower.Get(registry.KindKey, id)
		v, _ := follower.Revoked(registry.KindKey, id)
		if r == nil || r.Key.Revoked != at || v.At != at {
			t.Errorf("%s: record and set are not revoked at %d", id, at)
		}
	}
	if follower.Digest(pinEU) != others {
		t.Error("another shard changed")
	}
	if got := follower.KeysOf(prjAny, "", 0); len(got) != 3 {
		t.Errorf("%d keys by project", len(got))
	}
	again := apply(t, follower, adopt(snap, "s1"))
	if again.Err != nil || len(again.Reset) != 0 {
		t.Errorf("adopted again: %+v", again)
	}
	e, err := home.Next(anyEast, []registry.Change{put(project("prj_any_0000000009", anyEast, orgAny, "new"))})
	if err != nil {
		t.Fatal(err)
	}
	old := &registry.Entry{Shard: anyEast, Epoch: e.Epoch, Prev: e.Epoch, Seq: 2}
	if out := accept(t, follower, e.Epoch, old, e); out.Err != nil {
		t.Errorf("the feed does not continue after a snapshot: %v", out.Err)
	}
}

func TestAdoptRefused(t *testing.T) {
	home := world(t)
	behind := home.Clone()
	mustPropose(t, home, anyEast, revoke(keyAny, 5))
	snap, _ := home.ShardSnapshot(anyEast)
	oldSnap, _ := behind.ShardSnapshot(anyEast)
	tests := []struct {
		name    string
		state   *State
		snap    ShardSnapshot
		change  func(c *registry.Command)
		notHome bool
		dropped bool
	}{
		{"wrong digest", behind, snap, func(c *registry.Command) { c.Adopt.Digest[0]++ }, false, true},
		{"no digest", behind, snap, func(c *registry.Command) { c.Adopt.Digest = nil }, false, true},
		{"older", home, oldSnap, func(*registry.Command) {}, false, true},
		{"not staged", behind, snap, func(c *registry.Command) { c.Adopt.Snapshot = "s2" }, false, false},
		{"deposed sender", behind, snap, func(c *registry.Command) { c.Sender.Counter = 0 }, true, false},
		{"without its opening", behind, snap, func(c *registry.Command) { c.Sender.Counter++ }, false, false},
		{"home elsewhere", behind, snap, func(c *registry.Command) { c.Adopt.Home = "eu-fra" }, false, false},
		{"home no member", behind, snap, func(c *registry.Command) { c.Adopt.Members = []string{"eu-fra"} }, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := tt.state.Clone()
			stageAll(t, s, chunks(t, tt.snap, "s1", 3))
			before, staged := s.Position(), recordkit.Snapshot(t, s)
			cmd := adopt(tt.snap, "s1")
			tt.change(cmd)
			out := apply(t, s, cmd)
			var structure *StructureError
			if !errors.As(out.Err, &structure) || errors.Is(out.Err, controlplane.ErrNotHome) != tt.notHome {
				t.Errorf("%v", out.Err)
			}
			if _, still := s.Staged(anyEast); still == tt.dropped || !before.Covers(s.Position()) || len(out.Staged) == 1 != tt.dropped {
				t.Errorf("staged still %v, outcome %+v", still, out)
			}
			if !tt.dropped && !bytes.Equal(staged, recordkit.Snapshot(t, s)) {
				t.Error("the state changed")
			}
		})
	}
}

func TestStaging(t *testing.T) {
	snap, _ := world(t).ShardSnapshot(pinEU)
	parts := chunks(t, snap, "s1", 1)
	stage := func(s *State, st *registry.Stage) error {
		return apply(t, s, &registry.Command{Type: registry.CmdStage, Stage: st}).Err
	}
	s := New()
	if err := stage(s, parts[1]); err == nil {
		t.Error("the second chunk came first")
	}
	if err := errors.Join(stage(s, parts[0]), stage(s, parts[1]), stage(s, parts[0]), stage(s, parts[1])); err != nil {
		t.Error(err)
	}
	if err := stage(s, parts[3]); err == nil {
		t.Error("a chunk was left out")
	}
	if info, _ := s.Staged(pinEU); info.Chunks != 2 {
		t.Errorf("staged %+v", info)
	}
	if len(s.Shards()) != 0 || len(s.Position()) != 0 {
		t.Error("a staged shard shows")
	}
	other := *parts[0]
	other.Snapshot = "s2"
	if err := stage(s, &other); err != nil {
		t.Error(err)
	}
	if info, _ := s.Staged(pinEU); info != (StageInfo{Snapshot: "s2", Chunks: 1}) {
		t.Errorf("a new attempt did not replace the former: %+v", info)
	}
	if err := stage(s, parts[2]); err == nil {
		t.Error("the former attempt goes on")
	}
	restored, err := Restore(bytes.NewReader(recordkit.Snapshot(t, s)))
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range chunks(t, snap, "s2", 1)[1:] {
		if err := errors.Join(stage(s, st), stage(restored, st)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(recordkit.Snapshot(t, s), recordkit.Snapshot(t, restored)) {
		t.Error("a restored replica stages otherwise")
	}
	if out := apply(t, restored, adopt(snap, "s2")); out.Err != nil || restored.Digest(pinEU) != snap.Digest() {
		t.Errorf("adopting after a restore: %v", out.Err)
	}
}

func TestStageRefuses(t *testing.T) {
	snap, _ := world(t).ShardSnapshot(pinEU)
	part := func() *registry.Stage { return chunks(t, snap, "s1", 9)[0] }
	encoded := func(r *registry.Record) []byte {
		b, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	v := registry.Revocation{Kind: registry.KindKey, ID: keyEU, Shard: pinEU, At: 5}
	tests := map[string]func(st *registry.Stage){
		"no shard":          func(st *registry.Stage) { st.Shard = "x-y" },
		"no name":           func(st *registry.Stage) { st.Snapshot = "" },
		"descending":        func(st *registry.Stage) { slices.Reverse(st.Records) },
		"twice":             func(st *registry.Stage) { st.Records = append(st.Records, st.Records[len(st.Records)-1]) },
		"of another shard":  func(st *registry.Stage) { st.Records = [][]byte{encoded(project(prjAny, anyEast, orgAny, "x"))} },
		"garbage":           func(st *registry.Stage) { st.Records[0] = []byte{0xa0} },
		"other encoding":    func(st *registry.Stage) { st.Records[0] = loose(st.Records[0]) },
		"revocation twice":  func(st *registry.Stage) { st.Revocations = []registry.Revocation{v, v} },
		"revocation astray": func(st *registry.Stage) { w := v; w.Shard = anyEast; st.Revocations = []registry.Revocation{w} },
		"revocation of org": func(st *registry.Stage) {
			w := v
			w.Kind, w.ID = registry.KindOrg, orgEU
			st.Revocations = []registry.Revocation{w}
		},
		"revocation undated": func(st *registry.Stage) { w := v; w.At = 0; st.Revocations = []registry.Revocation{w} },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			s := world(t)
			st := part()
			change(st)
			unchanged(t, s, func() {
				if out := apply(t, s, &registry.Command{Type: registry.CmdStage, Stage: st}); out.Err == nil {
					t.Error("accepted")
				}
			})
		})
	}
}

// loose re-encodes the first map key (kind) with a longer integer than needed.
func loose(record []byte) []byte {
	// a2.. 01 <kind>: key 1, then a small integer
	return append([]byte{record[0], record[1], 0x18, record[2]}, record[3:]...)
}
