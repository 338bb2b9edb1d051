// Package rules says which changes the home of a shard accepts: what a record may
// hold, what must exist beside it, and what must not be there any more.
//
// It reads content and changes none. Only homes ask it: whoever receives an entry
// checks its structure, not these rules.
package rules

import (
	"iter"
	"slices"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
)

// Limits of what records may hold.
const (
	maxTargets = 64  // of a route
	maxModels  = 256 // of a policy
)

// Checker applies the home's rules to the changes of one entry.
type Checker struct {
	Version uint64                              // of the cluster
	Shard   *content.Shard                      // right before the change, with the earlier ones of the same entry
	Global  *content.Shard                      // holds the regions, upstreams and routes; Shard itself, or as committed
	Held    iter.Seq2[*content.Shard, []string] // all shards held here, as committed, each with its members
}

func (k *Checker) region(name string) (*registry.Record, bool) {
	return k.Global.Get(registry.RegionID(name))
}

// jurisdictionKnown reports whether some region is in it, or no region is known yet.
func (k *Checker) jurisdictionKnown(jurisdiction string) bool {
	known := true
	for r := range k.Global.Named(registry.KindRegion) {
		if r.Region.Jurisdiction == jurisdiction {
			return true
		}
		known = false
	}
	return known
}

// Check returns why a well-formed change may not be made, or nil.
func (k *Checker) Check(c *registry.Change) *controlplane.RuleError {
	id := c.ID
	if c.Op == registry.OpPut {
		id = c.Record.Meta.ID
	}
	if c.Op == registry.OpOpen {
		return k.open(c)
	}
	old, exists := k.Shard.Get(id)
	if k.Version >= registry.VersionSafety && (c.Op == registry.OpRevoke || c.Op == registry.OpForget) {
		return k.safety(c)
	}
	switch {
	case c.IfRevision == registry.RevisionAbsent && exists:
		return controlplane.Refuse(controlplane.RuleConflict, "id", "%s exists already", id)
	case !exists && (c.Op != registry.OpPut || c.IfRevision != 0 && c.IfRevision != registry.RevisionAbsent):
		return controlplane.Refuse(controlplane.RuleNotFound, "id", "%s does not exist", id)
	case c.IfRevision != 0 && exists && c.IfRevision != old.Meta.Revision:
		return controlplane.Refuse(controlplane.RuleRevision, "revision",
			"%s is at revision %d now, not %d: read it again", id, old.Meta.Revision, c.IfRevision)
	}
	switch c.Op {
	case registry.OpPut:
		if err := k.frozen(c.Record); err != nil {
			return err
		}
		return k.put(c.Record, old)
	case registry.OpDelete:
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
func (k *Checker) safety(c *registry.Change) *controlplane.RuleError {
	if c.IfRevision != 0 {
		return invalid("revision", "a revocation depends on no revision: leave it out")
	}
	if c.Op == registry.OpRevoke {
		return nil
	}
	v, ok := k.Shard.Revocation(c.Kind, c.ID)
	switch {
	case !ok:
		return controlplane.Refuse(controlplane.RuleNotFound, "id", "%s is not revoked", c.ID)
	case !k.Shard.Spent(v, c.Now):
		return controlplane.Refuse(controlplane.RuleConflict, "id",
			"%s could be used again: only a key that ended %s ago and has no record any more is forgotten", c.ID, content.ForgetAfter)
	}
	return nil
}

// open checks what a new epoch says. Members are checked against the regions
// known, so that a pinned shard never leaves its jurisdiction.
func (k *Checker) open(c *registry.Change) *controlplane.RuleError {
	jurisdiction, pinned := registry.PinnedTo(k.Shard.Name())
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
func (k *Checker) remove(r *registry.Record) *controlplane.RuleError {
	id := r.Meta.ID
	inUse := func(what string) *controlplane.RuleError {
		return controlplane.Refuse(controlplane.RuleConflict, "id", "%s is still referred to by %s: delete that first", id, what)
	}
	switch r.Kind {
	case registry.KindOrg:
		for _, kind := range []registry.Kind{registry.KindProject, registry.KindPolicy, registry.KindRelocation} {
			if k.Shard.HasChild(kind, id) {
				return inUse("a " + kind.String())
			}
		}
		if upstream := k.dedicatedTo(id); upstream != "" {
			return inUse("upstream " + upstream)
		}
	case registry.KindProject:
		if k.Shard.HasChild(registry.KindKey, id) {
			return inUse("a key")
		}
		if p := k.policyOf(r.Project.Org, id); p != nil {
			return inUse(p.Meta.ID)
		}
	case registry.KindKey:
		if _, revoked := k.Shard.Revocation(registry.KindKey, id); !revoked {
			return controlplane.Refuse(controlplane.RuleConflict, "id",
				"%s is not revoked: revoke it first, so that no node that is behind can accept it", id)
		}
	case registry.KindUpstream:
		if route := k.routeTo(r.Upstream.Name); route != "" {
			return inUse("route " + route)
		}
	case registry.KindRoute:
		if by := k.fallingBackOn(r.Route.Model); by != "" {
			return inUse("route " + by)
		}
	case registry.KindRegion:
		return k.removeRegion(r.Region.Name, inUse)
	}
	return nil
}

func (k *Checker) removeRegion(name string, inUse func(string) *controlplane.RuleError) *controlplane.RuleError {
	for r := range k.Shard.Named(registry.KindUpstream) {
		if r.Upstream.Region == name {
			return inUse("upstream " + r.Upstream.Name)
		}
	}
	for sh, members := range k.Held {
		if slices.Contains(members, name) {
			return inUse("shard " + string(sh.Name()))
		}
	}
	return nil
}

// routeTo returns the model of a route with the upstream among its targets, or "".
func (k *Checker) routeTo(upstream string) string {
	for r := range k.Shard.Named(registry.KindRoute) {
		if slices.ContainsFunc(r.Route.Targets, func(t registry.Target) bool { return t.Upstream == upstream }) {
			return r.Route.Model
		}
	}
	return ""
}

// policyOf returns the policy of the org (project "") or project, or nil.
func (k *Checker) policyOf(org, project string) *registry.Record {
	for r := range k.Shard.Children(registry.KindPolicy, org, "") {
		if r.Policy.Project == project {
			return r
		}
	}
	return nil
}

// unique refuses a name that another record of the kind bears.
func (k *Checker) unique(r *registry.Record, field string) *controlplane.RuleError {
	if other, n, ok := k.Shard.Namesake(r); ok {
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

func invalid(field, format string, args ...any) *controlplane.RuleError {
	return controlplane.Refuse(controlplane.RuleInvalid, field, format, args...)
}
