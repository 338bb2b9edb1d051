package registry

import (
	"cmp"
	"slices"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/registry/tree"
)

// shard is one shard's state. A value that a State holds is never changed:
// changes are made on a copy, which shares all structure with the original.
type shard struct {
	info    ShardInfo
	records tree.Tree[*Record]     // by id
	links   tree.Tree[*Record]     // keys by project, projects and policies by org; then by id
	names   tree.Tree[*Record]     // upstreams, routes, regions and (within their org) projects by name
	revoked tree.Tree[*Revocation] // by (kind, id)
	stage   *stage                 // unfinished snapshot, or nil

	// From cluster version 2; empty before.
	tail      tree.Tree[*Held] // entries that can be undone, by sequence, to the last
	tailBytes uint64
	lost      tree.Tree[*Quarantined] // the quarantine, by (epoch, sequence)
}

func newShard(name controlplane.Shard) *shard {
	return &shard{
		info:    ShardInfo{Shard: name},
		records: tree.New(compareIDs),
		links:   tree.New(compareLinks),
		names:   tree.New(compareNames),
		revoked: tree.New(compareRevocations),
		tail:    tree.New(compareHeld),
		lost:    tree.New(compareQuarantined),
	}
}

func compareIDs(a, b *Record) int { return strings.Compare(a.Meta.ID, b.Meta.ID) }

// parent is the id of the record that r belongs to; "" if it stands alone.
func parent(r *Record) string {
	switch {
	case r.Key != nil:
		return r.Key.Project
	case r.Project != nil:
		return r.Project.Org
	case r.Policy != nil:
		return r.Policy.Org
	case r.Relocation != nil:
		return r.Relocation.Org
	}
	return ""
}

func compareLinks(a, b *Record) int {
	return cmp.Or(strings.Compare(parent(a), parent(b)), compareIDs(a, b))
}

// name is what ByName finds r by, unique within scope; "" if the kind has no unique name.
func name(r *Record) (scope, name string) {
	switch {
	case r.Upstream != nil:
		return "", r.Upstream.Name
	case r.Route != nil:
		return "", r.Route.Model
	case r.Region != nil:
		return "", r.Region.Name
	case r.Project != nil:
		return r.Project.Org, r.Project.Name
	}
	return "", ""
}

func probeName(e *Record, kind Kind, scope, wanted string) int {
	es, en := name(e)
	return cmp.Or(cmp.Compare(e.Kind, kind), strings.Compare(es, scope), strings.Compare(en, wanted))
}

func compareNames(a, b *Record) int {
	scope, n := name(b)
	return cmp.Or(probeName(a, b.Kind, scope, n), compareIDs(a, b))
}

func compareRevocations(a, b *Revocation) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
}

func (sh *shard) get(id string) (*Record, bool) {
	return sh.records.Get(func(e *Record) int { return strings.Compare(e.Meta.ID, id) })
}

// byName returns the record of that name; of several (only a faulty home sends
// them) the one with the lowest id.
func (sh *shard) byName(kind Kind, scope, wanted string) (*Record, bool) {
	for r := range sh.names.From(func(e *Record) int { return probeName(e, kind, scope, wanted) }) {
		return r, probeName(r, kind, scope, wanted) == 0
	}
	return nil, false
}

// children calls keep with the records of the kind that belong to parentID, in
// order of id from after (exclusive), until it returns false.
func (sh *shard) children(kind Kind, parentID, after string, keep func(*Record) bool) {
	first := max(after, kind.Prefix()+"_")
	probe := func(e *Record) int {
		return cmp.Or(strings.Compare(parent(e), parentID), strings.Compare(e.Meta.ID, first))
	}
	for r := range sh.links.From(probe) {
		if r.Kind != kind || parent(r) != parentID {
			return
		}
		if r.Meta.ID != after && !keep(r) {
			return
		}
	}
}

func (sh *shard) hasChild(kind Kind, parentID string) bool {
	found := false
	sh.children(kind, parentID, "", func(*Record) bool { found = true; return false })
	return found
}

func (sh *shard) has(id string) bool {
	_, ok := sh.get(id)
	return ok
}

func (sh *shard) revocation(kind Kind, id string) (*Revocation, bool) {
	return sh.revoked.Get(func(e *Revocation) int {
		return cmp.Or(cmp.Compare(e.Kind, kind), strings.Compare(e.ID, id))
	})
}

// put stores r, which the shard owns from then on.
func (sh *shard) put(r *Record) {
	old, exists := sh.get(r.Meta.ID)
	if exists && parent(old) != parent(r) {
		sh.links = sh.links.Without(old)
	}
	if _, n := name(r); exists && n != "" && compareNames(old, r) != 0 {
		sh.names = sh.names.Without(old)
	}
	project := ""
	if r.Key != nil {
		sh.children(KindKey, r.Key.Project, "", func(sibling *Record) bool {
			project = sibling.Key.Project
			return false
		})
	}
	sh.intern(r, project)
	sh.records = sh.records.With(r)
	if parent(r) != "" {
		sh.links = sh.links.With(r)
	}
	if _, n := name(r); n != "" {
		sh.names = sh.names.With(r)
	}
}

