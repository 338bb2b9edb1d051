package relay

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
)

// TestProbeWithoutFiles: a probe that this node had no file for tells nothing of the
// peer, and says so.
func TestProbeWithoutFiles(t *testing.T) {
	c := New(Config{})
	defer c.Close()
	for own, cause := range map[bool]syscall.Errno{true: syscall.EMFILE, false: syscall.ECONNREFUSED} {
		c.peers.DialTLSContext = func(context.Context, string, string) (net.Conn, error) {
			return nil, &dialError{Err: &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", cause)}}
		}
		if _, err := c.Probe(t.Context(), "eu-fra", "d1"); errors.Is(err, ErrNoSockets) != own || err == nil {
			t.Errorf("%v: %v", cause, err)
		}
	}
}
