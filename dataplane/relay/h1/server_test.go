package h1_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/dataplane/relay/h1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// talk is the server's side of one connection, played by a script.
type talk struct {
	net.Conn
	tcp *net.TCPConn
	br  *bufio.Reader
	n   int // the connection's number, from 1

	server          *server
	heard, verdicts int64 // the server's, when the connection began
}

// request reads one whole request; false: none came.
func (c *talk) request() bool {
	c.server.busy.Add(-1)
	defer c.server.busy.Add(1)
	q, err := http.ReadRequest(c.br)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, q.Body)
	return err == nil
}

// headOnly reads a request's head, and leaves its body.
func (c *talk) headOnly() bool {
	c.server.busy.Add(-1)
	defer c.server.busy.Add(1)
	_, err := http.ReadRequest(c.br)
	return err == nil
}

func (c *talk) say(s string) { _, _ = io.WriteString(c.Conn, s) }

// reset breaks the connection at once.
func (c *talk) reset() {
	_ = c.tcp.SetLinger(0)
	_ = c.tcp.Close()
}

// wait keeps the connection open until the other side closes it.
func (c *talk) wait() {
	c.server.busy.Add(-1)
	defer c.server.busy.Add(1)
	_, _ = io.Copy(io.Discard, c.br)
}

// hush says that nothing follows, and waits.
func (c *talk) hush() {
	c.server.silent <- struct{}{}
	c.wait()
}

// untilHeard waits until the client has read what it is to hear, see behaviour.
func (c *talk) untilHeard() { c.until(&c.server.heard, c.heard) }

// hold leaves the connection as it is until the client has its verdict.
func (c *talk) hold() {
	c.server.busy.Add(-1)
	defer c.server.busy.Add(1)
	c.until(&c.server.verdicts, c.verdicts)
}

// until waits until a count is no more what it was when the connection began.
func (c *talk) until(count *atomic.Int64, was int64) {
	for count.Load() == was && !c.server.over.Load() {
		time.Sleep(time.Millisecond)
	}
}

type server struct {
	addr   string
	secure *httptest.Server // its certificate, if it speaks TLS
	silent chan struct{}    // told by scripts that fall silent
	over   atomic.Bool      // the test is

	conns atomic.Int64 // accepted
	busy  atomic.Int64 // of those, how many do not wait for the other side
	ended atomic.Int64 // of those, how many are over

	dialed   atomic.Int64 // by clients
	closed   atomic.Int64 // by net/http
	heard    atomic.Int64 // requests whose answer was read as far as the client is to hear it, see behaviour
	verdicts atomic.Int64 // requests that are over
}

// serve plays script on every connection, then closes it.
func serve(t testing.TB, secure bool, script func(c *talk)) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().String(), silent: make(chan struct{}, 10)}
	var config *tls.Config
	if secure {
		s.secure = certificate()
		config = &tls.Config{Certificates: s.secure.TLS.Certificates, NextProtos: []string{"http/1.1"}, DynamicRecordSizingDisabled: true}
	}
	var mu sync.Mutex
	var group sync.WaitGroup
	open := map[net.Conn]bool{}
	group.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[raw] = true
			mu.Unlock()
			group.Go(func() {
				c := &talk{Conn: raw, tcp: raw.(*net.TCPConn), n: int(s.conns.Add(1)), server: s, heard: s.heard.Load(), verdicts: s.verdicts.Load()}
				if secure {
					c.Conn = tls.Server(raw, config)
				}
				c.br = bufio.NewReader(c.Conn)
				s.busy.Add(1)
				script(c)
				_ = c.Close()
				s.ended.Add(1)
				s.busy.Add(-1)
			})
		}
	})
	t.Cleanup(func() {
		s.over.Store(true)
		_ = l.Close()
		mu.Lock()
		for c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		group.Wait()
	})
	return s
}

var certificate = sync.OnceValue(func() *httptest.Server {
	s := httptest.NewTLSServer(nil)
	s.Close()
	return s
})

func (s *server) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.secure.Certificate())
	return pool
}

