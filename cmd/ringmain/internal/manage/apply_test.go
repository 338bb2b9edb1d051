package manage_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"ringmain/cmd/ringmain/internal/adminclient"
	"ringmain/cmd/ringmain/internal/declare"
	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

const catalog = `upstreams:
  - name: sim-us
    provider: simulated
    region: us-east
    dialect: openai
    base_url: https://127.0.0.1:1
    auth: bearer
    credential_env: SIM_KEY
    terms: &terms {retention: zero, prompt_cache: none, training: never, contract: "` + noContract + `", dated: "2026-01-01"}
  - name: sim-eu
    provider: simulated
    region: eu-fra
    dialect: openai
    base_url: https://127.0.0.1:2
    auth: none
    simulated: true
    terms: {retention: 30d, prompt_cache: memory, training: never, contract: "` + noContract + `", dated: "2026-01-01"}
routes:
  - model: chat
    targets:
      - {upstream: sim-us, model: chat}
      - {upstream: sim-eu, model: chat, order: 1}
    timeouts: {connect_ms: 500}
  - model: us-only
    targets: [{upstream: sim-us, model: m}]
`

const accounts = `---
regions:
  - name: eu-ams
    jurisdiction: eu
    endpoint: https://eu-ams.example.com
orgs:
  - name: Acme
    plan: enterprise
    state: verified
    roaming: true
    projects:
      - name: web
  - name: Köln
    state: verified
    jurisdiction: eu
projects:
  - {org: Köln, name: shop, cross_provider: true}
policies:
  - org: Acme
    no_retention: true
  - org: Köln
    project: shop
    models: [chat]
`

// transcript is the plan as lines.
func transcript(p declare.Plan) string {
	var b strings.Builder
	for _, s := range p.Steps {
		b.WriteString(string(s.Action) + " " + s.Kind + " " + s.Name + "\n")
		for _, d := range s.Diff {
			b.WriteString("  " + d + "\n")
		}
	}
	return b.String()
}

func TestApplyTwice(t *testing.T) {
	c := start(t)
	client := c.client()
	env := map[string]string{"SIM_KEY": "sk-1"}
	opts := declare.Options{File: "m.yaml", Getenv: func(k string) string { return env[k] }}
	text := []byte(catalog + accounts)

	dry := opts
	dry.DryRun = true
	first, err := declare.Apply(t.Context(), client, text, dry)
	if err != nil {
		t.Fatal(err)
	}
	const all = `create region eu-ams
create org Acme
create org Köln
create upstream sim-us
create upstream sim-eu
create route chat
create route us-only
create project Köln/shop
create project Acme/web
create policy Acme
create policy Köln/shop
`
	if got := transcript(first); got != all || first.Applied || first.Summary() != "11 to create, 0 to update, 0 unchanged" {
		t.Errorf("plan:\n%s%s", got, first.Summary())
	}
	if routes, err := client.Routes(t.Context()); err != nil || len(routes) != 0 {
		t.Errorf("a dry run wrote %v, %v", routes, err)
	}

	var progress bytes.Buffer
	opts.Progress = &progress
	done, err := declare.Apply(t.Context(), client, text, opts)
	if err != nil || !done.Applied || strings.Count(progress.String(), "\n") != 11 {
		t.Fatalf("applied %v, %v\n%s", done.Applied, err, progress.String())
	}
	org, err := client.OrgByName(t.Context(), "Köln")
	if err != nil || !strings.HasPrefix(org.ID, "org_eu_") {
		t.Errorf("%+v, %v", org, err)
	}

	opts.Confirm = func(declare.Plan) (bool, error) { t.Error("asked, with nothing to do"); return false, nil }
	again, err := declare.Apply(t.Context(), client, text, opts)
	if err != nil || again.Changes() != 0 || !again.Applied || strings.Count(progress.String(), "\n") != 11 {
		t.Errorf("second time: %v\n%s", err, transcript(again))
	}

	// Changes are found field by field; what is left out keeps or resets as documented.
	env["SIM_KEY"] = "sk-2"
	changed := strings.NewReplacer("order: 1", "order: 2", "    plan: enterprise\n    state: verified\n    roaming: true\n", "", "models: [chat]", "models: [chat, us-only]").Replace(string(text))
	opts.Confirm = func(declare.Plan) (bool, error) { return false, nil }
	no, err := declare.Apply(t.Context(), client, []byte(changed), opts)
	if err != nil || no.Applied {
		t.Errorf("refused, and yet applied: %v", err)
	}
	const updates = `unchanged region eu-ams
update org Acme
  roaming: true -> (none)
unchanged org Köln
update upstream sim-us
  credential: (changed)
unchanged upstream sim-eu
update route chat
  targets: [{"upstream":"sim-us","model":"chat"},{"upstream":"sim-eu","model":"chat","order":1}] -> [{"upstream":"sim-us","model":"chat"},{"upstream":"sim-eu","model":"chat","order":2}]
unchanged route us-only
unchanged project Köln/shop
unchanged project Acme/web
unchanged policy Acme
update policy Köln/shop
  models: ["chat"] -> ["chat","us-only"]
`
	if got := transcript(no); got != updates {
		t.Errorf("plan:\n%s", got)
	}
	opts.Confirm = nil
	if yes, err := declare.Apply(t.Context(), client, []byte(changed), opts); err != nil || yes.Summary() != "0 created, 4 updated, 7 unchanged" {
		t.Errorf("%s, %v", yes.Summary(), err)
	}
	if last, err := declare.Apply(t.Context(), client, []byte(changed), opts); err != nil || last.Changes() != 0 {
		t.Errorf("%s, %v", transcript(last), err)
	}
	u, err := client.GetUpstream(t.Context(), "sim-us")
	if err != nil || !u.CredentialSet {
		t.Errorf("%+v, %v", u, err)
	}
	var stored string
	c.cluster.Regions[1].Nodes[0].View(func(s *ledger.State) {
		if r, ok := s.ByName(registry.KindUpstream, "sim-us"); ok {
			stored = string(r.Upstream.Credential)
		}
	})
	if stored != "sk-2" {
		t.Errorf("stored credential %q", stored)
	}
}

