package manage

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// unpinned stands for all jurisdictions together, where requests without a pin
// may run.
const unpinned = "any"

// ResidencyReport says which models are served where, and what is left of that
// when a region is lost. It is made from what the control plane holds: upstreams
// that are enabled, in regions that are not drained.
type ResidencyReport struct {
	Jurisdictions []JurisdictionResidency `json:"jurisdictions"`
}

// JurisdictionResidency is what requests pinned to one jurisdiction can count on.
type JurisdictionResidency struct {
	Jurisdiction       string           `json:"jurisdiction"` // "any" = requests without a pin
	Regions            []string         `json:"regions"`      // that are not drained
	Drained            []string         `json:"drained,omitempty"`
	SurvivesRegionLoss bool             `json:"survives_region_loss"` // whichever region is lost, every model goes on
	MultiRegion        bool             `json:"multi_region"`         // records there can be acknowledged so; drained regions hold records too
	Models             []ModelResidency `json:"models"`
}

// ModelResidency is one model, over one dialect, in a jurisdiction; at some
// endpoints only, if it is served at others elsewhere.
type ModelResidency struct {
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

// Residency makes the report.
func Residency(regions []api.Region, upstreams []api.Upstream, routes []api.Route) ResidencyReport {
	jurisdictions := map[string]bool{unpinned: true}
	for i := range regions {
		jurisdictions[regions[i].Jurisdiction] = true
	}
	byName := make(map[string]*api.Upstream, len(upstreams))
	for i := range upstreams {
		byName[upstreams[i].Name] = &upstreams[i]
	}
	names := slices.Sorted(maps.Keys(jurisdictions))
	names = append(slices.DeleteFunc(names, func(j string) bool { return j == unpinned }), unpinned) // last
	var out ResidencyReport
	for _, name := range names {
		j := JurisdictionResidency{Jurisdiction: name, Regions: []string{}, Models: []ModelResidency{}}
		for i := range regions {
			switch r := &regions[i]; {
			case name != unpinned && r.Jurisdiction != name:
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
		slices.SortFunc(j.Models, func(a, b ModelResidency) int {
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
func modelsOf(r *api.Route, upstreams map[string]*api.Upstream, regions []string) []ModelResidency {
	var out []ModelResidency
	for _, dialect := range [...]string{"anthropic", "openai"} {
		from, paths := len(out), registry.EndpointsOf(dialect)
		for _, path := range paths {
			m, ok := modelAt(r, upstreams, regions, dialect, path)
			if !ok {
				continue
			}
			same := slices.IndexFunc(out[from:], func(o ModelResidency) bool {
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
func modelAt(r *api.Route, upstreams map[string]*api.Upstream, regions []string, dialect, path string) (m ModelResidency, ok bool) {
	m = ModelResidency{Model: r.Model, Dialect: dialect, Regions: []string{}, ZeroRetention: []string{}, LostWith: []string{}}
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
			if keepsNothing(u.Terms) {
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

// keepsNothing is what zero retention asks of an upstream's terms.
func keepsNothing(t api.Terms) bool {
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

func (t *tool) residencyCommand() *cobra.Command {
	return group("residency", "see what stays where", "  ringmain residency report",
		t.command("report", "which models each jurisdiction serves, and what survives the loss of a region", "  ringmain residency report\n  ringmain residency report -o json", func(ctx context.Context, c *Client, _ []string) error {
			regions, err := c.Regions(ctx)
			if err != nil {
				return err
			}
			upstreams, err := c.Upstreams(ctx)
			if err != nil {
				return err
			}
			routes, err := c.Routes(ctx)
			if err != nil {
				return err
			}
			report := Residency(regions, upstreams, routes)
			if t.output != "table" {
				return t.encode(report)
			}
			return t.showResidency(&report)
		}))
}

// showResidency prints a table per jurisdiction, with a column for the loss of
// each of its regions.
func (t *tool) showResidency(report *ResidencyReport) error {
	for i := range report.Jurisdictions {
		j := &report.Jurisdictions[i]
		if i > 0 {
			_, _ = fmt.Fprintln(t.env.Stdout) // the table's own error tells
		}
		if _, err := fmt.Fprintln(t.env.Stdout, j.heading()); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		if all := append(slices.Clone(j.Regions), j.Drained...); len(all) == 1 {
			if _, err := fmt.Fprintln(t.env.Stdout, "  "+clean(cannotReach(j.Jurisdiction, all[0]))); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		if len(j.Models) == 0 {
			continue
		}
		w := tabwriter.NewWriter(t.env.Stdout, 0, 0, 2, ' ', 0)
		heads := []string{"  MODEL", "SERVED-IN", "ZERO-RETENTION"}
		for _, region := range j.Regions {
			heads = append(heads, "WITHOUT-"+strings.ToUpper(region))
		}
		line(w, heads)
		for k := range j.Models {
			line(w, j.row(k))
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// heading says in a line what the jurisdiction can count on.
func (j *JurisdictionResidency) heading() string {
	name := clean(j.Jurisdiction)
	if j.Jurisdiction == unpinned {
		name = "not pinned"
	}
	where := "no region is in service"
	if len(j.Regions) > 0 {
		where = clean(strings.Join(j.Regions, ", "))
	}
	if len(j.Drained) > 0 {
		where += " (drained: " + clean(strings.Join(j.Drained, ", ")) + ")"
	}
	why := ""
	switch alone := j.alone(); {
	case j.SurvivesRegionLoss:
	case len(j.Regions) < 2:
		why = " (there is no second region)"
	default:
		why = " (without a second home: " + clean(strings.Join(alone, ", ")) + ")"
	}
	return fmt.Sprintf("%s: %s; survives the loss of any one region: %s%s", name, where, yesNo(j.SurvivesRegionLoss), why)
}

// alone lists the models that not more than one region serves.
func (j *JurisdictionResidency) alone() []string {
	var models []string
	for i := range j.Models {
		if m := &j.Models[i]; !m.SurvivesRegionLoss {
			models = append(models, m.Model)
		}
	}
	return slices.Compact(models)
}

// row is a model's line: where it is served, and what the loss of each region leaves.
func (j *JurisdictionResidency) row(k int) []string {
	m := &j.Models[k]
	name := m.Model
	for i := range j.Models {
		if i != k && j.Models[i].Model == m.Model && j.Models[i].Dialect != m.Dialect {
			name += " (" + m.Dialect + ")"
			break
		}
	}
	switch n := len(m.Endpoints); n {
	case 0:
	case 1:
		name += " at " + m.Endpoints[0]
	default:
		name += fmt.Sprintf(" at %s and %d more", m.Endpoints[0], n-1)
	}
	served := strings.Join(m.Regions, ", ")
	if len(m.CrossProvider) > 0 {
		served += " (other providers: " + strings.Join(m.CrossProvider, ", ") + ")"
	}
	for _, org := range slices.Sorted(maps.Keys(m.Dedicated)) {
		served += " (" + org + " only: " + strings.Join(m.Dedicated[org], ", ") + ")"
	}
	cells := []string{"  " + clean(name), clean(strings.TrimSpace(served)), clean(strings.Join(m.ZeroRetention, ", "))}
	for _, lost := range j.Regions {
		without := func(list []string) bool {
			return slices.ContainsFunc(list, func(r string) bool { return r != lost })
		}
		left := "served"
		switch {
		case len(m.Regions) == 0:
			left = "not served"
		case !without(m.Regions):
			left = "LOST"
		case len(m.ZeroRetention) > 0 && !without(m.ZeroRetention):
			left = "served, but not with zero retention"
		}
		cells = append(cells, left)
	}
	return cells
}
