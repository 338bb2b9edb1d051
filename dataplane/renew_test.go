package dataplane_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
)

func (c *cell) revoke(t *testing.T, kind registry.Kind, id string) {
	t.Helper()
	if err := c.store.Apply(&feed.Frame{Type: feed.FrameRevocation, Revocation: &registry.Revocation{
		Kind: kind, ID: id, Shard: controlplane.ShardAny("us-east"), At: time.Now().UnixMilli(),
	}}); err != nil {
		t.Error(err)
	}
}

// TestChangedBetweenAttempts: what the state says when somebody is asked is
// what counts, not what it said when the request came.
func TestChangedBetweenAttempts(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(r *ring, c *cell, key apikey.Parsed)
		body   string
		header map[string]string
		code   dialect.Code // "" = 200
		asked  int          // of the second upstream
	}{
		{name: "nothing", change: func(*ring, *cell, apikey.Parsed) {}, asked: 1},
		{name: "the key is revoked", change: func(_ *ring, c *cell, key apikey.Parsed) {
			c.revoke(c.ring.t.(*testing.T), registry.KindKey, key.RecordID())
		}, code: dialect.InvalidAPIKey},
		{name: "the org is suspended", change: func(r *ring, c *cell, _ apikey.Parsed) {
			r.orgOf("acme").State = "suspended"
			c.reload()
		}, code: dialect.AccountSuspended},
		{name: "it is pinned elsewhere", change: func(r *ring, c *cell, _ apikey.Parsed) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", Residency: "eu"})
			c.reload()
		}, code: dialect.WrongJurisdiction},
		{name: "retention is forbidden", change: func(r *ring, c *cell, _ apikey.Parsed) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", NoRetention: true})
			c.reload()
		}, code: dialect.ZeroRetentionUnavailable},
		{name: "the model is forbidden", change: func(r *ring, c *cell, _ apikey.Parsed) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", Models: []string{"other"}})
			c.reload()
		}, code: dialect.ModelNotAllowed},
		{name: "the second one goes", change: func(r *ring, c *cell, _ apikey.Parsed) {
			r.upstreamOf("second").Disabled = true
			c.reload()
		}, code: dialect.UpstreamError},
		{name: "the second one is given to another org", change: func(r *ring, c *cell, _ apikey.Parsed) {
			r.upstreamOf("second").Dedicated = "org_other"
			c.reload()
		}, code: dialect.UpstreamError},
		{name: "the confinement ends", header: map[string]string{"idc-no-retention": "true"}, change: func(_ *ring, c *cell, _ apikey.Parsed) {
			c.confinement.Store(&link.Confinement{})
		}, code: dialect.ZeroRetentionUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRing(t)
			var c *cell
			key, parsed := r.org("acme", "any", "verified", "live")
			var once sync.Once
			first := newAnswering(func(w http.ResponseWriter, _ string) {
				once.Do(func() { tc.change(r, c, parsed) })
				w.WriteHeader(http.StatusInternalServerError)
			})
			second := newAnswering(answered)
			keeps := func(u *registry.Upstream) {
				u.Provider = "p"
				if tc.header != nil {
					u.Terms = registry.Terms{Retention: "zero", PromptCache: "none"}
				}
			}
			r.upstream("first", "us-east", "openai", provider(t, first), keeps)
			r.upstream("second", "us-east", "openai", provider(t, second), keeps)
			r.route("m", registry.Target{Upstream: "first", Model: "m"}, registry.Target{Upstream: "second", Model: "m", Order: 1})
			r.add(&registry.Record{Kind: registry.KindRegion, Meta: meta("reg_eu", controlplane.ShardGlobal),
				Region: &registry.Region{Name: "eu-fra", Jurisdiction: "eu", Endpoint: "https://eu.example.com", State: "active"}})
			c = r.start("us-east", "us", patient)
			c.confinement.Store(&allHolds)
			r.load()
			reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false), header: tc.header})
			if tc.code == "" && reply.status != 200 {
				t.Errorf("%d %s", reply.status, reply.body)
			}
			if tc.code != "" {
				reply.wantError(t, dialect.OpenAI, tc.code)
			}
			if n := second.count("m"); n != tc.asked {
				t.Errorf("the second upstream was asked %d times, want %d", n, tc.asked)
			}
			if rec := c.record(reply.header.Get("idc-request-id")); rec.Status != reply.status {
				t.Errorf("%+v", rec)
			}
		})
	}
}

