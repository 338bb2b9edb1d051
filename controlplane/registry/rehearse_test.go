package registry

import (
	"errors"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry/tree"
)

// fragile makes s panic when a record of the name goes into the shard's index.
func fragile(t *testing.T, s *State, shard controlplane.Shard, bad string) {
	t.Helper()
	old, ok := s.shard(shard)
	if !ok {
		t.Fatal("no such shard")
	}
	sh := *old
	var names []*Record
	for r := range old.names.All() {
		names = append(names, r)
	}
	sh.names = tree.New(func(a, b *Record) int {
		for _, r := range []*Record{a, b} {
			if _, n := name(r); n == bad {
				panic("an index that breaks")
			}
		}
		return compareNames(a, b)
	}, names...)
	s.set(&sh)
}

func TestRehearse(t *testing.T) {
	home, far := world(t), world(t)
	info, _ := home.Shard(anyEast)
	good := NextAfter(anyEast, info.Last, []Change{put(project("prj_any_0000000008", anyEast, orgAny, "good"))})
	bad := NextAfter(anyEast, good.Point(), []Change{put(project("prj_any_0000000009", anyEast, orgAny, "poison"))})
	cmd := &Command{Type: CmdAccept, Sender: info.Epoch, Entries: [][]byte{entry(t, good), entry(t, bad)}}
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
	b, err := EncodeRecord(rec)
	if err != nil {
		t.Fatal(err)
	}
	stage := &Command{Type: CmdStage, Sender: info.Epoch, Stage: &Stage{Shard: anyEast, Snapshot: "s", Records: [][]byte{b}}}
	if err := far.Rehearse(stage); err != nil {
		t.Errorf("staging has an index of its own: %v", err)
	}
}
