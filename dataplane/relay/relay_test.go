package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
	"ringmain/internal/testkit/synckit"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := runChild(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

func TestAttemptClock(t *testing.T) {
	limits := Timeouts{Connect: time.Second, FirstByte: 10 * time.Second, Idle: 2 * time.Second, Total: time.Minute}
	for _, c := range []struct {
		name string
		run  func(a *attempt, leave func())
		want breaker.Outcome
		at   time.Duration
	}{
		{"silence", func(a *attempt, _ func()) { <-a.Done() }, breaker.Timeout, 10 * time.Second},
		{"a stream that stalls", func(a *attempt, _ func()) {
			for range 100 { // events each 100 ms, each read under its own clock
				a.expect(limits.Idle, errIdle)
				time.Sleep(100 * time.Millisecond)
				a.rest()
			}
			a.expect(limits.Idle, errIdle)
			<-a.Done()
		}, breaker.Timeout, 12 * time.Second},
		{"a client that takes its time is not a stall", func(a *attempt, _ func()) {
			a.expect(limits.Idle, errIdle)
			a.rest()
			<-a.Done()
		}, breaker.Expired, time.Minute},
		{"the deadline cuts the idle time short", func(a *attempt, _ func()) {
			a.rest()
			time.Sleep(59 * time.Second)
			a.expect(limits.Idle, errIdle)
			<-a.Done()
		}, breaker.Expired, time.Minute},
		{"the client leaves", func(a *attempt, leave func()) {
			time.Sleep(3 * time.Second)
			leave()
			<-a.Done()
		}, breaker.ClientGone, 3 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				ctx, leave := context.WithCancel(context.Background())
				defer leave()
				start := time.Now()
				a := newAttempt(ctx, limits)
				a.watch()
				c.run(a, leave)
				if o := a.outcome(context.Canceled); o != c.want || time.Since(start) != c.at {
					t.Errorf("%s after %s, want %s after %s", o, time.Since(start), c.want, c.at)
				}
				a.end()
				a.end()
			})
		})
	}
	synckit.Test(t, func(t *testing.T) {
		short := limits
		short.Total = time.Second
		a := newAttempt(context.Background(), short)
		a.watch()
		<-a.Done()
		if o := a.outcome(nil); o != breaker.Expired {
			t.Errorf("%s", o)
		}
		a.end()
	})
}

func TestClassify(t *testing.T) {
	for status, want := range map[int]breaker.Outcome{
		400: breaker.ClientError, 409: breaker.ClientError, 413: breaker.ClientError, 415: breaker.ClientError, 422: breaker.ClientError, 451: breaker.ClientError,
		401: breaker.Unauthorized, 402: breaker.Unauthorized, 403: breaker.Unauthorized, 404: breaker.Unauthorized, 405: breaker.Unauthorized, 410: breaker.Unauthorized,
		408: breaker.ServerError, 425: breaker.ServerError, 429: breaker.Throttled, 529: breaker.Throttled,
		204: breaker.ServerError, 301: breaker.ServerError, 500: breaker.ServerError, 503: breaker.ServerError, 599: breaker.ServerError,
	} {
		if got := Classify(status, dialect.Problem{}); got != want {
			t.Errorf("%d: %s", status, got)
		}
		if status >= 400 {
			want = breaker.Refused
		}
		if got := Classify(status, dialect.Problem{Refused: true}); got != want {
			t.Errorf("%d, refused: %s", status, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		ms, s string
		want  time.Duration
	}{
		{"", "", 0},
		{"", "2", 2 * time.Second},
		{"1500", "9", 1500 * time.Millisecond},
		{"x", "0.5", 500 * time.Millisecond},
		{"", "Sun, 22 Nov 2026 00:00:30 GMT", 30 * time.Second},
		{"", "Sun, 22 Nov 2020 00:00:30 GMT", 0},
		{"-1", "-1", 0},
		{"", "NaN", 0},
		{"", "1e99", 0},
	} {
		h := http.Header{"Retry-After-Ms": {c.ms}, "Retry-After": {c.s}}
		if got := RetryAfter(h, now); got != c.want {
			t.Errorf("%v: %s", h, got)
		}
	}
}

func TestTimeoutDefaults(t *testing.T) {
	for stream, want := range map[bool]Timeouts{
		true:  {2 * time.Second, 5 * time.Minute, 5 * time.Minute, time.Hour},
		false: {2 * time.Second, 10 * time.Minute, 5 * time.Minute, 10 * time.Minute},
	} {
		if got := TimeoutsOf(registry.Timeouts{}, stream); got != want {
			t.Errorf("defaults, stream %v: %v, want %v", stream, got, want)
		}
		set := registry.Timeouts{ConnectMS: 1, FirstByteMS: 2, IdleMS: 3, TotalMS: 4}
		if got := TimeoutsOf(set, stream); got != (Timeouts{time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 4 * time.Millisecond}) {
			t.Errorf("as the route says, stream %v: %v", stream, got)
		}
	}
}

func endpointOf(path string) *dialect.Endpoint {
	ep, _ := dialect.EndpointOf(path)
	return ep
}

// upstreamOf asks a handler once.
func upstreamOf(t *testing.T, h http.HandlerFunc, change func(*Ask)) (*Result, *Client) {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	c := New(Config{})
	t.Cleanup(c.Close)
	ask := &Ask{
		Upstream: &registry.Record{Meta: registry.Meta{ID: "u"}, Upstream: &registry.Upstream{Name: "u", BaseURL: s.URL + "/", Auth: "none"}},
		Endpoint: endpointOf("/v1/chat/completions"), Body: dialect.WholeBody([]byte("{}")),
		Timeouts: Timeouts{time.Second, 20 * time.Second, 20 * time.Second, time.Minute},
	}
	if change != nil {
		change(ask)
	}
	return c.Upstream(t.Context(), ask), c
}

func TestOddAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		h      http.HandlerFunc
		stream bool
		want   breaker.Outcome
	}{
		"compressed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-encoding", "gzip")
			_, _ = io.WriteString(w, "x")
		}, false, breaker.ServerError},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, false, breaker.ServerError},
		"JSON where a stream was asked for": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "application/json")
			_, _ = io.WriteString(w, `{"choices":[]}`)
		}, true, breaker.ServerError},
		"a stream of comments that ends": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "text/event-stream")
			_, _ = io.WriteString(w, ": wait\n\n: wait\n\n")
		}, true, breaker.Transport},
		"an event without an end": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("content-type", "text/event-stream")
			for range stream.MaxEvent/(64<<10) + 3 {
				if _, err := io.WriteString(w, strings.Repeat("x", 64<<10)); err != nil {
					return
				}
			}
		}, true, breaker.ServerError},
		"a plain answer that nests deep": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, `{"choices":[`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`]}`)
		}, false, breaker.ClientError},
		"a plain answer over the bound": {func(w http.ResponseWriter, _ *http.Request) {
			for range MaxAnswer/(1<<20) + 2 {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<20)); err != nil {
					return
				}
			}
		}, false, breaker.ClientError},
		"redirect": {func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, "/elsewhere", http.StatusTemporaryRedirect)
		}, false, breaker.ServerError},
	} {
		r, _ := upstreamOf(t, c.h, func(a *Ask) { a.Streamed = c.stream })
		if r.Outcome != c.want || r.Cause == nil {
			t.Errorf("%s: %v, %v", name, r.Outcome, r.Cause)
		}
		if s := fmt.Sprintf("%v %+v %s", r, r, r); !strings.HasPrefix(s, "[content]") {
			t.Errorf("%s prints %s", name, s)
		}
		r.Release()
	}
}

