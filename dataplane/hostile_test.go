package dataplane_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/edge"
)

// counted is us-east with a provider that keeps the bodies it was sent.
func counted(t *testing.T, tunables dataplane.Tunables) (c *cell, key string, bodies func() []string) {
	var mu sync.Mutex
	var got []string
	c, key = scripted(t, func(w http.ResponseWriter, q *http.Request) {
		b, _ := io.ReadAll(q.Body)
		mu.Lock()
		got = append(got, string(b))
		mu.Unlock()
		answerPlain(w)
	}, tunables)
	return c, key, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), got...)
	}
}

// TestSmuggling: whatever the framing says, one request is one request, with
// the body that its framing gives it, and what is ambiguous is refused.
func TestSmuggling(t *testing.T) {
	c, key, bodies := counted(t, patient)
	body := ask("m", false)
	inner := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", chat, key, len(body), body)
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	for _, c2 := range []struct {
		name, framing, payload string
		served                 int // requests that may be answered 200
	}{
		{"as it should be", fmt.Sprintf("Content-Length: %d\r\n", len(body)), body, 1},
		{"chunked, as it should be", "Transfer-Encoding: chunked\r\n", chunked, 1},
		{"two lengths that differ", fmt.Sprintf("Content-Length: %d\r\nContent-Length: 5\r\n", len(body)), body + inner, 0},
		{"a list of lengths", fmt.Sprintf("Content-Length: %d, 5\r\n", len(body)), body + inner, 0},
		{"a length with a sign", fmt.Sprintf("Content-Length: +%d\r\n", len(body)), body + inner, 0},
		{"a negative length", "Content-Length: -1\r\n", body + inner, 0},
		{"a length in hex", fmt.Sprintf("Content-Length: 0x%x\r\n", len(body)), body + inner, 0},
		{"length and chunks: chunks count", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", chunked, 1},
		{"two codings", "Transfer-Encoding: identity, chunked\r\n", chunked + inner, 0},
		{"a coding that is none", "Transfer-Encoding: xchunked\r\n", chunked + inner, 0},
		{"coding twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunked + inner, 0},
		{"a space before the colon", fmt.Sprintf("Content-Length : %d\r\n", len(body)), body + inner, 0},
		{"a folded header", "Transfer-Encoding:\r\n chunked\r\n", chunked + inner, 0},
		{"a tab before the coding", "Transfer-Encoding: \tchunked\r\n", chunked, 1},
		{"a control character in the coding", "Transfer-Encoding: \x0bchunked\r\n", chunked + inner, 0},
		{"a line feed alone in a header", fmt.Sprintf("X-A: b\nContent-Length: 5\r\nContent-Length: %d\r\n", len(body)), body + inner, 0},
		{"a zero byte in a header", fmt.Sprintf("X-A: b\x00c\r\nContent-Length: %d\r\n", len(body)), body, 0},
		{"a chunk size with a sign", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("+%x\r\n%s\r\n0\r\n\r\n", len(body), body), 0},
		{"a chunk size beyond 64 bits", "Transfer-Encoding: chunked\r\n", "10000000000000001\r\n" + body, 0},
		{"a chunk without its end", "Transfer-Encoding: chunked\r\n", fmt.Sprintf("%x\r\n%sXX0\r\n\r\n", len(body), body) + inner, 0},
	} {
		before := len(bodies())
		conn := dialRaw(t, c)
		_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n%s\r\n%s", chat, key, c2.framing, c2.payload)
		if err != nil {
			t.Fatal(err)
		}
		var statuses []int
		for in := bufio.NewReader(conn); ; {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			statuses = append(statuses, resp.StatusCode)
			_ = conn.SetReadDeadline(time.Now().Add(400 * time.Millisecond)) // for an answer too many
		}
		good := 0
		for _, s := range statuses {
			if s == 200 {
				good++
			} else if s < 400 || s > 599 {
				t.Errorf("%s: status %d", c2.name, s)
			}
		}
		// A folded header is refused; net/http takes it, and what is behind its body for another request.
		most := c2.served
		if c2.name == "a folded header" {
			most = 2
		}
		if good > most || c2.served > 0 && good < 1 {
			t.Errorf("%s: answers %v, want %d of 200", c2.name, statuses, c2.served)
		}
		for _, b := range bodies()[before:] {
			if b != body {
				t.Errorf("%s: the upstream was sent %q", c2.name, b)
			}
		}
		if n := len(bodies()) - before; n != good {
			t.Errorf("%s: %d requests reached the upstream, %d were answered", c2.name, n, good)
		}
		t.Logf("BADINPUT framing: %s -> %v", c2.name, statuses)
	}
}

// TestHeaderBombs: too many or too large headers get an error, and cost no
// memory that grows with what a client may send.
func TestHeaderBombs(t *testing.T) {
	c, key, bodies := counted(t, patient)
	for name, head := range map[string]string{
		"one header of 1 MiB":      "X-A: " + strings.Repeat("a", 1<<20) + "\r\n",
		"20,000 headers":           strings.Repeat("X-A: b\r\n", 20_000),
		"a name of 64 KiB":         strings.Repeat("a", 64<<10) + ": b\r\n",
		"a target of 1 MiB":        "",
		"64 KiB of spaces, folded": "X-A: a\r\n" + strings.Repeat(" ", 64<<10) + "\r\n",
	} {
		target := chat
		if head == "" {
			target += "?" + strings.Repeat("q", 1<<20)
		}
		conn := dialRaw(t, c)
		go func() { // the server stops reading
			_, _ = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n", target, key, head)
		}()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		switch {
		case err != nil:
			t.Logf("BADINPUT headers: %s -> the connection is closed (%v)", name, err)
		case resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge && resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusRequestURITooLong:
			t.Errorf("%s: status %d", name, resp.StatusCode)
		default:
			t.Logf("BADINPUT headers: %s -> %d", name, resp.StatusCode)
		}
	}
	if n := len(bodies()); n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	c.fine(t, key)
}

// fine makes sure that a good request is answered.
func (c *cell) fine(t *testing.T, key string) {
	t.Helper()
	for _, h2 := range []bool{false, true} {
		if r := c.do(c.client(h2), call{path: chat, key: key, body: ask("m", false)}); r.status != 200 {
			t.Errorf("h2=%v: a good request gets %d %s", h2, r.status, r.body)
		}
	}
}

// TestSlowloris: connections that send a byte now and then are ended by the
// header time, and keep nobody else out.
func TestSlowloris(t *testing.T) {
	tune := patient
	tune.HeaderTimeout = 3 * time.Second // for a handshake, too, which takes its time on a busy machine
	tune.Edge = edge.Limits{Silent: 100}
	c, key, _ := counted(t, tune)
	const slow = 80
	var ended atomic.Int32
	var all sync.WaitGroup
	for range slow {
		conn := dialRaw(t, c)
		all.Go(func() {
			head := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nX-A: %s", chat, strings.Repeat("a", 1000))
			began := time.Now()
			for i := range len(head) {
				if _, err := io.WriteString(conn, head[i:i+1]); err != nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if took := time.Since(began); took < 10*time.Second {
				ended.Add(1)
			}
		})
	}
	c.fine(t, key)
	all.Wait()
	if n := ended.Load(); n != slow {
		t.Errorf("%d of %d slow connections were ended", n, slow)
	}
	c.fine(t, key)
}

// TestReaderOfOneByteASecond: a client that reads a byte now and then, or that
// opens no window, holds its place for the time of a stall, not for as long as
// it likes, nor as its route lets an upstream be silent.
func TestReaderOfOneByteASecond(t *testing.T) {
	for _, how := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(how, func(t *testing.T) {
			tune := patient
			tune.WriteStall = 300 * time.Millisecond
			over := make(chan struct{})
			end := sync.OnceFunc(func() { close(over) })
			c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
				defer end()
				w.Header().Set("content-type", "text/event-stream")
				event := `data: {"choices":[{"index":0,"delta":{"content":"` + strings.Repeat("x", 32<<10) + `"}}]}` + "\n\n"
				for range 4000 {
					if _, err := io.WriteString(w, event); err != nil {
						break
					}
					if q.Context().Err() != nil {
						break
					}
				}
			}, tune)
			read := oneByte(t, c, key)
			if how == "HTTP/2" {
				read = noWindow(t, c, key)
			}
			stop := make(chan struct{})
			var reader sync.WaitGroup
			reader.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(100 * time.Millisecond):
						if !read() {
							return
						}
					}
				}
			})
			select {
			case <-over: // its stream was taken from it, and the upstream let go
			case <-time.After(15 * time.Second):
				t.Error("a reader of ten bytes a second still holds its stream and its upstream")
			}
			close(stop)
			reader.Wait()
			if !t.Failed() {
				poll(t, "the request's end", func() bool { return c.worker.Health().InFlight == 0 })
			}
		})
	}
}

