package manage

import (
	"fmt"
	"maps"
	"slices"

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
	for _, name := range slices.Sorted(maps.Keys(pins)) {
		p := pins[name]
		where := p.jurisdiction
		why := fmt.Sprintf("%q is pinned to %s", name, where)
		if where == "" {
			if p.roaming || !slices.Contains(slices.Collect(maps.Values(jurisdiction)), "eu") {
				continue
			}
			where, why = "eu", fmt.Sprintf("requests of %q that enter in eu stay there, since the org does not roam", name)
		}
		allowed := p.models
		if allowed == nil {
			allowed = models
		}
		for _, model := range allowed {
			if len(serves[model]) > 0 && !serves[model][where] {
				out = append(out, fmt.Sprintf("%s, but model %q has no enabled upstream in a region of %s: such requests will be refused", why, model, where))
			}
		}
	}
	return out
}

// servedIn gives, by model, the jurisdictions in which an enabled upstream serves it.
func servedIn(m *manifest, w *world, jurisdiction map[string]string) map[string]map[string]bool {
	where := map[string]string{} // jurisdiction of an enabled upstream
	add := func(name, region string, disabled bool) {
		delete(where, name)
		if !disabled {
			where[name] = jurisdiction[region]
		}
	}
	for name, u := range w.upstreams {
		add(name, u.Region, u.Disabled)
	}
	for _, u := range m.Upstreams {
		add(u.V.Name, u.V.Region.V, u.V.Disabled)
	}
	serves := map[string]map[string]bool{}
	addRoute := func(in api.RouteInput) {
		serves[in.Model] = map[string]bool{}
		for _, t := range in.Targets {
			if j, enabled := where[t.Upstream]; enabled {
				serves[in.Model][j] = true
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
	jurisdiction string // "" = anywhere
	roaming      bool
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
			p.jurisdiction = o.Jurisdiction
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
	switch {
	case len(policy.Models) == 0:
	case p.models == nil:
		p.models = policy.Models
	default:
		p.models = slices.DeleteFunc(slices.Clone(p.models), func(m string) bool { return !slices.Contains(policy.Models, m) })
	}
	return p
}
