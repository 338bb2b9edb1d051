package h1

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

// talk is a connection to a server whose time passes by itself.
type talk struct {
	net.Conn
	in    *bufio.Reader
	c     *conn
	began time.Time
	ended chan struct{} // when the server is done with it
}

// scene is what is special about a connection.
type scene struct {
	server context.Context               // nil = it never ends
	below  func(net.Conn) net.Conn       // what the listener gives
	tls    func(below net.Conn) net.Conn // what stands for TLS
}

func speak(t *testing.T, h http.HandlerFunc) *talk {
	t.Helper()
	return scene{}.speak(t, h)
}

func (sc scene) speak(t *testing.T, h http.HandlerFunc) *talk {
	t.Helper()
	near, far := net.Pipe()
	below := near
	if sc.below != nil {
		below = sc.below(near)
	}
	s := &Server{hs: &http.Server{Handler: h}, limits: limits{
		head: 8 << 10, header: 10 * time.Second, request: 60 * time.Second, idle: 120 * time.Second, stall: 60 * time.Second,
	}}
	k := &talk{Conn: far, in: bufio.NewReader(far), c: newConn(s, below), began: time.Now(), ended: make(chan struct{})}
	k.c.nc = &out{near, k.c}
	if sc.tls != nil {
		k.c.nc = sc.tls(k.c.nc)
	}
	go func() {
		defer close(k.ended)
		k.c.serve(cmp.Or(sc.server, context.Background()))
	}()
	return k
}

func (k *talk) say(t *testing.T, what string) {
	t.Helper()
	if _, err := io.WriteString(k, what); err != nil {
		t.Fatal(err)
	}
}

// hear reads one answer.
func (k *talk) hear(t *testing.T) (status int, body string) {
	t.Helper()
	resp, err := http.ReadResponse(k.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// over gives what is still said and how long after the beginning the end came.
func (k *talk) over() (rest string, after time.Duration) {
	b, _ := io.ReadAll(k.in)
	after = time.Since(k.began)
	_ = k.Close()
	<-k.ended
	return string(b), after
}

// aside does f beside the test, which ends after it.
func aside(t *testing.T, f func()) {
	t.Helper()
	var beside sync.WaitGroup
	beside.Go(f)
	t.Cleanup(beside.Wait)
}

func TestTimes(t *testing.T) {
	for name, play := range map[string]func(t *testing.T, k *talk) (want time.Duration){
		"nothing is said": func(*testing.T, *talk) time.Duration { return 10 * time.Second },
		"half a head": func(t *testing.T, k *talk) time.Duration {
			time.Sleep(9 * time.Second)
			k.say(t, "GET / HTTP/1.1\r\n")
			return 19 * time.Second
		},
		"a head, byte by byte": func(t *testing.T, k *talk) time.Duration {
			aside(t, func() {
				for {
					if _, err := io.WriteString(k, "G"); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
			})
			return 10 * time.Second
		},
		"nothing more after an answer": func(t *testing.T, k *talk) time.Duration {
			k.say(t, get("/"))
			k.hear(t)
			return 120 * time.Second
		},
		"a request each 100 seconds": func(t *testing.T, k *talk) time.Duration {
			for range 10 {
				k.say(t, get("/"))
				k.hear(t)
				time.Sleep(100 * time.Second)
			}
			return 1020 * time.Second
		},
		"half a second head, long after the first": func(t *testing.T, k *talk) time.Duration {
			k.say(t, get("/"))
			k.hear(t)
			time.Sleep(50 * time.Second)
			k.say(t, "GET /")
			return 60 * time.Second
		},
		"a quick one after half a slow one": func(t *testing.T, k *talk) time.Duration {
			k.say(t, "GET / HT")
			time.Sleep(9 * time.Second)
			k.say(t, "TP/1.1\r\nHost: h\r\n\r\n")
			k.hear(t)
			return 129 * time.Second
		},
	} {
		t.Run(name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				k := speak(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
				want := play(t, k)
				if rest, after := k.over(); after != want || rest != "" {
					t.Errorf("it ends after %v with %q, want %v", after, rest, want)
				}
			})
		})
	}
}

// A body has its time from the request's first byte on, and no more once the
// answer has been given.
func TestBodyTime(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		var took time.Duration
		k := speak(t, func(w http.ResponseWriter, r *http.Request) {
			began := time.Now()
			_, err := io.ReadAll(r.Body)
			took = time.Since(began)
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() {
				t.Errorf("read: %v", err)
			}
			if r.Context().Err() != nil {
				t.Error("the request was taken back")
			}
			w.WriteHeader(http.StatusRequestTimeout)
		})
		k.say(t, "POST / HTTP/1.1\r\nHost: h\r\n")
		time.Sleep(5 * time.Second)
		k.say(t, "Content-Length: 10\r\n\r\n12345")
		if status, _ := k.hear(t); status != http.StatusRequestTimeout || took != 55*time.Second {
			t.Errorf("status %d after %v of reading", status, took)
		}
		if _, after := k.over(); after != 60*time.Second+lingerWait {
			t.Errorf("it ends after %v", after)
		}
	})
}

