package h1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// behaviour is what a client sends. It is played to this package and to
// net/http's own, and both must answer the same.
type behaviour struct {
	name   string
	sent   string
	method string // of all its requests, if not GET
	open   bool   // nothing is sent behind it: else a last request shows whether the connection goes on
	// want is our verdict, written down where it differs from net/http's, for
	// the reason in why.
	want string
	why  string
}

// probe comes behind each behaviour. An answer to it says that the connection goes on.
const probe = "GET /hello HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n"

func get(path string, more ...string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: h\r\n" + fields(more...) + "\r\n"
}

func post(path, body string, more ...string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n%s\r\n%s", path, len(body), fields(more...), body)
}

func chunked(path, body string, more ...string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n" + fields(more...) + "\r\n" + body
}

func fields(all ...string) string {
	var b strings.Builder
	for _, f := range all {
		b.WriteString(f + "\r\n")
	}
	return b.String()
}

const (
	crlf     = "a line that does not end with CRLF is how requests are smuggled: readers differ about it"
	fold     = "obsolete, and to be refused or replaced (RFC 9112, 5.2): readers differ about it"
	ended    = "whoever sends both may be read otherwise by somebody before us: the connection ends (RFC 9112, 6.1)"
	strange  = "what is not HTTP/1.0 or 1.1 is no version that is known here"
	older    = "with HTTP/1.0 no connection goes on: it is left out"
	truncate = "an answer shorter than it declared is not whole: nothing follows"
	many     = "a field that is next to nothing on the wire takes a hundred bytes here"
	refused  = "malformed: what it means differs from reader to reader"
)

var hello = `200 HTTP/1.1 [Content-Length=5 Content-Type=text/plain; charset=utf-8] "hello"; ` + goesOn

const goesOn = `200 HTTP/1.1 [Connection=close Content-Length=5 Content-Type=text/plain; charset=utf-8] "hello"; closed`

const unreadable = `400 HTTP/1.1 [Connection=close Content-Length=11 Content-Type=text/plain; charset=utf-8 X-Content-Type-Options=nosniff] "unreadable\n"; closed`

func refusing(status int) string {
	return fmt.Sprintf(`%d HTTP/1.1 [Connection=close Content-Type=text/plain; charset=utf-8] its words; closed`, status)
}

var badRequest = refusing(400)

