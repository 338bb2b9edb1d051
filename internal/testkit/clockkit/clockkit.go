// Package clockkit tells how long things took that are bound to real time, on
// machines that do something else meanwhile. Tests only.
package clockkit

import (
	"sync/atomic"
	"testing"
	"time"
)

const tick = 5 * time.Millisecond

// Watch returns how long it was since, as this process had it: while others had
// the machine, it stood still.
func Watch(t testing.TB) (took func() time.Duration) {
	t.Helper()
	var ran atomic.Int64
	done, ended := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() { close(done); <-ended })
	go func() {
		defer close(ended)
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for last := time.Now(); ; {
			select {
			case <-done:
				return
			case <-ticker.C:
			}
			now := time.Now()
			ran.Add(int64(min(now.Sub(last), 2*tick)))
			last = now
		}
	}()
	return func() time.Duration { return time.Duration(ran.Load()) }
}
