package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tryAdmin asks the first region's management API.
func (d *devCluster) tryAdmin(t testing.TB, method, path, body string) (answer, error) {
	t.Helper()
	token, err := os.ReadFile(d.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	return d.tryAsk(t.Context(), d.client(true), method, d.Regions[0].Admin+path, body, "authorization", "Bearer "+strings.TrimSpace(string(token)))
}

func (d *devCluster) admin(t testing.TB, method, path, body string) answer {
	t.Helper()
	a, err := d.tryAdmin(t, method, path, body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// Mistakes in manifests name file, line and what is wrong; data goes to
// stdout, talk to stderr; 0 is done, 1 failed, 2 called wrongly.
func TestManifestMistakes(t *testing.T) {
	d := shared(t)
	manifest := func(text string) string {
		path := filepath.Join(t.TempDir(), "manifest.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, tc := range []struct {
		name, text string
		says       []string
	}{
		{"unknown field", "orgs:\n  - name: acme\n    colour: red\n", []string{":3:", "colour"}},
		{"dangling upstream", "routes:\n  - model: nowhere\n    targets:\n      - {upstream: no-such-upstream, model: x}\n", []string{":4:", "no-such-upstream"}},
		{"dangling org", "policies:\n  - org: nobody\n    models: [sim-chat]\n", []string{":2:", "nobody"}},
		{"dangling model", "orgs:\n  - name: dangling\npolicies:\n  - org: dangling\n    models: [no-such-model]\n", []string{":5:", "no-such-model"}},
		{"not YAML", "orgs: [\n", []string{"manifest.yaml:"}},
		{"invalid value", "orgs:\n  - name: acme\n    plan: golden\n", []string{"plan", "golden"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stdout, stderr, code := d.cli(t, "apply", "--yes", "-f", manifest(tc.text))
			if code != 1 || strings.Contains(stdout, "ringmain:") {
				t.Errorf("exit %d, stdout %q", code, stdout)
			}
			for _, s := range tc.says {
				if !strings.Contains(stderr, s) {
					t.Errorf("stderr does not say %q: %s", s, stderr)
				}
			}
			badInput(t, "manifest: "+tc.name, fmt.Sprintf("exit %d", code), stderr)
		})
	}
	if stdout, _, _ := d.cli(t, "org", "list", "-o", "json"); strings.Contains(stdout, "dangling") || strings.Contains(stdout, "acme") {
		t.Errorf("a refused manifest left something behind: %s", stdout)
	}

	good := manifest("orgs:\n  - name: twice\n    state: verified\n    projects:\n      - name: web\n")
	stdout, stderr, code := d.cli(t, "apply", "--yes", "-f", good)
	if code != 0 || !strings.Contains(stdout, "+ org twice") || strings.Contains(stderr, "+ org") || stderr == "" {
		t.Errorf("first apply: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	stdout, stderr, code = d.cli(t, "apply", "--yes", "-f", good)
	if code != 0 || strings.ContainsAny(stdout, "+~") || !strings.Contains(stderr, "0 created, 0 updated, 2 unchanged") {
		t.Errorf("second apply: exit %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	badInput(t, "manifest: applied twice", fmt.Sprintf("exit %d", code), stderr)

	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"unknown command", []string{"org", "erase"}, 2, "erase"},
		{"unknown flag", []string{"org", "list", "--colour"}, 2, "--colour"},
		{"unknown output", []string{"org", "list", "-o", "xml"}, 2, "xml"},
		{"no manifest", []string{"apply", "--yes"}, 2, "-f"},
		{"manifest missing", []string{"apply", "--yes", "-f", filepath.Join(t.TempDir(), "none.yaml")}, 1, "no such file"},
		{"nobody to ask", []string{"apply", "-f", good}, 2, "--yes"},
		{"no such record", []string{"org", "get", "org_any_0000000000000000"}, 1, "org_any_0000000000000000"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stdout, stderr, code := d.cli(t, tc.args...)
			if code != tc.code || stdout != "" || !strings.Contains(stderr, tc.says) {
				t.Errorf("exit %d, stdout %q, stderr %q", code, stdout, stderr)
			}
			badInput(t, "command: "+tc.name, fmt.Sprintf("exit %d", code), stderr)
		})
	}
}

func TestAdminMistakes(t *testing.T) {
	d := shared(t)
	base := d.Regions[0].Admin + "/admin/v1"
	token, err := os.ReadFile(d.AdminTokenFile)
	if err != nil {
		t.Fatal(err)
	}
	bearer := "Bearer " + strings.TrimSpace(string(token))
	for _, tc := range []struct {
		name, method, path, body, auth string
		status                         int
		code                           string
	}{
		{"no token", "GET", "/orgs", "", "", 401, "unauthorized"},
		{"wrong token", "GET", "/orgs", "", bearer + "x", 401, "unauthorized"},
		{"an API key as token", "GET", "/orgs", "", "Bearer " + d.APIKey, 401, "unauthorized"},
		{"body too large", "POST", "/orgs", `{"name":"` + strings.Repeat("x", 2<<20) + `"}`, bearer, 413, "too_large"},
		{"malformed JSON", "POST", "/orgs", `{"name":`, bearer, 400, "invalid_json"},
		{"unknown field", "POST", "/orgs", `{"name":"acme","colour":"red"}`, bearer, 422, "invalid"},
		{"wrong path", "GET", "/organisations", "", bearer, 404, "not_found"},
		{"wrong method", "PUT", "/orgs", `{}`, bearer, 405, "method_not_allowed"},
		{"dangling reference", "POST", "/orgs/org_any_0000000000000000/projects", `{"name":"web"}`, bearer, 404, "not_found"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := d.ask(t, tc.method, base+tc.path, tc.body, "authorization", tc.auth)
			if a.status != tc.status || !strings.Contains(a.header.Get("ringmain-error-code"), tc.code) {
				t.Errorf("%d %s: %s", a.status, a.header.Get("ringmain-error-code"), a.body)
			}
			badInput(t, "admin: "+tc.name, fmt.Sprintf("%d %s", a.status, a.header.Get("ringmain-error-code")), field(t, a.body, "detail"))
		})
	}
}

// A token has an end: the same token is refused once a node knows it as over.
func TestExpiredAdminToken(t *testing.T) {
	t.Parallel()
	d := small(t, 31440, "us-east:us")
	control := d.node(t, 0, "control")
	if a := d.admin(t, "GET", "/admin/v1/orgs", ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	b, err := os.ReadFile(nodeFile(control))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	from := strings.Index(text, "expires: ")
	if from < 0 {
		t.Fatalf("no token in:\n%s", text)
	}
	to := from + strings.Index(text[from:], "\n")
	text = text[:from] + "expires: 2020-01-01T00:00:00Z" + text[to:]
	if err := os.WriteFile(nodeFile(control), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	end(t, syscall.SIGKILL, control.PID) // its supervisor starts it anew
	var a answer
	eventually(t, 15*time.Second, func() error {
		if a, err = d.tryAdmin(t, "GET", "/admin/v1/orgs", ""); err != nil || a.status == http.StatusOK {
			return fmt.Errorf("%w %d", err, a.status)
		}
		return nil
	})
	if a.status != 401 || !strings.Contains(a.body, "has not ended") {
		t.Errorf("%d %s", a.status, a.body)
	}
	badInput(t, "admin: expired token", fmt.Sprintf("%d %s", a.status, a.header.Get("ringmain-error-code")), field(t, a.body, "detail"))
}
