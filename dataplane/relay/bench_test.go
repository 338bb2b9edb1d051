package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
)

// overNetHTTP is Upstream over net/http's Transport, whatever the server speaks.
func (c *Client) overNetHTTP(ctx context.Context, ask *Ask) *Result {
	r := &Result{client: c}
	e, err := c.endpoint(ask.Upstream)
	if err != nil {
		return r.fail(err, breaker.ServerError)
	}
	r.attempt = newAttempt(ctx, ask.Timeouts)
	ans, err := c.doHTTP2(r.attempt, e, ask, e.paths[ask.Endpoint.Path])
	if err != nil {
		return r.fail(err, r.attempt.outcome(err))
	}
	r.Reached, r.Status, r.RequestID, r.ContentType = true, ans.status, ans.requestID, ans.contentType
	if ask.Streamed {
		return c.stream(r, ans.body, stream.Stream{Dialect: ask.Endpoint.Dialect, Endpoint: ask.Endpoint}, ask.Timeouts.Idle)
	}
	return c.plain(r, ans.body, ans.length, ask.Endpoint, ask.Timeouts.Idle)
}

// BenchmarkUpstream compares the own connection with net/http's Transport: a
// net/http server that reads a request, asks the provider through one of them,
// and passes the answer on; TLS 1.3 and HTTP/1.1 on both sides. Provider and
// load generator run in a child process, so that cpu-us/op is the user and
// system time of this one alone. server: the same without a provider, which is
// what both have in common. Machines are noisy: run the whole several times
// (-count repeats each line by itself), and compare medians.
func BenchmarkUpstream(b *testing.B) {
	child := startChild(b)
	c := New(Config{UpstreamRoots: child.roots})
	defer c.Close()
	c.upstreams.ForceAttemptHTTP2 = false
	rec := record(child.provider)
	fronts := map[string]string{}
	for name, ask := range map[string]func(context.Context, *Ask) *Result{
		"server": nil, "nethttp": c.overNetHTTP, "own": c.Upstream,
	} {
		s := httptest.NewUnstartedServer(front(b, rec, ask))
		s.StartTLS()
		b.Cleanup(s.Close)
		fronts[name] = s.URL
	}
	for _, kind := range []string{"json", "stream"} {
		for _, at := range []int{1, 32} {
			for _, name := range []string{"server", "nethttp", "own"} {
				b.Run(fmt.Sprintf("%s/%d/%s", kind, at, name), func(b *testing.B) {
					child.load(b, fronts[name], kind, at, 10*at)
					b.ReportAllocs()
					before := cpu(b)
					b.ResetTimer()
					child.load(b, fronts[name], kind, at, b.N)
					b.StopTimer()
					b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
				})
			}
		}
	}
}

// BenchmarkAttempt is one attempt alone, with the provider in a child process.
func BenchmarkAttempt(b *testing.B) {
	child := startChild(b)
	c := New(Config{UpstreamRoots: child.roots})
	defer c.Close()
	c.upstreams.ForceAttemptHTTP2 = false
	rec := record(child.provider)
	for _, name := range []string{"nethttp", "own"} {
		do := c.Upstream
		if name == "nethttp" {
			do = c.overNetHTTP
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			do(ctx, askOf(rec)).Release()
			before := cpu(b)
			for b.Loop() {
				r := do(ctx, askOf(rec))
				if r.Outcome != breaker.OK {
					b.Fatal(r.Cause)
				}
				r.Release()
			}
			b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

const plainAnswer = `{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"`

func front(b *testing.B, rec *registry.Record, ask func(context.Context, *Ask) *Result) http.HandlerFunc {
	whole := []byte(plainAnswer + strings.Repeat("word ", 200) + `"},"finish_reason":"stop"}]}`)
	return func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			b.Error(err)
			return
		}
		if ask == nil {
			w.Header().Set("content-type", "application/json")
			_, _ = w.Write(whole)
			return
		}
		a := askOf(rec)
		a.Body, a.Client, a.Streamed = dialect.WholeBody(body), q.Header, q.Header.Get("accept") == "text/event-stream"
		r := ask(q.Context(), a)
		defer r.Release()
		if r.Outcome != breaker.OK {
			b.Errorf("%v: %v", r.Outcome, r.Cause)
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if r.Stream == nil {
			w.Header().Set("content-type", "application/json")
			_, _ = w.Write(r.Body())
			return
		}
		w.Header().Set("content-type", "text/event-stream")
		control := http.NewResponseController(w)
		for {
			batch := r.Stream.Next()
			_, _ = w.Write(batch.Forward)
			if batch.Last != nil {
				_, _ = w.Write(batch.Last)
				return
			}
			if batch.Broken != nil {
				b.Error(batch.Broken.Cause)
				return
			}
			_ = control.Flush()
		}
	}
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const childVariable = "RINGMAIN_RELAY_BENCH_CHILD"

type benchChild struct {
	provider string
	roots    *x509.CertPool
	in       io.Writer
	out      *bufio.Scanner
}

func startChild(b *testing.B) *benchChild {
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = in.Close(); _ = cmd.Wait() })
	c := &benchChild{in: in, out: bufio.NewScanner(out), roots: x509.NewCertPool()}
	if !c.out.Scan() {
		b.Fatal("the child did not start")
	}
	c.provider = c.out.Text()
	// httptest's certificate is the same in every process.
	s := httptest.NewTLSServer(nil)
	c.roots.AddCert(s.Certificate())
	s.Close()
	return c
}

func (c *benchChild) load(b *testing.B, url, kind string, at, n int) {
	if _, err := fmt.Fprintf(c.in, "%s %s %d %d\n", url, kind, at, n); err != nil || !c.out.Scan() || c.out.Text() != "ok" {
		b.Fatalf("child: %v %s", err, c.out.Text())
	}
}

// runChild is main of the child process.
func runChild() error {
	answer := []byte(plainAnswer + strings.Repeat("word ", 200) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":90,"completion_tokens":200,"total_tokens":290}}`)
	event := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}],\"usage\":null}\n\n")
	up := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		w.Header().Set("x-request-id", "req_0123456789")
		if q.Header.Get("accept") != "text/event-stream" {
			w.Header().Set("content-type", "application/json")
			_, _ = w.Write(answer)
			return
		}
		w.Header().Set("content-type", "text/event-stream")
		for range 200 {
			_, _ = w.Write(event)
			_ = http.NewResponseController(w).Flush()
		}
		_, _ = io.WriteString(w, "data: [DONE]\n\n")
	}))
	defer up.Close()
	fmt.Println(up.URL)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: rootsOf(up), MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 64}
	client := &http.Client{Transport: tr}
	body := `{"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 70) + `"}],"temperature":0.2}`
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var url, kind string
		var at, n int64
		if _, err := fmt.Sscan(in.Text(), &url, &kind, &at, &n); err != nil {
			return err
		}
		var left atomic.Int64
		left.Store(n)
		failed := make(chan error, at)
		for range at {
			go func() {
				var err error
				for left.Add(-1) >= 0 && err == nil {
					err = loadOnce(client, url, kind, body)
				}
				failed <- err
			}()
		}
		var errs []error
		for range at {
			errs = append(errs, <-failed)
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return nil
}

func loadOnce(client *http.Client, url, kind, body string) error {
	req, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("content-type", "application/json")
	if kind == "stream" {
		req.Header.Set("accept", "text/event-stream")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err != nil || resp.StatusCode != http.StatusOK || n < 1000 {
		return fmt.Errorf("status %d, %d bytes, %w", resp.StatusCode, n, err)
	}
	return nil
}