// intern makes r share strings that other records hold already: a third of
// the memory of a million keys. project is the equal of a key's project id, or
// empty.
func (sh *shard) intern(r *Record, project string) {
	r.Meta.Shard = sh.info.Shard
	if r.Key == nil {
		return
	}
	if project != "" {
		r.Key.Project = project
	}
	switch r.Key.Class {
	case "live":
		r.Key.Class = "live"
	case "test":
		r.Key.Class = "test"
	}
	if id := r.Meta.ID; strings.HasSuffix(id, r.Key.Hint) {
		r.Key.Hint = id[len(id)-len(r.Key.Hint):]
	}
}

func (sh *shard) remove(id string) {
	r, ok := sh.get(id)
	if !ok {
		return
	}
	sh.records = sh.records.Without(r)
	sh.links = sh.links.Without(r)
	sh.names = sh.names.Without(r)
}

// revoke merges v into the safety set. The merge commutes: the earliest time
// of revocation and the latest end of the credential stay, so copies that heard
// of the same revocations in any order agree.
func (sh *shard) revoke(v Revocation) {
	v.Shard = sh.info.Shard
	if old, ok := sh.revocation(v.Kind, v.ID); ok {
		v.At = min(v.At, old.At)
		if v.Expires == 0 || old.Expires == 0 {
			v.Expires = 0
		} else {
			v.Expires = max(v.Expires, old.Expires)
		}
		if v == *old {
			return
		}
	}
	sh.revoked = sh.revoked.With(&v)
}

// marked returns r, or a copy of it whose Revoked is what the safety set says.
func (sh *shard) marked(r *Record) *Record {
	if r.Key == nil {
		return r
	}
	var at int64
	if v, ok := sh.revocation(KindKey, r.Meta.ID); ok {
		at = v.At
	}
	if r.Key.Revoked == at {
		return r
	}
	c, key := *r, *r.Key
	key.Revoked = at
	c.Key = &key
	return &c
}

// mark brings the record that v revokes, if the shard holds it, in line with v.
func (sh *shard) mark(v *Revocation) {
	if old, ok := sh.get(v.ID); ok && old.Kind == v.Kind {
		if r := sh.marked(old); r != old {
			sh.put(r)
		}
	}
}

// apply makes one well-formed change take effect as part of entry seq. It
// returns what the change was stored as, and the record that it replaced.
func (sh *shard) apply(c Change, epoch controlplane.Epoch, seq, version uint64) (Change, *Record) {
	var before *Record
	switch c.Op {
	case OpPut:
		r := *c.Record
		r.Meta.Revision = seq
		if old, ok := sh.get(r.Meta.ID); ok {
			r.Meta.Created = old.Meta.Created
			before = old
		}
		if r.Key != nil {
			key := *r.Key
			r.Key = &key
		}
		c.Record = sh.marked(&r)
		sh.put(c.Record)
	case OpDelete:
		before, _ = sh.get(c.ID)
		sh.remove(c.ID)
	case OpRevoke:
		sh.revoke(Revocation{Kind: c.Kind, ID: c.ID, At: c.At, Expires: c.Expires})
		if before, _ = sh.get(c.ID); before != nil {
			sh.touch(before, c.At, seq, version)
		}
	case OpForget:
		// A record that is there, or is replayed, would be in force again.
		if v, ok := sh.revocation(c.Kind, c.ID); ok && !sh.has(c.ID) && !sh.waits(c.ID) {
			c.At, c.Expires = v.At, v.Expires // what a cut brings back
			sh.revoked = sh.revoked.Without(v)
		}
	case OpOpen:
		sh.info.Members = sorted(c.Members)
		sh.info.Home = c.Home
		sh.info.Epoch = epoch
		sh.info.Spans = append(slices.Clip(sh.info.Spans), Span{Epoch: epoch, Start: seq})
	}
	return c, before
}

// touch notes in the record that it was revoked at the time at. Version 1 does
// so only if that was news here; but the set may know more than the history
// that a copy holds, and equal histories must leave equal records.
func (sh *shard) touch(old *Record, at int64, seq, version uint64) {
	r := sh.marked(old)
	if r == old {
		if version < 2 || old.Key == nil {
			return
		}
		c, key := *old, *old.Key // put writes to what it stores
		c.Key = &key
		r = &c
	}
	r.Meta.Revision, r.Meta.Updated = seq, max(old.Meta.Updated, at)
	sh.put(r)
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }

// epochAt returns the epoch of the entry at seq, or, for entries older than the
// history that is known, the epoch that theirs cannot exceed (exact false).
func (sh *shard) epochAt(seq uint64) (epoch controlplane.Epoch, exact bool) {
	for _, span := range slices.Backward(sh.info.Spans) {
		if span.Start <= seq {
			return span.Epoch, true
		}
	}
	if len(sh.info.Spans) > 0 {
		epoch = sh.info.Spans[0].Epoch
	}
	return epoch, false
}
