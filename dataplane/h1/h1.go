// Package h1 is the server side of HTTP/1.1 for the listener of clients. It
// takes the place of net/http's own: a connection's goroutine reads a request,
// runs its handler and writes the answer, and nothing else runs unless the
// answer takes long. Clients that speak something else (HTTP/2) are handed to
// the http.Server.
//
// It knows http.Handler and http.Server, and nothing of what is served. Hijacking,
// full duplex, trailers, HTTP without TLS and keep-alive with HTTP/1.0 are left out.
package h1

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Server serves the clients of one listener.
type Server struct {
	hs     *http.Server
	limits limits

	mu       sync.Mutex
	listener net.Listener
	others   *handoff
	conns    map[*conn]struct{}
	gone     bool          // no new connections
	empty    chan struct{} // not nil = somebody waits for the last connection to end
	closed   chan struct{} // by Close
	running  sync.WaitGroup
}

// limits of each connection, from the http.Server's fields, with the defaults in brackets.
type limits struct {
	head      int           // bytes of a request's head [1 MiB], and 4 KiB
	handshake time.Duration // [none]
	header    time.Duration // for a request's head, from its first byte, or the handshake [none]
	request   time.Duration // for head and body [none]
	answer    time.Duration // to write it, from its head on [none]
	idle      time.Duration // between requests [none]
	stall     time.Duration // a client that takes nothing for so long is cut off, or after half of it
}

// New has clients of hs that speak HTTP/1.1 be served by this package, as its
// fields say: Handler, TLSConfig, BaseContext, ConnContext, ErrorLog, the times
// and MaxHeaderBytes. They do not change afterwards. stall is how long a client
// may take nothing of what is written to it [60 s]; half of it at least.
func New(hs *http.Server, stall time.Duration) *Server {
	l := limits{
		head: cmp.Or(hs.MaxHeaderBytes, http.DefaultMaxHeaderBytes) + 4<<10, request: hs.ReadTimeout, answer: hs.WriteTimeout,
		header: cmp.Or(hs.ReadHeaderTimeout, hs.ReadTimeout), idle: cmp.Or(hs.IdleTimeout, hs.ReadTimeout), stall: cmp.Or(stall, time.Minute),
	}
	for _, d := range []time.Duration{hs.ReadHeaderTimeout, hs.ReadTimeout, hs.WriteTimeout} {
		if d > 0 && (l.handshake == 0 || d < l.handshake) {
			l.handshake = d
		}
	}
	return &Server{hs: hs, limits: l, conns: make(map[*conn]struct{}), closed: make(chan struct{})}
}

// ServeTLS serves what l accepts until Shutdown or Close, then returns
// http.ErrServerClosed. l is closed in any case.
func (s *Server) ServeTLS(l net.Listener) error {
	others := &handoff{addr: l.Addr(), conns: make(chan net.Conn), closed: make(chan struct{})}
	s.mu.Lock()
	if s.gone {
		s.mu.Unlock()
		return errors.Join(http.ErrServerClosed, l.Close())
	}
	s.listener, s.others = l, others
	s.mu.Unlock()
	ended := make(chan error, 1)
	go func() { ended <- s.hs.Serve(others) }()
	err := s.accept(l)
	_ = l.Close() // it has ended
	_ = others.Close()
	theirs := <-ended
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return http.ErrServerClosed
	}
	if theirs != nil && !errors.Is(theirs, net.ErrClosed) {
		err = theirs
	}
	return fmt.Errorf("h1: %w", err)
}

// accept starts a goroutine for each connection.
func (s *Server) accept(l net.Listener) error {
	ctx := context.Background()
	if s.hs.BaseContext != nil {
		ctx = s.hs.BaseContext(l)
	}
	ctx = context.WithValue(ctx, http.ServerContextKey, s.hs)
	var pause time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			pause = 0
			s.start(ctx, nc)
			continue
		}
		var ne net.Error
		if !errors.As(err, &ne) || !ne.Temporary() { //nolint:staticcheck // out of files, mostly
			return err //nolint:wrapcheck // the caller does
		}
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		s.logf("http: Accept error: %v; retrying in %v", err, pause)
		select {
		case <-time.After(pause):
		case <-s.closed:
		}
	}
}

