package relay

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestGoneHosts: the kernel gives a host up that answers nothing for a minute,
// whether something was sent to it or not (tcp(7)).
func TestGoneHosts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tcp, err := dialUpstream(t.Context(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var sent int
	_ = raw.Control(func(fd uintptr) { sent, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT) })
	if err != nil || time.Duration(sent)*time.Millisecond != time.Minute {
		t.Errorf("it is given up after %d ms, %v", sent, err)
	}
}
