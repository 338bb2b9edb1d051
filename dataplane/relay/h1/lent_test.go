package h1_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// TestBodyIsTheCallersAgain: when Do has returned, however it ended, nobody reads
// the request's body any more. What the caller puts into its memory then, which may
// be another client's request, the server never sees.
func TestBodyIsTheCallersAgain(t *testing.T) {
	const size = 8 << 20 // more than the kernel takes
	for _, secure := range []bool{false, true} {
		for name, c := range map[string]struct {
			early string        // said before the rest is read
			cut   bool          // then the connection is reset
			deaf  bool          // the rest is read only after Do has returned
			due   time.Duration // for the client; 0 = enough
			leave time.Duration // after which the client's context ends; 0 = it does not
		}{
			"an answer to all of it":            {},
			"an early answer":                   {early: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"},
			"an early answer, and nothing read": {early: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", deaf: true},
			"an early refusal":                  {early: "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno", deaf: true},
			"a reset":                           {cut: true},
			"a deadline":                        {deaf: true, due: 200 * time.Millisecond},
			"a client that leaves":              {deaf: true, leave: 200 * time.Millisecond},
		} {
			t.Run(fmt.Sprintf("tls=%t/%s", secure, name), func(t *testing.T) {
				var foreign atomic.Int64
				returned, over := make(chan struct{}), make(chan struct{})
				s := serve(t, secure, func(k *talk) {
					defer close(over)
					if _, err := http.ReadRequest(k.br); err != nil {
						return
					}
					buf := make([]byte, 64<<10)
					hear := func(n int) {
						for n > 0 {
							m, err := k.br.Read(buf[:min(n, len(buf))])
							foreign.Add(int64(m - bytes.Count(buf[:m], []byte{'x'})))
							if n -= m; err != nil {
								return
							}
						}
					}
					hear(100 << 10)
					k.say(c.early)
					switch {
					case c.cut:
						k.reset()
						return
					case c.deaf:
						<-returned
					}
					hear(size - 100<<10)
					if c.early == "" {
						k.say(good)
					}
					k.wait()
				})
				body := bytes.Repeat([]byte{'x'}, size)
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if c.leave > 0 {
					time.AfterFunc(c.leave, leave)
				}
				due := within(patient)
				if c.due > 0 {
					due = within(c.due)
				}
				r, err := s.pool(t).Do(ctx, request(t, body[:size/3], body[size/3:]), due)
				copy(body, bytes.Repeat([]byte{'y'}, size))
				close(returned)
				if r != nil {
					if _, err := io.ReadFull(r, make([]byte, 2)); err != nil {
						t.Error(err)
					}
					_ = r.Close()
				}
				if failed := c.cut || c.due > 0 || c.leave > 0; failed != (err != nil) {
					t.Error(err)
				}
				<-over
				if n := foreign.Load(); n > 0 {
					t.Errorf("the server saw %d bytes of what came later", n)
				}
			})
		}
	}
}
