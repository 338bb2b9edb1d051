package dataplane_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ringmain/dataplane"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/edge"
	"ringmain/internal/testkit/logkit"
)

// front is a proxy of somebody else's, as operators set it before nodes.
type front struct {
	program string
	args    []string
	conf    func(dir, node string) string // it listens on dir/s, and has a certificate in dir/pair.pem
	events  bool                          // passes on what comes as it comes
	hasty   bool                          // cuts a client of HTTP/1.1 off that it answers before the body is in, whatever server is behind it
}

const haproxyDefaults = "defaults\ntimeout connect 10s\ntimeout client 60s\ntimeout server 60s\n"

func nginxBefore(more string) func(dir, node string) string {
	return func(dir, node string) string {
		temps := ""
		for _, temp := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			temps += temp + "_temp_path " + dir + ";\n"
		}
		return "daemon off; master_process off; error_log stderr error; pid " + dir + "/pid;\nevents {}\nhttp {\naccess_log off;\n" + temps +
			"upstream u { server " + node + "; keepalive 32; }\nserver { listen unix:" + dir + "/s ssl http2; client_max_body_size 0;\n" +
			"ssl_certificate " + dir + "/pair.pem; ssl_certificate_key " + dir + "/pair.pem; ssl_protocols TLSv1.3;\n" +
			"location / { proxy_pass https://u; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_trusted_certificate " + dir + "/ca.pem;\n" +
			"proxy_ssl_server_name on; proxy_ssl_name localhost; proxy_http_version 1.1; proxy_set_header Connection \"\";\n" + more + " } } }\n"
	}
}

func haproxyBefore(server string) func(dir, node string) string {
	return func(dir, node string) string {
		return haproxyDefaults + "mode http\noption abortonclose\nfrontend f\nbind unix@" + dir + "/s ssl crt " + dir + "/pair.pem alpn h2,http/1.1\n" +
			"default_backend b\nbackend b\nhttp-reuse always\nserver s " + node + " ssl verify required ca-file " + dir + "/ca.pem sni str(localhost) verifyhost localhost " + server + "\n"
	}
}

var fronts = map[string]front{
	"HAProxy passes TLS on": {"haproxy", []string{"-db", "-f"}, func(dir, node string) string {
		return haproxyDefaults + "mode tcp\nfrontend f\nbind unix@" + dir + "/s\ndefault_backend b\nbackend b\nserver s " + node + "\n"
	}, true, false},
	"HAProxy":                   {"haproxy", []string{"-db", "-f"}, haproxyBefore(""), true, false},
	"HAProxy, HTTP/2 behind it": {"haproxy", []string{"-db", "-f"}, haproxyBefore("alpn h2"), true, true},
	"nginx":                     {"nginx", []string{"-c"}, nginxBefore("proxy_buffering off; proxy_request_buffering off;"), true, false},
	"nginx, which buffers":      {"nginx", []string{"-c"}, nginxBefore(""), false, false},
}

// fronted is a node behind a front.
type fronted struct {
	*cell
	front
	key    string
	socket string

	begun chan struct{} // a stream that waits was begun
	left  chan struct{} // its client left
	read  chan struct{} // told of each event that may follow
}

// hashOf is what the provider says of a request's body.
func hashOf(body string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(body))) }

const delta = `data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}` + "\n\n"

