package dataplane_test

import (
	"encoding/json"
	"strings"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
	"ringmain/dataplane/meter"
)

// TestDocuments: pages need no key, come as JSON or for people, and one that
// the operator did not supply is a clear 404.
func TestDocuments(t *testing.T) {
	r := newRing(t)
	const security = "Contact: mailto:security@example.com\nExpires: 2099-01-01T00:00:00Z\n"
	r.documents = []link.Document{
		{Name: "security.txt", Type: "text/plain; charset=utf-8", Body: []byte(security)},
		{Name: "dpa", Type: "application/pdf", Body: []byte("%PDF-1.7 \x00\xff")},
		{Name: "aup", Type: "text/markdown; charset=utf-8", Body: []byte("# Use\n\nNo <script>.\n")},
	}
	r.upstream("openai-us", "us-east", "openai", "https://example.org", func(u *registry.Upstream) {
		u.Terms = registry.Terms{Retention: "30d", PromptCache: "memory", Training: "never", Dated: "2026-01-31"}
	})
	c := r.start("us-east", "us")
	r.load()
	const browser = "text/html,application/xhtml+xml,*/*;q=0.8"
	for _, tc := range []struct{ path, accept, kind, want string }{
		{"/.well-known/security.txt", "", "text/plain; charset=utf-8", security},
		{"/.well-known/security.txt", browser, "text/plain; charset=utf-8", security},
		{"/legal/dpa", browser, "application/pdf", "%PDF-1.7 \x00\xff"},
		{"/legal/aup", "*/*", "text/markdown; charset=utf-8", "# Use\n\nNo <script>.\n"},
		{"/legal/aup", browser, "text/html; charset=utf-8", "No &lt;script&gt;."},
		{"/legal/subprocessors", "", "application/json", `"terms_dated": "2026-01-31"`},
		{"/legal/subprocessors", browser, "text/html; charset=utf-8", "<td>openai-us</td>"},
		{"/legal/data", "application/json", "application/json", `"first_token_ms"`},
		{"/legal/data", browser, "text/html; charset=utf-8", "<td>first_token_ms</td>"},
	} {
		for _, method := range []string{"GET", "HEAD"} {
			reply := c.do(c.client(true), call{path: tc.path, method: method, header: map[string]string{"accept": tc.accept}})
			if reply.status != 200 || reply.header.Get("content-type") != tc.kind || reply.header.Get("x-content-type-options") != "nosniff" {
				t.Errorf("%s %s for %q: %d %v", method, tc.path, tc.accept, reply.status, reply.header)
			}
			if method == "GET" && !strings.Contains(reply.body, tc.want) || method == "HEAD" && reply.body != "" {
				t.Errorf("%s %s for %q: %s", method, tc.path, tc.accept, reply.body)
			}
			reply.wantHeaders(t)
		}
	}
	if c.metric(t, "ringmain_security_txt_expires") != 4070908800 {
		t.Error("no metric says when security.txt expires")
	}
	var data struct {
		Metadata []struct{ Name string } `json:"metadata_record"`
	}
	reply := c.do(c.client(false), call{path: "/legal/data"})
	if err := json.Unmarshal([]byte(reply.body), &data); err != nil || len(data.Metadata) != len(meter.Fields()) {
		t.Errorf("%v: %d fields", err, len(data.Metadata))
	}
	for path, code := range map[string]dialect.Code{
		"/legal/compliance": dialect.NotFound, "/legal/": dialect.NotFound, "/legal/nope": dialect.NotFound, "/.well-known/other": dialect.NotFound,
	} {
		c.do(c.client(true), call{path: path, header: map[string]string{"accept": browser}}).wantError(t, dialect.OpenAI, code)
	}
	c.do(c.client(true), call{path: "/legal/dpa", method: "POST"}).wantError(t, dialect.OpenAI, dialect.MethodNotAllowed)
}