func TestWarnings(t *testing.T) {
	c := start(t)
	client := c.client()
	opts := declare.Options{Getenv: func(string) string { return "sk" }}
	plan, err := declare.Apply(t.Context(), client, []byte(catalog+`
orgs:
  - {name: Pinned, jurisdiction: eu}
  - {name: Homely}
  - {name: Roamer, roaming: true, projects: [{name: narrow}, {name: fine}]}
policies:
  - {org: Roamer, project: narrow, residency: eu, models: [us-only]}
  - {org: Roamer, project: fine, residency: eu, models: [chat]}
`), opts)
	want := []string{
		`jurisdiction eu has one region (eu-fra): records there cannot be acknowledged multi-region, and only a sealed backup kept elsewhere survives its loss`,
		`requests of "Homely" that enter in eu stay there, since the org does not roam, but model "us-only" has no enabled upstream in a region of eu: such requests will be refused`,
		`"Pinned" is pinned to eu, but model "us-only" has no enabled upstream in a region of eu: such requests will be refused`,
		`"Roamer/narrow" is pinned to eu, but model "us-only" has no enabled upstream in a region of eu: such requests will be refused`,
	}
	if err != nil || !slices.Equal(plan.Warnings, want) {
		t.Errorf("%v\n%s", err, strings.Join(plan.Warnings, "\n"))
	}
	plan, err = declare.Apply(t.Context(), client, []byte(strings.ReplaceAll(catalog, "auth: ", "disabled: true\n    auth: ")), opts)
	if err != nil || len(plan.Warnings) != 2 || !strings.Contains(plan.Warnings[0], `"chat" has no enabled upstream: every request`) {
		t.Errorf("%v\n%s", err, strings.Join(plan.Warnings, "\n"))
	}
}

