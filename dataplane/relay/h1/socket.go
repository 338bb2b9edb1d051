package h1

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ringmain/dataplane/sock"
)

const (
	// glance is how often a write that is blocked looks whether an answer came.
	glance = 20 * time.Millisecond
	// patience is how long an answer may wait for a write that makes no progress.
	patience = time.Second
	// maxAhead bounds what is read while a write is blocked, in bytes.
	maxAhead = 64 << 10
)

// reading is what a Read of a socket does when nothing is there.
type reading uint8

const (
	waits   reading = iota // until something comes
	looks                  // asks the kernel, and does not wait
	gathers                // takes what was read already, and does not ask
)

// record is enough for any TLS record: one call takes it, or many small ones.
const record = 17 << 10

var records = sync.Pool{New: func() any { return new([record]byte) }}

// socket is the TCP connection below a conn, and below its TLS. It has one
// user at a time, but for interrupt.
//
// Its deadline is moved at no cost: the runtime is told of a new one only if
// it would otherwise fire too late, and when it fires too early the read goes
// on. Writes that fit the kernel's buffer need none.
type socket struct {
	*net.TCPConn
	raw syscall.RawConn

	due   time.Time // until when reads and writes may take
	armed time.Time // the read deadline that the runtime knows of
	gone  atomic.Bool

	how    reading
	came   bool          // a read that did not wait found something
	large  bool          // reads ask the kernel for more than they are asked for
	lone   bool          // what came last was one small record of TLS: behind it is nothing
	ahead  []byte        // came, and is not read yet
	lent   *[record]byte // its memory, if that goes back
	wrote  uint64        // bytes that the kernel took, ever
	before uint64        // wrote, when the request began
	after  uint64        // wrote, when it had been sent; what TLS says by itself comes on top
	// answered: something came while the request was sent, and is read already.
	answered bool

	// The system calls' arguments and results: closures made once.
	call        []byte
	n           int
	errno       error
	receive     func(fd uintptr)
	send        func(fd uintptr)
	await       func(fd uintptr) bool
	doInterrupt func()
}

func newSocket(tcp *net.TCPConn) (*socket, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("h1: %w", err)
	}
	s := &socket{TCPConn: tcp, raw: raw}
	s.receive = func(fd uintptr) { s.n, s.errno = sock.Read(fd, s.call) }
	s.send = func(fd uintptr) { s.n, s.errno = sock.Write(fd, s.call) }
	s.await = s.receiveLarge
	s.doInterrupt = s.interrupt
	return s, nil
}

// interrupt ends what waits, and whatever comes after. It may be called from
// anywhere.
func (s *socket) interrupt() {
	s.gone.Store(true) // before the deadlines: whoever sets one looks here next
	_ = s.SetDeadline(time.Unix(1, 0))
}

// now makes a call that does not wait; errNothing: it would have to.
func (s *socket) now(call func(uintptr), p []byte) (int, error) {
	s.call = p
	err := s.raw.Control(call)
	s.call = nil
	switch {
	case err != nil:
		return 0, err //nolint:wrapcheck // whoever reads knows what it means
	case errors.Is(s.errno, syscall.EAGAIN):
		return 0, errNothing
	case s.errno != nil:
		return 0, os.NewSyscallError("socket", s.errno)
	}
	return s.n, nil
}

func (s *socket) Read(p []byte) (int, error) {
	switch {
	case len(s.ahead) > 0:
		return s.take(p), nil
	case s.how == gathers:
		return 0, errNothing
	case s.how == looks:
		return s.readNow(p)
	}
	for {
		if s.armed.IsZero() || s.armed.After(s.due) {
			s.armed = s.due
			if err := s.SetReadDeadline(s.due); err != nil {
				return 0, err //nolint:wrapcheck // it is closed
			}
		}
		if s.gone.Load() {
			return 0, ErrCanceled
		}
		n, err := s.receiveWaiting(p)
		switch {
		case n > 0 || !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err //nolint:wrapcheck // whoever reads knows what it means
		case s.gone.Load():
			return 0, ErrCanceled
		case !time.Now().Before(s.due):
			return 0, ErrTimeout
		}
		s.armed = time.Time{} // it was that of something earlier
	}
}

