package ledger

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
	"ringmain/internal/testkit/recordkit"
)

const (
	global  = controlplane.ShardGlobal
	nodeFra = "nod_eu-fra/data/eu-fra-d1"
	pinAny  = "pin_" + orgAny + "_eu"
)

var (
	credential = registry.CredentialID([]byte("sk-1"))
	token      = registry.TokenID([32]byte{7})
)

func revokes(kind registry.Kind, id string, at, expires int64) registry.Change {
	return registry.Change{Op: registry.OpRevoke, Kind: kind, ID: id, At: at, Expires: expires}
}

const ended = int64(9) // when the keys that are forgotten end

func forget(kind registry.Kind, id string) registry.Change {
	v := registry.Revocation{Kind: kind, ID: id, At: 1}
	return v.Forget(ended + content.ForgetAfter.Milliseconds())
}

// safe is a world of version 3 whose shards are written.
func safe(t testing.TB) *State {
	s := world(t)
	raise(t, s)
	for _, shard := range []controlplane.Shard{global, anyEast} {
		confirm(t, s, shard)
	}
	return s
}

// What needs version 3 is held back from a region that is not there yet, and
// says why.
func TestSafetyNeedsItsVersion(t *testing.T) {
	s := world(t)
	raiseTo(t, s, registry.VersionOwnership)
	confirm(t, s, global)
	e, err := s.Next(global, []registry.Change{revokes(registry.KindNode, nodeFra, 5, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*registry.Command{
		{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}},
		{Type: registry.CmdStage, Stage: &registry.Stage{Shard: global, Snapshot: "s", Revocations: []registry.Revocation{{Kind: registry.KindNode, ID: nodeFra, Shard: global, At: 5}}}},
		{Type: registry.CmdTake, Take: &registry.Take{Shard: global, Epoch: two, Entries: [][]byte{entry(t, e)}}},
	} {
		if _, err := cmd.At(registry.VersionOwnership); err == nil || !strings.Contains(err.Error(), "cluster version 3") {
			t.Errorf("%d at version 2: %v", cmd.Type, err)
		}
		unchanged(t, s, func() {
			var structure *StructureError
			if out := apply(t, s, cmd); !errors.As(out.Err, &structure) {
				t.Errorf("%d applied at version 2: %v", cmd.Type, out.Err)
			}
		})
	}
	raise(t, s)
	mustPropose(t, s, global, revokes(registry.KindNode, nodeFra, 5, 0))
	if v, ok := s.Revoked(registry.KindNode, nodeFra); !ok || v.At != 5 {
		t.Errorf("%+v %v", v, ok)
	}
}

// A key whose record is in a quarantine, or not here yet, can be revoked.
func TestRevokeWhatIsNotHere(t *testing.T) {
	const absent = "key_any_0000000000000077"
	s := world(t)
	raiseTo(t, s, registry.VersionOwnership)
	confirm(t, s, anyEast)
	change := revokes(registry.KindKey, absent, 5, 0)
	if err := ruleError(t, s.Check(anyEast, []registry.Change{change})); err == nil || err.Code != controlplane.RuleNotFound {
		t.Errorf("at version 2, whose nodes may be older: %v", err)
	}
	raise(t, s)
	mustPropose(t, s, anyEast, change)
	mustPropose(t, s, anyEast, put(key(absent, anyEast, prjAny, "live")))
	if r, _ := s.Get(registry.KindKey, absent); r == nil || r.Key.Revoked != 5 {
		t.Errorf("the key came and is %+v", r)
	}
	change.IfRevision = 3
	if err := ruleError(t, s.Check(anyEast, []registry.Change{change})); err == nil {
		t.Error("a revocation under a condition")
	}
}

// Nothing is forgotten that a record brings back, and a cut undoes forgetting.
func TestForget(t *testing.T) {
	ptr := func(c registry.Change) *registry.Change { return &c }
	s := safe(t)
	mustPropose(t, s, anyEast, revokes(registry.KindKey, keyAny, 5, 9))
	mustPropose(t, s, global, revokes(registry.KindNode, nodeFra, 5, 0))
	early := forget(registry.KindKey, keyAny)
	early.Now--
	for c, shard := range map[*registry.Change]controlplane.Shard{
		ptr(forget(registry.KindKey, keyAny)): anyEast, ptr(forget(registry.KindNode, nodeFra)): global, ptr(forget(registry.KindKey, keyEU)): pinEU,
	} {
		if err := ruleError(t, s.Check(shard, []registry.Change{*c})); err == nil {
			t.Errorf("%s would be forgotten", c.ID)
		}
	}
	mustPropose(t, s, anyEast, del(registry.KindKey, keyAny))
	confirm(t, s, anyEast)
	if err := s.Check(anyEast, []registry.Change{early}); err == nil {
		t.Error("forgotten before it ended long ago")
	}
	if spent := s.Spent(anyEast, early.Now, 9); len(spent) != 0 {
		t.Errorf("spent early: %+v", spent)
	}
	if spent := s.Spent(anyEast, early.Now+1, 9); len(spent) != 1 || spent[0].ID != keyAny {
		t.Errorf("spent: %+v", spent)
	}
	before := s.Clone()
	base := s.Copy(anyEast).Last
	mustPropose(t, s, anyEast, forget(registry.KindKey, keyAny))
	if _, ok := s.Revoked(registry.KindKey, keyAny); ok {
		t.Fatal("nothing was forgotten")
	}
	restored, err := Restore(bytes.NewReader(recordkit.Snapshot(t, s)))
	if err != nil || !bytes.Equal(recordkit.Snapshot(t, restored), recordkit.Snapshot(t, s)) {
		t.Fatalf("restored: %v", err)
	}
	mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{entry(t, &registry.Entry{Shard: anyEast, Epoch: two, Seq: base.Seq + 1, Prev: base.Epoch,
		Changes: []registry.Change{open("eu-fra", "eu-fra", "us-east")}})}})
	was, _ := before.Revoked(registry.KindKey, keyAny)
	if now, ok := s.Revoked(registry.KindKey, keyAny); !ok || now != was {
		t.Errorf("the cut left %+v of %+v", now, was)
	}
}

