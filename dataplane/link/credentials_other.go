//go:build !linux

package link

import (
	"errors"
	"net"
)

// peerUser cannot be asked for on this kernel in the way it can on Linux.
func peerUser(*net.UnixConn) (uint32, error) {
	return 0, errors.New("this kernel does not say who connects: run data nodes on Linux")
}
