package admin_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"ringmain/controlplane/admin/api"
	"ringmain/internal/testkit/controlkit"
	"ringmain/internal/testkit/logkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// caller makes requests as the operator who has the test token.
type caller struct {
	t      *testing.T
	client *http.Client
}

type reply struct {
	status int
	header http.Header
	text   string
	json   map[string]any
}

func (r reply) str(name string) string { s, _ := r.json[name].(string); return s }

// items of a list answer.
func (r reply) items() []map[string]any {
	var out []map[string]any
	list, _ := r.json["items"].([]any)
	for _, i := range list {
		m, _ := i.(map[string]any)
		out = append(out, m)
	}
	return out
}

// do sends body, a string of JSON; headers are "Name: value".
func (c caller) do(method, url, body string, headers ...string) reply {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+controlkit.Token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if value == "" {
			req.Header.Del(name)
		} else {
			req.Header.Set(name, value)
		}
	}
	resp, err := c.client.Do(req)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header, text: string(b)}
	_ = json.Unmarshal(b, &r.json) // not every answer is JSON
	if resp.StatusCode >= 400 && r.json != nil {
		if ct := resp.Header.Get("Content-Type"); ct != "application/problem+json" {
			c.t.Errorf("%s %s: error of type %q", method, url, ct)
		}
		if r.str("code") == "" || r.str("detail") == "" || r.str("code") != resp.Header.Get(api.HeaderErrorCode) || r.str("request_id") != resp.Header.Get(api.HeaderRequestID) {
			c.t.Errorf("%s %s: incomplete problem: %s %v", method, url, b, resp.Header)
		}
	}
	return r
}

// want is do, with the status that must come of it.
func (c caller) want(status int, method, url, body string, headers ...string) reply {
	c.t.Helper()
	r := c.do(method, url, body, headers...)
	if r.status != status {
		c.t.Fatalf("%s %s %s: %d %s, want %d", method, url, body, r.status, r.text, status)
	}
	return r
}

// one is a single region with a single node.
func one(t *testing.T, options ...controlkit.Option) (caller, string, *controlkit.Cluster, *logkit.Buffer) {
	t.Helper()
	logs := &logkit.Buffer{}
	c := controlkit.Start(t, logs, []string{"us-east:us"}, options...)
	return caller{t, c.Client()}, c.Regions[0].Nodes[0].URL + "/admin/v1", c, logs
}

// account makes a verified org with a project, and returns their ids.
func (c caller) account(base, jurisdiction string) (org, project string) {
	c.t.Helper()
	r := c.want(201, "POST", base+"/orgs", `{"name":"Acme","plan":"enterprise","state":"verified","jurisdiction":"`+jurisdiction+`"}`)
	p := c.want(201, "POST", base+"/orgs/"+r.str("id")+"/projects", `{"name":"web"}`)
	return r.str("id"), p.str("id")
}

const terms = `{"retention":"zero","prompt_cache":"none","training":"never","contract":"` +
	`0000000000000000000000000000000000000000000000000000000000000000","dated":"2026-01-01"}`

func upstream(name, region, more string) string {
	return `{"name":"` + name + `","provider":"openai","region":"` + region + `","dialect":"openai","base_url":"https://api.example.com",` + more + `"terms":` + terms + `}`
}
