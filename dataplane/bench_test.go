package dataplane_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// BenchmarkWorker compares the worker, everything on, with a plain
// httputil.ReverseProxy with a buffer pool that reads the body first and does
// nothing else. Provider and load generator run in a child process, so that
// the figure cpu-us/op is the user and system time of this process alone, the
// one that holds the worker or the proxy. About 0.5 KB in and 1.2 KB out, or
// 200 events; concurrency 32; TLS 1.3 to the client, plain HTTP/1.1 to the
// provider. Machines are noisy: run it interleaved, as with -count 5.
func BenchmarkWorker(b *testing.B) {
	r := newRing(b)
	r.discard = true
	child := startChild(b, r.ca.ServerRoots())
	r.upstream("up", "us-east", "openai", child.upstream)
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	fronts := map[string]string{"worker": c.api, "reverseproxy": overTLS(b, r.ca, reverseProxy(b, child.upstream))}
	for _, kind := range []string{"json", "stream200"} {
		for _, http2 := range []bool{false, true} {
			for _, name := range []string{"reverseproxy", "worker"} {
				b.Run(fmt.Sprintf("%s/h2=%t/%s", kind, http2, name), func(b *testing.B) {
					child.load(b, fronts[name], key, kind, http2, 200) // connections, pools
					b.ReportAllocs()
					before := cpu(b)
					b.ResetTimer()
					child.load(b, fronts[name], key, kind, http2, b.N)
					b.StopTimer()
					b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
				})
			}
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

const (
	childVariable = "RINGMAIN_BENCH_CHILD"
	concurrency   = 32
)

// benchChild is the other process: provider and load generator.
type benchChild struct {
	upstream string
	in       io.Writer
	out      *bufio.Scanner
}

func startChild(b *testing.B, roots []byte) *benchChild {
	cmd := exec.CommandContext(b.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(roots))
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
	c := &benchChild{in: in, out: bufio.NewScanner(out)}
	if !c.out.Scan() {
		b.Fatal("the child did not start")
	}
	c.upstream = c.out.Text()
	return c
}

func (c *benchChild) load(b *testing.B, addr, key, kind string, http2 bool, n int) {
	if _, err := fmt.Fprintf(c.in, "%s %s %s %t %d\n", addr, key, kind, http2, n); err != nil || !c.out.Scan() || c.out.Text() != "ok" {
		b.Fatalf("child: %v %s", err, c.out.Text())
	}
}

// runChild is main of the child process.
func runChild(roots string) error {
	answer := []byte(`{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"` + strings.Repeat("word ", 200) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":90,"completion_tokens":200,"total_tokens":290}}`)
	event := []byte("data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"finish_reason\":null}],\"usage\":null}\n\n")
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		if !bytes.Contains(body, []byte(`"stream":true`)) {
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
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(roots))
	clients := map[bool]*http.Client{}
	for _, http2 := range []bool{false, true} {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: http2, MaxIdleConnsPerHost: concurrency}
		if !http2 {
			tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		}
		clients[http2] = &http.Client{Transport: tr}
	}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var addr, key, kind string
		var http2 bool
		var n int64
		if _, err := fmt.Sscan(in.Text(), &addr, &key, &kind, &http2, &n); err != nil {
			return err
		}
		var left atomic.Int64
		left.Store(n)
		failed := make(chan error, concurrency)
		for range concurrency {
			go func() {
				var err error
				for left.Add(-1) >= 0 && err == nil {
					err = askOnce(clients[http2], addr, key, kind)
				}
				failed <- err
			}()
		}
		var errs []error
		for range concurrency {
			errs = append(errs, <-failed)
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		fmt.Println("ok")
	}
	return nil
}

func askOnce(cl *http.Client, addr, key, kind string) error {
	body := `"model":"m","messages":[{"role":"user","content":"` + strings.Repeat("hello ", 70) + `"}],"temperature":0.2}`
	if kind == "json" {
		body = "{" + body
	} else {
		body = `{"stream":true,` + body
	}
	req, err := http.NewRequest(http.MethodPost, "https://"+addr+chat, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("authorization", "Bearer "+key)
	req.Header.Set("content-type", "application/json")
	resp, err := cl.Do(req)
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

// lender lends the reverse proxy its buffers.
type lender struct{ sync.Pool }

func (p *lender) Get() []byte {
	if b, ok := p.Pool.Get().(*[]byte); ok {
		return *b
	}
	return make([]byte, 32<<10)
}

func (p *lender) Put(b []byte) { p.Pool.Put(&b) }

// reverseProxy is what the worker is compared with.
func reverseProxy(b *testing.B, up string) http.Handler {
	target, err := url.Parse(up)
	if err != nil {
		b.Fatal(err)
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1024}
	b.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Rewrite: func(q *httputil.ProxyRequest) { q.SetURL(target) }, BufferPool: &lender{}, Transport: transport,
	}
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			b.Error(err)
		}
		q.Body = io.NopCloser(bytes.NewReader(body))
		proxy.ServeHTTP(w, q)
	})
}

// overTLS serves h as the worker serves its API.
func overTLS(b *testing.B, ca *identity.CA, h http.Handler) string {
	issued, err := ca.IssueServer([]string{"localhost"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		b.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.TLS = identity.Public(cert, []string{"h2", "http/1.1"})
	s.StartTLS()
	b.Cleanup(s.Close)
	return s.Listener.Addr().String()
}
