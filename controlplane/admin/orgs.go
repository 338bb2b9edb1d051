package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

func showOrg(rec *registry.Record) api.Org {
	o := rec.Org
	return api.Org{Meta: records.Meta(rec), OrgInput: api.OrgInput{
		Name: o.Name, Plan: o.Plan, State: o.State, Jurisdiction: o.Jurisdiction, Roaming: o.Roaming,
	}}
}

func orgOf(in api.OrgInput, jurisdiction string) *registry.Org {
	return &registry.Org{
		Name: in.Name, Plan: cmp.Or(in.Plan, "trial"), State: cmp.Or(in.State, "unverified"),
		Jurisdiction: cmp.Or(in.Jurisdiction, jurisdiction), Roaming: in.Roaming,
	}
}

func (a *API) orgs() {
	const tag = "Orgs"
	byPath := gate.ByID(registry.KindOrg, "org")
	gate.Add(a.gate, gate.Operation{
		ID: "list-orgs", Method: http.MethodGet, Path: "/orgs", Tag: tag, Summary: "List orgs", Place: byQuery,
		Description: "Lists the orgs that this region holds. Orgs pinned elsewhere are listed by jurisdiction: not_listed names those.",
	}, a.listOrgs)
	gate.Add(a.gate, gate.Operation{
		ID: "create-org", Method: http.MethodPost, Path: "/orgs", Tag: tag, Summary: "Create an org", Status: http.StatusCreated, Makes: true, Place: byJurisdiction,
		Description: "An unpinned org belongs to the region that is asked; one with a jurisdiction to that jurisdiction's regions, for good.",
	}, a.createOrg)
	gate.Add(a.gate, gate.Operation{
		ID: "get-org", Method: http.MethodGet, Path: "/orgs/{org}", Tag: tag, Summary: "Read an org", Place: byPath,
	}, func(_ context.Context, in *gate.OrgPath) (*gate.Answer[api.Org], error) {
		return read(a, registry.KindOrg, in.Org, showOrg)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "update-org", Method: http.MethodPut, Path: "/orgs/{org}", Tag: tag, Summary: "Replace an org", Place: byPath,
	}, func(ctx context.Context, in *struct {
		gate.OrgPath
		records.Matching
		Body api.OrgInput
	}) (*gate.Answer[api.Org], error) {
		w, err := a.records.Update(ctx, registry.KindOrg, in.Org, in.Matching, func(r *registry.Record) error {
			r.Org = orgOf(in.Body, r.Org.Jurisdiction)
			return nil
		})
		return wrote(w, err, "", showOrg)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "delete-org", Method: http.MethodDelete, Path: "/orgs/{org}", Tag: tag, Summary: "Delete an org without projects and policies", Place: byPath,
	}, func(ctx context.Context, in *struct {
		gate.OrgPath
		records.Matching
	}) (*gate.Answer[api.Deleted], error) {
		if err := a.deletable(ctx, in.Org); err != nil {
			return nil, err
		}
		return a.remove(ctx, registry.KindOrg, in.Org, in.Matching)
	})
}

// byJurisdiction places the creation of an org: pinned orgs where they are
// pinned to, others in the shard of the region where the request arrived.
func byJurisdiction(_ *ledger.State, r gate.Asked) gate.Place {
	var body struct {
		Jurisdiction string `json:"jurisdiction"`
	}
	if json.Unmarshal(r.Body, &body) != nil || body.Jurisdiction != "" && records.CheckJurisdiction(body.Jurisdiction) != nil {
		return gate.Place{} // the handler says what is wrong with it
	}
	return gate.In(records.OrgShard(body.Jurisdiction, r.Entry))
}

// byQuery places a list of orgs.
func byQuery(_ *ledger.State, r gate.Asked) gate.Place {
	if j := r.URL.Query().Get("jurisdiction"); j != "" && j != controlplane.JurisdictionAny {
		return gate.In(controlplane.ShardPinned(j))
	}
	return gate.Place{}
}

type listOrgsInput struct {
	records.Paging
	Jurisdiction string `query:"jurisdiction" doc:"Only orgs of this jurisdiction, asked of a region in it if need be; any = unpinned"`
	Name         string `query:"name" doc:"Only orgs of exactly this name"`
}

func (a *API) listOrgs(_ context.Context, in *listOrgsInput) (*gate.Answer[api.OrgList], error) {
	var list api.OrgList
	var err error
	keep := func(r *registry.Record) bool {
		return (in.Jurisdiction == "" || r.Org.Jurisdiction == in.Jurisdiction) && (in.Name == "" || r.Org.Name == in.Name)
	}
	list.Items, list.Page, err = records.List(a.records, in.Paging, func(s *ledger.State, after string, limit int) []*registry.Record {
		return s.List(registry.KindOrg, after, limit, keep)
	}, showOrg)
	if err != nil {
		return nil, err
	}
	if in.Jurisdiction == "" {
		a.records.View(func(s *ledger.State) { list.NotListed = notHeld(s) })
	}
	return &gate.Answer[api.OrgList]{Body: list}, nil
}

