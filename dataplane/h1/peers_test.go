package h1

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ringmain/internal/testkit/logkit"
)

// Programs that others wrote, before the server or as its clients. Each test is
// skipped where its program is not installed.

// program finds one.
func program(t *testing.T, name string) string {
	t.Helper()
	for _, at := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(at); err == nil {
			return path
		}
	}
	t.Skip(name + " is not installed")
	return ""
}

// told is what a program printed, which failed or not.
type told struct {
	out string
	err error
}

// run runs a client to its end. {addr} and {ca} in its arguments are the server's.
func (st *stand) run(t *testing.T, stdin io.Reader, name string, args ...string) told {
	t.Helper()
	path, dir := program(t, name), t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	cert, _ := identity()
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	fill := strings.NewReplacer("{addr}", st.addr, "{ca}", ca)
	for i := range args {
		args[i] = fill.Replace(args[i])
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdin = dir, stdin
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+ca)
	out, err := cmd.CombinedOutput()
	return told{string(out), err}
}

// proxied is a server behind a reverse proxy.
type proxied struct {
	*stand
	client *http.Client  // of the proxy
	socket string        // it listens on
	conns  *atomic.Int64 // it has opened
	gone   chan struct{} // told of each request at /wait that ended
	read   chan struct{} // told of each event of /events that may follow
}

// behind starts a server, and a proxy before it.
func behind(t *testing.T, name string, conf func(dir, socket, addr string) string, args ...string) *proxied {
	t.Helper()
	path := program(t, name)
	dir, err := os.MkdirTemp("", "h1") // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &proxied{socket: filepath.Join(dir, "s"), conns: new(atomic.Int64), gone: make(chan struct{}, 1), read: make(chan struct{})}
	p.stand = start(t, true, http.HandlerFunc(p.play), func(hs *http.Server) {
		hs.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
			p.conns.Add(1)
			return ctx
		}
	})
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(conf(dir, p.socket, p.addr)), 0o600); err != nil {
		t.Fatal(err)
	}
	var said logkit.Buffer
	cmd := exec.CommandContext(t.Context(), path, append(args, file)...)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after t.Context has ended
		if _ = cmd.Wait(); t.Failed() {
			t.Logf("%s said %s", name, said.String())
		}
	})
	tr := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.socket)
		},
		DisableCompression: true, ExpectContinueTimeout: 10 * time.Second,
	}
	t.Cleanup(tr.CloseIdleConnections)
	p.client = &http.Client{Transport: tr, Timeout: 20 * time.Second}
	until(t, name+" listens", func() bool {
		nc, err := net.Dial("unix", p.socket)
		if err == nil {
			_ = nc.Close()
		}
		return err == nil
	})
	return p
}

// play is stage, with what takes its time.
func (p *proxied) play(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/wait":
		_, _ = io.WriteString(w, "begun\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		p.gone <- struct{}{}
	case "/events":
		for i := range 20 {
			fmt.Fprintf(w, "event %d\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			<-p.read
		}
	default:
		stage(w, r)
	}
}

func (p *proxied) ask(t *testing.T, method, path string, body io.Reader, more ...string) (status int, answer []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://h"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(more); i += 2 {
		r.Header.Set(more[i], more[i+1])
	}
	resp, err := p.client.Do(r)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return 0, nil
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, answer
}

func TestBehindNginx(t *testing.T) {
	for name, buffers := range map[string]string{
		"as it comes": "proxy_buffering off; proxy_request_buffering off;", "buffered": "",
	} {
		t.Run(name, func(t *testing.T) {
			behind(t, "nginx", func(dir, socket, addr string) string {
				temps := ""
				for _, temp := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
					temps += temp + "_temp_path " + dir + ";\n"
				}
				return "daemon off; master_process off; error_log stderr error; pid " + dir + "/pid;\nevents {}\nhttp {\naccess_log off;\n" + temps +
					"upstream u { server " + addr + "; keepalive 32; }\nserver { listen unix:" + socket + "; client_max_body_size 0;\n" +
					"location / { proxy_pass https://u; proxy_ssl_protocols TLSv1.3; proxy_http_version 1.1; proxy_set_header Connection \"\";\n" + buffers + " } } }\n"
			}, "-c").all(t, name == "as it comes")
		})
	}
}

