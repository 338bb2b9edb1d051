// Package declare makes a cluster hold what a manifest declares: it reads the
// manifest strictly, checks it whole, plans, warns, and then writes record by
// record. It asks nobody and prints nothing: who calls does.
package declare

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/controlplane/admin/api"
)

// Options says how to apply a manifest. The zero value applies at once.
type Options struct {
	File    string                   // name in errors; empty = "manifest"
	Dir     string                   // what credential_file is relative to; empty = the working directory
	Getenv  func(string) string      // for credential_env; nil = os.Getenv
	DryRun  bool                     // plan only
	Confirm func(Plan) (bool, error) // asked before the first change; nil = yes
	// Progress gets a line per change made; nil = nowhere.
	Progress io.Writer
}

// Action is what a Step does.
type Action string

// Actions.
const (
	ActionCreate Action = "create"
	ActionUpdate Action = "update"
	ActionNone   Action = "unchanged"
)

// Step is one record of a manifest.
type Step struct {
	Action Action   `json:"action"`
	Kind   string   `json:"kind"`
	Name   string   `json:"name"`
	Line   int      `json:"line"`
	Diff   []string `json:"diff,omitempty"` // of an update: "field: old -> new"

	do func(context.Context) error
}

// Plan is what Apply does, in order, and what it warns of.
type Plan struct {
	Steps    []Step   `json:"steps"`
	Warnings []string `json:"warnings,omitempty"`
	Applied  bool     `json:"applied"` // every step was carried out
}

func (p Plan) count(a Action) int {
	n := 0
	for _, s := range p.Steps {
		if s.Action == a {
			n++
		}
	}
	return n
}

// Changes is how many records would be created or updated.
func (p Plan) Changes() int { return p.count(ActionCreate) + p.count(ActionUpdate) }

// Summary is "2 to create, 1 to update, 5 unchanged".
func (p Plan) Summary() string {
	verb := "to "
	if p.Applied {
		verb = ""
	}
	past := func(word, done string) string {
		if p.Applied {
			return done
		}
		return word
	}
	return fmt.Sprintf("%d %s%s, %d %s%s, %d unchanged", p.count(ActionCreate), verb, past("create", "created"),
		p.count(ActionUpdate), verb, past("update", "updated"), p.count(ActionNone))
}

// Apply makes the server hold what the manifest declares. It checks the whole
// manifest, references too, before it writes anything. Records that the
// manifest does not name stay. Applying twice changes nothing the second time;
// so a failure half way is mended by applying again.
func Apply(ctx context.Context, c *adminclient.Client, text []byte, opts Options) (Plan, error) {
	opts.File = cmp.Or(opts.File, "manifest")
	if opts.Getenv == nil {
		opts.Getenv = os.Getenv
	}
	if opts.Progress == nil {
		opts.Progress = io.Discard
	}
	m, err := parse(opts.File, text)
	if err != nil {
		return Plan{}, err
	}
	// A node that lags may not show what another has acknowledged: a conflict
	// before anything was written asks for another look.
	for look := range 4 {
		plan, written, err := apply(ctx, c, m, opts)
		var p *api.Problem
		if look == 3 || written || !errors.As(err, &p) || p.Status != http.StatusConflict {
			return plan, err
		}
		select {
		case <-ctx.Done():
			return plan, err
		case <-time.After(100 * time.Millisecond << look):
		}
	}
	return Plan{}, nil // the last look has returned
}

