package manage_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"ringmain/cmd/ringmain/internal/cli"
	"ringmain/cmd/ringmain/internal/manage"
	"ringmain/controlplane/apikey"
)

const noContract = "0000000000000000000000000000000000000000000000000000000000000000"

func TestFromOrgToKeyByCommands(t *testing.T) {
	c := start(t)
	c.ok("org", "create", "Acme", "--state", "verified")
	c.ok("org", "create", "Köln AG", "--state", "verified", "--jurisdiction", "eu")
	c.ok("project", "create", "web", "--org", "Acme")
	c.ok("project", "create", "web", "--org", "Köln AG") // found although it is pinned elsewhere
	c.ok("project", "update", "Köln AG/web", "--cross-provider")
	if out := c.ok("project", "list", "--org", "Köln AG"); !strings.Contains(out, "prj_eu_") || !strings.Contains(out, "yes") {
		t.Errorf("projects:\n%s", out)
	}

	stdout, stderr, status := c.run("key", "create", "ci", "--project", "Acme/web", "--expires", "720h", "--cluster", c.path("cluster.json"))
	key := strings.TrimSpace(stdout)
	parsed, err := apikey.Parse(key)
	if status != 0 || err != nil || stdout != key+"\n" || !strings.Contains(stderr, "one time") {
		t.Fatalf("key create: %d, %q, %q", status, stdout, stderr)
	}
	id := parsed.RecordID()
	next := strings.TrimSpace(c.ok("key", "rotate", id, "--grace", "1h"))
	if p, err := apikey.Parse(next); err != nil || p != parsed || next == key {
		t.Errorf("rotated to %q, %v", next, err)
	}
	var shown map[string]any
	if err := json.Unmarshal([]byte(c.ok("key", "get", id, "-o", "json")), &shown); err != nil || shown["id"] != id || shown["key"] != nil || shown["previous_secret_until"] == nil {
		t.Errorf("key get: %v, %v", shown, err)
	}
	c.ok("key", "update", id, "--name", "laptop", "--expires", "")
	if out := c.ok("key", "list", "--project", "Acme/web"); !strings.Contains(out, "laptop") || !strings.Contains(out, "in force") || strings.Contains(out, key[len(key)-10:]) {
		t.Errorf("keys:\n%s", out)
	}
	if out := c.ok("key", "revoke", id); !strings.Contains(out, "revoked") {
		t.Errorf("revoke:\n%s", out)
	}
	if _, stderr, _ := c.run("key", "revoke", id, "--cluster", c.path("cluster.json")); !strings.Contains(stderr, "held by 1 of 2 regions and 0 of 0 data nodes\n") || !strings.Contains(stderr, "regions not heard, so that nothing is known: eu-fra\n") {
		t.Errorf("revoke says of who holds it: %q", stderr)
	}
	second := strings.TrimSpace(c.ok("key", "create", "phone", "--project", "Acme/web"))
	if out := c.ok("key", "revoke", "--project", "Acme/web", "--all", "-o", "json"); !strings.Contains(out, `"keys": 2`) || !strings.Contains(out, `"revoked": 1`) {
		t.Errorf("revoke all of a project:\n%s", out)
	}
	if out := c.ok("key", "revoke", "--org", "Acme", "--all", "--expect", "2", "-o", "json"); !strings.Contains(out, `"revoked": 0`) {
		t.Errorf("revoke all of an org:\n%s", out)
	}
	if _, stderr, status := c.run("key", "revoke", "--org", "Acme", "--all", "--expect", "3", "--cluster", c.path("cluster.json")); status != 1 || !strings.Contains(stderr, "has 2 keys, 0 of them in force") {
		t.Errorf("wrong count: %d, %q", status, stderr)
	}
	for _, args := range [][]string{{}, {"--all"}, {id, "--all", "--org", "Acme"}, {"--org", "Acme", "--project", "Acme/web", "--all"}, {"--org", "Acme"}, {id, "--project", "Acme/web"}} {
		if _, stderr, status := c.run(append([]string{"key", "revoke"}, args...)...); status != 2 || !strings.Contains(stderr, "say which") {
			t.Errorf("key revoke %q: %d, %q", args, status, stderr)
		}
	}
	if p, err := apikey.Parse(second); err != nil {
		t.Error(err)
	} else {
		c.ok("key", "delete", p.RecordID())
	}
	c.ok("key", "delete", id)
	c.ok("org", "update", "Acme", "--plan", "build", "--name", "Acme Ltd")
	if out := c.ok("org", "get", "Acme Ltd", "-o", "yaml"); !strings.Contains(out, "plan: build\n") || !strings.Contains(out, "state: verified\n") {
		t.Errorf("org:\n%s", out)
	}
	c.ok("project", "delete", "Acme Ltd/web")
	c.ok("org", "delete", "Acme Ltd")

	stdout, stderr, _ = c.run("org", "list", "--cluster", c.path("cluster.json"))
	if strings.Contains(stdout, "Köln") || stderr != "not listed: orgs pinned to eu; list those with --jurisdiction\n" {
		t.Errorf("org list: %q, %q", stdout, stderr)
	}
	if out := c.ok("org", "list", "--jurisdiction", "eu"); !strings.Contains(out, "Köln AG") {
		t.Errorf("eu orgs:\n%s", out)
	}
	if out := c.ok("org", "list", "-o", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("an empty list as JSON: %q", out)
	}
}

