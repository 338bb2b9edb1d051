package h2

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// behaviour is what a client does. It is played to this package and to
// net/http's own, and both must do the same.
type behaviour struct {
	name     string
	settings []http2.Setting
	script   func(p *player)
	pending  []uint32 // streams that get no answer
	// want is our verdict, written down where it differs from net/http's, for
	// the reason in why.
	want string
	why  string
}

func asking(path string, more ...string) func(*player) {
	return func(p *player) { p.ask(1, true, path, more...) }
}

func sending(path, body string, more ...string) func(*player) {
	return func(p *player) {
		p.ask(1, false, path, more...)
		p.data(1, true, body)
	}
}

// earlyAnswer has a request answered before its body came.
func (p *player) earlyAnswer(id uint32) {
	p.ask(id, false, "/early")
	for p.conn == "" && (p.seen[id] == nil || p.seen[id].end == "" || p.seen[id].end == "end ") {
		p.next()
	}
}

func heading(fields ...string) func(*player) {
	return func(p *player) { p.head(1, true, fields...) }
}

const (
	stricter = "malformed (RFC 9113, 8.1.1): whoever sits behind may read it otherwise"
	itsFault = "the request was malformed, and says so at once; net/http leaves it to the handler"
	conform  = "as RFC 9113 wants it, 8.2.2 and 6.5.3"
	ourWords = "the same in our words"
	late9113 = "what is on its way when a stream is reset is no error (RFC 9113, 5.1): net/http ends all of the connection for trailers"
	notWhole = "an answer shorter than it declared is not whole, and says so"
)

