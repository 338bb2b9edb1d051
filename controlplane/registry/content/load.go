package content

import (
	"fmt"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/tree"
)

// Load returns the content of these records and safety set, in any
// order. It takes ownership of them.
func Load(shard controlplane.Shard, records []*registry.Record, revoked []*registry.Revocation) (Shard, error) {
	sh := New(shard)
	var twice **registry.Record
	if sh.records, twice = tree.Build(compareIDs, records); twice != nil {
		return sh, fmt.Errorf("record %s appears twice", (*twice).Meta.ID)
	}
	var again **registry.Revocation
	if sh.revoked, again = tree.Build(compareRevocations, revoked); again != nil {
		return sh, fmt.Errorf("revocation of %s appears twice", (*again).ID)
	}
	var links, names []*registry.Record
	for _, r := range records {
		if Parent(r) != "" {
			links = append(links, r)
		}
		if _, n := name(r); n != "" {
			names = append(names, r)
		}
	}
	slices.SortFunc(links, compareLinks)
	slices.SortFunc(names, compareNames)
	project := ""
	for _, r := range links {
		if r.Key != nil && r.Key.Project != project {
			project = r.Key.Project
		}
		sh.intern(r, project)
	}
	sh.links = tree.New(compareLinks, links...)
	sh.names = tree.New(compareNames, names...)
	for _, v := range revoked {
		sh.mark(v)
	}
	return sh, nil
}
