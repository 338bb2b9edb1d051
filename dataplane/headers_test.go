package dataplane_test

import (
	"bufio"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/drills/simmodel"
)

// mark is in the value of every header that must not cross.
const mark = "must-not-cross"

// clientsOwn are headers that name the client, its machine, its way here, or
// concern its connection alone; and some that nobody has heard of.
var clientsOwn = []string{
	"connection", "keep-alive", "proxy-connection", "te", "trailer", "proxy-authorization", "proxy-authenticate",
	"cookie", "forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-port", "x-real-ip", "x-client-ip",
	"cf-connecting-ip", "true-client-ip", "fastly-client-ip", "x-cluster-client-ip", "x-envoy-external-address", "x-amzn-trace-id", "x-request-id",
	"traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "origin", "referer", "user-agent", "from", "dnt", "accept-language", "accept-encoding",
	"openai-organization", "x-stainless-lang", "x-stainless-os", "x-stainless-arch", "x-stainless-runtime", "x-stainless-runtime-version",
	"x-stainless-package-version", "x-stainless-retry-count", "x-stainless-timeout", "x-stainless-async", "x-stainless-helper-method", "x-stainless-poll-helper",
	"anthropic-dangerous-direct-browser-access", "anthropic-organization-id", "x-app", "x-anything-else", "idempotency-key", "api-key", "if-none-match", "range", "date",
	"ringmain-key", "ringmain-entry", "ringmain-route", "ringmain-residency", "ringmain-zero-retention", "ringmain-pool", "ringmain-attempts", "ringmain-request-id",
	"ringmain-outcome", "ringmain-model", "ringmain-provider", "ringmain-retry", "ringmain-org",
}

// TestNoHeaderCrosses: of what a client and a provider say about themselves,
// nothing reaches the other side, on plain answers, streams and errors, here
// and through another node.
func TestNoHeaderCrosses(t *testing.T) {
	r := newRing(t)
	var mu sync.Mutex
	var got []http.Header
	sim := simmodel.New(simmodel.Config{})
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		got = append(got, q.Header.Clone())
		mu.Unlock()
		sim.ServeHTTP(&loud{w}, q)
	}))
	for _, region := range []string{"us-east", "ap-sg"} {
		for _, d := range []string{"openai", "anthropic"} {
			r.upstream(d+"-"+region, region, d, url)
		}
		for model, theirs := range map[string]string{
			"good": "sim-chat", "sim-refuse": simmodel.FaultRefusal, "broken": simmodel.Fault503, "late": simmodel.FaultLateError, "bad": simmodel.QuirkContext,
		} {
			r.route(model+"-"+region, registry.Target{Upstream: "openai-" + region, Model: theirs}, registry.Target{Upstream: "anthropic-" + region, Model: theirs})
		}
	}
	key, _ := r.org("acme", "any", "verified", "live")
	us := r.start("us-east", "us", patient)
	r.start("ap-sg", "apac", patient)
	r.load()
	// Written by hand: clients that are worth their name do not let these through.
	var head strings.Builder
	for _, name := range clientsOwn {
		value := mark
		switch name {
		case "connection": // names two headers as its own
			value = "keep-alive, x-anything-else"
		case "te":
			value = "trailers"
		case "keep-alive":
			value = "timeout=5; " + mark
		}
		fmt.Fprintf(&head, "%s: %s\r\n", name, value)
	}
	upstreamMay := []string{"Content-Type", "Content-Length", "Accept", "User-Agent", "Authorization", "Anthropic-Version", "Anthropic-Beta", "Openai-Beta"}
	clientMay := []string{
		"Content-Type", "Content-Length", "Date", "Cache-Control", "X-Accel-Buffering", "X-Request-Id", "Request-Id", "X-Should-Retry", "Retry-After", "Retry-After-Ms",
	}
	for _, region := range []string{"us-east", "ap-sg"} {
		for _, model := range []string{"good", "sim-refuse", "broken", "late", "bad"} {
			for d, path := range dialects {
				for _, stream := range []bool{false, true} {
					name := fmt.Sprintf("%s in %s, %s, stream=%t", model, region, d, stream)
					mu.Lock()
					got = nil
					mu.Unlock()
					body := ask(model+"-"+region, stream)
					conn := dialRaw(t, us)
					if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s.example\r\nAuthorization: Bearer %s\r\nAnthropic-Beta: a-beta\r\nContent-Length: %d\r\n%s\r\n%s", path, mark, key, len(body), head.String(), body); err != nil {
						t.Fatal(err)
					}
					reply := readReply(t, bufio.NewReader(conn))
					reply.wantHeaders(t)
					for header, values := range reply.header {
						if header == "Connection" {
							continue // readReply's
						}
						if !strings.HasPrefix(header, "Idc-") && !slices.Contains(clientMay, header) || strings.Contains(fmt.Sprint(values), mark) {
							t.Errorf("%s: %s: %q reached the client", name, header, values)
						}
					}
					mu.Lock()
					if len(got) == 0 {
						t.Errorf("%s: nobody was asked: %d %s", name, reply.status, reply.body)
					}
					for _, h := range got {
						for header, values := range h {
							if !slices.Contains(upstreamMay, header) || strings.Contains(fmt.Sprint(values), mark) || strings.Contains(fmt.Sprint(values), "idc_") {
								t.Errorf("%s: %s: %q reached the provider", name, header, values)
							}
						}
						if h.Get("Anthropic-Beta") != "a-beta" {
							t.Errorf("%s: what the provider's API defines was lost: %v", name, h)
						}
					}
					mu.Unlock()
				}
			}
		}
	}
}