var behaviours = []behaviour{
	// Answers.
	{name: "hello", script: asking("/hello")},
	{name: "echo", script: sending("/echo", "some body")},
	{name: "nothing there", script: asking("/none")},
	{name: "a status without a name", script: asking("/299")},
	{name: "as handlers see it", script: sending("/seen?a=b&c", "body", "content-type", "application/json", "x-custom", "1", "x-custom", "2", "user-agent", "me")},
	{name: "as handlers see it, with a length", script: sending("/seen", "body", "content-length", "4")},
	{name: "as handlers see it, without a body", script: asking("/seen", "accept", "*/*")},
	{name: "as handlers see it, over http", script: heading(":method", "GET", ":scheme", "http", ":authority", "h", ":path", "/seen")},
	{name: "cookies", script: asking("/seen", "cookie", "a=1", "cookie", "b=2")},
	{name: "events", script: asking("/stream")},
	{name: "64 KiB", script: asking("/bytes?65535")},
	{name: "HEAD", script: heading(":method", "HEAD", ":scheme", "https", ":authority", "h", ":path", "/hello")},
	{name: "HEAD with a length", script: heading(":method", "HEAD", ":scheme", "https", ":authority", "h", ":path", "/length")},
	{name: "HEAD of a stream", script: heading(":method", "HEAD", ":scheme", "https", ":authority", "h", ":path", "/stream")},
	{name: "204", script: asking("/204")},
	{name: "304", script: asking("/304")},
	{name: "204 with a body", script: asking("/204body")},
	{name: "103", script: asking("/103")},
	{name: "two heads", script: asking("/twice")},
	{name: "a length", script: asking("/length")},
	{name: "a length that is none", script: asking("/oddlength")},
	{name: "shorter than declared", script: asking("/short"),
		want: `1: "" reset INTERNAL_ERROR; open`, why: notWhole},
	{name: "longer than declared", script: asking("/long"),
		want: `1: [200 content-length=5 content-type=text/plain; charset=utf-8 date] "hello" end ; open`, why: "too much is refused, as over HTTP/1.1"},
	{name: "fields that cannot be sent", script: asking("/odd")},
	{name: "type and date of the handler's", script: asking("/typed")},
	{name: "a type from the content", script: asking("/html")},
	{name: "a bug", script: asking("/panic")},
	{name: "aborted", script: asking("/abort")},
	{name: "aborted in the middle", script: asking("/torn")},
	{name: "connection: close", script: asking("/close")},
	{name: "answered before the body came", pending: []uint32{1}, script: func(p *player) { p.earlyAnswer(1) }},
	{name: "several at once", script: func(p *player) {
		for id := uint32(1); id < 21; id += 2 {
			p.ask(id, id%4 == 1, "/echo")
			if id%4 != 1 {
				p.data(id, true, strings.Repeat("y", int(id)))
			}
		}
	}},

	// Bodies.
	{name: "body in parts", script: func(p *player) {
		p.ask(1, false, "/echo")
		p.data(1, false, "ab")
		p.data(1, false, "")
		p.data(1, false, "cd")
		p.data(1, true, "")
	}},
	{name: "body with padding", script: func(p *player) {
		p.ask(1, false, "/echo")
		_ = p.fr.WriteDataPadded(1, false, []byte("ab"), make([]byte, 100))
		_ = p.fr.WriteDataPadded(1, true, []byte("cd"), make([]byte, 255))
	}},
	{name: "padding as long as the frame", script: func(p *player) {
		p.ask(1, false, "/echo")
		p.raw(http2.FrameData, http2.FlagDataPadded, 1, "\x05abcd")
	}},
	{name: "more than declared", script: sending("/echo", "12345", "content-length", "4")},
	{name: "less than declared", script: sending("/echo", "123", "content-length", "4"), want: `1: "" reset PROTOCOL_ERROR; open`, why: itsFault},
	{name: "two lengths", script: sending("/echo", "1234", "content-length", "4", "content-length", "4"),
		want: `1: "" reset PROTOCOL_ERROR; open`, why: stricter},
	{name: "a length that is no number", script: sending("/seen", "1234", "content-length", "+4")},
	{name: "a length without a body", script: asking("/seen", "content-length", "4"), want: `1: "" reset PROTOCOL_ERROR; open`, why: stricter},
	{name: "length 0 without a body", script: asking("/seen", "content-length", "0")},
	{name: "trailers", script: func(p *player) {
		p.ask(1, false, "/echo", "trailer", "x")
		p.data(1, false, "ab")
		p.head(1, true, "x", "y")
	}},
	{name: "trailers that do not end it", script: func(p *player) {
		p.ask(1, false, "/echo")
		p.head(1, false, "x", "y")
	}},
	{name: "trailers with a pseudo field", script: func(p *player) {
		p.ask(1, false, "/echo")
		p.head(1, true, ":path", "/x")
	}},
	{name: "trailers before the declared end", script: func(p *player) {
		p.ask(1, false, "/echo", "content-length", "4")
		p.data(1, false, "ab")
		p.head(1, true, "x", "y")
	}, want: `1: "" reset PROTOCOL_ERROR; open`, why: itsFault},
	{name: "expect: 100-continue", script: func(p *player) {
		p.ask(1, false, "/echo", "expect", "100-continue")
		for p.seen[1] == nil {
			p.next()
		}
		p.data(1, true, "ab")
	}},
	{name: "expect: 100-continue, answered without reading", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, false, "/early", "expect", "100-continue")
		for p.seen[1] == nil || p.seen[1].end == "" || p.seen[1].end == "end " {
			p.next()
		}
	}},
	{name: "a read deadline in the past", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, false, "/deadline")
		for p.seen[1] == nil || p.seen[1].end == "" || p.seen[1].end == "end " {
			p.next()
		}
	}},

	// Heads.
	{name: "no method", script: heading(":scheme", "https", ":authority", "h", ":path", "/hello")},
	{name: "no scheme", script: heading(":method", "GET", ":authority", "h", ":path", "/hello")},
	{name: "no path", script: heading(":method", "GET", ":scheme", "https", ":authority", "h")},
	{name: "an empty path", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "")},
	{name: "a path that is none", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "hello")},
	{name: "a path with a control character", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/\x01")},
	{name: "another scheme", script: heading(":method", "GET", ":scheme", "ftp", ":authority", "h", ":path", "/hello")},
	{name: "a whole URL as path", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "http://x/seen")},
	{name: "OPTIONS *", script: heading(":method", "OPTIONS", ":scheme", "https", ":authority", "h", ":path", "*")},
	{name: "CONNECT", script: heading(":method", "CONNECT", ":authority", "h:443")},
	{name: "CONNECT with a path", script: heading(":method", "CONNECT", ":authority", "h:443", ":scheme", "https", ":path", "/hello")},
	{name: "extended CONNECT", script: heading(":method", "CONNECT", ":authority", "h", ":scheme", "https", ":path", "/hello", ":protocol", "websocket")},
	{name: "two paths", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello", ":path", "/x")},
	{name: "a pseudo field that is not known", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello", ":x", "y")},
	{name: "a pseudo field of answers", script: heading(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello", ":status", "200")},
	{name: "a pseudo field after others", script: heading(":method", "GET", ":scheme", "https", "x", "y", ":authority", "h", ":path", "/hello")},
	{name: "upper case", script: asking("/hello", "X-Upper", "1")},
	{name: "a name with a space", script: asking("/hello", "x y", "1")},
	{name: "an empty name", script: asking("/hello", "", "1")},
	{name: "a value with a line break", script: asking("/hello", "x", "a\r\nb")},
	{name: "connection", script: asking("/hello", "connection", "close"), want: `1: "" reset PROTOCOL_ERROR; open`, why: conform},
	{name: "transfer-encoding", script: asking("/hello", "transfer-encoding", "chunked"), want: `1: "" reset PROTOCOL_ERROR; open`, why: conform},
	{name: "upgrade", script: asking("/hello", "upgrade", "h2c"), want: `1: "" reset PROTOCOL_ERROR; open`, why: conform},
	{name: "keep-alive", script: asking("/hello", "keep-alive", "1"), want: `1: "" reset PROTOCOL_ERROR; open`, why: conform},
	{name: "te: trailers", script: asking("/hello", "te", "trailers")},
	{name: "te: gzip", script: asking("/hello", "te", "gzip"), want: `1: "" reset PROTOCOL_ERROR; open`, why: conform},
	{name: "host instead of authority", script: heading(":method", "GET", ":scheme", "https", ":path", "/seen", "host", "h")},
	{name: "host as authority", script: asking("/seen", "host", "HOST")},
	{name: "host unlike authority", script: asking("/seen", "host", "other"), want: `1: "" reset PROTOCOL_ERROR; open`, why: stricter},
	{name: "two hosts", script: asking("/seen", "host", "host", "host", "host"), want: `1: "" reset PROTOCOL_ERROR; open`, why: stricter},
	{name: "userinfo in authority", script: heading(":method", "GET", ":scheme", "https", ":authority", "me@h", ":path", "/hello")},
	{name: "a head in parts", script: func(p *player) {
		b := p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello")
		p.open[1] = true
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndStream, 1, string(b[:3]))
		p.raw(http2.FrameContinuation, 0, 1, "")
		p.raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, string(b[3:]))
	}},
	{name: "a head that is too large", script: func(p *player) {
		p.open[1] = true
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndStream, 1, string(p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello", "x", strings.Repeat("x", 12<<10))))
		p.raw(http2.FrameContinuation, 0, 1, string(p.block("y", strings.Repeat("y", 12<<10))))
		p.raw(http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, string(p.block("z", strings.Repeat("z", 12<<10))))
	}, want: `1: [431 content-length=62 content-type=text/plain; charset=utf-8 date x-content-type-options=nosniff] "The header fields are too large: send fewer, or shorter ones.\n" end ; open`, why: ourWords},
	{name: "a head that is far too large", script: func(p *player) {
		b := p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello")
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndStream, 1, string(b))
		for range 20 {
			p.raw(http2.FrameContinuation, 0, 1, string(p.block("x", strings.Repeat("\x01", 15<<10))))
		}
	}},
	{name: "a table reference to nothing", script: func(p *player) {
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndStream|http2.FlagHeadersEndHeaders, 1, "\xff\xff\x01")
	}},
	{name: "a table that is larger than allowed", script: func(p *player) {
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndStream|http2.FlagHeadersEndHeaders, 1, "\x3f\xe2\x1f\x82")
	}},
	{name: "a head with more padding than it has", script: func(p *player) {
		p.raw(http2.FrameHeaders, http2.FlagHeadersEndStream|http2.FlagHeadersEndHeaders|http2.FlagHeadersPadded, 1, "\x05\x82")
	}, want: "goaway PROTOCOL_ERROR", why: "its block is not decoded, so the tables are unlike from there on (RFC 9113, 4.3 and 6.2)"},
	{name: "a head with a priority", script: func(p *player) {
		p.open[1] = true
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 3, Weight: 7},
			BlockFragment: p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello")})
	}},
	{name: "a head that depends on itself", script: func(p *player) {
		p.open[1] = true
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, EndHeaders: true, Priority: http2.PriorityParam{StreamDep: 1, Weight: 7},
			BlockFragment: p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/hello")})
	}},

	// Streams.
	{name: "an even stream", script: func(p *player) { p.ask(2, true, "/hello") }},
	{name: "a stream below another", script: func(p *player) { p.ask(3, true, "/wait"); p.ask(1, true, "/hello") }},
	{name: "a stream again", script: func(p *player) {
		p.ask(1, true, "/hello")
		for p.seen[1] == nil || p.seen[1].end == "" {
			p.next()
		}
		p.ask(1, true, "/hello")
	}},
	{name: "a head after the end", pending: []uint32{1}, script: func(p *player) { p.ask(1, true, "/wait"); p.ask(1, true, "/wait") }},
	{name: "data after the end", script: func(p *player) { p.ask(1, true, "/wait"); p.data(1, true, "x") }},
	{name: "data on a stream that is over", script: func(p *player) {
		p.ask(1, true, "/hello")
		for p.seen[1] == nil || p.seen[1].end == "" {
			p.next()
		}
		p.data(1, true, "x")
		p.open[1] = true
	}},
	{name: "data on no stream", script: func(p *player) { p.data(1, true, "x") }},
	{name: "data on stream 0", script: func(p *player) { p.raw(http2.FrameData, 0, 0, "x") }},
	{name: "trailers of a stream that was answered before them", pending: []uint32{1}, script: func(p *player) {
		p.earlyAnswer(1)
		p.data(1, false, "x")
		p.head(1, true, "x", "y")
		p.ask(3, true, "/hello")
	}, want: `1: [403 content-length=0 date] "" end reset NO_ERROR; 3: [200 content-length=5 content-type=text/plain; charset=utf-8 date] "hello" end ; open`, why: late9113},
	{name: "data of a stream that was answered before it", pending: []uint32{1}, script: func(p *player) {
		p.earlyAnswer(1)
		p.data(1, false, "x")
		p.data(1, true, "y")
	}, want: `1: [403 content-length=0 date] "" end reset NO_ERROR; open`, why: late9113},
	{name: "data of a stream that was answered before it, after its end", pending: []uint32{1}, script: func(p *player) {
		p.earlyAnswer(1)
		p.data(1, true, "x")
		p.data(1, true, "y")
	}, want: `1: [403 content-length=0 date] "" end reset NO_ERRORreset STREAM_CLOSED; open`, why: late9113},
	{name: "a short body of a stream that was answered before it", script: func(p *player) {
		p.ask(1, false, "/early", "content-length", "2")
		for p.conn == "" && (p.seen[1] == nil || p.seen[1].end == "") {
			p.next()
		}
		p.data(1, false, "x")
		p.data(1, true, "y")
		p.ask(3, true, "/hello")
	}, want: `1: [403 content-length=0 date] "" end ; 3: [200 content-length=5 content-type=text/plain; charset=utf-8 date] "hello" end ; open`,
		why: "curl takes the reset for a failure, and shows no answer"},
	{name: "a long body of a stream that was answered before it", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, false, "/early", "content-length", "8388608")
		for p.conn == "" && (p.seen[1] == nil || p.seen[1].end != "end reset NO_ERROR") {
			p.next()
		}
		p.ask(3, true, "/hello")
	}},
	{name: "a stream again that was answered before its end", pending: []uint32{1}, script: func(p *player) {
		p.earlyAnswer(1)
		p.head(1, true, "x", "y")
		p.ask(1, true, "/hello")
	}},
	{name: "taken back", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, true, "/wait")
		_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	}},
	{name: "taken back while it sends", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, false, "/late")
		_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		p.ask(3, true, "/hello")
	}},
	{name: "taken back, nothing", script: func(p *player) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel) }},
	{name: "taken back, stream 0", script: func(p *player) { p.raw(http2.FrameRSTStream, 0, 0, "\x00\x00\x00\x08") }},
	{name: "taken back twice", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, true, "/wait")
		_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	}},
	{name: "more streams than allowed", pending: []uint32{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39}, script: func(p *player) {
		for id := uint32(1); id <= 43; id += 2 {
			p.ask(id, true, "/wait")
		}
	}},
	{name: "more streams than allowed, settings acknowledged", pending: []uint32{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33, 35, 37, 39}, script: func(p *player) {
		_ = p.fr.WriteSettingsAck()
		for id := uint32(1); id <= 43; id += 2 {
			p.ask(id, true, "/wait")
		}
	}},

	// Windows.
	{name: "no window", settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, pending: []uint32{1}, script: func(p *player) {
		p.ask(1, true, "/length")
		for p.seen[1] == nil {
			p.next()
		}
	}},
	{name: "a window later", settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 0}}, script: func(p *player) {
		p.ask(1, true, "/length")
		_ = p.fr.WriteWindowUpdate(1, 3)
		_ = p.fr.WriteWindowUpdate(1, 3)
	}},
	{name: "a window by settings", settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 2}}, script: func(p *player) {
		p.ask(1, true, "/length")
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
	}},
	{name: "a window below nothing", settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 4}}, script: func(p *player) {
		p.ask(1, true, "/length")
		for p.seen[1] == nil || p.seen[1].body.Len() < 4 {
			p.next()
		}
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		_ = p.fr.WriteWindowUpdate(1, 4)
		_ = p.fr.WriteWindowUpdate(1, 1)
	}},
	{name: "the connection's window", settings: []http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1 << 20}}, script: func(p *player) {
		p.ask(1, true, "/bytes?70000")
		for p.seen[1] == nil || p.seen[1].body.Len() < 65535 {
			p.next()
		}
		_ = p.fr.WriteWindowUpdate(0, 10000)
	}},
	{name: "a window of nothing more, connection", script: func(p *player) { p.raw(http2.FrameWindowUpdate, 0, 0, "\x00\x00\x00\x00") }},
	{name: "a window of nothing more, stream", script: func(p *player) { p.ask(1, true, "/wait"); p.raw(http2.FrameWindowUpdate, 0, 1, "\x00\x00\x00\x00") }},
	{name: "a window too large, connection", script: func(p *player) { _ = p.fr.WriteWindowUpdate(0, 1<<31-1) }},
	{name: "a window too large, stream", script: func(p *player) { p.ask(1, true, "/wait"); _ = p.fr.WriteWindowUpdate(1, 1<<31-1) }},
	{name: "a window too large, by settings", script: func(p *player) {
		p.ask(1, true, "/wait")
		_ = p.fr.WriteWindowUpdate(1, 1<<30)
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	}},
	{name: "a window of no stream", script: func(p *player) { _ = p.fr.WriteWindowUpdate(1, 1) }},
	{name: "a window of a stream that is over", script: func(p *player) {
		p.ask(1, true, "/hello")
		for p.seen[1] == nil || p.seen[1].end == "" {
			p.next()
		}
		_ = p.fr.WriteWindowUpdate(1, 1)
	}},
	{name: "more than the window", pending: []uint32{1}, script: func(p *player) {
		p.ask(1, false, "/wait")
		for range 70 {
			p.data(1, false, strings.Repeat("x", 16<<10))
		}
	}, want: "goaway FLOW_CONTROL_ERROR", why: "it is the connection's window, too: an error of the connection (RFC 9113, 5.2.2)"},

	// The connection.
	{name: "a ping", script: func(p *player) { _ = p.fr.WritePing(false, [8]byte{1}) }},
	{name: "a ping on a stream", script: func(p *player) { p.raw(http2.FramePing, 0, 1, "12345678") }},
	{name: "a short ping", script: func(p *player) { p.raw(http2.FramePing, 0, 0, "1234") }},
	{name: "an answer to no ping", script: func(p *player) { _ = p.fr.WritePing(true, [8]byte{1}) }},
	{name: "an acknowledgement too many", script: func(p *player) { _ = p.fr.WriteSettingsAck(); _ = p.fr.WriteSettingsAck() }},
	{name: "settings on a stream", script: func(p *player) { p.raw(http2.FrameSettings, 0, 1, "") }},
	{name: "settings of an odd length", script: func(p *player) { p.raw(http2.FrameSettings, 0, 0, "12345") }},
	{name: "an acknowledgement with settings", script: func(p *player) { p.raw(http2.FrameSettings, http2.FlagSettingsAck, 0, "123456") }},
	{name: "settings that are not known", script: func(p *player) { _ = p.fr.WriteSettings(http2.Setting{ID: 99, Val: 1}) }},
	{name: "settings twice", script: func(p *player) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		p.ask(1, true, "/length")
	}, want: `1: [200 content-length=5 content-type=text/plain; charset=utf-8 date] "hello" end ; open`, why: conform},
	{name: "push of 2", script: func(p *player) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }},
	{name: "frames of 1 byte", script: func(p *player) { _ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }},
	{name: "a window beyond all", script: func(p *player) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
	}},
	{name: "a smaller table", script: func(p *player) {
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
		p.fr.ReadMetaHeaders.SetMaxDynamicTableSize(0)
		p.ask(1, true, "/hello")
		p.ask(3, true, "/hello")
	}},
	{name: "priority", script: func(p *player) { _ = p.fr.WritePriority(5, http2.PriorityParam{StreamDep: 3}) }},
	{name: "priority of itself", script: func(p *player) { _ = p.fr.WritePriority(5, http2.PriorityParam{StreamDep: 5}) }},
	{name: "priority of itself, then a stream below", script: func(p *player) {
		_ = p.fr.WritePriority(7, http2.PriorityParam{StreamDep: 7})
		p.ask(3, true, "/hello")
	}},
	{name: "no window more for no stream, then one below", script: func(p *player) {
		p.raw(http2.FrameWindowUpdate, 0, 7, "\x00\x00\x00\x00")
		p.ask(3, true, "/hello")
	}},
	{name: "priority of stream 0", script: func(p *player) { p.raw(http2.FramePriority, 0, 0, "12345") }},
	{name: "a short priority", script: func(p *player) { p.raw(http2.FramePriority, 0, 3, "1234") }},
	{name: "a push", script: func(p *player) {
		_ = p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: p.block("a", "b"), EndHeaders: true})
	}},
	{name: "a frame that is not known", script: func(p *player) { p.raw(77, 0, 0, "whatever"); p.raw(77, 0, 5, "whatever") }},
	{name: "a continuation of nothing", script: func(p *player) { p.raw(http2.FrameContinuation, 4, 1, "") }},
	{name: "something within a head", script: func(p *player) {
		p.raw(http2.FrameHeaders, 0, 1, string(p.block(":method", "GET")))
		_ = p.fr.WritePing(false, [8]byte{})
	}},
	{name: "a frame of 16 KiB", script: func(p *player) { p.ask(1, false, "/echo"); p.data(1, true, strings.Repeat("x", 16<<10)) }},
	{name: "a frame of 17 KiB", script: func(p *player) { p.ask(1, false, "/wait"); p.data(1, true, strings.Repeat("x", 17<<10)) },
		pending: []uint32{1}, want: "goaway FRAME_SIZE_ERROR", why: "16 KiB is what every client sends; net/http announces 1 MiB, and keeps as much memory"},
	{name: "the client goes", script: func(p *player) {
		p.ask(1, true, "/hello")
		_ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
	}},
	{name: "trailers of a stream that came after GOAWAY", pending: []uint32{3}, script: func(p *player) {
		_ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		p.ask(3, false, "/echo")
		p.data(3, false, "x")
		p.head(3, true, "x", "y")
	}},
	{name: "a client in error", script: func(p *player) { _ = p.fr.WriteGoAway(0, http2.ErrCodeInternal, nil) }},
}

func TestLikeNetHTTP(t *testing.T) {
	handler := stageHandler()
	theirs, _ := start(t, false, handler, nil)
	ours, _ := start(t, true, handler, nil)
	for _, b := range behaviours {
		t.Run(b.name, func(t *testing.T) {
			play := func(to *player) (v string) {
				defer func() {
					if p := recover(); p != nil {
						v = fmt.Sprint(p)
					}
				}()
				to.hello(b.settings...)
				b.script(to)
				return to.verdict(b.pending...)
			}
			want, got := play(dial(t, theirs)), play(dial(t, ours))
			switch {
			case b.want == "" && got != want:
				t.Errorf("ours     %s\nnet/http %s", got, want)
			case b.want != "" && got != b.want:
				t.Errorf("ours %s\nwant %s", got, b.want)
			case b.want != "" && want == b.want:
				t.Errorf("net/http does the same: %s", want)
			case b.want != "" && b.why == "":
				t.Error("no reason is given")
			}
		})
	}
}
