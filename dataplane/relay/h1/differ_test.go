package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/dataplane/relay/h1"
)

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

func newBuffered(r io.Reader) *bufio.Reader { return bufio.NewReader(r) }

// behaviour is what a server does, on each connection. Both clients ask it
// twice, one after the other, the second time over the same connection if they
// keep it.
type behaviour struct {
	name   string
	method string // POST if empty
	body   int    // bytes of the request's
	// silent: the script falls silent, and the client gives up. Its time begins
	// when it has heard that many bytes of the answer's body, or, where that is
	// none, when nothing more is said: however slow the machine is, the same was
	// heard by then.
	silent bool
	hears  int
	script func(c *talk)
	// want is our verdict on both requests, and the number of connections. It
	// is written down where it differs from net/http's, for the reason in why.
	want string
	why  string
	// varies: net/http's verdict depends on time.
	varies bool
	// closes: net/http gives the connection up after the first answer, once it
	// finds out what came behind it.
	closes bool
}

// silence is how long a client waits in one before it gives up.
const silence = 200 * time.Millisecond

// saying answers every request on a connection with raw.
func saying(raw string) func(*talk) {
	return func(c *talk) {
		for c.request() {
			c.say(raw)
		}
	}
}

// once answers one request on a connection with raw, and closes it.
func once(raw string) func(*talk) {
	return func(c *talk) {
		if c.request() {
			c.say(raw)
		}
	}
}

const (
	ok      = "HTTP/1.1 200 OK\r\n"
	five    = "Content-Length: 5\r\n\r\nhello"
	chunked = "Transfer-Encoding: chunked\r\n\r\n"
	good    = ok + five
)

const strict = "we are stricter: no provider sends it, and readers that disagree on it mix up answers"

