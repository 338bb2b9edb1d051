package h2

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"ringmain/internal/testkit/synckit"
)

// wary is a server whose handlers wait for open, and trust who asks for /good.
func wary(t *testing.T, few Strangers) (dialled func() *player, running *atomic.Int64, open func()) {
	t.Helper()
	running = new(atomic.Int64)
	gate := make(chan struct{})
	var once sync.Once
	open = func() { once.Do(func() { close(gate) }) }
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/good") {
			w.(interface{ Trust() }).Trust()
		}
		if r.URL.Path == "/long" {
			_, _ = io.WriteString(w, strings.Repeat("long ", 4<<10))
			return
		}
		running.Add(1)
		defer running.Add(-1)
		<-gate
		_, _ = io.WriteString(w, "ok")
	})
	ts, _ := start(t, false, h, func(s *http.Server) {
		s.HTTP2.MaxConcurrentStreams = 64
		ConfigureWary(s, few)
	})
	t.Cleanup(open)
	return func() *player { return dial(t, ts) }, running, open
}

// steadily waits until n is what it should be, and that it stays so.
func steadily(t *testing.T, n *atomic.Int64, want int64) {
	t.Helper()
	until(t, "handlers", func() bool { return n.Load() >= want })
	time.Sleep(50 * time.Millisecond)
	if got := n.Load(); got != want {
		t.Errorf("%d handlers run, want %d", got, want)
	}
}

// TestStrangersWait: of a connection that nobody trusts a few requests run at
// once, of all of them together so many, and one of each; none is refused for
// that. Trust has all of a connection run, at once.
func TestStrangersWait(t *testing.T) {
	dialled, running, open := wary(t, Strangers{Each: 3, All: 7, Open: 10})
	ask := func(p *player, n int, path string) {
		for range n {
			p.ask(uint32(2*len(p.open)+1), true, path)
		}
	}
	var all []*player
	for _, want := range []int64{3, 6, 7, 8, 9} { // the third connection is let to one more, then there is one for each
		p := dialled()
		p.hello()
		ask(p, 40, "/bad")
		all = append(all, p)
		steadily(t, running, want)
	}
	good := dialled()
	good.hello()
	ask(good, 40, "/good")
	steadily(t, running, 9+40)
	open()
	for _, p := range append(all, good) {
		if got := p.verdict(); strings.Count(got, `"ok"`) != 40 || strings.Contains(got, "REFUSED") {
			t.Errorf("%s", got)
		}
	}
}

// TestStrangersWhoTakeNothing: answers that a stranger does not take are few, and
// more requests are refused so that they can be sent again.
func TestStrangersWhoTakeNothing(t *testing.T) {
	dialled, _, _ := wary(t, Strangers{Each: 3, All: 100, Open: 10})
	p := dialled()
	p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	var taken []uint32
	for i := range uint32(30) {
		p.ask(2*i+1, true, "/long")
		if i < 10 {
			taken = append(taken, 2*i+1)
		}
	}
	if got := p.verdict(taken...); strings.Count(got, "REFUSED_STREAM") != 20 {
		t.Error(got)
	}
}