// notHeld lists the jurisdictions with regions whose pinned shard is not in s.
func notHeld(s *ledger.State) []string {
	var missing []string
	for _, r := range s.List(registry.KindRegion, "", 0, nil) {
		if _, held := s.Shard(controlplane.ShardPinned(r.Region.Jurisdiction)); !held {
			missing = append(missing, r.Region.Jurisdiction)
		}
	}
	slices.Sort(missing)
	return slices.Compact(missing)
}

func (a *API) createOrg(ctx context.Context, in *struct{ Body api.OrgInput }) (*gate.Answer[api.Org], error) {
	org := orgOf(in.Body, controlplane.JurisdictionAny)
	if err := records.CheckJurisdiction(org.Jurisdiction); err != nil {
		return nil, err
	}
	shard := records.OrgShard(org.Jurisdiction, records.RequestOf(ctx).Entry)
	w, err := a.records.Create(ctx, &registry.Record{
		Kind: registry.KindOrg,
		Meta: registry.Meta{ID: a.records.NewID(ctx, registry.KindOrg, org.Jurisdiction, shard), Shard: shard},
		Org:  org,
	})
	return wrote(w, err, "/admin/v1/orgs/", showOrg)
}

func showProject(rec *registry.Record) api.Project {
	p := rec.Project
	return api.Project{Meta: records.Meta(rec), Org: p.Org, ProjectInput: api.ProjectInput{Name: p.Name, CrossProvider: p.CrossProvider, Class: p.Class}}
}

func (a *API) projects() {
	const tag = "Projects"
	byOrg, byPath := gate.ByID(registry.KindOrg, "org"), gate.ByID(registry.KindProject, "project")
	gate.Add(a.gate, gate.Operation{
		ID: "list-projects", Method: http.MethodGet, Path: "/orgs/{org}/projects", Tag: tag, Summary: "List the projects of an org", Place: byOrg,
	}, func(_ context.Context, in *struct {
		gate.OrgPath
		records.Paging
	}) (*gate.Answer[api.ProjectList], error) {
		if _, err := a.records.Get(registry.KindOrg, in.Org); err != nil {
			return nil, err
		}
		var list api.ProjectList
		var err error
		list.Items, list.Page, err = records.List(a.records, in.Paging, func(s *ledger.State, after string, limit int) []*registry.Record {
			return s.ProjectsOf(in.Org, after, limit)
		}, showProject)
		return &gate.Answer[api.ProjectList]{Body: list}, err
	})
	gate.Add(a.gate, gate.Operation{
		ID: "create-project", Method: http.MethodPost, Path: "/orgs/{org}/projects", Tag: tag, Summary: "Create a project", Status: http.StatusCreated, Makes: true, Place: byOrg,
	}, func(ctx context.Context, in *struct {
		gate.OrgPath
		Body api.ProjectInput
	}) (*gate.Answer[api.Project], error) {
		org, err := a.records.Get(registry.KindOrg, in.Org)
		if err != nil {
			return nil, err
		}
		w, err := a.records.Create(ctx, &registry.Record{
			Kind:    registry.KindProject,
			Meta:    a.below(ctx, org, org.Org.Jurisdiction, registry.KindProject),
			Project: &registry.Project{Org: org.Meta.ID, Name: in.Body.Name, CrossProvider: in.Body.CrossProvider, Class: in.Body.Class},
		})
		return wrote(w, err, "/admin/v1/projects/", showProject)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "get-project", Method: http.MethodGet, Path: "/projects/{project}", Tag: tag, Summary: "Read a project", Place: byPath,
	}, func(_ context.Context, in *gate.ProjectPath) (*gate.Answer[api.Project], error) {
		return read(a, registry.KindProject, in.Project, showProject)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "update-project", Method: http.MethodPut, Path: "/projects/{project}", Tag: tag, Summary: "Replace a project", Place: byPath,
	}, func(ctx context.Context, in *struct {
		gate.ProjectPath
		records.Matching
		Body api.ProjectInput
	}) (*gate.Answer[api.Project], error) {
		w, err := a.records.Update(ctx, registry.KindProject, in.Project, in.Matching, func(r *registry.Record) error {
			r.Project.Name, r.Project.CrossProvider, r.Project.Class = in.Body.Name, in.Body.CrossProvider, in.Body.Class
			return nil
		})
		return wrote(w, err, "", showProject)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "delete-project", Method: http.MethodDelete, Path: "/projects/{project}", Tag: tag, Summary: "Delete a project without keys and policy", Place: byPath,
	}, func(ctx context.Context, in *struct {
		gate.ProjectPath
		records.Matching
	}) (*gate.Answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindProject, in.Project, in.Matching)
	})
}

