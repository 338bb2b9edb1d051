package declare

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane/admin/api"
)

// at is a value with the line of the manifest it stands in.
type at[T any] struct {
	V    T
	Line int
}

// UnmarshalYAML reads the value strictly and notes its line.
func (a *at[T]) UnmarshalYAML(node ast.Node) error {
	a.Line = node.GetToken().Position.Line
	return yaml.NodeToValue(node, &a.V, yaml.Strict())
}

// manifest is what one or several YAML documents declare, together.
type manifest struct {
	Regions   []at[regionSpec]   `yaml:"regions"`
	Upstreams []at[upstreamSpec] `yaml:"upstreams"`
	Routes    []at[routeSpec]    `yaml:"routes"`
	Orgs      []at[orgSpec]      `yaml:"orgs"`
	Projects  []at[projectSpec]  `yaml:"projects"`
	Policies  []at[policySpec]   `yaml:"policies"`
}

type regionSpec struct {
	Name         string  `yaml:"name"`
	Jurisdiction string  `yaml:"jurisdiction"`
	Endpoint     string  `yaml:"endpoint"`
	State        string  `yaml:"state"`    // empty keeps what is there
	Brownout     *uint32 `yaml:"brownout"` // absent keeps what is there
}

type upstreamSpec struct {
	Name           string     `yaml:"name"`
	Provider       string     `yaml:"provider"`
	Region         at[string] `yaml:"region"`
	Dialect        string     `yaml:"dialect"`
	BaseURL        string     `yaml:"base_url"`
	Auth           string     `yaml:"auth"`
	CredentialFile string     `yaml:"credential_file"` // relative to the manifest
	CredentialEnv  string     `yaml:"credential_env"`
	Terms          termsSpec  `yaml:"terms"`
	Simulated      bool       `yaml:"simulated"`
	Disabled       bool       `yaml:"disabled"`

	Endpoints   []string     `yaml:"endpoints"`
	Headers     []headerSpec `yaml:"headers"`
	Query       string       `yaml:"query"`
	Concurrency uint32       `yaml:"concurrency"`
	Dedicated   at[string]   `yaml:"dedicated"` // name of an org
}

type headerSpec struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

type termsSpec struct {
	Retention   string `yaml:"retention"`
	PromptCache string `yaml:"prompt_cache"`
	Training    string `yaml:"training"`
	BAA         bool   `yaml:"baa"`
	Contract    string `yaml:"contract"`
	Dated       string `yaml:"dated"`
}

type routeSpec struct {
	Model    string       `yaml:"model"`
	Targets  []targetSpec `yaml:"targets"`
	Timeouts timeoutsSpec `yaml:"timeouts"`

	Fallbacks       []at[string] `yaml:"fallbacks"`
	ContextFallback at[string]   `yaml:"context_fallback"`
	Deterministic   bool         `yaml:"deterministic"`
}

// fallsBackOn gives the models that the route falls back on, for any reason.
func (r routeSpec) fallsBackOn(yield func(at[string]) bool) {
	for _, model := range r.Fallbacks {
		if !yield(model) {
			return
		}
	}
	if r.ContextFallback.V != "" {
		yield(r.ContextFallback)
	}
}

// fallbacksFirst orders routes so that what one falls back on comes before it.
// In a circle, which the server refuses, the order does not matter.
func fallbacksFirst(routes []at[routeSpec]) []at[routeSpec] {
	byModel := make(map[string]at[routeSpec], len(routes))
	for _, r := range routes {
		byModel[r.V.Model] = r
	}
	var out []at[routeSpec]
	done := make(map[string]bool, len(routes))
	var visit func(at[routeSpec])
	visit = func(r at[routeSpec]) {
		if done[r.V.Model] {
			return
		}
		done[r.V.Model] = true
		for model := range r.V.fallsBackOn {
			if next, ok := byModel[model.V]; ok {
				visit(next)
			}
		}
		out = append(out, r)
	}
	for _, r := range routes {
		visit(r)
	}
	return out
}

// circle gives the fallback of model's route from which the manifest's routes
// lead back to model; empty without one.
func (m *manifest) circle(model string) at[string] {
	byModel := make(map[string]routeSpec, len(m.Routes))
	for _, r := range m.Routes {
		byModel[r.V.Model] = r.V
	}
	seen := map[string]bool{}
	var leads func(from string) bool
	leads = func(from string) bool {
		if from == model {
			return true
		}
		if seen[from] {
			return false
		}
		seen[from] = true
		for next := range byModel[from].fallsBackOn {
			if leads(next.V) {
				return true
			}
		}
		return false
	}
	for first := range byModel[model].fallsBackOn {
		if leads(first.V) {
			return first
		}
	}
	return at[string]{}
}