func TestCatalogByCommands(t *testing.T) {
	c := start(t)
	terms := []string{"--retention", "30d", "--prompt-cache", "memory", "--contract", noContract, "--dated", "2026-05-01"}
	c.stdin = "sk-provider-secret\n"
	out := c.ok(append([]string{"upstream", "create", "openai-us", "--provider", "openai", "--region", "us-east", "--base-url", "https://api.example.com", "--credential-file", "-"}, terms...)...)
	if strings.Contains(out, "sk-provider") || !strings.Contains(out, "openai-us") {
		t.Errorf("upstream create:\n%s", out)
	}
	before := c.ok("upstream", "get", "openai-us", "-o", "json")
	c.ok("upstream", "update", "openai-us", "--disabled", "--retention", "zero")
	after := c.ok("upstream", "get", "openai-us", "-o", "json")
	print := func(s string) string {
		var m map[string]any
		if err := json.Unmarshal([]byte(s), &m); err != nil {
			t.Fatal(err)
		}
		p, _ := m["credential_fingerprint"].(string)
		return p
	}
	if print(before) == "" || print(before) != print(after) || !strings.Contains(after, `"retention": "zero"`) || !strings.Contains(after, `"disabled": true`) {
		t.Errorf("updated from\n%s to\n%s", before, after)
	}
	c.ok("route", "create", "meta/llama", "--target", "openai-us=llama,order=1,weight=2")
	c.ok("route", "update", "meta/llama", "--target", "openai-us=llama-2")
	if out := c.ok("route", "list"); !strings.Contains(out, "openai-us=llama-2") {
		t.Errorf("routes:\n%s", out)
	}
	c.ok("org", "create", "Acme")
	c.ok("policy", "create", "--org", "Acme", "--models", "meta/llama")
	var policies []struct{ ID string }
	if err := json.Unmarshal([]byte(c.ok("policy", "list", "--org", "Acme", "-o", "json")), &policies); err != nil || len(policies) != 1 {
		t.Fatalf("policies %v, %v", policies, err)
	}
	if out := c.ok("policy", "update", policies[0].ID, "--residency", "eu"); !strings.Contains(out, "eu") || !strings.Contains(out, "meta/llama") {
		t.Errorf("policy:\n%s", out)
	}
	c.ok("policy", "delete", policies[0].ID)
	c.ok("region", "create", "ap-sg", "--jurisdiction", "apac", "--endpoint", "https://ap.example.com")
	c.ok("region", "update", "ap-sg", "--state", "drained")
	if out := c.ok("region", "list"); !strings.Contains(out, "drained") || strings.Count(out, "\n") != 4 {
		t.Errorf("regions:\n%s", out)
	}
	c.ok("route", "delete", "meta/llama")
	c.ok("upstream", "delete", "openai-us")
	c.ok("node", "list")
	if out := c.ok("status"); !strings.Contains(out, "us-east-c1") || !strings.Contains(out, "eu-fra-c1") || !strings.Contains(out, "any-eu-fra") {
		t.Errorf("status:\n%s", out)
	}
}

