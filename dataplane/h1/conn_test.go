package h1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

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
// speak at once, in bodies of all sizes, in one piece or in many.
func TestManyAtOnce(t *testing.T) {
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/pass" { // in pieces
			var all []byte
			for p := make([]byte, 100+r.ContentLength&0xfff); ; {
				n, err := r.Body.Read(p)
				all = append(all, p[:n]...)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					panic(http.ErrAbortHandler)
				}
			}
			for i := 1; len(all) > 0; i++ {
				n := min(len(all), i*i*i)
				_, _ = w.Write(all[:n])
				if all = all[n:]; n%3 == 0 {
					_ = http.NewResponseController(w).Flush()
				}
			}
			return
		}
		stage(w, r)
	}), nil)
	client := st.client(t)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for range 15 {
				size := r.IntN(100)
				if r.IntN(4) == 0 {
					size = r.IntN(100 << 10)
				}
				sent := bytes.Repeat([]byte{byte('a' + i)}, size)
				var body io.Reader = bytes.NewReader(sent)
				path := "/echo"
				switch r.IntN(3) {
				case 0:
					body = struct{ io.Reader }{body} // of no declared length
				case 1:
					path = "/pass"
					body = io.MultiReader(bytes.NewReader(sent[:size/2]), bytes.NewReader(sent[size/2:]))
				}
				resp, err := client.Post("https://"+st.addr+path, "text/x", body)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil || !bytes.Equal(got, sent) || resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
					t.Errorf("%s, %d bytes: %d bytes came, %v, status %d over %s", path, size, len(got), err, resp.StatusCode, resp.Proto)
					return
				}
			}
		})
	}
	all.Wait()
}

// Requests that are sent without waiting for answers are answered in order,
// wherever the bytes are cut, also while a handler takes long enough to be
// watched.
func TestPipelined(t *testing.T) {
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if strings.HasPrefix(string(b), "slow") {
			time.Sleep(watchAfter + watchAfter/4)
		}
		if r.Context().Err() != nil {
			t.Error("taken back")
		}
		_, _ = w.Write(b)
	}), nil)
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 2))
		nc := st.dial(t)
		var sent bytes.Buffer
		var bodies []string
		for i := range 30 {
			body := fmt.Sprintf("%d-%s", i, strings.Repeat("z", r.IntN(20)*r.IntN(20)*r.IntN(20)))
			if r.IntN(10) == 0 {
				body = "slow" + body
			}
			bodies = append(bodies, body)
			if r.IntN(2) == 0 {
				sent.WriteString(post("/", body))
				continue
			}
			at := r.IntN(len(body))
			rest := body[at:]
			framed := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(rest), rest)
			if at > 0 {
				framed = fmt.Sprintf("%x;ext\r\n%s\r\n", at, body[:at]) + framed
			}
			sent.WriteString(chunked("/", framed))
		}
		go func() {
			for sent.Len() > 0 {
				if _, err := nc.Write(sent.Next(1 + r.IntN(1+r.IntN(3000)))); err != nil {
					return // the reader says so
				}
			}
		}()
		in := bufio.NewReader(nc)
		for _, want := range bodies {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(resp.Body); string(got) != want || err != nil {
				t.Fatalf("%.40q, want %.40q: %v", got, want, err)
			}
		}
		_ = nc.Close()
	}
}

