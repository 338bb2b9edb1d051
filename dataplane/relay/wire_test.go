package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// provider is a TLS server that speaks HTTP/2, or HTTP/1.1 only.
func provider(t testing.TB, http2 bool, h http.HandlerFunc) (*httptest.Server, *Client) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = http2
	s.StartTLS()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	c := New(Config{UpstreamRoots: rootsOf(s)})
	t.Cleanup(c.Close)
	return s, c
}

func rootsOf(s *httptest.Server) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func record(url string, change ...func(*registry.Upstream)) *registry.Record {
	up := &registry.Upstream{Name: "u", BaseURL: url, Auth: "bearer", Credential: []byte("provider-secret")}
	for _, f := range change {
		f(up)
	}
	return &registry.Record{Meta: registry.Meta{ID: "u"}, Upstream: up}
}

var patience = Timeouts{Connect: 5 * time.Second, FirstByte: 20 * time.Second, Idle: 20 * time.Second, Total: time.Minute}

func askOf(rec *registry.Record) *Ask {
	return &Ask{Upstream: rec, Endpoint: endpointOf("/v1/chat/completions"), Body: dialect.WholeBody([]byte(`{"model":"m"}`)), Timeouts: patience}
}

const plainText = `{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`

func sayPlain(w http.ResponseWriter) {
	w.Header().Set("content-type", "application/json")
	_, _ = io.WriteString(w, plainText)
}

// TestWhatGoesUpstream: every header that arrives is one that is meant to.
func TestWhatGoesUpstream(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		got := make(chan *http.Request, 1)
		s, c := provider(t, http2, func(w http.ResponseWriter, q *http.Request) {
			b, _ := io.ReadAll(q.Body)
			q.Header.Set("body", string(b))
			got <- q
			sayPlain(w)
		})
		client := http.Header{
			"Authorization": {"Bearer client"}, "X-Api-Key": {"client"}, "Cookie": {"a=b"}, "Openai-Organization": {"org"}, "X-Stainless-Lang": {"js"},
			"Connection": {"upgrade"}, "Te": {"trailers"}, "Idc-Region-Hint": {"eu"}, "X-Forwarded-For": {"1.2.3.4"}, "User-Agent": {"client"},
			"Openai-Beta": {"a", "b"}, "Anthropic-Beta": {"c"}, "Content-Length": {"99"}, "Host": {"client"},
		}
		ours := map[string]string{"Authorization": "Bearer provider-secret", "User-Agent": "ringmain", "Openai-Beta": "a|b", "Anthropic-Beta": "c",
			"Content-Type": "application/json", "Accept": "application/json", "Content-Length": "13", "Body": `{"model":"m"}`}
		for name, x := range map[string]struct {
			up   func(*registry.Upstream)
			ask  func(*Ask)
			uri  string
			want map[string]string
		}{
			"plain":  {func(*registry.Upstream) {}, func(*Ask) {}, "/v1/chat/completions", nil},
			"stream": {func(*registry.Upstream) {}, func(a *Ask) { a.Streamed = true }, "/v1/chat/completions", map[string]string{"Accept": "text/event-stream"}},
			"base path, query, headers": {func(u *registry.Upstream) {
				u.BaseURL += "/openai/"
				u.Query, u.Auth = "api-version=2024-10-21&x=%20y", "api-key"
				u.Headers = []registry.Header{{Name: "x-extra", Value: "1"}, {Name: "user-agent", Value: "other"}, {Name: "anthropic-beta", Value: "fixed"}}
			}, func(*Ask) {}, "/openai/v1/chat/completions?api-version=2024-10-21&x=%20y", map[string]string{
				"Authorization": "", "Api-Key": "provider-secret", "X-Extra": "1", "User-Agent": "other", "Anthropic-Beta": "fixed",
			}},
			"base path as clients have it": {func(u *registry.Upstream) { u.BaseURL += "/openai/v1/" }, func(*Ask) {}, "/openai/v1/chat/completions", nil},
			"another dialect": {func(u *registry.Upstream) { u.Auth = "x-api-key" }, func(a *Ask) { a.Endpoint = endpointOf("/v1/messages/count_tokens") },
				"/v1/messages/count_tokens", map[string]string{"Authorization": "", "X-Api-Key": "provider-secret", "Anthropic-Version": "2023-06-01"}},
			"the record's version": {func(u *registry.Upstream) { u.Headers = []registry.Header{{Name: "anthropic-version", Value: "x"}} },
				func(a *Ask) { a.Endpoint = endpointOf("/v1/messages") }, "/v1/messages", map[string]string{"Anthropic-Version": "x"}},
			"multipart, no key": {func(u *registry.Upstream) { u.Auth, u.Credential = "none", nil },
				func(a *Ask) {
					a.Endpoint, a.ContentType = endpointOf("/v1/audio/transcriptions"), "multipart/form-data; boundary=xyz"
				}, "/v1/audio/transcriptions", map[string]string{"Authorization": "", "Accept": "*/*", "Content-Type": "multipart/form-data; boundary=xyz"}},
		} {
			rec := record(s.URL, x.up)
			rec.Meta.ID = name
			ask := askOf(rec)
			ask.Client = client
			x.ask(ask)
			r := c.Upstream(t.Context(), ask)
			outcome, cause := r.Outcome, r.Cause
			r.Release()
			var q *http.Request
			select {
			case q = <-got:
			default:
				t.Fatalf("h2=%t, %s: nobody was asked: %s, %v", http2, name, outcome, cause)
			}
			want := maps.Clone(ours)
			maps.Copy(want, x.want)
			for h, v := range want {
				if strings.Join(q.Header[h], "|") != v {
					t.Errorf("h2=%t, %s: %s is %q, want %q", http2, name, h, q.Header[h], v)
				}
				delete(q.Header, h)
			}
			if http2 {
				delete(q.Header, "Te")
			}
			if len(q.Header) > 0 || q.RequestURI != x.uri || q.Host != strings.TrimPrefix(s.URL, "https://") || q.ProtoMajor == 2 != http2 {
				t.Errorf("h2=%t, %s: %s %s on %s, also %v", http2, name, q.Proto, q.RequestURI, q.Host, q.Header)
			}
		}
	}
}

