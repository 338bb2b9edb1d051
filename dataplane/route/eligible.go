package route

import (
	"slices"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/view"
)

// KeepsNothing reports whether an upstream under these terms may see
// zero-retention requests: nothing is retained, and what is cached to make the
// next prompt cheaper stays in memory.
func KeepsNothing(t *registry.Terms) bool {
	return t.Retention == "zero" && (t.PromptCache == "none" || t.PromptCache == "memory")
}

// has reports whether a node with these pools is of pool. A node that names
// none is of those that every cluster has.
func has(pools []string, pool string) bool {
	if len(pools) == 0 {
		return pool == "" || pool == policy.PoolStandard || pool == policy.PoolZeroRetention
	}
	return pool == "" || slices.Contains(pools, pool)
}

// serves reports whether up answers at path; "" = any.
func serves(up *registry.Upstream, path string) bool {
	return path == "" || len(up.Endpoints) == 0 || slices.Contains(up.Endpoints, path)
}

// reaches reports whether a request under d could ever use up: test keys see
// simulated upstreams only, and nobody sees what is dedicated to others.
func reaches(d *policy.Decision, up *registry.Upstream) bool {
	if d.Class == classTest && !up.Simulated {
		return false
	}
	return up.Dedicated == "" || d.Billed != nil && up.Dedicated == d.Billed.Project.Org
}

// permits reports whether policy lets a request under d, which reaches up, use it.
func permits(d *policy.Decision, up *registry.Upstream) bool {
	if d.ZeroRetention && !KeepsNothing(&up.Terms) {
		return false
	}
	return !d.Dedicated() || up.Dedicated != ""
}

// Offer is what a model is to a caller.
type Offer struct {
	Owner         string   // provider of the first choice
	Regions       []string // that may serve it, by name
	Jurisdictions []string // of those
	Retention     []string // classes that can be had: metadata, zero
	Endpoints     []string // paths at which it answers, as the registry lists them
}

// Offered says what the route is to a caller under d, and whether it is
// anything at all: disabled upstreams and drained regions do not count.
func Offered(v *view.View, d *policy.Decision, r *registry.Route) (Offer, bool) {
	var o Offer
	if !d.AllowsModel(r.Model) {
		return o, false
	}
	first := ^uint32(0)
	for _, dialect := range [...]string{"openai", "anthropic"} {
		for _, path := range registry.EndpointsOf(dialect) {
			provider := ""
			if !d.CrossProvider {
				provider = chosen(v, d, r, dialect, path)
			}
			for i := range r.Targets {
				t := &r.Targets[i]
				rec, ok := v.Upstream(t.Upstream)
				if !ok || !answersAt(rec.Upstream, d, dialect, path) || provider != "" && rec.Upstream.Provider != provider ||
					rec.Upstream.Disabled || !permits(d, rec.Upstream) {
					continue
				}
				if !o.add(v, d, rec.Upstream, path) {
					continue
				}
				if o.Owner == "" || t.Order < first {
					first, o.Owner = t.Order, rec.Upstream.Provider
				}
			}
		}
	}
	return o, len(o.Regions) > 0
}

// add notes that up serves at path, if its region may.
func (o *Offer) add(v *view.View, d *policy.Decision, up *registry.Upstream, path string) bool {
	region, ok := v.Region(up.Region)
	if !ok || region.Region.State == "drained" || !d.MayRun(region.Region.Jurisdiction) {
		return false
	}
	o.Regions = insert(o.Regions, up.Region)
	o.Jurisdictions = insert(o.Jurisdictions, region.Region.Jurisdiction)
	o.Endpoints = insert(o.Endpoints, path)
	if KeepsNothing(&up.Terms) {
		o.Retention = insert(o.Retention, "zero")
	}
	if !d.ZeroRetention {
		o.Retention = insert(o.Retention, "metadata")
	}
	return true
}

func answersAt(up *registry.Upstream, d *policy.Decision, dialect, path string) bool {
	return up.Dialect == dialect && serves(up, path) && reaches(d, up)
}

// chosen is the provider of the customer's choice at path: that of the first
// target that could ever serve there.
func chosen(v *view.View, d *policy.Decision, r *registry.Route, dialect, path string) string {
	provider, first := "", ^uint32(0)
	for i := range r.Targets {
		rec, ok := v.Upstream(r.Targets[i].Upstream)
		if ok && answersAt(rec.Upstream, d, dialect, path) && (provider == "" || r.Targets[i].Order < first) {
			provider, first = rec.Upstream.Provider, r.Targets[i].Order
		}
	}
	return provider
}

// insert adds s to a sorted list, once.
func insert(list []string, s string) []string {
	i, found := slices.BinarySearch(list, s)
	if found {
		return list
	}
	return slices.Insert(list, i, s)
}
