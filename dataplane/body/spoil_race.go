//go:build race

package body

// spoil overwrites memory that was given back: the race detector sees whoever
// reads it still, and what he reads is nobody's.
func spoil(b []byte) {
	if len(b) == 0 {
		return
	}
	b[0] = 0xfe // in no UTF-8
	for n := 1; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
}