// Other protocols, other clients: HTTP/2 goes to the http.Server, whose handler
// sees what ConnContext gave; a client without TLS is told so; one that says
// nothing, or breaks off, leaves nothing behind.
func TestOthers(t *testing.T) {
	type key struct{}
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, server := r.Context().Value(http.ServerContextKey).(*http.Server)
		_, addr := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		fmt.Fprintf(w, "%s %v %t %t %s", r.Proto, r.Context().Value(key{}), server, addr, r.TLS.NegotiatedProtocol)
	}), func(hs *http.Server) {
		hs.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
			_, ok := nc.(*tls.Conn)
			return context.WithValue(ctx, key{}, ok)
		}
	})
	for want, client := range map[string]*http.Client{"HTTP/1.1 true true true ": st.client(t), "HTTP/2.0 true true true h2": st.client(t, "h2")} {
		resp, err := client.Get("https://" + st.addr)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != want || err != nil {
			t.Errorf("%q, want %q: %v", b, want, err)
		}
		_ = resp.Body.Close()
	}
	plain, err := net.Dial("tcp", st.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = io.WriteString(plain, get("/"))
	if b, _ := io.ReadAll(plain); !strings.HasPrefix(string(b), "HTTP/1.0 400 ") {
		t.Errorf("without TLS: %q", b)
	}
	_ = plain.Close()
	short := start(t, true, http.HandlerFunc(stage), func(hs *http.Server) { hs.ReadHeaderTimeout = 100 * time.Millisecond })
	mute, err := net.Dial("tcp", short.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	if b, err := io.ReadAll(mute); err != nil || len(b) > 0 { // at the end of its time
		t.Errorf("who says nothing hears %q, %v", b, err)
	}
	for st, most := range map[*stand]int{st: 1, short: 0} { // one is idle; HTTP/2's is the http.Server's
		until(t, "no connection is left but those that are idle", func() bool {
			st.server.mu.Lock()
			defer st.server.mu.Unlock()
			return len(st.server.conns) <= most
		})
	}
}

// A bug in a handler ends its connection, and is logged; an abort is not.
func TestPanics(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), nil)
	for _, path := range []string{"/abort", "/torn", "/panic"} {
		nc, logs := st.dial(t), path == "/panic"
		if _, err := io.WriteString(nc, get(path)+get("/hello")); err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(nc); strings.Contains(string(b), "hello") || path != "/torn" && len(b) > 0 {
			t.Errorf("%s: %q", path, b)
		}
		until(t, "the log", func() bool { return strings.Contains(st.log.String(), ": panic serving ") == logs })
		if logs != strings.Contains(st.log.String(), "a bug") {
			t.Errorf("%s: logged %q", path, st.log.String())
		}
	}
}

// A panic amid a handshake is no more than the end of its connection.
func TestPanicInHandshake(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), func(hs *http.Server) {
		hs.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName == "bug.example" {
				panic("a bug")
			}
			return nil, nil
		}
	})
	if nc, err := tls.Dial("tcp", st.addr, &tls.Config{ServerName: "bug.example", MinVersion: tls.VersionTLS13}); err == nil {
		_ = nc.Close()
		t.Error("it was not met")
	}
	if resp, err := st.client(t).Get("https://" + st.addr + "/hello"); err != nil {
		t.Error(err)
	} else {
		_ = resp.Body.Close()
	}
}

// An answer whose body is small is one record, its head included; and the last
// of any that declared its length waits for the handler.
func TestOneRecord(t *testing.T) {
	for size, before := range map[int]int{0: 0, 1: 0, 2 << 10: 0, holdBack: 0, 10 << 10: 6 << 10, 100 << 10: 96 << 10} {
		synckit.Test(t, func(t *testing.T) { oneRecord(t, size, before) })
	}
}

// oneRecord answers with size bytes, of which so many go out before the handler is over.
func oneRecord(t *testing.T, size, before int) {
	sent := make(chan int, 100)
	over := make(chan struct{})
	k := speak(t, func(w http.ResponseWriter, _ *http.Request) {
		defer close(over)
		w.Header().Set("Content-Length", strconv.Itoa(size))
		w.Header().Set("Content-Type", "text/x")
		w.WriteHeader(http.StatusOK)
		_, _ = w.Write(make([]byte, size))
		synckit.Wait() // what goes out has gone
		left := before
		for len(sent) > 0 {
			left -= <-sent
		}
		if left > 0 || left < -500 { // the head
			t.Errorf("of %d bytes %d too few went out before the handler was over", size, left)
		}
	})
	go func() {
		defer close(sent)
		for p := make([]byte, 64<<10); ; {
			n, err := k.Read(p)
			if err != nil {
				return
			}
			sent <- n
		}
	}()
	k.say(t, get("/", "Connection: close"))
	<-over
	if n := <-sent; n < size-before {
		t.Errorf("%d bytes: the last write has %d", size, n)
	}
	if n, more := <-sent; more {
		t.Errorf("%d bytes: another write has %d", size, n)
	}
	_ = k.Close()
	<-k.ended
}

