package h1

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// answer is what a reader makes of raw bytes.
type answer struct {
	status  int
	body    string
	failed  bool // in the body
	reusing bool
}

// readOurs reads raw as a connection would, with reads into p bytes.
func readOurs(from io.Reader, p int) (answer, error) {
	s := &source{from: from, buf: make([]byte, bufferSize)}
	h, err := s.head(false)
	if err != nil {
		return answer{}, err
	}
	var b body
	b.begin(s, &h)
	a := answer{status: h.Status, reusing: h.reusable()}
	buf := make([]byte, p)
	var all []byte
	for {
		n, err := b.read(buf)
		all = append(all, buf[:n]...)
		if n == 0 && err == nil {
			panic("an empty read")
		}
		if err != nil {
			a.failed, a.body = !errors.Is(err, io.EOF), string(all)
			return a, nil
		}
	}
}

// readNet is the twin: net/http's reader, with interim answers skipped.
func readNet(raw []byte) (answer, error) {
	br := bufio.NewReader(bytes.NewReader(raw))
	for {
		resp, err := http.ReadResponse(br, &http.Request{Method: http.MethodPost})
		if err != nil {
			return answer{}, err
		}
		if resp.StatusCode >= 100 && resp.StatusCode < 200 && resp.StatusCode != http.StatusSwitchingProtocols {
			continue
		}
		b, err := io.ReadAll(resp.Body)
		return answer{status: resp.StatusCode, body: string(b), failed: err != nil, reusing: !resp.Close}, nil
	}
}

// FuzzAnswer: whatever comes, in pieces of any size it means the same, and
// what we take for an answer net/http takes for the same one.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n00A;x=\"y\"\r\n0123456789\r\n0\r\nX: y\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 429 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n",
		"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx",
		"HTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "HTTP/1.1 200 OK\r\nX : a\r\n\r\n", "HTTP/1.1 200 OK\nX: a\n\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\nx\n0\n\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"HTTP/1.1 2000 OK\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n", "\r\n\r\n", "",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\na\r\n", 3000) + "0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + strings.Repeat("x", 9000) + "rest",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		whole, err := readOurs(bytes.NewReader(raw), 64<<10)
		for _, from := range []io.Reader{iotest.OneByteReader(bytes.NewReader(raw)), iotest.DataErrReader(bytes.NewReader(raw)), iotest.HalfReader(bytes.NewReader(raw))} {
			if again, errAgain := readOurs(from, 8<<10); again != whole || (err == nil) != (errAgain == nil) {
				t.Fatalf("%+v, %v; in other pieces %+v, %v", whole, err, again, errAgain)
			}
		}
		for _, p := range []int{1, 7, 4096} {
			if again, errAgain := readOurs(bytes.NewReader(raw), p); again != whole || (err == nil) != (errAgain == nil) {
				t.Fatalf("%+v, %v; read by %d bytes %+v, %v", whole, err, p, again, errAgain)
			}
		}
		if err != nil {
			return
		}
		twin, errTwin := readNet(raw)
		if errTwin != nil {
			if bytes.Contains(bytes.ToLower(raw), []byte("trailer:")) {
				return // net/http looks into what it announces
			}
			t.Fatalf("ours %+v, net/http %v", whole, errTwin)
		}
		twin.reusing = whole.reusing
		if !whole.failed && twin != whole {
			t.Fatalf("ours %+v, net/http %+v", whole, twin)
		}
	})
}

// TestLinesAreBounded: what never ends is not read for ever, nor kept.
func TestLinesAreBounded(t *testing.T) {
	endless := func(s string) io.Reader { return &repeated{text: []byte(s)} }
	for name, from := range map[string]io.Reader{
		"status line":         endless("x"),
		"field":               io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n"), endless("x")),
		"fields":              io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n"), endless("X: y\r\n")),
		"interim":             endless("HTTP/1.1 100 Continue\r\n\r\n"),
		"interim with fields": endless("HTTP/1.1 100 Continue\r\n" + strings.Repeat("X: y\r\n", 5000) + "\r\n"),
	} {
		counted := &counter{from: from}
		if _, err := readOurs(counted, 4096); err == nil || counted.n > maxHead+bufferSize {
			t.Errorf("%s: %v after %d bytes", name, err, counted.n)
		}
	}
	for name, from := range map[string]io.Reader{
		"chunk size":       endless("1"),
		"extensions":       io.MultiReader(strings.NewReader("5;"), endless("x")),
		"trailer":          io.MultiReader(strings.NewReader("0\r\n"), endless("x")),
		"trailers":         io.MultiReader(strings.NewReader("0\r\n"), endless("X: y\r\n")),
		"wasteful framing": endless("1;" + strings.Repeat("x", 100) + "\r\na\r\n"),
	} {
		counted := &counter{from: io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), from)}
		if a, err := readOurs(counted, 4096); err != nil || !a.failed || counted.n > 64<<10 {
			t.Errorf("%s: %+v, %v after %d bytes", name, a, err, counted.n)
		}
	}
}

type repeated struct {
	text []byte
	at   int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		m := copy(p[n:], r.text[r.at:])
		n, r.at = n+m, (r.at+m)%len(r.text)
	}
	return n, nil
}

type counter struct {
	from io.Reader
	n    int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	c.n += n
	return n, err
}

// TestErrorsHoldNothingReceived: their texts are constants.
func TestErrorsHoldNothingReceived(t *testing.T) {
	for _, raw := range []string{
		"a secret\r\n\r\n", "HTTP/1.1 a secret\r\n\r\n", "HTTP/1.1 200 OK\r\na secret\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: a secret\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: a secret\r\n\r\n",
	} {
		_, err := readOurs(strings.NewReader(raw), 100)
		var own Error
		if !errors.As(err, &own) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", raw, err)
		}
	}
}
