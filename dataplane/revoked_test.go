package dataplane_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

// A revoked credential is used for nothing new, wherever it stands: the
// upstreams that have it are as if they were disabled, until they have another.
// An answer under way goes on to its end.
func TestRevokedCredential(t *testing.T) {
	r := newThreeRegions(t)
	key := r.key
	give := func(credential string) {
		t.Helper()
		for _, rec := range r.state {
			if rec.Kind == registry.KindUpstream && rec.Upstream.Region == "us-east" {
				up := *rec.Upstream
				up.Credential, rec.Upstream = []byte(credential), &up
			}
		}
		r.us.reload()
	}
	give("leaked")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.us.api+chat, strings.NewReader(ask("home", true)))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("authorization", "Bearer "+key)
	req.Header.Set("content-type", "application/json")
	client := r.us.client(true)
	stream, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stream.Body.Close() }()
	begun := make([]byte, 64)
	if _, err := io.ReadFull(stream.Body, begun); err != nil || stream.StatusCode != http.StatusOK {
		t.Fatalf("%d %s: %v", stream.StatusCode, begun, err)
	}
	r.us.revoke(t, registry.KindCredential, registry.CredentialID([]byte("leaked")))
	for _, model := range []string{"home", "everywhere"} {
		reply := r.us.do(client, call{path: chat, key: key, body: ask(model, false)})
		if model == "everywhere" { // others have another credential
			if reply.status != 200 || reply.header.Get("idc-region") == "us-east" {
				t.Errorf("%s: %d by %s", model, reply.status, reply.header.Get("idc-region"))
			}
			continue
		}
		reply.wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)
	}
	rest, err := io.ReadAll(stream.Body)
	if err != nil || !bytes.Contains(rest, []byte("[DONE]")) {
		t.Errorf("the answer under way broke off: %v", err)
	}
	if n := r.us.store.View().Withdrawn(); n != 2 {
		t.Errorf("%d upstreams are withdrawn", n)
	}
	// An old record does not bring it back; another credential does.
	r.us.reload()
	r.us.do(client, call{path: chat, key: key, body: ask("home", false)}).wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)
	give("another")
	if reply := r.us.do(client, call{path: chat, key: key, body: ask("home", false)}); reply.status != 200 {
		t.Errorf("with another credential: %d %s", reply.status, reply.body)
	}
}

// Nothing goes to a revoked node, over connections that are open either, and
// nothing is taken from it. It notices, too.
func TestRevokedNode(t *testing.T) {
	r := newThreeRegions(t)
	us, eu := r.us.client(true), r.eu.client(true)
	for c, client := range map[*cell]*http.Client{r.us: us, r.eu: eu} {
		if reply := c.do(client, call{path: chat, key: r.roaming, body: ask("everywhere", false)}); reply.status != 200 {
			t.Fatal(reply.body)
		}
	}
	if reply := r.us.do(us, call{path: chat, key: r.key, body: ask("chat", false)}); reply.status != 200 {
		t.Fatal(reply.body)
	}
	const revoked = "nod_eu-fra/data/eu-fra-d1"
	r.us.revoke(t, registry.KindNode, revoked)
	r.ap.revoke(t, registry.KindNode, revoked)
	if reply := r.us.do(us, call{path: chat, key: r.key, body: ask("chat", false)}); reply.status < 500 || reply.header.Get("idc-region") == "eu-fra" {
		t.Errorf("a revoked node answered: %d %s", reply.status, reply.body)
	}
	if reply := r.us.do(us, call{path: chat, key: r.key, body: ask("anywhere", false)}); reply.status != 200 || reply.header.Get("idc-region") != "ap-sg" {
		t.Errorf("%d by %s: %s", reply.status, reply.header.Get("idc-region"), reply.body)
	}
	// It forwards to nobody: its requests for models elsewhere find no way.
	if reply := r.eu.do(eu, call{path: chat, key: r.roaming, body: ask("home", false)}); reply.status < 500 {
		t.Errorf("a revoked node was answered: %d %s", reply.status, reply.body)
	}

	ready := func() *reply { return r.eu.do(eu, call{path: "/readyz", method: http.MethodGet}) }
	if reply := ready(); reply.status != 200 {
		t.Fatalf("before it hears of it: %s", reply.body)
	}
	r.eu.revoke(t, registry.KindNode, revoked)
	if reply := ready(); reply.status != 503 || !strings.Contains(reply.body, "revoked") || r.eu.worker.Health().Ready {
		t.Errorf("it knows, and is ready: %d %s", reply.status, reply.body)
	}
}
