package synckit

import (
	"runtime"
	"testing"
	"time"
)

// Whoever looks at a timer that is due, and that nobody waits for, fires it: here
// beside those that fire by themselves.
func TestTimersAtOnce(t *testing.T) {
	procs, span := runtime.GOMAXPROCS(0), time.Second
	if underRace {
		span = 20 * time.Second // two at once are found out in a few
	}
	Test(t, func(t *testing.T) {
		done := make(chan struct{})
		for range 40 {
			go func() {
				waits, looks := time.NewTicker(time.Millisecond), time.NewTicker(time.Millisecond)
				for {
					time.AfterFunc(time.Millisecond, func() {})
					select {
					case <-waits.C:
					case <-done:
						return
					}
					select {
					case <-looks.C:
					default:
					}
				}
			}()
		}
		time.Sleep(span)
		close(done)
		Wait()
	})
	if n := runtime.GOMAXPROCS(0); n != procs {
		t.Errorf("%d processors are left of %d", n, procs)
	}
}
