package adminclient

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"ringmain/controlplane/admin/api"
)

// Orgs lists orgs, all or those of one jurisdiction or name. notListed names
// the jurisdictions whose pinned orgs must be listed one by one.
func (c *Client) Orgs(ctx context.Context, jurisdiction, name string) (orgs []api.Org, notListed []string, err error) {
	query := url.Values{}
	if jurisdiction != "" {
		query.Set("jurisdiction", jurisdiction)
	}
	if name != "" {
		query.Set("name", name)
	}
	return all[api.Org](ctx, c, "/orgs", query)
}

// OrgByName finds the org of that name, pinned ones included. Names of orgs
// need not be unique: several are an error.
func (c *Client) OrgByName(ctx context.Context, name string) (*api.Org, error) {
	found, elsewhere, err := c.Orgs(ctx, "", name)
	if err != nil {
		return nil, err
	}
	for _, j := range elsewhere {
		more, _, err := c.Orgs(ctx, j, name)
		if err != nil {
			return nil, fmt.Errorf("orgs of %s: %w", j, err)
		}
		found = append(found, more...)
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("org %q: %w: `ringmain org list` shows those that there are", name, ErrNotFound)
	case 1:
		return &found[0], nil
	}
	var ids []string
	for _, o := range found {
		ids = append(ids, o.ID)
	}
	return nil, fmt.Errorf("org %q: %d orgs have this name: use an id, %s", name, len(found), strings.Join(ids, " or "))
}

// GetOrg reads an org by id.
func (c *Client) GetOrg(ctx context.Context, id string) (*api.Org, error) {
	return get[api.Org](ctx, c, "/orgs/"+esc(id))
}

// CreateOrg creates an org.
func (c *Client) CreateOrg(ctx context.Context, in api.OrgInput) (*api.Org, error) {
	return create[api.Org](ctx, c, "/orgs", in)
}

// UpdateOrg replaces old, if it is still as it was read.
func (c *Client) UpdateOrg(ctx context.Context, old api.Meta, in api.OrgInput) (*api.Org, error) {
	return send[api.Org](ctx, c, http.MethodPut, "/orgs/"+esc(old.ID), etag(old), in)
}

// Projects lists the projects of an org.
func (c *Client) Projects(ctx context.Context, org string) ([]api.Project, error) {
	items, _, err := all[api.Project](ctx, c, "/orgs/"+esc(org)+"/projects", nil)
	return items, err
}

// ProjectByName finds the project of that name in the org of that id.
func (c *Client) ProjectByName(ctx context.Context, org, name string) (*api.Project, error) {
	projects, err := c.Projects(ctx, org)
	if err != nil {
		return nil, err
	}
	for i := range projects {
		if projects[i].Name == name {
			return &projects[i], nil
		}
	}
	return nil, fmt.Errorf("project %q of %s: %w", name, org, ErrNotFound)
}

// GetProject reads a project by id.
func (c *Client) GetProject(ctx context.Context, id string) (*api.Project, error) {
	return get[api.Project](ctx, c, "/projects/"+esc(id))
}

// CreateProject creates a project in the org of that id.
func (c *Client) CreateProject(ctx context.Context, org string, in api.ProjectInput) (*api.Project, error) {
	return create[api.Project](ctx, c, "/orgs/"+esc(org)+"/projects", in)
}

// UpdateProject replaces old, if it is still as it was read.
func (c *Client) UpdateProject(ctx context.Context, old api.Meta, in api.ProjectInput) (*api.Project, error) {
	return send[api.Project](ctx, c, http.MethodPut, "/projects/"+esc(old.ID), etag(old), in)
}

// Keys lists the keys of a project, without their secrets.
func (c *Client) Keys(ctx context.Context, project string) ([]api.Key, error) {
	items, _, err := all[api.Key](ctx, c, "/projects/"+esc(project)+"/keys", nil)
	return items, err
}

// GetKey reads a key by id, without its secret.
func (c *Client) GetKey(ctx context.Context, id string) (*api.Key, error) {
	return get[api.Key](ctx, c, "/keys/"+esc(id))
}

// CreateKey makes a key. Its Whole is shown in this answer and never again.
func (c *Client) CreateKey(ctx context.Context, project string, in api.KeyInput) (*api.Key, error) {
	return create[api.Key](ctx, c, "/projects/"+esc(project)+"/keys", in)
}

// UpdateKey changes the name and end of old, if it is still as it was read.
func (c *Client) UpdateKey(ctx context.Context, old api.Meta, in api.KeyInput) (*api.Key, error) {
	return send[api.Key](ctx, c, http.MethodPut, "/keys/"+esc(old.ID), etag(old), in)
}

// RotateKey replaces a key's secret; the old one works on for grace.
func (c *Client) RotateKey(ctx context.Context, id string, grace time.Duration) (*api.Key, error) {
	seconds := int64(grace / time.Second)
	return create[api.Key](ctx, c, "/keys/"+esc(id)+"/rotate", api.RotateInput{GraceSeconds: &seconds})
}

