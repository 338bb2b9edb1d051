package dataplane_test

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/view"
	"ringmain/drills/simmodel"
)

// TestBadInput is the list of what clients get wrong: each gets one clear
// error in the dialect of the path, and reaches no upstream.
func TestBadInput(t *testing.T) {
	r := newRing(t)
	sim := simmodel.New(simmodel.Config{})
	url := provider(t, sim)
	r.upstream("sim-o", "us-east", "openai", url, simulated)
	r.upstream("sim-a", "us-east", "anthropic", url, simulated)
	r.upstream("real-o", "us-east", "openai", url, func(u *registry.Upstream) { u.Provider = "real" })
	r.upstream("off", "us-east", "openai", url, func(u *registry.Upstream) { u.Disabled = true })
	r.route("m", registry.Target{Upstream: "sim-o", Model: "sim-chat"}, registry.Target{Upstream: "sim-a", Model: "sim-chat"})
	r.route("openai-only", registry.Target{Upstream: "sim-o", Model: "sim-chat"})
	r.route("real", registry.Target{Upstream: "real-o", Model: "sim-chat"})
	r.route("off", registry.Target{Upstream: "off", Model: "sim-chat"})
	r.route("dangling", registry.Target{Upstream: "no-such", Model: "sim-chat"})
	hour := time.Now().Add(-time.Minute).UnixMilli()
	key, parsed := r.org("acme", "any", "verified", "live")
	r.org("other", "any", "verified", "live")
	testKey, _ := r.org("tester", "any", "unverified", "test")
	unverified, _ := r.org("fresh", "any", "unverified", "live")
	suspended, _ := r.org("banned", "any", "suspended", "live")
	revoked, _ := r.org("gone", "any", "verified", "live", func(_ *registry.Org, _ *registry.Project, k *registry.Key) { k.Revoked = hour })
	expired, _ := r.org("old", "any", "verified", "live", func(_ *registry.Org, _ *registry.Project, k *registry.Key) { k.Expires = hour })
	limited, _ := r.org("limited", "any", "verified", "live")
	r.policy("pol_limited", &registry.Policy{Org: "org_limited", Models: []string{"openai-only"}})
	zero, _ := r.org("zero", "any", "verified", "live")
	r.policy("pol_zero", &registry.Policy{Org: "org_zero", NoRetention: true})
	orphan, _ := r.org("orphan", "any", "verified", "live", func(o *registry.Org, p *registry.Project, _ *registry.Key) { p.Org = "org_not_here" })
	c := r.start("us-east", "us")
	r.load()

	wrong, err := apikey.NewSecretFor(parsed, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make1 := func(jurisdiction string, at time.Time) string {
		whole, _, err := apikey.New("live", jurisdiction, at, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return whole.Reveal()
	}
	flip := key[:len(key)-1] + map[bool]string{true: "0", false: "1"}[key[len(key)-1] != '0']
	good := ask("m", false)
	big := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("x", 32<<20) + `"}]}`

	type bad struct {
		name, key, body string
		header          map[string]string
		code            dialect.Code
	}
	cases := []bad{
		{"malformed JSON", key, `{"model":"m",`, nil, dialect.InvalidJSON},
		{"no JSON at all", key, `hello`, nil, dialect.InvalidJSON},
		{"empty body", key, ` `, nil, dialect.InvalidJSON},
		{"duplicate model", key, `{"model":"m","model":"real"}`, nil, dialect.InvalidJSON},
		{"missing model", key, `{"messages":[]}`, nil, dialect.InvalidRequest},
		{"stream is a word", key, `{"model":"m","stream":"yes"}`, nil, dialect.InvalidRequest},
		{"unknown model", key, ask("nope", false), nil, dialect.ModelNotFound},
		{"dangling upstream", key, ask("dangling", false), nil, dialect.ModelNotFound},
		{"real model with a test key", testKey, ask("real", false), nil, dialect.ModelNotFound},
		{"model not allowed", limited, good, nil, dialect.ModelNotAllowed},
		{"body over 32 MiB", key, big, nil, dialect.RequestTooLarge},
		{"no key", "", good, nil, dialect.InvalidAPIKey},
		{"wrong secret", wrong.Reveal(), good, nil, dialect.InvalidAPIKey},
		{"truncated key", key[:len(key)-5], good, nil, dialect.InvalidAPIKey},
		{"bad checksum", flip, good, nil, dialect.InvalidAPIKey},
		{"junk after the key", key + "x", good, nil, dialect.InvalidAPIKey},
		{"revoked key", revoked, good, nil, dialect.InvalidAPIKey},
		{"expired key", expired, good, nil, dialect.InvalidAPIKey},
		{"unknown key", make1("any", time.Now().Add(-time.Hour)), good, nil, dialect.InvalidAPIKey},
		{"key from the future", make1("any", time.Now().Add(time.Hour)), good, nil, dialect.InvalidAPIKey},
		{"unknown key, just made", make1("any", time.Now()), good, nil, dialect.NotReady},
		{"key whose org has not arrived", orphan, good, nil, dialect.NotReady},
		{"key of another jurisdiction", make1("eu", time.Now().Add(-time.Hour)), good, nil, dialect.WrongJurisdiction},
		{"unverified org", unverified, good, nil, dialect.AccountUnverified},
		{"suspended org", suspended, good, nil, dialect.AccountSuspended},
		{"basic auth", "", good, map[string]string{"authorization": "Basic eHg6eXk="}, dialect.InvalidAPIKey},
		{"two keys", key, good, map[string]string{"x-api-key": testKey}, dialect.InvalidHeader},
		{"one key twice", "", good, map[string]string{"x-api-key": key + "|" + key}, dialect.InvalidHeader},
		{"basic auth beside a key", "", good, map[string]string{"authorization": "Basic x", "x-api-key": key}, dialect.InvalidHeader},
		{"unknown region hint", key, good, map[string]string{"idc-region-hint": "eu-frankfurt"}, dialect.UnknownRegionHint},
		{"malformed region hint", key, good, map[string]string{"idc-region-hint": "eu fra"}, dialect.InvalidHeader},
		{"misspelt no-retention value", key, good, map[string]string{"idc-no-retention": "True"}, dialect.InvalidHeader},
		{"no-retention false", key, good, map[string]string{"idc-no-retention": "false"}, dialect.InvalidHeader},
		{"no-retention twice", key, good, map[string]string{"idc-no-retention": "true|true"}, dialect.InvalidHeader},
		{"misspelt header", key, good, map[string]string{"idc-no-retension": "true"}, dialect.InvalidHeader},
		{"misspelt receipt value", key, good, map[string]string{"idc-receipt": "in-line"}, dialect.InvalidHeader},
		{"misspelt residency", key, good, map[string]string{"idc-residency": "EU"}, dialect.InvalidHeader},
		{"residency any", key, good, map[string]string{"idc-residency": "any"}, dialect.InvalidHeader},
		{"project of another org", key, good, map[string]string{"idc-project-id": "prj_other"}, dialect.ProjectForbidden},
		{"unknown project", key, good, map[string]string{"openai-project": "proj_abc"}, dialect.ProjectForbidden},
		{"two projects", key, good, map[string]string{"openai-project": "prj_other", "idc-project-id": "prj_acme"}, dialect.InvalidHeader},
		{"zero retention by header", key, good, map[string]string{"idc-no-retention": "true"}, dialect.ZeroRetentionUnavailable},
		{"zero retention by policy", zero, good, nil, dialect.ZeroRetentionUnavailable},
	}
	for d, path := range dialects {
		for _, http2 := range []bool{false, true} {
			cl := c.client(http2)
			for _, b := range cases {
				t.Run(fmt.Sprintf("%s/h2=%t/%s", d, http2, b.name), func(t *testing.T) {
					reply := c.do(cl, call{path: path, key: b.key, body: b.body, header: b.header, method: http.MethodPost})
					reply.wantError(t, d, b.code)
				})
			}
		}
	}
	for _, other := range []struct {
		method, path string
		code         dialect.Code
		d            dialect.Dialect
	}{
		{"GET", chat, dialect.MethodNotAllowed, dialect.OpenAI},
		{"GET", messages, dialect.MethodNotAllowed, dialect.Anthropic},
		{"DELETE", "/v1/models", dialect.MethodNotAllowed, dialect.OpenAI},
		{"POST", "/livez", dialect.MethodNotAllowed, dialect.OpenAI},
		{"POST", "/v1/messages/batches", dialect.NotFound, dialect.Anthropic},
		{"POST", "/v1/chat/completions/", dialect.NotFound, dialect.OpenAI},
		{"POST", "/internal/v1/forward", dialect.NotFound, dialect.OpenAI},
		{"GET", "/", dialect.NotFound, dialect.OpenAI},
	} {
		reply := c.do(c.client(true), call{path: other.path, key: key, method: other.method})
		reply.wantError(t, other.d, other.code)
		if (other.code == dialect.MethodNotAllowed) != (reply.header.Get("allow") != "") {
			t.Errorf("allow %q", reply.header.Get("allow"))
		}
	}
	reply := c.do(c.client(true), call{path: messages, key: key, body: ask("openai-only", false)})
	reply.wantError(t, dialect.Anthropic, dialect.ModelNotFound)
	reply = c.do(c.client(true), call{path: chat, key: key, body: ask("off", false)})
	reply.wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)

	// The one text: nothing tells a revoked key from one that never was.
	texts := map[string]bool{}
	for _, k := range []string{"", wrong.Reveal(), flip, revoked, expired} {
		var body struct{ Error struct{ Message string } }
		if err := json.Unmarshal([]byte(c.do(c.client(true), call{path: chat, key: k, body: good}).body), &body); err != nil {
			t.Fatal(err)
		}
		texts[body.Error.Message] = true
	}
	if len(texts) != 1 {
		t.Errorf("%v", texts)
	}
	if n := sim.Counts().Total.Requests; n != 0 {
		t.Errorf("%d bad requests reached the upstream", n)
	}
	for _, secret := range []string{key, wrong.Reveal(), "provider-secret", "foxes"} {
		if strings.Contains(c.log.String(), secret) {
			t.Errorf("the log holds %.12q", secret)
		}
	}
	// What is right still works, with test keys too.
	for _, k := range []string{key, testKey} {
		if reply := c.do(c.client(false), call{path: chat, key: k, body: good}); reply.status != 200 {
			t.Errorf("%d %s", reply.status, reply.body)
		}
	}
}

func TestBilledProject(t *testing.T) {
	r := newRing(t)
	url := provider(t, simmodel.New(simmodel.Config{}))
	r.upstream("sim-o", "us-east", "openai", url)
	r.route("m", registry.Target{Upstream: "sim-o", Model: "sim-chat"})
	r.route("n", registry.Target{Upstream: "sim-o", Model: "sim-chat"})
	key, _ := r.org("acme", "any", "verified", "live")
	r.add(&registry.Record{Kind: registry.KindProject, Meta: meta("prj_second", controlplane.ShardAny("us-east")), Project: &registry.Project{Org: "org_acme", Name: "second"}})
	r.policy("pol_second", &registry.Policy{Org: "org_acme", Project: "prj_second", Models: []string{"m"}})
	c := r.start("us-east", "us")
	r.load()
	for _, header := range []string{"idc-project-id", "openai-project"} {
		h := map[string]string{header: "prj_second"}
		reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false), header: h})
		if rec := c.record(reply.header.Get("idc-request-id")); reply.status != 200 || rec.Project != "prj_second" {
			t.Errorf("%d %+v", reply.status, rec)
		}
		reply = c.do(c.client(true), call{path: chat, key: key, body: ask("n", false), header: h})
		reply.wantError(t, dialect.OpenAI, dialect.ModelNotAllowed)
	}
}