// oneByte asks for a stream, and gives what reads a byte of the answer.
func oneByte(t *testing.T, c *cell, key string) (read func() bool) {
	raw, err := net.Dial("tcp", c.api)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = raw.Close() })
	if err := raw.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ring.ca.ServerRoots())
	conn := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13})
	writeRequest(t, conn, key, ask("m", true), "Content-Type: application/json\r\n")
	one := make([]byte, 1)
	return func() bool {
		_, err := conn.Read(one)
		return err == nil
	}
}

// noWindow asks for a stream and takes none of it, over a connection that is
// read, so that it is the windows alone which close.
func noWindow(t *testing.T, c *cell, key string) (read func() bool) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	resp, err := c.send(ctx, c.client(true), call{path: chat, key: key, body: ask("m", true)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	return func() bool { return true }
}

// TestRapidReset: a connection that opens streams only to reset them is closed
// (CVE-2023-44487), and costs others nothing.
func TestRapidReset(t *testing.T) {
	for _, how := range []string{"whole requests", "requests without their body"} {
		t.Run(how, func(t *testing.T) { rapidReset(t, how) })
	}
}

func rapidReset(t *testing.T, how string) {
	tune := patient
	tune.Edge = edge.Limits{Aborts: 50}
	var under atomic.Int32
	c, key := scripted(t, func(w http.ResponseWriter, q *http.Request) {
		under.Add(1)
		defer under.Add(-1)
		select {
		case <-q.Context().Done():
		case <-time.After(50 * time.Millisecond):
			answerPlain(w)
		}
	}, tune)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ring.ca.ServerRoots())
	conn, err := tls.Dial("tcp", c.api, &tls.Config{RootCAs: roots, ServerName: "localhost", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	closed := make(chan string, 1)
	go func() { // reads until the server has had enough
		in := http2.NewFramer(io.Discard, conn)
		for {
			f, err := in.ReadFrame()
			if err != nil {
				closed <- "closed"
				return
			}
			if away, ok := f.(*http2.GoAwayFrame); ok && away.ErrCode != http2.ErrCodeNo {
				closed <- "GOAWAY " + away.ErrCode.String()
				return
			}
		}
	}()
	body := []byte(ask("m", false))
	sent, verdict := 0, ""
	for stream := uint32(1); verdict == "" && sent < 5000; stream += 2 {
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "localhost"}, {":path", chat}, {"authorization", "Bearer " + key}, {"content-type", "application/json"}} {
			if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
				t.Fatal(err)
			}
		}
		err := framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
		if err == nil && how == "whole requests" {
			err = framer.WriteData(stream, true, body)
		}
		if err == nil {
			err = framer.WriteRSTStream(stream, http2.ErrCodeCancel)
		}
		if err != nil {
			verdict = "closed"
			break
		}
		sent++
		select {
		case verdict = <-closed:
		default:
		}
	}
	if verdict == "" {
		select {
		case verdict = <-closed:
		case <-time.After(5 * time.Second):
			t.Errorf("%d streams were opened and reset, and the connection lives", sent)
		}
	}
	t.Logf("BADINPUT HTTP/2 rapid reset, %s: after %d streams -> %s, %v expelled", how, sent, verdict, c.metric(t, "ringmain_connections_refused_total"))
	poll(t, "the upstream's requests to end", func() bool { return under.Load() == 0 })
	c.fine(t, key)
}

