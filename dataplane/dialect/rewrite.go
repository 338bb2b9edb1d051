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

// Rewrite is one field that ringmain changes on the way. Everything else of a
// body passes byte for byte.
type Rewrite struct {
	Dialect Dialect
	Field   string
	Where   string // request, answer
	When    string
	To      string
}

// Rewrites lists every field that is rewritten, and why.
func Rewrites() []Rewrite {
	return []Rewrite{
		{OpenAI, "model", "request", "the upstream knows the model by another name", "the upstream's name"},
		{Anthropic, "model", "request", "the upstream knows the model by another name", "the upstream's name"},
		{OpenAI, "stream_options.include_usage", "request", "a stream whose client did not ask for usage", "true, so that it can be metered"},
		{OpenAI, "the chunk with empty choices and a usage object", "answer", "the client did not ask for usage", "left out of the stream"},
	}
}

const (
	usageOption  = `"include_usage":true`
	usageOptions = `{` + usageOption + `}`
	usageField   = `,"stream_options":` + usageOptions
)

// edit replaces one range of the body.
type edit struct {
	at   Span // Start == End: insert
	with []byte
}

// Upstream gives the body to send to an upstream that knows the model as
// model: the client's own bytes, cut only where Rewrites says so. The result
// shares body's memory.
func (q *Request) Upstream(body []byte, model string) Body {
	var edits [2]edit
	n := 0
	if model != "" && model != q.Model {
		edits[n] = edit{q.ModelAt, appendString(nil, model)}
		n++
	}
	if q.Dialect == OpenAI && q.Stream && !q.WantsUsage {
		switch {
		case q.IncludeUsageAt.Present():
			edits[n] = edit{q.IncludeUsageAt, []byte("true")}
		case q.optionsNull:
			edits[n] = edit{q.OptionsAt, []byte(usageOptions)}
		case q.OptionsAt.Present() && q.optionsEmpty:
			edits[n] = edit{Span{q.OptionsAt.Start + 1, q.OptionsAt.Start + 1}, []byte(usageOption)}
		case q.OptionsAt.Present():
			edits[n] = edit{Span{q.OptionsAt.Start + 1, q.OptionsAt.Start + 1}, []byte(usageOption + ",")}
		default:
			edits[n] = edit{Span{q.StreamAt.End, q.StreamAt.End}, []byte(usageField)}
		}
		n++
	}
	if n == 2 && edits[1].at.Start < edits[0].at.Start {
		edits[0], edits[1] = edits[1], edits[0]
	}
	var out Body
	at := 0
	for _, e := range edits[:n] {
		out.add(body[at:e.at.Start])
		out.add(e.with)
		at = e.at.End
	}
	out.add(body[at:])
	return out
}

// Body is a request body in pieces. It prints as [content].
type Body struct {
	parts [5][]byte
	n     int
	size  int64
	hold  *Hold
}

// Hold keeps memory that Bodies point into from being used again while a
// transport may still read it: transports close a body on their own time, even
// after the attempt is over.
type Hold struct {
	users atomic.Int64
	free  func()
}

// NewHold starts with one user, whose Release ends it.
func NewHold(free func()) *Hold {
	h := &Hold{free: free}
	h.users.Store(1)
	return h
}

// Release drops one user; the last one frees the memory.
func (h *Hold) Release() {
	if h != nil && h.users.Add(-1) == 0 {
		h.free()
	}
}

// Held says that b's memory is kept by h; each Reader of b is a user of it.
func (b Body) Held(h *Hold) Body {
	b.hold = h
	return b
}

// WholeBody is a body that is sent as it is.
func WholeBody(b []byte) Body {
	var out Body
	out.add(b)
	return out
}

func (b *Body) add(p []byte) {
	if len(p) > 0 {
		b.parts[b.n] = p
		b.n++
		b.size += int64(len(p))
	}
}

// Len is the number of bytes.
func (b *Body) Len() int64 { return b.size }

// Append appends all bytes.
func (b *Body) Append(dst []byte) []byte {
	dst = slices.Grow(dst, int(b.size))
	for _, p := range b.parts[:b.n] {
		dst = append(dst, p...)
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

const contentText = "[content]"

// Format writes "[content]" under every verb.
func (Body) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, contentText) }

// LogValue returns "[content]".
func (Body) LogValue() slog.Value { return slog.StringValue(contentText) }

// Reader reads a Body from its start. It does not copy the pieces. Close may
// be called while Read runs: after Close nothing is read any more.
type Reader struct {
	mu    sync.Mutex
	parts [5][]byte
	n, i  int
	off   int
	hold  *Hold
	over  bool
}

// NewReader returns a Reader of b. It must be closed.
func (b *Body) NewReader() *Reader {
	if b.hold != nil {
		b.hold.users.Add(1)
	}
	return &Reader{parts: b.parts, n: b.n, hold: b.hold}
}

func (r *Reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.over {
		return 0, fs.ErrClosed
	}
	total := 0
	for r.i < r.n && total < len(p) {
		k := copy(p[total:], r.parts[r.i][r.off:])
		total += k
		if r.off += k; r.off == len(r.parts[r.i]) {
			r.i, r.off = r.i+1, 0
		}
	}
	if total == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return total, nil
}

// Close ends the use of the memory. It may be called more than once.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.over {
		r.over = true
		r.hold.Release()
	}
	return nil
}

// Format writes "[content]" under every verb.
func (*Reader) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, contentText) }
