package registry

import (
	"slices"
	"strings"

	"ringmain/controlplane"
)

// Limits of one entry, so that its encoding stays below what a feed carries.
const (
	MaxChanges = 128 // changes of an entry
	MaxTargets = 64  // targets of a route
	MaxModels  = 256 // models of a policy
	MaxMembers = 64  // regions of a shard
)

// Check applies the home's rules to the changes, in order: each may refer to
// what those before it made. It returns nil or a *controlplane.RuleError, whose
// Field is the path inside the record, after "changes[i]." if there are several.
func (s *State) Check(name controlplane.Shard, changes []Change) error {
	switch n := len(changes); {
	case n == 0:
		return controlplane.Refuse(controlplane.RuleInvalid, "changes", "is empty: send at least one change")
	case n > MaxChanges:
		return controlplane.Refuse(controlplane.RuleInvalid, "changes", "holds %d changes: send at most %d at once", n, MaxChanges)
	}
	sh := s.orNew(name)
	if !sh.known() && changes[0].Op != OpOpen {
		return controlplane.Refuse(controlplane.RuleNotFound, "shard", "shard %q does not exist", name)
	}
	if _, err := s.try(sh, &Held{Entry: NextAfter(name, sh.info.Last, slices.Clone(changes))}, true); err != nil {
		return err
	}
	return nil
}

// wellFormed checks what a change says by itself, as the i-th of an entry for
// shard. Receivers check no more than this.
func (c *Change) wellFormed(shard controlplane.Shard, i int) *controlplane.RuleError {
	switch c.Op {
	case OpPut:
		if c.Record == nil || c.Kind != 0 || c.ID != "" {
			return invalid("record", "a put carries a record, and no kind or id beside it")
		}
		return c.Record.wellFormed(shard)
	case OpDelete, OpRevoke, OpForget:
		jurisdiction, ok := parseID(c.Kind, c.ID)
		switch {
		case !ok || c.Record != nil || c.Op == OpDelete && !c.Kind.known():
			return invalid("id", "%q is not the id of one %s", c.ID, c.Kind)
		case !holds(shard, c.Kind, jurisdiction):
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
		case !isShard(shard):
			return invalid("shard", "%q is not a shard: global, any-<region> or a jurisdiction", shard)
		}
		if len(c.Since) != 0 && (len(c.Since) != len(c.Members) || !slices.IsSorted(c.Members)) {
			return invalid("since", "goes with members in order, one by one")
		}
		return wellFormedMembers(c.Members, c.Home)
	default:
		return invalid("op", "%d is not an operation", c.Op)
	}
	return nil
}