// Every mistake: exit status, and what stderr says. stdout stays empty.
func TestMistakes(t *testing.T) {
	c := start(t)
	c.ok("org", "create", "Twin")
	c.ok("org", "create", "Twin")
	c.ok("org", "create", "New")
	c.ok("project", "create", "web", "--org", "New")
	file := c.path("cluster.json")
	for _, tc := range []struct {
		args   string
		status int
		says   string
	}{
		{"org", 2, "needs one of: create, delete, get, list, pin, update"},
		{"org lst", 2, `unknown command "lst" for "ringmain org"`},
		{"org get", 2, "takes 1 argument (get ORG), not 0"},
		{"org list extra", 2, "takes 0 arguments"},
		{"org list --frobnicate", 2, "unknown flag"},
		{"org list -o csv", 2, "use table, json or yaml"},
		{"project list", 2, "--org is needed"},
		{"project get web", 2, "ORG/NAME"},
		{"key create x", 2, "--project is needed"},
		{"key create x --project New/web --expires soon", 2, "--expires"},
		{"policy create", 2, "--org, or --project"},
		{"route create m", 2, "--target is needed"},
		{"route create m --target u", 2, "UPSTREAM=MODEL"},
		{"route create m --target u=m,colour=red", 2, "colour"},
		{"apply", 2, "-f is needed"},
		{"apply -f " + file, 2, "--yes"},
		{"org list --server http://x", 1, "want https://"},
		{"org list --token-file /nonexistent", 1, "no such file"},
		{"org get Nobody", 1, `org "Nobody": not found`},
		{"org get Twin", 1, "2 orgs have this name"},
		{"key create x --project New/web", 1, "create a test key, or have the org verified"},
		{"route create m --target gone=m", 1, `targets[0].upstream: "gone" does not exist`},
		{"region create us-east --jurisdiction us", 1, "use update"},
		{"region update mars", 1, "does not exist"},
		{"node revoke nobody", 2, "REGION/data/NODE"},
		{"apply -f /nonexistent --yes", 1, "no such file"},
	} {
		stdout, stderr, status := c.run(append(strings.Fields(tc.args), "--cluster", file)...)
		if status != tc.status || !strings.Contains(stderr, tc.says) || stdout != "" {
			t.Errorf("ringmain %s\n got %d, stdout %q, stderr %q\nwant %d, saying %q", tc.args, status, stdout, stderr, tc.status, tc.says)
		}
	}
}

func TestConnection(t *testing.T) {
	c := start(t)
	t.Chdir(t.TempDir()) // no .ringmain here
	if _, stderr, status := c.run("org", "list"); status != 2 || !strings.Contains(stderr, "make run") {
		t.Errorf("without anything: %d %s", status, stderr)
	}
	us := c.cluster.Regions[0].Nodes
	args := []string{"region", "list", "--token-file", c.path("token"), "--ca-file", c.path("ca.pem"), "--server", us[0].URL, "--server", us[1].URL}
	if _, stderr, status := c.run(args...); status != 0 {
		t.Errorf("by flags: %s", stderr)
	}
	us[0].Kill()
	if _, stderr, status := c.run(args...); status != 0 {
		t.Errorf("the next server must be asked: %s", stderr)
	}
	c.env = map[string]string{"RINGMAIN_SERVER": us[1].URL, "RINGMAIN_TOKEN_FILE": c.path("token"), "RINGMAIN_CA_FILE": c.path("ca.pem")}
	if _, stderr, status := c.run("region", "list"); status != 0 {
		t.Errorf("by environment: %s", stderr)
	}
	delete(c.env, "RINGMAIN_CA_FILE")
	if _, stderr, status := c.run("region", "list"); status != 1 || !strings.Contains(stderr, "--ca-file") {
		t.Errorf("unknown authority: %d %s", status, stderr)
	}
	if _, stderr, status := c.run("region", "list", "--ca-file", c.path("ca.pem"), "--token-file", c.write("other", "nope")); status != 1 || !strings.Contains(stderr, "has not ended") {
		t.Errorf("wrong token: %d %s", status, stderr)
	}
	if _, stderr, status := c.run("status", "--cluster", c.path("cluster.json"), "--ca-file", c.path("ca.pem"), "--server", us[0].URL, "--server", us[1].URL); status != 0 || !strings.Contains(stderr, "cannot be reached") {
		t.Errorf("status with one server down: %d %s", status, stderr)
	}
	us[1].Kill()
	if _, stderr, status := c.run(args...); status != 1 || strings.Count(stderr, "cannot be reached") != 2 {
		t.Errorf("all down: %d %s", status, stderr)
	}
	if _, stderr, status := c.run("status", "--ca-file", c.path("ca.pem")); status != 1 || !strings.Contains(stderr, "none of 1 servers answered") {
		t.Errorf("status with all down: %d %s", status, stderr)
	}
}

// Every command explains itself, with an example that parses.
func TestHelp(t *testing.T) {
	c := start(t)
	var walk func(path []string, cmd *cobra.Command)
	walk = func(path []string, cmd *cobra.Command) {
		path = append(path, cmd.Name())
		stdout, _, status := c.run(append(path, "--help")...)
		if status != 0 || !strings.Contains(stdout, "Examples:") || !strings.Contains(stdout, "--token-file") || cmd.Short == "" {
			t.Errorf("%v --help: %d\n%s", path, status, stdout)
		}
		if !strings.Contains(cmd.Example, strings.Join(path, " ")) {
			t.Errorf("%v: its example is of another command: %s", path, cmd.Example)
		}
		for _, sub := range cmd.Commands() {
			walk(path, sub)
		}
	}
	for _, cmd := range manage.Commands(cli.Env{Getenv: func(string) string { return "" }}) {
		walk(nil, cmd)
	}
}
