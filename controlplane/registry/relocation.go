package registry

import (
	"strings"

	"ringmain/controlplane"
)

// Relocation is one half of an org's change of jurisdiction: one stands beside
// the org that is left, one beside the org that takes its place. From cluster
// version 3.
type Relocation struct {
	Org   string             `cbor:"1,keyasint" json:"org"`                      // beside which it stands
	To    string             `cbor:"2,keyasint,omitempty" json:"to,omitempty"`   // the org that takes its place; or
	From  string             `cbor:"3,keyasint,omitempty" json:"from,omitempty"` // the org whose place it takes
	Shard controlplane.Shard `cbor:"4,keyasint" json:"shard"`                    // of To or From

	Retired int64 `cbor:"5,keyasint,omitempty" json:"retired,omitempty"`  // with To: since when all keys of Org are revoked, Unix milliseconds
	Copied  int64 `cbor:"6,keyasint,omitempty" json:"copied,omitempty"`   // with From: since when Org has all records of From
	InForce int64 `cbor:"7,keyasint,omitempty" json:"in_force,omitempty"` // with From: since when every data node refuses the ids of From
}

// RelocationID is the id of the relocation beside an org.
func RelocationID(org string) string {
	return KindRelocation.Prefix() + strings.TrimPrefix(org, KindOrg.Prefix())
}

// Digits of an id: of its second, and by chance.
const (
	secondDigits = 6
	chanceDigits = 10
)

// Relocated is the id that a record of an org has where the org called to takes
// its place: to's jurisdiction and second, and the digits by chance that the
// record had before. So no id comes back when a change is undone, and each is
// known by the one before. Keys get their own second.
func Relocated(id, to string) string {
	prefix, _, _ := strings.Cut(id, "_")
	_, rest, _ := strings.Cut(to, "_")
	jurisdiction, second, _ := strings.Cut(rest, "_")
	return prefix + "_" + jurisdiction + "_" + second[:min(len(second), secondDigits)] + Chance(id)
}

// Chance is the part of an id that stays when its org's jurisdiction changes.
func Chance(id string) string { return id[max(0, len(id)-chanceDigits):] }

// recent reports a change of a record that cluster version 2 cannot read.
func (c *Change) recent() bool {
	return c.Op == OpPut && c.Record != nil && c.Record.Kind == KindRelocation || c.Op == OpDelete && c.Kind == KindRelocation
}

// recentRecord tells such a record by the first bytes of its deterministic
// encoding: a map, whose first key is that of the kind.
func recentRecord(b []byte) bool {
	return len(b) > 2 && b[0]>>5 == 5 && b[1] == 1 && b[2] == byte(KindRelocation)
}

// wellFormed checks what r says by itself.
func (r *Relocation) wellFormed(id string) *controlplane.RuleError {
	own, ok := ParseID(KindOrg, r.Org)
	if !ok || RelocationID(r.Org) != id {
		return invalid("org", "%q is not the org that %s stands beside", r.Org, id)
	}
	if (r.To == "") == (r.From == "") {
		return invalid("to", "a relocation leads to an org or from one, and not both")
	}
	other := r.To + r.From
	jurisdiction, ok := ParseID(KindOrg, other)
	switch {
	case !ok || jurisdiction == own || Chance(r.Org) != Chance(other) || r.To != "" && Relocated(r.Org, r.To) != r.To:
		return invalid("to", "%q is not %s in another jurisdiction", other, r.Org)
	case !Holds(r.Shard, KindOrg, jurisdiction):
		return invalid("shard", "%q does not belong in shard %s", other, r.Shard)
	case r.Retired < 0 || r.Copied < 0 || r.InForce < 0:
		return invalid("retired", "times are Unix milliseconds, not negative")
	case r.To != "" && r.Copied+r.InForce != 0, r.From != "" && r.Retired != 0:
		return invalid("retired", "this half of a relocation says nothing of the other")
	case r.InForce != 0 && r.Copied == 0:
		return invalid("in_force", "the records must have been copied before")
	}
	return nil
}