type targetSpec struct {
	Upstream at[string] `yaml:"upstream"`
	Model    string     `yaml:"model"`
	Weight   uint32     `yaml:"weight"`
	Order    uint32     `yaml:"order"`
}

type timeoutsSpec struct {
	ConnectMS   uint32 `yaml:"connect_ms"`
	FirstByteMS uint32 `yaml:"first_byte_ms"`
	IdleMS      uint32 `yaml:"between_events_ms"`
	TotalMS     uint32 `yaml:"total_ms"`
}

type orgSpec struct {
	Name         string            `yaml:"name"`
	Plan         string            `yaml:"plan"`         // empty keeps what is there
	State        string            `yaml:"state"`        // empty keeps what is there
	Jurisdiction string            `yaml:"jurisdiction"` // empty keeps what is there
	Roaming      bool              `yaml:"roaming"`
	Projects     []at[projectSpec] `yaml:"projects"`
}

type projectSpec struct {
	Org           at[string] `yaml:"org"` // not inside an org
	Name          string     `yaml:"name"`
	CrossProvider bool       `yaml:"cross_provider"`
	Class         string     `yaml:"class"`
}

type policySpec struct {
	Org         at[string]   `yaml:"org"`
	Project     at[string]   `yaml:"project"` // empty = the whole org
	Residency   string       `yaml:"residency"`
	NoRetention bool         `yaml:"no_retention"`
	Models      []at[string] `yaml:"models"`
	Dedicated   bool         `yaml:"dedicated"`
}

// lineError is what is wrong at a line.
type lineError struct {
	file string
	line int
	text string
}

func (e *lineError) Error() string { return fmt.Sprintf("%s:%d: %s", e.file, e.line, e.text) }

// parse reads all documents. Projects inside an org get its name as theirs.
func parse(file string, text []byte) (*manifest, error) {
	all := new(manifest)
	for dec := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()); ; {
		var doc manifest
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, explainYAML(file, err)
		}
		all.Regions = append(all.Regions, doc.Regions...)
		all.Upstreams = append(all.Upstreams, doc.Upstreams...)
		all.Routes = append(all.Routes, doc.Routes...)
		all.Orgs = append(all.Orgs, doc.Orgs...)
		all.Projects = append(all.Projects, doc.Projects...)
		all.Policies = append(all.Policies, doc.Policies...)
	}
	var problems []error
	for _, org := range all.Orgs {
		for _, p := range org.V.Projects {
			if p.V.Org.V != "" {
				problems = append(problems, &lineError{file, p.V.Org.Line, "a project inside an org takes no org of its own: remove the field"})
			}
			p.V.Org = at[string]{org.V.Name, p.Line}
			all.Projects = append(all.Projects, p)
		}
	}
	return all, errors.Join(append(problems, all.checkNames(file)...)...)
}

// explainYAML turns the library's errors, which quote the source, into one line.
func explainYAML(file string, err error) error {
	var located yaml.Error
	if !errors.As(err, &located) || located.GetToken() == nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	text := config.Plain(located.GetMessage())
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		text += ": check the spelling"
	}
	return &lineError{file, located.GetToken().Position.Line, text}
}

// checkNames wants a name for every item, once.
func (m *manifest) checkNames(file string) []error {
	var problems []error
	seen := map[string]int{}
	name := func(line int, kind, name string) {
		switch first, twice := seen[kind+" "+name]; {
		case strings.Trim(name, "/") == "" || strings.HasSuffix(name, "/") && kind == "project":
			problems = append(problems, &lineError{file, line, "this " + kind + " has no name"})
		case twice:
			problems = append(problems, &lineError{file, line, fmt.Sprintf("%s %q is declared at line %d already", kind, name, first)})
		}
		seen[kind+" "+name] = line
	}
	for _, r := range m.Regions {
		name(r.Line, "region", r.V.Name)
	}
	for _, u := range m.Upstreams {
		name(u.Line, "upstream", u.V.Name)
	}
	for _, r := range m.Routes {
		name(r.Line, "route", r.V.Model)
	}
	for _, o := range m.Orgs {
		name(o.Line, "org", o.V.Name)
	}
	for _, p := range m.Projects {
		if p.V.Org.V == "" {
			problems = append(problems, &lineError{file, p.Line, fmt.Sprintf("project %q names no org", p.V.Name)})
			continue
		}
		name(p.Line, "project", p.V.Org.V+"/"+p.V.Name)
	}
	for _, p := range m.Policies {
		if p.V.Org.V == "" {
			problems = append(problems, &lineError{file, p.Line, "this policy names no org"})
			continue
		}
		name(p.Line, "policy", scope(p.V.Org.V, p.V.Project.V))
	}
	return problems
}

