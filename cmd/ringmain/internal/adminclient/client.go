package manage

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"ringmain/controlplane/admin/api"
)

// ClientConfig configures a Client.
type ClientConfig struct {
	Servers []string       // base URLs of admin listeners, in order of preference
	Token   string         // admin token
	Roots   *x509.CertPool // trusted to vouch for the servers; nil = the system's

	Acknowledge string            // level that writes wait for; "" = each operation's own
	Notice      func(text string) // told what the caller should know of a success; nil = nobody
}

// Client calls /admin/v1. It goes on to the next server when one cannot be
// reached, and stays with the one that answered. It is safe for concurrent use.
type Client struct {
	servers []*url.URL
	token   string
	http    *http.Client
	ack     string
	notice  func(string)
	current atomic.Int32 // index of the server that answered last
}

// ErrNotFound says that nothing bears the given name.
var ErrNotFound = errors.New("not found")

// NewClient checks cfg. It opens no connection until it is used.
func NewClient(cfg ClientConfig) (*Client, error) {
	c := &Client{token: cfg.Token, ack: cfg.Acknowledge, notice: cfg.Notice, http: &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			TLSHandshakeTimeout: 5 * time.Second,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: cfg.Roots},
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     time.Minute,
		},
		// The API never redirects: whoever does should not get the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, s := range cfg.Servers {
		u, err := url.Parse(strings.TrimSuffix(s, "/"))
		if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" {
			return nil, fmt.Errorf("server %q: want https://host[:port]", s)
		}
		c.servers = append(c.servers, u)
	}
	if len(c.servers) == 0 {
		return nil, errors.New("no server to ask")
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call; path is below /admin/v1, percent-encoded.
type request struct {
	method, path string
	query        url.Values
	ifMatch      string
	body         any    // nil = none
	once         string // Idempotency-Key: the request may be sent again whatever became of it
}

// patience is how long a request is sent again while nobody can answer it: an
// election takes a second or two.
const patience = 10 * time.Second

// call sends r and reads the answer into out. Errors of the API are *api.Problem.
func (c *Client) call(ctx context.Context, r request, out any) error {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	end := time.Now().Add(patience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := c.ask(ctx, r, body, out)
		if !r.again(err) || time.Now().Add(pause).After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// again reports whether r may be sent again after err, and might succeed.
func (r request) again(err error) bool {
	var p *api.Problem
	if !errors.As(err, &p) {
		return false
	}
	switch p.Code {
	case api.CodeNoLeader, api.CodeOverloaded:
		return true // nothing was written
	case api.CodeUncertain:
		return r.once != "" || r.method == http.MethodGet
	}
	return false
}

// ask tries the servers in turn until one answers.
func (c *Client) ask(ctx context.Context, r request, body []byte, out any) error {
	first := int(c.current.Load())
	var failures []error
	for i := range c.servers {
		at := (first + i) % len(c.servers)
		err := c.try(ctx, c.servers[at], r, body, out)
		var unreached *unreachedError
		if !errors.As(err, &unreached) {
			c.current.Store(int32(at))
			return err
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// unreachedError says that a server did not get the request.
type unreachedError struct {
	server string
	err    error
}

func (e *unreachedError) Error() string {
	return fmt.Sprintf("%s cannot be reached: %v", e.server, e.err)
}
func (e *unreachedError) Unwrap() error { return e.err }

func (c *Client) try(ctx context.Context, server *url.URL, r request, body []byte, out any) error {
	target := server.String() + "/admin/v1" + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.ifMatch != "" {
		req.Header.Set("If-Match", r.ifMatch)
	}
	if c.ack != "" && r.method != http.MethodGet {
		req.Header.Set(api.HeaderAcknowledge, c.ack)
	}
	if r.once != "" {
		req.Header.Set(api.HeaderIdempotency, r.once)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.failure(ctx, server, r, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return c.failure(ctx, server, r, err)
	}
	if resp.StatusCode >= 300 {
		p := new(api.Problem)
		if json.Unmarshal(answer, p) != nil || p.Code == "" {
			return fmt.Errorf("%s answered %s, and not as a ringmain control node does: check the address", server, resp.Status)
		}
		return p
	}
	if resp.StatusCode == http.StatusAccepted && c.notice != nil {
		c.notice("written at home; the other regions have not confirmed it yet, so it is lost to them if this home is lost now")
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: answer not understood: %w", server, err)
	}
	return nil
}

// failure tells apart: the server never got the request (another may be
// asked), what may be asked twice (the same), and a write of which nobody knows.
func (c *Client) failure(ctx context.Context, server *url.URL, r request, err error) error {
	var op *net.OpError
	var unknown x509.UnknownAuthorityError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &unknown):
		return fmt.Errorf("%s shows a certificate of an unknown authority: give the cluster's with --ca-file: %w", server, err)
	case errors.As(err, &op) && op.Op == "dial", r.method == http.MethodGet, r.once != "":
		return &unreachedError{server.String(), err}
	}
	return fmt.Errorf("%s did not answer; the change may or may not have been made: read before you repeat it: %w", server, err)
}

func get[T any](ctx context.Context, c *Client, path string) (*T, error) {
	out := new(T)
	return out, c.call(ctx, request{method: http.MethodGet, path: path}, out)
}

func send[T any](ctx context.Context, c *Client, method, path, ifMatch string, body any) (*T, error) {
	out := new(T)
	if err := c.call(ctx, request{method: method, path: path, ifMatch: ifMatch, body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// create is send for requests that make a record or a secret: they may be sent
// again, and are, until somebody answers.
func create[T any](ctx context.Context, c *Client, path string, body any) (*T, error) {
	out := new(T)
	if err := c.call(ctx, request{method: http.MethodPost, path: path, body: body, once: crand.Text()}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// all reads every page of a list.
func all[T any](ctx context.Context, c *Client, path string, query url.Values) (items []T, notListed []string, err error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("limit", "500")
	for {
		var page struct {
			api.Page
			Items     []T      `json:"items"`
			NotListed []string `json:"not_listed"`
		}
		if err := c.call(ctx, request{method: http.MethodGet, path: path, query: query}, &page); err != nil {
			return nil, nil, err
		}
		items, notListed = append(items, page.Items...), page.NotListed
		if page.NextCursor == "" {
			return items, notListed, nil
		}
		query.Set("cursor", page.NextCursor)
	}
}

func etag(m api.Meta) string { return fmt.Sprintf(`"%d"`, m.Revision) }

func esc(segment string) string { return url.PathEscape(segment) }

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
		return nil, fmt.Errorf("org %q: %w", name, ErrNotFound)
	case 1:
		return &found[0], nil
	}
	return nil, fmt.Errorf("org %q: %d orgs have this name: use an id", name, len(found))
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
