package h2

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/internal/testkit/logkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a server, by this package or net/http's own, until the test ends.
func start(t testing.TB, ours bool, h http.Handler, change func(*http.Server)) (*httptest.Server, *logkit.Buffer) {
	t.Helper()
	logged := new(logkit.Buffer)
	ts := httptest.NewUnstartedServer(h)
	ts.EnableHTTP2 = true
	ts.Config.ErrorLog = log.New(logged, "", 0)
	ts.Config.MaxHeaderBytes = 32 << 10
	ts.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 20}
	if change != nil {
		change(ts.Config)
	}
	if ours {
		Configure(ts.Config)
	}
	ts.StartTLS()
	t.Cleanup(ts.Close)
	return ts, logged
}

// stage answers as its path says.
func stage(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/hello":
		_, _ = io.WriteString(w, "hello")
	case "/echo":
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = w.Write(b)
	case "/seen": // the request, as handlers see it
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %s %d %q %v tls=%t", r.Method, r.URL, r.RequestURI, r.Host, r.ContentLength, b, err != nil, r.TLS != nil)
		for _, name := range slices.Sorted(maps.Keys(r.Header)) {
			fmt.Fprintf(w, " %s=%q", name, r.Header[name])
		}
	case "/early":
		w.WriteHeader(http.StatusForbidden)
	case "/bytes":
		n, _ := strconv.Atoi(r.URL.RawQuery)
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, n))
	case "/stream":
		for range 3 {
			_, _ = io.WriteString(w, "event\n")
			_ = http.NewResponseController(w).Flush()
		}
	case "/panic":
		panic("a bug")
	case "/abort":
		panic(http.ErrAbortHandler)
	case "/torn":
		_, _ = io.WriteString(w, "half")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "/close":
		w.Header().Set("Connection", "close")
		_, _ = io.WriteString(w, "last")
	case "/length":
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hello")
	case "/short":
		w.Header().Set("Content-Length", "5")
		_, _ = io.WriteString(w, "hell")
	case "/long":
		w.Header().Set("Content-Length", "5")
		_, err := io.WriteString(w, "hello, world")
		if errors.Is(err, http.ErrContentLength) {
			_, _ = io.WriteString(w, "hello")
		}
	case "/oddlength":
		w.Header().Set("Content-Length", "five")
		_, _ = io.WriteString(w, "hello")
	case "/204", "/304", "/299":
		status, _ := strconv.Atoi(r.URL.Path[1:])
		w.WriteHeader(status)
	case "/204body":
		w.WriteHeader(http.StatusNoContent)
		if _, err := io.WriteString(w, "x"); errors.Is(err, http.ErrBodyNotAllowed) {
			return
		}
		panic("a body was taken")
	case "/103":
		w.Header().Set("Link", "</x>")
		w.WriteHeader(http.StatusEarlyHints)
		_, _ = io.WriteString(w, "hello")
	case "/twice":
		w.WriteHeader(http.StatusAccepted)
		w.WriteHeader(http.StatusOK)
		w.Header().Set("X-Late", "1")
	case "/odd":
		w.Header()["X-Bad Name"] = []string{"1"}
		w.Header()["X-Bad-Value"] = []string{"a\nb", "good"}
		w.Header()["Transfer-Encoding"] = []string{"chunked"}
		w.Header()["x-lower"] = []string{"1"}
		_, _ = io.WriteString(w, "hello")
	case "/typed":
		w.Header().Set("Content-Type", "text/x")
		w.Header().Set("Date", "now")
		_, _ = io.WriteString(w, "<html>")
	case "/html":
		_, _ = io.WriteString(w, "<html>")
	case "/wait":
		<-r.Context().Done()
	case "/late": // reads after it was taken back
		<-r.Context().Done()
		_, err := r.Body.Read(make([]byte, 1))
		_, again := w.Write([]byte("x"))
		_, more := w.Write(make([]byte, 8<<10))
		_ = errors.Join(err, again, more)
	case "/deadline":
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
		_, err := r.Body.Read(make([]byte, 1))
		fmt.Fprint(w, err != nil)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// player speaks frames to a server.
type player struct {
	t    testing.TB
	nc   net.Conn
	fr   *http2.Framer
	buf  bytes.Buffer
	enc  *hpack.Encoder
	open map[uint32]bool // streams that it opened and has no end of
	seen map[uint32]*answered
	conn string // how the connection is
}

// answered is what came on a stream.
type answered struct {
	heads []string
	body  bytes.Buffer
	end   string
}

func dial(t testing.TB, ts *httptest.Server) *player {
	t.Helper()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}
	nc, err := d.DialContext(t.Context(), "tcp", ts.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	return play(t, nc)
}

