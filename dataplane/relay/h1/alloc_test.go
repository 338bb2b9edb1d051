//go:build !race

package h1_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
)

// quickServer answers without allocating: what it costs is not counted.
func quickServer(t testing.TB, secure bool, size int, answer string) *server {
	return serve(t, secure, func(c *talk) {
		buf, raw := make([]byte, 4096), []byte(answer)
		for have := 0; ; {
			n, err := c.Conn.Read(buf)
			if err != nil {
				return
			}
			if have += n; have >= size {
				have = 0
				if _, err := c.Conn.Write(raw); err != nil {
					return
				}
			}
		}
	})
}

// TestAllocations: a request over a kept connection costs four allocations, the
// Response, the provider's request id, and two in context.AfterFunc; the
// answer's size and the number of its chunks cost none.
func TestAllocations(t *testing.T) {
	for name, answer := range map[string]string{
		"length":     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: req_0123456789\r\nServer: x\r\nDate: x\r\n" + five,
		"100 chunks": "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: req_0123456789\r\n" + chunked + string(bytes.Repeat([]byte("5\r\nhello\r\n"), 100)) + "0\r\n\r\n",
	} {
		for _, secure := range []bool{false, true} {
			req := request(t, []byte(`{"model":"m"}`))
			size := len("POST /v1/chat/completions HTTP/1.1\r\nHost: provider.example\r\nAuthorization: Bearer secret\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"model\":\"m\"}")
			p := quickServer(t, secure, size, answer).pool(t)
			ctx, cancel := context.WithCancel(t.Context()) // a server gives each request such a one
			defer cancel()
			buf := make([]byte, 8192)
			ask := func() {
				r, err := p.Do(ctx, req, within(patient))
				if err != nil {
					t.Fatal(err)
				}
				for err == nil {
					_, err = r.Read(buf)
				}
				if !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				_ = r.Close()
			}
			ask()
			most := 4.0
			if secure {
				most += 3 // crypto/tls, of both sides
			}
			if n := testing.AllocsPerRun(200, ask); n > most {
				t.Errorf("%s, tls=%t: %.1f allocations a request, want %.0f", name, secure, n, most)
			}
		}
	}
}
