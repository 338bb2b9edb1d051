//go:build !linux

package relay

import (
	"context"
	"syscall"
	"time"
)

// unheard is not known here.
func unheard(time.Duration) func(context.Context, string, string, syscall.RawConn) error { return nil }
