package h1

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

type keyOf string

// A request's context ends with its request, its connection or its server, and
// does what context.WithCancel's does, whenever it is asked.
func TestContext(t *testing.T) {
	reason := errors.New("a reason")
	for name, end := range map[string]func(l *life, stop context.CancelCauseFunc){
		"with the request": func(l *life, _ context.CancelCauseFunc) { l.end() },
		"twice":            func(l *life, _ context.CancelCauseFunc) { l.end(); l.end() },
		"with the server": func(l *life, stop context.CancelCauseFunc) {
			stop(reason)
			l.end() // see conn.cancel
		},
	} {
		t.Run(name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				server, stop := context.WithCancelCause(context.WithValue(t.Context(), keyOf("server"), 1))
				defer stop(nil)
				l := &life{conn: server}
				var called []string
				var mu sync.Mutex
				note := func(who string) func() {
					return func() {
						mu.Lock()
						defer mu.Unlock()
						called = append(called, who)
					}
				}
				stopped := l.AfterFunc(note("who was stopped"))
				l.AfterFunc(note("a"))
				stopB := context.AfterFunc(l, note("a"))
				if !stopped() || stopped() || l.Err() != nil || l.Value(keyOf("server")) != 1 {
					t.Error("it has ended, or knows nothing of its server")
				}
				before := runtime.NumGoroutine()
				child, cancel := context.WithCancel(context.WithValue(l, keyOf("handler"), 2))
				defer cancel()
				if n := runtime.NumGoroutine() - before; n != 0 || child.Value(keyOf("server")) != 1 {
					t.Errorf("a derived context takes %d goroutines", n)
				}
				select {
				case <-l.Done():
					t.Error("done before its end")
				default:
				}
				end(l, stop)
				<-l.Done()
				<-child.Done()
				synckit.Wait()
				want := context.Canceled
				if name == "with the server" {
					want = reason
				}
				if l.Err() != context.Canceled || context.Cause(child) != want || context.Cause(l) != want { //nolint:errorlint // these very ones
					t.Errorf("%v because of %v, a derived one because of %v", l.Err(), context.Cause(l), context.Cause(child))
				}
				l.AfterFunc(note("a"))
				synckit.Wait()
				mu.Lock()
				defer mu.Unlock()
				if fmt.Sprint(called) != "[a a a]" || stopB() {
					t.Errorf("called %v", called)
				}
			})
		})
	}
	l := &life{conn: t.Context()}
	l.end()
	select {
	case <-l.Done():
	default:
		t.Error("who asks after its end waits for it")
	}
}

// The end of the server's context, and of the client, ends a request that waits,
// and calls what is to be called then.
func TestContextEndsWithTheServer(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		ended := make(chan time.Duration, 2)
		server, stop := context.WithCancel(t.Context())
		k := scene{server: server}.speak(t, func(_ http.ResponseWriter, r *http.Request) {
			began := time.Now()
			called := make(chan struct{})
			context.AfterFunc(r.Context(), func() { close(called) })
			<-r.Context().Done()
			<-called
			ended <- time.Since(began)
		})
		time.AfterFunc(time.Second, stop)
		k.say(t, get("/")+get("/"))
		for i, want := range []time.Duration{time.Second, 0} {
			k.hear(t)
			if after := <-ended; after != want {
				t.Errorf("request %d ended after %v, want %v", i, after, want)
			}
		}
		k.over()
	})
}

// What a handler keeps of its request and answer stays as it was, whoever asks
// next on the connection: nothing of it is used again. (The race detector sees
// whatever is.)
func TestWhatHandlersKeep(t *testing.T) {
	const requests = 20
	var left sync.WaitGroup
	over := make(chan struct{})
	st := start(t, true, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Answer", r.URL.Path)
		header, ctx := w.Header(), r.Context()
		want := r.URL.Path
		for range 2 {
			left.Go(func() {
				for seen := false; !seen; time.Sleep(time.Millisecond) {
					select {
					case <-over:
						seen = true
					default:
					}
					if got := header.Get("X-Answer") + r.Header.Get("X-Ask") + r.URL.Path + r.RequestURI + r.Host; got != want+want+want+want+"h" {
						t.Errorf("%s became %q", want, got)
					}
					_, _ = r.Body.Read(make([]byte, 1))
				}
				if ctx.Err() == nil {
					t.Errorf("%s never ended", want)
				}
			})
		}
		_, _ = io.WriteString(w, want)
	}), nil)
	nc := st.dial(t)
	in := bufio.NewReader(nc)
	for i := range requests {
		path := fmt.Sprintf("/%d", i)
		if _, err := io.WriteString(nc, get(path, "X-Ask: "+path)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != path || err != nil {
			t.Errorf("%q, want %q: %v", b, path, err)
		}
	}
	close(over)
	left.Wait()
}
