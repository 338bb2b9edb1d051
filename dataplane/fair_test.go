package dataplane_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// steady circuits stay open once they are.
var steady = dataplane.Tunables{Upstreams: breaker.Rules{Rest: time.Hour}}

// TestFailuresOfOneCallersRequests: what makes a provider fail may be in the
// request. Whoever sends it is soon kept from the model, and nobody else is.
func TestFailuresOfOneCallersRequests(t *testing.T) {
	r := newRing(t)
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("content-type", "application/json")
		if b, _ := io.ReadAll(q.Body); strings.Contains(string(b), "poison") {
			w.WriteHeader(http.StatusInternalServerError)
			_, _ = io.WriteString(w, `{"object":"error","message":"Internal Server Error","code":500}`)
			return
		}
		_, _ = io.WriteString(w, plainAnswer)
	}))
	r.upstream("up", "us-east", "openai", url)
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	alice, _ := r.org("alice", "any", "verified", "live")
	mallory, _ := r.org("mallory", "any", "verified", "live")
	c := r.start("us-east", "us", steady)
	r.load()
	good, poison := call{path: chat, key: alice, body: ask("m", false)}, call{path: chat, key: mallory, body: ask("m", false, `,"user":"poison"`)}
	if reply := c.do(c.client(true), good); reply.status != http.StatusOK {
		t.Fatalf("%d %s", reply.status, reply.body)
	}
	for range 6 {
		c.do(c.client(true), poison)
	}
	c.do(c.client(true), poison).wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)
	for range 5 {
		if reply := c.do(c.client(true), good); reply.status != http.StatusOK {
			t.Fatalf("%d %s", reply.status, reply.body)
		}
	}
}

// TestModelsThatAnswerElsewhere: a provider tells whoever asks a model at an
// endpoint that is not its own, as if there were none. Where it does answer it goes on.
func TestModelsThatAnswerElsewhere(t *testing.T) {
	r := newRing(t)
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("content-type", "application/json")
		switch q.URL.Path {
		case chat:
			_, _ = io.WriteString(w, plainAnswer)
		case "/v1/completions":
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"error":{"message":"This is a chat model and not supported in the v1/completions endpoint. Did you mean to use v1/chat/completions?","type":"invalid_request_error","param":"model","code":null}}`)
		default:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"error":{"message":"You are not allowed to generate embeddings from this model","type":"invalid_request_error","param":null,"code":null}}`)
		}
	}))
	r.upstream("up", "us-east", "openai", url)
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	var keys []string
	for _, name := range []string{"alice", "bob"} {
		key, _ := r.org(name, "any", "verified", "live")
		keys = append(keys, key)
	}
	c := r.start("us-east", "us", steady)
	r.load()
	for range 4 {
		for _, key := range keys {
			c.do(c.client(true), call{path: "/v1/completions", key: key, body: `{"model":"m","prompt":"x"}`})
			c.do(c.client(true), call{path: "/v1/embeddings", key: key, body: `{"model":"m","input":"x"}`})
		}
	}
	for _, key := range keys {
		if reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)}); reply.status != http.StatusOK {
			t.Errorf("%d %s", reply.status, reply.body)
		}
		c.do(c.client(true), call{path: "/v1/completions", key: key, body: `{"model":"m","prompt":"x"}`}).wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)
	}
}

// TestHeadersThatGoOn: what a client has passed on cannot make another node refuse
// the head, which would look like a fault of the node.
func TestHeadersThatGoOn(t *testing.T) {
	r := newThreeRegions(t)
	for _, http2 := range []bool{true, false} {
		for _, size := range []int{32_300, 31_900, 31_000, 30_000, 8_000, 5_000} {
			for range 2 {
				reply := r.us.do(r.us.client(http2), call{path: chat, key: r.key, body: ask("chat", false), header: map[string]string{"openai-beta": strings.Repeat("x", size)}})
				if reply.status != http.StatusBadRequest || reply.header.Get("idc-error-code") != string(dialect.InvalidHeader) {
					t.Errorf("%d bytes, HTTP/2 %t: %d %s", size, http2, reply.status, reply.body)
				}
			}
			if reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)}); reply.status != http.StatusOK {
				t.Fatalf("%d bytes shut the other region: %d %s", size, reply.status, reply.body)
			}
		}
	}
	for range 2 {
		r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false), header: map[string]string{"content-type": "application/json; x=" + strings.Repeat("x", 32_200)}})
	}
	reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false), header: map[string]string{"openai-beta": strings.Repeat("x", 4_000)}})
	if reply.status != http.StatusOK {
		t.Errorf("%d %s", reply.status, reply.body)
	}
}
