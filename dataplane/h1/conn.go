package h1

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// watchAfter is how long a request runs before anybody looks whether its
	// client is still there: most are answered by then.
	watchAfter  = 40 * time.Millisecond
	lingerWait  = 2 * time.Second        // after the last answer, so that the client reads it before the connection is reset
	lingerBytes = 64 << 20               // some clients send all of a body before they read an answer
	resetWait   = 500 * time.Millisecond // the same, where nothing more may be read
)

var past = time.Unix(1, 0)

// conn is one connection. Its own goroutine does everything, but for noticing
// that the client left while a handler runs for long, see watch.
type conn struct {
	s      *Server
	limits *limits
	below  net.Conn // that TLS is spoken on
	nc     net.Conn // speaks TLS, through out
	tls    *tls.ConnectionState
	remote string
	ctx    context.Context //nolint:containedctx // those of requests are below it

	gone    atomic.Bool          // the client is, or the server ends: nobody waits for an answer
	current atomic.Pointer[life] // of the request that is being answered

	in      source
	posted  bool      // the last request was a POST
	failed  error     // of a write: nothing more goes out
	writing time.Time // the socket's write deadline; out's
	first   [1]byte   // what wait or watch read

	mu      sync.Mutex
	writeBy time.Time // what is written now must be taken by then; zero = between half a stall and a whole one
	readBy  time.Time // what is read now must have come by then; zero = at any time
	armed   time.Time // the socket's read deadline, which may be earlier: then it is set anew
	leaving bool      // no more requests
	waiting bool      // for a request
	watcher *time.Timer
	watched bool      // a handler runs, and has read all of its request
	looking bool      // watch reads
	looked  sync.Cond // it does not any more
	early   bool      // first is the beginning of the next request
}

func newConn(s *Server, nc net.Conn) *conn {
	c := &conn{s: s, limits: &s.limits, below: nc, remote: nc.RemoteAddr().String()}
	c.in.c = c
	c.looked.L = &c.mu
	return c
}

// run serves the connection to its end.
func (c *conn) run(ctx context.Context) {
	defer c.catch(c.below)
	ctx = context.WithValue(ctx, http.LocalAddrContextKey, c.below.LocalAddr())
	if c.handshake(ctx) {
		c.serve(ctx)
	}
}

// serve answers requests until there are no more.
func (c *conn) serve(ctx context.Context) {
	defer c.nc.Close() // what there was to say is said
	defer c.catch(c.nc)
	if f := c.s.hs.ConnContext; f != nil {
		ctx = f(ctx, c.nc)
	}
	c.ctx = ctx
	defer context.AfterFunc(ctx, c.cancel)()
	defer c.unwatch() // where a handler ended its goroutine
	wait := c.limits.header
	for c.await(wait) {
		wait = c.limits.idle
		arrived := time.Now()
		c.setReadBy(arrived, c.limits.header)
		a, err := c.readRequest()
		if err != nil {
			c.refuse(err)
			return
		}
		if !c.answer(a, arrived) {
			return
		}
	}
}

// cancel ends the request that is being answered, and those that follow.
func (c *conn) cancel() {
	c.gone.Store(true)
	if l := c.current.Load(); l != nil {
		l.end()
	}
}

// catch ends a panic, of a handler mostly, with its connection.
func (c *conn) catch(end io.Closer) {
	p := recover()
	if p == nil {
		return
	}
	if p != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
		stack := make([]byte, 64<<10)
		c.s.logf("http: panic serving %v: %v\n%s", c.remote, p, stack[:runtime.Stack(stack, false)])
	}
	// The listener may hold the end back by a read that does not return: a client
	// that is cut off at once is back at once (edge does so with wrong keys).
	c.mu.Lock()
	c.readBy = past // for a goroutine that reads the body still, too
	_ = c.below.SetReadDeadline(past)
	c.mu.Unlock()
	_, _ = c.below.Read(make([]byte, 1)) // else it fails at once
	_ = end.Close()                      // nothing is left to say
}

// idle marks the connection as one that may be ended. false: it was told to go.
func (c *conn) idle(is bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = is && !c.leaving
	return !c.leaving
}

// setReadBy bounds the reading of what comes next; d = 0: it may take any time.
// What bounded the last answer bounds nothing that TLS says meanwhile.
func (c *conn) setReadBy(now time.Time, d time.Duration) {
	by := time.Time{}
	if d > 0 {
		by = now.Add(d)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy, c.writeBy = by, time.Time{}
}

// arm tells the runtime of readBy, if what it knows would fire too late. The
// caller holds mu.
func (c *conn) arm() {
	if !c.readBy.IsZero() && (c.armed.IsZero() || c.armed.After(c.readBy)) {
		c.armed = c.readBy
		_ = c.below.SetReadDeadline(c.armed) // a connection that is closed says so when it is read
	}
}

// again reports whether a read that ended with err is to be made again: the
// socket's deadline was an earlier one than that which holds now. The caller
// holds mu.
func (c *conn) again(err error) bool {
	if !errors.Is(err, os.ErrDeadlineExceeded) || !c.readBy.IsZero() && !time.Now().Before(c.readBy) {
		return false
	}
	c.armed = c.readBy
	_ = c.below.SetReadDeadline(c.armed)
	return true
}

// read reads what comes, by readBy.
func (c *conn) read(p []byte) (int, error) {
	c.mu.Lock()
	c.arm()
	c.mu.Unlock()
	for {
		n, err := c.nc.Read(p)
		if n > 0 || err == nil {
			return n, nil // an error comes again with the next read
		}
		c.mu.Lock()
		again := c.again(err)
		c.mu.Unlock()
		if !again {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				c.cancel() // nobody waits for the answer
			}
			return 0, err //nolint:wrapcheck // whoever reads knows what it means
		}
	}
}

