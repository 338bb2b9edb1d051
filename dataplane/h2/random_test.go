package h2

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"ringmain/internal/testkit/synckit"
)

// step is one thing that a client does.
type step struct {
	what    string
	id      uint32
	end     bool
	n       int // bytes of a body, or of a window more
	padding int
	path    string
	fields  []string
}

func (s step) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %d n=%d end=%t padding=%d %s %q", s.what, s.id, s.n, s.end, s.padding, s.path, s.fields))
}

// randomSteps makes a client that mostly, but not always, does as it should.
func randomSteps(r *rand.Rand) []step {
	one := func(of ...string) string { return of[r.IntN(len(of))] }
	number := func(of ...int) int { return of[r.IntN(len(of))] }
	next, all := uint32(1), []step(nil)
	id := func() uint32 { // mostly of a stream that was opened
		if r.IntN(25) == 0 {
			return uint32(r.IntN(12))
		}
		return uint32(1 + 2*r.IntN(int(max(1, next/2))))
	}
	for range 2 + r.IntN(25) {
		s := step{what: one("head", "head", "head", "head", "data", "data", "data", "data", "data", "window", "window", "reset", "trailers", "rare"), id: id()}
		switch s.what {
		case "head":
			if r.IntN(20) != 0 {
				s.id, next = next, next+2
			}
			s.path, s.end = one("/hello", "/echo", "/echo", "/wait", "/early", "/bytes?100", "/bytes?30000", "/stream", "/length", "/torn", "/103", "/204"), r.IntN(2) == 0
			s.padding = number(0, 0, 0, 1, 100)
			if r.IntN(6) == 0 {
				s.fields = [][]string{{"x", "y"}, {"te", "trailers"}, {"cookie", "a=b", "cookie", "c=d"}, {"X", "y"}, {":path", "/"}, {"a", "b\nc"}, {":x", "y"}, {"expect", "100-continue"}}[r.IntN(8)]
			}
		case "data":
			s.n, s.end, s.padding = number(0, 1, 10, 5000, 16000), r.IntN(3) == 0, number(0, 0, 0, 1, 255)
		case "window":
			s.n = number(1, 100, 10000, 1000000, 1<<31-1)
			if r.IntN(3) == 0 {
				s.id = 0
			}
		case "reset":
			s.n = number(0, 2, 8)
		case "rare":
			s.what = one("settings", "settings", "ack", "ping", "priority", "unknown", "no window", "goaway", "continuation", "push", "bare data")
			s.n = number(0, 1, 100, 65535, 100000, 1<<31-1)
		}
		all = append(all, s)
	}
	return all
}

// theatre plays steps to one server, and waits after each until nothing moves.
type theatre struct {
	nc    net.Conn
	fr    *http2.Framer
	enc   *hpack.Encoder
	block strings.Builder

	mu    sync.Mutex
	seen  map[uint32]*answered
	begun map[uint32]bool // streams that were opened
	ended map[uint32]bool // and that the client has nothing more to say on
	conn  string
}

func newTheatre(nc net.Conn) *theatre {
	s := &theatre{nc: nc, fr: http2.NewFramer(nc, nil), seen: make(map[uint32]*answered), begun: make(map[uint32]bool), ended: make(map[uint32]bool), conn: "open"}
	s.fr.AllowIllegalWrites = true
	s.enc = hpack.NewEncoder(&s.block)
	go s.listen()
	_, _ = io.WriteString(nc, http2.ClientPreface) // what becomes of it shows in what is read
	_ = s.fr.WriteSettings()
	return s
}

func (s *theatre) listen() {
	fr := http2.NewFramer(nil, s.nc)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		s.mu.Lock()
		if err != nil {
			s.conn += " closed"
			s.mu.Unlock()
			return
		}
		a := s.seen[f.Header().StreamID]
		if a == nil {
			a = new(answered)
			s.seen[f.Header().StreamID] = a
		}
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			a.heads = append(a.heads, f.PseudoValue("status"))
			if f.StreamEnded() {
				a.end += "end "
			}
		case *http2.DataFrame:
			a.body.Write(f.Data())
			if f.StreamEnded() {
				a.end += "end "
			}
		case *http2.RSTStreamFrame:
			a.end += "reset " + f.ErrCode.String()
		case *http2.GoAwayFrame:
			if s.conn == "open" || f.ErrCode != http2.ErrCodeNo {
				s.conn = "goaway " + f.ErrCode.String()
			}
		}
		s.mu.Unlock()
	}
}

// over reports whether the server has reset a stream, or one above it that its
// client never opened before: a malformed head opens a stream here.
func (s *theatre) over(id uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for other, a := range s.seen {
		if strings.Contains(a.end, "reset") && (other == id || other > id && !s.begun[id]) {
			return true
		}
	}
	return false
}

