// Package synckit runs tests in fake time, as testing/synctest does, on one
// processor under the race detector: timers of a bubble that fire on two at once
// corrupt the detector's memory, and the process dies of SIGSEGV (Go 1.26). Tests
// only.
package synckit

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Test is synctest.Test.
func Test(t *testing.T, f func(*testing.T)) {
	t.Helper()
	if underRace {
		defer alone()()
	}
	synctest.Test(t, f)
}

// Wait is synctest.Wait.
func Wait() { synctest.Wait() }

// bubbles are how many there are, and before is how many processors there were
// before the first.
var (
	mu      sync.Mutex
	bubbles int
	before  int
)

// alone leaves the process one processor until the last of the bubbles ends.
func alone() (end func()) {
	mu.Lock()
	defer mu.Unlock()
	if bubbles++; bubbles == 1 {
		before = runtime.GOMAXPROCS(1)
	}
	return func() {
		mu.Lock()
		defer mu.Unlock()
		if bubbles--; bubbles == 0 {
			runtime.GOMAXPROCS(before)
		}
	}
}