func TestRecordsThatCannotBeUsed(t *testing.T) {
	c := New(Config{})
	defer c.Close()
	for name, change := range map[string]func(*registry.Upstream){
		"a credential with a line end": func(u *registry.Upstream) { u.Credential = []byte("secret\n") },
		"a header with a line end":     func(u *registry.Upstream) { u.Headers = []registry.Header{{Name: "x", Value: "a\r\nsecret: b"}} },
		"a query with a space":         func(u *registry.Upstream) { u.Query = "secret a" },
		"another scheme":               func(u *registry.Upstream) { u.BaseURL = "ftp://secret.example" },
		"a base URL with a query":      func(u *registry.Upstream) { u.BaseURL = "https://x.example/?secret" },
	} {
		r := c.Upstream(t.Context(), askOf(record("https://x.example", change)))
		if r.Outcome != breaker.ServerError || r.Reached || r.Cause == nil || strings.Contains(r.Cause.Error(), "secret") {
			t.Errorf("%s: %v, %v", name, r.Outcome, r.Cause)
		}
		r.Release()
	}
}

// outcome is what a Result says of an attempt, and of its stream.
func outcome(r *Result) string {
	if r.Stream != nil && r.Cause == nil {
		for {
			if b := r.Stream.Next(); b.Broken != nil {
				return fmt.Sprintf("broken, %s: %v", b.Broken.Outcome, b.Broken.Cause)
			} else if b.Last != nil {
				return "whole"
			}
		}
	}
	return fmt.Sprintf("%s, reached %t, silent %t: %v", r.Outcome, r.Reached, r.Silent, r.Cause)
}