// TestChangedWithinAStream: nobody is asked for the rest of an answer whose
// caller may not ask any more, or not under the same terms.
func TestChangedWithinAStream(t *testing.T) {
	whole := chunks("b", "The quick", " fox", " jumps", " over", "=stop") + usage("b", 7, 11) + done
	half := chunks("a", "The", " quick f", "ox ju")
	for name, change := range map[string]func(r *ring, c *cell, key apikey.Parsed){
		"revoked": func(_ *ring, c *cell, key apikey.Parsed) {
			c.revoke(c.ring.t.(*testing.T), registry.KindKey, key.RecordID())
		},
		"suspended": func(r *ring, c *cell, _ apikey.Parsed) { r.orgOf("acme").State = "suspended"; c.reload() },
		"pinned": func(r *ring, c *cell, _ apikey.Parsed) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", Residency: "us"})
			c.reload()
		},
		"zero": func(r *ring, c *cell, _ apikey.Parsed) {
			for _, name := range []string{"up-1", "up-2", "up-3"} {
				r.upstreamOf(name).Terms = registry.Terms{Retention: "zero", PromptCache: "none"}
			}
			r.policy("pol_1", &registry.Policy{Org: "org_acme", NoRetention: true})
			c.reload()
		},
		"disabled": func(r *ring, c *cell, _ apikey.Parsed) {
			for _, name := range []string{"up-1", "up-2", "up-3"} {
				r.upstreamOf(name).Disabled = true
			}
			c.reload()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRing(t)
			var c *cell
			key, parsed := r.org("acme", "any", "verified", "live")
			s := &script{takes: []take{{events: half, end: "cut"}, {events: whole}}}
			var asked atomic.Int32
			url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				if asked.Add(1) == 1 {
					change(r, c, parsed)
				}
				s.ServeHTTP(w, req)
			}))
			var targets []registry.Target
			for _, name := range []string{"up-1", "up-2", "up-3"} {
				r.upstream(name, "us-east", "openai", url, simulated)
				targets = append(targets, registry.Target{Upstream: name, Model: "m"})
			}
			r.route("m", targets...)
			c = r.start("us-east", "us", patient)
			c.confinement.Store(&allHolds)
			r.load()
			reply := c.do(s.listening(c.client(true)), call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)})
			text, _, failed, closed, _ := heard(t, reply.body)
			if text != "The quick fox ju" || !failed || closed || reply.broken == nil || asked.Load() != 1 {
				t.Errorf("asked %d times, heard %q, failed %t closed %t: %s", asked.Load(), text, failed, closed, reply.body)
			}
			if rec := c.record(reply.header.Get("idc-request-id")); rec.Splices != 0 || rec.Ended != "truncated" {
				t.Errorf("%+v", rec)
			}
		})
	}
}

// TestChangedAtThePeer: the executing node, too, asks nobody again for a key
// that it learned is revoked.
func TestChangedAtThePeer(t *testing.T) {
	r := newRing(t)
	var eu *cell
	key, parsed := r.org("acme", "any", "verified", "live")
	first := newAnswering(func(w http.ResponseWriter, _ string) {
		eu.revoke(t, registry.KindKey, parsed.RecordID())
		w.WriteHeader(http.StatusInternalServerError)
	})
	second := newAnswering(answered)
	for name, up := range map[string]http.Handler{"first": first, "second": second} {
		r.upstream(name, "eu-fra", "openai", provider(t, up), simulated)
	}
	r.route("m", registry.Target{Upstream: "first", Model: "m"}, registry.Target{Upstream: "second", Model: "m", Order: 1})
	us := r.start("us-east", "us", patient)
	eu = r.start("eu-fra", "eu", patient)
	r.load()
	reply := us.do(us.client(true), call{path: chat, key: key, body: ask("m", false)})
	reply.wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
	if n := second.count("m"); n != 0 || reply.header.Get("idc-attempts") != "1" {
		t.Errorf("the second upstream was asked %d times, %s attempts", n, reply.header.Get("idc-attempts"))
	}
}

