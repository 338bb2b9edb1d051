package dataplane_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"ringmain/dataplane/dialect"
)

// TestSlowBody: who sends a body a byte at a time is told that it did not come in
// time, and holds neither a place nor memory any longer.
func TestSlowBody(t *testing.T) {
	tune := patient
	tune.BodyTimeout = 2 * time.Second // for a handshake, too, which takes its time on a busy machine
	c, key, bodies := counted(t, tune)
	trickle := func(stop <-chan struct{}, send func() error) {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				if send() != nil {
					return
				}
			}
		}
	}
	t.Run("HTTP/1.1", func(t *testing.T) {
		conn := dialRaw(t, c)
		if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n", chat, key); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		var sender sync.WaitGroup
		sender.Go(func() { trickle(stop, func() error { _, err := io.WriteString(conn, " "); return err }) })
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		close(stop)
		sender.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if code := resp.Header.Get("idc-error-code"); resp.StatusCode != http.StatusBadRequest || code != string(dialect.InvalidRequest) || !resp.Close {
			t.Errorf("%d %s, the connection ends: %t", resp.StatusCode, code, resp.Close)
		}
	})
	t.Run("HTTP/2", func(t *testing.T) {
		f, conn := frames(t, c, key, 100_000)
		var mu sync.Mutex // of the framer
		stop := make(chan struct{})
		var sender sync.WaitGroup
		sender.Go(func() {
			trickle(stop, func() error {
				mu.Lock()
				defer mu.Unlock()
				return f.WriteData(1, false, []byte(" "))
			})
		})
		defer func() { close(stop); sender.Wait() }()
		in := http2.NewFramer(io.Discard, conn)
		in.ReadMetaHeaders = f.ReadMetaHeaders
		for {
			frame, err := in.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if head, ok := frame.(*http2.MetaHeadersFrame); ok {
				if status := head.PseudoValue("status"); status != "400" {
					t.Errorf("status %s", status)
				}
				return
			}
		}
	})
	poll(t, "no request under way", func() bool { return c.worker.Health().InFlight == 0 })
	if n := len(bodies()); n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
	c.fine(t, key)
}

// TestSlowHandshakes: connections that do not shake hands, or not to the end,
// are ended by the header time, and keep nobody out.
func TestSlowHandshakes(t *testing.T) {
	tune := patient
	tune.HeaderTimeout = 3 * time.Second
	c, key, _ := counted(t, tune)
	var all sync.WaitGroup
	for i := range 60 {
		conn, err := net.Dial("tcp", c.api)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		switch i % 3 {
		case 1: // the beginning of a ClientHello
			_, _ = conn.Write([]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"))
		case 2: // no TLS
			_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nX-A: "+strings.Repeat("a", 100))
		}
		all.Go(func() {
			_ = conn.SetReadDeadline(time.Now().Add(15 * time.Second))
			if _, err := io.Copy(io.Discard, conn); err != nil {
				if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
					t.Errorf("connection %d is open still", i)
				}
			}
		})
	}
	c.fine(t, key)
	all.Wait()
	c.fine(t, key)
}
