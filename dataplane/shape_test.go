package dataplane_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
)

// raw sends text on a connection of its own and reads the answer to it.
func raw(t *testing.T, c *cell, text string) *reply {
	t.Helper()
	conn := dialRaw(t, c)
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	return readReply(t, bufio.NewReader(conn))
}

func readReply(t *testing.T, from *bufio.Reader) *reply {
	t.Helper()
	resp, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if resp.Close {
		resp.Header.Set("connection", "close")
	}
	return &reply{status: resp.StatusCode, header: resp.Header, body: string(b), broken: err, proto: resp.ProtoMajor}
}

// TestOddRequests: what no endpoint can answer gets one clear error, and where
// something else than HTTP may follow, the connection ends.
func TestOddRequests(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	auth := "Host: x\r\nAuthorization: Bearer " + key + "\r\n"
	upgrade := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
	for name, tc := range map[string]struct {
		text string
		code dialect.Code
		want string
	}{
		"WebSocket":              {"GET /v1/realtime?model=m HTTP/1.1\r\n" + auth + upgrade + "\r\n", dialect.InvalidRequest, "does not speak WebSocket"},
		"WebSocket, no key":      {"GET /v1/responses HTTP/1.1\r\nHost: x\r\n" + upgrade + "\r\n", dialect.InvalidRequest, "HTTP streaming"},
		"h2c":                    {"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", dialect.InvalidRequest, "upgrade"},
		"CONNECT":                {"CONNECT example.org:443 HTTP/1.1\r\n" + auth + "\r\n", dialect.MethodNotAllowed, "not a proxy"},
		"absolute target":        {"POST http://example.org/v1/chat/completions HTTP/1.1\r\n" + auth + "Content-Length: 0\r\n\r\n", dialect.InvalidRequest, "send the path alone"},
		"absolute target, https": {"GET https://x/v1/models HTTP/1.1\r\n" + auth + "\r\n", dialect.InvalidRequest, "send the path alone"},
		"asterisk":               {"GET * HTTP/1.1\r\n" + auth + "\r\n", dialect.InvalidRequest, "is no path"},
		"OPTIONS asterisk":       {"OPTIONS * HTTP/1.1\r\n" + auth + "\r\n", dialect.InvalidRequest, "is no path"},
		"OPTIONS":                {"OPTIONS " + chat + " HTTP/1.1\r\n" + auth + "\r\n", dialect.MethodNotAllowed, "POST"},
	} {
		reply := raw(t, c, tc.text)
		reply.wantError(t, dialect.OpenAI, tc.code)
		if !strings.Contains(reply.body, tc.want) {
			t.Errorf("%s: %s", name, reply.body)
		}
		if name != "OPTIONS" && reply.header.Get("connection") != "close" {
			t.Errorf("%s: the connection stays: %v", name, reply.header)
		}
	}
}

// TestExpectContinue: a client that asks first is told to go on if its request
// will be read, and gets its refusal without having sent the body if not.
func TestExpectContinue(t *testing.T) {
	c, key := scripted(t, func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) }, patient)
	body := ask("m", false)
	head := func(key string) string {
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", chat, key, len(body))
	}
	conn := dialRaw(t, c)
	from := bufio.NewReader(conn)
	if _, err := io.WriteString(conn, head(key)); err != nil {
		t.Fatal(err)
	}
	if line, err := from.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("%q %v", line, err)
	}
	_, _ = from.ReadString('\n')
	if _, err := io.WriteString(conn, body); err != nil {
		t.Fatal(err)
	}
	if reply := readReply(t, from); reply.status != 200 || reply.body != plainAnswer {
		t.Errorf("%d %s", reply.status, reply.body)
	}
	if reply := raw(t, c, head("wrong")); reply.status != 401 {
		t.Errorf("%d %s", reply.status, reply.body)
	}
}

// frames speaks HTTP/2 by hand: preface, settings, one request's head.
func frames(t *testing.T, c *cell, key string, length int) (*http2.Framer, net.Conn) {
	t.Helper()
	conn := dialH2(t, c)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := f.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":authority", "x"}, {":path", chat},
		{"authorization", "Bearer " + key}, {"content-length", fmt.Sprint(length)},
	} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	return f, conn
}

