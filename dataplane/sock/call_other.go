// The race detector orders goroutines that speak over a socket by the calls of
// package syscall, which it knows.

//go:build !linux || race

package sock

import "syscall"

func sysRead(fd uintptr, p []byte) (int, syscall.Errno)  { return told(syscall.Read(int(fd), p)) }
func sysWrite(fd uintptr, p []byte) (int, syscall.Errno) { return told(syscall.Write(int(fd), p)) }

func told(n int, err error) (int, syscall.Errno) {
	if err == nil {
		return n, 0
	}
	if errno, ok := err.(syscall.Errno); ok { //nolint:errorlint // package syscall wraps nothing
		return n, errno
	}
	return n, syscall.EIO
}