var behaviours = []behaviour{
	// How a body ends.
	{name: "length", script: saying(good)},
	{name: "length 0", script: saying(ok + "Content-Length: 0\r\n\r\n")},
	{name: "chunks", script: saying(ok + chunked + "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")},
	{name: "no chunk but the last", script: saying(ok + chunked + "0\r\n\r\n")},
	{name: "until the end", script: once(ok + "\r\nhello")},
	{name: "until the end, reset", hears: 5, script: func(c *talk) {
		c.request()
		c.say(ok + "\r\nhello")
		c.untilHeard()
		c.reset()
	}},
	{name: "204", script: saying("HTTP/1.1 204 No Content\r\n\r\n")},
	{name: "204 with a length", script: saying("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")},
	{name: "304 with a length", script: saying("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n")},
	{name: "HEAD with a length", method: "HEAD", script: saying(ok + "Content-Length: 5\r\n\r\n")},
	{name: "HEAD with chunks", method: "HEAD", script: saying(ok + chunked)},
	{name: "redirect", script: saying("HTTP/1.1 307 Temporary Redirect\r\nLocation: /x\r\n" + five)},
	{name: "error with a body", script: saying("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\n" + five)},
	{name: "a status beyond the classes", script: saying("HTTP/1.1 999 Odd\r\n" + five)},

	// Whether the connection is kept.
	{name: "connection: close", script: saying(ok + "Connection: close\r\n" + five)},
	{name: "connection: close among others", script: saying(ok + "Connection: x, Close\r\n" + five)},
	{name: "connection: close, with chunks", script: saying(ok + "Connection: close\r\n" + chunked + "5\r\nhello\r\n0\r\n\r\n")},
	{name: "HTTP/1.0", script: saying("HTTP/1.0 200 OK\r\n" + five)},
	{name: "HTTP/1.0 kept", script: saying("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + five)},
	{name: "HTTP/1.0 kept, without a length", script: once("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nhello")},
	{name: "closed without saying so", script: once(good)},
	{name: "more than the length", script: once(good + "x")},
	{name: "a second answer unasked", closes: true, script: func(c *talk) {
		for c.request() {
			c.say(good + strings.Replace(good, "hello", "wrong", 1))
		}
	}},
	{name: "something unasked, later", hears: 5, script: func(c *talk) {
		if c.request() {
			c.say(good)
			c.untilHeard()
			c.say(strings.Replace(good, "hello", "wrong", 1))
			c.wait()
		}
	}, want: `200 "hello"; 200 "hello"; 2`, why: "we look before use; net/http's reader may be late, and then gives out the wrong answer", varies: true},

	// Interim answers.
	{name: "100", script: saying("HTTP/1.1 100 Continue\r\n\r\n" + good)},
	{name: "103 with fields", script: saying("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + good)},
	{name: "several 1xx", script: saying(strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 5) + good)},
	{name: "1xx without end", script: func(c *talk) {
		c.request()
		for range 100_000 {
			if _, err := io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n"); err != nil {
				return
			}
		}
		c.wait()
	}},
	{name: "only a 1xx", script: once("HTTP/1.1 100 Continue\r\n\r\n")},
	{name: "101", script: func(c *talk) {
		c.request()
		c.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		c.wait()
	}, want: "head; head; 2", why: "net/http hands the bare connection over; nobody asked for it"},

	// Chunks.
	{name: "chunk extensions", script: saying(ok + chunked + "5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n")},
	{name: "chunk sizes in upper case, with zeros", script: saying(ok + chunked + "000A\r\n0123456789\r\n00\r\n\r\n")},
	{name: "space after a chunk's size", script: saying(ok + chunked + "5 \r\nhello\r\n0\r\n\r\n")},
	{name: "space before a chunk's extension", script: once(ok + chunked + "5 ;x\r\nhello\r\n0\r\n\r\n")},
	{name: "trailers", script: saying(ok + "Trailer: X\r\n" + chunked + "5\r\nhello\r\n0\r\nX: y\r\nZ: w\r\n\r\n")},
	{name: "a trailer that is no field", script: saying(ok + chunked + "5\r\nhello\r\n0\r\na secret\r\n\r\n")},
	{name: "trailers of 6 KiB", script: once(ok + chunked + "5\r\nhello\r\n0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 6) + "\r\n")},
	{name: "trailers without end", script: func(c *talk) {
		c.request()
		c.say(ok + chunked + "5\r\nhello\r\n0\r\n")
		for range 200_000 {
			if _, err := io.WriteString(c, "X: y\r\n"); err != nil {
				return
			}
		}
		c.wait()
	}},
	{name: "chunk size is no number", script: once(ok + chunked + "5\r\nhello\r\nx\r\n\r\n")},
	{name: "chunk size is negative", script: once(ok + chunked + "-5\r\nhello\r\n0\r\n\r\n")},
	{name: "chunk size with 0x", script: once(ok + chunked + "0x5\r\nhello\r\n0\r\n\r\n")},
	{name: "chunk size is empty", script: once(ok + chunked + "\r\nhello\r\n0\r\n\r\n")},
	{name: "chunk size is huge", script: once(ok + chunked + "fffffffffffffffff\r\nhello\r\n0\r\n\r\n")},
	{name: "chunk longer than it says", script: once(ok + chunked + "4\r\nhello\r\n0\r\n\r\n")},
	{name: "chunk size line too long", script: once(ok + chunked + "5;" + strings.Repeat("x", 8<<10) + "\r\nhello\r\n0\r\n\r\n")},
	{name: "chunks of one byte with large extensions", script: once(ok + chunked + strings.Repeat("1;"+strings.Repeat("x", 900)+"\r\na\r\n", 100) + "0\r\n\r\n")},
	{name: "many chunks of one byte", script: saying(ok + chunked + strings.Repeat("1\r\na\r\n", 20_000) + "0\r\n\r\n")},
	{name: "bare LF after a chunk's size", script: once(ok + chunked + "5\nhello\r\n0\r\n\r\n")},
	{name: "bare LF after a chunk", script: once(ok + chunked + "5\r\nhello\n0\r\n\r\n")},

	// Heads.
	{name: "length and chunks", script: once(ok + "Content-Length: 5\r\n" + chunked + "5\r\nhello\r\n0\r\n\r\n"), want: "head; head; 2", why: strict},
	{name: "two equal lengths", script: saying(ok + "Content-Length: 5\r\n" + five)},
	{name: "two lengths", script: once(ok + "Content-Length: 6\r\n" + five)},
	{name: "a list of lengths", script: once(ok + "Content-Length: 5, 5\r\n\r\nhello")},
	{name: "length with a sign", script: once(ok + "Content-Length: +5\r\n\r\nhello")},
	{name: "length is negative", script: once(ok + "Content-Length: -1\r\n\r\nhello")},
	{name: "length is no number", script: once(ok + "Content-Length: 0x5\r\n\r\nhello")},
	{name: "length is empty", script: once(ok + "Content-Length:\r\n\r\nhello")},
	{name: "length is huge", script: once(ok + "Content-Length: 99999999999999999999\r\n\r\nhello")},
	{name: "transfer-encoding: gzip, chunked", script: once(ok + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")},
	{name: "transfer-encoding: identity", script: once(ok + "Transfer-Encoding: identity\r\n" + five)},
	{name: "transfer-encoding twice", script: once(ok + "Transfer-Encoding: chunked\r\n" + chunked + "0\r\n\r\n")},
	{name: "transfer-encoding: Chunked", script: saying(ok + "transfer-encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")},
	{name: "HTTP/1.0 with chunks", script: once("HTTP/1.0 200 OK\r\n" + chunked + "5\r\nhello\r\n0\r\n\r\n"), want: "head; head; 2", why: "net/http gives the chunks' framing out as content"},
	{name: "HTTP/1.2", script: saying("HTTP/1.2 200 OK\r\n" + five), want: "head; head; 2", why: "there is no such version; net/http takes any 1.x"},
	{name: "HTTP/2.0", script: once("HTTP/2.0 200 OK\r\n" + five), want: "head; head; 2", why: "net/http takes any number in a status line"},
	{name: "folded field", script: saying(ok + "X: a\r\n b\r\n" + five), want: "head; head; 2", why: strict},
	{name: "folded first field", script: once(ok + " X: a\r\n" + five)},
	{name: "space before the colon", script: once(ok + "Content-Length : 5\r\n\r\nhello"), want: "head; head; 2", why: strict},
	{name: "no colon", script: once(ok + "X\r\n" + five)},
	{name: "empty name", script: once(ok + ": x\r\n" + five)},
	{name: "a name that is no token", script: once(ok + "X(y): z\r\n" + five)},
	{name: "NUL in a value", script: once(ok + "X: a\x00b\r\n" + five)},
	{name: "CR in a value", script: once(ok + "X: a\rb\r\n" + five)},
	{name: "bytes beyond ASCII in a value", script: saying(ok + "X: \xc3\xa9\xff\r\n" + five)},
	{name: "bare LF in the head", script: saying("HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"), want: "head; head; 2", why: strict},
	{name: "no reason", script: saying("HTTP/1.1 200\r\n" + five)},
	{name: "no reason, but the space", script: saying("HTTP/1.1 200 \r\n" + five)},
	{name: "status with two digits", script: once("HTTP/1.1 20 OK\r\n" + five)},
	{name: "status with four digits", script: once("HTTP/1.1 2000 OK\r\n" + five)},
	{name: "status with a sign", script: once("HTTP/1.1 +20 OK\r\n" + five), want: "head; head; 2", why: "net/http reads the sign as part of a number"},
	{name: "status below 100", script: once("HTTP/1.1 099 OK\r\n" + five), want: "head; head; 2", why: "net/http takes any three digits"},
	{name: "two spaces before the status", script: once("HTTP/1.1  200 OK\r\n" + five), want: "head; head; 2", why: "net/http trims"},
	{name: "not HTTP", script: once("SSH-2.0-OpenSSH\r\n")},
	{name: "an empty line first", script: once("\r\n" + good)},
	{name: "a long head", script: saying(ok + "X: " + strings.Repeat("x", 60<<10) + "\r\n" + five)},
	{name: "too long a head", script: once(ok + "X: " + strings.Repeat("x", 70<<10) + "\r\n" + five)},
	{name: "too many fields", script: once(ok + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 70) + five)},

	// Connections that end.
	{name: "closes without an answer", script: func(c *talk) { c.request() }},
	{name: "resets without an answer", script: func(c *talk) { c.request(); c.reset() }},
	{name: "closes before it reads", script: func(*talk) {}},
	{name: "closes on the second request", script: func(c *talk) {
		if c.n == 1 {
			once(good)(c)
			return
		}
		saying(good)(c)
	}},
	{name: "dies while the second request is under way", script: func(c *talk) {
		if c.request() {
			c.say(good)
			if c.n == 1 {
				c.request()
				return
			}
			saying(good)(c)
		}
	}},
	{name: "resets while the second request is under way", script: func(c *talk) {
		if c.request() {
			c.say(good)
			if c.n == 1 {
				c.request()
				c.reset()
				return
			}
			saying(good)(c)
		}
	}},
	{name: "dies within the second answer", script: func(c *talk) {
		if c.request() {
			c.say(good)
			c.request()
			c.say("HTTP/1.1 200")
		}
	}},
	{name: "every connection dies at its second request", script: func(c *talk) {
		if c.request() {
			c.say(good)
			c.request()
		}
	}},

	// Silence.
	{name: "silence", silent: true, script: func(c *talk) { c.request(); c.hush() }},
	{name: "silence within the head", silent: true, script: func(c *talk) { c.request(); c.say(ok); c.hush() }},
	{name: "silence within the body", silent: true, hears: 5, script: func(c *talk) { c.request(); c.say(ok + "Content-Length: 6\r\n\r\nhello"); c.hush() }},
	{name: "silence within a chunk", silent: true, hears: 5, script: func(c *talk) { c.request(); c.say(ok + chunked + "6\r\nhello"); c.hush() }},
	{name: "silence before the last chunk", silent: true, hears: 5, script: func(c *talk) { c.request(); c.say(ok + chunked + "5\r\nhello\r\n"); c.hush() }},
	{name: "nobody reads the body", body: 16 << 20, silent: true, script: func(c *talk) {
		c.headOnly()
		c.server.silent <- struct{}{}
		c.hold()
	}},

	// Early answers.
	// Of a size that goes out with the head: of a larger one, whether the rest is out when the answer comes is chance.
	{name: "an answer before the body is read", body: 8 << 10, script: func(c *talk) {
		for c.headOnly() {
			c.say(good)
			_, _ = io.CopyN(io.Discard, c.br, 8<<10)
		}
	}},
	{name: "413, then closes", body: 8 << 20, script: func(c *talk) {
		c.headOnly()
		c.say("HTTP/1.1 413 Too Large\r\nConnection: close\r\n" + five)
		_ = c.tcp.CloseWrite()
		c.wait()
	}},
	{name: "413, and reads the rest", body: 8 << 20, script: func(c *talk) {
		for c.headOnly() {
			c.say("HTTP/1.1 413 Too Large\r\n" + five)
			_, _ = io.CopyN(io.Discard, c.br, 8<<20)
		}
	}, want: `413 "hello"; 413 "hello"; 2`, why: "net/http sends the whole body in vain, and keeps the connection; we stop, at the price of a connection", varies: true},
	{name: "413, and reads nothing", body: 8 << 20, script: func(c *talk) {
		c.headOnly()
		c.say("HTTP/1.1 413 Too Large\r\n" + five)
		c.hold()
	}},
	{name: "200, and reads nothing", body: 8 << 20, script: func(c *talk) {
		c.headOnly()
		c.say(good)
		c.hold()
	}},
	{name: "200, after a while, and reads nothing", body: 8 << 20, script: func(c *talk) {
		c.headOnly()
		time.Sleep(200 * time.Millisecond)
		c.say(good)
		c.hold()
	}},
	{name: "closes its sending side without an answer", body: 8 << 20, script: func(c *talk) {
		c.headOnly()
		_ = c.tcp.CloseWrite()
		c.hold()
	}},
	{name: "200 head first, then reads, then answers", body: 8 << 20, script: func(c *talk) {
		for c.headOnly() {
			c.say(ok + chunked + "5\r\nhello\r\n")
			time.Sleep(50 * time.Millisecond)
			_, _ = io.CopyN(io.Discard, c.br, 8<<20)
			c.say("6\r\n world\r\n0\r\n\r\n")
		}
	}, want: `200 "hello world"; 200 "hello world"; 2`, why: "who answers before it has the request may take the rest of it for the next one; net/http uses the connection again"},
	{name: "answers more than the buffers hold before it reads", body: 16 << 20, script: func(c *talk) {
		for c.headOnly() {
			c.say(ok + "Content-Length: 16777216\r\n\r\n" + strings.Repeat("x", 16<<20))
			_, _ = io.CopyN(io.Discard, c.br, 16<<20)
		}
	}, want: "200 16777216 bytes; 200 16777216 bytes; 2", why: "net/http writes and reads at once, in two goroutines; we stop writing, at the price of a connection", varies: true},
}

func (v verdict) String() string {
	switch {
	case v.Status == 0:
		return v.Failed
	case v.Failed == "":
		return fmt.Sprintf("%d %s", v.Status, quote(v.Body))
	}
	return fmt.Sprintf("%d %s %s", v.Status, quote(v.Body), v.Failed)
}

func quote(s string) string {
	if len(s) > 100 {
		return fmt.Sprintf("%d bytes", len(s))
	}
	return fmt.Sprintf("%q", s)
}

// TestAsNetHTTP holds every verdict against net/http's.
func TestAsNetHTTP(t *testing.T) {
	var group errgroup.Group
	group.SetLimit(16) // most of them wait
	for _, b := range behaviours {
		for _, secure := range []bool{false, true} {
			group.Go(func() error { compare(t, b, secure); return nil })
		}
	}
	_ = group.Wait()
	if len(behaviours) < 40 {
		t.Errorf("only %d behaviours", len(behaviours))
	}
}

func compare(t *testing.T, b behaviour, secure bool) {
	body := bytes.Repeat([]byte("x"), max(2, b.body))
	if b.method == "" {
		b.method = "POST"
	} else {
		body = nil
	}

	ours := serve(t, secure, b.script)
	p := ours.pool(t)
	req := request(t, body)
	req.Start = start(t, b.method)
	one := b.ours(t, ours, p, req)
	ours.settle(t, b.name, func() bool { return true })
	two := b.ours(t, ours, p, req)
	got := fmt.Sprintf("%s; %s; %d", one, two, ours.dialed.Load())

	theirs := serve(t, secure, b.script)
	tr := theirs.transport(t)
	one = b.theirs(t, theirs, tr, body)
	theirs.settle(t, b.name, func() bool { // its reader finds out by itself
		ended := theirs.ended.Load()
		return theirs.closed.Load() >= ended && (!b.closes || ended > 0)
	})
	two = b.theirs(t, theirs, tr, body)
	net := fmt.Sprintf("%s; %s; %d", one, two, theirs.dialed.Load())

	switch {
	case b.want == "" && got != net:
		t.Errorf("%s, tls=%t:\nours     %s\nnet/http %s", b.name, secure, got, net)
	case b.want != "" && got != b.want:
		t.Errorf("%s, tls=%t:\nours %s\nwant %s (%s)", b.name, secure, got, b.want, b.why)
	case b.want != "" && got == net && !b.varies:
		t.Errorf("%s, tls=%t: %s, as net/http: the table says otherwise", b.name, secure, got)
	}
}

// settle waits until what follows an answer has come, and the client knows of it.
func (s *server) settle(t *testing.T, name string, knows func() bool) {
	for end := within(patient); s.busy.Load() > 0 || !knows(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Errorf("%s: what follows the first answer never comes", name)
			return
		}
	}
}

// ours asks once.
func (b *behaviour) ours(t *testing.T, s *server, p *h1.Pool, req *h1.Request) verdict {
	defer s.verdicts.Add(1)
	due := within(patient)
	if b.silent && b.hears == 0 { // whenever it is over, nothing was heard
		due = within(silence)
	}
	resp, err := p.Do(t.Context(), req, due)
	if err != nil {
		return verdict{Failed: failed("head", err)}
	}
	defer func() { _ = resp.Close() }()
	body, err := b.hear(s, resp, func() { resp.Deadline(within(silence)) })
	v := verdict{Status: resp.Status, Body: string(body)}
	if err != nil {
		v.Failed = failed("body", err)
	}
	return v
}

// theirs asks net/http once.
func (b *behaviour) theirs(t *testing.T, s *server, tr *http.Transport, body []byte) verdict {
	defer s.verdicts.Add(1)
	ctx, giveUp := context.WithCancelCause(t.Context())
	defer giveUp(nil)
	after := func(d time.Duration) { time.AfterFunc(d, func() { giveUp(context.DeadlineExceeded) }) }
	after(patient)
	if b.silent && b.hears == 0 {
		go func() {
			select {
			case <-s.silent:
				after(silence)
			case <-ctx.Done():
			}
		}()
	}
	return roundTrip(ctx, tr, s, b.method, body, func(r io.Reader) ([]byte, error) {
		return b.hear(s, r, func() { after(silence) })
	})
}

// hear reads an answer's body, and says when it has heard what it is to hear.
func (b *behaviour) hear(s *server, body io.Reader, silent func()) ([]byte, error) {
	first, err := io.ReadAll(io.LimitReader(body, int64(b.hears)))
	s.heard.Add(1)
	if err != nil {
		return first, err
	}
	if b.silent {
		silent()
	}
	rest, err := io.ReadAll(body)
	return append(first, rest...), err
}

// TestCutAnywhere: an answer that ends too early is never a whole one, wherever
// it is cut, and it is so for net/http in the same places.
func TestCutAnywhere(t *testing.T) {
	for _, whole := range []string{
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 11\r\n\r\nhello world",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nX: y\r\n\r\n",
	} {
		for _, secure := range []bool{false, true} {
			at := make(chan int, 1)
			s := serve(t, secure, func(c *talk) {
				n := <-at
				if c.request() {
					c.say(whole[:n])
				}
			})
			p, tr := s.pool(t), s.transport(t)
			for n := range len(whole) + 1 {
				at <- n
				ours, _ := askH1(t.Context(), p, request(t, []byte("{}")), patient)
				at <- n
				theirs := askNet(t.Context(), tr, s, "POST", []byte("{}"), patient)
				if ours != theirs || (ours.Failed == "") != (n == len(whole)) {
					t.Errorf("tls=%t, cut at %d: ours %s, net/http %s", secure, n, ours, theirs)
				}
			}
		}
	}
}