// A body that its handler does not want is waited for shortly.
func TestSlowUnwantedBody(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := speak(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
		k.say(t, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345")
		resp, err := http.ReadResponse(k.in, nil)
		if err != nil || !resp.Close || time.Since(k.began) != drainWait {
			t.Errorf("after %v: %v, %v", time.Since(k.began), resp, err)
		}
		if _, after := k.over(); after != drainWait+lingerWait {
			t.Errorf("it ends after %v", after)
		}
	})
	synckit.Test(t, func(t *testing.T) {
		k := speak(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
		k.say(t, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345")
		time.Sleep(drainWait / 2)
		k.say(t, "67890")
		if status, _ := k.hear(t); status != http.StatusForbidden {
			t.Errorf("status %d", status)
		}
		k.say(t, get("/"))
		if status, _ := k.hear(t); status != http.StatusForbidden {
			t.Errorf("status %d", status)
		}
		k.over()
	})
}

// A large one, and one that was not asked for, is not waited for at all.
func TestUnwantedBody(t *testing.T) {
	for name, head := range map[string]string{
		"large": "Content-Length: 300000\r\n\r\n12345", "not asked for": "Content-Length: 10\r\nExpect: 100-continue\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				k := speak(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
				k.say(t, "POST / HTTP/1.1\r\nHost: h\r\n"+head)
				resp, err := http.ReadResponse(k.in, nil)
				if err != nil || resp.StatusCode != http.StatusForbidden || !resp.Close || time.Since(k.began) != 0 {
					t.Errorf("after %v: %v, %v", time.Since(k.began), resp, err)
				}
				k.over()
			})
		})
	}
}

// A handler that runs for long hears of a client that leaves; a short one costs
// nobody a look.
func TestClientsThatLeave(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		var heard time.Duration
		k := speak(t, func(_ http.ResponseWriter, r *http.Request) {
			began := time.Now()
			<-r.Context().Done()
			heard = time.Since(began)
		})
		k.say(t, get("/"))
		_ = k.Close()
		<-k.ended
		if heard > 50*time.Millisecond {
			t.Errorf("it heard after %v", heard)
		}
	})
	synckit.Test(t, func(t *testing.T) {
		heard := make(chan time.Time, 1)
		k := speak(t, func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, "event\n")
				_ = http.NewResponseController(w).Flush()
				time.Sleep(10 * time.Second)
				if r.Context().Err() == nil {
					select {
					case <-r.Context().Done():
					case <-time.After(20 * time.Second):
					}
				}
			}
			heard <- time.Now()
		})
		k.say(t, post("/", "body"))
		time.Sleep(15 * time.Second)
		if _, err := k.in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		left := time.Now()
		_ = k.Close()
		<-k.ended
		if after := (<-heard).Sub(left); after > 15*time.Second {
			t.Errorf("a stream heard after %v", after)
		}
	})
}

// A request that comes while another is served waits for it, and is whole.
func TestAheadOfTheAnswer(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := speak(t, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			time.Sleep(time.Second) // watch looks meanwhile
			_, _ = w.Write(b)
			if r.Context().Err() != nil {
				t.Error("the request was taken back")
			}
		})
		aside(t, func() {
			for _, body := range []string{"one", "two", "three"} {
				for _, b := range []byte(post("/", body)) {
					if _, err := k.Write([]byte{b}); err != nil {
						return
					}
					time.Sleep(3 * time.Millisecond)
				}
			}
		})
		for _, want := range []string{"one", "two", "three"} {
			if _, got := k.hear(t); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		k.over()
	})
}

// A client that takes nothing is cut off, however small its answers are; one
// that pauses between them is not.
func TestStall(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		var took time.Duration
		k := speak(t, func(w http.ResponseWriter, r *http.Request) {
			began := time.Now()
			_, _ = w.Write(make([]byte, 10))
			_ = http.NewResponseController(w).Flush()
			took = time.Since(began)
		})
		for range 5 {
			k.say(t, get("/"))
			k.hear(t)
			time.Sleep(100 * time.Second)
		}
		k.say(t, get("/"))
		<-k.ended
		if took < 30*time.Second || took > 60*time.Second {
			t.Errorf("it had %v to take it", took)
		}
		k.over()
	})
	synckit.Test(t, func(t *testing.T) { // as the handler wants it
		var took time.Duration
		k := speak(t, func(w http.ResponseWriter, r *http.Request) {
			began := time.Now()
			if err := http.NewResponseController(w).SetWriteDeadline(began.Add(200 * time.Second)); err != nil {
				t.Error(err)
			}
			_, err := w.Write(make([]byte, 10<<10))
			took = time.Since(began)
			var ne net.Error
			if !errors.As(err, &ne) || !ne.Timeout() || r.Context().Err() == nil {
				t.Errorf("%v, context %v", err, r.Context().Err())
			}
		})
		k.say(t, get("/"))
		<-k.ended
		if took != 200*time.Second {
			t.Errorf("it had %v to take it", took)
		}
		k.over()
	})
}

