package dataplane_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestShapesOfHTTP1: shapes of requests that readers take for different things
// get one clear answer each, nothing behind them is taken for a request, and the
// connection of what is refused ends.
func TestShapesOfHTTP1(t *testing.T) {
	c, key, bodies := counted(t, patient)
	body := ask("m", false)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(body))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	auth := "Host: x\r\nAuthorization: Bearer " + key + "\r\nContent-Type: application/json\r\n"
	post := "POST " + chat + " HTTP/1.1\r\n"
	inner := post + auth + length + "\r\n" + body
	for _, shape := range []struct {
		name, request string
		want          int // status
	}{
		{"length, then coding: the coding counts", post + auth + length + "Transfer-Encoding: chunked\r\n\r\n" + chunked, 200},
		{"coding, then length: the coding counts", post + auth + "Transfer-Encoding: chunked\r\n" + length + "\r\n" + chunked, 200},
		{"two lengths that agree", post + auth + length + length + "\r\n" + body, 200},
		{"two lengths that differ", post + auth + length + "Content-Length: 0\r\n\r\n" + body + inner, 400},
		{"an empty length", post + auth + "Content-Length: \r\n\r\n" + body + inner, 400},
		{"two codings", post + auth + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + inner, 501},
		{"a coding after chunked", post + auth + "Transfer-Encoding: chunked, identity\r\n\r\n" + chunked + inner, 501},
		{"a coding that is none", post + auth + "Transfer-Encoding: \"chunked\"\r\n\r\n" + chunked + inner, 501},
		{"space before the colon of a coding", post + auth + "Transfer-Encoding : chunked\r\n" + length + "\r\n" + body + inner, 400},
		{"a tab before the colon", post + auth + "Content-Length\t: 5\r\n" + length + "\r\n" + body + inner, 400},
		{"a space before the first name", post + " X-A: b\r\n" + auth + length + "\r\n" + body + inner, 400},
		{"no name", post + auth + ": b\r\n" + length + "\r\n" + body + inner, 400},
		{"no colon", post + auth + "X-A\r\n" + length + "\r\n" + body + inner, 400},
		{"carriage return alone in a value", post + auth + "X-A: b\rContent-Length: 5\r\n" + length + "\r\n" + body + inner, 400},
		{"no host", post + strings.TrimPrefix(auth, "Host: x\r\n") + length + "\r\n" + body + inner, 400},
		{"two hosts", post + auth + "Host: y\r\n" + length + "\r\n" + body + inner, 400},
		{"a host that is none", post + strings.Replace(auth, "Host: x", "Host: x/y z", 1) + length + "\r\n" + body + inner, 400},
		{"a whole URL as target", "POST https://x" + chat + " HTTP/1.1\r\n" + auth + length + "\r\n" + body + inner, 400},
		{"a whole URL of another host", "POST https://evil.example" + chat + " HTTP/1.1\r\n" + auth + length + "\r\n" + body + inner, 400},
		{"an asterisk as target", "OPTIONS * HTTP/1.1\r\n" + auth + "\r\n" + inner, 400},
		{"the version of HTTP/2", "POST " + chat + " HTTP/2.0\r\n" + auth + length + "\r\n" + body + inner, 505},
		{"no version", "POST " + chat + "\r\n" + auth + length + "\r\n" + body + inner, 400},
		{"two spaces in the request line", "POST  " + chat + " HTTP/1.1\r\n" + auth + length + "\r\n" + body + inner, 400},
		{"a method with a space", "PO ST " + chat + " HTTP/1.1\r\n" + auth + length + "\r\n" + body + inner, 400},
		{"a chunk extension of 64 KiB", post + auth + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x;a=%s\r\n%s\r\n0\r\n\r\n", len(body), strings.Repeat("e", 64<<10), body) + inner, 400},
		{"chunk extensions without end", post + auth + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;a="+strings.Repeat("e", 2000)+"\r\n{\r\n", 100) + "0\r\n\r\n" + inner, 400},
		{"a chunk that is longer than it says", post + auth + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body)-1, body) + inner, 400},
		{"a negative chunk", post + auth + "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + body + "\r\n0\r\n\r\n" + inner, 400},
		{"a chunk size in hex with a prefix", post + auth + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("0x%x\r\n%s\r\n0\r\n\r\n", len(body), body) + inner, 400},
		{"a trailer that would be a header", post + auth + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\nContent-Length: 5\r\n\r\n", len(body), body), 200},
	} {
		before := len(bodies())
		conn := dialRaw(t, c)
		go func() { _, _ = io.WriteString(conn, shape.request) }() // the server may stop reading
		var statuses []int
		ended := false
		for in := bufio.NewReader(conn); ; {
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				ended = !strings.Contains(err.Error(), "timeout")
				break
			}
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode >= 400 && len(bytes.TrimSpace(text)) == 0 {
				t.Errorf("%s: %d says nothing", shape.name, resp.StatusCode)
			}
			statuses = append(statuses, resp.StatusCode)
			if shape.want == 200 { // nothing follows
				break
			}
		}
		if len(statuses) != 1 || statuses[0] != shape.want {
			t.Errorf("%s: answers %v, want %d", shape.name, statuses, shape.want)
		}
		if shape.want != 200 && !ended {
			t.Errorf("%s: the connection stays open", shape.name)
		}
		for _, b := range bodies()[before:] {
			if shape.want != 200 || b != body {
				t.Errorf("%s: the upstream was sent %q", shape.name, b)
			}
		}
		_ = conn.Close()
		t.Logf("BADINPUT HTTP/1.1: %s -> %v", shape.name, statuses)
	}
	c.fine(t, key)
}

// TestShapesOfHTTP2: what HTTP/2 forbids in a request, since a server further
// on might read it otherwise, reaches no upstream, and ends the stream or the
// connection, or is answered 400.
func TestShapesOfHTTP2(t *testing.T) {
	c, key, bodies := counted(t, patient)
	body := ask("m", false)
	for _, shape := range []struct {
		name   string
		change map[string]string // of pseudo headers; "" = left out
		more   [][2]string
		good   bool
	}{
		{name: "as it should be", good: true},
		{name: "te: trailers", more: [][2]string{{"te", "trailers"}}, good: true},
		{name: "connection", more: [][2]string{{"connection", "close"}}},
		{name: "keep-alive", more: [][2]string{{"keep-alive", "timeout=5"}}},
		{name: "proxy-connection", more: [][2]string{{"proxy-connection", "keep-alive"}}},
		{name: "upgrade", more: [][2]string{{"upgrade", "h2c"}}},
		{name: "transfer-encoding", more: [][2]string{{"transfer-encoding", "chunked"}}},
		{name: "te that is not trailers", more: [][2]string{{"te", "gzip"}}},
		{name: "a length that is too small", more: [][2]string{{"content-length", "5"}}},
		{name: "a length that is too large", more: [][2]string{{"content-length", "5000"}}},
		{name: "two lengths", more: [][2]string{{"content-length", fmt.Sprint(len(body))}, {"content-length", "5"}}},
		{name: "a name in capitals", more: [][2]string{{"X-A", "b"}}},
		{name: "a name with a colon", more: [][2]string{{"x:a", "b"}}},
		{name: "a value with a line end", more: [][2]string{{"x-a", "b\r\nx-b: c"}}},
		{name: "a name with a line end", more: [][2]string{{"x-a\r\nx-b", "c"}}},
		{name: "a pseudo header after others", more: [][2]string{{":path", "/v1/models"}}},
		{name: "an unknown pseudo header", change: map[string]string{":proto": "x"}},
		{name: "no method", change: map[string]string{":method": ""}},
		{name: "no path", change: map[string]string{":path": ""}},
		{name: "a whole URL as path", change: map[string]string{":path": "https://x" + chat}},
		{name: "a path with a line end", change: map[string]string{":path": chat + " HTTP/1.1\r\nX-A: b"}},
		{name: "an authority with a path", change: map[string]string{":authority": "x/y"}},
		{name: "an authority with a line end", change: map[string]string{":authority": "x\r\nX-A: b"}},
		{name: "a host beside the authority that differs", more: [][2]string{{"host", "evil.example"}}},
		{name: "CONNECT", change: map[string]string{":method": "CONNECT", ":path": "", ":scheme": ""}},
	} {
		before := len(bodies())
		conn := dialH2(t, c)
		status, how := "", ""
		func() {
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			f := http2.NewFramer(conn, conn)
			f.AllowIllegalWrites = true
			f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
			_ = f.WriteSettings() // a failure shows below
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			pseudo := [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", chat}}
			if v := shape.change[":proto"]; v != "" {
				pseudo = append(pseudo, [2]string{":proto", v})
			}
			for _, h := range pseudo {
				if v, ok := shape.change[h[0]]; ok {
					h[1] = v
				}
				if h[1] != "" {
					_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
				}
			}
			for _, h := range append([][2]string{{"authorization", "Bearer " + key}, {"content-type", "application/json"}}, shape.more...) {
				_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
			}
			_ = f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
			_ = f.WriteData(1, true, []byte(body))
			for {
				_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
				frame, err := f.ReadFrame()
				if err != nil {
					how = "closed"
					if !errors.Is(err, io.EOF) && strings.Contains(err.Error(), "timeout") {
						how = "nothing"
					}
					return
				}
				switch frame := frame.(type) {
				case *http2.MetaHeadersFrame:
					status = frame.PseudoValue("status")
					if frame.StreamEnded() {
						return
					}
				case *http2.DataFrame:
					if frame.StreamEnded() {
						return
					}
				case *http2.RSTStreamFrame:
					how = "reset"
					return
				case *http2.GoAwayFrame:
					if frame.ErrCode != http2.ErrCodeNo {
						how = "goaway"
						return
					}
				}
			}
		}()
		_ = conn.Close()
		reached := len(bodies()) - before
		switch {
		case shape.good && (status != "200" || reached != 1):
			t.Errorf("%s: status %q %s, %d reached the upstream", shape.name, status, how, reached)
		case !shape.good && (reached != 0 || status == "200" || how == "nothing"):
			t.Errorf("%s: status %q %s, %d reached the upstream", shape.name, status, how, reached)
		}
		t.Logf("BADINPUT HTTP/2: %s -> %s %s", shape.name, status, how)
	}
	c.fine(t, key)
}
