package h1

import (
	"bytes"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"ringmain/dataplane/syntax"
)

// maxFields of a head. A field that is next to nothing on the wire takes a
// hundred bytes here.
const maxFields = 256

// refusal is an answer to what is no request. The connection ends with it.
type refusal struct {
	status int
	why    string // a constant: nothing of what came goes back
}

func (r refusal) Error() string { return "h1: " + r.line() }

func (r refusal) line() string {
	line := strconv.Itoa(r.status) + " " + http.StatusText(r.status)
	if r.why != "" {
		line += ": " + r.why
	}
	return line
}

func bad(why string) error { return refusal{http.StatusBadRequest, why} }

var errHead = refusal{status: http.StatusRequestHeaderFieldsTooLarge}

// readRequest reads the head of a request. Its body and remote address are the
// caller's to add.
func (c *conn) readRequest() (*answer, error) {
	if c.posted {
		if err := c.in.skipEmpty(); err != nil {
			return nil, err
		}
	}
	size, lines, err := c.in.head(c.limits.head)
	if err != nil {
		return nil, err
	}
	head := string(c.in.data[c.in.r : c.in.r+size])
	c.in.r += size
	a := &answer{c: c, life: life{conn: c.ctx}}
	// Else http.Request's own way to take a context copies it.
	a.r.Request = new(http.Request).WithContext(&a.life)
	return a, a.r.parse(head, lines)
}

// skipEmpty skips what old clients send after the body of a POST (RFC 9112, 2.2).
func (s *source) skipEmpty() error {
	for range 2 {
		for len(s.pending()) < 2 {
			if err := s.fill(0); err != nil {
				return err
			}
		}
		if string(s.pending()[:2]) != "\r\n" {
			break
		}
		s.r += 2
	}
	return nil
}

// head waits until a whole head has come, of most bytes at most, and gives its
// size and how many lines it has, the empty one included.
func (s *source) head(most int) (size, lines int, err error) {
	for seen := 0; ; {
		have := s.pending()
		for {
			i := bytes.IndexByte(have[seen:], '\n')
			if i < 0 {
				break
			}
			if i == 0 || have[seen+i-1] != '\r' {
				return 0, 0, bad("a line does not end with CRLF")
			}
			seen += i + 1
			if lines++; lines > maxFields+2 {
				return 0, 0, errHead
			}
			if i == 1 {
				return seen, lines, nil
			}
		}
		if err := s.fill(most); err != nil { // a line that has not ended is looked at again
			if err == errTooLong { //nolint:errorlint // just made
				err = errHead
			}
			return 0, 0, err
		}
	}
}

// request is a request, and how its body comes.
type request struct {
	*http.Request

	url     url.URL // memory of URL
	chunked bool
	last    bool // the client sends no more, as it says
	close   bool // the connection ends with the answer
	old     bool // HTTP/1.0
	expects bool // 100-continue
}

// parse reads a whole head.
func (r *request) parse(head string, lines int) error {
	line, rest, _ := strings.Cut(head, "\r\n")
	method, line, ok1 := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(line, " ")
	if !ok1 || !ok2 {
		return bad("malformed request line")
	}
	if !syntax.IsToken(method) {
		return bad("invalid method")
	}
	r.Method, r.RequestURI, r.Proto, r.ProtoMajor, r.ProtoMinor = method, target, "HTTP/1.1", 1, 1
	switch version {
	case "HTTP/1.1":
	case "HTTP/1.0":
		r.Proto, r.ProtoMinor, r.old = version, 0, true
	default:
		if _, _, ok := http.ParseHTTPVersion(version); !ok {
			return bad("malformed HTTP version")
		}
		return refusal{http.StatusHTTPVersionNotSupported, "unsupported protocol version"}
	}
	if r.url.Path, r.URL = target, &r.url; !isPath(target) {
		var err error
		if r.URL, err = parseTarget(method, target); err != nil {
			return bad("malformed target")
		}
	}
	if err := r.fields(rest, lines-2); err != nil {
		return err
	}
	if err := r.host(); err != nil {
		return err
	}
	return r.framing()
}