// alone runs a server whose time passes by itself, in memory, for connections
// that it gives.
func alone(t *testing.T, h http.HandlerFunc, few Strangers, change func(*http.Server)) (dialled func() *player) {
	t.Helper()
	hs := &http.Server{HTTP2: new(http.HTTP2Config)}
	if change != nil {
		change(hs)
	}
	s := &server{hs: hs, limits: limitsOf(hs), conns: make(map[*conn]struct{}), strangers: few}
	return func() *player {
		near, far := net.Pipe()
		c := newConn(t.Context(), s, near, near, new(tls.ConnectionState), h)
		var ended sync.WaitGroup
		ended.Go(c.serve)
		t.Cleanup(func() { _ = far.Close(); ended.Wait() })
		return play(t, far)
	}
}

func play(t testing.TB, nc net.Conn) *player {
	p := &player{t: t, nc: nc, open: make(map[uint32]bool), seen: make(map[uint32]*answered)}
	p.fr = http2.NewFramer(nc, nc)
	p.fr.AllowIllegalWrites = true
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.buf)
	return p
}

// hello begins as clients do.
func (p *player) hello(settings ...http2.Setting) {
	p.write([]byte(http2.ClientPreface))
	_ = p.fr.WriteSettings(settings...)
}

func (p *player) write(b []byte) { _, _ = p.nc.Write(b) } // what becomes of it shows in what is read

func (p *player) raw(kind http2.FrameType, flags http2.Flags, id uint32, payload string) {
	_ = p.fr.WriteRawFrame(kind, flags, id, []byte(payload))
}

func (p *player) block(fields ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return slices.Clone(p.buf.Bytes())
}

// ask opens a stream for path; more fields follow.
func (p *player) ask(id uint32, end bool, path string, more ...string) {
	method := "GET"
	if !end {
		method = "POST"
	}
	p.head(id, end, append([]string{":method", method, ":scheme", "https", ":authority", "host", ":path", path}, more...)...)
}

func (p *player) head(id uint32, end bool, fields ...string) {
	p.open[id] = true
	p.request(id, end, fields...)
}

// request may be called beside next, unlike head.
func (p *player) request(id uint32, end bool, fields ...string) {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: end, EndHeaders: true, BlockFragment: p.block(fields...)})
}

func (p *player) data(id uint32, end bool, b string) { _ = p.fr.WriteData(id, end, []byte(b)) }

const mark = "verdict!"

// verdict reads until every stream but those in pending has an end and the
// server has answered a ping, or until the connection ends.
func (p *player) verdict(pending ...uint32) string {
	_ = p.fr.WritePing(false, [8]byte([]byte(mark)))
	for _, id := range pending {
		delete(p.open, id)
	}
	_ = p.nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	for p.conn == "" || p.conn == "open" && len(p.open) > 0 {
		p.next()
	}
	var all []string
	for _, id := range slices.Sorted(maps.Keys(p.seen)) {
		if a := p.seen[id]; id > 0 {
			all = append(all, fmt.Sprintf("%d: %s%q %s", id, strings.Join(a.heads, ""), a.body.String(), a.end))
		}
	}
	return strings.Join(append(all, p.conn), "; ")
}

// next takes one frame in, of a connection that has not ended.
func (p *player) next() {
	if p.conn != "" && p.conn != "open" {
		panic("the connection is " + p.conn)
	}
	f, err := p.fr.ReadFrame()
	if err != nil {
		var timeout net.Error
		if p.conn = "closed"; errors.As(err, &timeout) && timeout.Timeout() {
			p.conn = "silent"
		}
		return
	}
	id := f.Header().StreamID
	a := p.seen[id]
	if a == nil {
		a = new(answered)
		p.seen[id] = a
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		var fields []string
		for _, hf := range f.Fields {
			switch hf.Name {
			case ":status":
				fields = append(fields, hf.Value)
			case "date":
				fields = append(fields, "date")
			default:
				fields = append(fields, hf.Name+"="+hf.Value)
			}
		}
		slices.Sort(fields)
		a.heads = append(a.heads, "["+strings.Join(fields, " ")+"] ")
		p.ended(id, a, f.StreamEnded())
	case *http2.DataFrame:
		a.body.Write(f.Data())
		p.ended(id, a, f.StreamEnded())
	case *http2.RSTStreamFrame:
		a.end += "reset " + f.ErrCode.String()
		delete(p.open, id)
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo {
			p.conn = "goaway " + f.ErrCode.String()
		} else {
			a.end += "goaway"
		}
	case *http2.PingFrame:
		if f.IsAck() && string(f.Data[:]) == mark {
			p.conn = "open"
		}
	}
}

func (p *player) ended(id uint32, a *answered, end bool) {
	if end {
		a.end += "end "
		delete(p.open, id)
	}
}

func stageHandler() http.Handler { return http.HandlerFunc(stage) }
