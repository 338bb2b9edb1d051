package dataplane_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
	"ringmain/dataplane/meter"
	"ringmain/drills/simmodel"
)

var dialects = map[dialect.Dialect]string{dialect.OpenAI: chat, dialect.Anthropic: messages}

// oneRegion is us-east with a simulated provider in both dialects behind every
// model of it, and a live key.
func oneRegion(t *testing.T) (*cell, *simmodel.Provider, string) {
	t.Helper()
	r := newRing(t)
	sim := simmodel.New(simmodel.Config{Credential: "provider-secret"})
	url := provider(t, sim)
	r.upstream("sim-o", "us-east", "openai", url, simulated)
	r.upstream("sim-a", "us-east", "anthropic", url, simulated)
	for _, m := range append(simmodel.Faults(), "sim-chat") {
		m2 := m + ":tps=400" // slow enough for several reads of one answer
		r.route(m, registry.Target{Upstream: "sim-o", Model: m2}, registry.Target{Upstream: "sim-a", Model: m2})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	return c, sim, key
}

// patient circuits do not open, and neither limits nor budgets bite: each case
// of a test shall find the upstream as if it were the only one.
var patient = dataplane.Tunables{
	ProbeEvery: 50 * time.Millisecond, DrainGrace: 50 * time.Millisecond,
	Upstreams: breaker.Rules{Run: 1000, Least: 1000},
	Limits:    admission.LimitsConfig{Floor: 1000}, Retries: breaker.BudgetRules{Least: 1000},
}

// simulated upstreams count as one provider, whatever they speak.
func simulated(u *registry.Upstream) { u.Provider, u.Simulated = "sim", true }

func TestAnswers(t *testing.T) {
	c, sim, key := oneRegion(t)
	for _, http2 := range []bool{false, true} {
		cl := c.client(http2)
		for d, path := range dialects {
			for _, stream := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s stream=%t h2=%t", d, stream, http2), func(t *testing.T) {
					before := sim.Counts().Total
					in := call{path: path, key: key, body: ask("sim-chat", stream)}
					if d == dialect.Anthropic {
						in.key, in.header = "", map[string]string{"x-api-key": key, "anthropic-version": "2023-06-01"}
					}
					r := c.do(cl, in)
					if r.status != 200 || r.broken != nil {
						t.Fatalf("status %d, %v: %s", r.status, r.broken, r.body)
					}
					if http2 != (r.proto == 2) {
						t.Errorf("protocol %d", r.proto)
					}
					r.wantHeaders(t)
					for name, want := range map[string]string{
						"idc-route": "us-east/us-east-d1 > sim-" + d.String()[:1], "idc-upstream": "sim-" + d.String()[:1],
						"idc-residency": "unpinned", "idc-retention": "metadata", "idc-pool": "standard", "idc-attempts": "1",
						"idc-entry-region": "us-east", "idc-region": "us-east", "idc-replica": "us-east-d1",
					} {
						if got := r.header.Get(name); got != want {
							t.Errorf("%s: %q, want %q", name, got, want)
						}
					}
					if !strings.HasPrefix(r.header.Get("idc-upstream-request-id"), "req_sim_") {
						t.Errorf("idc-upstream-request-id %q", r.header.Get("idc-upstream-request-id"))
					}
					checkAnswer(t, d, stream, r.body)
					rec, after := c.record(r.header.Get("idc-request-id")), sim.Counts().Total
					if rec.TokensIn != after.PromptTokens-before.PromptTokens || rec.TokensOut != after.CompletionTokens-before.CompletionTokens ||
						rec.Source != meter.SourceProvider || rec.Ended != meter.EndComplete || rec.Streamed != stream || rec.Model != "sim-chat" ||
						rec.Org != "org_acme" || rec.Project != "prj_acme" || rec.Role != meter.RoleFront || rec.Attempts != 1 || rec.TokensOut == 0 {
						t.Errorf("record %+v; provider %+v then %+v", rec, before, after)
					}
				})
			}
		}
	}
}