// A handler that is over has nothing more to say on its connection.
func TestAfterTheEnd(t *testing.T) {
	var last http.ResponseWriter
	var body io.Reader
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if last != nil {
			_, err := io.WriteString(last, "from before")
			last.WriteHeader(http.StatusTeapot)
			control := http.NewResponseController(last)
			if err == nil || control.Flush() == nil || control.SetReadDeadline(time.Unix(1, 0)) == nil || control.SetWriteDeadline(time.Unix(1, 0)) == nil {
				t.Error("something was taken")
			}
			if n, err := body.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Error("something was read")
			}
		}
		last, body = w, r.Body
		_, _ = io.WriteString(w, "ok")
	}), nil)
	nc := st.dial(t)
	in := bufio.NewReader(nc)
	for range 3 {
		if _, err := io.WriteString(nc, post("/", "body")); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
}

// What is kept between requests, and while a handler streams, is not memory for
// requests or answers.
func TestIdleHoldsNoBuffers(t *testing.T) {
	began, go1 := make(chan struct{}), make(chan struct{})
	near, far := net.Pipe()
	s := &Server{hs: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.ReadAll(r.Body)
		_, _ = io.WriteString(w, "event")
		_ = http.NewResponseController(w).Flush()
		a := w.(*answer)
		if a.buffer != nil || a.out != nil || a.c.in.buf != nil {
			t.Error("a stream that waits has buffers")
		}
		close(began)
		<-go1
	})}, limits: limits{head: 8 << 10, stall: time.Minute}}
	c := newConn(s, near)
	c.nc = &out{near, c}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.serve(context.Background())
	}()
	go func() { _, _ = io.WriteString(far, post("/", "body")) }()
	in := bufio.NewReader(far)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	<-began
	close(go1)
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	until(t, "the next wait", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.waiting
	})
	c.mu.Lock()
	if c.in.buf != nil {
		t.Error("an idle connection has a buffer")
	}
	c.mu.Unlock()
	_ = far.Close()
	<-ended
}

// A goroutine that its handler leaves behind may still read the body: what it
// gets is of that body, and nobody else's memory is written to.
func TestReadBeyondTheHandler(t *testing.T) {
	var left sync.WaitGroup
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/leave" {
			reading := make(chan struct{})
			left.Go(func() {
				p := make([]byte, 100)
				close(reading)
				for {
					n, err := r.Body.Read(p)
					if strings.Trim(string(p[:n]), "x") != "" {
						t.Errorf("read %q", p[:n])
					}
					if err != nil {
						return
					}
				}
			})
			<-reading
			if r.URL.RawQuery == "panic" {
				panic(http.ErrAbortHandler)
			}
			return
		}
		stage(w, r)
	}), nil)
	for i := range 60 {
		nc := st.dial(t)
		size := 20 + 20_000*(i%2)
		target := "/leave"
		if i%3 == 0 {
			target += "?panic"
		}
		sent := post(target, strings.Repeat("x", size))
		at := len(sent) - 1 - i%20
		sent += post("/echo", "mine", "Connection: close")
		go func() {
			_, _ = io.WriteString(nc, sent[:at])
			time.Sleep(time.Millisecond)
			_, _ = io.WriteString(nc, sent[at:])
		}()
		in := bufio.NewReader(nc)
		for n := 0; ; n++ {
			resp, err := http.ReadResponse(in, nil)
			if err != nil {
				break
			}
			b, err := io.ReadAll(resp.Body)
			if want := []string{"", "mine"}[n]; string(b) != want || err != nil || resp.StatusCode != http.StatusOK {
				t.Errorf("answer %d: %d %q, want %q: %v", n, resp.StatusCode, b, want, err)
			}
		}
		_ = nc.Close()
	}
	left.Wait()
}
