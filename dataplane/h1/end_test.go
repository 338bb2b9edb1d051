package h1

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

// Who sends more behind a request that is the last one still gets its answer
// whole: the connection is not reset under it.
func TestTheLastAnswerIsWhole(t *testing.T) {
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusForbidden)
		}
		w.Header().Set("Connection", "close")
		_, _ = w.Write(bytes.Repeat([]byte{'x'}, 200<<10))
	}), nil)
	more := strings.Repeat(get("/more"), 2000) // 76 KB
	for name, sent := range map[string]string{
		"other requests": get("/") + more, "a body that is not wanted": post("/refused", strings.Repeat("x", 3<<20)),
		"no request": "GET / HTTP/1.1\r\nbroken\r\n\r\n" + more, "no end of it": "GET /" + strings.Repeat("x", 100<<10) + more,
	} {
		nc := st.dial(t)
		go func() { _, _ = io.WriteString(nc, sent) }()
		time.Sleep(50 * time.Millisecond) // a client that is busy elsewhere
		in := bufio.NewReader(nc)
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		b, err := io.ReadAll(resp.Body)
		if err != nil || !resp.Close || resp.StatusCode < 400 && len(b) != 200<<10 {
			t.Errorf("%s: status %d, %d bytes, the last: %t, %v", name, resp.StatusCode, len(b), resp.Close, err)
		}
		if n, err := in.Read(make([]byte, 1)); n > 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%s: behind it %d bytes, %v", name, n, err)
		}
		_ = nc.Close()
	}
	plain, err := net.Dial("tcp", st.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = io.WriteString(plain, post("/", strings.Repeat("x", 1<<20)))
	time.Sleep(50 * time.Millisecond)
	if b, err := io.ReadAll(plain); !strings.HasPrefix(string(b), "HTTP/1.0 400 ") || err != nil {
		t.Errorf("without TLS: %q, %v", b, err)
	}
}

// A client's end reaches a handler that waits, and one that streams, over real
// sockets too; and leaves nothing running.
func TestLeaving(t *testing.T) {
	var under atomic.Int64
	begun := make(chan struct{}, 1)
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		under.Add(1)
		defer under.Add(-1)
		_, _ = io.Copy(io.Discard, r.Body)
		begun <- struct{}{}
		for r.Context().Err() == nil && r.URL.Path == "/stream" {
			if _, err := w.Write(make([]byte, 10<<10)); err != nil {
				break
			}
		}
		<-r.Context().Done()
	}), nil)
	for i := range 12 {
		nc := st.dial(t)
		path := []string{"/", "/stream"}[i%2]
		if _, err := io.WriteString(nc, post(path, "body")); err != nil {
			t.Fatal(err)
		}
		<-begun
		switch i % 3 {
		case 0:
			_ = nc.Close()
		case 1:
			_ = nc.NetConn().(*net.TCPConn).SetLinger(0)
			_ = nc.NetConn().Close()
		case 2:
			_ = nc.CloseWrite()
			_ = nc.NetConn().(*net.TCPConn).SetLinger(0)
			_ = nc.NetConn().Close()
		}
		until(t, "the handler ends", func() bool { return under.Load() == 0 })
	}
}

