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
				b.Release()
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
	b.Release()
}

// TestWhatIsGivenBack: memory is lent for as long as the borrower or a reader uses
// it, and counted for as long; of a body that was released nobody gets anything
// but its length.
func TestWhatIsGivenBack(t *testing.T) {
	for _, n := range []int{100, keepBody, 1 << 20} {
		p := NewPool(1 << 21)
		b := p.Get()
		if e := p.Read(b, post(n, 'x', true), nil); e != nil {
			t.Fatal(e)
		}
		whole := b.Whole()
		one, two := whole.NewReader(), whole.NewReader()
		for range 2 {
			b.Release()
		}
		if got, err := io.ReadAll(one); len(got) != n || bytes.Count(got, []byte{'x'}) != n || err != nil {
			t.Fatalf("%d bytes: a reader found %d of its own among %d, %v", n, bytes.Count(got, []byte{'x'}), len(got), err)
		}
		if n > keepBody && p.large.Load() == 0 {
			t.Errorf("%d bytes are read, and not counted as lent", n)
		}
		if err := two.Close(); err != nil || p.large.Load() != 0 {
			t.Errorf("%d bytes: %v, %d are counted as lent", n, err, p.large.Load())
		}
		if b.Len() != int64(n) {
			t.Errorf("%d bytes, and %d are said", n, b.Len())
		}
		for name, use := range map[string]func(){"Bytes": func() { b.Bytes() }, "Whole": func() { b.Whole() }, "NewReader": func() { whole.NewReader() }} {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%d bytes: %s after it was given back", n, name)
					}
				}()
				use()
			}()
		}
	}
}

// TestKept: what is kept for later use leaves half of the memory to those who come,
// and large bodies only count.
func TestKept(t *testing.T) {
	p := NewPool(8 << 20)
	var all []*Body
	for i, n := range []int{3 << 20, 3 << 20, 512 << 10, 1000} {
		b := p.Get()
		if e := p.Read(b, post(n, 'x', true), nil); e != nil {
			t.Fatal(e)
		}
		if got, want := b.Keep(), i != 1; got != want {
			t.Errorf("body %d is kept: %t", i, got)
		}
		all = append(all, b)
	}
	all[0].Release()
	if !all[1].Keep() {
		t.Error("not kept, though there is room")
	}
	for _, b := range all {
		b.Release()
	}
	if p.kept.Load() != 0 || p.large.Load() != 0 {
		t.Errorf("%d kept, %d lent", p.kept.Load(), p.large.Load())
	}
}