// TestStricterAtThePeer: what an executing node knows and the entry does not
// yet holds for whoever is asked next.
func TestStricterAtThePeer(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	fails := newAnswering(status(http.StatusInternalServerError))
	next := newAnswering(answered)
	r.upstream("there", "us-west", "openai", provider(t, fails), func(u *registry.Upstream) {
		u.Provider, u.Terms = "p", registry.Terms{Retention: "zero", PromptCache: "none"}
	})
	r.upstream("far", "ap-sg", "openai", provider(t, next), func(u *registry.Upstream) { u.Provider = "p" })
	r.route("m", registry.Target{Upstream: "there", Model: "m"}, registry.Target{Upstream: "far", Model: "m", Order: 1})
	us := r.start("us-east", "us", patient)
	west, ap := r.start("us-west", "us", patient), r.start("ap-sg", "apac", patient)
	for _, c := range []*cell{us, west, ap} {
		c.confinement.Store(&allHolds)
	}
	r.load()
	in := call{path: chat, key: key, body: ask("m", false), header: map[string]string{"idc-region-hint": "us-west"}}
	us.do(us.client(true), in)
	if next.count("m") != 1 {
		t.Fatalf("without a policy the next region was asked %d times", next.count("m"))
	}
	for name, p := range map[string]*registry.Policy{
		"zero retention": {Org: "org_acme", NoRetention: true},
		"a pin":          {Org: "org_acme", Residency: "us"},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(r.state)
			r.policy("pol_1", p)
			west.reload()
			if reply := us.do(us.client(true), in); reply.status < 500 || next.count("m") != 1 {
				t.Errorf("%d; the next region was asked %d times", reply.status, next.count("m")-1)
			}
			r.state = r.state[:before]
			west.reload()
		})
	}
}

// TestPinnedAwayAtThePeer: an executing node that knows of a pin to another
// jurisdiction takes nothing in, and the entry node asks one that may.
func TestPinnedAwayAtThePeer(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	far, near := newAnswering(answered), newAnswering(answered)
	r.upstream("far", "ap-sg", "openai", provider(t, far), func(u *registry.Upstream) { u.Provider = "p" })
	r.upstream("near", "us-west", "openai", provider(t, near), func(u *registry.Upstream) { u.Provider = "p" })
	r.route("m", registry.Target{Upstream: "far", Model: "m"}, registry.Target{Upstream: "near", Model: "m", Order: 1})
	us := r.start("us-east", "us", patient)
	r.start("us-west", "us", patient)
	ap := r.start("ap-sg", "apac", patient)
	r.load()
	in := call{path: chat, key: key, body: ask("m", false), header: map[string]string{"idc-region-hint": "ap-sg"}}
	if us.do(us.client(true), in); far.count("m") != 1 {
		t.Fatalf("without a policy the hinted region was asked %d times", far.count("m"))
	}
	r.policy("pol_1", &registry.Policy{Org: "org_acme", Residency: "us"})
	ap.reload()
	reply := us.do(us.client(true), in)
	if reply.status != http.StatusOK || far.count("m") != 1 || near.count("m") != 1 || reply.header.Get("idc-residency") != "us" {
		t.Errorf("%d %v %s", reply.status, reply.header, reply.body)
	}
}

func (r *ring) orgOf(name string) *registry.Org {
	for _, rec := range r.state {
		if rec.Org != nil && rec.Org.Name == name {
			return rec.Org
		}
	}
	return nil
}

// reload gives the cell its ring's state as it is now.
func (c *cell) reload() {
	filler := &registry.Record{Kind: registry.KindPolicy, Policy: &registry.Policy{Org: "org_none"}}
	state := append([]*registry.Record(nil), c.ring.state...)
	for range c.reloads.Add(1) * 16 { // loads count as newer by size
		one := *filler
		one.Meta = meta("pol_filler"+strings.Repeat("x", len(state)%50)+time.Now().Format("150405.000000000"), controlplane.ShardAny("us-east"))
		state = append(state, &one)
	}
	c.load(state)
}

// TestPanic: a bug that one request meets costs it its answer, and nothing else.
func TestPanic(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for _, stream := range []bool{false, true} {
			r := newRing(t)
			s := &script{takes: []take{{events: chunks("a", "hi", "=stop") + usage("a", 1, 2) + done}, {events: chunks("a", "hi", "=stop") + usage("a", 1, 2) + done}}}
			up := http.Handler(s)
			if !stream {
				up = newAnswering(answered)
			}
			r.upstream("up", "us-east", "openai", provider(t, up), func(u *registry.Upstream) { u.Concurrency = 1 })
			r.route("m", registry.Target{Upstream: "up", Model: "m"})
			key, _ := r.org("acme", "any", "verified", "live")
			c := r.start("us-east", "us", patient)
			r.load()
			c.panics.Store(true)
			in := call{path: chat, key: key, body: ask("m", stream)}
			if reply, err := c.try(t.Context(), c.client(http2), in); err == nil && reply.broken == nil {
				t.Errorf("stream %t: %d %s", stream, reply.status, reply.body)
			}
			poll(t, "the place", func() bool { return c.worker.Health().InFlight == 0 })
			c.mu.Lock()
			if n := len(c.records); n != 1 || c.records[0].Attempts != 1 || c.records[0].Ended == "complete" || c.records[0].TokensIn == 0 {
				t.Errorf("stream %t: %d records, %+v", stream, n, *c.records[0])
			}
			c.mu.Unlock()
			if reply := c.do(c.client(http2), in); reply.status != 200 || reply.broken != nil {
				t.Errorf("stream %t, the next one: %d %v %s", stream, reply.status, reply.broken, reply.body)
			}
		}
	}
}

