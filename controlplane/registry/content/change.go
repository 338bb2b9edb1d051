package content

import (
	"iter"
	"strings"
	"time"

	"ringmain/controlplane/registry"
)

// Apply makes one well-formed change take effect as part of entry seq, at the
// cluster version. It returns what the change was stored as, and the record that
// it replaced. An opening changes no content.
func (sh *Shard) Apply(c registry.Change, seq, version uint64) (registry.Change, *registry.Record) {
	var before *registry.Record
	switch c.Op {
	case registry.OpPut:
		r := *c.Record
		r.Meta.Revision = seq
		if old, ok := sh.Get(r.Meta.ID); ok {
			r.Meta.Created = old.Meta.Created
			before = old
		}
		if r.Key != nil {
			key := *r.Key
			r.Key = &key
		}
		c.Record = sh.marked(&r)
		sh.put(c.Record)
	case registry.OpDelete:
		before, _ = sh.Get(c.ID)
		sh.remove(c.ID)
	case registry.OpRevoke:
		sh.revoke(registry.Revocation{Kind: c.Kind, ID: c.ID, At: c.At, Expires: c.Expires})
		if before, _ = sh.Get(c.ID); before != nil {
			sh.touch(before, c.At, seq, version)
		}
	case registry.OpForget:
		// A record that is there would be in force again.
		if v, ok := sh.Revocation(c.Kind, c.ID); ok && !sh.Has(c.ID) {
			c.At, c.Expires = v.At, v.Expires // what Undo brings back
			sh.revoked = sh.revoked.Without(v)
		}
	case registry.OpOpen:
	}
	return c, before
}

// Undo takes back what Apply stored as c, the last that was applied, where
// before is the record that it replaced. From the safety set it takes nothing.
func (sh *Shard) Undo(c registry.Change, before *registry.Record) {
	if c.Op == registry.OpForget {
		v := registry.Revocation{Kind: c.Kind, ID: c.ID, At: c.At, Expires: c.Expires}
		sh.revoke(v)
		sh.mark(&v) // a faulty home forgets what has a record, or was never revoked
		return
	}
	if ref := c.Ref(sh.name); ref.ID != "" {
		sh.restore(ref.ID, before)
	}
}

// put stores r, which the shard owns from then on.
func (sh *Shard) put(r *registry.Record) {
	old, exists := sh.Get(r.Meta.ID)
	if exists && Parent(old) != Parent(r) {
		sh.links = sh.links.Without(old)
	}
	if _, n := name(r); exists && n != "" && compareNames(old, r) != 0 {
		sh.names = sh.names.Without(old)
	}
	project := ""
	if r.Key != nil {
		if sibling, ok := sh.child(registry.KindKey, r.Key.Project); ok {
			project = sibling.Key.Project
		}
	}
	sh.intern(r, project)
	sh.records = sh.records.With(r)
	if Parent(r) != "" {
		sh.links = sh.links.With(r)
	}
	if _, n := name(r); n != "" {
		sh.names = sh.names.With(r)
	}
}

// intern makes r share strings that other records hold already: a third of
// the memory of a million keys. project is the equal of a key's project id, or
// empty.
func (sh *Shard) intern(r *registry.Record, project string) {
	r.Meta.Shard = sh.name
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

func (sh *Shard) remove(id string) {
	r, ok := sh.Get(id)
	if !ok {
		return
	}
	sh.records = sh.records.Without(r)
	sh.links = sh.links.Without(r)
	sh.names = sh.names.Without(r)
}

// restore puts back what a change replaced, marked as the safety set says now.
func (sh *Shard) restore(id string, before *registry.Record) {
	if before == nil {
		sh.remove(id)
		return
	}
	r := *before // others may be reading it
	if r.Key != nil {
		key := *r.Key
		r.Key = &key
	}
	sh.put(sh.marked(&r))
}

// revoke merges v into the safety set. The merge commutes: the earliest time
// of revocation and the latest end of the credential stay, so copies that heard
// of the same revocations in any order agree.
func (sh *Shard) revoke(v registry.Revocation) {
	v.Shard = sh.name
	if old, ok := sh.Revocation(v.Kind, v.ID); ok {
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
func (sh *Shard) marked(r *registry.Record) *registry.Record {
	if r.Key == nil {
		return r
	}
	var at int64
	if v, ok := sh.Revocation(registry.KindKey, r.Meta.ID); ok {
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
func (sh *Shard) mark(v *registry.Revocation) {
	if old, ok := sh.Get(v.ID); ok && old.Kind == v.Kind {
		if r := sh.marked(old); r != old {
			sh.put(r)
		}
	}
}

// touch notes in the record that it was revoked at the time at. Version 1 does
// so only if that was news here; but the set may know more than the history
// that a copy holds, and equal histories must leave equal records.
func (sh *Shard) touch(old *registry.Record, at int64, seq, version uint64) {
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

// Merge brings the others into the safety set, and the records in line with all
// of it.
func (sh *Shard) Merge(others iter.Seq[*registry.Revocation]) {
	for v := range others {
		sh.revoke(*v)
	}
	for v := range sh.revoked.All() {
		sh.mark(v)
	}
}

// ForgetAfter is how long after a revoked key's end its revocation may be
// forgotten: well above what clocks of regions differ by.
const ForgetAfter = 24 * time.Hour

// Spent reports whether nothing that this shard holds or will hold is kept out
// by v any more at the time now (Unix milliseconds): a key, whose id nobody is
// given twice, that ended long ago by itself and whose record is deleted. A
// credential, node, token or pin can be written again, so none of them ever is.
func (sh *Shard) Spent(v *registry.Revocation, now int64) bool {
	return v.Kind == registry.KindKey && v.Expires != 0 && v.Expires <= now-ForgetAfter.Milliseconds() && !sh.Has(v.ID)
}
