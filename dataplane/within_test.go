package dataplane_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// TestErrorsWithinAnAnswer: an error that comes under status 200, alone or as
// the first event, is what an answer of its own status would have been: the
// client's mistake is told at once and counts against nobody, an overload may
// be retried. Later in a stream, it counts as that too.
func TestErrorsWithinAnAnswer(t *testing.T) {
	const (
		responses = "/v1/responses"
		chunk     = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n"
		created   = "event: response.created\ndata: {\"type\":\"response.created\",\"sequence_number\":0,\"response\":{\"id\":\"r\",\"status\":\"in_progress\"}}\n\n"
	)
	failed := func(code string) string {
		return "event: response.failed\ndata: {\"type\":\"response.failed\",\"sequence_number\":1,\"response\":{\"id\":\"r\",\"status\":\"failed\",\"error\":{\"code\":\"" + code + "\",\"message\":\"theirs\"}}}\n\n"
	}
	for _, tc := range []struct {
		name, path string
		status     int    // of the provider's answer; 0 = 200
		gives      string // a stream unless it begins with a brace
		want       int    // status
		code       dialect.Code
		attempts   string
		opens      bool // the circuit, when it happens again and again
	}{
		{name: "a number", path: chat, gives: "data: {\"error\":{\"message\":\"theirs\",\"type\":\"BadRequestError\",\"param\":null,\"code\":400}}\n\n", want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "a number in quotes", path: chat, gives: "data: {\"error\":{\"message\":\"theirs\",\"type\":\"None\",\"param\":\"None\",\"code\":\"400\"}}\n\n", want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "too long", path: chat, gives: ": wait\n\ndata: {\"error\":{\"message\":\"theirs\",\"type\":\"invalid_request_error\",\"code\":\"context_length_exceeded\"}}\n\n", want: 400, code: dialect.ContextLengthExceeded, attempts: "1"},
		{name: "a type", path: messages, gives: "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"invalid_request_error\",\"message\":\"theirs\"}}\n\n", want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "too large", path: messages, gives: "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"request_too_large\",\"message\":\"theirs\"}}\n\n", want: 413, code: dialect.RequestTooLarge, attempts: "1"},
		{name: "flat", path: responses, gives: "event: error\ndata: {\"type\":\"error\",\"code\":\"invalid_image\",\"message\":\"theirs\",\"param\":null,\"sequence_number\":0}\n\n", want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "failed at once", path: responses, gives: failed("invalid_base64_image"), want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "overloaded", path: messages, gives: "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n", want: 503, code: dialect.UpstreamSaturated, attempts: "3", opens: true},
		{name: "limited", path: chat, gives: "data: {\"error\":{\"message\":\"slow down\",\"type\":\"tokens\",\"code\":\"rate_limit_exceeded\"}}\n\n", want: 503, code: dialect.UpstreamSaturated, attempts: "3", opens: true},
		{name: "our account", path: chat, gives: "data: {\"error\":{\"message\":\"no\",\"type\":\"invalid_request_error\",\"code\":401}}\n\n", want: 502, code: dialect.UpstreamError, attempts: "3", opens: true},
		{name: "of no kind", path: chat, gives: "data: {\"error\":{\"message\":\"no\",\"code\":200}}\n\n", want: 502, code: dialect.UpstreamError, attempts: "3", opens: true},

		{name: "whole, a number", path: chat, gives: `{"error":{"message":"theirs","code":422}}`, want: 422, code: dialect.InvalidRequest, attempts: "1"},
		{name: "whole, limited", path: chat, gives: `{"error":{"message":"no","code":429}}`, want: 503, code: dialect.UpstreamSaturated, attempts: "3", opens: true},
		{name: "whole, a response that failed", path: responses, gives: `{"id":"r","status":"failed","error":{"code":"image_too_large","message":"theirs"},"output":[]}`, want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "whole, of no kind", path: chat, gives: `{"error":{"message":"no"}}`, want: 502, code: dialect.UpstreamError, attempts: "3", opens: true},

		{name: "second, at once", path: responses, gives: created + failed("context_length_exceeded"), want: 400, code: dialect.ContextLengthExceeded, attempts: "1"},
		{name: "later: too long", path: responses, gives: created + "|" + failed("context_length_exceeded"), want: 200, attempts: "1"},
		{name: "later: a number", path: chat, gives: chunk + "|data: {\"error\":{\"message\":\"theirs\",\"code\":400}}\n\n", want: 200, attempts: "1"},
		{name: "later: their fault", path: responses, gives: created + "|" + failed("server_error"), want: 200, attempts: "1", opens: true},

		{name: "a status: our account", path: messages, status: 400, gives: `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits."}}`, want: 502, code: dialect.UpstreamError, attempts: "3", opens: true},
		{name: "a status: somebody else's words", path: messages, status: 400, gives: `{"type":"error","error":{"type":"invalid_request_error","message":"Your credit balance is too low to purchase credits.: Extra inputs are not permitted: theirs"}}`, want: 400, code: dialect.InvalidRequest, attempts: "1"},
		{name: "a status: too large", path: messages, status: 413, gives: `{"type":"error","error":{"type":"request_too_large","message":"theirs"}}`, want: 413, code: dialect.RequestTooLarge, attempts: "1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &script{}
			url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
				w.Header().Set("content-type", "text/event-stream")
				if tc.gives[0] == '{' {
					w.Header().Set("content-type", "application/json")
				}
				if tc.status != 0 {
					w.WriteHeader(tc.status)
				}
				first, then, _ := strings.Cut(tc.gives, "|")
				_, _ = io.WriteString(w, first)
				if then != "" {
					_ = http.NewResponseController(w).Flush()
					s.wait(q.Context(), first)
					_, _ = io.WriteString(w, then)
				}
			}))
			r := newRing(t)
			d := dialect.OfPath(tc.path)
			r.upstream("up", "ap-sg", d.String(), url)
			r.route("m", registry.Target{Upstream: "up", Model: "m"})
			key, _ := r.org("acme", "any", "verified", "live")
			tune := dataplane.Tunables{Upstreams: breaker.Rules{Run: 7, Least: 14}, Limits: admission.LimitsConfig{Floor: 1000}, Retries: breaker.BudgetRules{Least: 1000}}
			us, ap := r.start("us-east", "us", tune), r.start("ap-sg", "apac", tune)
			r.load()
			stream := tc.gives[0] != '{'
			for _, c := range []*cell{us, ap} {
				s.forget()
				reply := c.do(s.listening(c.client(c == us)), call{path: tc.path, key: key, body: ask("m", stream)})
				if reply.status != tc.want || reply.header.Get("idc-error-code") != string(tc.code) {
					t.Fatalf("%s: %d %v %s", c.region, reply.status, reply.header, reply.body)
				}
				if got := reply.header.Get("idc-attempts"); got != tc.attempts {
					t.Errorf("%s: %s attempts, want %s", c.region, got, tc.attempts)
				}
				if tc.want == 200 && reply.broken == nil || tc.code == "" && strings.Replace(tc.gives, "|", "", 1) != reply.body {
					t.Errorf("%s: %v %s", c.region, reply.broken, reply.body)
				}
				if tc.want/100 == 4 && (!strings.Contains(reply.body, "theirs") || strings.HasPrefix(reply.body, "data") || reply.header.Get("x-should-retry") != "false" || reply.header.Get("content-type") != "application/json") {
					t.Errorf("%s: %v %s", c.region, reply.header, reply.body)
				}
				if tc.want/100 == 5 {
					reply.wantError(t, d, tc.code)
				}
				if tc.want != 200 {
					if rec := c.record(reply.header.Get("idc-request-id")); rec.Status != tc.want || rec.Code != string(tc.code) || rec.Ended != "error" || rec.Refused {
						t.Errorf("%s: %+v", c.region, rec)
					}
				}
			}
			for range 6 {
				s.forget()
				ap.do(s.listening(ap.client(true)), call{path: tc.path, key: key, body: ask("m", stream)})
			}
			if open := ap.worker.Health().Breakers; len(open) > 0 != tc.opens {
				t.Errorf("circuits %v", open)
			}
			if open := us.worker.Health().Breakers; len(open) > 0 {
				t.Errorf("at the entry: circuits %v", open)
			}
		})
	}
}