// TestRefusedStreams: the head of a stream that is nothing but a refusal says
// that it is final.
func TestRefusedStreams(t *testing.T) {
	s := &script{takes: []take{{events: chunks("a", "=content_filter")[len(chunks("a")):] + usage("a", 1, 0) + done}}}
	c, key := spliceCell(t, s)
	reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", true)})
	if rec := c.record(reply.header.Get("idc-request-id")); reply.status != 200 || reply.header.Get("x-should-retry") != "false" || !rec.Refused || s.asked() != 1 {
		t.Errorf("%v %s: %+v", reply.header, reply.body, rec)
	}
}

// TestReceiptOfASplice: the attempt whose stream broke is not said to have gone well.
func TestReceiptOfASplice(t *testing.T) {
	s := &script{takes: []take{
		{events: chunks("a", "The", " quick f"), end: "cut"},
		{events: chunks("b", "The quick fox", "=stop") + usage("b", 7, 11) + done},
	}}
	c, key := spliceCell(t, s)
	in := call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)}
	reply := c.do(s.listening(c.client(true)), in)
	f := c.receiptOf(key, reply, in.body)
	if len(f.Attempts) != 2 || f.Attempts[0].Outcome != "transport" || f.Attempts[1].Outcome != "ok" || f.Ended != "complete" {
		t.Errorf("%+v", f)
	}
}

// TestReceiptOfAWithheldAnswer: an answer that could not be recorded is not
// stated as complete.
func TestReceiptOfAWithheldAnswer(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	c.mu.Lock()
	c.emitErr = errNoKeeper
	c.mu.Unlock()
	in := call{path: chat, key: key, body: ask("m", false)}
	reply := c.do(c.client(true), in)
	reply.wantError(t, dialect.OpenAI, dialect.MeteringUnavailable)
	if f := c.receiptOf(key, reply, in.body); f.Ended != "error" {
		t.Errorf("%+v", f)
	}
}

// TestFiguresWhereNoTextIs: sound, pictures and counts are not estimated as if
// they were text.
func TestFiguresWhereNoTextIs(t *testing.T) {
	r := newRing(t)
	sound := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/v1/audio/speech":
			w.Header().Set("content-type", "audio/mpeg")
			_, _ = w.Write(make([]byte, 40_000))
		case "/v1/messages/count_tokens":
			w.Header().Set("content-type", "application/json")
			_, _ = w.Write([]byte(`{"input_tokens":5}`))
		default:
			w.Header().Set("content-type", "application/json")
			_, _ = w.Write([]byte(`{"text":"hi"}`))
		}
	})
	url := provider(t, sound)
	r.upstream("o", "us-east", "openai", url)
	r.upstream("a", "us-east", "anthropic", url)
	r.route("m", registry.Target{Upstream: "o", Model: "m"}, registry.Target{Upstream: "a", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	for path, want := range map[string]struct {
		source string
		in     bool
	}{"/v1/audio/transcriptions": {"none", false}, "/v1/messages/count_tokens": {"none", false}, "/v1/audio/speech": {"estimated", true}} {
		ep, _ := dialect.EndpointOf(path)
		body, kind := bodyFor(t, ep, "m", false)
		reply := c.do(c.client(true), call{path: path, key: key, body: body, header: map[string]string{"content-type": kind}})
		if reply.status != 200 {
			t.Fatalf("%s: %d %s", path, reply.status, reply.body)
		}
		if rec := c.record(reply.header.Get("idc-request-id")); string(rec.Source) != want.source || rec.TokensOut != 0 || rec.TokensIn > 0 != want.in {
			t.Errorf("%s: %+v", path, rec)
		}
	}
}
