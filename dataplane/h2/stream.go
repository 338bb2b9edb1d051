package h2

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

var errOver = errors.New("h2: the answer is over")

// stream is one request with its answer: its handler's http.ResponseWriter.
type stream struct {
	c      *conn
	id     uint32
	cancel context.CancelFunc
	r      *http.Request
	serves func(http.ResponseWriter, *http.Request)

	// Guarded by the connection's mu.
	err        error // it was reset, or the connection is broken
	endedIn    bool  // the client said all
	endedOut   bool  // so did the handler
	headSent   bool
	expects    bool  // 100-continue
	shut       bool  // the body is not read any more
	failed     error // a write did: how much of it was sent nobody knows
	queued     bool  // in the connection's queue
	waits      bool  // for its answer's head, see Strangers
	intake     intake
	body       body
	declaredIn int64 // length of the body; -1 = it was not
	got        int64
	readBy     time.Time
	readable   sync.Cond
	window     int64 // bytes that the client takes
	writeBy    time.Time
	writable   sync.Cond

	// The handler's.
	header   http.Header
	status   int     // 0 = no head was written
	held     []byte  // the head's block, then what is held back of the body
	buffer   *[]byte // that held began in
	head     int     // bytes of the block
	plain    bool    // needs no type: it has one, or nothing to be of a type
	bare     bool    // has no body
	last     bool    // the connection ends after it
	mute     bool    // what is written of the body is not sent: HEAD
	declared int64   // length of the answer; -1 = it was not
	wrote    int64
	over     bool // the handler returned
}

// holdBack is how much of an answer waits for more of it.
const holdBack = 4 << 10

// end ends a stream before its time. The caller holds mu.
func (s *stream) end(err error) {
	if s.err == nil {
		s.err = err
		s.cancel()
		s.readable.Broadcast()
		s.writable.Broadcast()
	}
}

// release gives up what is left of a stream whose handler is over. The caller holds mu.
func (s *stream) release() {
	s.c.answered(s)
	s.drop()
}

// drop gives up what came and was not read; who reads waits no more. The caller holds mu.
func (s *stream) drop() {
	s.shut = true
	s.readable.Broadcast()
	s.c.freed(nil, s.body.drop())
	s.c.flushSoon()
}

// serve runs the handler, and ends the answer as it left it.
func (s *stream) serve() {
	defer s.cancel()
	defer func() {
		s.over = true
		if s.buffer != nil {
			giveBack(s.buffer, s.held)
			s.held, s.buffer = nil, nil
		}
	}()
	returned := false
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
			stack := make([]byte, 64<<10)
			s.c.logf("http2: panic serving %v: %v\n%s", s.c.remote, p, stack[:runtime.Stack(stack, false)])
		}
		s.finish(returned)
	}()
	s.serves(s, s.r)
	returned = true
}

// finish ends the answer. One that is not whole is reset, so that nobody takes
// it for whole.
func (s *stream) finish(returned bool) {
	if returned {
		if s.status == 0 {
			s.WriteHeader(http.StatusOK)
		}
		if s.bare || s.mute || s.declared < 0 || s.wrote == s.declared {
			_ = s.send(nil, true) // nobody is left to be told
		}
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.last { // after the answer, since some clients take nothing more of any once they are told
		c.goAway(http2.ErrCodeNo, "")
		defer c.flush()
	}
	if s.err == nil && !s.endedOut {
		if !s.endedIn {
			c.cutOff(s.id, s.intake.left)
		}
		c.out.reset(s.id, http2.ErrCodeInternal)
		c.forget(s, errOver)
		c.flush()
	}
}

// Header implements http.ResponseWriter.
func (s *stream) Header() http.Header { return s.header }

// WriteHeader implements http.ResponseWriter.
func (s *stream) WriteHeader(status int) {
	switch {
	case s.over || s.status != 0:
		return
	case status < 100 || status > 999 || status == http.StatusSwitchingProtocols:
		panic(fmt.Sprintf("h2: status %d", status))
	case status < 200:
		s.interim(status)
		return
	}
	s.status, s.declared = status, -1
	s.bare = status == http.StatusNoContent || status == http.StatusNotModified
	s.mute = s.r.Method == http.MethodHead
	if length, ok := s.header["Content-Length"]; ok {
		if n, err := strconv.ParseInt(length[0], 10, 64); err == nil && n >= 0 && len(length) == 1 {
			s.declared = n
		} else {
			delete(s.header, "Content-Length")
		}
	}
	s.plain = s.bare || s.header["Content-Type"] != nil || s.header["Content-Encoding"] != nil
	s.buffer = borrow()
	s.held = s.appendHead(*s.buffer, status)
	if s.header["Date"] == nil {
		s.held = appendDate(s.held, time.Now())
	}
	s.head = len(s.held)
	s.last = slices.Contains(s.header["Connection"], "close")
}

// interim sends a head before the head.
func (s *stream) interim(status int) {
	block := s.appendHead(nil, status)
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.err == nil && !s.headSent {
		s.c.out.head(s.id, false, block, nil)
		s.c.flush()
	}
}

func (s *stream) appendHead(b []byte, status int) []byte {
	b = appendStatus(b, status)
	for name, values := range s.header {
		switch name {
		case "Connection", "Proxy-Connection", "Keep-Alive", "Transfer-Encoding", "Upgrade", "Trailer": // HTTP/1.1's
		default:
			b = appendField(b, name, values)
		}
	}
	return b
}

// Write implements http.ResponseWriter. The last of an answer whose length was
// declared waits until its handler returns: whoever has all of an answer may
// ask what the handler does after it.
func (s *stream) Write(p []byte) (int, error) {
	if s.over {
		return 0, errOver
	}
	if s.status == 0 {
		s.WriteHeader(http.StatusOK)
	}
	n := len(p)
	switch {
	case n == 0:
		return 0, nil
	case s.bare:
		return 0, http.ErrBodyNotAllowed
	case s.declared >= 0 && s.wrote+int64(n) > s.declared:
		return 0, http.ErrContentLength
	}
	s.wrote += int64(n)
	if len(s.held)-s.head+n > holdBack {
		keep := 0
		if s.wrote == s.declared {
			keep = min(n, holdBack)
		}
		if err := s.send(p[:n-keep], false); err != nil {
			return 0, err
		}
		p = p[n-keep:]
	}
	s.held = append(s.held, p...)
	return n, nil
}

// Flush implements http.Flusher.
func (s *stream) Flush() { _ = s.FlushError() }

// FlushError is for http.ResponseController.
func (s *stream) FlushError() error {
	if s.over {
		return errOver
	}
	if s.status == 0 {
		s.WriteHeader(http.StatusOK)
	}
	return s.send(nil, false)
}

// SetReadDeadline is for http.ResponseController.
func (s *stream) SetReadDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.readBy = t
	s.readable.Broadcast()
	return nil
}

