package clockkit

import (
	"testing"
	"time"
)

// On any machine it is no more than it was by the clock.
func TestWatch(t *testing.T) {
	begun := time.Now()
	took := Watch(t)
	for took() < 20*tick {
		time.Sleep(tick)
	}
	if by := time.Since(begun); took() > by+tick {
		t.Errorf("%s, and %s by the clock", took(), by)
	}
}
