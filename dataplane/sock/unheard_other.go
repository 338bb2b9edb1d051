//go:build !linux

package sock

import (
	"syscall"
	"time"
)

// Unheard is not known here.
func Unheard(syscall.RawConn, time.Duration) error { return nil }
