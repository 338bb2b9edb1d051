package trial

import (
	"bytes"
	"sync"

	"ringmain/controlplane/feed"
)

// givenBytes bounds what is remembered: about twice what fits into the socket,
// so that more is on its way only to a worker that does not say how far it is.
const givenBytes = 16 << 20

// Given is what a worker was given, as far as it has not said that it is
// through with it: frames are numbered from 1. It is safe for concurrent use.
type Given struct {
	mu    sync.Mutex
	last  uint64
	parts []givenPart
	bytes int
}

type givenPart struct {
	first  uint64
	frames [][]byte
}

// Add notes frames, in the order in which they go to the worker, which is
// through with those up to done. With copied set, the caller may change them afterwards.
func (g *Given) Add(frames [][]byte, copied bool, done uint64) {
	if copied {
		all := bytes.Join(frames, nil)
		own := make([][]byte, len(frames))
		for i, f := range frames {
			own[i], all = all[:len(f):len(f)], all[len(f):]
		}
		frames = own
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.parts) > 0 && (g.parts[0].first+uint64(len(g.parts[0].frames)) <= done+1 || g.bytes > givenBytes) {
		g.bytes -= g.parts[0].size()
		g.parts = g.parts[1:]
	}
	p := givenPart{g.last + 1, frames}
	g.parts = append(g.parts, p)
	g.bytes += p.size()
	g.last += uint64(len(frames))
}

func (p givenPart) size() (n int) {
	for _, f := range p.frames {
		n += len(f)
	}
	return n
}

// Last is the number of the frame given last.
func (g *Given) Last() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// At returns the frame of a number, nil if it is not known any more.
func (g *Given) At(number uint64) *feed.Frame {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.parts {
		if number >= p.first && number-p.first < uint64(len(p.frames)) {
			f, err := feed.DecodeFrame(p.frames[number-p.first])
			if err != nil {
				return nil
			}
			return f
		}
	}
	return nil
}