// checkAnswer looks for the end, and for the usage that nobody asked for.
func checkAnswer(t *testing.T, d dialect.Dialect, streamed bool, body string) {
	t.Helper()
	if !streamed {
		path := "/v1/chat/completions"
		if d == dialect.Anthropic {
			path = "/v1/messages"
		}
		ep, _ := dialect.EndpointOf(path)
		if a, ok := dialect.ReadAnswer(ep, "application/json", []byte(body)); !ok || !a.Usage.Final {
			t.Errorf("answer %s", body)
		}
		return
	}
	s := stream.Stream{Dialect: d, WantsUsage: true}
	for i, e := range events(body) {
		switch k := s.Event([]byte(e)); k {
		case stream.KindContent, stream.KindIdle, stream.KindLast:
		default:
			t.Errorf("event %d is of kind %d: %s", i, k, e)
		}
	}
	if !s.Done || s.Text == 0 {
		t.Errorf("done %t, %d bytes: %s", s.Done, s.Text, body)
	}
	if d == dialect.OpenAI && s.Usage.Final {
		t.Errorf("usage chunk was not hidden: %s", body)
	}
}

func TestUsageChunkIsLeftForThoseWhoAskForIt(t *testing.T) {
	c, _, key := oneRegion(t)
	r := c.do(c.client(true), call{path: chat, key: key, body: ask("sim-chat", true, `,"stream_options":{"include_usage":true}`)})
	s := stream.Stream{Dialect: dialect.OpenAI, WantsUsage: true}
	for _, e := range events(r.body) {
		s.Event([]byte(e))
	}
	if !s.Done || !s.Usage.Final || s.Usage.Output == 0 {
		t.Errorf("%+v: %s", s, r.body)
	}
}