// scope names an org or one of its projects.
func scope(org, project string) string {
	if project == "" {
		return org
	}
	return org + "/" + project
}

// world is what is on the server, by name.
type world struct {
	regions   map[string]api.Region
	upstreams map[string]api.Upstream
	routes    map[string]api.Route
	orgs      map[string]api.Org     // those the manifest names
	projects  map[string]api.Project // "org/project", of those orgs
	policies  map[string]api.Policy  // "org" or "org/project", of those orgs
}

// checkReferences finds names that neither the manifest nor the server knows.
func (m *manifest) checkReferences(file string, w *world) error {
	regions, upstreams, routes, orgs, projects := keys(w.regions), keys(w.upstreams), keys(w.routes), keys(w.orgs), keys(w.projects)
	for _, r := range m.Regions {
		regions[r.V.Name] = true
	}
	for _, u := range m.Upstreams {
		upstreams[u.V.Name] = true
	}
	for _, r := range m.Routes {
		routes[r.V.Model] = true
	}
	for _, o := range m.Orgs {
		orgs[o.V.Name] = true
	}
	for _, p := range m.Projects {
		projects[scope(p.V.Org.V, p.V.Name)] = true
	}
	var problems []error
	want := func(known map[string]bool, line int, kind, name, by string) {
		if !known[name] {
			problems = append(problems, &lineError{file, line, fmt.Sprintf("%s refers to %s %q, which is neither in the manifest nor on the server", by, kind, name)})
		}
	}
	for _, u := range m.Upstreams {
		by := fmt.Sprintf("upstream %q", u.V.Name)
		want(regions, or(u.V.Region.Line, u.Line), "region", u.V.Region.V, by)
		if u.V.Dedicated.V != "" {
			want(orgs, or(u.V.Dedicated.Line, u.Line), "org", u.V.Dedicated.V, by)
		}
	}
	for _, r := range m.Routes {
		for _, t := range r.V.Targets {
			want(upstreams, or(t.Upstream.Line, r.Line), "upstream", t.Upstream.V, fmt.Sprintf("route %q", r.V.Model))
		}
		for model := range r.V.fallsBackOn {
			want(routes, or(model.Line, r.Line), "model", model.V, fmt.Sprintf("route %q", r.V.Model))
		}
		if back := m.circle(r.V.Model); back.V != "" {
			problems = append(problems, &lineError{file, or(back.Line, r.Line), fmt.Sprintf("route %q falls back on itself, by way of %q: fallbacks must not form a circle", r.V.Model, back.V)})
		}
	}
	for _, p := range m.Projects {
		want(orgs, p.V.Org.Line, "org", p.V.Org.V, fmt.Sprintf("project %q", p.V.Name))
	}
	for _, p := range m.Policies {
		by := fmt.Sprintf("the policy of %q", scope(p.V.Org.V, p.V.Project.V))
		want(orgs, p.V.Org.Line, "org", p.V.Org.V, by)
		if p.V.Project.V != "" {
			want(projects, p.V.Project.Line, "project", scope(p.V.Org.V, p.V.Project.V), by)
		}
		for _, model := range p.V.Models {
			want(routes, model.Line, "model", model.V, by)
		}
	}
	return errors.Join(problems...)
}

// orgNames lists the orgs that the manifest is about.
func (m *manifest) orgNames() []string {
	var names []string
	for _, u := range m.Upstreams {
		if u.V.Dedicated.V != "" {
			names = append(names, u.V.Dedicated.V)
		}
	}
	for _, o := range m.Orgs {
		names = append(names, o.V.Name)
	}
	for _, p := range m.Projects {
		names = append(names, p.V.Org.V)
	}
	for _, p := range m.Policies {
		names = append(names, p.V.Org.V)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func keys[T any](m map[string]T) map[string]bool {
	set := make(map[string]bool, len(m))
	for k := range m {
		set[k] = true
	}
	return set
}

func or(line, fallback int) int {
	if line == 0 {
		return fallback
	}
	return line
}
