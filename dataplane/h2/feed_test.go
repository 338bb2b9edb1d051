package h2

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/internal/testkit/logkit"
)

// feed gives a connection b after a good beginning, and checks what it says.
func feed(t *testing.T, b []byte) {
	t.Helper()
	near, far := net.Pipe()
	logged := new(logkit.Buffer)
	hs := &http.Server{ErrorLog: log.New(logged, "", 0), MaxHeaderBytes: 4 << 10, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 5}}
	s := &server{hs: hs, limits: limitsOf(hs), conns: make(map[*conn]struct{})}
	c := newConn(t.Context(), s, near, near, new(tls.ConnectionState), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/panic" {
			stage(w, r)
		}
	}))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.serve()
	}()
	said := make(chan error, 1)
	go func() {
		fr := http2.NewFramer(nil, far)
		fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			if _, err := fr.ReadFrame(); err != nil {
				said <- err
				_, _ = io.Copy(io.Discard, far)
				return
			}
		}
	}()
	_ = far.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_, _ = io.WriteString(far, http2.ClientPreface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00") // it may be closed by then
	_, _ = far.Write(b)
	_ = far.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("it does not end")
	}
	if err := <-said; !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("what came out is no frames: %v", err)
	}
	if strings.Contains(logged.String(), "panic") {
		t.Error(logged.String())
	}
	if left := c.leftBehind(); left != "" {
		t.Error(left)
	}
}

// leftBehind tells what a connection that has ended did not put away.
func (c *conn) leftBehind() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.streams) != 0 || c.running != 0 || len(c.waiting) != 0 || len(c.queue) != 0 || len(c.parked) != 0 || c.out.writing || c.unanswered != 0 || c.server.unanswered.Load() != 0 {
		return fmt.Sprintf("left behind: %d streams, %d handlers, %d waiting, %d in the queue, %d parked, writing %t, %d unanswered, %d of all",
			len(c.streams), c.running, len(c.waiting), len(c.queue), len(c.parked), c.out.writing, c.unanswered, c.server.unanswered.Load())
	}
	if w := c.intake; w.left+w.credit != w.most {
		return fmt.Sprintf("of a window of %d bytes %d are left, and %d to be given back", w.most, w.left, w.credit)
	}
	return ""
}
