package shards

import (
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// A key that was made and revoked in a history that lost does not come back
// live because only its making is replayed.
func TestReplayBringsRevocationsAlong(t *testing.T) {
	const shard, id = controlplane.Shard("any-us"), "key_any_0000000000000001"
	s := ledger.New()
	apply := func(changes ...registry.Change) {
		t.Helper()
		e, err := s.Next(shard, changes)
		if err != nil {
			t.Fatal(err)
		}
		b, err := registry.EncodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		if out := s.Apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{b}}); out.Err != nil {
			t.Fatal(out.Err)
		}
	}
	apply(registry.Change{Op: registry.OpOpen, Members: []string{"us"}, Home: "us"})
	key := &registry.Record{Kind: registry.KindKey, Meta: registry.Meta{ID: id, Shard: shard}, Key: &registry.Key{Project: "prj_any_0000000000000001", Class: "live"}}
	e := &registry.Entry{Shard: shard, Changes: []registry.Change{{Op: registry.OpPut, Record: key}}}
	if got := withRevocations(s, e); len(got.Changes) != 1 {
		t.Errorf("%+v", got.Changes)
	}
	apply(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: id, At: 7, Expires: 9})
	got := withRevocations(s, e)
	if len(got.Changes) != 2 || got.Changes[1].Op != registry.OpRevoke || got.Changes[1].ID != id || got.Changes[1].At != 7 || len(e.Changes) != 1 {
		t.Errorf("%+v, of %+v", got.Changes, e.Changes)
	}
}
