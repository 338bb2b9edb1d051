package trial

import (
	"bytes"
	"testing"

	"ringmain/controlplane/feed"
)

func TestGiven(t *testing.T) {
	var g Given
	frame := func(seq uint64) []byte {
		t.Helper()
		b, err := feed.EncodeFrame(entry(t, seq))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	seq := func(number uint64) uint64 {
		f := g.At(number)
		if f == nil {
			return 0
		}
		s, ok := SpanOf(f, nil, nil)
		if !ok {
			t.Errorf("number %d is of nothing", number)
		}
		return s.To
	}
	shared := bytes.Join([][]byte{frame(11), frame(12)}, nil)
	n := len(frame(11))
	g.Add([][]byte{shared[:n], shared[n:]}, true, 0)
	clear(shared) // as a reader does with its buffer
	g.Add([][]byte{frame(13)}, false, 1)
	if seq(1) != 11 || seq(2) != 12 || seq(3) != 13 || seq(4) != 0 || g.Last() != 3 {
		t.Errorf("numbers 1 to 4 are entries %d, %d, %d, %d; last %d", seq(1), seq(2), seq(3), seq(4), g.Last())
	}
	g.Add([][]byte{frame(14)}, false, 2)
	if seq(2) != 0 || seq(3) != 13 || seq(4) != 14 {
		t.Errorf("after two were applied: %d, %d, %d", seq(2), seq(3), seq(4))
	}
	for range 2 * givenBytes / len(shared) { // a worker that does not say how far it is
		g.Add([][]byte{make([]byte, len(shared))}, false, 2)
	}
	if g.bytes > givenBytes+2*len(shared) {
		t.Errorf("%d bytes are remembered", g.bytes)
	}
}
