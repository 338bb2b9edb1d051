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
	own, ok := parseID(KindOrg, r.Org)
	if !ok || RelocationID(r.Org) != id {
		return invalid("org", "%q is not the org that %s stands beside", r.Org, id)
	}
	if (r.To == "") == (r.From == "") {
		return invalid("to", "a relocation leads to an org or from one, and not both")
	}
	other := r.To + r.From
	jurisdiction, ok := parseID(KindOrg, other)
	switch {
	case !ok || jurisdiction == own || Chance(r.Org) != Chance(other) || r.To != "" && Relocated(r.Org, r.To) != r.To:
		return invalid("to", "%q is not %s in another jurisdiction", other, r.Org)
	case !holds(r.Shard, KindOrg, jurisdiction):
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

// relocation checks a step of an org's change of jurisdiction.
func (k *checker) relocation(r, old *Record) *controlplane.RuleError {
	now := r.Relocation
	own, _ := parseID(KindOrg, now.Org)
	other, _ := parseID(KindOrg, now.To+now.From)
	if v := k.state.Version(); v < VersionSafety {
		return controlplane.Refuse(controlplane.RuleConflict, "org", "relocations need cluster version %d, and the region is at %d: upgrade all of its nodes", VersionSafety, v)
	}
	if _, ok := k.find(KindOrg, now.Org); !ok {
		return missing("org", now.Org)
	}
	if own != controlplane.JurisdictionAny && other != controlplane.JurisdictionAny {
		return invalid("to", "an org pinned to %q cannot be pinned to %q: nothing lies in both. Change its pin to any first, and from there", own, other)
	}
	var was Relocation
	if old != nil {
		was = *old.Relocation
	}
	if now.To != "" && was.From != "" && was.InForce == 0 {
		return controlplane.Refuse(controlplane.RuleConflict, "to", "the org takes the place of %s, and that is not finished: finish it first", was.From)
	}
	if old == nil || now.To != "" && was.From != "" {
		if now.Retired+now.Copied+now.InForce != 0 {
			return invalid("retired", "a relocation begins with nothing done")
		}
		return k.leaving(now, other)
	}
	if was.Retired == 0 {
		was.Retired = now.Retired
	}
	if was.Copied == 0 {
		was.Copied = now.Copied
	}
	if was.InForce == 0 {
		was.InForce = now.InForce
	}
	if was != *now {
		return invalid("to", "a relocation only goes on: what it says stays")
	}
	if now.Retired != 0 && old.Relocation.Retired == 0 {
		if key := k.inForce(now.Org); key != "" {
			return controlplane.Refuse(controlplane.RuleConflict, "retired", "%s is not revoked: revoke all keys of the org first", key)
		}
		if upstream := k.dedicatedTo(now.Org); upstream != "" && k.dedicatedTo(now.To) == "" {
			return controlplane.Refuse(controlplane.RuleConflict, "to",
				"upstream %s is dedicated to the org, and none to %s, which takes its place: create one first, dedicated to that id", upstream, now.To)
		}
	}
	return nil
}

// leaving checks the beginning of a relocation at the org that is left.
func (k *checker) leaving(r *Relocation, to string) *controlplane.RuleError {
	if r.To == "" {
		return nil
	}
	if to != controlplane.JurisdictionAny {
		if _, pinned := k.shard.revocation(KindPin, PinID(r.Org, to)); !pinned {
			return controlplane.Refuse(controlplane.RuleConflict, "to", "the pin of %s to %s must be in the safety set before", r.Org, to)
		}
	}
	return nil
}

// inForce returns a key of the org that is not revoked, or "".
func (k *checker) inForce(org string) (key string) {
	k.shard.children(KindProject, org, "", func(p *Record) bool {
		k.shard.children(KindKey, p.Meta.ID, "", func(r *Record) bool {
			if r.Key.Revoked == 0 {
				key = r.Meta.ID
			}
			return key == ""
		})
		return key == ""
	})
	return key
}

// beside returns the relocation that stands beside the record's org, or nil.
func (k *checker) beside(r *Record) *Relocation {
	org := parent(r)
	switch {
	case r.Org != nil:
		org = r.Meta.ID
	case r.Key != nil:
		p, ok := k.find(KindProject, r.Key.Project)
		if !ok {
			return nil
		}
		org = p.Project.Org
	}
	if org == "" || r.Relocation != nil {
		return nil
	}
	rel, ok := k.find(KindRelocation, RelocationID(org))
	if !ok {
		return nil
	}
	return rel.Relocation
}

// frozen refuses writes to an org that is being left: they would be lost.
func (k *checker) frozen(r *Record) *controlplane.RuleError {
	rel := k.beside(r)
	switch {
	case rel == nil:
	case rel.To != "":
		return controlplane.Refuse(controlplane.RuleConflict, "id",
			"the pin of org %s is being changed, and its records are frozen: change %s, which takes its place, or revoke its keys", rel.Org, rel.To)
	case rel.Copied == 0 && r.Key != nil:
		return controlplane.Refuse(controlplane.RuleConflict, "id", "the records of org %s are still being copied from %s: make keys when they are", rel.Org, rel.From)
	}
	return nil
}

// reissued refuses a second key in the place of one of the org that is left:
// both would be in force, and only one is shown beside the old one.
func (k *checker) reissued(r *Record) (err *controlplane.RuleError) {
	if rel := k.beside(r); rel == nil || rel.From == "" || rel.InForce != 0 {
		return nil
	}
	k.shard.children(KindKey, r.Key.Project, "", func(other *Record) bool {
		if other.Meta.ID != r.Meta.ID && Chance(other.Meta.ID) == Chance(r.Meta.ID) {
			err = controlplane.Refuse(controlplane.RuleConflict, "id",
				"key %s was issued in its place already: rotate that one to see a secret", other.Meta.ID)
		}
		return err == nil
	})
	return err
}

// retired refuses to delete what is still in use of an org that is being left,
// and the word of it as long as something is there.
func (k *checker) retired(r *Record) *controlplane.RuleError {
	if rel := k.beside(r); rel != nil && rel.To != "" && rel.Retired == 0 {
		return controlplane.Refuse(controlplane.RuleConflict, "id",
			"the pin of org %s is being changed, and its records are frozen until that is finished", rel.Org)
	}
	rel := r.Relocation
	if rel == nil {
		return nil
	}
	unfinished := rel.To != "" && rel.Retired == 0 || rel.From != "" && rel.InForce == 0
	if unfinished || k.shard.hasChild(KindProject, rel.Org) || k.shard.hasChild(KindPolicy, rel.Org) {
		return controlplane.Refuse(controlplane.RuleConflict, "id", "the pin of org %s is being changed: finish that, and delete what belongs to it first", rel.Org)
	}
	return nil
}

// Relocation returns the relocation that stands beside an org.
func (s *State) Relocation(org string) (*Record, bool) {
	return s.Get(KindRelocation, RelocationID(org))
}
