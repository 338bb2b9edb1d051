package dialect

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
)

// MaxParts is how many pieces a body has at most: around three edits, and the edits.
const MaxParts = 7

// Body is a request body in pieces. It prints as [content].
type Body struct {
	parts [MaxParts]Content
	n     int
	size  int64
	hold  *Hold
}

// Hold keeps memory that Bodies point into from being used again while a
// transport may still read it: transports read a body on their own time, even
// when its answer has begun or the attempt is over.
type Hold struct {
	users  atomic.Int64
	lender Lender
}

// Lender takes memory back that nobody uses any more.
type Lender interface{ TakeBack() }

// Begin starts h with one user, whose Release ends it.
func (h *Hold) Begin(l Lender) {
	h.lender = l
	h.users.Store(1)
}

// take adds a user. There must be one already.
func (h *Hold) take() {
	h.check()
	if h != nil {
		h.users.Add(1)
	}
}

// check panics if the memory was given back: it is another request's by now.
func (h *Hold) check() {
	if h != nil && h.users.Load() < 1 {
		panic("dialect: memory is used that was given back")
	}
}

// Release drops one user; the last one gives the memory back.
func (h *Hold) Release() {
	if h == nil {
		return
	}
	switch left := h.users.Add(-1); {
	case left == 0:
		h.lender.TakeBack()
	case left < 0:
		panic("dialect: memory is given back twice")
	}
}

// Held says that b's memory is kept by h; each Reader of b is a user of it, and
// whoever else reads b must know one.
func (b Body) Held(h *Hold) Body {
	b.hold = h
	return b
}

// WholeBody is a body that is sent as it is.
func WholeBody(b []byte) Body {
	var out Body
	out.Add(b)
	return out
}

// Add appends a piece, which shares p's memory.
func (b *Body) Add(p []byte) {
	if len(p) > 0 {
		b.parts[b.n] = Conceal(p)
		b.n++
		b.size += int64(len(p))
	}
}

// Len is the number of bytes.
func (b *Body) Len() int64 { return b.size }

// Append appends all bytes.
func (b *Body) Append(dst []byte) []byte {
	b.hold.check()
	dst = slices.Grow(dst, int(b.size))
	for _, p := range b.parts[:b.n] {
		dst = append(dst, p.Bytes()...)
	}
	return dst
}

// AppendParts appends the pieces, which share the body's memory. They may be
// read for as long as the caller knows a user of it.
func (b *Body) AppendParts(dst [][]byte) [][]byte {
	b.hold.check()
	for _, p := range b.parts[:b.n] {
		dst = append(dst, p.Bytes())
	}
	return dst
}

// copied is the largest body that Open copies.
const copied = 64 << 10

// Open returns a reader of b for net/http. A small body is copied, so that the
// transport knows it to be in memory and sends it in one packet with the head.
func (b *Body) Open() io.ReadCloser {
	if b.size > copied {
		return b.NewReader()
	}
	return io.NopCloser(bytes.NewReader(b.Append(nil)))
}

// Format writes "[content]" under every verb.
func (Body) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, contentText) }

// LogValue returns "[content]".
func (Body) LogValue() slog.Value { return slog.StringValue(contentText) }

// MarshalText returns "[content]".
func (Body) MarshalText() ([]byte, error) { return []byte(contentText), nil }

// Reader reads a Body from its start. It does not copy the pieces. It is a user
// of their memory until it has read all of it, or is closed, which may be while
// Read runs: http.Transport closes a request's body when the answer ends.
type Reader struct {
	mu     sync.Mutex
	parts  [MaxParts]Content
	n, i   int
	off    int
	hold   *Hold
	closed bool
}

// NewReader returns a Reader of b. It must be closed.
func (b *Body) NewReader() *Reader {
	b.hold.take()
	return &Reader{parts: b.parts, n: b.n, hold: b.hold}
}

func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return 0, fs.ErrClosed
	}
	total := 0
	for r.i < r.n && total < len(p) {
		part := r.parts[r.i].Bytes()
		k := copy(p[total:], part[r.off:])
		total += k
		if r.off += k; r.off == len(part) {
			r.i, r.off = r.i+1, 0
		}
	}
	if r.i == r.n {
		r.end()
	}
	if total == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return total, nil
}

// end ends the use of the memory. It may be called more than once.
func (r *Reader) end() {
	r.hold.Release()
	r.hold, r.parts = nil, [MaxParts]Content{}
}

// Close ends the use of the memory. It may be called more than once.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.end()
	return nil
}

// Format writes "[content]" under every verb.
func (*Reader) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, contentText) }
