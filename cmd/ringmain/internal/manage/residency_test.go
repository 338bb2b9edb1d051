package manage_test

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"ringmain/cmd/ringmain/internal/declare"
	"ringmain/cmd/ringmain/internal/residency"
	"ringmain/controlplane/admin/api"
)

// homes is a manifest with every case that the report tells apart.
var homes = strings.ReplaceAll(`regions:
  - {name: us-east, jurisdiction: us, endpoint: "https://us-east.example.com"}
  - {name: us-west, jurisdiction: us, endpoint: "https://us-west.example.com"}
  - {name: eu-fra, jurisdiction: eu, endpoint: "https://eu-fra.example.com"}
  - {name: us-north, jurisdiction: us, endpoint: "https://us-north.example.com", state: drained}
orgs:
  - {name: Acme, state: verified}
upstreams:
  - {name: east, provider: p, region: us-east, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}}
  - {name: west, provider: p, region: us-west, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: 30d, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}}
  - {name: fra, provider: p, region: eu-fra, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}, endpoints: [/v1/chat/completions], headers: [{name: x-team, value: core}], query: api-version=1, concurrency: 9}
  - {name: sg, provider: p, region: us-north, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}}
  - {name: "off", provider: p, region: us-west, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}, disabled: true}
  - {name: other, provider: q, region: us-west, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}}
  - {name: own, provider: p, region: eu-fra, dialect: openai, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}, dedicated: Acme}
  - {name: claude, provider: p, region: us-east, dialect: anthropic, base_url: "https://127.0.0.1:1", auth: none, terms: {retention: zero, prompt_cache: memory, training: never, contract: CONTRACT, dated: "2026-01-01"}}
routes:
  - model: chat
    targets: [{upstream: east, model: m}, {upstream: west, model: m}, {upstream: fra, model: m}, {upstream: sg, model: m}]
    fallbacks: [small]
    context_fallback: small
    deterministic: true
  - model: small
    targets: [{upstream: east, model: s}, {upstream: "off", model: s}, {upstream: other, model: s, order: 1}, {upstream: own, model: s}, {upstream: claude, model: s}]
projects:
  - {org: Acme, name: nightly, class: batch}
policies:
  - {org: Acme, project: nightly, dedicated: true}
`, "CONTRACT", `"`+noContract+`"`)

func TestResidencyReport(t *testing.T) {
	c := start(t)
	c.ok("apply", "-f", c.write("homes.yaml", homes), "--yes")
	org := strings.Fields(strings.Split(c.ok("org", "get", "Acme"), "\n")[1])[0]
	want := strings.ReplaceAll(`eu: eu-fra; survives the loss of any one region: no (there is no second region)
  jurisdiction eu has one region (eu-fra): records there cannot be acknowledged multi-region, and only a sealed backup kept elsewhere survives its loss
  MODEL              SERVED-IN                            ZERO-RETENTION  WITHOUT-EU-FRA
  chat at /v1/chat/completions        eu-fra  eu-fra  LOST
  chat at /v1/completions and 8 more  -       -       not served
  small (anthropic)  -                                    -               not served
  small (openai)     (ORG only: eu-fra)  -               not served

us: us-east, us-west (drained: us-north); survives the loss of any one region: no (without a second home: small)
  MODEL              SERVED-IN                           ZERO-RETENTION  WITHOUT-US-EAST                      WITHOUT-US-WEST
  chat               us-east, us-west                    us-east         served, but not with zero retention  served
  small (anthropic)  us-east                             us-east         LOST                                 served
  small (openai)     us-east (other providers: us-west)  us-east         LOST                                 served

not pinned: eu-fra, us-east, us-west (drained: us-north); survives the loss of any one region: no (without a second home: small)
  MODEL              SERVED-IN                                                                ZERO-RETENTION   WITHOUT-EU-FRA  WITHOUT-US-EAST  WITHOUT-US-WEST
  chat at /v1/chat/completions        eu-fra, us-east, us-west  eu-fra, us-east  served  served                               served
  chat at /v1/completions and 8 more  us-east, us-west          us-east          served  served, but not with zero retention  served
  small (anthropic)  us-east                                                                  us-east          served          LOST             served
  small (openai)     us-east (other providers: us-west) (ORG only: eu-fra)  us-east          served          LOST             served
`, "ORG", org)
	if got := c.ok("residency", "report"); squeeze(got) != squeeze(want) {
		t.Errorf("%s", got)
	}
	var report residency.Report
	if err := json.Unmarshal([]byte(c.ok("residency", "report", "-o", "json")), &report); err != nil || len(report.Jurisdictions) != 3 {
		t.Fatalf("%+v %v", report, err)
	}
	us := report.Jurisdictions[1]
	if us.SurvivesRegionLoss || !us.Models[0].SurvivesRegionLoss || us.Models[0].ZeroSurvives || !slices.Equal(us.Models[2].LostWith, []string{"us-east"}) {
		t.Errorf("%+v", us)
	}
	if yaml := c.ok("residency", "report", "-o", "yaml"); !strings.Contains(yaml, "survives_region_loss: false") || strings.Count(yaml, "multi_region: false") != 1 || strings.Count(yaml, "multi_region: true") != 2 {
		t.Errorf("%s", yaml)
	}
}