// apply is one look, plan and execution. written reports whether anything was.
func apply(ctx context.Context, c *adminclient.Client, m *manifest, opts Options) (_ Plan, written bool, _ error) {
	w, err := readWorld(ctx, c, m)
	if err != nil {
		return Plan{}, false, err
	}
	if err := m.checkReferences(opts.File, w); err != nil {
		return Plan{}, false, err
	}
	pl := &planner{client: c, opts: opts, world: w}
	if err := pl.build(m); err != nil {
		return Plan{}, false, err
	}
	plan := Plan{Steps: pl.steps, Warnings: warnings(m, w)}
	if opts.DryRun {
		return plan, written, nil
	}
	if plan.Changes() > 0 && opts.Confirm != nil {
		if yes, err := opts.Confirm(plan); err != nil || !yes {
			return plan, written, err
		}
	}
	for _, s := range plan.Steps {
		if s.Action == ActionNone {
			continue
		}
		if err := s.do(ctx); err != nil {
			return plan, written, fmt.Errorf("%s:%d: %s %s %q: %w (what came before it is done: mend this and apply again)", opts.File, s.Line, s.Action, s.Kind, s.Name, err)
		}
		written = true
		if _, err := fmt.Fprintf(opts.Progress, "%sd %s %s\n", s.Action, s.Kind, s.Name); err != nil {
			return plan, written, err
		}
	}
	plan.Applied = true
	return plan, written, nil
}