// Every mistake is named with its line, and nothing is written.
func TestManifestErrors(t *testing.T) {
	c := start(t)
	client := c.client()
	for name, tc := range map[string]struct{ text, says string }{
		"not YAML":           {"orgs:\n  - name: [", "m.yaml:2: "},
		"not a map":          {"- a\n", "m.yaml:1: "},
		"unknown list":       {"orgs: []\nmodels: []\n", "m.yaml:2: unknown field \"models\""},
		"unknown field":      {"orgs:\n  - name: A\n    regon: x\n", "m.yaml:3: unknown field \"regon\""},
		"deep unknown field": {"routes:\n  - model: m\n    targets:\n      - upstream: u\n        wieght: 3\n", "m.yaml:5: unknown field \"wieght\""},
		"second document":    {"orgs: []\n---\norgs:\n  - labl: A\n", "m.yaml:4: unknown field \"labl\""},
		"duplicate key":      {"orgs:\n  - name: A\n    name: B\n", "m.yaml:3: "},
		"wrong type":         {"orgs:\n  - name: A\n    roaming: 7x\n", "m.yaml:3: want true or false"},
		"not a number":       {"upstreams:\n  - name: u\n    concurrency: -3\n", "m.yaml:3: want a whole number, 0 or more"},
		"own fallback":       {catalog + "  - model: x\n    targets: [{upstream: sim-us, model: a}]\n    fallbacks: [x]\n", `:28: route "x" falls back on itself`},
		"circle": {catalog + "  - model: x\n    targets: [{upstream: sim-us, model: a}]\n    fallbacks: [y]\n  - model: y\n    targets: [{upstream: sim-us, model: a}]\n    context_fallback: x\n",
			`:28: route "x" falls back on itself, by way of "y"`},
		"no name":             {"orgs:\n  - plan: trial\n", "m.yaml:2: this org has no name"},
		"twice":               {"orgs:\n  - name: A\n  - name: A\n", `m.yaml:3: org "A" is declared at line 2 already`},
		"project without org": {"projects:\n  - name: p\n", `m.yaml:2: project "p" names no org`},
		"project with two":    {"orgs:\n  - name: A\n    projects:\n      - {name: p, org: B}\n", "m.yaml:4: a project inside an org"},
		"dangling org":        {"projects:\n  - name: p\n    org: Nobody\n", `m.yaml:3: project "p" refers to org "Nobody", which is neither in the manifest nor on the server`},
		"dangling upstream":   {catalog + "  - model: x\n    targets:\n      - {upstream: sim-us, model: a}\n      - upstream: gone\n        model: a\n", `:29: route "x" refers to upstream "gone"`},
		"dangling region":     {strings.Replace(catalog, "eu-fra", "mars", 1), `m.yaml:12: upstream "sim-eu" refers to region "mars"`},
		"dangling project":    {"orgs: [{name: A}]\npolicies:\n  - org: A\n    project: p\n", `m.yaml:4: the policy of "A/p" refers to project "A/p"`},
		"dangling model":      {"orgs: [{name: A}]\npolicies:\n  - org: A\n    models:\n      - chat\n      - gpt\n", `m.yaml:6: the policy of "A" refers to model "gpt"`},
		"credential":          {strings.Replace(catalog, "SIM_KEY", "OTHER", 1), `m.yaml:2: upstream "sim-us": the credential is empty: set $OTHER`},
		"credential file":     {strings.Replace(catalog, "credential_env: SIM_KEY", "credential_file: nowhere.key", 1), `nowhere.key: no such file`},
		"region moves":        {"regions:\n  - {name: us-east, jurisdiction: eu, endpoint: https://x.example.com}\n", `m.yaml:2: region "us-east" is in "us" for good`},
	} {
		_, err := declare.Apply(t.Context(), client, []byte(tc.text), declare.Options{File: "m.yaml", Dir: c.dir, Getenv: func(k string) string {
			if k == "SIM_KEY" {
				return "sk"
			}
			return ""
		}})
		if err == nil || !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s:\n got %v\nwant %s", name, err, tc.says)
		}
	}
	orgs, _, err := client.Orgs(t.Context(), "", "")
	if routes, err2 := client.Routes(t.Context()); err != nil || err2 != nil || len(orgs)+len(routes) != 0 {
		t.Errorf("something was written: %v %v", orgs, routes)
	}
}

