package dataplane_test

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane/registry"
)

// madeAt is when a model's route was made: the two nodes have one each.
var madeAt = regexp.MustCompile(`"created":\d+|"created_at":"[^"]*"`)

// TestBothHTTP1, TestBothHTTP2: a client sees no difference between our server
// side of HTTP/1.1, or HTTP/2, and net/http's, which an operator may choose.
func TestBothHTTP1(t *testing.T) { bothServers(t, 1) }
func TestBothHTTP2(t *testing.T) { bothServers(t, 2) }

func bothServers(t *testing.T, major int) {
	var seen [2][]string
	for i, standard := range []bool{false, true} {
		r := newRing(t)
		r.standardHTTP1, r.standardHTTP2 = standard && major == 1, standard && major == 2
		r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			b, _ := io.ReadAll(q.Body)
			switch body := string(b); {
			case strings.Contains(body, `"stream":true`):
				w.Header().Set("content-type", "text/event-stream")
				for _, event := range []string{
					`{"choices":[{"index":0,"delta":{"content":"hi"}}]}`, `{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`,
					`{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1}}`, "[DONE]",
				} {
					_, _ = io.WriteString(w, "data: "+event+"\n\n")
					_ = http.NewResponseController(w).Flush()
				}
			case strings.Contains(body, "refuse"):
				w.Header().Set("content-type", "application/json")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"error":{"message":"no","type":"invalid_request_error"}}`)
			default:
				answerPlain(w)
			}
		})))
		r.route("m", registry.Target{Upstream: "up", Model: "m"})
		key, _ := r.org("acme", "any", "verified", "live")
		c := r.start("us-east", "us", patient)
		r.load()
		client := c.client(major == 2)
		for _, asked := range []call{
			{path: chat, key: key, body: ask("m", false)},
			{path: chat, key: key, body: ask("m", true)},
			{path: chat, key: key, body: ask("m", false, `,"user":"refuse"`)},
			{path: chat, key: key, body: ask("none", false)},
			{path: chat, key: key, body: "{"},
			{path: chat, key: key, body: ask("m", false, `,"user":"`+strings.Repeat("x", 3<<20)+`"`)},
			{path: chat, key: key, body: ask("m", false, `,"user":"`+strings.Repeat("x", 33<<20)+`"`)},
			{path: chat, key: key + "x", body: ask("m", false)},
			{path: chat, key: key, method: http.MethodDelete},
			{path: "/nothing", key: key, method: http.MethodGet},
			{path: "/livez", method: http.MethodGet},
			{path: "/livez", method: http.MethodHead},
			{path: "/v1/models", key: key, method: http.MethodGet},
		} {
			got := c.do(client, asked)
			if got.proto != major {
				t.Fatalf("HTTP/%d", got.proto)
			}
			id := got.header.Get("Idc-Request-Id")
			seen[i] = append(seen[i], fmt.Sprintf("%s %s: %d %v %s, broken %t", asked.method, asked.path, got.status,
				slices.Sorted(maps.Keys(got.header)), madeAt.ReplaceAllString(strings.ReplaceAll(got.body, id, "ID"), ""), got.broken != nil))
		}
	}
	for i := range seen[0] {
		if seen[0][i] != seen[1][i] {
			t.Errorf("ours     %s\nnet/http %s", seen[0][i], seen[1][i])
		}
	}
}
