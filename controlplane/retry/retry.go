// Package retry says how long to wait before something is asked again, and
// waits. Whether asking again makes sense is the caller's to know.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff gives full-jitter delays: uniform in [0, Base×2^n), at most Limit.
type Backoff struct {
	Base, Limit time.Duration
	window      time.Duration
}

// Next is the delay before the next attempt.
func (b *Backoff) Next() time.Duration {
	b.window = min(max(2*b.window, b.Base), b.Limit)
	return rand.N(b.window) //nolint:gosec // spreads retries, guards nothing
}

// Reset starts anew, after progress.
func (b *Backoff) Reset() { b.window = 0 }

// Sleep is false if ctx ended first.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
