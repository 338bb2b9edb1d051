package registry_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/recordkit"
)

func TestNewID(t *testing.T) {
	at := time.Unix(1_800_000_000, 0)
	random := bytes.NewReader(bytes.Repeat([]byte{255, 0, 61, 247, 62, 10, 250, 35, 36, 1, 2, 3, 4, 5, 6, 7}, 2))
	if got, want := registry.NewID("key", "eu", at, random), "key_eu_1xocE40zz0AZa123"; got != want {
		t.Errorf("%s, not %s", got, want)
	}
	earlier := registry.NewID("org", "any", at.Add(-time.Second), zeros{})
	if later := registry.NewID("org", "any", at, zeros{}); later <= earlier {
		t.Errorf("%s does not follow %s", later, earlier)
	}
	if got := registry.NewID("ups", "", time.Unix(-5, 0), zeros{}); got != "ups_0000000000000000" {
		t.Errorf("%s", got)
	}
	for kind := registry.KindOrg; kind < registry.KindRegion; kind++ {
		jurisdiction := "eu"
		if kind.Global() {
			jurisdiction = ""
		}
		if got, ok := registry.ParseID(kind, registry.NewID(kind.Prefix(), jurisdiction, at, zeros{})); !ok || got != jurisdiction {
			t.Errorf("%s: a new id is malformed", kind)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a failing random source made an id")
		}
	}()
	registry.NewID("org", "any", at, iotest.ErrReader(io.ErrUnexpectedEOF))
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

const (
	nodeFra = "nod_eu-fra/data/eu-fra-d1"
	pinAny  = "pin_" + recordkit.OrgAny + "_eu"
)

var (
	credential = registry.CredentialID([]byte("sk-1"))
	token      = registry.TokenID([32]byte{7})
)

func TestSafetyIDs(t *testing.T) {
	for id, want := range map[string]struct {
		kind  registry.Kind
		shard controlplane.Shard
	}{
		credential: {registry.KindCredential, controlplane.ShardGlobal}, token: {registry.KindToken, controlplane.ShardGlobal},
		nodeFra: {registry.KindNode, controlplane.ShardGlobal}, "nod_us-east/control/a": {registry.KindNode, controlplane.ShardGlobal},
		pinAny: {registry.KindPin, recordkit.AnyEast}, registry.PinID(recordkit.OrgEU, "us"): {registry.KindPin, recordkit.PinEU},
	} {
		c := registry.Change{Op: registry.OpRevoke, Kind: want.kind, ID: id, At: 1}
		if err := c.WellFormed(want.shard, 0); err != nil {
			t.Errorf("%s: %v", id, err)
		}
		for _, other := range []controlplane.Shard{controlplane.ShardGlobal, recordkit.AnyEast, recordkit.PinEU, recordkit.PinUS} {
			if err := c.WellFormed(other, 0); (err == nil) != (other == want.shard) {
				t.Errorf("%s in %s: %v", id, other, err)
			}
		}
		if err := (&registry.Change{Op: registry.OpDelete, Kind: want.kind, ID: id}).WellFormed(want.shard, 0); err == nil {
			t.Errorf("%s can be deleted", id)
		}
	}
	for id, kind := range map[string]registry.Kind{
		"crd_" + strings.Repeat("0", 31): registry.KindCredential, "crd_" + strings.Repeat("G", 32): registry.KindCredential, credential: registry.KindToken,
		token + "0": registry.KindToken, "nod_eu-fra/data": registry.KindNode, "nod_eu-fra/owner/a": registry.KindNode, "nod_EU/data/a": registry.KindNode, "nod_eu/data/-": registry.KindNode,
		"pin_" + recordkit.OrgAny: registry.KindPin, "pin_" + recordkit.OrgAny + "_any": registry.KindPin, "pin_key_any_1_eu": registry.KindPin, "pin_": registry.KindPin,
	} {
		if _, ok := registry.ParseID(kind, id); ok {
			t.Errorf("%q is the id of a %s", id, kind)
		}
	}
	if region, role, node, ok := registry.ParseNodeID(nodeFra); !ok || registry.NodeID(region, role, node) != nodeFra {
		t.Error("a node's id is not what it was made of")
	}
	if org, jurisdiction, ok := registry.ParsePinID(pinAny); !ok || registry.PinID(org, jurisdiction) != pinAny {
		t.Error("a pin's id is not what it was made of")
	}
}