func (s *Server) start(ctx context.Context, nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		_ = nc.Close() // nothing was said
		return
	}
	s.conns[c] = struct{}{}
	s.running.Go(func() {
		defer s.remove(c)
		c.run(ctx)
	})
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if len(s.conns) == 0 && s.empty != nil {
		close(s.empty)
		s.empty = nil
	}
}

// stop takes no more connections, and gives those there are.
func (s *Server) stop() (conns []*conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.listener != nil {
		err = s.listener.Close()
	}
	for c := range s.conns {
		conns = append(conns, c)
	}
	return conns, err
}

// Shutdown takes no more connections and ends those that are idle; others end
// with their present answer. It returns when all have ended, those of the
// http.Server too, or when ctx does.
func (s *Server) Shutdown(ctx context.Context) error {
	conns, err := s.stop()
	if errors.Is(err, net.ErrClosed) { // by an earlier call
		err = nil
	}
	for _, c := range conns {
		c.retire()
	}
	s.mu.Lock()
	empty := s.empty
	if len(s.conns) > 0 && empty == nil {
		empty = make(chan struct{})
		s.empty = empty
	}
	s.mu.Unlock()
	err = errors.Join(err, s.hs.Shutdown(ctx))
	if empty != nil {
		select {
		case <-empty:
		case <-ctx.Done():
			return errors.Join(err, fmt.Errorf("h1: %w", ctx.Err()))
		}
	}
	return err
}

// Close ends everything at once, and waits for nobody.
func (s *Server) Close() error {
	conns, err := s.stop()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	s.mu.Lock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	s.mu.Unlock()
	for _, c := range conns {
		_ = c.below.Close() // its goroutine ends with that
	}
	return errors.Join(err, s.hs.Close())
}

func (s *Server) logf(format string, args ...any) {
	if l := s.hs.ErrorLog; l != nil {
		l.Printf(format, args...)
	}
}

// handoff is the listener by which connections that speak something else reach
// the http.Server, their handshake done.
type handoff struct {
	addr   net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (h *handoff) Accept() (net.Conn, error) {
	select {
	case nc := <-h.conns:
		return nc, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handoff) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handoff) Addr() net.Addr { return h.addr }

func (h *handoff) give(nc net.Conn) {
	select {
	case h.conns <- nc:
	case <-h.closed:
		_ = nc.Close() // as http.Server does with what it did not begin
	}
}

// handshake finds out what the client speaks. false: not HTTP/1.1, and it is
// somebody else's, or over.
func (c *conn) handshake(ctx context.Context) bool {
	o := &out{Conn: c.below}
	tc := tls.Server(o, c.s.hs.TLSConfig)
	if d := c.limits.handshake; d > 0 {
		c.armed = time.Now().Add(d)
		c.writing = c.armed
		_ = c.below.SetDeadline(c.armed) // a connection that is closed says so when it is used
	}
	if !c.idle(true) {
		_ = c.below.Close() // nothing was said
		return false
	}
	if err := tc.HandshakeContext(ctx); err != nil {
		reason := err.Error()
		var plain tls.RecordHeaderError
		if errors.As(err, &plain) && plain.Conn != nil && looksLikeHTTP(plain.RecordHeader) {
			_, _ = io.WriteString(c.below, "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n") // best effort
			c.linger(false)
			reason = "client sent an HTTP request to an HTTPS server"
		}
		_ = c.below.Close()
		c.s.logf("http: TLS handshake error from %s: %s", c.remote, reason)
		return false
	}
	if !c.idle(false) {
		_ = c.below.Close() // nothing was asked
		return false
	}
	c.writing = time.Time{}
	_ = c.below.SetWriteDeadline(c.writing) // crypto/tls answers a change of keys by itself
	state := tc.ConnectionState()
	c.nc, c.tls = tc, &state
	switch state.NegotiatedProtocol {
	case "", "http/1.1", "http/1.0":
		o.c = c
		return true
	}
	c.s.others.give(tc)
	return false
}

// looksLikeHTTP reports whether what came instead of TLS began as a request does.
func looksLikeHTTP(b [5]byte) bool {
	switch string(b[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO":
		return true
	}
	return false
}
