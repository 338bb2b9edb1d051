package h1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http/httpguts"
)

const (
	// holdBack is how much of an answer waits for more of it.
	holdBack = 4 << 10
	// together is how much goes out in one write, even if it has to be copied: a
	// record of TLS holds no more.
	together     = 16 << 10
	keepBuffer   = 2 * together
	answerFields = 24 // for which an answer has room at first
	sizeRoom     = 6  // bytes for the size of a chunk that was held back, and its CRLF
)

var errAnswered = errors.New("h1: the answer is over")

// answer is one answer: its handler's http.ResponseWriter.
type answer struct {
	c      *conn
	r      request
	life   life
	body   body
	header http.Header
	by     time.Time // for the client to take what is written; zero = see conn.send

	status   int // 0 = no head was written
	declared int64
	wrote    int64
	bare     bool // has no body
	mute     bool // what is written of the body is not sent: HEAD
	typed    bool // needs no type: it has one, or nothing to be of a type
	chunked  bool
	headSent bool
	close    bool // the connection ends with it
	deaf     bool // nothing more of the request may be read
	over     bool // the handler returned

	buffer *[]byte // that out began in; nil = nothing is held back
	out    []byte
	body0  int // where in out the body begins that is held back, of a chunk its room for the size
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// hold makes sure that there is memory to hold something back.
func (a *answer) hold() {
	if a.buffer == nil {
		a.buffer = buffers.Get().(*[]byte) //nolint:forcetypeassert // only these are put
		a.out, a.body0 = (*a.buffer)[:0], 0
	}
}

// drop gives the memory back.
func (a *answer) drop() {
	if a.buffer != nil {
		if cap(a.out) <= keepBuffer {
			*a.buffer = a.out[:0]
			buffers.Put(a.buffer)
		}
		a.buffer, a.out, a.body0 = nil, nil, 0
	}
}

// answer runs the handler for a request. false: the connection is over.
func (c *conn) answer(a *answer, arrived time.Time) bool {
	r := &a.r
	a.header, a.declared, a.close = make(http.Header, answerFields), -1, r.close
	a.body = body{c: c, chunked: r.chunked, expects: r.expects, left: max(0, r.ContentLength)}
	r.Body = http.NoBody
	if r.chunked || r.ContentLength > 0 {
		r.Body = &a.body
		c.setReadBy(arrived, c.limits.request)
	} else {
		a.body.err = io.EOF
		c.allRead()
	}
	if c.limits.answer > 0 {
		a.by = time.Now().Add(c.limits.answer)
	}
	c.posted = r.Method == http.MethodPost
	r.RemoteAddr, r.TLS = c.remote, c.tls
	if !a.run() {
		return false // its memory is left to the collector: a goroutine of its handler may write still
	}
	a.drop()
	c.unwatch()
	if !a.close {
		return true
	}
	if whole := a.body.whole(); c.failed == nil && (!whole || !r.last) {
		c.linger(a.deaf)
	}
	return false
}

// run runs the handler and ends the answer as it left it. false: it is not
// whole, and nothing may follow.
func (a *answer) run() bool {
	whole := false
	a.c.current.Store(&a.life)
	if a.c.gone.Load() {
		a.life.end()
	}
	defer func() {
		a.over = true
		a.life.end()
		a.c.current.Store(nil)
		if !whole && a.headSent && !a.chunked && a.declared < 0 {
			_ = a.c.below.Close() // without TLS's own end, which would say that it is whole
		}
	}()
	a.c.s.hs.Handler.ServeHTTP(a, a.r.Request)
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	ended := a.send(nil, true) == nil
	whole = ended && (a.bare || a.mute || a.declared < 0 || a.wrote == a.declared)
	return whole
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	switch {
	case a.over || a.status != 0:
		return
	case status < 100 || status > 999 || status == http.StatusSwitchingProtocols:
		panic(fmt.Sprintf("h1: status %d", status))
	case status < 200:
		a.interim(status)
		return
	}
	a.status = status
	a.bare = status == http.StatusNoContent || status == http.StatusNotModified
	a.mute = a.r.Method == http.MethodHead
	if length, ok := a.header["Content-Length"]; ok {
		if n, err := strconv.ParseUint(length[0], 10, 63); err == nil && len(length) == 1 && status != http.StatusNoContent {
			a.declared = int64(n)
		} else {
			delete(a.header, "Content-Length")
		}
	}
	a.typed = a.bare || a.header["Content-Type"] != nil || a.header["Content-Encoding"] != nil
	a.close = a.body.unasked() || a.close || !a.body.drain() || !a.c.idle(false)
	for _, v := range a.header["Connection"] {
		a.close = a.close || hasToken(v, "close")
	}
	a.hold()
	a.out = a.appendHead(a.out, status)
	if a.header["Date"] == nil {
		a.out = appendDate(a.out, time.Now())
	}
	if a.close && !a.r.old {
		a.out = append(a.out, "Connection: close\r\n"...)
	}
	if a.declared >= 0 && a.typed {
		a.out = append(a.out, "\r\n"...)
	}
	a.body0 = len(a.out)
}

// interim sends a head before the head.
func (a *answer) interim(status int) {
	if !a.r.old {
		_ = a.c.send(append(a.appendHead(nil, status), "\r\n"...), a.by) // it shows with the next one
	}
}

// appendHead appends a status line and all fields that are the handler's to send.
func (a *answer) appendHead(b []byte, status int) []byte {
	b = appendStatus(b, a.r.old, status)
	for name, values := range a.header {
		if status < 200 && name == "Content-Length" { // of what is still to come (RFC 9110, 8.6)
			continue
		}
		switch name {
		case "Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Trailer", "Upgrade": // the server's
			continue
		}
		if !httpguts.ValidHeaderFieldName(name) {
			continue
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldValue(v) {
				b = append(append(append(append(b, name...), ": "...), v...), "\r\n"...)
			}
		}
	}
	return b
}

func appendStatus(b []byte, old bool, status int) []byte {
	if status == http.StatusOK && !old {
		return append(b, "HTTP/1.1 200 OK\r\n"...)
	}
	version := "HTTP/1.1 "
	if old {
		version = "HTTP/1.0 "
	}
	b = strconv.AppendInt(append(b, version...), int64(status), 10)
	text := http.StatusText(status)
	if text == "" {
		text = "status code " + strconv.Itoa(status)
	}
	return append(append(append(b, ' '), text...), "\r\n"...)
}

// stamp is the present second as a Date field.
type stamp struct {
	second int64
	field  string
}

var lastStamp atomic.Pointer[stamp]

func appendDate(b []byte, now time.Time) []byte {
	s := lastStamp.Load()
	if second := now.Unix(); s == nil || s.second != second {
		s = &stamp{second, "Date: " + now.UTC().Format(http.TimeFormat) + "\r\n"}
		lastStamp.Store(s)
	}
	return append(b, s.field...)
}

// Write implements http.ResponseWriter. The last of an answer whose length was
// declared waits until its handler returns: whoever has all of an answer may
// ask what the handler does after it.
func (a *answer) Write(p []byte) (int, error) {
	if a.over {
		return 0, errAnswered
	}
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	n := len(p)
	switch {
	case n == 0:
		return 0, nil
	case a.bare:
		return 0, http.ErrBodyNotAllowed
	case a.declared >= 0 && a.wrote+int64(n) > a.declared:
		return 0, http.ErrContentLength
	}
	a.wrote += int64(n)
	if a.held()+n > holdBack {
		keep := 0
		if a.wrote == a.declared {
			keep = min(n, holdBack)
		}
		if err := a.send(p[:n-keep], false); err != nil {
			return 0, err
		}
		p = p[n-keep:]
	}
	if len(p) > 0 {
		a.hold()
		if a.chunked && a.body0 == len(a.out) {
			a.out = append(a.out, make([]byte, sizeRoom)...)
		}
		a.out = append(a.out, p...)
	}
	return n, nil
}

// held is how much of the body is held back.
func (a *answer) held() int {
	n := len(a.out) - a.body0
	if a.chunked && n > 0 {
		n -= sizeRoom
	}
	return n
}

// Flush implements http.Flusher.
func (a *answer) Flush() { _ = a.FlushError() }

// FlushError is for http.ResponseController.
func (a *answer) FlushError() error {
	if a.over {
		return errAnswered
	}
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	return a.send(nil, false)
}

// SetReadDeadline is for http.ResponseController. It bounds the reading of the
// request's body, that by the server included.
func (a *answer) SetReadDeadline(t time.Time) error {
	if a.over {
		return errAnswered
	}
	a.deaf = !t.IsZero() && !t.After(time.Now())
	c := a.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readBy = t
	if !c.watched { // else nothing of it is still read
		c.armed = t
		_ = c.below.SetReadDeadline(t) // for a read that waits already
	}
	return nil
}

// SetWriteDeadline is for http.ResponseController. It bounds the wait for the
// client to take what is written from now on.
func (a *answer) SetWriteDeadline(t time.Time) error {
	if a.over {
		return errAnswered
	}
	a.by = t
	return nil
}

// settleHead completes the head, now that something is sent. end: the handler
// has returned, and p is the last of the body.
func (a *answer) settleHead(p []byte, end bool) {
	a.headSent = true
	if a.declared >= 0 && a.typed {
		return
	}
	held := a.out[a.body0:]
	spare := buffers.Get().(*[]byte) //nolint:forcetypeassert // only these are put
	b := append((*spare)[:0], a.out[:a.body0]...)
	if !a.typed && len(held)+len(p) > 0 {
		kind := http.DetectContentType(slices.Concat(held, p[:min(len(p), 512)]))
		b = append(append(append(b, "Content-Type: "...), kind...), "\r\n"...)
	}
	switch {
	case a.bare, a.declared >= 0:
	case end && (!a.mute || len(held)+len(p) > 0):
		a.declared = int64(len(held) + len(p))
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), a.declared, 10), "\r\n"...)
	case a.mute, a.r.old: // the end of the connection is its end
	default:
		a.chunked = true
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	b = append(b, "\r\n"...)
	body0 := len(b)
	if a.chunked && len(held) > 0 {
		b = append(b, make([]byte, sizeRoom)...)
	}
	b = append(b, held...)
	a.drop()
	a.buffer, a.out, a.body0 = spare, b, body0
}