// TestWhatGoesUpstream checks the bytes and headers a provider gets.
func TestWhatGoesUpstream(t *testing.T) {
	r := newRing(t)
	var mu sync.Mutex
	var got *http.Request
	var sent []byte
	sim := simmodel.New(simmodel.Config{OnRequest: func(q *http.Request, b []byte) {
		mu.Lock()
		defer mu.Unlock()
		got, sent = q.Clone(context.Background()), append([]byte(nil), b...)
	}})
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		for _, name := range []string{"openai-organization", "set-cookie", "x-ratelimit-limit-requests", "server", "x-should-retry", "idc-region", "ringmain-outcome"} {
			w.Header().Set(name, "the provider's own")
		}
		sim.ServeHTTP(w, q)
	}))
	auths := map[string]string{"bearer": "Authorization", "x-api-key": "X-Api-Key", "api-key": "Api-Key", "none": ""}
	for auth := range auths {
		r.upstream("up-"+auth, "us-east", "openai", url, func(u *registry.Upstream) { u.Auth = auth })
		r.route("m-"+auth, registry.Target{Upstream: "up-" + auth, Model: "sim-chat"})
	}
	r.upstream("up-a", "us-east", "anthropic", url)
	r.route("m-a", registry.Target{Upstream: "up-a", Model: "sim-chat"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	theirs := map[string]string{
		"openai-organization": "org-x", "x-stainless-os": "Linux", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "forwarded": "for=1.2.3.4",
		"user-agent": "OpenAI/Python", "x-real-ip": "1.2.3.4", "idc-project-id": "prj_acme", "openai-project": "prj_acme", "x-anything": "else",
		"te": "trailers", "proxy-authorization": "Basic x", "openai-beta": "assistants=v2", "referer": "https://example.org", "idempotency-key": "k",
	}
	for auth, header := range auths {
		body := ask("m-"+auth, true, `, "odd" : [ 1.50, "\u00e9" ]`)
		reply := c.do(c.client(true), call{path: chat, key: key, body: body, header: theirs})
		if reply.status != 200 {
			t.Fatal(reply.body)
		}
		mu.Lock()
		h := got.Header.Clone()
		text := string(sent)
		mu.Unlock()
		if want := strings.Replace(strings.Replace(body, "m-"+auth, "sim-chat", 1), `"stream":true`, `"stream":true,"stream_options":{"include_usage":true}`, 1); text != want {
			t.Errorf("sent %s\nwant %s", text, want)
		}
		allowed := map[string]bool{"Content-Type": true, "Accept": true, "User-Agent": true, "Openai-Beta": true, "Content-Length": true}
		if header != "" {
			allowed[header] = true
			if v := h.Get(header); !strings.HasSuffix(v, "provider-secret") {
				t.Errorf("%s: %q", header, v)
			}
		}
		for name, v := range h {
			if !allowed[name] || strings.Contains(fmt.Sprint(v), "idc_") {
				t.Errorf("%s went upstream: %q", name, v)
			}
		}
		if h.Get("User-Agent") != "ringmain" || h.Get("Openai-Beta") != "assistants=v2" {
			t.Errorf("%v", h)
		}
		for name, v := range reply.header {
			if strings.Contains(fmt.Sprint(v), "the provider's own") {
				t.Errorf("%s came back: %q", name, v)
			}
		}
	}
	reply := c.do(c.client(true), call{path: messages, body: ask("m-a", false), header: map[string]string{"x-api-key": key, "anthropic-beta": "a|b"}})
	mu.Lock()
	defer mu.Unlock()
	if reply.status != 200 || got.Header.Get("Anthropic-Version") != "2023-06-01" || fmt.Sprint(got.Header["Anthropic-Beta"]) != "[a b]" {
		t.Errorf("%d %v", reply.status, got.Header)
	}
}

func TestFaults(t *testing.T) {
	type want struct {
		status    int // of a plain answer; 200 = good
		code      dialect.Code
		attempts  string
		streamEnd string       // good, error (before the first byte), broken (after it)
		inBand    dialect.Code // code of a broken stream
	}
	good := want{status: 200, streamEnd: "good", attempts: "1"}
	failed := want{status: 502, code: dialect.UpstreamError, streamEnd: "error", attempts: "3"}
	broken := want{status: 502, code: dialect.UpstreamError, streamEnd: "broken", inBand: dialect.UpstreamError, attempts: "3"}
	wants := map[string]want{
		"sim-chat":               good,
		simmodel.Fault429:        {status: 503, code: dialect.UpstreamSaturated, streamEnd: "error", attempts: "3"},
		simmodel.Fault500Once:    {status: 200, streamEnd: "good", attempts: "2"},
		simmodel.Fault503:        failed,
		simmodel.FaultReset:      failed,
		simmodel.FaultSilence:    {status: 504, code: dialect.UpstreamTimeout, streamEnd: "error", attempts: "1"},
		simmodel.FaultCut:        broken,
		simmodel.FaultCutClean:   broken,
		simmodel.FaultStall:      {status: 504, code: dialect.UpstreamTimeout, streamEnd: "broken", inBand: dialect.UpstreamTimeout, attempts: "1"},
		simmodel.FaultRefusal:    good,
		simmodel.FaultEarlyError: failed,
		simmodel.FaultLateError:  broken,
		simmodel.FaultGarbage:    broken,
	}
	for _, f := range simmodel.Faults() {
		if _, ok := wants[f]; !ok {
			t.Errorf("no expectation for %s", f)
		}
	}
	for _, http2 := range []bool{false, true} {
		c, _, key := oneRegion(t)
		var all sync.WaitGroup
		for model, w := range wants {
			for d, path := range dialects {
				for _, stream := range []bool{false, true} {
					all.Go(func() {
						// Each prompt fails once, so that every case sees its own 500.
						more := fmt.Sprintf(`,"metadata":{"x":"%t"}`, stream)
						body := strings.Replace(ask(model, stream, more), "about foxes", fmt.Sprintf("about %s %t %t", d, stream, http2), 1)
						r := c.do(c.client(http2), call{path: path, key: key, body: body})
						name := fmt.Sprintf("%s %s stream=%t h2=%t", model, d, stream, http2)
						rec := c.record(r.header.Get("idc-request-id"))
						refused := model == simmodel.FaultRefusal
						w := w
						if model == simmodel.FaultEarlyError && stream && d == dialect.Anthropic { // it says that it is overloaded
							w.status, w.code = 503, dialect.UpstreamSaturated
						}
						if rec.Refused != refused {
							t.Errorf("%s: refused %t", name, rec.Refused)
						}
						end := w.streamEnd
						if !stream {
							end = "error"
							if w.status == 200 {
								end = "good"
							}
						}
						if attempts := r.header.Get("idc-attempts"); attempts != w.attempts && end != "broken" {
							t.Errorf("%s: %s attempts, want %s", name, attempts, w.attempts)
						}
						switch end {
						case "good":
							if r.status != 200 || r.broken != nil || rec.Ended != meter.EndComplete {
								t.Errorf("%s: status %d, %v, record %+v: %s", name, r.status, r.broken, rec, r.body)
								return
							}
							if refused && !stream && r.header.Get("x-should-retry") != "false" {
								t.Errorf("%s: a refusal may not be retried", name)
							}
							checkAnswer(t, d, stream, r.body)
						case "error":
							if rec.Ended != meter.EndError || rec.Code != string(w.code) || rec.Source != meter.SourceNone {
								t.Errorf("%s: record %+v", name, rec)
							}
							if r.status != w.status {
								t.Errorf("%s: status %d, want %d: %s", name, r.status, w.status, r.body)
								return
							}
							r.wantError(t, d, w.code)
						case "broken":
							wantBroken(t, name, d, r, w.inBand)
							if rec.Ended != meter.EndTruncated || rec.Source != meter.SourceEstimated || rec.TokensOut == 0 || rec.TokensIn == 0 {
								t.Errorf("%s: record %+v", name, rec)
							}
						}
					})
				}
			}
		}
		all.Wait()
	}
}

// wantBroken: an in-band error is the last thing said, and the connection
// breaks; nothing looks complete.
func wantBroken(t *testing.T, name string, d dialect.Dialect, r *reply, code dialect.Code) {
	t.Helper()
	if r.status != 200 || r.broken == nil {
		t.Errorf("%s: status %d, closed cleanly (%v): %s", name, r.status, r.broken, r.body)
	}
	if strings.Contains(r.body, "[DONE]") || strings.Contains(r.body, "message_stop") {
		t.Errorf("%s: looks complete: %s", name, r.body)
	}
	all := events(r.body)
	s := stream.Stream{Dialect: d}
	if len(all) < 2 || s.Event([]byte(all[len(all)-1])) != stream.KindError {
		t.Errorf("%s: no error event at the end: %s", name, r.body)
		return
	}
	last := all[len(all)-1]
	if strings.Contains(last, "simulated provider") {
		return // its own words
	}
	if want := code.Type(d); !strings.Contains(last, `"type":"`+want+`"`) {
		t.Errorf("%s: last event %s, want type %s", name, last, want)
	}
}

func TestClientThatLeavesCancelsTheUpstream(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		for _, model := range []string{"sim-silence", "sim-stall"} {
			c, sim, key := oneRegion(t)
			ctx, cancel := context.WithCancel(context.Background())
			var left sync.WaitGroup
			left.Go(func() {
				reply, err := c.try(ctx, c.client(http2), call{path: chat, key: key, body: ask(model, model == "sim-stall")})
				if err == nil {
					err = reply.broken
				}
				if !errors.Is(err, context.Canceled) {
					t.Errorf("%s h2=%t: %v", model, http2, err)
				}
			})
			poll(t, "the upstream to be asked", func() bool { return sim.Counts().Models[model].Requests == 1 })
			time.Sleep(20 * time.Millisecond) // into the stream; earlier would do as well
			cancel()
			left.Wait()
			poll(t, "the upstream to notice", func() bool { return sim.Counts().Models[model].ClientGone == 1 })
			poll(t, "a record", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return len(c.records) == 1 && c.records[0].Ended == meter.EndClientGone && c.records[0].Source == meter.SourceEstimated
			})
			if open := c.worker.Health().Breakers; len(open) != 0 {
				t.Errorf("a client's abort opened %v", open)
			}
		}
	}
}