func TestNobodyThere(t *testing.T) {
	c := New(Config{})
	defer c.Close()
	up := &registry.Upstream{Name: "u", BaseURL: "http://127.0.0.1:1", Auth: "bearer"}
	ask := &Ask{Upstream: &registry.Record{Upstream: up}, Endpoint: endpointOf("/v1/messages"), Timeouts: Timeouts{time.Second, 20 * time.Second, 20 * time.Second, time.Minute}}
	r := c.Upstream(t.Context(), ask)
	if r.Outcome != breaker.Transport || r.Reached || r.Silent {
		t.Errorf("%+v", r.Outcome)
	}
	r.Release()
	for _, change := range []func(*registry.Upstream){
		func(u *registry.Upstream) { u.BaseURL = "::" },
		func(u *registry.Upstream) { u.Auth = "magic" },
	} {
		bad := *up
		change(&bad)
		ask.Upstream = &registry.Record{Upstream: &bad}
		if r := c.Upstream(t.Context(), ask); r.Outcome != breaker.ServerError || r.Reached {
			t.Errorf("%+v: %v", bad, r.Outcome)
		}
	}
}

// TestConnectionIsReused: after a complete stream the connection serves again.
func TestConnectionIsReused(t *testing.T) {
	addrs := map[string]bool{}
	h := func(w http.ResponseWriter, q *http.Request) {
		addrs[q.RemoteAddr] = true
		w.Header().Set("content-type", "text/event-stream")
		_, _ = io.WriteString(w, "data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n")
	}
	s := httptest.NewServer(http.HandlerFunc(h))
	defer s.Close()
	c := New(Config{})
	defer c.Close()
	rec := &registry.Record{Meta: registry.Meta{ID: "u"}, Upstream: &registry.Upstream{Name: "u", BaseURL: s.URL, Auth: "none"}}
	for range 5 {
		r := c.Upstream(t.Context(), &Ask{Upstream: rec, Endpoint: endpointOf("/v1/chat/completions"), Streamed: true,
			Body: dialect.WholeBody([]byte("{}")), Timeouts: Timeouts{time.Second, 20 * time.Second, 20 * time.Second, time.Minute}})
		if r.Stream == nil {
			t.Fatal(r.Cause)
		}
		for {
			b := r.Stream.Next()
			if b.Broken != nil {
				t.Fatal(b.Broken.Cause)
			}
			if b.Last != nil {
				break
			}
		}
		r.Release()
	}
	if len(addrs) != 1 {
		t.Errorf("%d connections for 5 streams", len(addrs))
	}
}

func TestPeerThatIsNotKnown(t *testing.T) {
	c := New(Config{Locate: func(string, string) (string, bool) { return "", false }})
	defer c.Close()
	r := c.Peer(t.Context(), &AskPeer{Region: "eu-fra", Node: "d1", Endpoint: endpointOf("/v1/messages"), Forward: http.Header{}, Timeouts: Timeouts{time.Second, time.Second, time.Second, time.Second}})
	var d *dialError
	if r.Outcome != breaker.Transport || r.Reached || !errors.As(r.Cause, &d) {
		t.Errorf("%v %v", r.Outcome, r.Cause)
	}
	r.Release()
}