var behaviours = []behaviour{
	// Answers.
	{name: "hello", sent: get("/hello")},
	{name: "three at once", sent: get("/hello") + get("/html") + get("/204")},
	{name: "echo", sent: post("/echo", "some body")},
	{name: "nothing there", sent: get("/none")},
	{name: "nothing said", sent: get("/nothing")},
	{name: "a status without a name", sent: get("/299")},
	{name: "as handlers see it", sent: post("/seen?a=b&c", "body", "Content-Type: application/json", "x-custom: 1", "X-CUSTOM:2", "user-agent:  me \t")},
	{name: "as handlers see it, without a body", sent: get("/seen", "accept: */*", "Cookie: a=1", "cookie: b=2")},
	{name: "as handlers see it, in chunks", sent: chunked("/seen", "4\r\nbody\r\n0\r\n\r\n")},
	{name: "a value that is empty", sent: get("/seen", "X:", "Y: ")},
	{name: "bytes beyond ASCII in a value", sent: get("/seen", "X: \xc3\xa4\xff")},
	{name: "a path with escapes", sent: get("/seen%2fx?%41")},
	{name: "a GET with a body", sent: "GET /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab"},
	{name: "events", sent: get("/stream")},
	{name: "a head first", sent: get("/headfirst")},
	{name: "4095 bytes", sent: get("/bytes?4095"), want: `200 HTTP/1.1 [Content-Length=4095 Content-Type=text/plain; charset=utf-8] 4095 bytes "xxxxxxxx"; ` + goesOn, why: "more of an answer is held back, so that its length is known"},
	{name: "64 KiB", sent: get("/bytes?65536")},
	{name: "pieces of a byte", sent: get("/pieces?1")},
	{name: "pieces of 4 KiB", sent: get("/pieces?4096")},
	{name: "pieces of 5000 bytes", sent: get("/pieces?5000")},
	{name: "pieces of 20000 bytes", sent: get("/pieces?20000")},
	{name: "a declared length of 3000", sent: get("/whole?3000")},
	{name: "a declared length of 70000", sent: get("/whole?70000")},
	{name: "HEAD", method: "HEAD", sent: strings.Replace(get("/hello"), "GET", "HEAD", 1) + strings.Replace(get("/length"), "GET", "HEAD", 1)},
	{name: "HEAD of a stream", method: "HEAD", sent: strings.Replace(get("/stream"), "GET", "HEAD", 1)},
	{name: "HEAD of nothing", method: "HEAD", sent: strings.Replace(get("/nothing"), "GET", "HEAD", 1)},
	{name: "HEAD of 64 KiB", method: "HEAD", sent: strings.Replace(get("/bytes?65536"), "GET", "HEAD", 1)},
	{name: "204", sent: get("/204")},
	{name: "304", sent: get("/304")},
	{name: "404 without a body", sent: get("/404")},
	{name: "204 with a body", sent: get("/204body")},
	{name: "103", sent: get("/103")},
	{name: "103 of an answer with a length", sent: get("/103length")},
	{name: "two heads", sent: get("/twice")},
	{name: "a length", sent: get("/length")},
	{name: "a length that is none", sent: get("/oddlength"), want: hello, why: "it is left out, and then the length is known"},
	{name: "shorter than declared", sent: get("/short")},
	{name: "longer than declared", sent: get("/long"), want: hello, why: "too much is refused, and what fits may still be said; over HTTP/2, too"},
	{name: "fields that cannot be sent", sent: get("/odd"), want: `200 HTTP/1.1 [Content-Length=5 Content-Type=text/plain; charset=utf-8 X-Bad-Value=good X-Lower=1] "hello"; ` + goesOn, why: "what cannot be sent is left out; net/http sends a control character as it is"},
	{name: "type and date of the handler's", sent: get("/typed")},
	{name: "a type from the content", sent: get("/html")},
	{name: "a bug", sent: get("/panic")},
	{name: "aborted", sent: get("/abort")},
	{name: "aborted in the middle", sent: get("/torn")},
	{name: "connection: close", sent: get("/close")},
	{name: "the client says close", sent: get("/hello", "Connection: close")},
	{name: "the client says close among others", sent: get("/hello", "Connection: x, Close")},
	{name: "the client says close with a long s", sent: get("/hello", "Connection: clo\u017fe")},
	{name: "keep-alive", sent: get("/hello", "Connection: keep-alive")},
	{name: "a body that nobody reads", sent: post("/early", "some body")},
	{name: "a body in chunks that nobody reads", sent: chunked("/early", "4\r\nbody\r\n0\r\n\r\n")},
	{name: "a body in broken chunks that nobody reads", sent: chunked("/early", "4\r\nbodyx\r\n0\r\n\r\n")},
	{name: "a body that is closed", sent: post("/shut", "some body")},
	{name: "a read deadline in the past", sent: "POST /deadline HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nx", open: true},
	{name: "answered before a large body came", sent: "POST /early HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nsome", open: true},

	// Bodies.
	{name: "chunks", sent: chunked("/echo", "1\r\na\r\n00002\r\nbc\r\nA\r\n0123456789\r\n0\r\n\r\n")},
	{name: "no chunk", sent: chunked("/echo", "0\r\n\r\n")},
	{name: "chunks with extensions", sent: chunked("/echo", "1;a=b\r\na\r\n1;c=\"d;e\"\r\nb\r\n0;f\r\n\r\n")},
	{name: "space behind a size", sent: chunked("/echo", "1 \r\na\r\n0\r\n\r\n")},
	{name: "space before an extension", sent: chunked("/echo", "1 ;x\r\na\r\n0\r\n\r\n")},
	{name: "space before a size", sent: chunked("/echo", " 1\r\na\r\n0\r\n\r\n")},
	{name: "a size with a sign", sent: chunked("/echo", "+1\r\na\r\n0\r\n\r\n")},
	{name: "a negative size", sent: chunked("/echo", "-1\r\na\r\n0\r\n\r\n")},
	{name: "a size with a prefix", sent: chunked("/echo", "0x1\r\na\r\n0\r\n\r\n")},
	{name: "a size with an underscore", sent: chunked("/echo", "1_0\r\n0123456789abcdef\r\n0\r\n\r\n")},
	{name: "no size", sent: chunked("/echo", "\r\na\r\n0\r\n\r\n")},
	{name: "an extension without a size", sent: chunked("/echo", ";x\r\na\r\n0\r\n\r\n")},
	{name: "a size of 17 digits", sent: chunked("/echo", "10000000000000001\r\na\r\n0\r\n\r\n")},
	{name: "a size of 16 digits", sent: chunked("/echo", "0000000000000001\r\na\r\n0\r\n\r\n"), want: unreadable, why: "no client counts so far"},
	{name: "a chunk longer than it says", sent: chunked("/echo", "1\r\nab\r\n0\r\n\r\n")},
	{name: "a chunk with a bare line feed behind its size", sent: chunked("/echo", "1\na\r\n0\r\n\r\n")},
	{name: "a chunk with a bare line feed behind it", sent: chunked("/echo", "1\r\na\n0\r\n\r\n")},
	{name: "a line feed in an extension", sent: chunked("/echo", "1;a\nb\r\na\r\n0\r\n\r\n")},
	{name: "a carriage return in an extension", sent: chunked("/echo", "1;a\rb\r\na\r\n0\r\n\r\n")},
	{name: "a control character in an extension", sent: chunked("/echo", "1;a\x00b\r\na\r\n0\r\n\r\n"), want: unreadable, why: refused},
	{name: "an extension of 5000 bytes", sent: chunked("/echo", "1;"+strings.Repeat("x", 5000)+"\r\na\r\n0\r\n\r\n")},
	{name: "an extension of 2000 bytes", sent: chunked("/echo", "1;"+strings.Repeat("x", 2000)+"\r\na\r\n0\r\n\r\n"), want: unreadable, why: "1 KiB is enough: nobody reads them"},
	{name: "extensions beyond all content", sent: chunked("/echo", strings.Repeat("1;"+strings.Repeat("x", 900)+"\r\na\r\n", 40)+"0\r\n\r\n")},
	{name: "trailers", sent: chunked("/seen", "1\r\na\r\n0\r\nX-T: b\r\nContent-Length: 5\r\n\r\n", "Trailer: X-T")},
	{name: "a trailer that is none", sent: chunked("/echo", "1\r\na\r\n0\r\nno trailer\r\n\r\n")},
	{name: "a trailer with a bare line feed", sent: chunked("/echo", "1\r\na\r\n0\r\nX: y\n\r\n\r\n"), want: unreadable, why: crlf},
	{name: "a trailer that must not be one", sent: chunked("/echo", "0\r\n\r\n", "Trailer: Content-Length")},
	{name: "chunks and a length", sent: chunked("/echo", "1\r\na\r\n0\r\n\r\n", "Content-Length: 3"),
		want: `200 HTTP/1.1 [Connection=close Content-Length=1 Content-Type=text/plain; charset=utf-8] "a"; closed`, why: ended},
	{name: "chunks and a length that is none", sent: chunked("/echo", "1\r\na\r\n0\r\n\r\n", "Content-Length: x")},
	{name: "chunks in capitals", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", "CHUNKED", 1)},
	{name: "chunks, spelt with a Kelvin sign", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", "chun\u212Aed", 1)},
	{name: "chunked twice", sent: chunked("/echo", "1\r\na\r\n0\r\n\r\n", "Transfer-Encoding: chunked")},
	{name: "chunked and identity", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", "chunked, identity", 1)},
	{name: "gzip and chunked", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", "gzip, chunked", 1)},
	{name: "identity", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", "identity", 1)},
	{name: "no coding", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", "", 1)},
	{name: "a coding in quotes", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), "chunked", `"chunked"`, 1)},
	{name: "a coding with a control character", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), " chunked", " \x0bchunked", 1)},
	{name: "a coding behind a tab", sent: strings.Replace(chunked("/echo", "1\r\na\r\n0\r\n\r\n"), " chunked", " \tchunked\t", 1)},
	{name: "two lengths that agree", sent: post("/echo", "ab", "Content-Length: 2")},
	{name: "two lengths that differ", sent: post("/echo", "ab", "Content-Length: 3")},
	{name: "a list of lengths", sent: get("/echo", "Content-Length: 0, 0")},
	{name: "a length with a sign", sent: get("/echo", "Content-Length: +0")},
	{name: "a negative length", sent: get("/echo", "Content-Length: -1")},
	{name: "a length in hex", sent: get("/echo", "Content-Length: 0x0")},
	{name: "an empty length", sent: get("/echo", "Content-Length:")},
	{name: "a length beyond 63 bits", sent: get("/echo", "Content-Length: 9223372036854775808")},
	{name: "a length of many digits", sent: get("/hello", "Content-Length: 00000000000000000000")},
	{name: "an empty line behind a POST", sent: post("/echo", "ab") + "\r\n"},
	{name: "two empty lines behind a POST", sent: post("/echo", "ab") + "\r\n\r\n"},
	{name: "three empty lines behind a POST", sent: post("/echo", "ab") + "\r\n\r\n\r\n"},
	{name: "line feeds behind a POST", sent: post("/echo", "ab") + "\n\n", want: `200 HTTP/1.1 [Content-Length=2 Content-Type=text/plain; charset=utf-8] "ab"; ` + badRequest, why: crlf},
	{name: "expect: 100-continue", sent: post("/echo", "ab", "Expect: 100-continue")},
	{name: "expect: 100-Continue, in chunks", sent: chunked("/echo", "1\r\na\r\n0\r\n\r\n", "Expect: 100-Continue")},
	{name: "expect: 100-continue without a body", sent: get("/hello", "Expect: 100-continue")},
	{name: "expect: 100-continue, read behind the head", sent: post("/headecho", "ab", "Expect: 100-continue")},
	{name: "expect: 100-continue and close, read behind the head", sent: post("/headecho", "ab", "Expect: 100-continue", "Connection: close")},
	{name: "expect something else", sent: post("/echo", "ab", "Expect: a miracle"), want: refusing(417), why: "the same, with words"},

	// Heads.
	{name: "an empty line first", sent: "\r\n" + get("/hello")},
	{name: "no version", sent: "GET /hello\r\nHost: h\r\n\r\n"},
	{name: "no target", sent: "GET HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "nothing but a word", sent: "GET\r\n\r\n"},
	{name: "two spaces", sent: "GET  /hello HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a space behind the version", sent: "GET /hello HTTP/1.1 \r\nHost: h\r\n\r\n"},
	{name: "a tab", sent: "GET\t/hello\tHTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a space first", sent: " GET /hello HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a method that is none", sent: "G(T /hello HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a method nobody knows", sent: "FROB /seen HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a method in small letters", sent: "get /seen HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a control character in the target", sent: "GET /he\x01llo HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a carriage return in the target", sent: "GET /he\rllo HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "bytes beyond ASCII in the target", sent: "GET /seen?\xc3\xa4 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a fragment", sent: "GET /seen#x HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "an escape that is none", sent: "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a target without a slash", sent: "GET hello HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a whole URL", sent: "GET http://x:1/seen HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "a URL without a host", sent: "GET //x/seen HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "OPTIONS *", sent: "OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "CONNECT", sent: "CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "CONNECT without a host", sent: "CONNECT h:443 HTTP/1.1\r\n\r\n"},
	{name: "CONNECT to a path", sent: "CONNECT /seen HTTP/1.1\r\nHost: h\r\n\r\n"},
	{name: "HTTP/1.0", sent: "GET /seen HTTP/1.0\r\n\r\n"},
	{name: "HTTP/1.0, events", sent: "GET /stream HTTP/1.0\r\n\r\n"},
	{name: "HTTP/1.0, 103", sent: "GET /103 HTTP/1.0\r\n\r\n", want: `200 HTTP/1.0 [Content-Length=5 Content-Type=text/plain; charset=utf-8 Link=</x>] "hello"; closed`, why: "none before the answer may go to HTTP/1.0 (RFC 9110, 15.2)"},
	{name: "HTTP/1.0 with keep-alive", sent: "GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		want: `200 HTTP/1.0 [Content-Length=5 Content-Type=text/plain; charset=utf-8] "hello"; closed`, why: older},
	{name: "HTTP/1.0 in chunks", sent: "POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
		want: badRequest, why: "faulty framing, which ends the connection (RFC 9112, 6.1); net/http passes over it"},
	{name: "HTTP/1.2", sent: "GET /hello HTTP/1.2\r\nHost: h\r\n\r\n", want: refusing(505), why: strange},
	{name: "HTTP/2.0", sent: "GET /hello HTTP/2.0\r\nHost: h\r\n\r\n"},
	{name: "HTTP/2's preface", sent: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: refusing(505), why: strange},
	{name: "HTTP/0.9", sent: "GET /hello HTTP/0.9\r\nHost: h\r\n\r\n"},
	{name: "HTTP/11", sent: "GET /hello HTTP/11\r\nHost: h\r\n\r\n"},
	{name: "http/1.1", sent: "GET /hello http/1.1\r\nHost: h\r\n\r\n"},
	{name: "no host", sent: "GET /hello HTTP/1.1\r\n\r\n"},
	{name: "an empty host", sent: "GET /seen HTTP/1.1\r\nHost:\r\n\r\n"},
	{name: "two hosts", sent: get("/hello", "Host: h")},
	{name: "a host that is none", sent: "GET /hello HTTP/1.1\r\nHost: a b\r\n\r\n"},
	{name: "a host with odd characters", sent: "GET /hello HTTP/1.1\r\nHost: a/b@c\r\n\r\n"},
	{name: "no colon", sent: get("/hello", "X-A")},
	{name: "no name", sent: get("/hello", ": b")},
	{name: "a space before the colon", sent: get("/hello", "X-A : b")},
	{name: "a tab before the colon", sent: get("/hello", "Content-Length\t: 5")},
	{name: "a name with a space", sent: get("/hello", "X A: b")},
	{name: "a name with a control character", sent: get("/hello", "X\x01A: b")},
	{name: "a name beyond ASCII", sent: get("/hello", "X\xc3\xa4: b")},
	{name: "a value with a zero byte", sent: get("/hello", "X: a\x00b")},
	{name: "a value with a carriage return", sent: get("/hello", "X: a\rb")},
	{name: "a value with a control character", sent: get("/hello", "X: a\x7fb")},
	{name: "a folded line", sent: get("/seen", "X: a", " b"), want: badRequest, why: fold},
	{name: "a folded line of tabs", sent: get("/seen", "X: a", "\t"), want: badRequest, why: fold},
	{name: "a folded line first", sent: "GET /hello HTTP/1.1\r\n X: b\r\nHost: h\r\n\r\n"},
	{name: "a bare line feed behind the request line", sent: "GET /hello HTTP/1.1\nHost: h\r\n\r\n", want: badRequest, why: crlf},
	{name: "a bare line feed behind a field", sent: "GET /seen HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", want: badRequest, why: crlf},
	{name: "a bare line feed at the end", sent: "GET /hello HTTP/1.1\r\nHost: h\r\n\n", want: badRequest, why: crlf},
	{name: "line feeds alone", sent: "GET /hello HTTP/1.1\nHost: h\n\n", want: badRequest, why: crlf},
	{name: "two carriage returns", sent: "GET /hello HTTP/1.1\r\nHost: h\r\r\n\r\n"},
	{name: "a field of 11 KiB", sent: get("/hello", "X: "+strings.Repeat("x", 11<<10))},
	{name: "a field of 16 KiB", sent: get("/hello", "X: "+strings.Repeat("x", 16<<10))},
	{name: "a target of 16 KiB", sent: get("/hello?" + strings.Repeat("x", 16<<10))},
	{name: "a word of 16 KiB", sent: strings.Repeat("x", 16<<10)},
	{name: "250 fields", sent: get("/hello", slices.Repeat([]string{"X: y"}, 250)...)},
	{name: "300 fields", sent: get("/hello", slices.Repeat([]string{"X: y"}, 300)...),
		want: refusing(431), why: many},
	{name: "upgrade", sent: get("/seen", "Connection: upgrade", "Upgrade: websocket")},
	{name: "connection and others", sent: get("/seen", "Connection: keep-alive, x", "Keep-Alive: 5", "TE: trailers", "Proxy-Connection: close")},
	{name: "pragma", sent: get("/seen", "Pragma: no-cache"),
		want: `200 HTTP/1.1 [Content-Length=85 Content-Type=text/plain; charset=utf-8] "GET /seen /seen h HTTP/1.1 1.1 0 [] \"\" false close=false tls=true Pragma=[\"no-cache\"]"; ` + goesOn, why: "no field is made up"},
	{name: "garbage", sent: "\x16\x03\x01\x02\x00\r\n\r\n"},
}

// verdict is all that the server says until it closes the connection.
func (b *behaviour) verdict(t *testing.T, st *stand) string {
	nc := st.dial(t)
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(20 * time.Second))
	sent := b.sent
	if !b.open {
		sent += probe
	}
	go func() { _, _ = io.WriteString(nc, sent) }() // the server may not take all of it
	var said []string
	in := bufio.NewReader(nc)
	method := b.method
	for {
		resp, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "reset") {
				return strings.Join(append(said, "closed"), "; ")
			}
			return strings.Join(append(said, err.Error()), "; ")
		}
		text, err := io.ReadAll(resp.Body)
		body := fmt.Sprintf("%q", text)
		if resp.StatusCode >= 400 && resp.ContentLength < 0 { // of the server itself
			body = "its words"
		} else if len(text) > 400 {
			body = fmt.Sprintf("%d bytes %q", len(text), text[:8])
		}
		if err != nil {
			body += " torn"
		}
		if resp.Header.Get("Date") == "" && resp.StatusCode >= 200 && resp.StatusCode < 400 {
			body += " no date"
		}
		resp.Header.Del("Date")
		var fields []string
		if resp.Close && resp.Header.Get("Connection") == "" && resp.ProtoMinor == 1 && resp.StatusCode >= 200 {
			fields = append(fields, "Connection=close") // read out of the header
		}
		for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
			fields = append(fields, name+"="+strings.Join(resp.Header[name], ","))
		}
		if len(resp.TransferEncoding) > 0 {
			fields = append(fields, resp.TransferEncoding...)
		}
		said = append(said, fmt.Sprintf("%d %s [%s] %s", resp.StatusCode, resp.Proto, strings.Join(fields, " "), body))
		if resp.StatusCode == http.StatusContinue {
			continue
		}
		if strings.Count(b.sent, b.method+" /") == len(said) {
			method = "GET" // the probe's
		}
	}
}

func TestLikeNetHTTP(t *testing.T) {
	theirs, ours := start(t, false, http.HandlerFunc(stage), nil), start(t, true, http.HandlerFunc(stage), nil)
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) {
			want, got := b.verdict(t, theirs), b.verdict(t, ours)
			switch {
			case b.want == "" && got != want:
				t.Errorf("ours     %s\nnet/http %s", got, want)
			case b.want != "" && got != b.want:
				t.Errorf("ours %s\nwant %s\nnet/http %s", got, b.want, want)
			case b.want != "" && want == b.want:
				t.Errorf("net/http does the same: %s", want)
			case b.want != "" && b.why == "":
				t.Error("no reason is given")
			}
		})
	}
}
