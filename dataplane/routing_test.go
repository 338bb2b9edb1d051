package dataplane_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

// answering is a provider that counts what it is asked, by model, and answers
// as answer says.
type answering struct {
	mu     sync.Mutex
	asked  map[string]int
	answer func(w http.ResponseWriter, model string)
}

func newAnswering(answer func(w http.ResponseWriter, model string)) *answering {
	return &answering{asked: map[string]int{}, answer: answer}
}

func (a *answering) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct{ Model string }
	_ = json.NewDecoder(r.Body).Decode(&body)
	a.mu.Lock()
	a.asked[body.Model]++
	a.mu.Unlock()
	a.answer(w, body.Model)
}

func (a *answering) count(model string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[model]
}

func status(code int) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) { w.WriteHeader(code) }
}

// answered answers well, naming the model that was asked.
func answered(w http.ResponseWriter, model string) {
	w.Header().Set("content-type", "application/json")
	_, _ = io.WriteString(w, strings.Replace(plainAnswer, "{", `{"model":"`+model+`",`, 1))
}

func tooLong(w http.ResponseWriter, _ string) {
	w.Header().Set("content-type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	_, _ = io.WriteString(w, `{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded"}}`)
}

// routed adds a route with what beside its targets matters.
func (r *ring) routed(model string, change func(*registry.Route), targets ...registry.Target) {
	r.route(model, targets...)
	change(r.state[len(r.state)-1].Route)
}

// TestFallbackModels: when every upstream of a model failed, the models that it
// falls back on are asked in order, as far as the request may use them.
func TestFallbackModels(t *testing.T) {
	for _, tc := range []struct {
		name     string
		change   func(r *ring)
		model    string // that answers; "" = none
		attempts string
		code     dialect.Code
		asked    string // upstream model=count, in order
	}{
		{name: "the first is enough", model: "b", attempts: "2", asked: "a=1 b=1"},
		{name: "in order, what is shut is passed over", change: func(r *ring) {
			r.upstreamOf("b").Disabled = true
		}, model: "c", attempts: "2", asked: "a=1 c=1"},
		{name: "not against an allow-list", change: func(r *ring) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", Models: []string{"a", "c"}})
		}, model: "c", attempts: "2", asked: "a=1 c=1"},
		{name: "not with another provider unasked", change: func(r *ring) {
			r.upstreamOf("b").Provider = "other"
		}, model: "c", attempts: "2", asked: "a=1 c=1"},
		{name: "with another provider where allowed", change: func(r *ring) {
			r.upstreamOf("b").Provider = "other"
			r.projectOf("acme").CrossProvider = true
		}, model: "b", attempts: "2", asked: "a=1 b=1"},
		{name: "only with the terms", change: func(r *ring) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", NoRetention: true})
			for _, name := range []string{"a", "c"} {
				r.upstreamOf(name).Terms = registry.Terms{Retention: "zero", PromptCache: "none"}
			}
		}, model: "c", attempts: "2", asked: "a=1 c=1"},
		{name: "only in the jurisdiction", change: func(r *ring) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", Residency: "us"})
			r.upstreamOf("b").Region = "eu-fra"
		}, model: "c", attempts: "2", asked: "a=1 c=1"},
		{name: "where the first has nothing in service", change: func(r *ring) {
			r.upstreamOf("a").Disabled = true
		}, model: "b", attempts: "1", asked: "b=1"},
		{name: "in another region", change: func(r *ring) {
			r.upstreamOf("b").Region = "eu-fra"
		}, model: "b", attempts: "2", asked: "a=1 b=1"},
		{name: "none may be asked: the first is asked again", change: func(r *ring) {
			r.policy("pol_1", &registry.Policy{Org: "org_acme", Models: []string{"a"}})
		}, code: dialect.UpstreamError, attempts: "3", asked: "a=3"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := newAnswering(func(w http.ResponseWriter, model string) {
				if model == "a" {
					w.WriteHeader(http.StatusInternalServerError)
					return
				}
				answered(w, model)
			})
			url := provider(t, up)
			r := newRing(t)
			for _, name := range []string{"a", "b", "c"} {
				r.upstream(name, "us-east", "openai", url)
			}
			r.routed("a", func(route *registry.Route) { route.Fallbacks = []string{"b", "c"} }, registry.Target{Upstream: "a", Model: "a"})
			r.route("b", registry.Target{Upstream: "b", Model: "b"})
			r.route("c", registry.Target{Upstream: "c", Model: "c"})
			key, _ := r.org("acme", "any", "verified", "live")
			if tc.change != nil {
				tc.change(r)
			}
			c := r.start("us-east", "us")
			r.start("eu-fra", "eu")
			c.confinement.Store(&allHolds)
			r.load()
			reply := c.do(c.client(true), call{path: chat, key: key, body: ask("a", false)})
			if tc.code != "" {
				reply.wantError(t, dialect.OpenAI, tc.code)
			} else if reply.status != 200 || !strings.Contains(reply.body, `"model":"`+tc.model+`"`) {
				t.Errorf("%d %s", reply.status, reply.body)
			}
			if got := reply.header.Get("idc-attempts"); got != tc.attempts {
				t.Errorf("%s attempts, want %s", got, tc.attempts)
			}
			var asked []string
			for _, m := range []string{"a", "b", "c"} {
				if n := up.count(m); n > 0 {
					asked = append(asked, m+"="+strconv.Itoa(n))
				}
			}
			if got := strings.Join(asked, " "); got != tc.asked {
				t.Errorf("asked %s, want %s", got, tc.asked)
			}
			if rec := c.record(reply.header.Get("idc-request-id")); rec.Model != "a" || rec.Served != tc.model && tc.model != "" {
				t.Errorf("%+v", rec)
			}
		})
	}
}

func (r *ring) upstreamOf(name string) *registry.Upstream {
	i := slices.IndexFunc(r.state, func(rec *registry.Record) bool { return rec.Upstream != nil && rec.Upstream.Name == name })
	return r.state[i].Upstream
}

func (r *ring) projectOf(name string) *registry.Project {
	i := slices.IndexFunc(r.state, func(rec *registry.Record) bool { return rec.Meta.ID == "prj_"+name })
	return r.state[i].Project
}

// TestContextFallback: a prompt that is too long for its model goes to the one
// declared for that, once; if that fails, the first refusal stands.
func TestContextFallback(t *testing.T) {
	for _, tc := range []struct {
		name   string
		longer func(http.ResponseWriter, string)
		status int
		says   string
		asked  int // of the longer one
	}{
		{"answered", answered, 200, `"model":"longer"`, 1},
		{"too long for that, too", tooLong, 400, "context_length_exceeded", 1},
		{"which fails", status(500), 400, "context_length_exceeded", 2}, // what is left of three attempts
	} {
		t.Run(tc.name, func(t *testing.T) {
			up := newAnswering(func(w http.ResponseWriter, model string) {
				if model == "longer" {
					tc.longer(w, model)
					return
				}
				tooLong(w, model)
			})
			r := newRing(t)
			r.upstream("up", "us-east", "openai", provider(t, up))
			r.routed("short", func(route *registry.Route) { route.ContextFallback = "longer" }, registry.Target{Upstream: "up", Model: "short"})
			r.routed("longer", func(route *registry.Route) { route.ContextFallback = "longest" }, registry.Target{Upstream: "up", Model: "longer"})
			r.route("longest", registry.Target{Upstream: "up", Model: "longest"})
			key, _ := r.org("acme", "any", "verified", "live")
			c := r.start("us-east", "us")
			r.load()
			reply := c.do(c.client(true), call{path: chat, key: key, body: ask("short", false)})
			if reply.status != tc.status || !strings.Contains(reply.body, tc.says) || up.count("short") != 1 || up.count("longer") != tc.asked || up.count("longest") != 0 {
				t.Errorf("%d %s, asked %v", reply.status, reply.body, up.asked)
			}
			want := map[int]string{200: "longer", 400: "short"}[tc.status]
			if tc.asked == 1 && tc.status == 400 {
				want = "longer" // it refused by itself
			}
			if rec := c.record(reply.header.Get("idc-request-id")); rec.Served != want {
				t.Errorf("%+v, want %s", rec, want)
			}
		})
	}
}

// TestPlainAnswersTakeTheirTime: a plain answer's head comes when the answer is
// whole; the route's first-byte time, where it is given, still bounds it.
func TestPlainAnswersTakeTheirTime(t *testing.T) {
	up := newAnswering(func(w http.ResponseWriter, model string) {
		time.Sleep(500 * time.Millisecond)
		answered(w, model)
	})
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, up))
	for model, first := range map[string]uint32{"slow": 0, "quick": 100} {
		r.routed(model, func(route *registry.Route) { route.Timeouts = registry.Timeouts{FirstByteMS: first, TotalMS: 20_000} }, registry.Target{Upstream: "up", Model: model})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	if reply := c.do(c.client(true), call{path: chat, key: key, body: ask("slow", false)}); reply.status != 200 {
		t.Errorf("%d %s", reply.status, reply.body)
	}
	c.do(c.client(true), call{path: chat, key: key, body: ask("quick", false)}).wantError(t, dialect.OpenAI, dialect.UpstreamTimeout)
}

// TestPoolsOfNodes: a request whose pool this node lacks goes to a neighbour
// that has it, and nowhere if there is none.
func TestPoolsOfNodes(t *testing.T) {
	up := newAnswering(answered)
	r := newRing(t)
	zero := func(u *registry.Upstream) {
		u.Provider, u.Terms = "p", registry.Terms{Retention: "zero", PromptCache: "memory"}
	}
	url := provider(t, up)
	r.upstream("zero", "us-east", "openai", url, zero)
	r.upstream("own", "us-east", "openai", url, func(u *registry.Upstream) { u.Provider, u.Dedicated = "p", "org_owner" })
	r.route("m", registry.Target{Upstream: "zero", Model: "m"}, registry.Target{Upstream: "own", Model: "own", Order: 1})
	r.policy("pol_1", &registry.Policy{Org: "org_owner", Dedicated: true})
	key, _ := r.org("acme", "any", "verified", "live")
	owner, _ := r.org("owner", "any", "verified", "live")
	plain := r.startNode("us-east", "us", "us-east-d1", []string{"standard"}, 0)
	zr := r.startNode("us-east", "us", "us-east-zr", []string{"zero-retention"}, 0)
	own := r.startNode("us-east", "us", "us-east-own", []string{"dedicated:org_owner"}, 0)
	r.load()
	plain.confinement.Store(&allHolds)
	body := ask("m", false)
	none := map[string]string{"idc-no-retention": "true"}

	if reply := plain.do(plain.client(true), call{path: chat, key: key, body: body}); reply.status != 200 || reply.header.Get("idc-pool") != "standard" || reply.header.Get("idc-replica") != "us-east-d1" {
		t.Errorf("%d %v", reply.status, reply.header)
	}
	// The neighbour is of the pool, but its confinement does not hold.
	plain.do(plain.client(true), call{path: chat, key: key, body: body, header: none}).wantError(t, dialect.OpenAI, dialect.ZeroRetentionUnavailable)
	zr.confinement.Store(&allHolds)
	reply := plain.do(plain.client(true), call{path: chat, key: key, body: body, header: none})
	if reply.status != 200 || reply.header.Get("idc-pool") != "zero-retention" || reply.header.Get("idc-retention") != "zero" ||
		reply.header.Get("idc-route") != "us-east/us-east-d1 > us-east/us-east-zr > zero" {
		t.Errorf("%d %v %s", reply.status, reply.header, reply.body)
	}
	reply = plain.do(plain.client(true), call{path: chat, key: owner, body: body})
	if reply.status != 200 || reply.header.Get("idc-pool") != "dedicated:org_owner" || reply.header.Get("idc-replica") != "us-east-own" || reply.header.Get("idc-upstream") != "own" {
		t.Errorf("%d %v %s", reply.status, reply.header, reply.body)
	}
	own.close()
	r.mu.Lock()
	delete(r.cells, "us-east-own")
	r.mu.Unlock()
	plain.do(plain.client(true), call{path: chat, key: owner, body: body}).wantError(t, dialect.OpenAI, dialect.NoHealthyRoute)
	if up.count("own") != 1 {
		t.Errorf("asked %v", up.asked)
	}
}

// TestModelsSayWhere: what a key sees of a model follows its policies.
func TestModelsSayWhere(t *testing.T) {
	r := newRing(t)
	for name, change := range map[string]func(*registry.Upstream){
		"us": func(u *registry.Upstream) {
			u.Region, u.Terms = "us-east", registry.Terms{Retention: "zero", PromptCache: "none"}
		},
		"eu":   func(u *registry.Upstream) { u.Region, u.Terms.Retention = "eu-fra", "30d" },
		"off":  func(u *registry.Upstream) { u.Region, u.Disabled = "ap-sg", true },
		"own":  func(u *registry.Upstream) { u.Region, u.Dedicated = "ap-sg", "org_owner" },
		"late": func(u *registry.Upstream) { u.Region, u.Provider = "ap-sg", "another" },
	} {
		r.upstream(name, "", "openai", "https://127.0.0.1:1", func(u *registry.Upstream) { u.Provider = "p" }, change)
	}
	var targets []registry.Target
	for i, name := range []string{"us", "eu", "off", "own", "late"} {
		targets = append(targets, registry.Target{Upstream: name, Model: "m", Order: uint32(i)})
	}
	r.upstreamOf("eu").Endpoints = []string{"/v1/embeddings", chat}
	r.upstreamOf("us").Endpoints = []string{chat}
	r.route("m", targets...)
	r.route("private", registry.Target{Upstream: "own", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	owner, _ := r.org("owner", "any", "verified", "live")
	cross, _ := r.org("cross", "any", "verified", "live", func(_ *registry.Org, p *registry.Project, _ *registry.Key) { p.CrossProvider = true })
	pinned, _ := r.org("pinned", "any", "verified", "live")
	r.policy("pol_1", &registry.Policy{Org: "org_pinned", Residency: "us"})
	c := r.start("us-east", "us")
	r.start("eu-fra", "eu")
	r.start("ap-sg", "apac")
	c.confinement.Store(&allHolds)
	r.load()
	for _, tc := range []struct {
		name, key string
		header    map[string]string
		want      string // model: owner regions jurisdictions retention endpoints
	}{
		{"unpinned", key, nil, "m: p [eu-fra us-east] [eu us] [metadata zero] [/v1/chat/completions /v1/embeddings]"},
		{"zero retention", key, map[string]string{"idc-no-retention": "true"}, "m: p [us-east] [us] [zero] [/v1/chat/completions]"},
		{"pinned by policy", pinned, nil, "m: p [us-east] [us] [metadata zero] [/v1/chat/completions]"},
		{"pinned by the request", key, map[string]string{"idc-residency": "us"}, "m: p [us-east] [us] [metadata zero] [/v1/chat/completions]"},
		{"the org's own", owner, nil, "m: p [ap-sg eu-fra us-east] [apac eu us]"},
		{"any provider", cross, nil, "m: p [ap-sg eu-fra us-east] [apac eu us]"},
	} {
		reply := c.do(c.client(true), call{path: "/v1/models", key: tc.key, header: tc.header})
		var list struct {
			Data []struct {
				ID            string
				OwnedBy       string   `json:"owned_by"`
				Regions       []string `json:"idc_regions"`
				Jurisdictions []string `json:"idc_jurisdictions"`
				Retention     []string `json:"idc_retention"`
				Endpoints     []string `json:"idc_endpoints"`
			}
		}
		if err := json.Unmarshal([]byte(reply.body), &list); err != nil {
			t.Fatalf("%s: %d %s", tc.name, reply.status, reply.body)
		}
		var got []string
		for _, m := range list.Data {
			got = append(got, fmt.Sprintf("%s: %s %v %v %v %v", m.ID, m.OwnedBy, m.Regions, m.Jurisdictions, m.Retention, m.Endpoints))
		}
		if text := strings.Join(got, "\n"); !strings.HasPrefix(text, tc.want) || (len(got) == 2) != (tc.key == owner) {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, text, tc.want)
		}
	}
	c.do(c.client(true), call{path: "/v1/models/private", key: key}).wantError(t, dialect.OpenAI, dialect.ModelNotFound)
	if reply := c.do(c.client(true), call{path: "/v1/models/private", key: owner}); reply.status != 200 {
		t.Errorf("%d %s", reply.status, reply.body)
	}
}