// provide plays the provider, by what the prompt says.
func (p *fronted) provide(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	body, control := string(b), http.NewResponseController(w)
	event := func(s string) {
		_, _ = fmt.Fprintf(w, delta, s)
		_ = control.Flush()
	}
	switch {
	case !strings.Contains(body, `"stream":true`):
		w.Header().Set("content-type", "application/json")
		_, _ = io.WriteString(w, strings.Replace(plainAnswer, `"hi"`, `"`+hashOf(body)+`"`, 1))
	case strings.Contains(body, "wait"):
		w.Header().Set("content-type", "text/event-stream")
		event("begun")
		p.begun <- struct{}{}
		<-r.Context().Done()
		p.left <- struct{}{}
	case strings.Contains(body, "break"):
		w.Header().Set("content-type", "text/event-stream")
		event("begun")
		panic(http.ErrAbortHandler)
	default:
		w.Header().Set("content-type", "text/event-stream")
		for i := range 20 {
			event(fmt.Sprintf("number %d", i))
			if p.events {
				select {
				case <-p.read:
				case <-r.Context().Done():
					return
				}
			}
		}
		_, _ = io.WriteString(w, `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
	}
}

// putBefore starts a node, and a front before it.
func putBefore(t *testing.T, f front, tune dataplane.Tunables) *fronted {
	t.Helper()
	path, err := exec.LookPath(f.program)
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/" + f.program); err != nil {
			t.Skipf("%s is not installed: apt-get install %s", f.program, f.program)
		}
	}
	dir, err := os.MkdirTemp("", "px") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &fronted{front: f, socket: filepath.Join(dir, "s"), begun: make(chan struct{}, 1), left: make(chan struct{}, 1), read: make(chan struct{})}
	p.cell, p.key = scripted(t, p.provide, tune)
	_, server := p.issue(time.Hour)
	for name, b := range map[string]string{
		"pair.pem": string(server.Chain) + "\n" + string(server.Key), "ca.pem": string(p.ring.ca.ServerRoots()), "conf": f.conf(dir, p.api),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	said := &logkit.Buffer{}
	cmd := exec.CommandContext(t.Context(), path, append(f.args, filepath.Join(dir, "conf"))...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after t.Context has ended
		if _ = cmd.Wait(); t.Failed() {
			t.Logf("%s said %s", f.program, said)
		}
	})
	poll(t, f.program+" to listen", func() bool {
		nc, err := net.Dial("unix", p.socket)
		if err == nil {
			_ = nc.Close()
		}
		return err == nil
	})
	return p
}

// through is a client of the front.
func (p *fronted) through(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(p.ring.ca.ServerRoots())
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.socket)
		},
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}, ForceAttemptHTTP2: http2,
	}
	if !http2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

// prompt is a request's body of about n bytes more than it needs.
func prompt(what string, n int, stream bool) string {
	return strings.Replace(ask("m", stream), "tell me about foxes", what+" "+strings.Repeat("x", n), 1)
}

// TestBehindProxies: what a node does for its clients it does behind others'
// proxies, which pass TLS on, or end it and ask over a few connections of their
// own for everybody.
func TestBehindProxies(t *testing.T) {
	for name, f := range fronts {
		t.Run(name, func(t *testing.T) {
			p := putBefore(t, f, patient)
			for _, http2 := range []bool{false, true} {
				cl := p.through(t, http2)
				on := func(what string, test func(*testing.T, *http.Client)) {
					t.Run(fmt.Sprintf("%s, h2=%t", what, http2), func(t *testing.T) { test(t, cl) })
				}
				on("answers", p.testAnswers)
				on("events", p.testEvents)
				on("clients that leave", p.testLeaving)
				on("broken streams", p.testBroken)
				on("early answers", p.testEarly)
				on("wrong keys", p.testWrongKeys)
			}
			if n := p.metric(t, "ringmain_connections"); n > 100 {
				t.Errorf("%v connections are open", n)
			}
		})
	}
}

// testAnswers: everybody gets what is theirs, once, however large.
func (p *fronted) testAnswers(t *testing.T, cl *http.Client) {
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 5))
			for n := range 12 {
				size := r.IntN(1 << r.IntN(18))
				if n == 11 {
					size = 4 << 20
				}
				sent := prompt(fmt.Sprintf("%d of %d", n, i), size, false)
				var in io.Reader = strings.NewReader(sent)
				if r.IntN(2) == 0 {
					in = struct{ io.Reader }{in} // in chunks
				}
				got := p.post(t, cl, p.key, in)
				if got == nil {
					continue
				}
				if got.status != 200 || !strings.Contains(got.body, hashOf(sent)) {
					t.Errorf("%d bytes: %d %.300s", len(sent), got.status, got.body)
					continue
				}
				p.record(got.header.Get("idc-request-id"))
			}
		})
	}
	all.Wait()
}

func (p *fronted) post(t *testing.T, cl *http.Client, key string, body io.Reader) *reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://localhost"+chat, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("authorization", "Bearer "+key)
	r.Header.Set("content-type", "application/json")
	resp, err := cl.Do(r)
	if err != nil {
		t.Error(err)
		return nil
	}
	return p.receive(resp)
}

// testEvents: where the front passes on what comes, no event waits for the next.
func (p *fronted) testEvents(t *testing.T, cl *http.Client) {
	resp := p.open(t, cl, "count")
	defer resp.Body.Close()
	in := bufio.NewScanner(resp.Body)
	next := 0
	done := false
	for in.Scan() {
		switch line := in.Text(); {
		case strings.Contains(line, "[DONE]"):
			done = true
		case strings.Contains(line, "number"):
			if !strings.Contains(line, fmt.Sprintf(`"number %d"`, next)) {
				t.Fatalf("instead of number %d: %s", next, line)
			}
			next++
			if p.events {
				p.read <- struct{}{}
			}
		}
	}
	if in.Err() != nil || next != 20 || !done {
		t.Errorf("%d events, done %t: %v", next, done, in.Err())
	}
}

func (p *fronted) open(t *testing.T, cl *http.Client, what string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://localhost"+chat, strings.NewReader(prompt(what, 10, true)))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("authorization", "Bearer "+p.key)
	r.Header.Set("content-type", "application/json")
	resp, err := cl.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}

// testLeaving: who leaves is heard of at the provider.
func (p *fronted) testLeaving(t *testing.T, cl *http.Client) {
	for range 3 {
		ctx, leave := context.WithCancel(t.Context())
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://localhost"+chat, strings.NewReader(prompt("wait", 10, true)))
			if err != nil {
				t.Error(err)
				return
			}
			r.Header.Set("authorization", "Bearer "+p.key)
			r.Header.Set("content-type", "application/json")
			if resp, err := cl.Do(r); err == nil { // a front that buffers has nothing to give yet
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		}()
		<-p.begun
		leave()
		select {
		case <-p.left:
		case <-time.After(20 * time.Second):
			t.Error("the provider never hears of it")
		}
		<-gone
	}
	poll(t, "no request under way", func() bool { return p.worker.Health().InFlight == 0 })
}

// testBroken: a stream that breaks never looks whole.
func (p *fronted) testBroken(t *testing.T, cl *http.Client) {
	resp := p.open(t, cl, "break")
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	told := strings.Contains(string(b), `"error"`)
	switch {
	case strings.Contains(string(b), "[DONE]"):
	case resp.StatusCode == http.StatusOK && told: // HAProxy ends what breaks as if it were whole, to clients of HTTP/2: nothing else says it to them
		return
	case !p.events && (err != nil || resp.StatusCode == http.StatusBadGateway): // it found it broken before it passed on anything
		return
	}
	t.Errorf("%d %s %v", resp.StatusCode, b, err)
}

// testEarly: a refusal that comes before the body is in arrives.
func (p *fronted) testEarly(t *testing.T, cl *http.Client) {
	http2 := cl.Transport.(*http.Transport).ForceAttemptHTTP2
	for _, size := range []int{10, 200 << 10, 3 << 20} {
		if p.hasty && !http2 && size > 10 {
			return
		}
		for _, chunks := range []bool{false, true} {
			for _, c := range []struct {
				key  string
				code dialect.Code
			}{
				{"idc_nonsense", dialect.InvalidAPIKey},
				{strings.Replace(p.key, "_any_", "_eu_", 1), dialect.InvalidAPIKey}, // its checksum is wrong, too
			} {
				var in io.Reader = strings.NewReader(prompt("refuse", size, false))
				if chunks {
					in = struct{ io.Reader }{in}
				}
				// nginx ends a connection of its client's that was answered before its body was in, without saying so: each asks over its own.
				own := p.through(t, http2)
				if got := p.post(t, own, c.key, in); got != nil && got.header.Get("idc-error-code") != string(c.code) {
					t.Errorf("%d bytes, chunks %t: %d %.200s", size, chunks, got.status, got.body)
				}
			}
		}
	}
	own := p.through(t, http2)
	got := p.post(t, own, p.key, strings.NewReader(prompt("refuse", 33<<20, false)))
	if got != nil && got.header.Get("idc-error-code") != string(dialect.RequestTooLarge) {
		t.Errorf("a body of 33 MiB: %d %.200s", got.status, got.body)
	}
}

// testWrongKeys: others' wrong keys on connections that a front shares among
// everybody break nobody's request.
func (p *fronted) testWrongKeys(t *testing.T, cl *http.Client) {
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for n := range 15 {
				sent := prompt(fmt.Sprintf("%d of %d", n, i), 100, false)
				key, want := p.key, ""
				if i%2 == 0 {
					key, want = "idc_nonsense", string(dialect.InvalidAPIKey)
				}
				if got := p.post(t, cl, key, strings.NewReader(sent)); got != nil && got.header.Get("idc-error-code") != want {
					t.Errorf("%d %.300s", got.status, got.body)
				}
			}
		})
	}
	all.Wait()
}

// TestConnectionsAgeBehindProxies: a connection that has lived long enough is
// taken from a proxy without a request being lost.
func TestConnectionsAgeBehindProxies(t *testing.T) {
	tune := patient
	tune.Edge = edge.Limits{Age: 100 * time.Millisecond}
	for name, f := range fronts {
		t.Run(name, func(t *testing.T) {
			p := putBefore(t, f, tune)
			cl := p.through(t, true)
			end := time.Now().Add(2 * time.Second)
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					for n := 0; time.Now().Before(end); n++ {
						sent := prompt(fmt.Sprintf("%d of %d", n, i), 100, false)
						r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://localhost"+chat, strings.NewReader(sent))
						if err != nil {
							t.Error(err)
							return
						}
						r.Header.Set("authorization", "Bearer "+p.key)
						resp, err := cl.Do(r)
						if err != nil {
							t.Error(err)
							return
						}
						if got := p.receive(resp); got.status != 200 || got.broken != nil && !errors.Is(got.broken, io.EOF) {
							t.Errorf("request %d: %d %.300s %v", n, got.status, got.body, got.broken)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}