func TestModels(t *testing.T) {
	c, _, key := oneRegion(t)
	var list struct {
		Object string
		Data   []struct{ ID, Object, Type string }
	}
	reply := c.do(c.client(true), call{path: "/v1/models", key: key})
	if err := json.Unmarshal([]byte(reply.body), &list); err != nil || reply.status != 200 || len(list.Data) != len(simmodel.Faults())+1 {
		t.Fatalf("%d %s", reply.status, reply.body)
	}
	reply.wantHeaders(t)
	reply = c.do(c.client(true), call{path: "/v1/models/sim-chat", key: key})
	if reply.status != 200 || !strings.Contains(reply.body, `"id":"sim-chat"`) {
		t.Errorf("%d %s", reply.status, reply.body)
	}
	c.do(c.client(true), call{path: "/v1/models/nope", key: key}).wantError(t, dialect.OpenAI, dialect.ModelNotFound)
	c.do(c.client(true), call{path: "/v1/models"}).wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
	c.do(c.client(true), call{path: "/v1/models/nope", header: map[string]string{"x-api-key": key, "anthropic-version": "2023-06-01"}}).wantError(t, dialect.Anthropic, dialect.ModelNotFound)
}

// TestBeforeTheState: a node without state answers 503, never 401, but for
// what needs no state to be judged.
func TestBeforeTheState(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	cl := c.client(true)
	wants := func(ready int, code dialect.Code) {
		t.Helper()
		if reply := c.do(cl, call{path: "/readyz"}); reply.status != ready {
			t.Errorf("/readyz %d, want %d", reply.status, ready)
		}
		if reply := c.do(cl, call{path: "/livez"}); reply.status != 200 {
			t.Errorf("/livez %d", reply.status)
		}
		c.do(cl, call{path: chat, key: key, body: ask("m", false)}).wantError(t, dialect.OpenAI, code)
		c.do(cl, call{path: chat, key: "idc_live_nonsense", body: ask("m", false)}).wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
	}
	wants(503, dialect.NotReady)
	r.load()
	wants(200, dialect.ModelNotFound)
	c.store.SetLoaded(true) // the safety file cannot be read
	wants(503, dialect.NotReady)
}

