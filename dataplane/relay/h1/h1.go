// Package h1 asks one upstream over pooled HTTP/1.1 connections, without
// goroutines or timers of its own for a request: whoever asks writes and reads
// the connection himself, and its deadlines end what takes too long.
//
// It serves what a gateway asks of providers: a request whose body is in
// memory, an answer that is read as it comes. It follows no redirect, keeps no
// cookie, undoes no compression, and of an answer's head it keeps what Head
// names and nothing else. An HTTP/2 server is not spoken to: ErrHTTP2.
package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Error is a failure whose text is fixed: it holds nothing that was received.
type Error string

func (e Error) Error() string { return string(e) }

// Failures that callers tell apart. All are of this package; beside them there
// are those of net and crypto/tls, and io.ErrUnexpectedEOF for an answer that
// was cut.
const (
	ErrHTTP2    = Error("the server chose HTTP/2: ask it over an HTTP/2 connection")
	ErrUpgrade  = Error("the server switched protocols, which was not asked for")
	ErrField    = Error("a request field holds bytes that a field cannot hold")
	ErrNoAnswer = Error("the connection ended before an answer came")
	ErrCanceled = Error("the request was given up: its context ended")

	errTooLong    = Error("the answer's head, or a line in it, is too long")
	errStatusLine = Error("what came is not an HTTP answer")
	errVersion    = Error("the answer is of an HTTP version that was not asked for")
	errField      = Error("a field in the answer's head is not one")
	errBareLF     = Error("a line of the answer's head does not end as it must")
	errLength     = Error("the answer's content-length is none, or there are two")
	errTransfer   = Error("the answer has a transfer-encoding other than chunked")
	errBoth       = Error("the answer has both a content-length and a transfer-encoding")
	errChunk      = Error("the answer's chunks are not what they must be")
	errInterim    = Error("too many interim answers")
	errAnswered   = Error("the answer came before the request was sent")
	errClosed     = Error("read after Close")
)

// waited is a failure that a reader may go on after; crypto/tls asks for it.
type waited struct{ text string }

func (w waited) Error() string { return w.text }
func (waited) Timeout() bool   { return true }
func (waited) Temporary() bool { return true }

var (
	// ErrTimeout says that the deadline passed.
	ErrTimeout net.Error = waited{"the connection's deadline passed"}
	errNothing net.Error = waited{"nothing has come"}
)

// DialError marks a failure to connect, or one before that: the other side saw
// nothing of the request.
type DialError struct{ Err error }

func (e *DialError) Error() string { return e.Err.Error() }
func (e *DialError) Unwrap() error { return e.Err }

// Timeout says that connecting took too long.
func (e *DialError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// Config of a Pool.
type Config struct {
	Addr string // host:port
	// TLS to speak, with ServerName and NextProtos set; nil = plain TCP.
	TLS *tls.Config
	// Dial opens a connection within what ctx allows.
	Dial        func(ctx context.Context, addr string) (*net.TCPConn, error)
	Handshake   time.Duration // for TLS
	MaxIdle     int           // connections kept
	IdleTimeout time.Duration // for which they are kept
}

// Pool asks one host. It keeps connections that may serve again, the one used
// last on top. It is safe for concurrent use.
type Pool struct {
	cfg   Config
	http2 atomic.Bool

	mu     sync.Mutex
	idle   []*conn // by the time they came back
	reaper *time.Timer
	closed bool
}

// NewPool makes a Pool. Close it.
func NewPool(cfg Config) *Pool { return &Pool{cfg: cfg} }

// Close drops idle connections; those in use are dropped when they come back.
func (p *Pool) Close() {
	p.mu.Lock()
	idle := p.idle
	p.idle, p.closed = nil, true
	if p.reaper != nil {
		p.reaper.Stop()
	}
	p.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
}

// Relearn forgets that the host speaks HTTP/2.
func (p *Pool) Relearn() { p.http2.Store(false) }

// take gives the idle connection used last, if it lives.
func (p *Pool) take() *conn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n-1]
		p.idle[n-1] = nil
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if time.Since(c.since) < p.cfg.IdleTimeout && c.quiet() {
			return c
		}
		c.close()
	}
}

