package h1_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/dataplane/relay/h1"
)

func within(d time.Duration) time.Time { return time.Now().Add(d) }

// TestRequestOnTheWire: head and a small body are one packet, in this form.
func TestRequestOnTheWire(t *testing.T) {
	got := make(chan string, 1)
	s := serve(t, false, func(c *talk) {
		buf := make([]byte, 64<<10)
		n, _ := c.tcp.Read(buf)
		got <- string(buf[:n])
		c.say(good)
	})
	req := request(t, []byte("{"), []byte(`"a":1`), []byte("}"))
	if v, err := askH1(t.Context(), s.pool(t), req, patient); v.Body != "hello" {
		t.Fatal(v, err)
	}
	want := "POST /v1/chat/completions HTTP/1.1\r\nHost: provider.example\r\nAuthorization: Bearer secret\r\n" +
		"Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}"
	if g := <-got; g != want {
		t.Errorf("%q", g)
	}
}

func TestFieldsThatCannotBeSent(t *testing.T) {
	for _, f := range []h1.Field{{"X", "a\r\nY: b"}, {"X", "a\nb"}, {"X", "a\x00b"}, {"X Y", "a"}, {"", "a"}, {"X:", "a"}, {"X\r\nY", "a"}, {"X", "a\x7f"}} {
		if _, err := h1.NewStart("POST", "/", "h", f); !errors.Is(err, h1.ErrField) {
			t.Errorf("%q in a Start: %v", f, err)
		}
		s := serve(t, false, saying(good))
		req := request(t, []byte("{}"))
		req.Fields = append(req.Fields, f)
		if _, err := s.pool(t).Do(t.Context(), req, within(patient)); !errors.Is(err, h1.ErrField) || s.conns.Load() != 0 {
			t.Errorf("%q: %v, %d connections", f, err, s.conns.Load())
		}
	}
	for _, target := range []string{"", "/a b", "/a\r\n", "/\xff"} {
		if _, err := h1.NewStart("POST", target, "h"); !errors.Is(err, h1.ErrField) {
			t.Errorf("%q: %v", target, err)
		}
	}
	for _, method := range []string{"", "P T", "P\r\n"} {
		if _, err := h1.NewStart(method, "/", "h"); !errors.Is(err, h1.ErrField) {
			t.Errorf("%q: %v", method, err)
		}
	}
	st := start(t, "POST")
	if s := fmt.Sprintf("%v %+v %#v %s %q", st, st, st, st, st); strings.Contains(s, "secret") {
		t.Errorf("a Start prints %s", s)
	}
}

// TestBodiesArriveWhole: of every size about the borders, in any pieces, also
// at a server that reads slowly.
func TestBodiesArriveWhole(t *testing.T) {
	for _, secure := range []bool{false, true} {
		slow := false
		s := serve(t, secure, func(c *talk) {
			for {
				q, err := http.ReadRequest(c.br)
				if err != nil {
					return
				}
				if slow {
					time.Sleep(100 * time.Millisecond)
				}
				var b bytes.Buffer
				_, _ = io.Copy(&b, q.Body)
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", b.Len())
				_, _ = c.Write(b.Bytes())
			}
		})
		p := s.pool(t)
		random := rand.New(rand.NewPCG(1, 2))
		for _, size := range []int{0, 1, 16000, 16<<10 - 1, 16 << 10, 16<<10 + 1, 64 << 10, 80<<10 - 1, 80 << 10, 80<<10 + 1, 1 << 20, 5 << 20} {
			slow = size == 5<<20
			body := make([]byte, size)
			for i := range body {
				body[i] = byte(random.Uint32())
			}
			var parts [][]byte
			for rest := body; len(rest) > 0; {
				n := 1 + random.IntN(len(rest))
				parts, rest = append(parts, rest[:n]), rest[n:]
			}
			if v, err := askH1(t.Context(), p, request(t, parts...), patient); v.Body != string(body) {
				t.Errorf("tls=%t, %d bytes: %s, %v", secure, size, v, err)
			}
		}
		if n := s.conns.Load(); n != 1 {
			t.Errorf("tls=%t: %d connections", secure, n)
		}
	}
}

