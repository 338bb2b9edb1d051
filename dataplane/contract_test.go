package dataplane_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

// TestErrorsAreInTheDialectOfWhoAsks: where a path says nothing of a dialect,
// the header that every Anthropic client sends does.
func TestErrorsAreInTheDialectOfWhoAsks(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	for _, tc := range []struct {
		method, path string
		anthropic    bool
		code         dialect.Code
		want         dialect.Dialect
	}{
		{"POST", "/v1/complete", false, dialect.NotFound, dialect.OpenAI},
		{"POST", "/v1/complete", true, dialect.NotFound, dialect.Anthropic},
		{"GET", "/v1/organizations/usage", true, dialect.NotFound, dialect.Anthropic},
		{"GET", "/v1/files/file_1", false, dialect.NotFound, dialect.OpenAI},
		{"GET", "/v1/files/file_1", true, dialect.NotFound, dialect.Anthropic},
		{"POST", "/v1/messages/batches", false, dialect.NotFound, dialect.Anthropic},
		{"GET", "/v1/receipts/req_1", true, dialect.NotFound, dialect.Anthropic},
		{"DELETE", "/v1/models", true, dialect.MethodNotAllowed, dialect.Anthropic},
		{"GET", chat, true, dialect.MethodNotAllowed, dialect.OpenAI}, // the endpoint's own
		{"GET", messages, false, dialect.MethodNotAllowed, dialect.Anthropic},
	} {
		header := map[string]string{}
		if tc.anthropic {
			header["anthropic-version"] = "2023-06-01"
		}
		t.Run(tc.method+tc.path, func(t *testing.T) {
			c.do(c.client(true), call{path: tc.path, key: key, method: tc.method, header: header}).wantError(t, tc.want, tc.code)
		})
	}
}

// TestHeadIsGetWithoutABody, as RFC 9110 has it, wherever GET is answered.
func TestHeadIsGetWithoutABody(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	for _, path := range []string{"/v1/models", "/v1/models/m", "/livez", "/readyz", "/legal/data", "/.well-known/jwks.json"} {
		for _, http2 := range []bool{false, true} {
			get := c.do(c.client(http2), call{path: path, key: key})
			head := c.do(c.client(http2), call{path: path, key: key, method: http.MethodHead})
			if get.status != 200 || head.status != 200 || head.body != "" ||
				head.header.Get("content-type") != get.header.Get("content-type") || path != "/readyz" && head.header.Get("content-length") != get.header.Get("content-length") {
				t.Errorf("%s, HTTP/2 %t: GET %d %v, HEAD %d %v %q", path, http2, get.status, get.header, head.status, head.header, head.body)
			}
			head.wantHeaders(t)
		}
	}
	missing := c.do(c.client(true), call{path: "/v1/receipts/req_1", key: key, method: http.MethodHead})
	if missing.status != 404 || missing.header.Get("idc-error-code") != string(dialect.NotFound) || missing.body != "" {
		t.Errorf("%d %v %q", missing.status, missing.header, missing.body)
	}
}

// TestModelsAreTheKeysOwn: no cache on the way may give one key's list to another.
func TestModelsAreTheKeysOwn(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	for _, path := range []string{"/v1/models", "/v1/models/m", "/v1/models/none"} {
		reply := c.do(c.client(true), call{path: path, header: map[string]string{"x-api-key": key, "anthropic-version": "2023-06-01"}})
		if got := reply.header.Get("cache-control"); got != "private, no-store" {
			t.Errorf("%s: %d, cache-control %q", path, reply.status, got)
		}
	}
}

// TestModelsTakeAPlace: a node at capacity sheds those who list its models, too.
func TestModelsTakeAPlace(t *testing.T) {
	asked, over := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(over) })
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-over
		answerPlain(w)
	})))
	t.Cleanup(release)
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.startWith("us-east", "us", 1)
	r.load()
	done := make(chan *reply, 1)
	go func() { done <- c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)}) }()
	<-asked
	c.do(c.client(true), call{path: "/v1/models", key: key}).wantError(t, dialect.OpenAI, dialect.CapacityShed)
	release()
	if reply := <-done; reply.status != 200 {
		t.Errorf("%d %s", reply.status, reply.body)
	}
	if reply := c.do(c.client(true), call{path: "/v1/models", key: key}); reply.status != 200 {
		t.Errorf("%d %s", reply.status, reply.body)
	}
}

// TestPicturesAreEditedByEitherForm: clients of that endpoint send files in a
// form, or JSON that holds the pictures.
func TestPicturesAreEditedByEitherForm(t *testing.T) {
	var kind, sent string
	c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		kind, sent = q.Header.Get("content-type"), string(b)
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, `{"created":1,"data":[{"b64_json":"AAAA"}],"usage":{"input_tokens":1,"output_tokens":1}}`)
	}, patient)
	const edits = "/v1/images/edits"
	body := `{"model":"m","prompt":"a fox","images":[{"image_url":"data:image/png;base64,AAAA"}]}`
	reply := c.do(c.client(true), call{path: edits, key: key, body: body, header: map[string]string{"content-type": "application/json"}})
	if reply.status != 200 || kind != "application/json" || sent != body {
		t.Errorf("%d %s: sent %q as %q", reply.status, reply.body, sent, kind)
	}
	multi, multiKind := form(t, "m")
	reply = c.do(c.client(true), call{path: edits, key: key, body: multi, header: map[string]string{"content-type": multiKind}})
	if reply.status != 200 || kind != multiKind || sent != multi {
		t.Errorf("%d %s: sent as %q", reply.status, reply.body, kind)
	}
	for _, wrong := range []string{"", "text/plain", "multipart/mixed; boundary=x"} {
		reply := c.do(c.client(true), call{path: edits, key: key, body: body, header: map[string]string{"content-type": wrong}})
		reply.wantError(t, dialect.OpenAI, dialect.InvalidRequest)
		if !strings.Contains(reply.body, "form") {
			t.Errorf("%q: %s", wrong, reply.body)
		}
	}
}