// TestStrangersWhoTakeNothingTogether: many connections of such strangers have one
// stream each, whoever asks for something first is read, and who is trusted has all.
func TestStrangersWhoTakeNothingTogether(t *testing.T) {
	dialled, running, open := wary(t, Strangers{Each: 3, All: 100, Open: 10, OpenAll: 15})
	open()
	var all []*player
	for _, want := range []int{10, 5, 1, 1} {
		p := dialled()
		p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		var taken []uint32
		for i := range uint32(30) {
			p.ask(2*i+1, true, "/long")
			if int(i) < want {
				taken = append(taken, 2*i+1)
			}
		}
		if got := p.verdict(taken...); strings.Count(got, "REFUSED_STREAM") != 30-want {
			t.Errorf("want %d streams: %s", want, got)
		}
		all = append(all, p)
	}
	good := dialled()
	good.hello()
	for i := range uint32(40) {
		good.ask(2*i+1, true, "/good")
	}
	if got := good.verdict(); strings.Count(got, `"ok"`) != 40 {
		t.Error(got)
	}
	for _, p := range all {
		_ = p.nc.Close()
	}
	until(t, "handlers", func() bool { return running.Load() == 0 })
	until(t, "what was counted of connections that ended", func() bool {
		p := dialled()
		defer p.nc.Close()
		p.hello(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		p.ask(1, true, "/long")
		p.ask(3, true, "/long")
		return !strings.Contains(p.verdict(1, 3), "REFUSED")
	})
}

// TestTrustInTheMiddle: a stranger who turns out to be known is let go on, with
// what runs, and what was counted of him is forgotten.
func TestTrustInTheMiddle(t *testing.T) {
	dialled, running, open := wary(t, Strangers{Each: 3, All: 4, Open: 64})
	p := dialled()
	p.hello()
	p.ask(1, true, "/bad")
	p.ask(3, true, "/bad")
	for i := range uint32(20) {
		p.ask(2*i+5, true, "/good")
	}
	steadily(t, running, 22)
	q := dialled()
	q.hello()
	for i := range uint32(5) {
		q.ask(2*i+1, true, "/bad")
	}
	steadily(t, running, 25)
	open()
	for _, p := range []*player{p, q} {
		if got := p.verdict(); strings.Contains(got, "REFUSED") {
			t.Error(got)
		}
	}
}

// TestRestEnds: a connection that rests ends when its server does.
func TestRestEnds(t *testing.T) {
	for _, how := range []string{"shut down", "context"} {
		ctx, cancel := context.WithCancel(t.Context())
		asked := make(chan struct{}, 1)
		ts, _ := start(t, false, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.(interface{ Rest(d time.Duration) }).Rest(time.Hour)
			asked <- struct{}{}
		}), func(s *http.Server) {
			s.BaseContext = func(net.Listener) context.Context { return ctx }
			ConfigureWary(s, Strangers{Each: 4, All: 1 << 20, Open: 1000})
		})
		p := dial(t, ts)
		p.hello()
		p.ask(1, true, "/bad")
		<-asked
		began := time.Now()
		if how == "context" {
			cancel()
			_ = ts.Config.Close()
		} else if err := ts.Config.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		p.verdict()
		if took := time.Since(began); p.conn != "closed" || took > 5*time.Second {
			t.Errorf("%s: the connection is %s after %v", how, p.conn, took)
		}
		cancel()
	}
}

// TestStrangersRest: after an answer with which a handler has its connection
// rest, nothing more is read from it for so long, and then a request at a time;
// a connection that is trusted, or that begins, is read at once.
func TestStrangersRest(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		const rest = 300 * time.Millisecond
		var asked atomic.Int64
		dialled := alone(t, func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			if strings.HasPrefix(r.URL.Path, "/good") {
				w.(interface{ Trust() }).Trust()
			}
			w.(interface{ Rest(d time.Duration) }).Rest(rest)
			_, _ = io.WriteString(w, "ok")
		}, Strangers{Each: 4, All: 1 << 20, Open: 1000}, nil)
		p := dialled()
		p.hello()
		began := time.Now()
		for i := range uint32(8) {
			p.open[2*i+1] = true
		}
		var sent sync.WaitGroup
		sent.Go(func() { // as far as it is read
			for i := range uint32(8) {
				p.request(2*i+1, true, ":method", "GET", ":scheme", "https", ":authority", "host", ":path", "/bad")
			}
		})
		for p.seen[1] == nil || p.seen[1].end == "" {
			p.next()
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("the first answer took %v", took)
		}
		if n := asked.Load(); n > 4 {
			t.Errorf("%d were read before the rest", n)
		}
		q := dialled()
		q.hello()
		began = time.Now()
		for i := range uint32(20) {
			q.ask(2*i+1, true, "/good")
		}
		q.verdict()
		if took := time.Since(began); took != 0 {
			t.Errorf("somebody known waited %v", took)
		}
		sent.Wait()
		p.verdict()
		if took := time.Since(began); took < 3*rest {
			t.Errorf("eight were read within %v", took)
		}
	})
}
