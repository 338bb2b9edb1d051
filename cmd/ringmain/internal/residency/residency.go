// Package residency says which models each jurisdiction serves, and what is left of
// that when a region is lost. Pure: records in, report out.
package residency

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// Unpinned stands for all jurisdictions together, where requests without a pin
// may run.
const Unpinned = "any"

// Report says which models are served where, and what is left of that
// when a region is lost. It is made from what the control plane holds: upstreams
// that are enabled, in regions that are not drained.
type Report struct {
	Jurisdictions []Jurisdiction `json:"jurisdictions"`
}

// Jurisdiction is what requests pinned to one jurisdiction can count on.
type Jurisdiction struct {
	Jurisdiction       string   `json:"jurisdiction"` // "any" = requests without a pin
	Regions            []string `json:"regions"`      // that are not drained
	Drained            []string `json:"drained,omitempty"`
	SurvivesRegionLoss bool     `json:"survives_region_loss"` // whichever region is lost, every model goes on
	MultiRegion        bool     `json:"multi_region"`         // records there can be acknowledged so; drained regions hold records too
	Models             []Model  `json:"models"`
}

// Model is one model, over one dialect, in a jurisdiction; at some
// endpoints only, if it is served at others elsewhere.
type Model struct {
	Model              string              `json:"model"`
	Dialect            string              `json:"dialect"`
	Endpoints          []string            `json:"endpoints,omitempty"`      // that this is about, where others fare differently; empty = all of the dialect
	Regions            []string            `json:"regions"`                  // that serve it, by the provider of the route's first choice
	ZeroRetention      []string            `json:"zero_retention"`           // those of them that serve it with zero retention
	CrossProvider      []string            `json:"cross_provider,omitempty"` // further regions, for projects that allow other providers
	Dedicated          map[string][]string `json:"dedicated,omitempty"`      // by org id: regions that serve it to that org alone
	SurvivesRegionLoss bool                `json:"survives_region_loss"`     // false also where nothing serves it now
	ZeroSurvives       bool                `json:"zero_retention_survives_region_loss"`
	LostWith           []string            `json:"lost_with"` // regions without which nothing serves it
}

// Of makes the report.
func Of(regions []api.Region, upstreams []api.Upstream, routes []api.Route) Report {
	jurisdictions := map[string]bool{Unpinned: true}
	for i := range regions {
		jurisdictions[regions[i].Jurisdiction] = true
	}
	byName := make(map[string]*api.Upstream, len(upstreams))
	for i := range upstreams {
		byName[upstreams[i].Name] = &upstreams[i]
	}
	names := slices.Sorted(maps.Keys(jurisdictions))
	names = append(slices.DeleteFunc(names, func(j string) bool { return j == Unpinned }), Unpinned) // last
	var out Report
	for _, name := range names {
		j := Jurisdiction{Jurisdiction: name, Regions: []string{}, Models: []Model{}}
		for i := range regions {
			switch r := &regions[i]; {
			case name != Unpinned && r.Jurisdiction != name:
			case r.State == "drained":
				j.Drained = append(j.Drained, r.Name)
			default:
				j.Regions = append(j.Regions, r.Name)
			}
		}
		slices.Sort(j.Regions)
		slices.Sort(j.Drained)
		j.SurvivesRegionLoss, j.MultiRegion = len(j.Regions) > 1, len(j.Regions)+len(j.Drained) > 1
		for i := range routes {
			j.Models = append(j.Models, modelsOf(&routes[i], byName, j.Regions)...)
		}
		slices.SortFunc(j.Models, func(a, b Model) int {
			return cmp.Or(cmp.Compare(a.Model, b.Model), cmp.Compare(a.Dialect, b.Dialect), slices.Compare(a.Endpoints, b.Endpoints))
		})
		for i := range j.Models {
			j.SurvivesRegionLoss = j.SurvivesRegionLoss && j.Models[i].SurvivesRegionLoss
		}
		out.Jurisdictions = append(out.Jurisdictions, j)
	}
	return out
}

