// Package netkit has addresses for tests whose servers go away and come back.
// Tests only.
package netkit

import (
	"net"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
)

var last atomic.Int32

// Host is a loopback address of this process alone, where the system has more
// than one.
func Host() net.IP {
	if runtime.GOOS != "linux" {
		return net.IPv4(127, 0, 0, 1)
	}
	pid := os.Getpid()
	return net.IPv4(127, byte(64+pid>>16), byte(pid>>8), byte(pid))
}

// Address is one that nobody else takes, also not while nobody listens there: no
// other test, and no client, as whose port the system might choose it.
func Address() string {
	return net.JoinHostPort(Host().String(), strconv.Itoa(int(10_000+last.Add(1))))
}

// Addresses are n of them.
func Addresses(n int) (all []string) {
	for range n {
		all = append(all, Address())
	}
	return all
}
