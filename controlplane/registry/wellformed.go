package registry

import (
	"slices"

	"ringmain/controlplane"
)

// Limits of one entry, so that its encoding stays below what a feed carries.
const (
	MaxChanges = 128 // changes of an entry
	MaxMembers = 64  // regions of a shard
)

// WellFormed checks what a change says by itself, as the i-th of an entry for
// shard. Receivers check no more than this.
func (c *Change) WellFormed(shard controlplane.Shard, i int) *controlplane.RuleError {
	switch c.Op {
	case OpPut:
		if c.Record == nil || c.Kind != 0 || c.ID != "" {
			return invalid("record", "a put carries a record, and no kind or id beside it")
		}
		return c.Record.WellFormed(shard)
	case OpDelete, OpRevoke, OpForget:
		jurisdiction, ok := ParseID(c.Kind, c.ID)
		switch {
		case !ok || c.Record != nil || c.Op == OpDelete && !c.Kind.Known():
			return invalid("id", "%q is not the id of one %s", c.ID, c.Kind)
		case !Holds(shard, c.Kind, jurisdiction):
			return invalid("id", "%q does not belong in shard %s", c.ID, shard)
		case c.Op != OpDelete && c.Kind != KindKey && c.Kind != KindUpstream && !c.Kind.safety():
			return invalid("kind", "only keys, upstreams, credentials, nodes and tokens can be revoked")
		case c.Op != OpDelete && (c.At <= 0 || c.Expires < 0):
			return invalid("at", "the time of a revocation must be stamped")
		case (c.Op == OpForget) != (c.Now > 0):
			return invalid("now", "only what forgets says when")
		}
	case OpOpen:
		switch {
		case i != 0:
			return invalid("op", "only the first change of an entry can open an epoch")
		case !IsShard(shard):
			return invalid("shard", "%q is not a shard: global, any-<region> or a jurisdiction", shard)
		}
		if len(c.Since) != 0 && (len(c.Since) != len(c.Members) || !slices.IsSorted(c.Members)) {
			return invalid("since", "goes with members in order, one by one")
		}
		return CheckMembers(c.Members, c.Home)
	default:
		return invalid("op", "%d is not an operation", c.Op)
	}
	return nil
}

func CheckMembers(members []string, home string) *controlplane.RuleError {
	switch {
	case len(members) > MaxMembers:
		return invalid("members", "are more than %d regions", MaxMembers)
	case len(slices.Compact(slices.Sorted(slices.Values(members)))) != len(members):
		return invalid("members", "names a region twice")
	case !slices.Contains(members, home):
		return invalid("home", "%q must be one of the members", home)
	}
	for _, m := range members {
		if !isRegionName(m) {
			return invalid("members", "%q is not a region's name", m)
		}
	}
	return nil
}

// WellFormed checks that r has exactly the body its kind says, and an id and
// shard that fit. Everything that resolves records relies on it.
func (r *Record) WellFormed(shard controlplane.Shard) *controlplane.RuleError {
	if !r.Kind.Known() || !r.oneBody() {
		return invalid("kind", "%s needs exactly its own body", r.Kind)
	}
	jurisdiction, ok := ParseID(r.Kind, r.Meta.ID)
	switch {
	case !ok:
		return invalid("meta.id", "%q is not the id of one %s", r.Meta.ID, r.Kind)
	case r.Meta.Shard != shard:
		return invalid("meta.shard", "is %q, but the record is written to %q", r.Meta.Shard, shard)
	case !Holds(shard, r.Kind, jurisdiction):
		return invalid("meta.shard", "%q does not belong in shard %s", r.Meta.ID, shard)
	case r.Org != nil && r.Org.Jurisdiction != jurisdiction:
		return invalid("jurisdiction", "is %q, but the id says %q; an org's jurisdiction never changes: change its pin, by which another takes its place", r.Org.Jurisdiction, jurisdiction)
	case r.Region != nil && RegionID(r.Region.Name) != r.Meta.ID:
		return invalid("name", "is %q, but the id is %q; a region's name never changes", r.Region.Name, r.Meta.ID)
	case r.Relocation != nil:
		return r.Relocation.wellFormed(r.Meta.ID)
	}
	return nil
}

// oneBody reports that r has the body its kind says, and no other.
func (r *Record) oneBody() bool {
	bodies := [...]bool{
		KindOrg: r.Org != nil, KindProject: r.Project != nil, KindKey: r.Key != nil, KindUpstream: r.Upstream != nil,
		KindRoute: r.Route != nil, KindPolicy: r.Policy != nil, KindRegion: r.Region != nil,
		KindRelocation: r.Relocation != nil,
	}
	for kind, set := range bodies {
		if set != (Kind(kind) == r.Kind) {
			return false
		}
	}
	return true
}

func invalid(field, format string, args ...any) *controlplane.RuleError {
	return controlplane.Refuse(controlplane.RuleInvalid, field, format, args...)
}

func (v *Revocation) WellFormed(shard controlplane.Shard) error {
	if v.Shard != shard {
		return invalid("shard", "revocation of shard %q in %q", v.Shard, shard)
	}
	c := Change{Op: OpRevoke, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires}
	if err := c.WellFormed(shard, 0); err != nil {
		return err
	}
	return nil
}
