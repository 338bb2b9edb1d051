package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"ringmain/internal/testkit/synckit"
)

// until waits for something that is about to be.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in 10 s: %s", what)
		}
	}
}

// What goes through a client of net/http's comes back as it was, however many
// speak at once, in bodies of all sizes.
func TestManyAtOnce(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), func(s *http.Server) { s.HTTP2.MaxConcurrentStreams = 64 })
	client := ts.Client()
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 30 {
				size := r.IntN(100)
				if r.IntN(8) == 0 {
					size = r.IntN(1 << 20)
				}
				sent := bytes.Repeat([]byte{byte('a' + i)}, size)
				var body io.Reader = bytes.NewReader(sent)
				if r.IntN(2) == 0 {
					body = struct{ io.Reader }{body} // of no declared length
				}
				resp, err := client.Post(ts.URL+"/echo", "text/x", body)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Equal(got, sent) || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 2 {
					t.Errorf("%d bytes: %d bytes came, %v, status %d over %s", size, len(got), err, resp.StatusCode, resp.Proto)
					return
				}
			}
		})
	}
	all.Wait()
}

// A client that leaves in the middle ends its own request and no other.
func TestClientsThatLeave(t *testing.T) {
	var under atomic.Int64
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		under.Add(1)
		defer under.Add(-1)
		if r.URL.Path != "/endless" {
			stage(w, r)
			return
		}
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 10<<10)); err != nil {
				break
			}
		}
		<-r.Context().Done()
	}), nil)
	client := ts.Client()
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, ts.URL+"/endless", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
		cancel()
		_ = resp.Body.Close()
		if resp, err = client.Get(ts.URL + "/hello"); err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	until(t, "all handlers end", func() bool { return under.Load() == 0 })
}

// Streams that wait for the connection's window get it in turn; one that does
// not read holds up nobody else.
func TestWindowsAreShared(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), nil)
	p := dial(t, ts)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	_ = p.fr.WriteSettings()
	for id := uint32(1); id <= 9; id += 2 {
		p.ask(id, true, "/bytes?300000")
	}
	got := func() (n int) {
		for _, a := range p.seen {
			n += a.body.Len()
		}
		return n
	}
	for got() < 65535 || len(p.seen) < 6 { // all of them began; one is the connection itself
		p.next()
	}
	given := 65535
	for given < 500000 {
		_ = p.fr.WriteWindowUpdate(0, 20000)
		given += 20000
		for got() < given {
			p.next()
		}
	}
	least, most := 1<<30, 0
	for id := uint32(1); id <= 9; id += 2 {
		n := 0
		if a := p.seen[id]; a != nil {
			n = a.body.Len()
		}
		least, most = min(least, n), max(most, n)
	}
	if most-least > 65535+2*maxFrame {
		t.Errorf("one stream had %d bytes, another %d", most, least)
	}
	_ = p.fr.WriteWindowUpdate(0, 1<<22)
	if v := p.verdict(); strings.Count(v, "end ;") != 5 {
		t.Errorf("not all ended: %.300s", v)
	}
}

// A write deadline ends the wait for a client that does not read, and the
// answer is reset.
func TestWriteDeadline(t *testing.T) {
	wrote := make(chan error, 1)
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := w.Write(make([]byte, 100<<10))
		wrote <- err
		_, err = w.Write([]byte("more"))
		wrote <- err
	}), nil)
	p := dial(t, ts)
	p.hello()
	p.ask(1, true, "/")
	for range 2 {
		if err := <-wrote; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the write ended with %v", err)
		}
	}
	if v := p.verdict(); !strings.HasSuffix(v, "reset INTERNAL_ERROR; open") {
		t.Errorf("%.100s ... %s", v, v[max(0, len(v)-100):])
	}
}

// A read deadline ends the wait for a body.
func TestReadDeadline(t *testing.T) {
	for name, change := range map[string]func(*http.Server){
		"the server's": func(s *http.Server) { s.ReadTimeout = time.Second }, // for a handshake, too
		"the handler's": func(s *http.Server) {
			h := s.Handler
			s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				some := make([]byte, len("some"))
				if _, err := io.ReadFull(r.Body, some); err != nil {
					t.Error(err)
				}
				r.Body = struct {
					io.Reader
					io.Closer
				}{io.MultiReader(bytes.NewReader(some), r.Body), r.Body}
				time.AfterFunc(20*time.Millisecond, func() { // while it waits
					_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(50 * time.Millisecond))
				})
				h.ServeHTTP(w, r)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				fmt.Fprintf(w, "%q %t", b, errors.Is(err, os.ErrDeadlineExceeded))
			}), change)
			p := dial(t, ts)
			p.hello()
			p.ask(1, false, "/")
			p.data(1, false, "some")
			if v := p.verdict(); !strings.Contains(v, `\"some\" true" end `) {
				t.Error(v)
			}
		})
	}
}

