package h2

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/net/http2"
)

// Strangers bounds what connections may cost until a handler trusts who asks on
// them. Nothing is refused that waits for a bound of requests: it is not read
// meanwhile. So a handler that needs more of its connection than its request's
// head must call Trust, or have written a head, before it waits for that.
type Strangers struct {
	Each int // requests of one connection without an answer; 0 = nothing here is bounded
	All  int // such requests of all those connections; when there are as many, one of each connection's
	Open int // streams of one connection, those with answers that its client does not take included; more are refused, and can be sent again
	// OpenAll is such streams of all those connections; when there are as many, one of each connection's. 0 = not bounded.
	OpenAll int
}

// ConfigureWary is Configure with bounds for strangers.
func ConfigureWary(srv *http.Server, few Strangers) { configure(srv).strangers = few }

// Trust lifts the bounds for strangers from the connection. The handlers'
// http.ResponseWriter has it.
func (s *stream) Trust() {
	c := s.c
	if c.trusted.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.trusted.Swap(true) {
		c.server.unanswered.Add(-int64(c.unanswered))
		c.server.open.Add(-int64(len(c.streams)))
		c.fewer.Signal()
	}
}

// Rest has nothing more read from the connection for so long, and from then on
// one request at a time, unless a handler trusts who asks on it, before or after.
// The handlers' http.ResponseWriter has it; without Strangers it does nothing.
func (s *stream) Rest(d time.Duration) {
	c := s.c
	if c.server.strangers.Each == 0 || c.trusted.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	until := time.Now().Add(d)
	if c.err != nil || until.Before(c.rested) {
		return
	}
	c.rested = until
	if c.waker == nil {
		c.waker = time.AfterFunc(d, c.wake)
		context.AfterFunc(c.ctx, c.wake) // it ends with the connection
	} else {
		c.waker.Reset(d)
	}
}

// wake has the reader look again whether it may go on.
func (c *conn) wake() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fewer.Signal()
}

// asked counts a request that has no answer yet. The caller holds mu.
func (c *conn) asked(s *stream) {
	s.waits = true
	c.unanswered++
	if !c.trusted.Load() {
		c.server.unanswered.Add(1)
	}
}

// answered ends that: a head was sent, or the handler is over or never ran. The
// caller holds mu.
func (c *conn) answered(s *stream) {
	if !s.waits {
		return
	}
	s.waits = false
	c.unanswered--
	if !c.trusted.Load() {
		c.server.unanswered.Add(-1)
		c.fewer.Signal()
	}
}

// crowded reports whether nothing more is to be read for now. The caller holds mu.
func (c *conn) crowded() bool {
	few := &c.server.strangers
	switch {
	case c.err != nil:
		return false
	case len(c.out.frames) >= 2*enough: // bodies wait at half of it: heads, to a client that does not read
		return true
	case few.Each == 0 || c.trusted.Load():
		return false
	}
	each := few.Each
	if !c.rested.IsZero() {
		if !c.leaving && c.ctx.Err() == nil && time.Now().Before(c.rested) {
			return true
		}
		each = 1
	}
	return c.unanswered >= each || c.unanswered > 0 && (c.server.unanswered.Load() >= int64(few.All) || c.server.many())
}

// opened counts n more open streams of a connection. The caller holds mu.
func (c *conn) opened(n int) {
	if !c.trusted.Load() {
		c.server.open.Add(int64(n))
	}
}

// many reports whether strangers have as many streams open as they may.
func (s *server) many() bool {
	return s.strangers.OpenAll > 0 && s.open.Load() >= int64(s.strangers.OpenAll)
}

// full refuses a stream of a stranger who has too many. The caller holds mu.
func (c *conn) full(id uint32) error {
	few := &c.server.strangers
	most := few.Open
	if c.server.many() {
		most = 1
	}
	if few.Each == 0 || c.trusted.Load() || len(c.streams) < most {
		return nil
	}
	return streamError(id, http2.ErrCodeRefusedStream)
}