// below gives the id and shard of a new record that belongs to parent.
func (a *API) below(ctx context.Context, parent *registry.Record, jurisdiction string, kind registry.Kind) registry.Meta {
	return registry.Meta{
		ID:    a.records.NewID(ctx, kind, jurisdiction, parent.Meta.Shard),
		Shard: parent.Meta.Shard,
	}
}

// PolicyPath names a policy in a path.
type PolicyPath struct {
	Policy string `path:"policy" doc:"Id of the policy"`
}

func showPolicy(rec *registry.Record) api.Policy {
	p := rec.Policy
	return api.Policy{Meta: records.Meta(rec), Org: p.Org, PolicyInput: api.PolicyInput{
		Project: p.Project, Residency: p.Residency, NoRetention: p.NoRetention, Models: p.Models, Dedicated: p.Dedicated,
	}}
}

func policyOf(in api.PolicyInput, org string) *registry.Policy {
	return &registry.Policy{Org: org, Project: in.Project, Residency: in.Residency, NoRetention: in.NoRetention, Models: in.Models, Dedicated: in.Dedicated}
}

func (a *API) policies() {
	const tag = "Policies"
	byOrg, byPath := gate.ByID(registry.KindOrg, "org"), gate.ByID(registry.KindPolicy, "policy")
	gate.Add(a.gate, gate.Operation{
		ID: "list-policies", Method: http.MethodGet, Path: "/orgs/{org}/policies", Tag: tag, Summary: "List the policies of an org and its projects", Place: byOrg,
	}, func(_ context.Context, in *struct {
		gate.OrgPath
		records.Paging
	}) (*gate.Answer[api.PolicyList], error) {
		if _, err := a.records.Get(registry.KindOrg, in.Org); err != nil {
			return nil, err
		}
		var list api.PolicyList
		var err error
		list.Items, list.Page, err = records.List(a.records, in.Paging, func(s *ledger.State, after string, limit int) []*registry.Record {
			return s.PoliciesOf(in.Org, after, limit)
		}, showPolicy)
		return &gate.Answer[api.PolicyList]{Body: list}, err
	})
	gate.Add(a.gate, gate.Operation{
		ID: "create-policy", Method: http.MethodPost, Path: "/orgs/{org}/policies", Tag: tag, Summary: "Create the policy of an org or project", Status: http.StatusCreated, Makes: true, Safe: true, Place: byOrg,
	}, func(ctx context.Context, in *struct {
		gate.OrgPath
		Body api.PolicyInput
	}) (*gate.Answer[api.Policy], error) {
		org, err := a.records.Get(registry.KindOrg, in.Org)
		if err != nil {
			return nil, err
		}
		w, err := a.records.Create(ctx, &registry.Record{
			Kind: registry.KindPolicy, Meta: a.below(ctx, org, org.Org.Jurisdiction, registry.KindPolicy), Policy: policyOf(in.Body, org.Meta.ID),
		})
		return wrote(w, err, "/admin/v1/policies/", showPolicy)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "get-policy", Method: http.MethodGet, Path: "/policies/{policy}", Tag: tag, Summary: "Read a policy", Place: byPath,
	}, func(_ context.Context, in *PolicyPath) (*gate.Answer[api.Policy], error) {
		return read(a, registry.KindPolicy, in.Policy, showPolicy)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "update-policy", Method: http.MethodPut, Path: "/policies/{policy}", Tag: tag, Summary: "Replace a policy", Safe: true, Place: byPath,
	}, func(ctx context.Context, in *struct {
		PolicyPath
		records.Matching
		Body api.PolicyInput
	}) (*gate.Answer[api.Policy], error) {
		w, err := a.records.Update(ctx, registry.KindPolicy, in.Policy, in.Matching, func(r *registry.Record) error {
			in.Body.Project = cmp.Or(in.Body.Project, r.Policy.Project)
			r.Policy = policyOf(in.Body, r.Policy.Org)
			return nil
		})
		return wrote(w, err, "", showPolicy)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "delete-policy", Method: http.MethodDelete, Path: "/policies/{policy}", Tag: tag, Summary: "Delete a policy: what it narrowed is wide again", Safe: true, Place: byPath,
	}, func(ctx context.Context, in *struct {
		PolicyPath
		records.Matching
	}) (*gate.Answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindPolicy, in.Policy, in.Matching)
	})
}
