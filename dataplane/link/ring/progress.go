package ring

import "sync/atomic"

// Progress is how far the writer is with what it was given by other ways than
// the ring. It can be read after the writer died: what it was at is what killed it.
type Progress struct {
	begun, done *atomic.Uint64
	unmap       func() error
}

// Load returns the number of the item that the writer turned to last, and of
// the one that it was last through with; zeros if it is of a build that does
// not say.
func (p *Progress) Load() (begun, done uint64) {
	done = p.done.Load() // first: begun is never behind it
	return p.begun.Load(), done
}

// Close unmaps it. Nothing may be called during or after it.
func (p *Progress) Close() error { return p.unmap() }