// A client that takes nothing from its socket is cut off.
func TestStalledClient(t *testing.T) {
	ended := make(chan error, 1)
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				ended <- err
				<-r.Context().Done()
				return
			}
		}
	}), func(s *http.Server) { s.HTTP2.WriteByteTimeout = 200 * time.Millisecond })
	p := dial(t, ts)
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = p.fr.WriteWindowUpdate(0, 1<<31-1-defaultWindow)
	p.ask(1, true, "/")
	select {
	case err := <-ended:
		if err == nil {
			t.Error("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the handler still writes")
	}
}

// A client that is silent is pinged, and cut off if it does not answer; one
// that asks nothing is told to go.
func TestSilentClients(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		p := alone(t, stage, Strangers{}, func(s *http.Server) {
			s.HTTP2.SendPingTimeout, s.HTTP2.PingTimeout = 50*time.Millisecond, time.Second
		})()
		last, pings := time.Now(), 0
		p.hello()
		p.ask(1, true, "/wait")
		for {
			f, err := p.fr.ReadFrame()
			if err != nil {
				break
			}
			if f, ok := f.(*http2.PingFrame); ok && !f.IsAck() {
				if pings++; pings < 4 {
					_ = p.fr.WritePing(true, f.Data)
					last = time.Now()
				}
			}
		}
		if after := time.Since(last); pings != 4 || after != 1050*time.Millisecond {
			t.Errorf("cut off %v after the last answer to %d pings", after, pings)
		}
	})
	synckit.Test(t, func(t *testing.T) {
		p := alone(t, stage, Strangers{}, func(s *http.Server) { s.IdleTimeout = 100 * time.Millisecond })()
		began := time.Now()
		p.hello()
		p.ask(1, true, "/hello")
		for p.seen[0] == nil || !strings.Contains(p.seen[0].end, "goaway") {
			if p.next(); p.conn != "" {
				t.Fatalf("no GOAWAY: %s", p.conn)
			}
		}
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("told to go after %v", took)
		}
		if a := p.seen[1]; a == nil || a.end != "end " {
			t.Error("the request was not answered")
		}
		for p.conn == "" {
			p.next()
		}
		if p.conn != "closed" {
			t.Errorf("the connection is %s", p.conn)
		}
	})
}

// A connection that sends no preface is closed.
func TestNoPreface(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), nil)
	for _, said := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", http2.ClientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"} {
		p := dial(t, ts)
		p.write([]byte(said))
		for p.conn == "" {
			p.next()
		}
		if p.conn == "silent" {
			t.Errorf("%q: %s", said, p.conn)
		}
	}
}

