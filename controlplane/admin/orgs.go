package admin

import (
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// OrgPath names an org in a path.
type OrgPath struct {
	Org string `path:"org" doc:"Id of the org"`
}

func showOrg(m api.Meta, o *registry.Org) api.Org {
	return api.Org{Meta: m, OrgInput: api.OrgInput{
		Name: o.Name, Plan: o.Plan, State: o.State, Jurisdiction: o.Jurisdiction, Roaming: o.Roaming,
	}}
}

func orgOf(in api.OrgInput, jurisdiction string) *registry.Org {
	return &registry.Org{
		Name: in.Name, Plan: orDefault(in.Plan, "trial"), State: orDefault(in.State, "unverified"),
		Jurisdiction: orDefault(in.Jurisdiction, jurisdiction), Roaming: in.Roaming,
	}
}

func (a *API) orgs(h huma.API) {
	const tag = "Orgs"
	byPath := byID(registry.KindOrg, "org")
	add(a, h, operation{
		id: "list-orgs", method: http.MethodGet, path: "/orgs", tag: tag, summary: "List orgs", place: byQuery,
		description: "Lists the orgs that this region holds. Orgs pinned elsewhere are listed by jurisdiction: not_listed names those.",
	}, a.listOrgs)
	add(a, h, operation{
		id: "create-org", method: http.MethodPost, path: "/orgs", tag: tag, summary: "Create an org", status: http.StatusCreated, makes: true, place: byJurisdiction,
		description: "An unpinned org belongs to the region that is asked; one with a jurisdiction to that jurisdiction's regions, for good.",
	}, a.createOrg)
	add(a, h, operation{
		id: "get-org", method: http.MethodGet, path: "/orgs/{org}", tag: tag, summary: "Read an org", place: byPath,
	}, func(_ context.Context, in *OrgPath) (*answer[api.Org], error) {
		rec, err := a.get(registry.KindOrg, in.Org)
		if err != nil {
			return nil, err
		}
		return read(rec, showOrg(meta(rec), rec.Org)), nil
	})
	add(a, h, operation{
		id: "update-org", method: http.MethodPut, path: "/orgs/{org}", tag: tag, summary: "Replace an org", place: byPath,
	}, func(ctx context.Context, in *struct {
		OrgPath
		Matching
		Body api.OrgInput
	}) (*answer[api.Org], error) {
		w, err := a.updated(ctx, registry.KindOrg, in.Org, in.Matching, func(r *registry.Record) error {
			r.Org = orgOf(in.Body, r.Org.Jurisdiction)
			return nil
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "", showOrg(meta(w.rec), w.rec.Org)), nil
	})
	add(a, h, operation{
		id: "delete-org", method: http.MethodDelete, path: "/orgs/{org}", tag: tag, summary: "Delete an org without projects and policies", place: byPath,
	}, func(ctx context.Context, in *struct {
		OrgPath
		Matching
	}) (*answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindOrg, in.Org, in.Matching)
	})
}

type listOrgsInput struct {
	Paging
	Jurisdiction string `query:"jurisdiction" doc:"Only orgs of this jurisdiction, asked of a region in it if need be; any = unpinned"`
	Name         string `query:"name" doc:"Only orgs of exactly this name"`
}

func (a *API) listOrgs(_ context.Context, in *listOrgsInput) (*answer[api.OrgList], error) {
	var list api.OrgList
	var err error
	keep := func(r *registry.Record) bool {
		return (in.Jurisdiction == "" || r.Org.Jurisdiction == in.Jurisdiction) && (in.Name == "" || r.Org.Name == in.Name)
	}
	list.Items, list.Page, err = page(a, in.Paging, func(s *registry.State, after string, limit int) []*registry.Record {
		return s.List(registry.KindOrg, after, limit, keep)
	}, func(r *registry.Record) api.Org { return showOrg(meta(r), r.Org) })
	if err != nil {
		return nil, err
	}
	if in.Jurisdiction == "" {
		a.view(func(s *registry.State) { list.NotListed = notHeld(s) })
	}
	return &answer[api.OrgList]{Body: list}, nil
}

// notHeld lists the jurisdictions with regions whose pinned shard is not in s.
func notHeld(s *registry.State) []string {
	var missing []string
	for _, r := range s.List(registry.KindRegion, "", 0, nil) {
		if _, held := s.Shard(controlplane.ShardPinned(r.Region.Jurisdiction)); !held {
			missing = append(missing, r.Region.Jurisdiction)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

func (a *API) createOrg(ctx context.Context, in *struct{ Body api.OrgInput }) (*answer[api.Org], error) {
	org := orgOf(in.Body, controlplane.JurisdictionAny)
	if err := checkJurisdiction(org.Jurisdiction); err != nil {
		return nil, err
	}
	shard := orgShard(org.Jurisdiction, exchangeOf(ctx).entry)
	w, err := a.created(ctx, &registry.Record{
		Kind: registry.KindOrg,
		Meta: registry.Meta{ID: a.newID(ctx, registry.KindOrg, org.Jurisdiction, shard), Shard: shard},
		Org:  org,
	})
	if err != nil {
		return nil, err
	}
	return wrote(w, "/admin/v1/orgs/"+w.rec.Meta.ID, showOrg(meta(w.rec), w.rec.Org)), nil
}

// checkJurisdiction refuses what could not stand in an id.
func checkJurisdiction(j string) error {
	ok := len(j) >= 2 && len(j) <= 4
	for _, c := range []byte(j) {
		ok = ok && c >= 'a' && c <= 'z'
	}
	if !ok {
		return invalid("jurisdiction", "Use any, or the two to four lowercase letters of a jurisdiction that has a region.")
	}
	return nil
}

// ProjectPath names a project in a path.
type ProjectPath struct {
	Project string `path:"project" doc:"Id of the project"`
}

func showProject(m api.Meta, p *registry.Project) api.Project {
	return api.Project{Meta: m, Org: p.Org, ProjectInput: api.ProjectInput{Name: p.Name, CrossProvider: p.CrossProvider, Class: p.Class}}
}

func (a *API) projects(h huma.API) {
	const tag = "Projects"
	byOrg, byPath := byID(registry.KindOrg, "org"), byID(registry.KindProject, "project")
	add(a, h, operation{
		id: "list-projects", method: http.MethodGet, path: "/orgs/{org}/projects", tag: tag, summary: "List the projects of an org", place: byOrg,
	}, func(_ context.Context, in *struct {
		OrgPath
		Paging
	}) (*answer[api.ProjectList], error) {
		if _, err := a.get(registry.KindOrg, in.Org); err != nil {
			return nil, err
		}
		var list api.ProjectList
		var err error
		list.Items, list.Page, err = page(a, in.Paging, func(s *registry.State, after string, limit int) []*registry.Record {
			return s.ProjectsOf(in.Org, after, limit)
		}, func(r *registry.Record) api.Project { return showProject(meta(r), r.Project) })
		return &answer[api.ProjectList]{Body: list}, err
	})
	add(a, h, operation{
		id: "create-project", method: http.MethodPost, path: "/orgs/{org}/projects", tag: tag, summary: "Create a project", status: http.StatusCreated, makes: true, place: byOrg,
	}, func(ctx context.Context, in *struct {
		OrgPath
		Body api.ProjectInput
	}) (*answer[api.Project], error) {
		org, err := a.get(registry.KindOrg, in.Org)
		if err != nil {
			return nil, err
		}
		w, err := a.created(ctx, &registry.Record{
			Kind:    registry.KindProject,
			Meta:    a.below(ctx, org, org.Org.Jurisdiction, registry.KindProject),
			Project: &registry.Project{Org: org.Meta.ID, Name: in.Body.Name, CrossProvider: in.Body.CrossProvider, Class: in.Body.Class},
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "/admin/v1/projects/"+w.rec.Meta.ID, showProject(meta(w.rec), w.rec.Project)), nil
	})
	add(a, h, operation{
		id: "get-project", method: http.MethodGet, path: "/projects/{project}", tag: tag, summary: "Read a project", place: byPath,
	}, func(_ context.Context, in *ProjectPath) (*answer[api.Project], error) {
		rec, err := a.get(registry.KindProject, in.Project)
		if err != nil {
			return nil, err
		}
		return read(rec, showProject(meta(rec), rec.Project)), nil
	})
	add(a, h, operation{
		id: "update-project", method: http.MethodPut, path: "/projects/{project}", tag: tag, summary: "Replace a project", place: byPath,
	}, func(ctx context.Context, in *struct {
		ProjectPath
		Matching
		Body api.ProjectInput
	}) (*answer[api.Project], error) {
		w, err := a.updated(ctx, registry.KindProject, in.Project, in.Matching, func(r *registry.Record) error {
			r.Project.Name, r.Project.CrossProvider, r.Project.Class = in.Body.Name, in.Body.CrossProvider, in.Body.Class
			return nil
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "", showProject(meta(w.rec), w.rec.Project)), nil
	})
	add(a, h, operation{
		id: "delete-project", method: http.MethodDelete, path: "/projects/{project}", tag: tag, summary: "Delete a project without keys and policy", place: byPath,
	}, func(ctx context.Context, in *struct {
		ProjectPath
		Matching
	}) (*answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindProject, in.Project, in.Matching)
	})
}

// below gives the id and shard of a new record that belongs to parent.
func (a *API) below(ctx context.Context, parent *registry.Record, jurisdiction string, kind registry.Kind) registry.Meta {
	return registry.Meta{
		ID:    a.newID(ctx, kind, jurisdiction, parent.Meta.Shard),
		Shard: parent.Meta.Shard,
	}
}

// PolicyPath names a policy in a path.
type PolicyPath struct {
	Policy string `path:"policy" doc:"Id of the policy"`
}

func showPolicy(m api.Meta, p *registry.Policy) api.Policy {
	return api.Policy{Meta: m, Org: p.Org, PolicyInput: api.PolicyInput{
		Project: p.Project, Residency: p.Residency, NoRetention: p.NoRetention, Models: p.Models, Dedicated: p.Dedicated,
	}}
}

func policyOf(in api.PolicyInput, org string) *registry.Policy {
	return &registry.Policy{Org: org, Project: in.Project, Residency: in.Residency, NoRetention: in.NoRetention, Models: in.Models, Dedicated: in.Dedicated}
}

func (a *API) policies(h huma.API) {
	const tag = "Policies"
	byOrg, byPath := byID(registry.KindOrg, "org"), byID(registry.KindPolicy, "policy")
	add(a, h, operation{
		id: "list-policies", method: http.MethodGet, path: "/orgs/{org}/policies", tag: tag, summary: "List the policies of an org and its projects", place: byOrg,
	}, func(_ context.Context, in *struct {
		OrgPath
		Paging
	}) (*answer[api.PolicyList], error) {
		if _, err := a.get(registry.KindOrg, in.Org); err != nil {
			return nil, err
		}
		var list api.PolicyList
		var err error
		list.Items, list.Page, err = page(a, in.Paging, func(s *registry.State, after string, limit int) []*registry.Record {
			return s.PoliciesOf(in.Org, after, limit)
		}, func(r *registry.Record) api.Policy { return showPolicy(meta(r), r.Policy) })
		return &answer[api.PolicyList]{Body: list}, err
	})
	add(a, h, operation{
		id: "create-policy", method: http.MethodPost, path: "/orgs/{org}/policies", tag: tag, summary: "Create the policy of an org or project", status: http.StatusCreated, makes: true, safe: true, place: byOrg,
	}, func(ctx context.Context, in *struct {
		OrgPath
		Body api.PolicyInput
	}) (*answer[api.Policy], error) {
		org, err := a.get(registry.KindOrg, in.Org)
		if err != nil {
			return nil, err
		}
		w, err := a.created(ctx, &registry.Record{
			Kind: registry.KindPolicy, Meta: a.below(ctx, org, org.Org.Jurisdiction, registry.KindPolicy), Policy: policyOf(in.Body, org.Meta.ID),
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "/admin/v1/policies/"+w.rec.Meta.ID, showPolicy(meta(w.rec), w.rec.Policy)), nil
	})
	add(a, h, operation{
		id: "get-policy", method: http.MethodGet, path: "/policies/{policy}", tag: tag, summary: "Read a policy", place: byPath,
	}, func(_ context.Context, in *PolicyPath) (*answer[api.Policy], error) {
		rec, err := a.get(registry.KindPolicy, in.Policy)
		if err != nil {
			return nil, err
		}
		return read(rec, showPolicy(meta(rec), rec.Policy)), nil
	})
	add(a, h, operation{
		id: "update-policy", method: http.MethodPut, path: "/policies/{policy}", tag: tag, summary: "Replace a policy", safe: true, place: byPath,
	}, func(ctx context.Context, in *struct {
		PolicyPath
		Matching
		Body api.PolicyInput
	}) (*answer[api.Policy], error) {
		w, err := a.updated(ctx, registry.KindPolicy, in.Policy, in.Matching, func(r *registry.Record) error {
			in.Body.Project = orDefault(in.Body.Project, r.Policy.Project)
			r.Policy = policyOf(in.Body, r.Policy.Org)
			return nil
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "", showPolicy(meta(w.rec), w.rec.Policy)), nil
	})
	add(a, h, operation{
		id: "delete-policy", method: http.MethodDelete, path: "/policies/{policy}", tag: tag, summary: "Delete a policy: what it narrowed is wide again", safe: true, place: byPath,
	}, func(ctx context.Context, in *struct {
		PolicyPath
		Matching
	}) (*answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindPolicy, in.Policy, in.Matching)
	})
}