// put takes a connection back.
func (p *Pool) put(c *conn) {
	c.since = time.Now()
	p.mu.Lock()
	keep := !p.closed && len(p.idle) < p.cfg.MaxIdle
	if keep {
		p.idle = append(p.idle, c)
		switch {
		case len(p.idle) > 1: // it runs
		case p.reaper == nil:
			p.reaper = time.AfterFunc(p.cfg.IdleTimeout, p.reap)
		default:
			p.reaper.Reset(p.cfg.IdleTimeout)
		}
	}
	p.mu.Unlock()
	if !keep {
		c.close()
	}
}

// reap drops the connections that were idle for too long, and comes again when
// the next one will have been.
func (p *Pool) reap() {
	now := time.Now()
	p.mu.Lock()
	n := 0
	for n < len(p.idle) && now.Sub(p.idle[n].since) >= p.cfg.IdleTimeout {
		n++
	}
	old := append([]*conn(nil), p.idle[:n]...)
	rest := copy(p.idle, p.idle[n:])
	clear(p.idle[rest:])
	p.idle = p.idle[:rest]
	if rest > 0 {
		p.reaper.Reset(p.cfg.IdleTimeout - now.Sub(p.idle[0].since))
	}
	p.mu.Unlock()
	for _, c := range old {
		c.close()
	}
}

// Do sends req and reads the head of its answer. It gives up at due, or when
// ctx ends; so does reading the answer (see Response.Deadline).
//
// A connection that served before and had ended before the server can have
// read the request is replaced once by a new one: servers close idle
// connections at the very moment that they are used again. A request that may
// have been read is not repeated: that is an attempt, and the caller's to make.
func (p *Pool) Do(ctx context.Context, req *Request, due time.Time) (*Response, error) {
	if p.http2.Load() {
		return nil, ErrHTTP2
	}
	if ctx.Err() != nil {
		return nil, &DialError{ErrCanceled}
	}
	if !req.valid() {
		return nil, &DialError{ErrField}
	}
	if c := p.take(); c != nil {
		resp, err := c.ask(ctx, req, due)
		if err == nil || !c.dead {
			return resp, err
		}
	}
	c, err := p.dial(ctx, due)
	if err != nil {
		return nil, err
	}
	return c.ask(ctx, req, due)
}

func (p *Pool) dial(ctx context.Context, due time.Time) (*conn, error) {
	within, cancel := context.WithDeadline(ctx, due)
	defer cancel()
	c, err := p.connect(within, due)
	switch {
	case err == nil || errors.Is(err, ErrHTTP2):
		return c, err
	case ctx.Err() != nil:
		err = ErrCanceled
	case !time.Now().Before(due):
		err = ErrTimeout
	}
	return nil, &DialError{err}
}

func (p *Pool) connect(ctx context.Context, due time.Time) (*conn, error) {
	tcp, err := p.cfg.Dial(ctx, p.cfg.Addr)
	if err != nil {
		return nil, err
	}
	s, err := newSocket(tcp)
	if err != nil {
		return nil, errors.Join(err, tcp.Close())
	}
	if p.cfg.TLS == nil {
		return newConn(p, s, s), nil
	}
	t := tls.Client(s, p.cfg.TLS)
	within, cancel := context.WithTimeout(ctx, p.cfg.Handshake)
	defer cancel()
	s.due = due
	if limit := time.Now().Add(p.cfg.Handshake); limit.Before(due) {
		s.due = limit
	}
	if err := t.HandshakeContext(within); err != nil {
		return nil, errors.Join(err, ignoreClosed(tcp.Close()))
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		p.http2.Store(true)
		_ = t.Close()
		return nil, ErrHTTP2
	}
	return newConn(p, s, t), nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