// forget has the client read anew.
func (s *script) forget() {
	s.mu.Lock()
	s.heard.Reset()
	s.mu.Unlock()
}

// TestContextFallbackOfStreams: a prompt that is too long goes to the model
// for that, also where the first says so in an event.
func TestContextFallbackOfStreams(t *testing.T) {
	up := newAnswering(func(w http.ResponseWriter, model string) {
		w.Header().Set("content-type", "text/event-stream")
		if model == "short" {
			_, _ = io.WriteString(w, "data: {\"error\":{\"message\":\"too long\",\"code\":\"context_length_exceeded\"}}\n\n")
			return
		}
		_, _ = io.WriteString(w, "data: {\"model\":\"longer\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	})
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, up))
	r.routed("short", func(route *registry.Route) { route.ContextFallback = "longer" }, registry.Target{Upstream: "up", Model: "short"})
	r.route("longer", registry.Target{Upstream: "up", Model: "longer"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	reply := c.do(c.client(true), call{path: chat, key: key, body: ask("short", true)})
	if reply.status != 200 || reply.broken != nil || !strings.Contains(reply.body, `"model":"longer"`) || strings.Contains(reply.body, "too long") || reply.header.Get("idc-attempts") != "2" {
		t.Errorf("%d %v %v %s", reply.status, reply.broken, reply.header, reply.body)
	}
}
