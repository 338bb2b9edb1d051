package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"pgregory.net/rapid"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// follower is a region that is told by others what the home did.
type follower struct {
	state   *State
	history map[controlplane.Shard][]*registry.Entry
	digests map[moment][32]byte
}

// moment is a shard at one point of its history.
type moment struct {
	shard controlplane.Shard
	point controlplane.Point
}

// hear gives the follower some run of the shard's history: old news, the next
// entries, or what lies beyond a gap.
func (f *follower) hear(t *rapid.T, shard controlplane.Shard, home *State) {
	all := f.history[shard]
	before, _ := f.state.Shard(shard)
	from := max(0, int(before.Last.Seq)+rapid.IntRange(-4, 1).Draw(t, "from"))
	if from >= len(all) {
		return
	}
	run := all[from:min(len(all), from+rapid.IntRange(1, 6).Draw(t, "run"))]
	info, _ := home.Shard(shard)
	cmd := &registry.Command{Type: registry.CmdAccept, Sender: info.Epoch}
	deposed := rapid.IntRange(0, 9).Draw(t, "deposed") == 0 && before.Epoch.Counter > 0
	if deposed {
		cmd.Sender.Counter = before.Epoch.Counter - 1
	}
	for _, e := range run {
		cmd.Entries = append(cmd.Entries, entryBytes(t, e))
	}
	out := f.state.Apply(cmd)
	gap := from > int(before.Last.Seq)
	if (out.Err != nil) != (gap || deposed) || deposed != errors.Is(out.Err, controlplane.ErrNotHome) {
		t.Fatalf("%d entries from %d at %d (sender %s): %v", len(run), from, before.Last.Seq, cmd.Sender, out.Err)
	}
	after, _ := f.state.Shard(shard)
	if want := max(before.Last.Seq, run[len(run)-1].Seq); out.Err == nil && after.Last.Seq != want || out.Err != nil && !reflect.DeepEqual(before, after) {
		t.Fatalf("at %d after %d, %d expected (%v)", after.Last.Seq, before.Last.Seq, want, out.Err)
	}
	f.agree(t, shard)
}

// adopt gives the follower a whole snapshot in chunks, through replicas that
// are restored in between.
func (f *follower) adopt(t *rapid.T, shard controlplane.Shard, home *State) {
	snap, _ := home.ShardSnapshot(shard)
	sum := snap.Digest()
	before := f.state.Position()[shard]
	chunk := uint64(0)
	stage := func(records [][]byte, revocations ...registry.Revocation) {
		st := &registry.Stage{Shard: shard, Snapshot: "s" + fmt.Sprint(snap.Info.Last.Seq), Chunk: chunk, Records: records, Revocations: revocations}
		for range rapid.IntRange(1, 2).Draw(t, "times") {
			if out := f.state.Apply(&registry.Command{Type: registry.CmdStage, Stage: st}); out.Err != nil {
				t.Fatal(out.Err)
			}
		}
		chunk++
	}
	stage(nil)
	for r := range snap.Records {
		b, err := registry.EncodeRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		stage([][]byte{b})
	}
	restored, err := Restore(bytes.NewReader(snapshotBytes(t, f.state)))
	if err != nil {
		t.Fatal(err)
	}
	f.state = restored
	stage(nil, slices.Collect(snap.Revocations)...)
	out := f.state.Apply(&registry.Command{Type: registry.CmdAdopt, Sender: snap.Info.Epoch, Adopt: &registry.Adopt{
		Shard: shard, Snapshot: "s" + fmt.Sprint(snap.Info.Last.Seq), Members: snap.Info.Members, Home: snap.Info.Home,
		Point: snap.Info.Last, Digest: sum[:],
	}})
	if out.Err != nil {
		t.Fatal(out.Err)
	}
	if reset := len(out.Reset) == 1; reset != (before != snap.Info.Last) {
		t.Fatalf("reset %v from %v to %v", reset, before, snap.Info.Last)
	}
	f.agree(t, shard)
}

// agree checks that the follower's copy of the shard is what the home's was at
// the same point.
func (f *follower) agree(t *rapid.T, shard controlplane.Shard) {
	info, known := f.state.Shard(shard)
	if known && f.state.Digest(shard) != f.digests[moment{shard, info.Last}] {
		t.Fatalf("at %v the follower holds something else than the home did", info.Last)
	}
}

func (f *follower) finish(t *rapid.T, home *State) {
	for shard, entries := range f.history {
		info, _ := home.Shard(shard)
		for _, e := range entries {
			out := f.state.Apply(&registry.Command{Type: registry.CmdAccept, Sender: info.Epoch, Entries: [][]byte{entryBytes(t, e)}})
			if out.Err != nil {
				t.Fatal(out.Err)
			}
		}
		if f.state.Digest(shard) != home.Digest(shard) {
			t.Fatalf("follower and home disagree about %s", shard)
		}
	}
	if !reflect.DeepEqual(f.state.Position(), home.Position()) {
		t.Fatalf("follower at %v, home at %v", f.state.Position(), home.Position())
	}
}