// play does one step. What net/http is known to take otherwise is left out; see
// behaviours, where all of that is listed.
func (s *theatre) play(a step) {
	if s.conn != "open" || s.over(a.id) {
		return
	}
	fields := a.fields
	switch a.what {
	case "head":
		method := "GET"
		if !a.end {
			method = "POST"
		}
		if s.begun[a.id] && !s.ended[a.id] {
			return // see trailers
		}
		if a.end && slices.Contains(fields, "expect") {
			return // there is nothing to go on with, but net/http says so
		}
		fields = append([]string{":method", method, ":scheme", "https", ":authority", "h", ":path", a.path}, fields...)
		s.begun[a.id] = true
		fallthrough
	case "trailers":
		if a.what == "trailers" {
			a.end, fields = true, []string{"x", "y"}
			if !s.begun[a.id] {
				return // a head, and a malformed one
			}
		}
		s.block.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = s.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		_ = s.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: a.id, EndStream: a.end, EndHeaders: true, PadLength: uint8(a.padding), BlockFragment: []byte(s.block.String())})
		s.ended[a.id] = s.ended[a.id] || a.end
	case "data":
		_ = s.fr.WriteDataPadded(a.id, a.end, make([]byte, a.n), make([]byte, a.padding))
		s.ended[a.id] = s.ended[a.id] || a.end
	case "bare data":
		_ = s.fr.WriteData(a.id, a.end, nil)
		s.ended[a.id] = s.ended[a.id] || a.end
	case "window":
		_ = s.fr.WriteWindowUpdate(a.id, uint32(a.n))
	case "no window":
		_ = s.fr.WriteWindowUpdate(a.id, 0)
	case "reset":
		_ = s.fr.WriteRSTStream(a.id, http2.ErrCode(a.n))
		s.ended[a.id] = true
	case "settings":
		_ = s.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(a.n)})
	case "ack":
		_ = s.fr.WriteSettingsAck()
	case "ping":
		_ = s.fr.WritePing(a.n == 0, [8]byte{1})
	case "priority":
		_ = s.fr.WritePriority(a.id, http2.PriorityParam{StreamDep: uint32(a.n % 8)})
	case "unknown":
		_ = s.fr.WriteRawFrame(0xbe, 0xff, a.id, []byte("what"))
	case "goaway":
		_ = s.fr.WriteGoAway(0, http2.ErrCode(a.n%3), nil)
	case "continuation":
		_ = s.fr.WriteContinuation(a.id, true, nil)
	case "push":
		_ = s.fr.WritePushPromise(http2.PushPromiseParam{StreamID: a.id, PromiseID: 2, EndHeaders: true})
	}
	synckit.Wait()
}

// state is what the client can tell of the server. How streams share the
// connection's window is the server's affair.
func (s *theatre) state() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != "open" {
		s.conn = strings.TrimSuffix(s.conn, " closed") // some wait with that
		return s.conn
	}
	var all []string
	bytes := 0
	for _, id := range slices.Sorted(maps.Keys(s.seen)) {
		a := s.seen[id]
		bytes += a.body.Len()
		if len(a.heads) > 0 || a.end != "" {
			all = append(all, fmt.Sprintf("%d: %s %s", id, strings.Join(a.heads, ","), a.end))
		}
	}
	return fmt.Sprintf("%d bytes; %s", bytes, strings.Join(all, "; "))
}

// pipes listens for connections that are in memory.
type pipes struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case nc := <-p.ch:
		return nc, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// differ plays steps to both servers, and gives the first that they take
// otherwise, or what ours leaves behind after all of them.
func differ(steps []step) (at int, ours, theirs string) {
	quiet := log.New(io.Discard, "", 0)
	configure := func() *http.Server {
		return &http.Server{Handler: stageHandler(), ErrorLog: quiet, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 5}}
	}
	standard, l := configure(), &pipes{ch: make(chan net.Conn), done: make(chan struct{})}
	standard.Protocols = new(http.Protocols)
	standard.Protocols.SetUnencryptedHTTP2(true)
	var all sync.WaitGroup
	defer time.Sleep(time.Minute) // until net/http's connections are gone, too
	defer all.Wait()
	all.Go(func() { _ = standard.Serve(l) })
	defer standard.Close()
	near, far := net.Pipe()
	defer far.Close()
	l.ch <- near
	b := newTheatre(far)

	hs := configure()
	near, far = net.Pipe()
	s := &server{hs: hs, limits: limitsOf(hs), conns: make(map[*conn]struct{})}
	c := newConn(context.Background(), s, near, near, new(tls.ConnectionState), hs.Handler)
	all.Go(c.serve)
	a := newTheatre(far)
	defer func() {
		_ = far.Close()
		synckit.Wait()
		if left := c.leftBehind(); left != "" && at < 0 {
			at, ours = len(steps)-1, left
		}
	}()
	synckit.Wait()
	for i, step := range steps {
		a.play(step)
		b.play(step)
		if ours, theirs = a.state(), b.state(); ours != theirs {
			return i, ours, theirs
		}
	}
	return -1, "", ""
}

// TestRandomClients: clients that do all kinds of things are answered as net/http
// answers them, step by step. H2_CLIENTS and H2_FROM choose how many, and which.
func TestRandomClients(t *testing.T) {
	clients, from := 400, 1
	if n, err := strconv.Atoi(os.Getenv("H2_CLIENTS")); err == nil {
		clients = n
	}
	if n, err := strconv.Atoi(os.Getenv("H2_FROM")); err == nil {
		from = n
	}
	pools := func() { // net/http keeps channels in them, which may not leave the bubble
		runtime.GC()
		runtime.GC()
	}
	pools()
	defer pools()
	synckit.Test(t, func(t *testing.T) {
		for seed := from; seed < from+clients; seed++ {
			steps := randomSteps(rand.New(rand.NewPCG(uint64(seed), 2)))
			at, ours, theirs := differ(steps)
			if at < 0 {
				continue
			}
			steps = steps[:at+1]
			for i := 0; i < len(steps)-1; { // leave out what does not matter
				fewer := slices.Delete(slices.Clone(steps), i, i+1)
				if now, o, th := differ(fewer); now == len(fewer)-1 {
					steps, ours, theirs = fewer, o, th
				} else {
					i++
				}
			}
			t.Errorf("client %d:\n%v\nours     %s\nnet/http %s", seed, steps, ours, theirs)
			return
		}
	})
}
