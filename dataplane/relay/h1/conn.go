package h1

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// conn is one connection: idle in its pool, or in use by one request.
type conn struct {
	pool  *Pool
	sock  *socket
	rw    net.Conn // sock, or TLS on it
	src   source
	since time.Time // idle since
	one   [1]byte
	dead  bool // it had ended before the request came to it
}

func newConn(p *Pool, s *socket, rw net.Conn) *conn {
	c := &conn{pool: p, sock: s, rw: rw}
	s.large = rw != net.Conn(s) // TLS asks for a record's head, then for the rest
	return c
}

var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// lend gives an idle connection a buffer; give takes it back.
func (c *conn) lend() {
	buf := buffers.Get().(*[bufferSize]byte) //nolint:forcetypeassert // only these are put
	c.src = source{from: c.rw, buf: buf[:]}
	if c.sock.large {
		c.src.ready = (*gatherer)(c)
	}
}

func (c *conn) give() {
	if len(c.src.buf) == bufferSize {
		buffers.Put((*[bufferSize]byte)(c.src.buf))
	}
	c.src.buf = nil
}

// quiet says that an idle connection is open and that nothing came on it: what
// comes unasked would be taken for the next answer.
func (c *conn) quiet() bool {
	n, err := c.glance(c.one[:])
	return n == 0 && errors.Is(err, errNothing) && !c.sock.came
}

// glance reads without waiting.
func (c *conn) glance(p []byte) (int, error) {
	c.sock.how, c.sock.came = looks, false
	n, err := c.rw.Read(p)
	c.sock.how = waits
	return n, err //nolint:wrapcheck // the caller looks for what it means
}

// gatherer reads what TLS has, and asks nobody: small records that came
// together are read together.
type gatherer conn

func (g *gatherer) Read(p []byte) (int, error) {
	if g.sock.lone {
		return 0, errNothing
	}
	g.sock.how = gathers
	n, err := g.rw.Read(p)
	g.sock.how = waits
	return n, err //nolint:wrapcheck // the source looks for what it means
}

// close ends an idle connection as it should be.
func (c *conn) close() {
	c.sock.due = time.Now() // a farewell that does not fit is not sent
	_ = c.rw.Close()
}

// abort ends a connection in use at once.
func (c *conn) abort() {
	_ = c.sock.Close()
	c.give()
}

// AfterFunc is context.AfterFunc. A context that can do it by itself is asked,
// which takes less memory.
func AfterFunc(ctx context.Context, f func()) (stop func() bool) {
	if own, ok := ctx.(interface {
		AfterFunc(f func()) (stop func() bool)
	}); ok {
		return own.AfterFunc(f)
	}
	return context.AfterFunc(ctx, f)
}

// ask sends req and reads the head of the answer. If it fails, the connection
// is closed.
func (c *conn) ask(ctx context.Context, req *Request, due time.Time) (*Response, error) {
	c.sock.due, c.sock.answered, c.sock.before, c.dead = due, false, c.sock.wrote, false
	c.lend()
	stop := AfterFunc(ctx, c.sock.doInterrupt)
	sent := c.send(req)
	c.sock.after = c.sock.wrote
	if len(c.sock.ahead) > 0 {
		c.overtaken() // it may be the answer, or what TLS says beside it
	}
	early := c.sock.answered
	if sent != nil && (errors.Is(sent, ErrTimeout) || errors.Is(sent, ErrCanceled)) {
		stop()
		c.abort()
		return nil, sent
	}
	// A server that refuses a request need not read it whole. Its answer may
	// wait behind the failure to send.
	h, err := c.src.head(req.Start.answerless)
	if err != nil {
		c.dead = !c.src.heard && !errors.Is(err, ErrTimeout) && !errors.Is(err, ErrCanceled) && c.sock.unread(err)
		stop()
		c.abort()
		switch {
		case c.src.heard || !errors.Is(err, io.EOF):
			return nil, cut(err)
		case sent != nil && !errors.Is(sent, errAnswered):
			return nil, sent
		}
		return nil, ErrNoAnswer
	}
	// Whoever answered before it had the request may take the rest of it, which
	// is a client's text, for the next one.
	r := &Response{Head: h, c: c, stop: stop, reusable: sent == nil && !early && h.reusable()}
	r.body.begin(&c.src, &h)
	return r, nil
}

// Response is an answer whose head is read. It is not safe for concurrent use.
// Close it.
type Response struct {
	Head

	c        *conn
	body     body
	stop     func() bool
	reusable bool
}

// Deadline moves the time at which reading is given up, with ErrTimeout.
func (r *Response) Deadline(t time.Time) {
	if r.c != nil {
		r.c.sock.due = t
	}
}

// Read gives content as soon as there is any, and waits only if there is none.
// An answer that ends too early ends with io.ErrUnexpectedEOF.
func (r *Response) Read(p []byte) (int, error) {
	if r.c == nil {
		return 0, errClosed
	}
	return r.body.read(p)
}

// Close gives the connection back if the answer was read whole and another may
// follow; otherwise it breaks it. It never waits.
func (r *Response) Close() error {
	c := r.c
	if c == nil {
		return nil
	}
	r.c = nil
	// If stop comes too late, the connection was interrupted, or is about to be.
	if !r.stop() || !r.reusable || !errors.Is(r.body.err, io.EOF) || c.src.r < c.src.w || len(c.sock.ahead) > 0 {
		c.abort()
		return nil
	}
	c.give()
	c.pool.put(c)
	return nil
}
