package sock

import (
	"net"
	"time"
)

// Listen gives a listener whose connections are given up after so long, see
// Unheard, where the kernel does that.
func Listen(l net.Listener, unheard time.Duration) net.Listener { return listener{l, unheard} }

type listener struct {
	net.Listener
	unheard time.Duration
}

// Accept implements net.Listener. What is no TCP connection comes as it is.
func (l listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if tcp, ok := nc.(*net.TCPConn); ok && err == nil {
		if raw, err := tcp.SyscallConn(); err == nil {
			_ = Unheard(raw, l.unheard) // multipath TCP has no such time
		}
	}
	return nc, err //nolint:wrapcheck // the server compares it
}
