package relay

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/internal/testkit/logkit"
)

// TestHTTP2CausesHoldNoContent: what an upstream says over HTTP/2 does not
// reach a log, nor what it puts into a field's name, in the
// head or behind the events.
func TestHTTP2CausesHoldNoContent(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.EnableHTTP2 = true
		s.StartTLS()
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go oddHTTP2(tls.Server(conn, &tls.Config{Certificates: s.TLS.Certificates, NextProtos: []string{"h2"}}), late)
			}
		}()
		c := New(Config{UpstreamRoots: rootsOf(s)})
		ask := askOf(record("https://" + l.Addr().String()))
		ask.Streamed = true
		r := c.Upstream(t.Context(), ask)
		cause := r.Cause
		if late && cause == nil {
			b := r.Stream.Next()
			for b.Broken == nil {
				b = r.Stream.Next()
			}
			cause = b.Broken.Cause
		}
		if cause == nil || strings.Contains(cause.Error(), "secret") || !strings.Contains(fmt.Sprint(cause), "PROTOCOL_ERROR") {
			t.Errorf("late %t: %v", late, cause)
		}
		r.Release()
		c.Close()
		_ = l.Close()
		s.Close()
	}
}

// TestNetHTTPPrintsNothing: net/http writes to the process's standard log what
// comes unasked on an idle HTTP/1.1 connection, such as the rest of an answer.
// So it may never have one: a host that chose HTTP/2 first, and then does not,
// fails once and is asked over an own connection.
func TestNetHTTPPrintsNothing(t *testing.T) {
	var printed logkit.Buffer
	log.SetOutput(&printed)
	defer log.SetOutput(os.Stderr)
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	said := make(chan struct{}, 8)
	go func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			protocols := []string{"http/1.1"}
			if i == 0 {
				protocols[0] = "h2"
			}
			go chatty(tls.Server(conn, &tls.Config{Certificates: s.TLS.Certificates, NextProtos: protocols}), said)
		}
	}()
	c := New(Config{UpstreamRoots: rootsOf(s)})
	defer c.Close()
	var statuses []int
	var causes []error
	for range 2 {
		r := c.Upstream(t.Context(), askOf(record("https://"+l.Addr().String())))
		statuses, causes = append(statuses, r.Status), append(causes, r.Cause)
		r.Release()
	}
	if !slices.Equal(statuses, []int{0, http.StatusOK}) {
		t.Fatalf("statuses %v, %v", statuses, causes)
	}
	<-said
	time.Sleep(50 * time.Millisecond) // for who would print it
	if got := printed.String(); strings.Contains(got, "secret") {
		t.Error(got)
	}
}

// chatty answers, and says more a little later.
func chatty(conn *tls.Conn, said chan<- struct{}) {
	defer func() { _ = conn.Close() }()
	if conn.Handshake() != nil || conn.ConnectionState().NegotiatedProtocol == "h2" {
		return
	}
	q, err := http.ReadRequest(bufio.NewReader(conn))
	if err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, q.Body)
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(plainText), plainText)
	time.Sleep(20 * time.Millisecond)
	_, _ = io.WriteString(conn, "a secret of the answer's")
	said <- struct{}{}
}

// oddHTTP2 answers with a field whose name is none, in the head or at the end.
func oddHTTP2(conn *tls.Conn, late bool) {
	defer func() { _ = conn.Close() }()
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := http2.NewFramer(conn, conn)
	f.AllowIllegalWrites = true
	_ = f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		if h, ok := frame.(*http2.SettingsFrame); ok && !h.IsAck() {
			_ = f.WriteSettingsAck()
		}
		h, ok := frame.(*http2.HeadersFrame)
		if !ok {
			continue
		}
		var b bytes.Buffer
		e := hpack.NewEncoder(&b)
		head := func(end bool, fields ...string) {
			b.Reset()
			for i := 0; i < len(fields); i += 2 {
				_ = e.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
			}
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, BlockFragment: b.Bytes(), EndHeaders: true, EndStream: end})
		}
		if !late {
			head(true, ":status", "200", "a secret of the prompt's", "x")
			continue
		}
		head(false, ":status", "200", "content-type", "text/event-stream")
		_ = f.WriteData(h.StreamID, false, []byte("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n"))
		head(true, "a secret of the answer's", "x")
	}
}
