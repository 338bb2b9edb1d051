package h1

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"ringmain/dataplane/syntax"
)

const (
	// together is how much of a request goes out in the first write, in bytes.
	together = 16 << 10
	// slice is how much of a large body is written before looking for an answer.
	slice = 64 << 10
)

// Field is one line of a request's head.
type Field struct{ Name, Value string }

// Request is what to ask. The pool does not change it, and does not touch it
// after Do has returned.
type Request struct {
	Start  Start
	Fields []Field
	Body   [][]byte // in pieces
}

// Format writes "[content]" under every verb.
func (*Request) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[content]") }

// Start is the part of a request's head that is the same every time.
type Start struct {
	text       string
	answerless bool
}

// NewStart makes a Start: the request line, Host, and fields. target is as in
// the request line: path and query.
func NewStart(method, target, host string, fields ...Field) (Start, error) {
	fields = append([]Field{{"Host", host}}, fields...)
	if !syntax.IsToken(method) || target == "" || strings.ContainsFunc(target, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return Start{}, ErrField
	}
	b := append([]byte(nil), method+" "+target+" HTTP/1.1\r\n"...)
	for _, f := range fields {
		if !f.valid() {
			return Start{}, ErrField
		}
		b = f.append(b)
	}
	return Start{text: string(b), answerless: method == "HEAD"}, nil
}

// Format writes "[head]" under every verb: the fields may hold a credential.
func (Start) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[head]") }

func (f Field) valid() bool { return syntax.IsToken(f.Name) && syntax.IsPrintable(f.Value) }

func (f Field) append(b []byte) []byte {
	b = append(b, f.Name...)
	b = append(b, ": "...)
	b = append(b, f.Value...)
	return append(b, "\r\n"...)
}

func (q *Request) valid() bool {
	for i := range q.Fields {
		if !q.Fields[i].valid() {
			return false
		}
	}
	return q.Start.text != ""
}

var requests = sync.Pool{New: func() any { b := make([]byte, 0, together); return &b }}

// send writes req: its head with as much of the body as fits one write, then
// the rest from where it lies.
func (c *conn) send(req *Request) error {
	buf := requests.Get().(*[]byte) //nolint:forcetypeassert // only these are put
	defer requests.Put(buf)
	b := append((*buf)[:0], req.Start.text...)
	for i := range req.Fields {
		b = req.Fields[i].append(b)
	}
	size := 0
	for _, p := range req.Body {
		size += len(p)
	}
	b = append(b, "Content-Length: "...)
	b = strconv.AppendInt(b, int64(size), 10)
	b = append(b, "\r\n\r\n"...)
	parts := req.Body
	var part []byte
	for len(parts) > 0 {
		room := together - len(b)
		if len(parts[0]) > room {
			room = max(0, room)
			b, part = append(b, parts[0][:room]...), parts[0][room:]
			break
		}
		b, parts = append(b, parts[0]...), parts[1:]
	}
	if cap(b) == together {
		*buf = b[:0]
	}
	if _, err := c.rw.Write(b); err != nil {
		return err //nolint:wrapcheck // ask decides what it means
	}
	for i := range parts {
		if i > 0 {
			part = parts[i]
		}
		for len(part) > 0 {
			if c.overtaken() {
				return errAnswered
			}
			n, err := c.rw.Write(part[:min(len(part), slice)])
			if err != nil {
				return err //nolint:wrapcheck // ask decides what it means
			}
			part = part[n:]
		}
	}
	return nil
}

// overtaken says that the rest of the request is not wanted: the server has
// refused it already, or is gone. What came is kept for whoever reads.
func (c *conn) overtaken() bool {
	s := &c.src
	if s.w == len(s.buf) {
		return false
	}
	n, err := c.glance(s.buf[s.w:])
	if s.w += n; n > 0 {
		s.heard, c.sock.answered = true, true
	}
	if err != nil && n == 0 {
		return !errors.Is(err, errNothing)
	}
	return s.w > len("HTTP/1.1 ") && s.buf[len("HTTP/1.1 ")] >= '3'
}
