package h2

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	maxNames = 64 // of fields that are remembered per connection
	maxName  = 64 // bytes of each: a connection keeps them until it ends
)

// known are names of requests' fields as http.Header has them.
var known = func() map[string]string {
	m := make(map[string]string)
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Anthropic-Beta", "Anthropic-Version", "Authorization", "Connection", "Content-Encoding",
		"Content-Length", "Content-Type", "Cookie", "Expect", "Host", "Idempotency-Key", "Openai-Beta", "Openai-Organization", "Openai-Project", "Origin",
		"Referer", "Te", "Traceparent", "Tracestate", "Upgrade", "User-Agent", "X-Api-Key", "X-Forwarded-For", "X-Request-Id",
		"X-Stainless-Arch", "X-Stainless-Async", "X-Stainless-Lang", "X-Stainless-Os", "X-Stainless-Package-Version",
		"X-Stainless-Read-Timeout", "X-Stainless-Retry-Count", "X-Stainless-Runtime", "X-Stainless-Runtime-Version", "X-Stainless-Timeout",
		"Idc-Receipt", "Idc-Region-Hint", "Idc-Residency", "Idc-Retention",
	} {
		m[strings.ToLower(name)] = name
	}
	return m
}()

// canonical is a field's name as http.Header has it.
func (c *conn) canonical(name string) string {
	if s, ok := known[name]; ok {
		return s
	}
	if s, ok := c.names[name]; ok {
		return s
	}
	s := http.CanonicalHeaderKey(name)
	if c.names == nil {
		c.names = make(map[string]string)
	}
	if len(c.names) < maxNames && len(name) <= maxName {
		c.names[name] = s
	}
	return s
}

// newStream makes a request of a head; false: the head is malformed. The caller holds mu.
func (c *conn) newStream(f *http2.MetaHeadersFrame) (*stream, bool) {
	var t target
	for _, p := range f.PseudoFields() {
		switch p.Name {
		case ":method":
			t.method = p.Value
		case ":scheme":
			t.scheme = p.Value
		case ":authority":
			t.authority = p.Value
		case ":path":
			t.path = p.Value
		default:
			return nil, false
		}
	}
	header := c.header(f.RegularFields())
	if !t.resolve(header["Host"]) || !proper(header) {
		return nil, false
	}
	s := &stream{
		c: c, id: f.StreamID, window: c.initial, intake: intake{left: c.limits.streamWindow, most: c.limits.streamWindow},
		endedIn: f.StreamEnded(), declaredIn: -1, header: make(http.Header, answerFields), declared: -1,
	}
	s.readable.L, s.writable.L = &c.mu, &c.mu
	if length := header["Content-Length"]; len(length) > 0 {
		n, err := strconv.ParseUint(length[0], 10, 63)
		if err != nil || len(length) > 1 || s.endedIn && n > 0 {
			return nil, false
		}
		s.declaredIn = int64(n)
	}
	if httpguts.HeaderValuesContainsToken(header["Expect"], "100-continue") {
		delete(header, "Expect")
		s.expects = !s.endedIn
	}
	r := http.Request{
		Method: t.method, URL: t.url, RequestURI: t.uri, Host: t.authority, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: header, RemoteAddr: c.remote, Body: http.NoBody,
	}
	if t.scheme == "https" {
		r.TLS = c.tls
	}
	if !s.endedIn {
		r.Body, r.ContentLength = incoming{s}, s.declaredIn
	}
	if c.limits.readTimeout > 0 {
		s.readBy = c.lastFrame.Add(c.limits.readTimeout)
	}
	if c.limits.writeTimeout > 0 {
		s.writeBy = c.lastFrame.Add(c.limits.writeTimeout)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	s.cancel, s.r, s.serves = cancel, r.WithContext(ctx), c.handler.ServeHTTP
	if f.Truncated {
		s.serves = tooLarge
	}
	return s, true
}

// answerFields is how many fields an answer has room for at first.
const answerFields = 24

// header makes an http.Header of a head's fields.
func (c *conn) header(all []hpack.HeaderField) http.Header {
	h, values := make(http.Header, len(all)), make([]string, len(all))
	for i := range all {
		name := c.canonical(all[i].Name)
		if have := h[name]; have != nil {
			h[name] = append(have, all[i].Value)
			continue
		}
		values[i] = all[i].Value
		h[name] = values[i : i+1 : i+1]
	}
	if cookies := h["Cookie"]; len(cookies) > 1 {
		h["Cookie"] = []string{strings.Join(cookies, "; ")}
	}
	delete(h, "Trailer")
	return h
}

// target is what a request asks for.
type target struct {
	method, scheme, authority, path string // as they came

	url *url.URL
	uri string
}

// resolve completes a target; false: it is malformed (RFC 9113, 8.3.1 and 8.5).
func (t *target) resolve(host []string) bool {
	switch {
	case len(host) > 1, len(host) == 1 && t.authority != "" && !strings.EqualFold(host[0], t.authority):
		return false
	case len(host) == 1 && t.authority == "":
		t.authority = host[0]
	}
	if t.method == http.MethodConnect {
		t.url, t.uri = &url.URL{Host: t.authority}, t.authority
		return t.path == "" && t.scheme == "" && t.authority != ""
	}
	if t.method == "" || t.path == "" || t.scheme != "https" && t.scheme != "http" || strings.IndexByte(t.authority, '@') >= 0 {
		return false
	}
	var err error
	t.url, err = url.ParseRequestURI(t.path)
	t.uri = t.path
	return err == nil
}

// proper reports whether a head has none of the fields that are HTTP/1.1's
// alone (RFC 9113, 8.2.2).
func proper(h http.Header) bool {
	for _, name := range []string{"Connection", "Keep-Alive", "Proxy-Connection", "Transfer-Encoding", "Upgrade"} {
		if _, ok := h[name]; ok {
			return false
		}
	}
	te := h["Te"]
	return len(te) == 0 || len(te) == 1 && (te[0] == "trailers" || te[0] == "")
}

func tooLarge(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "The header fields are too large: send fewer, or shorter ones.", http.StatusRequestHeaderFieldsTooLarge)
}