// take reads what came before.
func (s *socket) take(p []byte) int {
	n := copy(p, s.ahead)
	if s.ahead = s.ahead[n:]; len(s.ahead) == 0 {
		s.ahead = nil
		if s.lent != nil {
			records.Put(s.lent)
			s.lent = nil
		}
	}
	return n
}

func (s *socket) receiveWaiting(p []byte) (int, error) {
	if !s.large {
		return s.TCPConn.Read(p) //nolint:wrapcheck // whoever reads knows what it means
	}
	switch err := s.raw.Read(s.await); {
	case err != nil:
		return 0, err //nolint:wrapcheck // as above
	case s.errno != nil:
		return 0, os.NewSyscallError("read", s.errno)
	case s.n == 0:
		return 0, io.EOF
	}
	return s.take(p), nil
}

// receiveLarge borrows memory only while there is something to read: a stream
// that waits holds none.
func (s *socket) receiveLarge(fd uintptr) bool {
	s.lent = records.Get().(*[record]byte) //nolint:forcetypeassert // only these are put
	s.n, s.errno = sock.Read(fd, s.lent[:])
	if s.n > 0 {
		s.ahead = s.lent[:s.n]
		s.lone = isRecord(s.ahead)
		return true
	}
	records.Put(s.lent)
	s.lent = nil
	return !errors.Is(s.errno, syscall.EAGAIN)
}

// isRecord says that b is one record of TLS that fits a source's buffer. Where a
// record does not begin with b it may say so by chance: then what is behind it
// is read by itself.
func isRecord(b []byte) bool {
	const head = 5 // type, version, and the length of the rest (RFC 8446, 5.1)
	return len(b) > head && len(b) <= bufferSize && int(b[3])<<8|int(b[4]) == len(b)-head
}

func (s *socket) readNow(p []byte) (int, error) {
	s.lone = false
	n, err := s.now(s.receive, p)
	if n == 0 && err == nil {
		err = io.EOF
	}
	s.came = s.came || n > 0
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	n, err := s.now(s.send, p)
	s.wrote += uint64(n)
	if err != nil && !errors.Is(err, errNothing) {
		return 0, err
	}
	if n == len(p) {
		return n, nil
	}
	m, err := s.writeSlowly(p[n:])
	return n + m, err
}

// writeSlowly writes to a side that does not take it all at once. What comes
// from there meanwhile is read, so that two sides that both write first do not
// wait for each other for ever; and a side that has answered, but takes
// nothing any more, is not waited for.
func (s *socket) writeSlowly(p []byte) (n int, err error) {
	for moved := time.Now(); n < len(p); {
		now := time.Now()
		until := now.Add(glance)
		if s.due.Before(until) {
			until = s.due
		}
		if err := s.SetWriteDeadline(until); err != nil {
			return n, err //nolint:wrapcheck // it is closed
		}
		switch {
		case s.gone.Load():
			return n, ErrCanceled
		case !now.Before(s.due):
			return n, ErrTimeout
		case !s.listen() || (s.answered || len(s.ahead) > 0) && now.Sub(moved) > patience:
			return n, errAnswered
		}
		m, err := s.TCPConn.Write(p[n:])
		if n += m; m > 0 {
			s.wrote += uint64(m)
			moved = time.Now()
		}
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err //nolint:wrapcheck // whoever writes knows what it means
		}
	}
	return n, nil
}

// unread says that the other side cannot have read the request: nothing of it
// left, or its end had been sent before all of the request was there (an end
// acknowledges what came before it; a reset need not).
func (s *socket) unread(err error) bool {
	if s.after == s.before {
		return true
	}
	var n uint64
	known := false
	if errors.Is(err, io.EOF) {
		_ = s.raw.Control(func(fd uintptr) { n, known = acked(int(fd)) })
	}
	return known && n < s.after
}

// listen reads what has come. It fails if there is no more room, or if nothing
// will come any more.
func (s *socket) listen() bool {
	for {
		if s.ahead == nil {
			s.ahead = make([]byte, 0, bufferSize)
		}
		if len(s.ahead) >= maxAhead {
			return false
		}
		if len(s.ahead) == cap(s.ahead) {
			s.ahead = append(make([]byte, 0, 4*cap(s.ahead)), s.ahead...)
		}
		n, err := s.readNow(s.ahead[len(s.ahead):cap(s.ahead)])
		s.ahead = s.ahead[:len(s.ahead)+n]
		if err != nil {
			return errors.Is(err, errNothing)
		}
	}
}