func TestApplyGoesOnWhereItStopped(t *testing.T) {
	c := start(t)
	client := c.client()
	opts := declare.Options{File: "m.yaml", Getenv: func(string) string { return "sk" }}
	writes := 0
	c.cluster.Broken = func(_ string, after bool) error {
		if !after {
			if writes++; writes == 3 {
				return controlplane.ErrDiskFull // unlike an election, not worth waiting for
			}
		}
		return nil
	}
	_, err := declare.Apply(t.Context(), client, []byte(catalog), opts)
	if err == nil || !strings.Contains(err.Error(), `m.yaml:19: create route "chat"`) || !strings.Contains(err.Error(), "apply again") {
		t.Errorf("%v", err)
	}
	c.cluster.Broken = nil
	plan, err := declare.Apply(t.Context(), client, []byte(catalog), opts)
	if err != nil || plan.Summary() != "2 created, 0 updated, 2 unchanged" {
		t.Errorf("%s, %v", plan.Summary(), err)
	}
	// A refusal by the registry names the line too.
	_, err = declare.Apply(t.Context(), client, []byte("orgs:\n  - name: A\n  - name: B\n    plan: gold\n"), opts)
	if err == nil || !strings.Contains(err.Error(), `m.yaml:3: create org "B": plan: "gold" must be one of`) {
		t.Errorf("%v", err)
	}
}

func TestApplyCommand(t *testing.T) {
	c := start(t)
	c.write("sim.key", "sk-file\n")
	file := c.write("m.yaml", strings.Replace(catalog, "credential_env: SIM_KEY", "credential_file: sim.key", 1)+"orgs:\n  - {name: Acme, jurisdiction: eu}\n")
	stdout, stderr, status := c.run("apply", "-f", file, "--dry-run", "--cluster", c.path("cluster.json"))
	if status != 0 || !strings.Contains(stdout, "+ upstream sim-us\n") || !strings.Contains(stderr, "dry run: 5 to create") || !strings.Contains(stderr, "warning: \"Acme\" is pinned to eu") {
		t.Errorf("dry run: %d\n%s%s", status, stdout, stderr)
	}
	stdout, stderr, status = c.run("apply", "-f", file, "--yes", "--cluster", c.path("cluster.json"))
	if status != 0 || !strings.Contains(stderr, "created org Acme\n") || !strings.HasSuffix(stderr, "5 created, 0 updated, 0 unchanged\n") || strings.Contains(stdout+stderr, "sk-file") {
		t.Errorf("apply: %d\n%s%s", status, stdout, stderr)
	}
	c.stdin = "orgs:\n  - {name: Acme, plan: scale}\n"
	stdout, stderr, status = c.run("apply", "-f", "-", "--yes", "-o", "json", "--cluster", c.path("cluster.json"))
	if status != 0 || !strings.Contains(stdout, `"plan: \"trial\" -\u003e \"scale\""`) || !strings.Contains(stdout, `"applied": true`) {
		t.Errorf("from stdin: %d\n%s%s", status, stdout, stderr)
	}
	bad := c.write("bad.yaml", "orgs:\n  - {name: Acme, state: verified}\n  - {labl: B}\n")
	stdout, stderr, status = c.run("apply", "-f", bad, "--yes", "--cluster", c.path("cluster.json"))
	if status != 1 || stdout != "" || !strings.Contains(stderr, bad+`:3: unknown field "labl"`) {
		t.Errorf("bad: %d\n%s%s", status, stdout, stderr)
	}
	if _, err := c.client().OrgByName(t.Context(), "B"); !errors.Is(err, adminclient.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// Who declares records that one region alone will hold is told so, once for
// each jurisdiction, and nobody else is.
func TestWarningsOfOneRegion(t *testing.T) {
	c := start(t) // us-east, eu-fra
	const lead = " has one region ("
	for _, tc := range []struct{ manifest, want string }{
		{"orgs:\n  - {name: Free}\n", ""},
		{"orgs:\n  - {name: Pinned, jurisdiction: eu}\n  - {name: Also, jurisdiction: eu}\n", "jurisdiction eu has one region (eu-fra)"},
		{"regions:\n  - {name: ap-sg, jurisdiction: apac}\n", "jurisdiction apac has one region (ap-sg)"},
		{"regions:\n  - {name: eu-ams, jurisdiction: eu}\norgs:\n  - {name: Pinned, jurisdiction: eu}\n", ""},
	} {
		plan, err := declare.Apply(t.Context(), c.client(), []byte(tc.manifest), declare.Options{DryRun: true})
		var got []string
		for _, w := range plan.Warnings {
			if strings.Contains(w, lead) {
				got = append(got, strings.TrimSuffix(w, ": records there cannot be acknowledged multi-region, and only a sealed backup kept elsewhere survives its loss"))
			}
		}
		if err != nil || strings.Join(got, "; ") != tc.want {
			t.Errorf("%s%v: warned of %q, want %q", tc.manifest, err, got, tc.want)
		}
	}
}
