// Package content holds the records and the safety set of one shard, as a
// persistent value: its indexes, what a change does to it, and how that is undone.
//
// It knows neither history nor homes, nor what a home would accept: whatever is
// well formed has its effect.
package content

import (
	"cmp"
	"iter"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/tree"
)

// Shard is the content of one shard. A copy of the value is a consistent
// snapshot that costs nothing: changes to one do not show in the other, and
// records are replaced, never written to.
type Shard struct {
	name    controlplane.Shard
	records tree.Tree[*registry.Record]     // by id
	links   tree.Tree[*registry.Record]     // keys by project, projects and policies by org; then by id
	names   tree.Tree[*registry.Record]     // upstreams, routes, regions and (within their org) projects by name
	revoked tree.Tree[*registry.Revocation] // by (kind, id)
}

// New returns the empty content of the shard.
func New(name controlplane.Shard) Shard {
	return Shard{
		name:    name,
		records: tree.New(compareIDs),
		links:   tree.New(compareLinks),
		names:   tree.New(compareNames),
		revoked: tree.New(compareRevocations),
	}
}

func compareIDs(a, b *registry.Record) int { return strings.Compare(a.Meta.ID, b.Meta.ID) }

// Parent is the id of the record that r belongs to; "" if it stands alone.
func Parent(r *registry.Record) string {
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

func compareLinks(a, b *registry.Record) int {
	return cmp.Or(strings.Compare(Parent(a), Parent(b)), compareIDs(a, b))
}

// name is what ByName finds r by, unique within scope; "" if the kind has no unique name.
func name(r *registry.Record) (scope, name string) {
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

func probeName(e *registry.Record, kind registry.Kind, scope, wanted string) int {
	es, en := name(e)
	return cmp.Or(cmp.Compare(e.Kind, kind), strings.Compare(es, scope), strings.Compare(en, wanted))
}

func compareNames(a, b *registry.Record) int {
	scope, n := name(b)
	return cmp.Or(probeName(a, b.Kind, scope, n), compareIDs(a, b))
}

func compareRevocations(a, b *registry.Revocation) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), strings.Compare(a.ID, b.ID))
}

// Name is the shard's.
func (sh *Shard) Name() controlplane.Shard { return sh.name }

// Get returns the record of that id.
func (sh *Shard) Get(id string) (*registry.Record, bool) {
	return sh.records.Get(func(e *registry.Record) int { return strings.Compare(e.Meta.ID, id) })
}

// Has reports whether Get finds one.
func (sh *Shard) Has(id string) bool {
	_, ok := sh.Get(id)
	return ok
}

// Records yields all records by id.
func (sh *Shard) Records() iter.Seq[*registry.Record] { return sh.records.All() }

// OfKind yields the records of the kind in order of id, those after the id
// after ("" = from the first).
func (sh *Shard) OfKind(kind registry.Kind, after string) iter.Seq[*registry.Record] {
	prefix := kind.Prefix() + "_"
	first := max(after, prefix)
	return func(yield func(*registry.Record) bool) {
		for r := range sh.records.From(func(e *registry.Record) int { return strings.Compare(e.Meta.ID, first) }) {
			if !strings.HasPrefix(r.Meta.ID, prefix) || r.Meta.ID != after && !yield(r) {
				return
			}
		}
	}
}

// Named yields the upstreams, routes or regions by name.
func (sh *Shard) Named(kind registry.Kind) iter.Seq[*registry.Record] {
	return func(yield func(*registry.Record) bool) {
		for r := range sh.names.From(func(e *registry.Record) int { return probeName(e, kind, "", "") }) {
			if r.Kind != kind || !yield(r) {
				return
			}
		}
	}
}

// ByName returns the record of that name: an upstream, route or region (scope
// empty), or a project of the org that scope names. Of several (only a faulty
// home sends them) it is the one with the lowest id.
func (sh *Shard) ByName(kind registry.Kind, scope, wanted string) (*registry.Record, bool) {
	for r := range sh.names.From(func(e *registry.Record) int { return probeName(e, kind, scope, wanted) }) {
		return r, probeName(r, kind, scope, wanted) == 0
	}
	return nil, false
}

// Namesake returns another record of r's kind that bears its unique name, and
// the name.
func (sh *Shard) Namesake(r *registry.Record) (other *registry.Record, common string, ok bool) {
	scope, n := name(r)
	other, ok = sh.ByName(r.Kind, scope, n)
	return other, n, ok && other.Meta.ID != r.Meta.ID
}

// Children yields the records of the kind that belong to parent, in order of id
// from after (exclusive): keys of a project; projects, policies and relocations
// of an org.
func (sh *Shard) Children(kind registry.Kind, parentID, after string) iter.Seq[*registry.Record] {
	first := max(after, kind.Prefix()+"_")
	probe := func(e *registry.Record) int {
		return cmp.Or(strings.Compare(Parent(e), parentID), strings.Compare(e.Meta.ID, first))
	}
	return func(yield func(*registry.Record) bool) {
		for r := range sh.links.From(probe) {
			if r.Kind != kind || Parent(r) != parentID || r.Meta.ID != after && !yield(r) {
				return
			}
		}
	}
}

// HasChild reports whether Children yields any.
func (sh *Shard) HasChild(kind registry.Kind, parentID string) bool {
	_, ok := sh.child(kind, parentID)
	return ok
}

// child returns the first of the Children.
func (sh *Shard) child(kind registry.Kind, parentID string) (*registry.Record, bool) {
	first := kind.Prefix() + "_"
	for r := range sh.links.From(func(e *registry.Record) int {
		return cmp.Or(strings.Compare(Parent(e), parentID), strings.Compare(e.Meta.ID, first))
	}) {
		return r, r.Kind == kind && Parent(r) == parentID
	}
	return nil, false
}

// Revocation returns the member of the safety set.
func (sh *Shard) Revocation(kind registry.Kind, id string) (*registry.Revocation, bool) {
	return sh.revoked.Get(func(e *registry.Revocation) int {
		return cmp.Or(cmp.Compare(e.Kind, kind), strings.Compare(e.ID, id))
	})
}

// Revocations yields the safety set by (kind, id).
func (sh *Shard) Revocations() iter.Seq[*registry.Revocation] { return sh.revoked.All() }