// A home that breaks the rules does not bring a record back into force.
func TestForgetWithRecord(t *testing.T) {
	s := safe(t)
	mustPropose(t, s, anyEast, revokes(registry.KindKey, keyAny, 5, 9))
	e, err := s.Next(anyEast, []registry.Change{forget(registry.KindKey, keyAny)})
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, &registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{entry(t, e)}})
	if _, ok := s.Revoked(registry.KindKey, keyAny); !ok {
		t.Error("a key that has a record was forgotten")
	}
}

func TestGoldenVersion3(t *testing.T) {
	s := safe(t)
	changes := []registry.Change{revokes(registry.KindCredential, credential, 5, 0), revokes(registry.KindNode, nodeFra, 6, 0), revokes(registry.KindToken, token, 7, 9)}
	e, err := s.Next(global, changes)
	if err != nil {
		t.Fatal(err)
	}
	mustPropose(t, s, global, changes...)
	mustPropose(t, s, anyEast, revokes(registry.KindPin, pinAny, 5, 0), revokes(registry.KindKey, keyAny, 5, ended), del(registry.KindKey, keyAny))
	mustPropose(t, s, anyEast, forget(registry.KindKey, keyAny))
	var all []byte
	for _, c := range []*registry.Command{
		{Type: registry.CmdEntry, Entries: [][]byte{entry(t, e)}, Levels: []registry.Level{registry.LevelRegion}},
		{Type: registry.CmdStage, Stage: &registry.Stage{Shard: anyEast, Snapshot: "s", Revocations: s.Revocations(anyEast)}},
	} {
		b, err := registry.EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if b[0] != 3 {
			t.Errorf("command %d has version byte %d", c.Type, b[0])
		}
		all = append(all, b...)
	}
	golden(t, "commands-3", all)
	golden(t, "snapshot-3", recordkit.Snapshot(t, s))
}