// modelsOf gives the route's model as the regions serve it: for each dialect
// in which some upstream of it speaks, and apart for endpoints that fare
// differently.
func modelsOf(r *api.Route, upstreams map[string]*api.Upstream, regions []string) []Model {
	var out []Model
	for _, dialect := range [...]string{"anthropic", "openai"} {
		from, paths := len(out), registry.EndpointsOf(dialect)
		for _, path := range paths {
			m, ok := modelAt(r, upstreams, regions, dialect, path)
			if !ok {
				continue
			}
			same := slices.IndexFunc(out[from:], func(o Model) bool {
				o.Endpoints = nil
				return reflect.DeepEqual(o, m)
			})
			if same < 0 {
				same, out = len(out)-from, append(out, m)
			}
			out[from+same].Endpoints = append(out[from+same].Endpoints, path)
		}
		if len(out) == from+1 && len(out[from].Endpoints) == len(paths) {
			out[from].Endpoints = nil
		}
	}
	return out
}

// modelAt is the route's model at one endpoint; ok: some upstream of it answers there.
func modelAt(r *api.Route, upstreams map[string]*api.Upstream, regions []string, dialect, path string) (m Model, ok bool) {
	m = Model{Model: r.Model, Dialect: dialect, Regions: []string{}, ZeroRetention: []string{}, LostWith: []string{}}
	var there []*api.Upstream
	provider, first := "", ^uint32(0) // the customer's choice, disabled or not, as the data nodes see it
	for _, t := range r.Targets {
		u := upstreams[t.Upstream]
		if u == nil || u.Dialect != dialect || len(u.Endpoints) > 0 && !slices.Contains(u.Endpoints, path) {
			continue
		}
		there = append(there, u)
		if u.Dedicated == "" && (provider == "" || t.Order < first) {
			provider, first = u.Provider, t.Order
		}
	}
	for _, u := range there {
		switch {
		case u.Disabled || !slices.Contains(regions, u.Region):
		case u.Dedicated != "":
			if m.Dedicated == nil {
				m.Dedicated = map[string][]string{}
			}
			m.Dedicated[u.Dedicated] = insert(m.Dedicated[u.Dedicated], u.Region)
		case u.Provider != provider:
			m.CrossProvider = insert(m.CrossProvider, u.Region)
		default:
			m.Regions = insert(m.Regions, u.Region)
			if KeepsNothing(u.Terms) {
				m.ZeroRetention = insert(m.ZeroRetention, u.Region)
			}
		}
	}
	m.CrossProvider = slices.DeleteFunc(m.CrossProvider, func(region string) bool { return slices.Contains(m.Regions, region) })
	m.SurvivesRegionLoss, m.ZeroSurvives = len(m.Regions) > 1, len(m.ZeroRetention) > 1
	if len(m.Regions) == 1 {
		m.LostWith = m.Regions
	}
	return m, len(there) > 0
}

// KeepsNothing is what zero retention asks of an upstream's terms.
func KeepsNothing(t api.Terms) bool {
	return t.Retention == "zero" && (t.PromptCache == "none" || t.PromptCache == "memory")
}

// insert adds s to a sorted list, once.
func insert(list []string, s string) []string {
	i, found := slices.BinarySearch(list, s)
	if found {
		return list
	}
	return slices.Insert(list, i, s)
}

// OneRegion is what one region alone means for records.
func OneRegion(jurisdiction, region string) string {
	whose := "the cluster has one region"
	if jurisdiction != Unpinned {
		whose = fmt.Sprintf("jurisdiction %s has one region", jurisdiction)
	}
	return fmt.Sprintf("%s (%s): records there cannot be acknowledged multi-region, and only a sealed backup kept elsewhere survives its loss", whose, region)
}