func dialTCP(ctx context.Context, addr string) (*net.TCPConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func (s *server) pool(t testing.TB, change ...func(*h1.Config)) *h1.Pool {
	dial := func(ctx context.Context, addr string) (*net.TCPConn, error) {
		s.dialed.Add(1)
		return dialTCP(ctx, addr)
	}
	cfg := h1.Config{Addr: s.addr, Dial: dial, Handshake: 5 * time.Second, MaxIdle: 64, IdleTimeout: 90 * time.Second}
	if s.secure != nil {
		cfg.TLS = &tls.Config{RootCAs: s.roots(), ServerName: "example.com", NextProtos: []string{"h2", "http/1.1"},
			MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	}
	for _, f := range change {
		f(&cfg)
	}
	p := h1.NewPool(cfg)
	t.Cleanup(p.Close)
	return p
}

func (s *server) transport(t testing.TB) *http.Transport {
	tr := &http.Transport{DisableCompression: true, MaxResponseHeaderBytes: 64 << 10, MaxIdleConnsPerHost: 64}
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		s.dialed.Add(1)
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &watched{Conn: conn, closed: sync.OnceFunc(func() { s.closed.Add(1) })}, nil
	}
	if s.secure != nil {
		tr.TLSClientConfig = &tls.Config{RootCAs: s.roots(), ServerName: "example.com", MinVersion: tls.VersionTLS12}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// watched is a connection that tells when its client closes it.
type watched struct {
	net.Conn
	closed func()
}

func (w *watched) Close() error {
	defer w.closed()
	return w.Conn.Close()
}

func start(t testing.TB, method string) h1.Start {
	s, err := h1.NewStart(method, "/v1/chat/completions", "provider.example", h1.Field{Name: "Authorization", Value: "Bearer secret"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func request(t testing.TB, body ...[]byte) *h1.Request {
	return &h1.Request{Start: start(t, "POST"), Fields: []h1.Field{{Name: "Content-Type", Value: "application/json"}}, Body: body}
}

// verdict is what came of one request.
type verdict struct {
	Status int
	Body   string
	Failed string // "", head, body; with a timeout, "head: timeout"
}

const patient = 10 * time.Second

// askH1 asks once, and reads the answer whole.
func askH1(ctx context.Context, p *h1.Pool, req *h1.Request, within time.Duration) (verdict, error) {
	resp, err := p.Do(ctx, req, time.Now().Add(within))
	if err != nil {
		return verdict{Failed: failed("head", err)}, err
	}
	b, err := io.ReadAll(resp)
	_ = resp.Close()
	v := verdict{Status: resp.Status, Body: string(b)}
	if err != nil {
		v.Failed = failed("body", err)
	}
	return v, err
}

func failed(where string, err error) string {
	var t interface{ Timeout() bool }
	if errors.As(err, &t) && t.Timeout() || errors.Is(err, context.DeadlineExceeded) {
		return where + ": timeout"
	}
	return where
}

// askNet asks the same of net/http.
func askNet(ctx context.Context, tr *http.Transport, s *server, method string, body []byte, within time.Duration) verdict {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	return roundTrip(ctx, tr, s, method, body, io.ReadAll)
}

// roundTrip asks net/http once, and has the answer read.
func roundTrip(ctx context.Context, tr *http.Transport, s *server, method string, body []byte, read func(io.Reader) ([]byte, error)) verdict {
	scheme := "http://"
	if s.secure != nil {
		scheme = "https://"
	}
	q, err := http.NewRequestWithContext(ctx, method, scheme+s.addr+"/v1/chat/completions", newReader(body))
	if err != nil {
		return verdict{Failed: err.Error()}
	}
	q.Header.Set("content-type", "application/json")
	resp, err := tr.RoundTrip(q)
	if err != nil {
		return verdict{Failed: failed("head", err)}
	}
	if resp.StatusCode == http.StatusSwitchingProtocols { // its body is the connection, without any bound
		_ = resp.Body.Close()
		return verdict{Status: resp.StatusCode}
	}
	b, err := read(resp.Body)
	_ = resp.Body.Close()
	v := verdict{Status: resp.StatusCode, Body: string(b)}
	if err != nil {
		v.Failed = failed("body", err)
	}
	return v
}
