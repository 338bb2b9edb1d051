package dataplane_test

import (
	"net/http"
	"strings"
	"testing"

	"ringmain/controlplane/registry"
)

// TestPlaceWhileTheClientReads: an upstream that has given all of a plain answer
// is free for the next request, however slowly its client takes it.
func TestPlaceWhileTheClientReads(t *testing.T) {
	whole := []byte(strings.Replace(plainAnswer, `"hi"`, `"`+strings.Repeat("word ", large/10)+`"`, 1)) // half of it waits here
	for _, http2 := range []bool{false, true} {
		r := newRing(t)
		r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "application/json")
			_, _ = w.Write(whole)
		})), func(u *registry.Upstream) { u.Concurrency = 1 })
		r.route("m", registry.Target{Upstream: "up", Model: "m"})
		key, _ := r.org("acme", "any", "verified", "live")
		c := r.start("us-east", "us", patient)
		r.load()
		slow, drop := c.narrow(http2)
		in := call{path: chat, key: key, body: ask("m", false)}
		resp, err := c.send(t.Context(), slow, in)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.do(c.client(http2), in); got.status != http.StatusOK {
			t.Errorf("HTTP/2 %t: %d %s", http2, got.status, got.body)
		}
		drop()
		_ = resp.Body.Close()
	}
}
