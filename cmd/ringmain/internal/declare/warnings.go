package declare

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"ringmain/cmd/ringmain/internal/residency"
	"ringmain/controlplane/admin/api"
)

// warnings says which requests will be refused once the manifest is applied,
// for want of an upstream where they may run. A model that merely has no
// upstream in some region is no cause: requests are forwarded.
func warnings(m *manifest, w *world) []string {
	jurisdiction := map[string]string{} // of a region
	for name, r := range w.regions {
		jurisdiction[name] = r.Jurisdiction
	}
	for _, r := range m.Regions {
		jurisdiction[r.V.Name] = r.V.Jurisdiction
	}
	serves := servedIn(m, w, jurisdiction)
	models := slices.Sorted(maps.Keys(serves))
	var out []string
	for _, model := range models {
		if len(serves[model]) == 0 {
			out = append(out, fmt.Sprintf("model %q has no enabled upstream: every request for it will be refused", model))
		}
	}
	pins := pinsOf(m, w)
	out = append(out, alone(m, jurisdiction, pins)...)
	for _, name := range slices.Sorted(maps.Keys(pins)) {
		p := pins[name]
		why := fmt.Sprintf("%q is pinned to %s", name, p.jurisdiction)
		if p.jurisdiction == "" && !p.roaming && slices.Contains(slices.Collect(maps.Values(jurisdiction)), "eu") {
			p.jurisdiction, why = "eu", fmt.Sprintf("requests of %q that enter in eu stay there, since the org does not roam", name)
		}
		org, _, _ := strings.Cut(name, "/")
		allowed := p.models
		if allowed == nil {
			allowed = models
		}
		for _, model := range allowed {
			if what := p.lacks(orgID(w, org), serves[model]); what != "" {
				out = append(out, fmt.Sprintf("%s model %q has no enabled upstream %s: such requests will be refused", p.because(name, why, what), model, what))
			}
		}
	}
	return out
}

// alone says which records that the manifest is about only one region will
// hold: nothing written to them can be acknowledged multi-region.
func alone(m *manifest, jurisdiction map[string]string, pins map[string]pin) (out []string) {
	holders := map[string][]string{} // by jurisdiction; any = all regions
	for region, j := range jurisdiction {
		holders[j] = append(holders[j], region)
		holders[residency.Unpinned] = append(holders[residency.Unpinned], region)
	}
	about := map[string]bool{} // jurisdictions that the manifest puts something into
	for _, r := range m.Regions {
		about[r.V.Jurisdiction] = true
	}
	for _, p := range pins {
		about[cmp.Or(p.home, residency.Unpinned)] = true
	}
	for _, j := range slices.Sorted(maps.Keys(about)) {
		if len(holders[j]) == 1 {
			out = append(out, residency.OneRegion(j, holders[j][0]))
		}
	}
	return out
}

const keepingNothing = "that keeps nothing"

// place is where an enabled upstream serves, and for whom.
type place struct {
	jurisdiction string
	zero         bool   // it keeps nothing
	dedicated    string // id or, before it has one, name of the only org
}

// lacks says what none of the places is that the pin asks for, or "".
func (p pin) lacks(org string, places []place) string {
	if len(places) == 0 {
		return "" // said already
	}
	left := slices.DeleteFunc(slices.Clone(places), func(at place) bool { return p.jurisdiction != "" && at.jurisdiction != p.jurisdiction })
	if len(left) == 0 {
		return "in a region of " + p.jurisdiction
	}
	left = slices.DeleteFunc(left, func(at place) bool {
		return at.dedicated != "" && at.dedicated != org || p.dedicated && at.dedicated == ""
	})
	if len(left) == 0 {
		return "that the org may use"
	}
	if p.zero && !slices.ContainsFunc(left, func(at place) bool { return at.zero }) {
		if p.jurisdiction != "" {
			return keepingNothing + " in a region of " + p.jurisdiction
		}
		return keepingNothing
	}
	return ""
}

// because is the first half of a warning that ends in what.
func (p pin) because(name, why, what string) string {
	switch {
	case strings.HasPrefix(what, "in a region of"):
	case strings.HasPrefix(what, keepingNothing):
		why = fmt.Sprintf("%q wants zero retention", name)
	case p.dedicated:
		why = fmt.Sprintf("%q uses its own upstreams only", name)
	default:
		why = fmt.Sprintf("%q would use it", name)
	}
	return why + ", but"
}

