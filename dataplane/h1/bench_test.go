package h1

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// BenchmarkRequest is a request of 500 bytes with an answer of 18 fields and
// 1.2 KB, over TLS on loopback, by this server and by net/http's.
func BenchmarkRequest(b *testing.B) {
	names := make([]string, 16)
	for i := range names {
		names[i] = fmt.Sprintf("X-Name-%d", i)
	}
	value, body := []string{"some value of a field"}, []byte(strings.Repeat("x", 1200))
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		h := w.Header()
		for _, name := range names {
			h[name] = value
		}
		h["Content-Type"], h["Content-Length"] = []string{"application/json"}, []string{"1200"}
		_, _ = w.Write(body)
	})
	for name, ours := range map[string]bool{"ours": true, "net_http": false} {
		b.Run(name, func(b *testing.B) {
			nc := start(b, ours, handler, nil).dial(b)
			in := bufio.NewReader(nc)
			ask := post("/v1/chat/completions", strings.Repeat("y", 500), "Content-Type: application/json", "Authorization: Bearer "+strings.Repeat("k", 60),
				"User-Agent: some-client/1.0", "Accept: application/json", "Accept-Encoding: gzip")
			b.ReportAllocs()
			for b.Loop() {
				if _, err := io.WriteString(nc, ask); err != nil {
					b.Fatal(err)
				}
				for left := -1; left != 0; { // the head, then the body: without memory
					line, err := in.ReadSlice('\n')
					if err != nil {
						b.Fatal(err)
					}
					if len(line) == 2 {
						_, err = in.Discard(len(body))
						left = 0
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
