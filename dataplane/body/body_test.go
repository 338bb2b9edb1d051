package body

import (
	"bytes"
	"io"
	"net/http"
	"testing"
)

// post is a request with a body of n bytes, each c, of declared length or not.
func post(n int, c byte, declared bool) *http.Request {
	r := &http.Request{Body: io.NopCloser(bytes.NewReader(bytes.Repeat([]byte{c}, n))), ContentLength: -1}
	if declared {
		r.ContentLength = int64(n)
	}
	return r
}

// TestLargeBodiesAreLentAgain: bodies of all sizes are read as they are,
// whoever's memory they get, and what is lent is counted.
func TestLargeBodiesAreLentAgain(t *testing.T) {
	if got := sizeOf(kinds - 1); got <= Max || kindOf(Max+1) != kinds-1 {
		t.Fatalf("the largest kind has %d bytes", got)
	}
	p := NewPool(64 << 20)
	sizes := []int{0, 1, smallBody, keepBody - 1, keepBody, keepBody + 1, 512 << 10, 512<<10 + 4096, 512<<10 + 4097, 5 << 20, Max}
	for round := range 3 {
		for i, n := range sizes {
			for _, declared := range []bool{true, false} {
				c := byte('a' + (round*len(sizes)+i)%26)
				b := p.Get()
				var seen bytes.Buffer
				if e := p.Read(b, post(n, c, declared), &seen); e != nil {
					t.Fatalf("%d bytes: %v", n, e)
				}
				if !bytes.Equal(seen.Bytes(), b.Bytes()) {
					t.Fatalf("%d bytes: whoever looked on saw %d", n, seen.Len())
				}
				if got := b.Bytes(); len(got) != n || bytes.Count(got, []byte{c}) != n {
					t.Fatalf("%d bytes: read %d, of which %d are right", n, len(got), bytes.Count(got, []byte{c}))
				}
				if lent := p.large.Load(); lent < int64(n) && n > keepBody || lent > 4*int64(max(n, keepBody)) {
					t.Fatalf("%d bytes: %d are counted as lent", n, lent)
				}
				b.Hold.Release()
				if lent := p.large.Load(); lent != 0 {
					t.Fatalf("%d bytes are still counted as lent", lent)
				}
			}
		}
	}
	b := p.Get()
	if e := p.Read(b, post(Max+1, 'x', false), nil); e != ErrTooLarge {
		t.Errorf("one byte more than may be: %v", e)
	}
	b.Hold.Release()
}