// TestOutcomes: attempts end alike over either kind of connection.
func TestOutcomes(t *testing.T) {
	const event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n"
	head := func(w http.ResponseWriter, kind, text string) {
		w.Header().Set("content-type", kind)
		_, _ = io.WriteString(w, text)
		_ = http.NewResponseController(w).Flush()
	}
	stall := func(q *http.Request) { <-q.Context().Done() }
	short := 600 * time.Millisecond // no handshake is within it
	longer := 3 * time.Second       // in which a busy machine begins to answer
	for name, x := range map[string]struct {
		h      func(w http.ResponseWriter, q *http.Request, leave func())
		change func(*Ask)
		want   string
	}{
		"no head in time": {func(_ http.ResponseWriter, q *http.Request, _ func()) { stall(q) },
			func(a *Ask) { a.Timeouts.FirstByte = short }, "timeout, reached true, silent true: no first byte in time"},
		"no head before the deadline": {func(_ http.ResponseWriter, q *http.Request, _ func()) { stall(q) },
			func(a *Ask) { a.Timeouts.Total = short }, "expired, reached true, silent false: the request's deadline passed"},
		"the client leaves before the head": {func(_ http.ResponseWriter, q *http.Request, leave func()) { leave(); stall(q) },
			nil, "client_gone, reached true, silent false: context canceled"},
		"a plain answer stalls": {func(w http.ResponseWriter, q *http.Request, _ func()) { head(w, "application/json", "{"); stall(q) },
			func(a *Ask) { a.Timeouts.Idle = short }, "timeout, reached true, silent true: read answer: nothing between two events for too long"},
		"a plain answer, and the deadline": {func(w http.ResponseWriter, q *http.Request, _ func()) { head(w, "application/json", "{"); stall(q) },
			func(a *Ask) { a.Timeouts.Total = longer }, "expired, reached true, silent false: read answer: the request's deadline passed"},
		"the client leaves within a plain answer": {func(w http.ResponseWriter, q *http.Request, leave func()) {
			head(w, "application/json", "{")
			leave()
			stall(q)
		},
			nil, "client_gone, reached true, silent false: read answer: context canceled"},
		"no event in time": {func(w http.ResponseWriter, q *http.Request, _ func()) {
			head(w, "text/event-stream", ": wait\n\n")
			stall(q)
		},
			func(a *Ask) { a.Streamed, a.Timeouts.FirstByte = true, short }, "timeout, reached true, silent true: no first byte in time"},
		"a stream stalls": {func(w http.ResponseWriter, q *http.Request, _ func()) { head(w, "text/event-stream", event); stall(q) },
			func(a *Ask) { a.Streamed, a.Timeouts.Idle = true, short }, "broken, timeout: nothing between two events for too long"},
		"a stream, and the deadline": {func(w http.ResponseWriter, q *http.Request, _ func()) { head(w, "text/event-stream", event); stall(q) },
			func(a *Ask) { a.Streamed, a.Timeouts.Total = true, longer }, "broken, expired: the request's deadline passed"},
		"the client leaves within a stream": {func(w http.ResponseWriter, q *http.Request, leave func()) {
			head(w, "text/event-stream", event)
			time.Sleep(50 * time.Millisecond)
			leave()
			stall(q)
		}, func(a *Ask) { a.Streamed = true }, "broken, client_gone: context canceled"},
		"an error body stalls": {func(w http.ResponseWriter, q *http.Request, leave func()) {
			w.WriteHeader(http.StatusServiceUnavailable)
			head(w, "application/json", "{")
			leave()
			stall(q)
		}, nil, "client_gone, reached true, silent false: read answer: context canceled"},
		"redirect": {func(w http.ResponseWriter, q *http.Request, _ func()) { http.Redirect(w, q, "/x", http.StatusFound) },
			nil, "server_error, reached true, silent false: the upstream answered with status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, http2 := range []bool{false, true} {
				ctx, leave := context.WithCancel(t.Context())
				var connected atomic.Bool
				s, c := provider(t, http2, func(w http.ResponseWriter, q *http.Request) {
					_, _ = io.Copy(io.Discard, q.Body)
					if connected.Swap(true) {
						x.h(w, q, leave)
					} else {
						head(w, "application/json", plainText)
					}
				})
				ask := askOf(record(s.URL))
				c.Upstream(ctx, ask).Release()
				if x.change != nil {
					x.change(ask)
				}
				r := c.Upstream(ctx, ask)
				got, want := outcome(r), x.want
				if http2 || strings.Contains(want, "client_gone") { // the cause's words may differ, and how far it came
					got, _, _ = strings.Cut(got, ":")
					want, _, _ = strings.Cut(want, ":")
				}
				if got != want {
					t.Errorf("h2=%t: %s", http2, got)
				}
				r.Release()
				leave()
			}
		})
	}
}