// readWorld reads what the manifest may refer to.
func readWorld(ctx context.Context, c *adminclient.Client, m *manifest) (*world, error) {
	w := &world{
		regions: map[string]api.Region{}, upstreams: map[string]api.Upstream{}, routes: map[string]api.Route{},
		orgs: map[string]api.Org{}, projects: map[string]api.Project{}, policies: map[string]api.Policy{},
	}
	regions, err := c.Regions(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		w.regions[r.Name] = r
	}
	upstreams, err := c.Upstreams(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range upstreams {
		w.upstreams[u.Name] = u
	}
	routes, err := c.Routes(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		w.routes[r.Model] = r
	}
	for _, name := range m.orgNames() {
		if err := w.readOrg(ctx, c, name); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *world) readOrg(ctx context.Context, c *adminclient.Client, name string) error {
	org, err := c.OrgByName(ctx, name)
	if errors.Is(err, adminclient.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	w.orgs[name] = *org
	projects, err := c.Projects(ctx, org.ID)
	if err != nil {
		return err
	}
	names := map[string]string{"": ""}
	for _, p := range projects {
		w.projects[scope(name, p.Name)], names[p.ID] = p, p.Name
	}
	policies, err := c.Policies(ctx, org.ID)
	if err != nil {
		return err
	}
	for _, p := range policies {
		w.policies[scope(name, names[p.Project])] = p
	}
	return nil
}

// planner builds steps in the order in which records depend on each other.
type planner struct {
	client *adminclient.Client
	opts   Options
	world  *world
	steps  []Step
}

// step adds one. Without old the record is created; where old and want differ
// in JSON, or further names a difference, it is updated.
func (pl *planner) step(kind, name string, line int, exists bool, old, want any, further string, do func(context.Context) error) error {
	s := Step{Action: ActionCreate, Kind: kind, Name: name, Line: line, do: do}
	if exists {
		diff, err := differences(old, want)
		if err != nil {
			return err
		}
		if further != "" {
			diff = append(diff, further)
		}
		s.Action, s.Diff = ActionUpdate, diff
		if len(diff) == 0 {
			s.Action = ActionNone
		}
	}
	pl.steps = append(pl.steps, s)
	return nil
}

// differences lists the fields in which two inputs differ.
func differences(old, want any) ([]string, error) {
	fields := func(v any) (map[string]json.RawMessage, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		m := map[string]json.RawMessage{}
		return m, json.Unmarshal(b, &m)
	}
	a, err := fields(old)
	if err != nil {
		return nil, err
	}
	b, err := fields(want)
	if err != nil {
		return nil, err
	}
	show := func(m map[string]json.RawMessage, name string) string {
		if v, ok := m[name]; ok {
			return string(v)
		}
		return "(none)"
	}
	all := maps.Clone(a)
	maps.Copy(all, b)
	var diff []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if string(a[name]) != string(b[name]) {
			diff = append(diff, fmt.Sprintf("%s: %s -> %s", name, show(a, name), show(b, name)))
		}
	}
	return diff, nil
}

func (pl *planner) build(m *manifest) error {
	for _, build := range []func(*manifest) error{pl.regions, pl.orgs, pl.upstreams, pl.routes, pl.projects, pl.policies} {
		if err := build(m); err != nil {
			return err
		}
	}
	return nil
}

func (pl *planner) regions(m *manifest) error {
	for _, r := range m.Regions {
		old, exists := pl.world.regions[r.V.Name]
		want := api.RegionInput{Jurisdiction: r.V.Jurisdiction, Endpoint: r.V.Endpoint, State: cmp.Or(r.V.State, old.State, "active"), Brownout: old.Brownout}
		if r.V.Brownout != nil {
			want.Brownout = *r.V.Brownout
		}
		if exists && old.Jurisdiction != want.Jurisdiction {
			return &lineError{pl.opts.File, r.Line, fmt.Sprintf("region %q is in %q for good: it cannot move to %q", r.V.Name, old.Jurisdiction, want.Jurisdiction)}
		}
		if err := pl.step("region", r.V.Name, r.Line, exists, old.RegionInput, want, "", func(ctx context.Context) error {
			_, err := pl.client.PutRegion(ctx, r.V.Name, want)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (pl *planner) upstreams(m *manifest) error {
	for _, u := range m.Upstreams {
		credential, err := pl.credential(u)
		if err != nil {
			return err
		}
		old, exists := pl.world.upstreams[u.V.Name]
		want := api.UpstreamInput{
			Name: u.V.Name, Provider: u.V.Provider, Region: u.V.Region.V, Dialect: u.V.Dialect, BaseURL: u.V.BaseURL, Auth: u.V.Auth,
			Terms: api.Terms(u.V.Terms), Simulated: u.V.Simulated, Disabled: u.V.Disabled,
			Endpoints: u.V.Endpoints, Query: u.V.Query, Concurrency: u.V.Concurrency,
		}
		for _, h := range u.V.Headers {
			want.Headers = append(want.Headers, api.Header(h))
		}
		if name := u.V.Dedicated.V; name != "" {
			want.Dedicated = cmp.Or(pl.world.orgs[name].ID, "(id of "+name+")") // known once it is created
		}
		var rewritten string
		if credential != nil && api.CredentialPrint(old.ID, *credential) != old.CredentialPrint {
			rewritten = "credential: (changed)"
		}
		shown := want // without the credential
		want.Credential = credential
		if err := pl.step("upstream", u.V.Name, u.Line, exists, old.UpstreamInput, shown, rewritten, func(ctx context.Context) error {
			if name := u.V.Dedicated.V; name != "" {
				want.Dedicated = pl.world.orgs[name].ID
			}
			if exists {
				_, err := pl.client.UpdateUpstream(ctx, old.Meta, want)
				return err
			}
			_, err := pl.client.CreateUpstream(ctx, want)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

// credential reads what the manifest points to; nil if it points to nothing.
func (pl *planner) credential(u at[upstreamSpec]) (*string, error) {
	wrong := func(format string, args ...any) error {
		return &lineError{pl.opts.File, u.Line, fmt.Sprintf("upstream %q: ", u.V.Name) + fmt.Sprintf(format, args...)}
	}
	var text string
	switch {
	case u.V.CredentialFile != "" && u.V.CredentialEnv != "":
		return nil, wrong("give credential_file or credential_env, not both")
	case u.V.CredentialFile != "":
		path := u.V.CredentialFile
		if !filepath.IsAbs(path) {
			path = filepath.Join(pl.opts.Dir, path)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, wrong("credential_file: %v", err)
		}
		text = strings.TrimSpace(string(b))
	case u.V.CredentialEnv != "":
		text = strings.TrimSpace(pl.opts.Getenv(u.V.CredentialEnv))
	default:
		return nil, nil
	}
	if text == "" {
		return nil, wrong("the credential is empty: set %s", cmp.Or(u.V.CredentialFile, "$"+u.V.CredentialEnv))
	}
	return &text, nil
}

func (pl *planner) routes(m *manifest) error {
	for _, r := range fallbacksFirst(m.Routes) {
		old, exists := pl.world.routes[r.V.Model]
		want := r.V.input()
		if err := pl.step("route", r.V.Model, r.Line, exists, old.RouteInput, want, "", func(ctx context.Context) error {
			if exists {
				_, err := pl.client.UpdateRoute(ctx, old.Meta, want)
				return err
			}
			_, err := pl.client.CreateRoute(ctx, want)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (r routeSpec) input() api.RouteInput {
	in := api.RouteInput{Model: r.Model, Targets: []api.Target{}, Timeouts: api.Timeouts(r.Timeouts), ContextFallback: r.ContextFallback.V, Deterministic: r.Deterministic}
	for _, model := range r.Fallbacks {
		in.Fallbacks = append(in.Fallbacks, model.V)
	}
	for _, t := range r.Targets {
		in.Targets = append(in.Targets, api.Target{Upstream: t.Upstream.V, Model: t.Model, Weight: t.Weight, Order: t.Order})
	}
	return in
}

func (pl *planner) orgs(m *manifest) error {
	for _, o := range m.Orgs {
		old, exists := pl.world.orgs[o.V.Name]
		want := api.OrgInput{
			Name: o.V.Name, Plan: cmp.Or(o.V.Plan, old.Plan, "trial"), State: cmp.Or(o.V.State, old.State, "unverified"),
			Jurisdiction: cmp.Or(o.V.Jurisdiction, old.Jurisdiction, "any"), Roaming: o.V.Roaming,
		}
		if exists && want.Jurisdiction != old.Jurisdiction {
			return &lineError{pl.opts.File, o.Line, fmt.Sprintf("org %q is pinned to %q, and a manifest does not change that: `ringmain org pin %s --to %s` does, and issues new keys", o.V.Name, old.Jurisdiction, old.ID, want.Jurisdiction)}
		}
		if err := pl.step("org", o.V.Name, o.Line, exists, old.OrgInput, want, "", func(ctx context.Context) error {
			if exists {
				_, err := pl.client.UpdateOrg(ctx, old.Meta, want)
				return err
			}
			made, err := pl.client.CreateOrg(ctx, want)
			if err == nil {
				pl.world.orgs[o.V.Name] = *made
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (pl *planner) projects(m *manifest) error {
	for _, p := range m.Projects {
		full := scope(p.V.Org.V, p.V.Name)
		old, exists := pl.world.projects[full]
		want := api.ProjectInput{Name: p.V.Name, CrossProvider: p.V.CrossProvider, Class: p.V.Class}
		if err := pl.step("project", full, p.Line, exists, old.ProjectInput, want, "", func(ctx context.Context) error {
			if exists {
				_, err := pl.client.UpdateProject(ctx, old.Meta, want)
				return err
			}
			made, err := pl.client.CreateProject(ctx, pl.world.orgs[p.V.Org.V].ID, want)
			if err == nil {
				pl.world.projects[full] = *made
			}
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (pl *planner) policies(m *manifest) error {
	for _, p := range m.Policies {
		full := scope(p.V.Org.V, p.V.Project.V)
		old, exists := pl.world.policies[full]
		want := p.V.input()
		shown := old.PolicyInput
		shown.Project = "" // named by id there; the step's name says it
		if err := pl.step("policy", full, p.Line, exists, shown, want, "", func(ctx context.Context) error {
			if p.V.Project.V != "" {
				want.Project = pl.world.projects[full].ID
			}
			if exists {
				_, err := pl.client.UpdatePolicy(ctx, old.Meta, want)
				return err
			}
			_, err := pl.client.CreatePolicy(ctx, pl.world.orgs[p.V.Org.V].ID, want)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (p policySpec) input() api.PolicyInput {
	in := api.PolicyInput{Residency: p.Residency, NoRetention: p.NoRetention, Dedicated: p.Dedicated}
	for _, m := range p.Models {
		in.Models = append(in.Models, m.V)
	}
	return in
}