// isPath reports whether a target is a path without anything to read out of it,
// as those of most requests are.
func isPath(target string) bool {
	for i := range len(target) {
		switch c := target[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '/', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return target != "" && target[0] == '/'
}

// parseTarget reads a request's target (RFC 9112, 3.2).
func parseTarget(method, target string) (*url.URL, error) {
	if method == http.MethodConnect && !strings.HasPrefix(target, "/") { // a host alone
		u, err := url.ParseRequestURI("http://" + target)
		if err == nil {
			u.Scheme = ""
		}
		return u, err //nolint:wrapcheck // only whether there is one matters
	}
	return url.ParseRequestURI(target) //nolint:wrapcheck // likewise
}

// fields reads n lines of fields, and the empty one.
func (r *request) fields(lines string, n int) error {
	h, values := make(http.Header, n), make([]string, n)
	for i := range values {
		line, rest, _ := strings.Cut(lines, "\r\n")
		name, value, ok := syntax.Field(line)
		if !ok {
			return bad("malformed header field")
		}
		lines, name = rest, http.CanonicalHeaderKey(name)
		if have := h[name]; have != nil {
			h[name] = append(have, value)
			continue
		}
		values[i] = value
		h[name] = values[i : i+1 : i+1]
	}
	r.Header = h
	return nil
}

// host checks and sets whom the request is for (RFC 9112, 3.2).
func (r *request) host() error {
	hosts := r.Header["Host"]
	switch {
	case len(hosts) > 1:
		return bad("too many Host headers")
	case len(hosts) == 0 && !r.old && r.Method != http.MethodConnect:
		return bad("missing required Host header")
	case len(hosts) == 1 && !httpguts.ValidHostHeader(hosts[0]):
		return bad("malformed Host header")
	}
	r.Host = r.URL.Host
	if r.Host == "" && len(hosts) == 1 {
		r.Host = hosts[0]
	}
	delete(r.Header, "Host")
	return nil
}

// framing finds out how the body comes, and what becomes of the connection (RFC
// 9112, 6 and 9.3).
func (r *request) framing() error {
	h := r.Header
	r.last = r.old
	for _, v := range h["Connection"] {
		r.last = r.last || hasToken(v, "close")
	}
	r.close = r.last
	length, err := declared(h["Content-Length"])
	if err != nil {
		return err
	}
	if length >= 0 {
		h["Content-Length"] = h["Content-Length"][:1]
	}
	if codings, ok := h["Transfer-Encoding"]; ok {
		if r.old {
			return bad("a transfer coding with HTTP/1.0")
		}
		if len(codings) != 1 || !syntax.Same(codings[0], "chunked") {
			return refusal{http.StatusNotImplemented, "unsupported transfer encoding"}
		}
		// Whoever sent a length too may be read otherwise by somebody before us:
		// nothing behind this request is taken for another.
		r.close = r.close || length >= 0
		r.chunked, length = true, -1
		r.TransferEncoding = chunkedCoding
		delete(h, "Transfer-Encoding")
		delete(h, "Content-Length")
		for _, v := range h["Trailer"] {
			if hasToken(v, "Transfer-Encoding") || hasToken(v, "Content-Length") || hasToken(v, "Trailer") {
				return bad("a trailer that must not be one")
			}
		}
		delete(h, "Trailer")
	}
	r.ContentLength = length
	if length < 0 && !r.chunked {
		r.ContentLength = 0
	}
	if expect := h["Expect"]; len(expect) > 0 && (len(expect) > 1 || expect[0] != "") {
		if len(expect) > 1 || !syntax.Same(expect[0], "100-continue") {
			return refusal{status: http.StatusExpectationFailed}
		}
		r.expects = !r.old && (r.chunked || length > 0)
	}
	r.Close = r.close
	return nil
}

var chunkedCoding = []string{"chunked"}

// declared reads a length that was given once, or the same again; -1 = none was.
func declared(lengths []string) (int64, error) {
	if len(lengths) == 0 {
		return -1, nil
	}
	for _, more := range lengths[1:] {
		if more != lengths[0] {
			return 0, bad("several lengths")
		}
	}
	n, err := strconv.ParseUint(lengths[0], 10, 63)
	if err != nil {
		return 0, bad("malformed length")
	}
	return int64(n), nil
}

// hasToken reports whether a list has a token, in any case.
func hasToken(list, token string) bool {
	for list != "" {
		var one string
		one, list, _ = strings.Cut(list, ",")
		if syntax.Same(syntax.Trim(one), token) {
			return true
		}
	}
	return false
}