// orgID is an org's id, or its name before it has one.
func orgID(w *world, name string) string { return cmp.Or(w.orgs[name].ID, name) }

// servedIn gives, by model, where enabled upstreams serve it.
func servedIn(m *manifest, w *world, jurisdiction map[string]string) map[string][]place {
	where := map[string]place{} // of an enabled upstream
	add := func(name, region string, disabled bool, terms api.Terms, dedicated string) {
		delete(where, name)
		if !disabled {
			where[name] = place{jurisdiction[region], residency.KeepsNothing(terms), dedicated}
		}
	}
	for name, u := range w.upstreams {
		add(name, u.Region, u.Disabled, u.Terms, u.Dedicated)
	}
	for _, u := range m.Upstreams {
		add(u.V.Name, u.V.Region.V, u.V.Disabled, api.Terms(u.V.Terms), orgID(w, u.V.Dedicated.V))
	}
	serves := map[string][]place{}
	addRoute := func(in api.RouteInput) {
		serves[in.Model] = []place{}
		for _, t := range in.Targets {
			if at, enabled := where[t.Upstream]; enabled {
				serves[in.Model] = append(serves[in.Model], at)
			}
		}
	}
	for _, r := range w.routes {
		addRoute(r.RouteInput)
	}
	for _, r := range m.Routes {
		addRoute(r.V.input())
	}
	return serves
}

// pin is where the requests of an org or project must run.
type pin struct {
	home         string // jurisdiction that the org's records belong to; "" = none
	jurisdiction string // "" = anywhere
	roaming      bool
	zero         bool     // zero retention only
	dedicated    bool     // the org's own upstreams only
	models       []string // nil = all
}

// pinsOf narrows each org of the manifest, and each of its projects with a policy, as policy does.
func pinsOf(m *manifest, w *world) map[string]pin {
	policies := map[string]api.PolicyInput{}
	for name, p := range w.policies {
		policies[name] = p.PolicyInput
	}
	for _, p := range m.Policies {
		policies[scope(p.V.Org.V, p.V.Project.V)] = p.V.input()
	}
	projects := map[string][]string{} // by org
	addProject := func(org, name string) {
		if full := scope(org, name); !slices.Contains(projects[org], full) {
			projects[org] = append(projects[org], full)
		}
	}
	for name, o := range w.orgs {
		for _, p := range w.projects {
			if p.Org == o.ID {
				addProject(name, p.Name)
			}
		}
	}
	for _, p := range m.Projects {
		addProject(p.V.Org.V, p.V.Name)
	}
	orgs := map[string]api.OrgInput{}
	for name, o := range w.orgs {
		orgs[name] = o.OrgInput
	}
	for _, o := range m.Orgs {
		in := orgs[o.V.Name]
		in.Roaming = o.V.Roaming
		if o.V.Jurisdiction != "" {
			in.Jurisdiction = o.V.Jurisdiction
		}
		orgs[o.V.Name] = in
	}
	pins := map[string]pin{}
	for name, o := range orgs {
		p := pin{roaming: o.Roaming}
		if o.Jurisdiction != "any" {
			p.home, p.jurisdiction = o.Jurisdiction, o.Jurisdiction
		}
		p = p.narrowed(policies[name])
		pins[name] = p
		for _, full := range projects[name] {
			if policy, own := policies[full]; own {
				pins[full] = p.narrowed(policy)
			}
		}
	}
	return pins
}

// narrowed is p under a further policy.
func (p pin) narrowed(policy api.PolicyInput) pin {
	if policy.Residency != "" {
		p.jurisdiction = policy.Residency
	}
	p.zero = p.zero || policy.NoRetention
	p.dedicated = p.dedicated || policy.Dedicated
	switch {
	case len(policy.Models) == 0:
	case p.models == nil:
		p.models = policy.Models
	default:
		p.models = slices.DeleteFunc(slices.Clone(p.models), func(m string) bool { return !slices.Contains(policy.Models, m) })
	}
	return p
}