// TestWhatComesBack: good and bad answers come out alike.
func TestWhatComesBack(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		status := http.StatusOK
		s, c := provider(t, http2, func(w http.ResponseWriter, q *http.Request) {
			w.Header().Set("request-id", "second")
			w.Header().Set("x-request-id", "first")
			w.Header().Set("openai-organization", "our account")
			w.Header().Set("set-cookie", "a=b")
			w.Header().Set("retry-after", "3")
			w.Header().Set("content-type", "application/json")
			if strings.HasSuffix(q.URL.Path, "speech") {
				w.Header().Set("content-type", "audio/mpeg")
			}
			w.WriteHeader(status)
			_, _ = io.WriteString(w, plainText)
		})
		r := c.Upstream(t.Context(), askOf(record(s.URL)))
		if r.Outcome != breaker.OK || string(r.Body()) != plainText || r.RequestID != "first" || r.ContentType != "application/json" || r.RetryAfter != 0 {
			t.Errorf("h2=%t: %v %v %q %q %v", http2, r.Outcome, r.Cause, r.RequestID, r.ContentType, r.RetryAfter)
		}
		r.Release()
		ask := askOf(record(s.URL))
		ask.Endpoint = endpointOf("/v1/audio/speech")
		r = c.Upstream(t.Context(), ask)
		if r.Outcome != breaker.OK || r.ContentType != "audio/mpeg" || string(r.Body()) != plainText {
			t.Errorf("h2=%t: %v %v %q", http2, r.Outcome, r.Cause, r.ContentType)
		}
		r.Release()
		status = http.StatusTooManyRequests
		r = c.Upstream(t.Context(), askOf(record(s.URL)))
		if r.Outcome != breaker.Throttled || r.RetryAfter != 3*time.Second || r.Status != status || r.RequestID != "first" {
			t.Errorf("h2=%t: %v %v %v", http2, r.Outcome, r.RetryAfter, r.Status)
		}
		r.Release()
	}
}

// TestAHostThatChanges: what it speaks is learned anew after a failure.
func TestAHostThatChanges(t *testing.T) {
	h := func(w http.ResponseWriter, q *http.Request) { w.Header().Set("x-request-id", q.Proto); sayPlain(w) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	kept, err := l.(*net.TCPListener).File() // between two servers the port is nobody else's
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	_ = l.Close()
	var c *Client
	for i, http2 := range []bool{true, false, true} {
		s := httptest.NewUnstartedServer(http.HandlerFunc(h))
		_ = s.Listener.Close()
		if l, err = net.FileListener(kept); err != nil {
			t.Fatal(err)
		}
		s.Listener, s.EnableHTTP2 = l, http2
		s.StartTLS()
		if c == nil {
			c = New(Config{UpstreamRoots: rootsOf(s)})
			defer c.Close()
		}
		want := map[bool]string{true: "HTTP/2.0", false: "HTTP/1.1"}[http2]
		var got []string
		for range 3 {
			r := c.Upstream(t.Context(), askOf(record("https://"+addr)))
			got = append(got, r.RequestID)
			r.Release()
		}
		// One attempt at most may fail to find out, and over HTTP/1.1 none does.
		if slices.Index(got, want) > 1 || got[2] != want {
			t.Errorf("round %d: %q, want %s", i, got, want)
		}
		s.CloseClientConnections()
		s.Close()
	}
}

// TestRecordChanges: a new credential holds at once; connections outlive the
// change unless the host is another.
func TestRecordChanges(t *testing.T) {
	var conns atomic.Int64
	got := make(chan string, 1)
	start := func() *httptest.Server {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			got <- q.Header.Get("Authorization")
			sayPlain(w)
		}))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				conns.Add(1)
			}
		}
		s.Start()
		t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
		return s
	}
	one, two := start(), start()
	c := New(Config{})
	defer c.Close()
	for _, x := range []struct {
		url, secret string
		conns       int64
	}{{one.URL, "a", 1}, {one.URL, "b", 1}, {two.URL, "b", 2}, {one.URL, "c", 3}} {
		rec := record(x.url, func(u *registry.Upstream) { u.Credential = []byte(x.secret) })
		r := c.Upstream(t.Context(), askOf(rec))
		auth := "nobody"
		if len(got) > 0 {
			auth = <-got
		}
		if auth != "Bearer "+x.secret || r.Outcome != breaker.OK || conns.Load() != x.conns {
			t.Errorf("%+v: asked as %s, %v, %d connections", x, auth, r.Cause, conns.Load())
		}
		r.Release()
	}
}

// TestAServerThatIsNotWhoItSays: nobody saw the request.
func TestAServerThatIsNotWhoItSays(t *testing.T) {
	s, _ := provider(t, false, func(w http.ResponseWriter, _ *http.Request) { t.Error("asked"); sayPlain(w) })
	s.Config.ErrorLog = nil
	c := New(Config{})
	defer c.Close()
	r := c.Upstream(t.Context(), askOf(record(s.URL)))
	var d *dialError
	var cert *tls.CertificateVerificationError
	if r.Outcome != breaker.Transport || r.Reached || !errors.As(r.Cause, &d) || !errors.As(r.Cause, &cert) {
		t.Errorf("%v, reached %t, %v", r.Outcome, r.Reached, r.Cause)
	}
	r.Release()
}
