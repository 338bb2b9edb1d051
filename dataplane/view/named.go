package view

import (
	"maps"
	"slices"
	"strings"

	"ringmain/controlplane/registry"
)

// named is a small table that is read by name: routes, upstreams, regions.
// Every change builds a new one.
type named struct {
	byID   map[string]*registry.Record // as they came
	byName map[string]*registry.Record
	list   []*registry.Record // by name
}

func (n named) find(name string) (*registry.Record, bool) {
	rec, ok := n.byName[name]
	return rec, ok
}

// publicName is what a record of a named table is read by.
func publicName(r *registry.Record) string {
	switch r.Kind {
	case registry.KindRoute:
		return r.Route.Model
	case registry.KindUpstream:
		return r.Upstream.Name
	case registry.KindRegion:
		return r.Region.Name
	default:
		return ""
	}
}

// edited returns a table after change was applied to a copy of the id map, which
// is read as callable says.
// Two records of one name cannot come from a sound registry; should it happen,
// all nodes agree on the lower id.
func (n named) edited(change func(byID map[string]*registry.Record), callable func(*registry.Record) *registry.Record) named {
	byID := maps.Clone(n.byID)
	if byID == nil {
		byID = make(map[string]*registry.Record)
	}
	change(byID)
	byName := make(map[string]*registry.Record, len(byID))
	for id, rec := range byID {
		name := publicName(rec)
		if other, taken := byName[name]; !taken || id < other.Meta.ID {
			byName[name] = callable(rec)
		}
	}
	list := slices.SortedFunc(maps.Values(byName), func(a, b *registry.Record) int {
		return strings.Compare(publicName(a), publicName(b))
	})
	return named{byID: byID, byName: byName, list: list}
}
