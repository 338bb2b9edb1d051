package ledger

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/tree"
)

// fragile makes s panic when an entry with a record of the name goes into the
// shard's tail.
func fragile(t *testing.T, s *State, shard controlplane.Shard, bad string) {
	t.Helper()
	old, ok := s.shard(shard)
	if !ok {
		t.Fatal("no such shard")
	}
	sh := *old
	sh.tail = tree.New(func(a, b *Held) int {
		for _, h := range []*Held{a, b} {
			for _, c := range h.Entry.Changes {
				if c.Record != nil && c.Record.Project != nil && c.Record.Project.Name == bad {
					panic("an index that breaks")
				}
			}
		}
		return compareHeld(a, b)
	}, slices.Collect(old.tail.All())...)
	s.set(&sh)
}

func TestRehearse(t *testing.T) {
	home, far := world(t), world(t)
	raise(t, home)
	raise(t, far)
	info, _ := home.Shard(anyEast)
	good := registry.NextAfter(anyEast, info.Last, []registry.Change{put(project("prj_any_0000000008", anyEast, orgAny, "good"))})
	bad := registry.NextAfter(anyEast, good.Point(), []registry.Change{put(project("prj_any_0000000009", anyEast, orgAny, "poison"))})
	cmd := &registry.Command{Type: registry.CmdAccept, Sender: info.Epoch, Entries: [][]byte{entry(t, good), entry(t, bad)}}
	if err := far.Rehearse(cmd); err != nil {
		t.Fatalf("a sound command: %v", err)
	}
	fragile(t, far, anyEast, "poison")
	unchanged(t, far, func() {
		err := far.Rehearse(cmd)
		var misfit *StructureError
		if !errors.Is(err, ErrPoison) || !errors.As(err, &misfit) || misfit.Last != good.Point() || !strings.Contains(misfit.Reason, "entry "+bad.Epoch.String()) {
			t.Errorf("a command that panics: %+v", err)
		}
	})
	cmd.Entries = cmd.Entries[:1]
	if err := far.Rehearse(cmd); err != nil {
		t.Errorf("what comes before it: %v", err)
	}
	rec := project("prj_any_0000000009", anyEast, orgAny, "poison")
	rec.Meta.Revision = 1
	b, err := registry.EncodeRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	stage := &registry.Command{Type: registry.CmdStage, Sender: info.Epoch, Stage: &registry.Stage{Shard: anyEast, Snapshot: "s", Records: [][]byte{b}}}
	if err := far.Rehearse(stage); err != nil {
		t.Errorf("staging has an index of its own: %v", err)
	}
}