func wellFormedMembers(members []string, home string) *controlplane.RuleError {
	switch {
	case len(members) > MaxMembers:
		return invalid("members", "are more than %d regions", MaxMembers)
	case len(slices.Compact(sorted(members))) != len(members):
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

// wellFormed checks that r has exactly the body its kind says, and an id and
// shard that fit. Everything that resolves records relies on it.
func (r *Record) wellFormed(shard controlplane.Shard) *controlplane.RuleError {
	if !r.Kind.known() || !r.oneBody() {
		return invalid("kind", "%s needs exactly its own body", r.Kind)
	}
	jurisdiction, ok := parseID(r.Kind, r.Meta.ID)
	switch {
	case !ok:
		return invalid("meta.id", "%q is not the id of one %s", r.Meta.ID, r.Kind)
	case r.Meta.Shard != shard:
		return invalid("meta.shard", "is %q, but the record is written to %q", r.Meta.Shard, shard)
	case !holds(shard, r.Kind, jurisdiction):
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

// checker applies the home's rules to one change. shard is the state right
// before it, with the earlier changes of the same entry.
type checker struct {
	state *State
	shard *shard
}

// global is the shard that holds the regions, upstreams and routes.
func (k *checker) global() *shard {
	if k.shard.info.Shard == controlplane.ShardGlobal {
		return k.shard
	}
	return k.state.orNew(controlplane.ShardGlobal)
}

func (k *checker) region(name string) (*Record, bool) { return k.global().get(RegionID(name)) }

// jurisdictionKnown reports whether some region is in it, or no region is known yet.
func (k *checker) jurisdictionKnown(jurisdiction string) bool {
	known := true
	for r := range k.global().names.From(func(e *Record) int { return probeName(e, KindRegion, "", "") }) {
		if r.Kind != KindRegion {
			break
		}
		if r.Region.Jurisdiction == jurisdiction {
			return true
		}
		known = false
	}
	return known
}

// change checks a well-formed change.
func (k *checker) change(c *Change) *controlplane.RuleError {
	id := c.ID
	if c.Op == OpPut {
		id = c.Record.Meta.ID
	}
	if c.Op == OpOpen {
		return k.open(c)
	}
	old, exists := k.shard.get(id)
	if k.state.Version() >= VersionSafety && (c.Op == OpRevoke || c.Op == OpForget) {
		return k.safety(c)
	}
	switch {
	case c.IfRevision == RevisionAbsent && exists:
		return controlplane.Refuse(controlplane.RuleConflict, "id", "%s exists already", id)
	case !exists && (c.Op != OpPut || c.IfRevision != 0 && c.IfRevision != RevisionAbsent):
		return controlplane.Refuse(controlplane.RuleNotFound, "id", "%s does not exist", id)
	case c.IfRevision != 0 && exists && c.IfRevision != old.Meta.Revision:
		return controlplane.Refuse(controlplane.RuleRevision, "revision",
			"%s is at revision %d now, not %d: read it again", id, old.Meta.Revision, c.IfRevision)
	}
	switch c.Op {
	case OpPut:
		if err := k.frozen(c.Record); err != nil {
			return err
		}
		return k.put(c.Record, old)
	case OpDelete:
		if err := k.retired(old); err != nil {
			return err
		}
		return k.remove(old)
	default:
		return nil
	}
}

// safety checks a change of the safety set. What is revoked need not be there:
// its record may be in a quarantine, or on its way.
func (k *checker) safety(c *Change) *controlplane.RuleError {
	if c.IfRevision != 0 {
		return invalid("revision", "a revocation depends on no revision: leave it out")
	}
	if c.Op == OpRevoke {
		return nil
	}
	v, ok := k.shard.revocation(c.Kind, c.ID)
	switch {
	case !ok:
		return controlplane.Refuse(controlplane.RuleNotFound, "id", "%s is not revoked", c.ID)
	case !k.shard.spent(v, c.Now):
		return controlplane.Refuse(controlplane.RuleConflict, "id",
			"%s could be used again: only a key that ended %s ago and has no record any more is forgotten", c.ID, forgetAfter)
	}
	return nil
}

// open checks what a new epoch says. Members are checked against the regions
// known, so that a pinned shard never leaves its jurisdiction.
func (k *checker) open(c *Change) *controlplane.RuleError {
	jurisdiction, pinned := pinnedTo(k.shard.info.Shard)
	for _, m := range c.Members {
		r, ok := k.region(m)
		if ok && pinned && r.Region.Jurisdiction != jurisdiction {
			return controlplane.Refuse(controlplane.RuleForbidden, "members",
				"region %s is in %s: only regions in %s may hold this shard", m, r.Region.Jurisdiction, jurisdiction)
		}
	}
	return nil
}

// remove checks that nothing refers to the record.
func (k *checker) remove(r *Record) *controlplane.RuleError {
	id := r.Meta.ID
	inUse := func(what string) *controlplane.RuleError {
		return controlplane.Refuse(controlplane.RuleConflict, "id", "%s is still referred to by %s: delete that first", id, what)
	}
	switch r.Kind {
	case KindOrg:
		for _, kind := range []Kind{KindProject, KindPolicy, KindRelocation} {
			if k.shard.hasChild(kind, id) {
				return inUse("a " + kind.String())
			}
		}
		if upstream := k.dedicatedTo(id); upstream != "" {
			return inUse("upstream " + upstream)
		}
	case KindProject:
		if k.shard.hasChild(KindKey, id) {
			return inUse("a key")
		}
		if p := k.policyOf(r.Project.Org, id); p != nil {
			return inUse(p.Meta.ID)
		}
	case KindKey:
		if _, revoked := k.shard.revocation(KindKey, id); !revoked {
			return controlplane.Refuse(controlplane.RuleConflict, "id",
				"%s is not revoked: revoke it first, so that no node that is behind can accept it", id)
		}
	case KindUpstream:
		if route := k.routeTo(r.Upstream.Name); route != "" {
			return inUse("route " + route)
		}
	case KindRoute:
		if by := k.fallingBackOn(r.Route.Model); by != "" {
			return inUse("route " + by)
		}
	case KindRegion:
		return k.removeRegion(r.Region.Name, inUse)
	}
	return nil
}

func (k *checker) removeRegion(name string, inUse func(string) *controlplane.RuleError) *controlplane.RuleError {
	for r := range k.shard.names.From(func(e *Record) int { return probeName(e, KindUpstream, "", "") }) {
		if r.Kind != KindUpstream {
			break
		}
		if r.Upstream.Region == name {
			return inUse("upstream " + r.Upstream.Name)
		}
	}
	for _, sh := range k.state.shards {
		if slices.Contains(sh.info.Members, name) {
			return inUse("shard " + string(sh.info.Shard))
		}
	}
	return nil
}

// routeTo returns the model of a route with the upstream among its targets, or "".
func (k *checker) routeTo(upstream string) string {
	for r := range k.shard.names.From(func(e *Record) int { return probeName(e, KindRoute, "", "") }) {
		if r.Kind != KindRoute {
			break
		}
		if slices.ContainsFunc(r.Route.Targets, func(t Target) bool { return t.Upstream == upstream }) {
			return r.Route.Model
		}
	}
	return ""
}

// policyOf returns the policy of the org (project "") or project, or nil.
func (k *checker) policyOf(org, project string) *Record {
	var found *Record
	k.shard.children(KindPolicy, org, "", func(r *Record) bool {
		if r.Policy.Project == project {
			found = r
		}
		return found == nil
	})
	return found
}

// unique refuses a name that another record of the kind bears.
func (k *checker) unique(r *Record, field string) *controlplane.RuleError {
	scope, n := name(r)
	if other, ok := k.shard.byName(r.Kind, scope, n); ok && other.Meta.ID != r.Meta.ID {
		return controlplane.Refuse(controlplane.RuleConflict, field, "%q is the name of %s already: choose another", n, other.Meta.ID)
	}
	return nil
}

// oneOf refuses a value outside a short list.
func oneOf(field, value string, allowed ...string) *controlplane.RuleError {
	if slices.Contains(allowed, value) {
		return nil
	}
	return invalid(field, "%q must be one of: %s", value, strings.Join(allowed, ", "))
}