func TestControlPlaneGone(t *testing.T) {
	// The copy on disk was loaded, and nobody has been heard since: unknown
	// keys may be new ones.
	r := newRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	for _, rec := range r.state {
		rec.Meta.Updated = time.Now().Add(-time.Hour).UnixMilli()
	}
	shard := controlplane.ShardAny("us-east")
	frames := []*feed.Frame{{Type: feed.FrameReset, Shard: shard}}
	for _, rec := range r.state {
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: shard, Record: b})
	}
	frames = append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: shard, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: 1}})
	for _, f := range frames {
		if err := c.store.Apply(f); err != nil {
			t.Fatal(err)
		}
	}
	c.store.SetLoaded(false)
	unknown, _, err := apikey.New("live", "any", time.Now().Add(-10*time.Minute), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.do(c.client(true), call{path: chat, key: unknown.Reveal(), body: ask("m", false)}).wantError(t, dialect.OpenAI, dialect.NotReady)
	c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)}).wantError(t, dialect.OpenAI, dialect.ModelNotFound)
}

// TestTurnedAwayWithoutReading: of a request at the wrong entry at most about
// one connection buffer is taken in, however much the client sends.
func TestTurnedAwayWithoutReading(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("euro", "eu", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(r.ca.ServerRoots())
	raw, err := net.Dial("tcp", c.api)
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13})
	defer func() { _ = conn.Close() }()
	const length = 200 << 10 // less than what the server would throw away by itself
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", chat, key, length); err != nil {
		t.Fatal(err)
	}
	// Send nothing of the body: a server that wants to read it would wait.
	start := time.Now()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || !resp.Close || resp.Header.Get("idc-error-code") != "wrong_jurisdiction" || time.Since(start) > 5*time.Second {
		t.Errorf("%v after %s: %s", resp, time.Since(start), body)
	}
	// The connection ends, rather than swallow the rest.
	_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
	var sent int
	for junk := make([]byte, 4096); sent < 64<<20; sent += len(junk) {
		if _, err := conn.Write(junk); err != nil {
			break
		}
	}
	if sent >= 64<<20 {
		t.Error("the server kept reading")
	}
}

