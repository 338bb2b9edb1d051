package dataplane_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// shown is a listener that shows what it accepted.
type shown struct {
	net.Listener
	conns chan *net.TCPConn
}

func (s shown) Accept() (net.Conn, error) {
	nc, err := s.Listener.Accept()
	if err == nil {
		s.conns <- nc.(*net.TCPConn)
	}
	return nc, err
}

// TestGoneClients: the kernel gives a client's host up that is gone, also while
// something is on its way to it, of which keep-alive knows nothing (tcp(7)).
func TestGoneClients(t *testing.T) {
	conns := make(chan *net.TCPConn, 16)
	r := newRing(t)
	r.accepting = func(l net.Listener) net.Listener { return shown{l, conns} }
	c := r.start("us-east", "us", patient)
	r.load()
	c.do(c.client(false), call{path: "/livez"})
	raw, err := (<-conns).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var after int
	_ = raw.Control(func(fd uintptr) { after, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) })
	if d := time.Duration(after) * time.Millisecond; err != nil || d < time.Minute || d > 3*time.Minute {
		t.Errorf("a client that is gone is noticed after %v, %v", d, err)
	}
}