// TestIdleConnections: the one used last serves first, no more than MaxIdle are
// kept, none for longer than IdleTimeout, and none after Close.
func TestIdleConnections(t *testing.T) {
	var ended atomic.Int64
	names := func(c *talk) {
		defer ended.Add(1)
		for c.request() {
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d", c.n)
		}
	}
	s := serve(t, false, names)
	p := s.pool(t, func(c *h1.Config) { c.MaxIdle = 2 })
	open := make([]*h1.Response, 3)
	for i := range open {
		var err error
		if open[i], err = p.Do(t.Context(), request(t), within(patient)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range open {
		if b, err := io.ReadAll(r); err != nil || len(b) != 1 {
			t.Fatal(b, err)
		}
		_ = r.Close()
	}
	if v, _ := askH1(t.Context(), p, request(t), patient); v.Body != "2" {
		t.Errorf("connection %s served, want the last one kept, 2", v.Body)
	}
	eventually(t, "the third connection is dropped", func() bool { return ended.Load() == 1 })
	p.Close()
	eventually(t, "Close drops what is idle", func() bool { return ended.Load() == 3 })
	r, err := p.Do(t.Context(), request(t), within(patient))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(r)
	_ = r.Close()
	eventually(t, "after Close none is kept", func() bool { return ended.Load() == 4 })
	p = s.pool(t, func(c *h1.Config) { c.IdleTimeout = 100 * time.Millisecond })
	for n := int64(5); n < 7; n++ {
		if v, _ := askH1(t.Context(), p, request(t), patient); v.Body != strconv.FormatInt(n, 10) {
			t.Errorf("connection %s served, want %d", v.Body, n)
		}
		eventually(t, "idle connections are dropped", func() bool { return ended.Load() == n })
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := within(patient); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// TestGivenUp: whoever asked leaves, wherever the request is at, and the
// connection goes with him.
func TestGivenUp(t *testing.T) {
	for _, secure := range []bool{false, true} {
		for name, c := range map[string]struct {
			body  int
			first string // what the server says
		}{
			"before the head":   {2, ""},
			"within the head":   {2, ok},
			"within the body":   {2, ok + "Content-Length: 6\r\n\r\nhello"},
			"within a chunk":    {2, ok + chunked + "6\r\nhello"},
			"while it is sent":  {32 << 20, ""},
			"a body to the end": {2, ok + "\r\nhello"},
		} {
			ctx, leave := context.WithCancel(t.Context())
			left, over := make(chan struct{}), make(chan struct{})
			s := serve(t, secure, func(k *talk) {
				defer close(over)
				k.headOnly()
				k.say(c.first)
				time.AfterFunc(50*time.Millisecond, leave)
				if c.body < 100 {
					k.wait() // until the client is gone
				}
				<-left
			})
			p := s.pool(t)
			begun := time.Now()
			v, err := askH1(ctx, p, request(t, bytes.Repeat([]byte("x"), c.body)), time.Minute)
			close(left)
			if !errors.Is(err, h1.ErrCanceled) || time.Since(begun) > 10*time.Second {
				t.Errorf("tls=%t, %s: %s, %v after %s", secure, name, v, err, time.Since(begun))
			}
			<-over
		}
	}
	// While connecting, and before it began.
	ctx, leave := context.WithCancel(t.Context())
	var dialed atomic.Int64
	p := h1.NewPool(h1.Config{Addr: "x", MaxIdle: 1, IdleTimeout: time.Minute, Dial: func(ctx context.Context, _ string) (*net.TCPConn, error) {
		dialed.Add(1)
		leave()
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	var d *h1.DialError
	if _, err := p.Do(ctx, request(t), within(time.Minute)); !errors.Is(err, h1.ErrCanceled) || !errors.As(err, &d) {
		t.Errorf("while connecting: %v", err)
	}
	if _, err := p.Do(ctx, request(t), within(time.Minute)); !errors.Is(err, h1.ErrCanceled) || dialed.Load() != 1 {
		t.Errorf("before it began: %v, %d dialed", err, dialed.Load())
	}
}

// TestLeavingLate: a context that ends after the answer was read whole, but
// before Close, costs the connection; after Close it costs nothing.
func TestLeavingLate(t *testing.T) {
	s := serve(t, false, saying(good))
	p := s.pool(t)
	for i, early := range []bool{false, true, false} {
		ctx, leave := context.WithCancel(t.Context())
		r, err := p.Do(ctx, request(t), within(patient))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
		if early {
			leave()
		}
		_ = r.Close()
		leave()
		if want := []int64{1, 1, 2}[i]; s.conns.Load() != want {
			t.Errorf("request %d: %d connections, want %d", i, s.conns.Load(), want)
		}
	}
}

// TestDeadlines: a deadline may be moved either way while the answer is read,
// and that of an earlier request on the connection means nothing to a later one.
func TestDeadlines(t *testing.T) {
	for _, secure := range []bool{false, true} {
		var more chan struct{}
		var s *server
		var p *h1.Pool
		var r *h1.Response
		var due time.Time
		for first := 100 * time.Millisecond; r == nil; first *= 2 { // it is about what follows a head that came in time
			two := make(chan struct{})
			s = serve(t, secure, func(c *talk) {
				for c.request() {
					c.say(ok + chunked + "1\r\na\r\n")
					select {
					case <-two:
						c.say("1\r\nb\r\n0\r\n\r\n")
					case <-t.Context().Done():
					}
				}
			})
			more, p, due = two, s.pool(t), within(first)
			var err error
			if r, err = p.Do(t.Context(), request(t), due); err != nil && (!errors.Is(err, h1.ErrTimeout) || first > patient) {
				t.Fatal(err)
			}
		}
		read := func(r *h1.Response) (string, error) {
			b, err := io.ReadAll(r)
			_ = r.Close()
			return string(b), err
		}
		r.Deadline(within(patient))
		time.AfterFunc(time.Until(due)+100*time.Millisecond, func() { more <- struct{}{} })
		if b, err := read(r); b != "ab" || err != nil {
			t.Errorf("tls=%t, later: %q, %v", secure, b, err)
		}
		again := func() *h1.Response {
			r, err := p.Do(t.Context(), request(t), within(patient))
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		dialed := s.dialed.Load()
		r = again()
		more <- struct{}{}
		if b, err := read(r); b != "ab" || err != nil || s.dialed.Load() != dialed {
			t.Errorf("tls=%t, on the same connection: %q, %v, %d connections more", secure, b, err, s.dialed.Load()-dialed)
		}
		r = again()
		if b, err := io.ReadAll(io.LimitReader(r, 1)); string(b) != "a" || err != nil {
			t.Errorf("tls=%t: %q, %v", secure, b, err)
		}
		r.Deadline(within(100 * time.Millisecond))
		if b, err := read(r); b != "" || !errors.Is(err, h1.ErrTimeout) {
			t.Errorf("tls=%t, earlier: %q, %v", secure, b, err)
		}
		more <- struct{}{}
		r = again()
		due = within(100 * time.Millisecond)
		r.Deadline(due)
		r.Deadline(within(time.Minute))
		time.AfterFunc(time.Until(due)+100*time.Millisecond, func() { more <- struct{}{} })
		if b, err := read(r); b != "ab" || err != nil {
			t.Errorf("tls=%t, earlier, then later: %q, %v", secure, b, err)
		}
		if n := s.dialed.Load() - dialed; n != 1 {
			t.Errorf("tls=%t: %d connections more", secure, n)
		}
	}
	p := h1.NewPool(h1.Config{Addr: "x", Dial: func(ctx context.Context, _ string) (*net.TCPConn, error) { <-ctx.Done(); return nil, ctx.Err() }})
	if _, err := p.Do(t.Context(), request(t), within(50*time.Millisecond)); !errors.Is(err, h1.ErrTimeout) {
		t.Errorf("while connecting: %v", err)
	}
}

// TestNotAskedTwice: what may have been seen by a connection that never served
// before, or that was silent, is not asked again.
func TestNotAskedTwice(t *testing.T) {
	s := serve(t, false, func(c *talk) { c.request() })
	if v, _ := askH1(t.Context(), s.pool(t), request(t), patient); v.Failed != "head" || s.conns.Load() != 1 {
		t.Errorf("fresh: %s, %d connections", v, s.conns.Load())
	}
	s = serve(t, false, func(c *talk) {
		c.request()
		c.say(good)
		c.wait()
	})
	p := s.pool(t)
	_, _ = askH1(t.Context(), p, request(t), patient)
	if v, _ := askH1(t.Context(), p, request(t), 200*time.Millisecond); v.Failed != "head: timeout" || s.conns.Load() != 1 {
		t.Errorf("silent: %s, %d connections", v, s.conns.Load())
	}
	// A request that was read, on a connection that served before.
	for name, end := range map[string]func(c *talk){"closed": func(c *talk) { _ = c.Close() }, "reset": (*talk).reset} {
		var asked atomic.Int64
		s = serve(t, false, func(c *talk) {
			for c.request() {
				if asked.Add(1) == 2 {
					end(c)
					return
				}
				c.say(good)
			}
		})
		p = s.pool(t)
		_, _ = askH1(t.Context(), p, request(t), patient)
		if v, _ := askH1(t.Context(), p, request(t), patient); v.Failed != "head" || asked.Load() != 2 || s.conns.Load() != 1 {
			t.Errorf("%s: %s, asked %d times over %d connections", name, v, asked.Load(), s.conns.Load())
		}
	}
}

func TestTLS(t *testing.T) {
	resumed, versions := make(chan bool, 10), make(chan uint16, 10)
	s := serve(t, true, func(c *talk) {
		if c.request() {
			state := c.Conn.(*tls.Conn).ConnectionState()
			resumed <- state.DidResume
			versions <- state.Version
			c.say(ok + "Connection: close\r\n" + five)
		}
	})
	p := s.pool(t)
	for i := range 3 {
		if v, err := askH1(t.Context(), p, request(t), patient); v.Body != "hello" {
			t.Fatal(v, err)
		}
		if got := <-resumed; got != (i > 0) {
			t.Errorf("connection %d resumed a session: %t", i, got)
		}
		if v := <-versions; v != tls.VersionTLS13 {
			t.Errorf("version %x", v)
		}
	}
	var d *h1.DialError
	var cert *tls.CertificateVerificationError
	if _, err := s.pool(t, func(c *h1.Config) { c.TLS.RootCAs = nil }).Do(t.Context(), request(t), within(patient)); !errors.As(err, &d) || !errors.As(err, &cert) {
		t.Errorf("unknown issuer: %v", err)
	}
	if _, err := s.pool(t, func(c *h1.Config) { c.TLS.ServerName = "other.example.org" }).Do(t.Context(), request(t), within(patient)); !errors.As(err, &d) || !errors.As(err, &cert) {
		t.Errorf("another name: %v", err)
	}
	if v, err := askH1(t.Context(), s.pool(t, func(c *h1.Config) { c.TLS.MaxVersion = tls.VersionTLS12 }), request(t), patient); v.Body != "hello" || <-versions != tls.VersionTLS12 {
		t.Errorf("TLS 1.2: %v, %v", v, err)
	}
	plain := serve(t, false, func(c *talk) { c.say("220 this is mail\r\n"); c.wait() })
	plain.secure = s.secure
	if _, err := plain.pool(t).Do(t.Context(), request(t), within(patient)); !errors.As(err, &d) {
		t.Errorf("no TLS: %v", err)
	}
	silent := serve(t, false, func(c *talk) { c.wait() })
	silent.secure = s.secure
	begun := time.Now()
	_, err := silent.pool(t, func(c *h1.Config) { c.Handshake = 100 * time.Millisecond }).Do(t.Context(), request(t), within(patient))
	if !errors.As(err, &d) || !d.Timeout() || time.Since(begun) > 5*time.Second {
		t.Errorf("a handshake that stalls: %v", err)
	}
}

// TestHTTP2IsLeftToOthers: what a host speaks is found out once, and again
// when asked to.
func TestHTTP2IsLeftToOthers(t *testing.T) {
	var speaks atomic.Value
	speaks.Store("h2")
	var dialed atomic.Int64
	s := serve(t, true, func(c *talk) { saying(good)(c) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var group errgroup.Group
	defer func() { _ = l.Close(); _ = group.Wait() }()
	group.Go(func() error {
		for {
			raw, err := l.Accept()
			if err != nil {
				return nil //nolint:nilerr // closed
			}
			dialed.Add(1)
			conn := tls.Server(raw, &tls.Config{Certificates: s.secure.TLS.Certificates, NextProtos: []string{speaks.Load().(string)}})
			group.Go(func() error {
				defer func() { _ = conn.Close() }()
				c := &talk{Conn: conn, server: s}
				c.br = newBuffered(conn)
				saying(good)(c)
				return nil
			})
		}
	})
	s.addr = l.Addr().String()
	p := s.pool(t)
	for range 3 {
		if _, err := p.Do(t.Context(), request(t), within(patient)); !errors.Is(err, h1.ErrHTTP2) {
			t.Fatal(err)
		}
	}
	if dialed.Load() != 1 {
		t.Errorf("asked %d times what it speaks", dialed.Load())
	}
	speaks.Store("http/1.1")
	p.Relearn()
	if v, err := askH1(t.Context(), p, request(t), patient); v.Body != "hello" {
		t.Error(v, err)
	}
	p.Close()
}