// loud is a provider that says of itself all that providers say, and more.
type loud struct{ http.ResponseWriter }

func (l *loud) Unwrap() http.ResponseWriter { return l.ResponseWriter }
func (l *loud) Flush()                      { _ = http.NewResponseController(l.ResponseWriter).Flush() }

func (l *loud) WriteHeader(status int) {
	for _, name := range append(simmodel.AccountHeaders(),
		"x-should-retry", "retry-after-ms", "idc-region", "idc-replica", "idc-error-code", "idc-endpoint", "idc-request-id", "ringmain-outcome", "ringmain-attempts",
		"ringmain-code", "strict-transport-security", "access-control-allow-origin", "location", "x-envoy-upstream-service-time", "x-azure-ref", "x-ms-client-request-id",
		"report-to", "nel", "server-timing", "etag", "link", "www-authenticate", "age", "x-robots-tag", "anthropic-priority-input-tokens-limit", "x-anything-else",
	) {
		l.Header().Set(name, mark)
	}
	l.ResponseWriter.WriteHeader(status)
}

func (l *loud) Write(b []byte) (int, error) {
	if l.Header().Get("x-anything-else") == "" {
		l.WriteHeader(http.StatusOK)
	}
	return l.ResponseWriter.Write(b)
}

// TestOwnHeadersStaySmall: with names as long as they may be, and a receipt in
// the head, what we add to an answer stays within its bound.
func TestOwnHeadersStaySmall(t *testing.T) {
	r := newRing(t)
	long := func(name string, most int) string { return name + strings.Repeat("x", most-len(name)) }
	url := provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("x-request-id", strings.Repeat("r", 128))
		answerPlain(w)
	}))
	far := long("ap-sg-", 60)
	for i := range 3 {
		r.upstream(long(fmt.Sprintf("upstream-%d-", i), 63), far, "openai", url)
	}
	model := long("model-", 200)
	r.route(model, registry.Target{Upstream: long("upstream-0-", 63), Model: long("their-", 200)}, registry.Target{Upstream: long("upstream-1-", 63), Model: "m"})
	key, _ := r.org(long("org-", 40), "any", "verified", "live")
	us := r.start(long("us-east-", 60), "us", patient)
	r.start(far, "apac", patient)
	r.load()
	for _, receipt := range []bool{false, true} {
		in := call{path: chat, key: key, body: ask(model, false), header: map[string]string{"idc-region-hint": far}}
		if receipt {
			in.header["idc-receipt"] = "inline"
		}
		reply := us.do(us.client(true), in)
		if reply.status != 200 {
			t.Fatalf("%d %s", reply.status, reply.body)
		}
		reply.wantHeaders(t) // which bounds them
	}
}
