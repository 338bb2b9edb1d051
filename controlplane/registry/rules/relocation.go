package rules

import (
	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
)

// relocation checks a step of an org's change of jurisdiction.
func (k *Checker) relocation(r, old *registry.Record) *controlplane.RuleError {
	now := r.Relocation
	own, _ := registry.ParseID(registry.KindOrg, now.Org)
	other, _ := registry.ParseID(registry.KindOrg, now.To+now.From)
	if v := k.Version; v < registry.VersionSafety {
		return controlplane.Refuse(controlplane.RuleConflict, "org", "relocations need cluster version %d, and the region is at %d: upgrade all of its nodes", registry.VersionSafety, v)
	}
	if _, ok := k.find(registry.KindOrg, now.Org); !ok {
		return missing("org", now.Org)
	}
	if own != controlplane.JurisdictionAny && other != controlplane.JurisdictionAny {
		return invalid("to", "an org pinned to %q cannot be pinned to %q: nothing lies in both. Change its pin to any first, and from there", own, other)
	}
	var was registry.Relocation
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
func (k *Checker) leaving(r *registry.Relocation, to string) *controlplane.RuleError {
	if r.To == "" {
		return nil
	}
	if to != controlplane.JurisdictionAny {
		if _, pinned := k.Shard.Revocation(registry.KindPin, registry.PinID(r.Org, to)); !pinned {
			return controlplane.Refuse(controlplane.RuleConflict, "to", "the pin of %s to %s must be in the safety set before", r.Org, to)
		}
	}
	return nil
}

// inForce returns a key of the org that is not revoked, or "".
func (k *Checker) inForce(org string) (key string) {
	for p := range k.Shard.Children(registry.KindProject, org, "") {
		for r := range k.Shard.Children(registry.KindKey, p.Meta.ID, "") {
			if r.Key.Revoked == 0 {
				return r.Meta.ID
			}
		}
	}
	return ""
}

// beside returns the relocation that stands beside the record's org, or nil.
func (k *Checker) beside(r *registry.Record) *registry.Relocation {
	org := content.Parent(r)
	switch {
	case r.Org != nil:
		org = r.Meta.ID
	case r.Key != nil:
		p, ok := k.find(registry.KindProject, r.Key.Project)
		if !ok {
			return nil
		}
		org = p.Project.Org
	}
	if org == "" || r.Relocation != nil {
		return nil
	}
	rel, ok := k.find(registry.KindRelocation, registry.RelocationID(org))
	if !ok {
		return nil
	}
	return rel.Relocation
}

// frozen refuses writes to an org that is being left: they would be lost.
func (k *Checker) frozen(r *registry.Record) *controlplane.RuleError {
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
func (k *Checker) reissued(r *registry.Record) *controlplane.RuleError {
	if rel := k.beside(r); rel == nil || rel.From == "" || rel.InForce != 0 {
		return nil
	}
	for other := range k.Shard.Children(registry.KindKey, r.Key.Project, "") {
		if other.Meta.ID != r.Meta.ID && registry.Chance(other.Meta.ID) == registry.Chance(r.Meta.ID) {
			return controlplane.Refuse(controlplane.RuleConflict, "id",
				"key %s was issued in its place already: rotate that one to see a secret", other.Meta.ID)
		}
	}
	return nil
}

// retired refuses to delete what is still in use of an org that is being left,
// and the word of it as long as something is there.
func (k *Checker) retired(r *registry.Record) *controlplane.RuleError {
	if rel := k.beside(r); rel != nil && rel.To != "" && rel.Retired == 0 {
		return controlplane.Refuse(controlplane.RuleConflict, "id",
			"the pin of org %s is being changed, and its records are frozen until that is finished", rel.Org)
	}
	rel := r.Relocation
	if rel == nil {
		return nil
	}
	unfinished := rel.To != "" && rel.Retired == 0 || rel.From != "" && rel.InForce == 0
	if unfinished || k.Shard.HasChild(registry.KindProject, rel.Org) || k.Shard.HasChild(registry.KindPolicy, rel.Org) {
		return controlplane.Refuse(controlplane.RuleConflict, "id", "the pin of org %s is being changed: finish that, and delete what belongs to it first", rel.Org)
	}
	return nil
}