// send sends what was held back and p. end: there is no more.
func (a *answer) send(p []byte, end bool) error {
	if !a.headSent {
		a.settleHead(p, end)
	}
	if a.mute {
		a.out, p = a.out[:a.body0], nil
	}
	var after string
	if a.chunked {
		a.hold()
		if a.frame(len(p)) {
			after = "\r\n"
		}
		if end {
			after += "0\r\n\r\n"
		}
	}
	if len(a.out)+len(p)+len(after) == 0 {
		return a.c.failed
	}
	if len(a.out)+len(p) <= together { // one record
		a.hold()
		a.out = append(append(a.out, p...), after...)
		p, after = nil, ""
	}
	var err error
	for _, b := range [][]byte{a.out, p, []byte(after)} {
		if err == nil && len(b) > 0 {
			err = a.c.send(b, a.by)
		}
	}
	a.drop()
	return err
}

// frame writes the size of the chunk that is held back, with more bytes behind
// it, into the room for it. false: there is none.
func (a *answer) frame(more int) bool {
	n := a.held()
	if n+more > 0 {
		size := strconv.AppendInt(make([]byte, 0, sizeRoom+16), int64(n+more), 16)
		size = append(size, "\r\n"...)
		a.out = slices.Replace(a.out, a.body0, len(a.out)-n, size...)
	}
	return n+more > 0
}