// What a handler says after its time, or after it was told to say nothing, goes
// nowhere.
func TestDeaf(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := speak(t, func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
			w.WriteHeader(http.StatusForbidden)
		})
		k.say(t, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345")
		if status, _ := k.hear(t); status != http.StatusForbidden || time.Since(k.began) != 0 {
			t.Errorf("status %d after %v", status, time.Since(k.began))
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := io.WriteString(k, strings.Repeat("x", 100))
			wrote <- err
		}()
		if _, after := k.over(); after != resetWait {
			t.Errorf("it ends after %v", after)
		}
		if err := <-wrote; err == nil {
			t.Error("more of the body was read")
		}
	})
}

// rekeyed is a client's side that asks for new keys with a K of its own. As with
// crypto/tls, the answer is written amid a read, and if that fails, nothing is
// written any more. One writes at a time.
type rekeyed struct {
	net.Conn
	mu     sync.Mutex
	failed error
}

func (r *rekeyed) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	if n > 0 && p[0] == 'K' {
		r.mu.Lock()
		_, r.failed = io.WriteString(r.Conn, "k")
		r.mu.Unlock()
		return r.Read(p)
	}
	return n, err
}

func (r *rekeyed) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed != nil {
		return 0, r.failed
	}
	return r.Conn.Write(p)
}

// A change of keys on a connection that has been idle for longer than an answer
// may take is answered, and so are requests after it; one by a client that takes
// nothing is given up as an answer is.
func TestNewKeysAfterALongTime(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := scene{tls: func(below net.Conn) net.Conn { return &rekeyed{Conn: below} }}.speak(t,
			func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
		k.say(t, get("/"))
		k.hear(t)
		time.Sleep(90 * time.Second)
		k.say(t, "K")
		if b, err := k.in.ReadByte(); b != 'k' || err != nil {
			t.Errorf("new keys: %q, %v", b, err)
		}
		k.say(t, get("/"))
		if status, body := k.hear(t); status != http.StatusOK || body != "ok" {
			t.Errorf("status %d, %q", status, body)
		}
		at := time.Now()
		k.say(t, "K")
		k.say(t, get("/"))
		if <-k.ended; time.Since(at) > 60*time.Second || time.Since(at) < 30*time.Second {
			t.Errorf("it had %v to take new keys", time.Since(at))
		}
		k.over()
	})
}

// The time that one answer had is over with it: new keys are answered after that
// as ever.
func TestNewKeysAfterADeadline(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := scene{tls: func(below net.Conn) net.Conn { return &rekeyed{Conn: below} }}.speak(t,
			func(w http.ResponseWriter, _ *http.Request) {
				if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
					t.Error(err)
				}
				_, _ = io.WriteString(w, "ok")
			})
		for range 2 {
			k.say(t, get("/"))
			if status, body := k.hear(t); status != http.StatusOK || body != "ok" {
				t.Errorf("status %d, %q", status, body)
			}
			time.Sleep(2 * time.Second)
			k.say(t, "K")
			if b, err := k.in.ReadByte(); b != 'k' || err != nil {
				t.Errorf("new keys: %q, %v", b, err)
			}
		}
		k.over()
	})
}

// Nor does it bound what TLS says between two writes of one answer.
func TestNewKeysAmidAStream(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		k := scene{tls: func(below net.Conn) net.Conn { return &rekeyed{Conn: below} }}.speak(t,
			func(w http.ResponseWriter, _ *http.Request) {
				control := http.NewResponseController(w)
				for _, part := range []string{"a", "b"} {
					if err := control.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
						t.Error(err)
					}
					_, _ = io.WriteString(w, part)
					_ = control.Flush()
					time.Sleep(10 * time.Second)
				}
			})
		k.say(t, get("/"))
		read := func(end string) {
			for got := ""; !strings.HasSuffix(got, end); {
				b, err := k.in.ReadByte()
				if err != nil {
					t.Fatalf("%q, then %v", got, err)
				}
				got += string(b)
			}
		}
		read("a\r\n")
		time.Sleep(5 * time.Second)
		k.say(t, "K")
		read("k")
		read("b\r\n")
		k.over()
	})
}
