package h1

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestOnlyTheUnreadIsRepeated plays the moment that a look before use cannot
// see: the server ends the connection after it.
func TestOnlyTheUnreadIsRepeated(t *testing.T) {
	cert := httptest.NewTLSServer(nil)
	cert.Close()
	for _, secure := range []bool{false, true} {
		for name, x := range map[string]struct {
			script func(conn net.Conn, br *bufio.Reader)
			later  bool // there is time for a reset to arrive before the request goes out
			dead   bool
		}{
			"ended before": {func(conn net.Conn, _ *bufio.Reader) { _ = conn.Close() }, false, true},
			"reset before": {func(conn net.Conn, _ *bufio.Reader) { reset(conn) }, true, true},
			"ended after it was read": {func(conn net.Conn, br *bufio.Reader) {
				_, _ = http.ReadRequest(br)
				_ = conn.Close()
			}, false, false},
			"reset after it was read": {func(conn net.Conn, br *bufio.Reader) {
				_, _ = http.ReadRequest(br)
				reset(conn)
			}, false, false},
			"ended within the answer": {func(conn net.Conn, br *bufio.Reader) {
				_, _ = http.ReadRequest(br)
				_, _ = io.WriteString(conn, "HTTP/1.1 2")
				_ = conn.Close()
			}, false, false},
		} {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			taken, ended := make(chan bool), make(chan bool)
			go func() {
				defer close(ended)
				raw, err := l.Accept()
				if err != nil {
					return
				}
				conn := raw
				if secure {
					conn = tls.Server(raw, &tls.Config{Certificates: cert.TLS.Certificates})
				}
				br := bufio.NewReader(conn)
				if _, err := http.ReadRequest(br); err == nil {
					_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				}
				<-taken
				x.script(conn, br)
			}()
			cfg := Config{Addr: l.Addr().String(), Handshake: time.Second, MaxIdle: 1, IdleTimeout: time.Minute,
				Dial: func(_ context.Context, addr string) (*net.TCPConn, error) {
					conn, err := net.Dial("tcp", addr)
					if err != nil {
						return nil, err
					}
					return conn.(*net.TCPConn), nil
				}}
			if secure {
				cfg.TLS = &tls.Config{InsecureSkipVerify: true}
			}
			p := NewPool(cfg)
			start, err := NewStart("POST", "/", "h")
			if err != nil {
				t.Fatal(err)
			}
			req, due := &Request{Start: start}, time.Now().Add(10*time.Second)
			r, err := p.Do(t.Context(), req, due)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = r.Read(make([]byte, 1))
			_ = r.Close()
			c := p.take()
			if c == nil {
				t.Fatal("the connection was not kept")
			}
			taken <- true
			if x.dead {
				<-ended
			}
			if x.later {
				time.Sleep(50 * time.Millisecond)
			}
			if _, err := c.ask(t.Context(), req, due); err == nil || c.dead != x.dead {
				t.Errorf("tls=%t, %s: dead %t, %v", secure, name, c.dead, err)
			}
			_ = l.Close()
			<-ended
			p.Close()
		}
	}
}

func reset(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// speaks is what TLS does when the other side asks for new keys: it answers by
// itself before it reads on.
type speaks struct{ *socket }

func (s speaks) Read(p []byte) (int, error) {
	if s.how == waits {
		time.Sleep(50 * time.Millisecond) // until the other side has read and closed
		_, _ = s.Write([]byte("a record of TLS's own"))
	}
	return s.socket.Read(p)
}

// TestWhatTLSSaysIsNoRequest: bytes that TLS sends by itself while the answer
// is waited for may be lost; that does not make the request an unread one.
func TestWhatTLSSaysIsNoRequest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = http.ReadRequest(bufio.NewReader(conn))
			_ = conn.Close()
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := newSocket(conn.(*net.TCPConn))
	if err != nil {
		t.Fatal(err)
	}
	start, err := NewStart("POST", "/", "h")
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(NewPool(Config{}), s, speaks{s})
	if _, err := c.ask(t.Context(), &Request{Start: start}, time.Now().Add(5*time.Second)); err == nil || c.dead {
		t.Errorf("a request that was read may be repeated: %v", err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
