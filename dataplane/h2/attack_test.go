package h2

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// unread is a connection whose client has said hello and has read nothing, not
// even what a socket would hold.
func unread(t *testing.T, h http.Handler) (c *conn, far net.Conn, fr *http2.Framer, block func(fields ...string) []byte) {
	t.Helper()
	near, far := net.Pipe()
	hs := &http.Server{MaxHeaderBytes: 32 << 10, HTTP2: &http.HTTP2Config{}}
	s := &server{hs: hs, limits: limitsOf(hs), conns: make(map[*conn]struct{})}
	c = newConn(t.Context(), s, near, near, new(tls.ConnectionState), h)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.serve()
	}()
	t.Cleanup(func() { _ = far.Close(); <-ended })
	_ = far.SetWriteDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(far, http2.ClientPreface)
	fr = http2.NewFramer(far, far)
	_ = fr.WriteSettings()
	var buf bytes.Buffer
	enc := hpack.NewEncoder(&buf)
	return c, far, fr, func(fields ...string) []byte {
		buf.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		return bytes.Clone(buf.Bytes())
	}
}

func (c *conn) waits() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cap(c.out.frames)
}

// TestUnreadHeads: heads need no window, and wait in bounded memory nevertheless.
func TestUnreadHeads(t *testing.T) {
	c, _, fr, block := unread(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Some", strings.Repeat("x", 500))
		w.WriteHeader(http.StatusNoContent)
	}))
	get := block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/")
	for i := range uint32(20000) {
		if fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, EndStream: true, EndHeaders: true, BlockFragment: get}) != nil {
			return // nothing more is read
		}
		if n := c.waits(); n > 1<<20 {
			t.Fatalf("%d bytes wait after %d requests", n, i)
		}
	}
	t.Error("20,000 requests were taken of a client that takes no answer")
}

// TestUnreadUpdates: a client whose window is almost used up is told of every
// byte that it may send more. One that does not read that is cut off.
func TestUnreadUpdates(t *testing.T) {
	c, _, fr, block := unread(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			<-r.Context().Done()
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	for i, path := range []string{"/wait", "/read"} {
		head := block(":method", "POST", ":scheme", "https", ":authority", "h", ":path", path)
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), EndHeaders: true, BlockFragment: head})
	}
	for left := c.limits.connWindow - 2; left > 0; left -= maxFrame {
		_ = fr.WriteData(1, false, make([]byte, min(left, maxFrame)))
	}
	ready := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.intake.left == 2 || c.err != nil
	}
	for i := range 100000 {
		for !ready() {
			runtime.Gosched()
		}
		if fr.WriteData(3, false, []byte{1}) != nil {
			return // cut off
		}
		if n := c.waits(); n > 1<<20 {
			t.Fatalf("%d bytes wait after %d frames", n, i)
		}
	}
	t.Error("it goes on")
}

// TestNamesAreNotKept: names of fields are remembered for as long as their
// connection lives, and so only short ones.
func TestNamesAreNotKept(t *testing.T) {
	c, kept := new(conn), 0
	for i := range 2 * maxNames {
		for _, size := range []int{maxName - 5, 30 << 10} {
			name := fmt.Sprintf("x%04d%s", i, strings.Repeat("y", size))
			if got, want := c.canonical(name), http.CanonicalHeaderKey(name); got != want {
				t.Fatalf("%.20s became %.20s", name, got)
			}
		}
	}
	for name, as := range c.names {
		kept += len(name) + len(as)
	}
	if kept == 0 || kept > 2*maxNames*maxName {
		t.Errorf("%d bytes of names are kept", kept)
	}
}

// TestClosedBodiesTakeNoWindow: what came of a body that its handler has closed,
// and what still comes, is given back to the other bodies of the connection.
func TestClosedBodiesTakeNoWindow(t *testing.T) {
	closed, finish := make(chan struct{}), make(chan struct{})
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/closes" {
			stage(w, r)
			return
		}
		_, _ = io.ReadFull(r.Body, make([]byte, 1))
		ended := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{r.Body})
			ended <- err
		}()
		_ = r.Body.Close()
		if err := <-ended; err == nil { // it waited
			t.Error("a closed body has an end")
		}
		close(closed)
		<-finish
	}), nil)
	t.Cleanup(func() { close(finish) })
	p := dial(t, ts)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	_ = p.fr.WriteWindowUpdate(0, 1<<20)
	p.ask(1, false, "/closes")
	p.data(1, false, strings.Repeat("x", 10<<10))
	<-closed
	for range 62 {
		p.data(1, false, strings.Repeat("x", maxFrame))
	}
	p.ask(3, false, "/echo")
	for range 32 { // with the above, more than the connection's window
		p.data(3, false, strings.Repeat("y", maxFrame-1))
	}
	p.data(3, true, "")
	if v := p.verdict(1); p.seen[3] == nil || p.seen[3].body.Len() != 32*(maxFrame-1) {
		t.Errorf("%.200s ... %s", v, p.conn)
	}
}

// TestReadersEndWithTheirHandler: who still reads a body when its handler is
// over, as a proxy's transport does, waits for nothing more.
func TestReadersEndWithTheirHandler(t *testing.T) {
	const streams = 20
	ended, finish := make(chan error, streams), make(chan struct{})
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := r.Body
		go func() {
			_, err := io.Copy(io.Discard, struct{ io.Reader }{body})
			ended <- err
		}()
		_, _ = io.WriteString(w, "early")
		_ = http.NewResponseController(w).Flush()
		<-finish
	}), nil)
	p := dial(t, ts)
	p.hello()
	for i := range uint32(streams) {
		p.ask(2*i+1, false, "/")
	}
	for got := 0; got < streams; { // all handlers have begun, and their readers wait
		p.next()
		got = 0
		for id := range p.open {
			if a := p.seen[id]; a != nil && a.body.Len() > 0 {
				got++
			}
		}
	}
	close(finish)
	for range streams {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("a body that was cut off has an end")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("it waits")
		}
	}
}

