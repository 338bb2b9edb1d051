package h2

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
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