// Shutdown ends idle connections, lets answers be whole and says that they are
// the last, and those handed over to the http.Server end likewise.
func TestShutdown(t *testing.T) {
	release, begun := make(chan struct{}), make(chan struct{}, 10)
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			begun <- struct{}{}
			<-release
		}
		_, _ = io.WriteString(w, "whole")
	}), nil)
	idle, silent := st.dial(t), st.dial(t)
	if _, err := io.WriteString(idle, get("/")); err != nil {
		t.Fatal(err)
	}
	idleIn := bufio.NewReader(idle)
	if resp, err := http.ReadResponse(idleIn, nil); err != nil {
		t.Fatal(err)
	} else if _, err = io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
	type reply struct {
		resp *http.Response
		body string
		err  error
	}
	replies := make(chan reply, 2)
	for _, client := range []*http.Client{st.client(t), st.client(t, "h2")} {
		go func() {
			resp, err := client.Get("https://" + st.addr + "/long")
			if err != nil {
				replies <- reply{err: err}
				return
			}
			b, err := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			replies <- reply{resp, string(b), err}
		}()
		<-begun
	}
	shut := make(chan error, 1)
	go func() { shut <- st.server.Shutdown(context.Background()) }()
	for _, nc := range []io.Reader{idleIn, silent} { // the silent one may be amid its handshake
		if b, err := io.ReadAll(nc); len(b) > 0 || err != nil && (nc == io.Reader(idleIn) || !errors.Is(err, syscall.ECONNRESET)) {
			t.Errorf("an idle one: %q, %v", b, err)
		}
	}
	if nc, err := net.Dial("tcp", st.addr); err == nil {
		_ = nc.Close()
		t.Error("new connections are taken")
	}
	select {
	case err := <-shut:
		t.Errorf("it is shut while a request runs: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(release)
	for range 2 {
		r := <-replies
		if r.err != nil || r.body != "whole" || r.resp.ProtoMajor == 1 && !r.resp.Close {
			t.Errorf("%+v", r)
		}
	}
	if err := <-shut; err != nil {
		t.Error(err)
	}
}

// A Shutdown that is given up says so; Close then ends what still runs.
func TestShutdownGivenUp(t *testing.T) {
	begun := make(chan struct{})
	st := start(t, true, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		<-r.Context().Done()
	}), nil)
	nc := st.dial(t)
	if _, err := io.WriteString(nc, get("/")); err != nil {
		t.Fatal(err)
	}
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := st.server.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// An answer that ends with its connection, and is broken off, does not look whole.
func TestTornWithoutLength(t *testing.T) {
	st := start(t, true, http.HandlerFunc(stage), nil)
	for path, says := range map[string]bool{"/torn": false, "/stream": true} {
		raw, err := net.Dial("tcp", st.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		var wire bytes.Buffer
		_, roots := identity()
		nc := tls.Client(recorder{raw, &wire}, &tls.Config{RootCAs: roots, ServerName: "example.com", MinVersion: tls.VersionTLS13})
		if _, err := io.WriteString(nc, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(nc)
		ends := bytes.HasPrefix(wire.Bytes()[wire.Len()-24:], []byte{23, 3, 3, 0, 19}) // an alert, encrypted
		if len(b) == 0 || ends != says {
			t.Errorf("%s: %q, and TLS says that this is the end: %t", path, b, ends)
		}
	}
}

type recorder struct {
	net.Conn
	read *bytes.Buffer
}

func (r recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.read.Write(p[:n])
	return n, err
}

// A request that has come, and was not told that it would not be answered, is
// answered, and told that it is the last.
func TestRetireWithARequestInMemory(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		var k *talk
		k = speak(t, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.URL.Path)
			_ = http.NewResponseController(w).Flush() // its head does not know
			k.c.retire()
		})
		k.say(t, get("/first")+get("/second")+get("/third"))
		for _, want := range []string{"/first", "/second"} {
			resp, err := http.ReadResponse(k.in, nil)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			if string(b) != want || err != nil || resp.Close != (want == "/second") {
				t.Errorf("%q, %v, the last: %t", b, err, resp.Close)
			}
		}
		if rest, _ := k.over(); rest != "" {
			t.Errorf("behind the last: %q", rest)
		}
	})
}

// retire ends an idle connection at once, and another one with its answer, when
// the client ends it too, or had the time to.
func TestRetire(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := speak(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Second)
			_, _ = io.WriteString(w, "ok")
		})
		k.say(t, get("/"))
		k.hear(t)
		time.Sleep(time.Second)
		k.c.retire()
		if rest, after := k.over(); after != 2*time.Second || rest != "" {
			t.Errorf("an idle one ends after %v with %q", after, rest)
		}
	})
	synckit.Test(t, func(t *testing.T) {
		k := speak(t, func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Second)
			_, _ = io.WriteString(w, "ok")
		})
		k.say(t, get("/"))
		time.Sleep(time.Second / 2)
		k.c.retire()
		resp, err := http.ReadResponse(k.in, nil)
		if err != nil || !resp.Close {
			t.Errorf("%v, %v", resp, err)
		}
		if rest, after := k.over(); after != time.Second+lingerWait || rest != "ok" {
			t.Errorf("it ends after %v with %q", after, rest)
		}
	})
}

// held is a connection whose listener holds its end back.
type held struct {
	net.Conn
	until chan struct{}
}

func (h held) Read([]byte) (int, error) {
	<-h.until
	return 0, net.ErrClosed
}

// An aborted request's connection ends when its listener lets it.
func TestHeldBack(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		aborted := make(chan struct{})
		until := make(chan struct{})
		k := scene{below: func(nc net.Conn) net.Conn { return held{nc, until} }}.speak(t,
			func(http.ResponseWriter, *http.Request) { close(aborted); panic(http.ErrAbortHandler) })
		k.say(t, get("/"))
		<-aborted
		time.AfterFunc(time.Second, func() { close(until) })
		if rest, after := k.over(); rest != "" || after != time.Second {
			t.Errorf("it ends after %v with %q", after, rest)
		}
	})
}