func TestRefusalStatusIsFinal(t *testing.T) {
	r := newRing(t)
	asked := 0
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		asked++
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"error":{"code":"content_policy_violation","message":"no"}}`))
	}))
	r.upstream("a", "us-east", "openai", url)
	r.upstream("b", "us-east", "openai", url)
	r.route("m", registry.Target{Upstream: "a", Model: "m"}, registry.Target{Upstream: "b", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)})
	if reply.status != 403 || asked != 1 || reply.header.Get("x-should-retry") != "false" || !strings.Contains(reply.body, "content_policy_violation") {
		t.Errorf("%d asked %d times: %v %s", reply.status, asked, reply.header, reply.body)
	}
	if rec := c.record(reply.header.Get("idc-request-id")); !rec.Refused || rec.Status != 403 {
		t.Errorf("%+v", rec)
	}
}

func TestTooLongPrompts(t *testing.T) {
	r := newRing(t)
	body := `{"error":{"code":"context_length_exceeded","message":"theirs"}}`
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(body))
	}))
	r.upstream("a", "eu-fra", "openai", url)
	r.route("m", registry.Target{Upstream: "a", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live", func(o *registry.Org, _ *registry.Project, _ *registry.Key) { o.Roaming = true })
	us, eu := r.start("us-east", "us"), r.start("eu-fra", "eu")
	r.load()
	for _, c := range []*cell{us, eu} {
		for range 8 {
			reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", true)})
			if reply.status != 400 || reply.body != body || reply.header.Get("idc-error-code") != string(dialect.ContextLengthExceeded) || reply.header.Get("x-should-retry") != "false" || reply.header.Get("idc-region") != "eu-fra" {
				t.Errorf("%s: %d %v %s", c.region, reply.status, reply.header, reply.body)
			}
		}
		if open := c.worker.Health().Breakers; len(open) != 0 {
			t.Errorf("a client's mistake opened %v", open)
		}
	}
}

func TestUpstreamStatusesNeverPoseAsOurs(t *testing.T) {
	for status, want := range map[int]dialect.Code{
		401: dialect.UpstreamError, 403: dialect.UpstreamError, 404: dialect.UpstreamError, 402: dialect.UpstreamError,
		301: dialect.UpstreamError, 529: dialect.UpstreamSaturated, 408: dialect.UpstreamError, 500: dialect.UpstreamError,
		400: dialect.InvalidRequest, 413: dialect.RequestTooLarge, 422: dialect.InvalidRequest,
	} {
		r := newRing(t)
		url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("location", "https://127.0.0.1:1/elsewhere")
			w.Header().Set("content-type", "application/json")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(`{"error":{"code":"some_code","message":"theirs"}}`))
		}))
		r.upstream("a", "us-east", "openai", url)
		r.route("m", registry.Target{Upstream: "a", Model: "m"})
		key, _ := r.org("acme", "any", "verified", "live")
		c := r.start("us-east", "us")
		r.load()
		reply := c.do(c.client(false), call{path: chat, key: key, body: ask("m", true)})
		if want.Status()/100 == 4 {
			if reply.status != status || !strings.Contains(reply.body, "theirs") || reply.header.Get("idc-error-code") != string(want) || reply.header.Get("x-should-retry") != "false" {
				t.Errorf("%d: %d %v %s", status, reply.status, reply.header, reply.body)
			}
			continue
		}
		reply.wantError(t, dialect.OpenAI, want)
		if strings.Contains(reply.body, "theirs") {
			t.Errorf("%d: %s", status, reply.body)
		}
	}
}

// TestRetryAfterIsHonoured: an upstream that says when to come back is not
// asked before, though another failed without a word meanwhile.
func TestRetryAfterIsHonoured(t *testing.T) {
	var mu sync.Mutex
	var early, asks int
	var again time.Time
	limited := provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asks++
		if time.Now().Before(again) {
			early++
		}
		again = time.Now().Add(time.Second)
		w.Header().Set("retry-after", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	broken := provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }))
	r := newRing(t)
	r.upstream("limited", "us-east", "openai", limited, simulated)
	r.upstream("broken", "us-east", "openai", broken, simulated)
	r.route("m", registry.Target{Upstream: "limited", Model: "m"}, registry.Target{Upstream: "broken", Model: "m", Order: 1})
	key, _ := r.org("acme", "any", "verified", "live")
	tune := patient
	tune.Attempts = 5
	c := r.start("us-east", "us", tune)
	r.load()
	c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)})
	if early != 0 || asks == 0 {
		t.Errorf("%d of %d asks came too early", early, asks)
	}
}
