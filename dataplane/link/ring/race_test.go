package ring

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A look at a ring whose reader keeps up must not see it full: room is what
// requests are refused by.
func TestLooksWhileItMoves(t *testing.T) {
	p, c, _ := ends(t, 64<<10)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var refused, full atomic.Int64
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				if !p.Room(0) {
					refused.Add(1)
				}
				if p.Waiting() > 32<<10 || c.Waiting() > 32<<10 {
					full.Add(1)
				}
			}
		})
	}
	end := time.Now().Add(time.Second)
	for n := 0; time.Now().Before(end); n++ {
		if _, err := p.Put([]byte("a record")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.Next(); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		check(t, c.Commit())
	}
	stop.Store(true)
	wg.Wait()
	if refused.Load() != 0 || full.Load() != 0 {
		t.Errorf("one record waits at most: %d looks saw no room, %d a full ring", refused.Load(), full.Load())
	}
}