func TestBehindHAProxy(t *testing.T) {
	p := behind(t, "haproxy", func(_, socket, addr string) string {
		return "defaults\nmode http\ntimeout connect 10s\ntimeout client 60s\ntimeout server 60s\noption abortonclose\n" +
			"frontend f\nbind unix@" + socket + "\ndefault_backend b\nbackend b\nhttp-reuse always\nserver s " + addr + " ssl verify none\n"
	}, "-db", "-f")
	p.all(t, true)
	if status, b := p.ask(t, http.MethodGet, "/103", nil); status != http.StatusOK || string(b) != "hello" { // to nginx 1.22 it is the answer
		t.Errorf("behind an early one: %d %q", status, b)
	}
}

// all plays everything. events: the proxy passes events on as they come.
func (p *proxied) all(t *testing.T, events bool) {
	t.Run("bodies", func(t *testing.T) {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 3))
				for n := range 12 {
					sent := bytes.Repeat([]byte{byte('a' + i)}, r.IntN(1<<r.IntN(20)))
					if n == 11 {
						sent = bytes.Repeat([]byte{byte('a' + i)}, 3<<20)
					}
					var body io.Reader = bytes.NewReader(sent)
					var more []string
					if r.IntN(2) == 0 {
						body = struct{ io.Reader }{body} // in chunks
					}
					if r.IntN(3) == 0 {
						more = []string{"Expect", "100-continue"}
					}
					if status, got := p.ask(t, http.MethodPost, "/echo", body, more...); status != http.StatusOK || !bytes.Equal(got, sent) {
						t.Errorf("%d bytes: status %d, %d bytes", len(sent), status, len(got))
					}
				}
			})
		}
		all.Wait()
		if n := p.conns.Load(); n > 40 {
			t.Errorf("%d connections for 96 requests, 8 at once", n)
		}
	})
	t.Run("answers", func(t *testing.T) {
		for ask, want := range map[string]string{
			"GET /hello": "200 hello", "HEAD /hello": "200 ", "HEAD /length": "200 ", "GET /204": "204 ", "GET /304": "304 ", "GET /stream": "200 event\nevent\nevent\n",
			"GET /close": "200 last", "GET /typed": "200 <html>", "OPTIONS /hello": "200 hello", "GET /headfirst": "200 later",
			"GET /pieces?1": "200 abcd", "GET /nothing": "200 ", "GET /299": "299 ",
		} {
			method, path, _ := strings.Cut(ask, " ")
			for range 3 {
				if status, b := p.ask(t, method, path, nil); fmt.Sprintf("%d %s", status, b) != want {
					t.Errorf("%s: %d %.100q, want %.100q", ask, status, b, want)
				}
			}
		}
		if _, got := p.ask(t, http.MethodGet, "/bytes?5000000", nil); len(got) != 5_000_000 {
			t.Errorf("of a large answer %d bytes came", len(got))
		}
		if status, _ := p.ask(t, http.MethodGet, "/hello", nil, "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version", "13"); status != http.StatusOK {
			t.Errorf("a request to change protocols: %d", status)
		}
	})
	t.Run("answered early", func(t *testing.T) {
		for _, path := range []string{"/early", "/earlyclose", "/deadline"} {
			for _, size := range []int{10, 100 << 10, 3 << 20} {
				for _, chunks := range []bool{false, true} {
					var body io.Reader = strings.NewReader(strings.Repeat("x", size))
					if chunks {
						body = struct{ io.Reader }{body}
					}
					// nginx ends a client's connection that was answered before its body was in, and does not say so
					// beforehand: each asks over its own.
					if status, _ := p.ask(t, http.MethodPost, path, body, "Connection", "close"); status != http.StatusForbidden {
						t.Errorf("%s, %d bytes, chunks %t: status %d", path, size, chunks, status)
					}
				}
			}
		}
	})
	t.Run("clients that leave", func(t *testing.T) {
		for range 3 {
			nc, err := net.Dial("unix", p.socket)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(nc, get("/wait"))
			if events {
				if resp, err := http.ReadResponse(bufio.NewReader(nc), nil); err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("%+v, %v", resp, err)
				}
			} else {
				time.Sleep(100 * time.Millisecond) // it may be anywhere by then
			}
			_ = nc.Close()
			select {
			case <-p.gone:
			case <-time.After(10 * time.Second):
				t.Fatal("the handler never hears of it")
			}
		}
	})
	t.Run("torn answers", func(t *testing.T) {
		resp, err := p.client.Get("http://h/torn")
		if err == nil {
			_, err = io.ReadAll(resp.Body)
			_ = resp.Body.Close()
		}
		if err == nil && resp.StatusCode != http.StatusBadGateway {
			t.Errorf("it looks whole: %+v", resp)
		}
	})
	t.Run("events", func(t *testing.T) {
		if !events {
			t.SkipNow()
		}
		resp, err := p.client.Get("http://h/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		in := bufio.NewReader(resp.Body)
		for i := range 20 {
			if line, err := in.ReadString('\n'); line != fmt.Sprintf("event %d\n", i) {
				t.Fatalf("%q, %v", line, err)
			}
			p.read <- struct{}{}
		}
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

func TestCurl(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), nil)
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, bytes.Repeat([]byte{'x'}, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	url := "https://{addr}"
	all := func(n int, args ...string) []string { return append(args, url+"/whole?"+strconv.Itoa(n)) }
	for name, c := range map[string]struct {
		args []string
		want string // how what it prints ends
	}{
		"several":                    {[]string{url + "/hello", url + "/204", url + "/stream", url + "/typed"}, "helloevent\nevent\nevent\n<html>"},
		"HEAD":                       {[]string{"-I", "-o", "/dev/null", "-w", "%{http_code} %header{content-length}", url + "/length"}, "200 5"},
		"HTTP/1.0":                   {[]string{"--http1.0", "--no-alpn", url + "/stream"}, "event\nevent\nevent\n"},
		"a form":                     {[]string{"-d", "a=b", url + "/echo"}, "a=b"},
		"in chunks":                  {[]string{"-H", "Transfer-Encoding: chunked", "-d", "a=b", url + "/echo"}, "a=b"},
		"a multipart form":           {[]string{"-F", "a=b", "-o", "/dev/null", "-w", "%{http_code}", url + "/echo"}, "200"},
		"with 100-continue":          {[]string{"--expect100-timeout", "20", "-H", "Expect: 100-continue", "-d", "a=b", url + "/echo"}, "a=b"},
		"refused with 100-continue":  {[]string{"--expect100-timeout", "20", "-H", "Expect: 100-continue", "-d", "a=b", "-w", "%{http_code}", url + "/early"}, "403"},
		"an upload":                  {[]string{"-T", large, "-o", "/dev/null", "-w", "%{http_code} %{size_download} %{num_connects}", url + "/echo"}, "200 3145728 1"},
		"an upload in chunks":        {[]string{"-T", large, "-H", "Transfer-Encoding: chunked", "-H", "Expect:", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", url + "/echo"}, "200 3145728"},
		"a refused upload":           {[]string{"-T", large, "-H", "Expect:", "-w", "%{http_code}", url + "/early"}, "403"},
		"a refused upload in chunks": {[]string{"-T", large, "-H", "Expect:", "-H", "Transfer-Encoding: chunked", "-w", "%{http_code}", url + "/early"}, "403"},
		"an upload nobody reads":     {[]string{"-T", large, "-H", "Expect:", "-w", "%{http_code}", url + "/deadline"}, "403"},
		"a large answer":             {all(5_000_000, "-o", "/dev/null", "-w", "%{size_download}"), "5000000"},
		"slowly":                     {all(300_000, "--limit-rate", "500k", "-o", "/dev/null", "-w", "%{size_download}"), "300000"},
		"cut off":                    {[]string{"-o", "/dev/null", "-w", "%{exitcode}", url + "/torn"}, "18"},
		"an upgrade":                 {[]string{"-H", "Connection: Upgrade", "-H", "Upgrade: websocket", "-w", " %{http_code}", url + "/hello"}, "hello 200"},
		"a whole URL":                {[]string{"--request-target", "http://h/hello", url + "/"}, "hello"},
		"many on one connection":     {append(strings.Split(strings.Repeat(url+"/hello ", 50), " ")[:50], "-w", " %{num_connects}"), "hello 0"},
		"many at once":               {append([]string{"-Z", "--parallel-max", "10"}, strings.Split(strings.Repeat(url+"/hello ", 50), " ")[:50]...), strings.Repeat("hello", 50)},
		"closed by the server":       {[]string{url + "/close", url + "/hello"}, "lasthello"},
	} {
		t.Run(name, func(t *testing.T) {
			got := st.run(t, nil, "curl", append([]string{"-sS", "--no-progress-meter", "--http1.1", "--cacert", "{ca}", "-m", "50"}, c.args...)...)
			if (got.err != nil) != (name == "cut off") || !strings.HasSuffix(strings.TrimSuffix(got.out, "curl: (18) transfer closed with outstanding read data remaining\n"), c.want) {
				t.Errorf("%.300q, %v; want %q", got.out, got.err, c.want)
			}
		})
	}
}

const python = `
import http.client, ssl, sys
addr, ca = sys.argv[1:]
tls = ssl.create_default_context(cafile=ca)
def connect(): return http.client.HTTPSConnection(addr, context=tls, timeout=30)
def ask(c, method, path, body=None, **more):
    c.request(method, path, body, **more)
    r = c.getresponse()
    return r.status, r.read()
def want(got, status, body=None):
    assert got[0] == status and (body is None or got[1] == body), (got[0], got[1][:100])
c = connect()
want(ask(c, "GET", "/hello"), 200, b"hello")
kept = c.sock
for n in (0, 1, 4095, 70000, 3000000):
    want(ask(c, "POST", "/echo", b"x" * n), 200, b"x" * n)
    want(ask(c, "POST", "/echo", iter([b"x" * (n // 2 + 1), b"y" * n]), encode_chunked=True), 200, b"x" * (n // 2 + 1) + b"y" * n)
    want(ask(c, "GET", "/whole?%d" % n), 200)
want(ask(c, "HEAD", "/length"), 200, b"")
want(ask(c, "GET", "/204"), 204, b"")
want(ask(c, "GET", "/stream"), 200, b"event\n" * 3)
assert c.sock is kept
want(ask(c, "GET", "/close"), 200, b"last")
for size in (1 << 10, 200 << 10, 3 << 20, 8 << 20): # a refusal that comes before the body does: it writes all of it first, for which it has lingerWait
    for body in (b"x" * size, iter([b"x" * size])):
        want(ask(connect(), "POST", "/early", body), 403)
try:
    ask(connect(), "GET", "/torn")
    sys.exit("it looks whole")
except http.client.IncompleteRead:
    pass
print("done")
`

func TestPython(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), nil)
	if got := st.run(t, strings.NewReader(python), "python3", "-", "{addr}", "{ca}"); got.err != nil || got.out != "done\n" {
		t.Errorf("%s %v", got.out, got.err)
	}
}

const node = `
const https = require('https'), assert = require('assert'), base = 'https://' + process.argv[2];
const agent = new https.Agent({ keepAlive: true, maxSockets: 4 });
const ask = (method, path, body, headers) => new Promise((ok, no) => {
  const r = https.request(base + path, { method, agent, headers }, (res) => {
    let n = 0, all = [];
    res.on('data', (b) => { n += b.length; all.push(b); });
    res.on('end', () => ok({ status: res.statusCode, n, text: n < 1000 ? Buffer.concat(all).toString() : '' })).on('error', no);
  }).on('error', no);
  if (headers && headers.expect) r.on('continue', () => r.end(body)); else r.end(body);
});
const events = async () => {
  const res = await fetch(base + '/stream');
  return await res.text();
};
(async () => {
  for (const n of [0, 1, 5000, 3000000]) {
    const x = 'x'.repeat(n);
    assert.deepEqual((await ask('POST', '/echo', x)).n, n);
    assert.deepEqual((await ask('POST', '/echo', x, { 'transfer-encoding': 'chunked' })).n, n);
    assert.equal((await (await fetch(base + '/echo', { method: 'POST', body: x })).text()).length, n);
    const stream = new ReadableStream({ start(c) { if (n) c.enqueue(new TextEncoder().encode(x)); c.close(); } });
    assert.equal((await (await fetch(base + '/echo', { method: 'POST', body: stream, duplex: 'half' })).text()).length, n);
  }
  assert.equal((await ask('POST', '/echo', 'ab', { expect: '100-continue', 'content-length': 2 })).text, 'ab');
  assert.equal((await ask('HEAD', '/length')).status, 200);
  assert.equal((await ask('GET', '/204')).status, 204);
  assert.equal((await ask('GET', '/stream')).text, 'event\n'.repeat(3));
  assert.equal(await events(), 'event\n'.repeat(3));
  assert.equal((await ask('GET', '/close')).text, 'last');
  for (const n of [1000, 3000000]) {
    assert.equal((await ask('POST', '/early', 'x'.repeat(n))).status, 403);
    assert.equal((await fetch(base + '/early', { method: 'POST', body: 'x'.repeat(n) })).status, 403);
  }
  await assert.rejects(ask('GET', '/torn'));
  await assert.rejects(fetch(base + '/torn').then((r) => r.text()));
  const abort = new AbortController();
  setTimeout(() => abort.abort(), 100);
  await assert.rejects(fetch(base + '/wait', { signal: abort.signal }));
  await Promise.all(Array.from({ length: 200 }, (_, i) => ask('POST', '/echo', 'n' + i).then((r) => assert.equal(r.text, 'n' + i))));
  agent.destroy();
  console.log('done');
})().catch((e) => { console.log(e); process.exit(1); });
`

func TestNode(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), nil)
	if got := st.run(t, strings.NewReader(node), "node", "-", "{addr}"); got.err != nil || !strings.HasSuffix(got.out, "done\n") {
		t.Errorf("%s %v", got.out, got.err)
	}
}

func TestWrk(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), nil)
	ahead := filepath.Join(t.TempDir(), "ahead.lua") // sixteen requests without waiting for answers
	lua := `init = function(args) local r = {} for i = 1, 16 do r[i] = wrk.format("POST", "/echo", nil, string.rep("x", i * 50)) end all = table.concat(r) end
request = function() return all end`
	if err := os.WriteFile(ahead, []byte(lua), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"https://{addr}/hello"}, {"https://{addr}/whole?20000"}, {"https://{addr}/close"}, {"-s", ahead, "https://{addr}/"}} {
		var got told
		for seconds := 1; seconds < 50 && (seconds == 1 || strings.Contains(got.out, " 0 requests in ")); seconds *= 4 { // a busy machine needs some to begin
			got = st.run(t, nil, "wrk", append([]string{"-t1", "-c8", fmt.Sprintf("-d%ds", seconds)}, args...)...)
		}
		if got.err != nil || !strings.Contains(got.out, " requests in ") || strings.Contains(got.out, "Socket errors") || strings.Contains(got.out, "Non-2xx") || strings.Contains(got.out, " 0 requests in ") {
			t.Errorf("%v: %s %v", args, got.out, got.err)
		}
	}
}