// TestNothingIsSentTwice: after a write that failed in the middle nothing more
// is sent of the answer, whatever its handler does.
func TestNothingIsSentTwice(t *testing.T) {
	const half = 3 << 10 // is held back at first
	wrote := make(chan error, 3)
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("a"), half))
		control := http.NewResponseController(w)
		_ = control.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)) // time enough for what the window takes
		_, err := w.Write(bytes.Repeat([]byte("b"), half))
		wrote <- err
		_ = control.SetWriteDeadline(time.Now().Add(time.Minute))
		_, err = w.Write(bytes.Repeat([]byte("c"), half))
		wrote <- err
		wrote <- control.Flush()
	}), nil)
	p := dial(t, ts)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2 << 10})
	p.ask(1, true, "/")
	if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the write ended with %v", err)
	}
	_ = p.fr.WriteWindowUpdate(1, 1<<20)
	for what := range 2 {
		if err := <-wrote; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("call %d after it ended with %v", what, err)
		}
	}
	if v := p.verdict(); !strings.HasSuffix(v, "reset INTERNAL_ERROR; open") || p.seen[1].body.String() != strings.Repeat("a", 2<<10) {
		t.Errorf("%d bytes, %s", p.seen[1].body.Len(), v[max(0, len(v)-40):])
	}
}

// TestNoWindow: a handler without a deadline of its own waits no longer than a
// stall for a client that opens no window.
func TestNoWindow(t *testing.T) {
	ended := make(chan struct{})
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), func() { close(ended) })
		_, _ = io.WriteString(w, "no")
	}), func(s *http.Server) { s.HTTP2.WriteByteTimeout = 200 * time.Millisecond })
	p := dial(t, ts)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	p.ask(1, true, "/")
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the handler waits")
	}
}

// TestWindowsOfOneByte: nor for one that opens its window a byte at a time.
func TestWindowsOfOneByte(t *testing.T) {
	ended := make(chan struct{})
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), func() { close(ended) })
		_, _ = io.WriteString(w, strings.Repeat("no", 1000))
	}), func(s *http.Server) { s.HTTP2.WriteByteTimeout = 200 * time.Millisecond })
	p := dial(t, ts)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	p.ask(1, true, "/")
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(10 * time.Second); ; {
		select {
		case <-ended:
			return
		case <-late:
			t.Fatal("the handler waits")
		case <-tick.C:
			_ = p.fr.WriteWindowUpdate(1, 1)
		}
	}
}

// TestSlowToTheEnd: a client that is slow to take its last answer gets all of
// it, though its connection is to end.
func TestSlowToTheEnd(t *testing.T) {
	const size = 60 << 10
	over := make(chan struct{})
	c, _, fr, block := unread(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(make([]byte, size))
		close(over)
	}))
	get := block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/")
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, BlockFragment: get})
	<-over
	c.retire()
	time.Sleep(lingerWait + lingerWait/2) // whoever takes it so late must get it nevertheless
	got, last := 0, false
	for !last {
		f, err := fr.ReadFrame()
		if err != nil {
			t.Fatalf("%d bytes, then %v", got, err)
		}
		if d, ok := f.(*http2.DataFrame); ok {
			got, last = got+len(d.Data()), d.StreamEnded()
		}
	}
	if got != size {
		t.Errorf("%d bytes", got)
	}
}

// TestTheLastAnswerComesFirst: GOAWAY follows the answer that the connection is
// to end with. Python's h2 takes nothing more after it.
func TestTheLastAnswerComesFirst(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), nil)
	for _, ended := range []bool{true, false} {
		p := dial(t, ts)
		p.hello()
		p.ask(1, ended, "/close")
		var order []string
		for !slices.Contains(order, "GOAWAY") {
			f, err := p.fr.ReadFrame()
			if err != nil {
				t.Fatal(order, err)
			}
			if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
				order = append(order, "END")
			} else if f.Header().Type == http2.FrameGoAway {
				order = append(order, "GOAWAY")
			}
		}
		if !slices.Equal(order, []string{"END", "GOAWAY"}) {
			t.Errorf("request ended %t: %v", ended, order)
		}
	}
}

// TestGoAwayNeverTakesBack: a second GOAWAY names no later stream than the
// first, else the client would not ask again what was never served.
func TestGoAwayNeverTakesBack(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), nil)
	p := dial(t, ts)
	p.hello()
	p.ask(1, true, "/wait")
	_ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	p.ask(3, true, "/wait")
	p.raw(http2.FramePing, 0, 1, "12345678") // an error
	var named []uint32
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			break
		}
		if g, ok := f.(*http2.GoAwayFrame); ok {
			named = append(named, g.LastStreamID)
		}
	}
	if !slices.Equal(named, []uint32{1, 1}) {
		t.Error(named)
	}
}

// TestFullDuplex: handlers may ask for what HTTP/2 always is, as with net/http.
func TestFullDuplex(t *testing.T) {
	if err := http.NewResponseController(new(stream)).EnableFullDuplex(); err != nil {
		t.Error(err)
	}
}