func TestMeteringFails(t *testing.T) {
	c, sim, key := oneRegion(t)
	c.mu.Lock()
	c.emitErr = errNoKeeper
	c.mu.Unlock()
	for d, path := range dialects {
		reply := c.do(c.client(true), call{path: path, key: key, body: ask("sim-chat", false)})
		reply.wantError(t, d, dialect.MeteringUnavailable)
		reply = c.do(c.client(true), call{path: path, key: key, body: ask("sim-chat", true)})
		wantBroken(t, "unmetered", d, reply, dialect.MeteringUnavailable)
	}
	if n := sim.Counts().Total.Requests; n != 4 {
		t.Errorf("%d requests", n)
	}
}

func TestCapacity(t *testing.T) {
	c, sim, key := oneRegion(t)
	c.close()
	r := c.ring
	c = r.startWith("us-east", "us", 1)
	c.load(r.state)
	done := make(chan *reply, 1)
	go func() { done <- c.do(c.client(true), call{path: chat, key: key, body: ask("sim-silence", false)}) }()
	poll(t, "the first to run", func() bool { return sim.Counts().Models["sim-silence"].Requests > 0 })
	reply := c.do(c.client(true), call{path: chat, key: key, body: ask("sim-chat", false)})
	reply.wantError(t, dialect.OpenAI, dialect.CapacityShed)
	if h := c.worker.Health(); h.InFlight != 1 || h.Capacity != 1 || !h.Ready {
		t.Errorf("%+v", h)
	}
	(<-done).wantError(t, dialect.OpenAI, dialect.UpstreamTimeout)
}