// Shutdown lets requests end that run, and takes no others; connections end then.
func TestShutdown(t *testing.T) {
	finish, running := make(chan struct{}), make(chan struct{})
	ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(running)
		<-finish
		_, _ = io.WriteString(w, "at last")
	}), nil)
	p, idle := dial(t, ts), dial(t, ts)
	p.hello()
	idle.hello()
	p.ask(1, true, "/")
	<-running
	down := make(chan error, 1)
	go func() { down <- ts.Config.Shutdown(context.Background()) }()
	for p.seen[0] == nil || p.seen[0].end != "goaway" {
		p.next()
	}
	p.ask(3, true, "/")
	select {
	case <-down:
		t.Error("down while a request runs")
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	for p.conn == "" {
		p.next()
	}
	if a := p.seen[1]; a == nil || a.body.String() != "at last" || a.end != "end " || p.seen[3] != nil {
		t.Errorf("answers %+v, and of the later one %+v", a, p.seen[3])
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// Connections that come while the server shuts down are not served.
func TestLateConnection(t *testing.T) {
	s := &server{hs: &http.Server{}, conns: make(map[*conn]struct{})}
	s.shutdown()
	if s.add(&conn{}) {
		t.Error("it was")
	}
}

// A handler's bug is logged with its stack, and breaks its own answer only.
func TestPanicsAreLogged(t *testing.T) {
	ts, logged := start(t, true, stageHandler(), nil)
	p := dial(t, ts)
	p.hello()
	p.ask(1, true, "/panic")
	p.ask(3, true, "/abort")
	p.ask(5, true, "/hello")
	if v := p.verdict(); !strings.Contains(v, `"hello" end`) {
		t.Error(v)
	}
	until(t, "the panic is logged", func() bool { return strings.Contains(logged.String(), "stage") })
	if l := logged.String(); strings.Count(l, "panic serving") != 1 || !strings.Contains(l, "a bug") {
		t.Error(l)
	}
}

// Requests that are taken back at once (rapid reset, CVE-2023-44487), or that
// the server is made to reset (MadeYouReset, CVE-2025-8671), never run more
// handlers than streams are allowed, and end the connection when too many wait.
func TestRapidReset(t *testing.T) {
	for name, reset := range map[string]func(p *player, id uint32) error{
		"taken back":           func(p *player, id uint32) error { return p.fr.WriteRSTStream(id, http2.ErrCodeCancel) },
		"a window of nothing":  func(p *player, id uint32) error { return p.fr.WriteWindowUpdate(id, 0) },
		"a window too large":   func(p *player, id uint32) error { return p.fr.WriteWindowUpdate(id, 1<<31-1) },
		"data after the end":   func(p *player, id uint32) error { return p.fr.WriteData(id, true, nil) },
		"a head after the end": func(p *player, id uint32) error { return p.headers(id, p.block("x", "y")) },
		"priority of itself":   func(p *player, id uint32) error { return p.fr.WritePriority(id, http2.PriorityParam{StreamDep: id}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var running, most atomic.Int64
			leave := make(chan struct{})
			ts, _ := start(t, true, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				n := running.Add(1)
				defer running.Add(-1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				<-leave // as a handler does that does not notice yet
			}), nil)
			p := dial(t, ts)
			p.hello()
			_ = p.nc.SetDeadline(time.Now().Add(20 * time.Second))
			read := make(chan string, 1)
			go func() {
				fr := http2.NewFramer(nil, p.nc)
				for {
					f, err := fr.ReadFrame()
					if errors.Is(err, os.ErrDeadlineExceeded) {
						read <- "open"
						return
					}
					if err != nil {
						read <- "closed"
						return
					}
					if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode != http2.ErrCodeNo {
						read <- g.ErrCode.String()
						return
					}
				}
			}()
			block := p.block(":method", "GET", ":scheme", "https", ":authority", "h", ":path", "/")
			for id := uint32(1); id < 20000; id += 2 {
				if p.headers(id, block) != nil || reset(p, id) != nil {
					break
				}
			}
			how := <-read
			close(leave)
			if how != "ENHANCE_YOUR_CALM" && how != "closed" {
				t.Errorf("the connection is %s", how)
			}
			if n := most.Load(); n > 20 {
				t.Errorf("%d handlers at once", n)
			}
			until(t, "all handlers end", func() bool { return running.Load() == 0 })
		})
	}
}

// headers sends a block that is all of a request.
func (p *player) headers(id uint32, block []byte) error {
	return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndStream: true, EndHeaders: true, BlockFragment: block})
}