// squeeze leaves the width of columns out of account: ids differ in length.
func squeeze(table string) string {
	lines := strings.Split(table, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return strings.Join(lines, "\n")
}

// TestNewFieldsComeBack: what a manifest says of upstreams, routes, projects and
// policies is stored, shown, and found unchanged.
func TestNewFieldsComeBack(t *testing.T) {
	c := start(t)
	file := c.write("homes.yaml", homes)
	c.ok("apply", "-f", file, "--yes")
	if _, stderr, _ := c.run("apply", "-f", file, "--yes", "--cluster", c.path("cluster.json")); !strings.HasSuffix(stderr, "0 created, 0 updated, 17 unchanged\n") {
		t.Errorf("the second time: %s", stderr)
	}
	client := c.client()
	org, err := client.OrgByName(t.Context(), "Acme")
	if err != nil {
		t.Fatal(err)
	}
	fra, err := client.GetUpstream(t.Context(), "fra")
	if err != nil || !slices.Equal(fra.Endpoints, []string{"/v1/chat/completions"}) || !slices.Equal(fra.Headers, []api.Header{{Name: "x-team", Value: "core"}}) ||
		fra.Query != "api-version=1" || fra.Concurrency != 9 || fra.Dedicated != "" {
		t.Errorf("%+v %v", fra, err)
	}
	own, err := client.GetUpstream(t.Context(), "own")
	if err != nil || own.Dedicated != org.ID {
		t.Errorf("%+v %v", own, err)
	}
	chat, err := client.GetRoute(t.Context(), "chat")
	if err != nil || !slices.Equal(chat.Fallbacks, []string{"small"}) || chat.ContextFallback != "small" || !chat.Deterministic {
		t.Errorf("%+v %v", chat, err)
	}
	if got := c.ok("project", "get", "Acme/nightly"); !strings.Contains(got, "batch") {
		t.Errorf("%s", got)
	}

	// The commands say the same.
	c.ok("upstream", "update", "west", "--header", "x-team=core", "--header", "x-b=a=b", "--query", "v=2", "--concurrency", "3", "--endpoint", "/v1/embeddings", "--dedicated", "Acme")
	west, err := client.GetUpstream(t.Context(), "west")
	if err != nil || west.Dedicated != org.ID || west.Query != "v=2" || west.Concurrency != 3 || len(west.Headers) != 2 || west.Headers[1].Value != "a=b" || len(west.Endpoints) != 1 {
		t.Errorf("%+v %v", west, err)
	}
	c.ok("upstream", "update", "west", "--disabled")
	if west, err = client.GetUpstream(t.Context(), "west"); err != nil || len(west.Headers) != 2 || west.Dedicated != org.ID {
		t.Errorf("an update that says nothing of them takes them away: %+v %v", west, err)
	}
	c.ok("route", "update", "small", "--deterministic")
	if small, err := client.GetRoute(t.Context(), "small"); err != nil || !small.Deterministic || len(small.Targets) != 5 {
		t.Errorf("%+v %v", small, err)
	}
	stdout, stderr, status := c.run("route", "update", "small", "--fallback", "chat", "--cluster", c.path("cluster.json"))
	if status == 0 || !strings.Contains(stderr, "must not form a circle") {
		t.Errorf("%d %s%s", status, stdout, stderr)
	}
	if stdout, stderr, status = c.run("upstream", "update", "west", "--header", "nothing", "--cluster", c.path("cluster.json")); status != 2 || !strings.Contains(stderr, "NAME=VALUE") {
		t.Errorf("%d %s%s", status, stdout, stderr)
	}
}

// TestFallbacksAreWrittenFirst: a manifest may name routes in any order, and turn
// a chain round.
func TestFallbacksAreWrittenFirst(t *testing.T) {
	c := start(t)
	chain := func(models ...string) string {
		text := catalog
		for i, m := range models {
			text += "  - model: " + m + "\n    targets: [{upstream: sim-eu, model: m}]\n"
			if i+1 < len(models) {
				text += "    fallbacks: [" + models[i+1] + "]\n"
			}
		}
		return text
	}
	opts := declare.Options{Getenv: func(string) string { return "sk" }}
	for _, order := range [][]string{{"a", "b", "c"}, {"c", "b", "a"}, {"b", "a", "c"}} {
		if _, err := declare.Apply(t.Context(), c.client(), []byte(chain(order...)), opts); err != nil {
			t.Fatalf("%v: %v", order, err)
		}
		if again, err := declare.Apply(t.Context(), c.client(), []byte(chain(order...)), opts); err != nil || again.Changes() != 0 {
			t.Errorf("%v: %v, %v", order, again, err)
		}
	}
	_, err := declare.Apply(t.Context(), c.client(), []byte(chain("a", "b", "a2")+"    fallbacks: [nowhere]\n"), opts)
	if err == nil || !strings.Contains(err.Error(), `route "a2" refers to model "nowhere"`) {
		t.Errorf("%v", err)
	}
}

func TestBrownout(t *testing.T) {
	c := start(t)
	if got := c.ok("region", "brownout", "eu-fra", "--level", "2"); !strings.Contains(got, "BROWNOUT") || !strings.Contains(got, " 2 ") {
		t.Errorf("%s", got)
	}
	before, err := c.client().GetRegion(t.Context(), "us-east")
	if err != nil || before.Brownout != 0 {
		t.Errorf("%+v %v", before, err)
	}
	eu, err := c.client().GetRegion(t.Context(), "eu-fra")
	if err != nil || eu.Brownout != 2 || eu.Jurisdiction != "eu" || eu.State != "active" {
		t.Errorf("%+v %v", eu, err)
	}
	// A manifest that does not say keeps it.
	if _, err := declare.Apply(t.Context(), c.client(), []byte("regions:\n  - {name: eu-fra, jurisdiction: eu, endpoint: \"https://new.example.com\"}\n"), declare.Options{}); err != nil {
		t.Fatal(err)
	}
	if eu, err = c.client().GetRegion(t.Context(), "eu-fra"); err != nil || eu.Brownout != 2 {
		t.Errorf("%+v %v", eu, err)
	}
	if got := c.ok("region", "brownout", "eu-fra", "--level", "0"); !strings.Contains(got, "automatic") {
		t.Errorf("%s", got)
	}
	for says, args := range map[string][]string{"--level is needed: ": {"eu-fra"}, "--level 5: 1 to 4 ": {"eu-fra", "--level", "5"}, "--level -2: 1 to 4 ": {"eu-fra", "--level", "-2"}} {
		if stdout, stderr, status := c.run(append([]string{"region", "brownout", "--cluster", c.path("cluster.json")}, args...)...); status != 2 || !strings.Contains(stderr, says) {
			t.Errorf("%v: %d %s%s", args, status, stdout, stderr)
		}
	}
	var p *api.Problem
	if _, err := c.client().PutRegion(t.Context(), "eu-fra", api.RegionInput{Jurisdiction: "eu", Brownout: 7}); !errors.As(err, &p) || p.Status != 422 {
		t.Errorf("%v", err)
	}
}

// TestResidencyAgainstNaive: a region's loss takes from a jurisdiction exactly
// the models that a report without that region does not serve.
func TestWarningsOfTerms(t *testing.T) {
	c := start(t)
	plan, err := declare.Apply(t.Context(), c.client(), []byte(homes+`---
orgs:
  - {name: Careful, jurisdiction: eu}
  - {name: Roamer, roaming: true}
policies:
  - {org: Careful, no_retention: true}
  - {org: Roamer, no_retention: true, models: [chat]}
`), declare.Options{DryRun: true})
	var got []string
	for _, w := range plan.Warnings {
		if !strings.Contains(w, "enter in eu") {
			got = append(got, w)
		}
	}
	want := []string{
		`jurisdiction eu has one region (eu-fra): records there cannot be acknowledged multi-region, and only a sealed backup kept elsewhere survives its loss`,
		`"Acme/nightly" uses its own upstreams only, but model "chat" has no enabled upstream that the org may use: such requests will be refused`,
		`"Careful" would use it, but model "small" has no enabled upstream that the org may use: such requests will be refused`,
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v\n%s", err, strings.Join(got, "\n"))
	}
	plan, err = declare.Apply(t.Context(), c.client(), []byte(strings.ReplaceAll(homes, "retention: zero", "retention: 7d")+`---
orgs:
  - {name: Careful, jurisdiction: us, plan: enterprise}
policies:
  - {org: Careful, no_retention: true, models: [chat]}
`), declare.Options{DryRun: true})
	if want := `"Careful" wants zero retention, but model "chat" has no enabled upstream that keeps nothing in a region of us: such requests will be refused`; err != nil || !slices.Contains(plan.Warnings, want) {
		t.Errorf("%v\n%s", err, strings.Join(plan.Warnings, "\n"))
	}
}