// RevokeKey refuses a key for good. Repeating it is harmless.
func (c *Client) RevokeKey(ctx context.Context, id string) (*api.Key, error) {
	return create[api.Key](ctx, c, "/keys/"+esc(id)+"/revoke", nil)
}

// RevokeKeys refuses all keys of a project or org for good: collection is
// projects or orgs. Above 100 expect must be their number. Repeating it is harmless.
func (c *Client) RevokeKeys(ctx context.Context, collection, id string, expect *int) (*api.RevokedKeys, error) {
	return create[api.RevokedKeys](ctx, c, "/"+collection+"/"+esc(id)+"/keys/revoke", api.RevokeInput{Expect: expect})
}

// Upstreams lists all upstreams.
func (c *Client) Upstreams(ctx context.Context) ([]api.Upstream, error) {
	items, _, err := all[api.Upstream](ctx, c, "/upstreams", nil)
	return items, err
}

// GetUpstream reads an upstream by id or name.
func (c *Client) GetUpstream(ctx context.Context, ref string) (*api.Upstream, error) {
	return get[api.Upstream](ctx, c, "/upstreams/"+esc(ref))
}

// CreateUpstream creates an upstream.
func (c *Client) CreateUpstream(ctx context.Context, in api.UpstreamInput) (*api.Upstream, error) {
	return create[api.Upstream](ctx, c, "/upstreams", in)
}

// UpdateUpstream replaces old, if it is still as it was read.
func (c *Client) UpdateUpstream(ctx context.Context, old api.Meta, in api.UpstreamInput) (*api.Upstream, error) {
	return send[api.Upstream](ctx, c, http.MethodPut, "/upstreams/"+esc(old.ID), etag(old), in)
}

// Routes lists all routes.
func (c *Client) Routes(ctx context.Context) ([]api.Route, error) {
	items, _, err := all[api.Route](ctx, c, "/routes", nil)
	return items, err
}

// GetRoute reads a route by id or model.
func (c *Client) GetRoute(ctx context.Context, ref string) (*api.Route, error) {
	return get[api.Route](ctx, c, "/routes/"+esc(ref))
}

// CreateRoute creates a route.
func (c *Client) CreateRoute(ctx context.Context, in api.RouteInput) (*api.Route, error) {
	return create[api.Route](ctx, c, "/routes", in)
}

// UpdateRoute replaces old, if it is still as it was read.
func (c *Client) UpdateRoute(ctx context.Context, old api.Meta, in api.RouteInput) (*api.Route, error) {
	return send[api.Route](ctx, c, http.MethodPut, "/routes/"+esc(old.ID), etag(old), in)
}

// Policies lists the policies of an org and its projects.
func (c *Client) Policies(ctx context.Context, org string) ([]api.Policy, error) {
	items, _, err := all[api.Policy](ctx, c, "/orgs/"+esc(org)+"/policies", nil)
	return items, err
}

// GetPolicy reads a policy by id.
func (c *Client) GetPolicy(ctx context.Context, id string) (*api.Policy, error) {
	return get[api.Policy](ctx, c, "/policies/"+esc(id))
}

// CreatePolicy creates the policy of an org or of one of its projects.
func (c *Client) CreatePolicy(ctx context.Context, org string, in api.PolicyInput) (*api.Policy, error) {
	return create[api.Policy](ctx, c, "/orgs/"+esc(org)+"/policies", in)
}

// UpdatePolicy replaces old, if it is still as it was read.
func (c *Client) UpdatePolicy(ctx context.Context, old api.Meta, in api.PolicyInput) (*api.Policy, error) {
	return send[api.Policy](ctx, c, http.MethodPut, "/policies/"+esc(old.ID), etag(old), in)
}

// Regions lists all regions.
func (c *Client) Regions(ctx context.Context) ([]api.Region, error) {
	items, _, err := all[api.Region](ctx, c, "/regions", nil)
	return items, err
}

// GetRegion reads a region by name.
func (c *Client) GetRegion(ctx context.Context, name string) (*api.Region, error) {
	return get[api.Region](ctx, c, "/regions/"+esc(name))
}

// PutRegion creates or replaces a region.
func (c *Client) PutRegion(ctx context.Context, name string, in api.RegionInput) (*api.Region, error) {
	return send[api.Region](ctx, c, http.MethodPut, "/regions/"+esc(name), "", in)
}

// Nodes lists the nodes that gossip knows.
func (c *Client) Nodes(ctx context.Context) ([]api.Node, error) {
	list, err := get[api.NodeList](ctx, c, "/nodes")
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// Status asks one control node how it sees the cluster.
func (c *Client) Status(ctx context.Context) (*api.Status, error) {
	return get[api.Status](ctx, c, "/status")
}

// Delete removes the record at a path such as /orgs/<id>.
func (c *Client) Delete(ctx context.Context, kind, ref string) error {
	return c.call(ctx, request{method: http.MethodDelete, path: "/" + kind + "/" + esc(ref)}, nil)
}