// SetWriteDeadline is for http.ResponseController. It bounds the wait for the
// client to take what is written, and nothing else.
func (s *stream) SetWriteDeadline(t time.Time) error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.writeBy = t
	s.writable.Broadcast()
	return nil
}

// EnableFullDuplex is for http.ResponseController: HTTP/2 always is.
func (s *stream) EnableFullDuplex() error { return nil }

// mayCome reports whether the rest of a request that was answered already is let
// come, and dropped: it was declared and fits the client's window, or one frame
// where no more of it shall be read. curl (7.88, of Debian 12) takes a reset
// before it has sent all for a failure, and shows no answer. The caller holds mu.
func (s *stream) mayCome() bool {
	most := s.intake.left
	if !s.readBy.IsZero() && !time.Now().Before(s.readBy) {
		most = min(most, maxFrame)
	}
	return s.declaredIn >= 0 && s.declaredIn-s.got <= most
}

// send sends what was held back and p. end: there is no more.
func (s *stream) send(p []byte, end bool) error {
	held, more := s.held[s.head:], []byte(nil)
	rest := len(held) + len(p)
	length := rest
	if !s.plain && rest > 0 {
		s.plain = true
		if !s.headSent { // only this goroutine changes that
			more = appendField(more, "Content-Type", []string{http.DetectContentType(slices.Concat(held, p[:min(len(p), 512)]))})
		}
	}
	if s.mute {
		held, p, rest = nil, nil, 0
	}
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case s.err != nil:
		return s.err
	case s.failed != nil:
		return s.failed
	case s.endedOut:
		return nil
	case s.headSent:
		if end && rest == 0 {
			c.out.data(s.id, true, nil)
		}
	default:
		if end && s.declared < 0 && !s.bare {
			more = appendField(more, "Content-Length", []string{strconv.Itoa(length)})
		}
		s.headSent = true
		c.answered(s)
		c.out.head(s.id, end && rest == 0, s.held[:s.head], more)
	}
	var latest time.Time // for the next whole frame: windows may be opened a byte at a time
	taken := 0
	for _, b := range [2][]byte{held, p} {
		for len(b) > 0 {
			n, err := s.room(min(len(b), maxFrame), &latest)
			if err != nil {
				s.failed = err
				return err
			}
			if taken += n; taken >= maxFrame {
				taken, latest = 0, time.Time{}
			}
			rest -= n
			c.out.data(s.id, end && rest == 0, b[:n])
			b = b[n:]
		}
	}
	s.held = s.held[:s.head]
	if end {
		s.endedOut = true
		if !s.endedIn { // the rest is not wanted
			c.cutOff(s.id, s.intake.left)
			if !s.mayCome() {
				c.out.reset(s.id, http2.ErrCodeNo)
			}
		}
		c.forget(s, nil)
	}
	c.flush()
	return nil
}
