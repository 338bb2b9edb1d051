package relay

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/internal/testkit/netkit"
)

// hijacked answers with raw bytes, and keeps the connection open if asked.
func hijacked(raw string, keep bool) http.HandlerFunc {
	return func(w http.ResponseWriter, q *http.Request) {
		_, _ = io.Copy(io.Discard, q.Body)
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, raw)
		if keep {
			_, _ = bufio.NewReader(conn).ReadByte()
		}
		_ = conn.Close()
	}
}

// TestSwitchedProtocols: nobody asked for it, and net/http then reads without
// any bound.
func TestSwitchedProtocols(t *testing.T) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r, _ := upstreamOf(t, hijacked("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", true), nil)
		if r.Outcome != breaker.ServerError {
			t.Errorf("%v, %v", r.Outcome, r.Cause)
		}
		r.Release()
	}()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Fatal("the attempt does not end")
	}
}

// TestCausesHoldNoContent: what an upstream says outside HTTP does not reach a log.
func TestCausesHoldNoContent(t *testing.T) {
	for _, raw := range []string{
		`{"choices":[{"message":{"content":"a secret"}}]}` + "\r\n\r\n",
		"HTTP/1.1 200 OK\r\na secret\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n0\r\na secret\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: a secret\r\n\r\n",
	} {
		r, _ := upstreamOf(t, hijacked(raw, false), func(a *Ask) { a.Streamed = true })
		if r.Cause == nil || strings.Contains(fmt.Sprint(r.Cause), "a secret") {
			t.Errorf("%q: %v", raw, r.Cause)
		}
		r.Release()
	}
	r, _ := upstreamOf(t, func(http.ResponseWriter, *http.Request) {}, func(a *Ask) { a.Upstream.Upstream.BaseURL = "http://" + netkit.Address() })
	if r.Cause == nil || !strings.Contains(r.Cause.Error(), "refused") {
		t.Errorf("the reason is lost: %v", r.Cause)
	}
}

// TestPlainAnswerInPieces: the idle time is that between two reads.
func TestPlainAnswerInPieces(t *testing.T) {
	r, _ := upstreamOf(t, func(w http.ResponseWriter, _ *http.Request) {
		for _, s := range []string{`{"choi`, `ces`, `":`, `[`, `]}`} {
			_, _ = io.WriteString(w, s)
			_ = http.NewResponseController(w).Flush()
			time.Sleep(500 * time.Millisecond)
		}
	}, func(a *Ask) { a.Timeouts.Idle = 2 * time.Second })
	if r.Outcome != breaker.OK {
		t.Errorf("%v, %v", r.Outcome, r.Cause)
	}
	r.Release()
}