// Frames that ask for nothing, or for answers that are not read, end the connection.
func TestFloods(t *testing.T) {
	floods := map[string]func(p *player, i int){
		"pings":    func(p *player, _ int) { _ = p.fr.WritePing(false, [8]byte{}) },
		"settings": func(p *player, _ int) { _ = p.fr.WriteSettings() },
		"many settings": func(p *player, i int) {
			if i%40 == 0 {
				_ = p.fr.WriteSettings(slices.Repeat([]http2.Setting{{ID: http2.SettingInitialWindowSize, Val: 1}}, maxSettings)...)
			}
		},
		"priorities":  func(p *player, _ int) { _ = p.fr.WritePriority(3, http2.PriorityParam{StreamDep: 5}) },
		"unknown":     func(p *player, _ int) { p.raw(99, 0, 0, "") },
		"empty data":  func(p *player, _ int) { _ = p.fr.WriteData(1, false, nil) },
		"padding":     func(p *player, _ int) { _ = p.fr.WriteDataPadded(1, false, nil, []byte{0}) },
		"wrong heads": func(p *player, i int) { p.head(uint32(2*i+3), true, ":method", "GET") },
		"wrong windows": func(p *player, i int) {
			p.ask(uint32(2*i+3), true, "/wait")
			p.raw(http2.FrameWindowUpdate, 0, uint32(2*i+3), "\x00\x00\x00\x00")
		},
		"continuations": func(p *player, i int) {
			p.raw(map[bool]http2.FrameType{true: http2.FrameHeaders, false: http2.FrameContinuation}[i == 0], 0, 3, "")
		},
		"header bombs": func(p *player, i int) {
			p.raw(map[bool]http2.FrameType{true: http2.FrameHeaders, false: http2.FrameContinuation}[i == 0], 0, 3, bomb(i == 0))
		},
		"taken back": func(p *player, i int) {
			p.ask(uint32(2*i+3), true, "/hello")
			_ = p.fr.WriteRSTStream(uint32(2*i+3), http2.ErrCodeCancel)
			_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		},
		"goaways": func(p *player, _ int) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) },
		"after goaway": func(p *player, i int) {
			if i == 0 {
				_ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)
			}
			p.ask(uint32(2*i+3), true, "/hello")
		},
		"over and again": func(p *player, _ int) { p.data(1, true, "x") },
	}
	// Requests excuse some, and those that run are bounded.
	legal := map[string]bool{"taken back": true, "wrong windows": true}
	for name, frame := range floods {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts, _ := start(t, true, stageHandler(), func(s *http.Server) {
				s.MaxHeaderBytes = 32 << 10
			})
			p := dial(t, ts)
			p.hello()
			p.ask(1, false, "/wait")
			_ = p.nc.SetDeadline(time.Now().Add(10 * time.Second))
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = io.Copy(io.Discard, p.nc)
			}()
			for i := range 12000 {
				frame(p, i)
				select {
				case <-ended:
					return
				default:
				}
			}
			if !legal[name] {
				select {
				case <-ended:
				case <-time.After(5 * time.Second):
					t.Error("it goes on")
				}
			}
			_ = p.nc.Close()
			<-ended
		})
	}
}

// bomb is a head that refers to one large field again and again.
func bomb(first bool) string {
	if first {
		return "\x40\x01x\x7f\x81\x1e" + strings.Repeat("y", 4000)
	}
	return strings.Repeat("\xbe", 16<<10)
}

// A client that does not read the answers to its pings is cut off, whatever its socket holds.
func TestUnreadAnswers(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), nil)
	p := dial(t, ts)
	p.hello()
	var all []byte
	for range 1000 {
		all = append(all, "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678"...)
	}
	_ = p.nc.SetWriteDeadline(time.Now().Add(20 * time.Second))
	for range 1000 {
		if _, err := p.nc.Write(all); err != nil {
			return
		}
	}
	t.Error("a million pings were taken")
}

// An idle connection, and one with many streams that are over, keep little.
func TestWhatIsKept(t *testing.T) {
	ts, _ := start(t, true, stageHandler(), nil)
	client := ts.Client()
	before := 0 // of one that has answered
	for i := range 2000 {
		resp, err := client.Get(ts.URL + "/bytes?100")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if i == 0 {
			before = runtime.NumGoroutine()
		}
	}
	until(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

// Nobody has the end of an answer before its handler returned, whatever its
// length; what came before it does not wait.
func TestTheEndWaitsForTheHandler(t *testing.T) {
	for _, size := range []int{1, holdBack, holdBack + 1, 50 << 10} {
		for _, declared := range []bool{true, false} {
			wrote, finish := make(chan struct{}), make(chan struct{})
			ts, _ := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if declared {
					w.Header().Set("Content-Length", strconv.Itoa(size))
				}
				_, _ = w.Write(make([]byte, size))
				close(wrote)
				<-finish
			}), nil)
			p := dial(t, ts)
			p.hello()
			p.ask(1, true, "/")
			<-wrote
			_ = p.fr.WritePing(false, [8]byte([]byte(mark)))
			for p.conn == "" {
				p.next()
			}
			got := 0
			if a := p.seen[1]; a != nil {
				if got = a.body.Len(); a.end != "" {
					t.Errorf("%d bytes, declared %t: %s before the handler returned", size, declared, a.end)
				}
			}
			if got < size-holdBack || declared && got == size {
				t.Errorf("%d bytes, declared %t: %d came before the handler returned", size, declared, got)
			}
			close(finish)
			p.conn = ""
			if v := p.verdict(); !strings.HasSuffix(v, "end ; open") || p.seen[1].body.Len() != size {
				t.Errorf("%d bytes, declared %t: %d came, %s", size, declared, p.seen[1].body.Len(), v[max(0, len(v)-20):])
			}
		}
	}
}
