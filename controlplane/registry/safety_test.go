package registry

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"ringmain/controlplane"
)

const (
	global  = controlplane.ShardGlobal
	nodeFra = "nod_eu-fra/data/eu-fra-d1"
	pinAny  = "pin_" + orgAny + "_eu"
)

var (
	credential = CredentialID([]byte("sk-1"))
	token      = TokenID([32]byte{7})
)

func revokes(kind Kind, id string, at, expires int64) Change {
	return Change{Op: OpRevoke, Kind: kind, ID: id, At: at, Expires: expires}
}

const ended = int64(9) // when the keys that are forgotten end

func forget(kind Kind, id string) Change {
	v := Revocation{Kind: kind, ID: id, At: 1}
	return v.Forget(ended + forgetAfter.Milliseconds())
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

func TestSafetyIDs(t *testing.T) {
	for id, want := range map[string]struct {
		kind  Kind
		shard controlplane.Shard
	}{
		credential: {KindCredential, global}, token: {KindToken, global},
		nodeFra: {KindNode, global}, "nod_us-east/control/a": {KindNode, global},
		pinAny: {KindPin, anyEast}, PinID(orgEU, "us"): {KindPin, pinEU},
	} {
		c := revokes(want.kind, id, 1, 0)
		if err := c.wellFormed(want.shard, 0); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		for _, other := range []controlplane.Shard{global, anyEast, pinEU, pinUS} {
			if err := c.wellFormed(other, 0); (err == nil) != (other == want.shard) {
				t.Errorf("%s in %s: %v", id, other, err)
			}
		}
		if err := (&Change{Op: OpDelete, Kind: want.kind, ID: id}).wellFormed(want.shard, 0); err == nil {
			t.Errorf("%s can be deleted", id)
		}
	}
	for id, kind := range map[string]Kind{
		"crd_" + strings.Repeat("0", 31): KindCredential, "crd_" + strings.Repeat("G", 32): KindCredential, credential: KindToken,
		token + "0": KindToken, "nod_eu-fra/data": KindNode, "nod_eu-fra/owner/a": KindNode, "nod_EU/data/a": KindNode, "nod_eu/data/-": KindNode,
		"pin_" + orgAny: KindPin, "pin_" + orgAny + "_any": KindPin, "pin_key_any_1_eu": KindPin, "pin_": KindPin,
	} {
		if _, ok := parseID(kind, id); ok {
			t.Errorf("%q is the id of a %s", id, kind)
		}
	}
	if region, role, node, ok := ParseNodeID(nodeFra); !ok || NodeID(region, role, node) != nodeFra {
		t.Error("a node's id is not what it was made of")
	}
	if org, jurisdiction, ok := ParsePinID(pinAny); !ok || PinID(org, jurisdiction) != pinAny {
		t.Error("a pin's id is not what it was made of")
	}
}

// What needs version 3 is held back from a region that is not there yet, and
// says why.
func TestSafetyNeedsItsVersion(t *testing.T) {
	s := world(t)
	raiseTo(t, s, VersionOwnership)
	confirm(t, s, global)
	e, err := s.Next(global, []Change{revokes(KindNode, nodeFra, 5, 0)})
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []*Command{
		{Type: CmdEntry, Entries: [][]byte{entry(t, e)}},
		{Type: CmdStage, Stage: &Stage{Shard: global, Snapshot: "s", Revocations: []Revocation{{Kind: KindNode, ID: nodeFra, Shard: global, At: 5}}}},
		{Type: CmdTake, Take: &Take{Shard: global, Epoch: two, Entries: [][]byte{entry(t, e)}}},
	} {
		if _, err := cmd.At(VersionOwnership); err == nil || !strings.Contains(err.Error(), "cluster version 3") {
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
	mustPropose(t, s, global, revokes(KindNode, nodeFra, 5, 0))
	if v, ok := s.Revoked(KindNode, nodeFra); !ok || v.At != 5 {
		t.Errorf("%+v %v", v, ok)
	}
}

// A key whose record is in a quarantine, or not here yet, can be revoked.
func TestRevokeWhatIsNotHere(t *testing.T) {
	const absent = "key_any_0000000000000077"
	s := world(t)
	raiseTo(t, s, VersionOwnership)
	confirm(t, s, anyEast)
	change := revokes(KindKey, absent, 5, 0)
	if err := ruleError(t, s.Check(anyEast, []Change{change})); err == nil || err.Code != controlplane.RuleNotFound {
		t.Errorf("at version 2, whose nodes may be older: %v", err)
	}
	raise(t, s)
	mustPropose(t, s, anyEast, change)
	mustPropose(t, s, anyEast, put(key(absent, anyEast, prjAny, "live")))
	if r, _ := s.Get(KindKey, absent); r == nil || r.Key.Revoked != 5 {
		t.Errorf("the key came and is %+v", r)
	}
	change.IfRevision = 3
	if err := ruleError(t, s.Check(anyEast, []Change{change})); err == nil {
		t.Error("a revocation under a condition")
	}
}

// Nothing is forgotten that a record brings back, and a cut undoes forgetting.
func TestForget(t *testing.T) {
	ptr := func(c Change) *Change { return &c }
	s := safe(t)
	mustPropose(t, s, anyEast, revokes(KindKey, keyAny, 5, 9))
	mustPropose(t, s, global, revokes(KindNode, nodeFra, 5, 0))
	early := forget(KindKey, keyAny)
	early.Now--
	for c, shard := range map[*Change]controlplane.Shard{
		ptr(forget(KindKey, keyAny)): anyEast, ptr(forget(KindNode, nodeFra)): global, ptr(forget(KindKey, keyEU)): pinEU,
	} {
		if err := ruleError(t, s.Check(shard, []Change{*c})); err == nil {
			t.Errorf("%s would be forgotten", c.ID)
		}
	}
	mustPropose(t, s, anyEast, del(KindKey, keyAny))
	confirm(t, s, anyEast)
	if err := s.Check(anyEast, []Change{early}); err == nil {
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
	mustPropose(t, s, anyEast, forget(KindKey, keyAny))
	if _, ok := s.Revoked(KindKey, keyAny); ok {
		t.Fatal("nothing was forgotten")
	}
	restored, err := Restore(bytes.NewReader(snapshot(t, s)))
	if err != nil || !bytes.Equal(snapshot(t, restored), snapshot(t, s)) {
		t.Fatalf("restored: %v", err)
	}
	mustApply(t, s, &Command{Type: CmdAccept, Sender: two, Entries: [][]byte{entry(t, &Entry{Shard: anyEast, Epoch: two, Seq: base.Seq + 1, Prev: base.Epoch,
		Changes: []Change{open("eu-fra", "eu-fra", "us-east")}})}})
	was, _ := before.Revoked(KindKey, keyAny)
	if now, ok := s.Revoked(KindKey, keyAny); !ok || now != was {
		t.Errorf("the cut left %+v of %+v", now, was)
	}
}

// A home that breaks the rules does not bring a record back into force.
func TestForgetWithRecord(t *testing.T) {
	s := safe(t)
	mustPropose(t, s, anyEast, revokes(KindKey, keyAny, 5, 9))
	e, err := s.Next(anyEast, []Change{forget(KindKey, keyAny)})
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, &Command{Type: CmdAccept, Sender: e.Epoch, Entries: [][]byte{entry(t, e)}})
	if _, ok := s.Revoked(KindKey, keyAny); !ok {
		t.Error("a key that has a record was forgotten")
	}
}

func TestGoldenVersion3(t *testing.T) {
	s := safe(t)
	changes := []Change{revokes(KindCredential, credential, 5, 0), revokes(KindNode, nodeFra, 6, 0), revokes(KindToken, token, 7, 9)}
	e, err := s.Next(global, changes)
	if err != nil {
		t.Fatal(err)
	}
	mustPropose(t, s, global, changes...)
	mustPropose(t, s, anyEast, revokes(KindPin, pinAny, 5, 0), revokes(KindKey, keyAny, 5, ended), del(KindKey, keyAny))
	mustPropose(t, s, anyEast, forget(KindKey, keyAny))
	var all []byte
	for _, c := range []*Command{
		{Type: CmdEntry, Entries: [][]byte{entry(t, e)}, Levels: []Level{LevelRegion}},
		{Type: CmdStage, Stage: &Stage{Shard: anyEast, Snapshot: "s", Revocations: s.Revocations(anyEast)}},
	} {
		b, err := EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if b[0] != commandVersionSafety {
			t.Errorf("command %d has version byte %d", c.Type, b[0])
		}
		all = append(all, b...)
	}
	golden(t, "commands-3", all)
	golden(t, "snapshot-3", snapshot(t, s))
}