// TestFloodOfWrongKeys: wrong secrets for a known key id, from one address,
// cost a bounded number of bcrypts, and a known caller is answered all along.
func TestFloodOfWrongKeys(t *testing.T) {
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) })))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	_, target := r.org("target", "any", "verified", "live")
	key, _ := r.org("acme", "any", "verified", "live")
	tune := patient
	tune.Edge = edge.Limits{Wrong: -1} // as fast as it can
	c := r.start("us-east", "us", tune)
	r.load()
	c.fine(t, key) // its verdict is known from here on
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	const flood = 3000
	var codes [600]atomic.Int32
	client := c.client(true)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range flood / 8 {
				wrong, err := apikey.NewSecretFor(target, rand.Reader)
				if err != nil {
					t.Error(err)
					return
				}
				codes[c.do(client, call{path: chat, key: wrong.Reveal(), body: ask("m", false)}).status].Add(1)
			}
		})
	}
	stop := make(chan struct{})
	var good sync.WaitGroup
	clients := []*http.Client{c.client(false), c.client(true)} // how often they ask is the machine's to say: no connection is left of each time
	good.Go(func() {
		for {
			for _, cl := range clients {
				if r := c.do(cl, call{path: chat, key: key, body: ask("m", false)}); r.status != 200 {
					t.Errorf("a good request gets %d %s", r.status, r.body)
				}
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	all.Wait()
	close(stop)
	good.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	if codes[401].Load()+codes[429].Load()+codes[503].Load() != flood {
		t.Error("a wrong key got something else than 401, 429 or 503")
	}
	bcrypts := c.metric(t, "ringmain_bcrypt_total")
	t.Logf("%d wrong keys: %d of 401, %d of 429, %d of 503, %v bcrypts in all, heap %d -> %d KiB", flood,
		codes[401].Load(), codes[429].Load(), codes[503].Load(), bcrypts, before.HeapAlloc>>10, after.HeapAlloc>>10)
	if bcrypts > 50 {
		t.Errorf("%v bcrypts for %d wrong keys of one id", bcrypts, flood)
	}
	if grew := int64(after.HeapAlloc) - int64(before.HeapAlloc); grew > 16<<20 {
		t.Errorf("the heap grew by %d KiB", grew>>10)
	}
}

// metric sums what has a name, and labels of all these values.
func (c *cell) metric(t *testing.T, name string, labels ...string) (sum float64) {
	t.Helper()
	families, err := c.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				has := func(value string) bool {
					return slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetValue() == value })
				}
				if !slices.ContainsFunc(labels, func(value string) bool { return !has(value) }) {
					sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return sum
}

// TestStrangersAtThePeersDoor: connections that never shake hands on the
// listener for other nodes are bounded too, and a node is let in beside them.
func TestStrangersAtThePeersDoor(t *testing.T) {
	tune := patient
	tune.HeaderTimeout = time.Hour // none of them is turned away for its silence
	c, key, _ := counted(t, tune)
	const strangers, most = 700, 600
	ctx, over := context.WithCancel(t.Context())
	defer over()
	var turned atomic.Int32
	var all sync.WaitGroup
	slots := make(chan struct{}, 64)
	for range strangers {
		all.Go(func() {
			slots <- struct{}{}
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
			conn, err := d.Dial("tcp", c.peer)
			if <-slots; err != nil { // the reset came sooner
				turned.Add(1)
				return
			}
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			if _, _ = conn.Read(make([]byte, 1)); ctx.Err() == nil {
				turned.Add(1)
			}
			_ = conn.Close()
		})
	}
	poll(t, "silent connections of one source to be turned away", func() bool { return turned.Load() >= strangers-most })
	c.fine(t, key)
	over()
	all.Wait()
}