func TestTooManyWrongKeys(t *testing.T) {
	r := newRing(t)
	_, parsed := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	limited := 0
	for range 12 {
		wrong, err := apikey.NewSecretFor(parsed, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		reply := c.do(c.client(true), call{path: chat, key: wrong.Reveal(), body: ask("m", false)})
		if reply.status == 429 {
			limited++
			reply.wantError(t, dialect.OpenAI, dialect.RateLimitExceeded)
		} else {
			reply.wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
		}
	}
	if limited == 0 {
		t.Error("guesses are not limited")
	}
}

func TestDrain(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		c, sim, key := oneRegion(t)
		cl := c.client(http2)
		if reply := c.do(cl, call{path: "/readyz"}); reply.status != 200 {
			t.Fatal(reply.status)
		}
		done := make(chan *reply, 1)
		before := sim.Counts().Total.Requests
		body := strings.Replace(ask("sim-chat", true), `"max_tokens":40`, `"min_tokens":200`, 1)
		go func() { done <- c.do(cl, call{path: chat, key: key, body: body}) }()
		poll(t, "the stream to run", func() bool { return sim.Counts().Total.Requests > before })
		drained := make(chan error, 1)
		go func() { drained <- c.worker.Drain(t.Context()) }()
		poll(t, "health to say so", func() bool { h := c.worker.Health(); return h.Draining && !h.Ready })
		reply := <-done
		if reply.status != 200 || reply.broken != nil {
			t.Errorf("h2=%t: %d %v", http2, reply.status, reply.broken)
		}
		checkAnswer(t, dialect.OpenAI, true, reply.body)
		if err := <-drained; err != nil {
			t.Error(err)
		}
		if _, err := c.try(t.Context(), cl, call{path: "/livez"}); err == nil {
			t.Error("still served after the drain")
		}
	}
}

func TestReadyzFailsFirst(t *testing.T) {
	r := newRing(t)
	c := r.start("us-east", "us", dataplane.Tunables{DrainGrace: 2 * time.Second, ProbeEvery: time.Hour})
	r.load()
	cl := c.client(false)
	drained := make(chan error, 1)
	go func() { drained <- c.worker.Drain(t.Context()) }()
	poll(t, "draining", func() bool { return c.worker.Health().Draining })
	reply := c.do(cl, call{path: "/readyz"})
	if reply.status != 503 {
		t.Errorf("/readyz %d", reply.status)
	}
	c.do(cl, call{path: chat, body: "{}"}).wantError(t, dialect.OpenAI, dialect.InvalidAPIKey) // still served
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// TestVerdicts: a key is hashed once, then remembered, and told to others.
func TestVerdicts(t *testing.T) {
	c, _, key := oneRegion(t)
	cl := c.client(true)
	for range 3 {
		if reply := c.do(cl, call{path: chat, key: key, body: ask("sim-chat", false)}); reply.status != 200 {
			t.Fatal(reply.body)
		}
	}
	c.mu.Lock()
	verdicts := c.verdicts
	c.mu.Unlock()
	if len(verdicts) != 1 {
		t.Fatalf("%d verdicts", len(verdicts))
	}
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	hashes, names := 0.0, map[string]bool{}
	for _, f := range families {
		names[f.GetName()] = true
		if f.GetName() == "ringmain_bcrypt_total" {
			for _, m := range f.GetMetric() {
				hashes += m.GetCounter().GetValue()
			}
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if strings.Contains(l.GetValue(), "key_") || strings.Contains(l.GetValue(), "org_") {
					t.Errorf("%s: label %s", f.GetName(), l.GetValue())
				}
			}
		}
	}
	if hashes != 1 {
		t.Errorf("%v hashes for 3 requests", hashes)
	}
	for _, want := range []string{"ringmain_requests_total", "ringmain_request_duration_seconds", "ringmain_time_to_first_token_seconds", "ringmain_tokens_total", "ringmain_upstream_attempts_total", "ringmain_inflight"} {
		if !names[want] {
			t.Errorf("no %s", want)
		}
	}
	// Another node that was told of the verdict pays no hash.
	other := view.New(view.Config{})
	other.Verdicts().Put(verdicts[0])
	if set, ok := other.Verdicts().Get(verdicts[0].Key); !ok || set.Count != 1 {
		t.Error("the verdict cannot be shared")
	}
}