// await waits for the beginning of a request, without memory for it. false:
// there will be none. One that is in memory is answered even if the connection is
// to end: its client does not know that yet, and might ask for it twice.
func (c *conn) await(most time.Duration) bool {
	if c.early || c.in.r < c.in.w {
		return true
	}
	c.in.release()
	c.setReadBy(time.Now(), most)
	for {
		c.mu.Lock()
		if c.leaving {
			c.mu.Unlock()
			return false
		}
		c.waiting = true
		c.arm()
		c.mu.Unlock()
		n, err := c.nc.Read(c.first[:])
		c.mu.Lock()
		c.waiting = false
		c.early = n > 0
		over := c.early || c.leaving || !c.again(err)
		c.mu.Unlock()
		if over {
			return c.early
		}
	}
}

// retire ends the connection: at once if it is idle, else with its answer.
func (c *conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaving = true
	if c.waiting {
		_ = c.below.SetReadDeadline(past)
	}
}

// watch reads while a handler runs that takes long: the end of the connection
// ends the request. It stops at the beginning of another request.
func (c *conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.watched || c.looking || c.early {
		return
	}
	c.looking, c.armed = true, time.Time{}
	_ = c.below.SetReadDeadline(c.armed)
	c.mu.Unlock()
	n, err := c.nc.Read(c.first[:])
	c.mu.Lock()
	c.looking = false
	c.looked.Signal()
	switch {
	case n > 0:
		c.early = true
	case err != nil && c.watched:
		c.cancel()
	}
}

// allRead notes that all of the request has come: no memory is needed for it, and
// if its answer takes long, watch looks whether the client is still there.
func (c *conn) allRead() {
	if c.in.r == c.in.w {
		c.in.release()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watched = true
	if c.watcher == nil {
		c.watcher = time.AfterFunc(watchAfter, c.watch)
		return
	}
	c.watcher.Reset(watchAfter)
}

// unwatch ends that.
func (c *conn) unwatch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.watched {
		return
	}
	c.watched = false
	c.watcher.Stop()
	for c.looking {
		c.armed = past // the next read sets it anew, see again
		_ = c.below.SetReadDeadline(past)
		c.looked.Wait()
	}
}

// send writes to the client, who has until by to take it; zero = between half a
// stall and a whole one.
func (c *conn) send(b []byte, by time.Time) error {
	if c.failed != nil {
		return c.failed
	}
	c.mu.Lock()
	c.writeBy = by
	c.mu.Unlock()
	_, err := c.nc.Write(b)
	if !by.IsZero() { // it bounds nothing that TLS says before the next write
		c.mu.Lock()
		c.writeBy = time.Time{}
		c.mu.Unlock()
	}
	if err != nil {
		c.failed = err
		c.cancel()
	}
	return c.failed
}

// out is what TLS writes to. The time to take it begins here, since crypto/tls
// writes by itself, too: it answers a change of keys amid a read, when that of
// the last answer may be long over.
type out struct {
	net.Conn
	c *conn // nil = somebody else keeps the time
}

// Write has one caller at a time, as crypto/tls makes sure of.
func (o *out) Write(b []byte) (int, error) {
	if c := o.c; c != nil {
		c.mu.Lock()
		by := c.writeBy
		c.mu.Unlock()
		if by.IsZero() {
			now := time.Now()
			by = c.writing
			if left := by.Sub(now); left < c.limits.stall/2 || left > c.limits.stall {
				by = now.Add(c.limits.stall)
			}
		}
		if !by.Equal(c.writing) {
			c.writing = by
			_ = o.Conn.SetWriteDeadline(by) // a connection that is closed says so when it is written to
		}
	}
	return o.Conn.Write(b) //nolint:wrapcheck // TLS compares it
}

// SetWriteDeadline is how crypto/tls bounds its farewell.
func (o *out) SetWriteDeadline(t time.Time) error {
	if o.c != nil {
		o.c = nil
	}
	return o.Conn.SetWriteDeadline(t) //nolint:wrapcheck // as it is
}

// NetConn is what lies under it.
func (o *out) NetConn() net.Conn { return o.Conn }

// refuse answers what is no request, where there is something to say.
func (c *conn) refuse(err error) {
	var bad refusal
	if !errors.As(err, &bad) {
		return
	}
	line := bad.line()
	if c.send([]byte("HTTP/1.1 "+line+"\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"+line), time.Time{}) == nil {
		c.linger(false)
	}
}

// linger waits until the client has read what was written last: a connection
// that is closed with bytes unread is reset, and with that the answer may be
// lost. deaf: what still comes must not be read.
func (c *conn) linger(deaf bool) {
	if tc, ok := c.nc.(*tls.Conn); ok {
		_ = tc.CloseWrite() // it may be closed already
	}
	if half, ok := c.below.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite() // likewise
	}
	if deaf {
		timer := time.NewTimer(resetWait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-c.ctx.Done():
		}
		return
	}
	_ = c.below.SetReadDeadline(time.Now().Add(lingerWait))
	_, _ = io.CopyN(io.Discard, c.below, lingerBytes)
}
