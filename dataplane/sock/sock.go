// Package sock reads and writes TCP sockets without telling Go's runtime of
// each system call. Such sockets do not block, and what the runtime does around
// calls that may (giving the processor away, waking its monitor) costs more
// than the call: a tenth and more of what a proxied request costs.
package sock

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// Read reads from a socket that does not block, as read(2), but for EINTR.
func Read(fd uintptr, p []byte) (int, error) { return call(sysRead, fd, p) }

// Write writes to a socket that does not block, as write(2), but for EINTR.
func Write(fd uintptr, p []byte) (int, error) { return call(sysWrite, fd, p) }

func call(f func(uintptr, []byte) (int, syscall.Errno), fd uintptr, p []byte) (int, error) {
	for {
		switch n, errno := f(fd, p); errno {
		case 0:
			return n, nil
		case syscall.EINTR:
		default:
			return 0, errno
		}
	}
}

// Direct gives a connection that does what nc does, with the same errors, over
// system calls of this package. It takes one reader and one writer at a time,
// as crypto/tls makes sure of. What is no TCP connection comes back as it is.
func Direct(nc net.Conn) net.Conn {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nc
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nc
	}
	c := &conn{TCPConn: tcp, raw: raw}
	c.in.make(Read)
	c.out.make(Write)
	return c
}

type conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	in, out transfer
}

// transfer is one direction: a call's argument and result, and the closure that
// makes it, which would otherwise be made each time.
type transfer struct {
	p   []byte
	n   int
	err error
	try func(fd uintptr) bool // false: wait until it may be tried again
}

func (t *transfer) make(call func(uintptr, []byte) (int, error)) {
	t.try = func(fd uintptr) bool {
		t.n, t.err = call(fd, t.p)
		return t.err != syscall.EAGAIN //nolint:errorlint // never wrapped
	}
}

// run makes one call, through wait, which waits for the socket.
func (t *transfer) run(p []byte, wait func(func(uintptr) bool) error) (n int, failed, waited error) {
	t.p, t.n, t.err = p, 0, nil
	waited = wait(t.try)
	n, failed = t.n, t.err
	t.p, t.err = nil, nil
	return n, failed, waited
}

// Read reads what has come, or waits for it.
func (c *conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, failed, waited := c.in.run(p, c.raw.Read)
	switch {
	case waited != nil:
		return 0, named(waited, "read")
	case failed != nil:
		return 0, c.failure("read", failed)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write writes all of p, or says why not.
func (c *conn) Write(p []byte) (n int, err error) {
	for n < len(p) {
		m, failed, waited := c.out.run(p[n:], c.raw.Write)
		switch {
		case waited != nil:
			return n, named(waited, "write")
		case failed != nil:
			return n, c.failure("write", failed)
		}
		n += m
	}
	return n, nil
}

// ReadFrom is io.Copy's, over Write.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{c}, r) //nolint:wrapcheck // as net.TCPConn
}

// WriteTo is io.Copy's, over Read.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{c}) //nolint:wrapcheck // as net.TCPConn
}

// named is err, of a raw connection, under the name that net gives it: servers
// tell failed reads by it.
func named(err error, op string) error {
	var failed *net.OpError
	if errors.As(err, &failed) {
		failed.Op = op
	}
	return err
}

func (c *conn) failure(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: os.NewSyscallError(op, err)}
}