// TestTurnedAwayOverHTTP2: a request at the wrong entry is answered from its
// head alone, and no window is opened for its body.
func TestTurnedAwayOverHTTP2(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("euro", "eu", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	const window = 64 << 10 // what HTTP/2 grants before a byte is said
	f, conn := frames(t, c, key, 8<<20)
	var status, code, endpoint string
	granted, reset := uint32(0), false
	for !reset {
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
				// Now that it is known who is there, send as much as is allowed.
				sent := 0
				for junk := make([]byte, 16<<10); sent < window-1; sent += len(junk) {
					junk = junk[:min(len(junk), window-1-sent)]
					if err := f.WriteData(1, false, junk); err != nil {
						t.Fatal(err)
					}
				}
			}
		case *http2.WindowUpdateFrame:
			if frame.StreamID == 1 {
				granted += frame.Increment
			}
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				switch h.Name {
				case ":status":
					status = h.Value
				case "idc-error-code":
					code = h.Value
				case "idc-endpoint":
					endpoint = h.Value
				}
			}
		case *http2.RSTStreamFrame:
			if frame.StreamID != 1 || frame.ErrCode != http2.ErrCodeNo {
				t.Errorf("reset %v", frame)
			}
			reset = true
		}
	}
	if status != "403" || code != "wrong_jurisdiction" || granted > 0 {
		t.Errorf("status %s, code %s, %d more bytes were let in", status, code, granted)
	}
	_ = endpoint // no region of that jurisdiction exists here
	if n := len(c.records); n != 0 {
		t.Errorf("%d records of a request that was turned away by its key alone", n)
	}
}

// TestTurnedAwayNamesTheHost, or says that none is up.
func TestTurnedAwayNamesTheHost(t *testing.T) {
	r := newThreeRegions(t)
	euro, _ := r.org("euro", "eu", "verified", "live")
	pinned, _ := r.org("pinned", "any", "verified", "live")
	r.policy("pol_pinned", &registry.Policy{Org: "org_pinned", Residency: "eu"})
	for _, c := range r.cells {
		c.load(r.state)
	}
	for name, in := range map[string]call{
		"by key": {key: euro}, "by policy": {key: pinned}, "by header": {key: r.key, header: map[string]string{"idc-residency": "eu"}},
	} {
		in.path, in.body = chat, ask("chat", false)
		for _, http2 := range []bool{false, true} {
			reply := r.us.do(r.us.client(http2), in)
			reply.wantError(t, dialect.OpenAI, dialect.WrongJurisdiction)
			if got := reply.header.Get("idc-endpoint"); got != "https://"+r.eu.api {
				t.Errorf("%s: idc-endpoint %q", name, got)
			}
		}
	}
	r.mu.Lock()
	r.down = map[string]bool{"eu-fra": true}
	r.mu.Unlock()
	for name, in := range map[string]call{
		"by key": {key: euro}, "by policy": {key: pinned}, "by header": {key: r.key, header: map[string]string{"idc-residency": "eu"}},
	} {
		in.path, in.body = chat, ask("chat", false)
		for _, http2 := range []bool{false, true} {
			reply := r.us.do(r.us.client(http2), in)
			reply.wantError(t, dialect.OpenAI, dialect.ResidencyUnavailable)
			if got := reply.header.Get("idc-endpoint"); got != "" {
				t.Errorf("%s: idc-endpoint %q", name, got)
			}
		}
	}
	if n := r.sims["eu-fra"].Counts().Total.Requests; n != 0 {
		t.Errorf("%d requests were forwarded", n)
	}
}

// TestNoRoomForRecords: what could not be metered is refused before an
// upstream is asked, here and at the executing node.
func TestNoRoomForRecords(t *testing.T) {
	r := newThreeRegions(t)
	r.us.full.Store(true)
	for d, path := range dialects {
		for _, model := range []string{"home", "chat"} {
			reply := r.us.do(r.us.client(true), call{path: path, key: r.key, body: ask(model, true)})
			reply.wantError(t, d, dialect.MeteringUnavailable)
		}
	}
	r.us.full.Store(false)
	r.eu.full.Store(true)
	r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)}).wantError(t, dialect.OpenAI, dialect.MeteringUnavailable)
	for _, region := range []string{"us-east", "eu-fra"} {
		if n := r.sims[region].Counts().Total.Requests; n != 0 {
			t.Errorf("%s: %d requests reached the upstream", region, n)
		}
	}
	r.eu.full.Store(false)
	if reply := r.us.do(r.us.client(true), call{path: chat, key: r.key, body: ask("chat", false)}); reply.status != 200 {
		t.Error(reply.body)
	}
}
