package edge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// clerk is a naive twin of what a Guard does with wrong keys: it keeps every
// one that ever came, and everybody who waits, and counts them anew each time.
type clerk struct {
	limits  Limits
	came    map[string][]time.Time
	waiting []string // who waits
}

// owed plays a source's whole history.
func (c *clerk) owed(source string) float64 {
	owed, last := 0.0, time.Time{}
	for _, at := range c.came[source] {
		if !last.IsZero() {
			owed = max(0, owed-at.Sub(last).Seconds()*float64(c.limits.Wrong))
		}
		owed, last = min(owed+1, 12*float64(c.limits.Wrong)), at
	}
	return owed
}

func (c *clerk) wrong(source string, now time.Time) (time.Duration, bool) {
	c.came[source] = append(c.came[source], now)
	over := c.owed(source) - 2*float64(c.limits.Wrong)
	if over <= 0 {
		return 0, true
	}
	own := 0
	for _, s := range c.waiting {
		if s == source {
			own++
		}
	}
	if own >= c.limits.Held || len(c.waiting) >= c.limits.HeldTotal {
		return 0, false
	}
	c.waiting = append(c.waiting, source)
	return min(c.limits.Late, time.Duration(over/float64(c.limits.Wrong)*float64(time.Second))), true
}

// TestWrongKeysTwin plays random wrong keys of a few sources to a Guard and to
// its twin: how long each waits, or that none may, must be the same.
func TestWrongKeysTwin(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 7))
		limits := Limits{Wrong: 1 + random.IntN(20), Held: 1 + random.IntN(6), HeldTotal: 1 + random.IntN(12), Late: time.Duration(1+random.IntN(900)) * time.Millisecond, Silent: 1 << 20}
		g, twin := New(limits), &clerk{limits: limits, came: map[string][]time.Time{}}
		now := time.Unix(1_800_000_000, 0)
		conns := map[string]*conn{}
		for i := range 4 {
			a, b := net.Pipe()
			defer func() { _, _ = a.Close(), b.Close() }()
			ip := net.IPv4(192, 0, 2, byte(i))
			conns[ip.String()] = g.admit(&from{a, ip}, now)
		}
		names := []string{"192.0.2.0", "192.0.2.1", "192.0.2.2", "192.0.2.3"}
		var late, dropped int
		for step := range 3000 {
			now = now.Add(time.Duration(random.ExpFloat64() * float64(20*time.Millisecond)))
			if random.IntN(300) == 0 {
				now = now.Add(time.Duration(random.IntN(15)) * time.Second)
			}
			if n := len(twin.waiting); n > 0 && random.IntN(2) == 0 { // one has waited
				i := random.IntN(n)
				g.Waited(context.WithValue(t.Context(), key{}, conns[twin.waiting[i]]))
				twin.waiting = slices.Delete(twin.waiting, i, i+1)
				continue
			}
			name := names[min(random.IntN(8), 3)] // the last asks most
			c := conns[name]
			c.known.Store(true) // stays open
			cost := g.Wrong(context.WithValue(t.Context(), key{}, c), random.IntN(2) == 0, now)
			wait, ok := cost.Wait, !cost.Mute
			wantWait, wantOK := twin.wrong(name, now)
			if ok != wantOK || (wait-wantWait).Abs() > time.Microsecond {
				t.Fatalf("seed %d, step %d: %v %t, the twin says %v %t", seed, step, wait, ok, wantWait, wantOK)
			}
			switch {
			case !ok:
				dropped++
			case wait > 0:
				late++
			}
		}
		if got := g.Counts().Wrong; int(got.Late) != late || int(got.Dropped) != dropped || got.Waiting != len(twin.waiting) {
			t.Fatalf("seed %d: %+v, want %d late, %d dropped, %d waiting", seed, got, late, dropped, len(twin.waiting))
		}
		if late == 0 || dropped == 0 {
			t.Fatalf("seed %d: %d late, %d dropped: nothing was tried", seed, late, dropped)
		}
		for _, c := range conns {
			_ = c.Close()
		}
	}
}

// refusing answers a site's requests: key "good" is somebody known's, others
// wait, for as long as they are told or, if it is not nil, until over.
func refusing(guard func() *Guard, over <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("key") == "good" {
			Known(r.Context())
			return
		}
		cost := guard().Wrong(r.Context(), false, time.Now())
		if cost.Mute {
			panic(http.ErrAbortHandler)
		}
		if cost.Wait > 0 {
			var waited <-chan time.Time
			if over == nil {
				waited = time.After(cost.Wait)
			}
			select {
			case <-waited:
			case <-over:
			case <-r.Context().Done():
			}
			guard().Waited(r.Context())
		}
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// h2conn is an HTTP/2 connection by hand, whose frames are counted by what they say.
type h2conn struct {
	net.Conn
	framer *http2.Framer
	next   uint32
	seen   chan string // a status, "reset", and at last how the connection ended
}

func (s *site) byHand(t *testing.T) *h2conn {
	t.Helper()
	conn := s.http2(t)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c := &h2conn{Conn: conn, framer: http2.NewFramer(conn, conn), next: 1, seen: make(chan string, 4096)}
	if err := c.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	go func() {
		in := http2.NewFramer(io.Discard, conn)
		in.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			f, err := in.ReadFrame()
			switch f := f.(type) {
			case *http2.MetaHeadersFrame:
				c.seen <- f.PseudoValue("status")
			case *http2.RSTStreamFrame:
				c.seen <- "reset"
			}
			if err != nil {
				c.seen <- "over"
				return
			}
		}
	}()
	return c
}

func (c *h2conn) ask(t *testing.T, key string) {
	t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "x"}, {":path", "/"}, {"key", key}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			t.Fatal(err)
		}
	}
	// A connection that ended shows in what is seen.
	_ = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	c.next += 2
}

// TestTooManyWrongKeys: of a source that presents many wrong keys some are
// refused at once, some late, and beyond the bound of those that wait the
// connection ends. One that serves somebody known stays, and what is good on it
// is answered at once.
func TestTooManyWrongKeys(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%t", shared), func(t *testing.T) {
			enough := make(chan struct{})
			var s *site
			s = open(t, Limits{Wrong: 5, Held: 8, Late: time.Second}, refusing(func() *Guard { return s.guard }, enough))
			c := s.byHand(t)
			if shared {
				c.ask(t, "good")
				if got := <-c.seen; got != "200" {
					t.Fatal(got)
				}
			}
			began := time.Now()
			for range 40 {
				c.ask(t, "wrong")
			}
			if shared {
				c.ask(t, "good")
			}
			// Those that wait do so until their connection ends, or all have been judged
			// and the good one behind them is answered.
			seen, waiting := map[string]int{}, shared
			for end := time.After(10 * time.Second); seen["over"] == 0 && (!shared || seen["401"]+seen["reset"]+seen["200"] < 41); {
				select {
				case what := <-c.seen:
					seen[what]++
				case <-time.After(time.Millisecond):
				case <-end:
					t.Fatalf("still open: %v, %+v", seen, s.guard.Counts().Wrong)
				}
				counts := s.guard.Counts().Wrong
				if waiting && seen["200"] == 1 && counts.Prompt+counts.Late+counts.Dropped == 40 {
					waiting = false
					close(enough)
				}
			}
			took := time.Since(began)
			for end := time.Now().Add(5 * time.Second); s.guard.Counts().Wrong.Waiting > 0 && time.Now().Before(end); {
				time.Sleep(time.Millisecond) // handlers end a little later than their connection
			}
			counts := s.guard.Counts().Wrong
			t.Logf("%v after %v, %+v", seen, took, counts)
			if counts.Waiting != 0 || counts.Late != 8 || counts.Prompt < 10 || counts.Prompt+counts.Late+counts.Dropped > 40 {
				t.Errorf("%+v", counts)
			}
			switch {
			case shared && (seen["over"] > 0 || seen["200"] != 1 || seen["reset"] != int(counts.Dropped)):
				t.Errorf("a connection of somebody known's: %v", seen)
			case !shared && (took < 900*time.Millisecond || took > 5*time.Second):
				t.Errorf("the connection ended after %v", took)
			}
		})
	}
}

// TestDeafConnectionsEnd: what is not read from any more is closed after a
// while, by whoever comes first, and leaves nothing behind.
func TestDeafConnectionsEnd(t *testing.T) {
	var s *site
	s = open(t, Limits{Wrong: 1, Held: 1, Late: 30 * time.Second}, refusing(func() *Guard { return s.guard }, nil))
	c := s.byHand(t)
	for range 20 {
		c.ask(t, "wrong")
	}
	for end := time.Now().Add(5 * time.Second); s.guard.Counts().Wrong.Dropped == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", s.guard.Counts())
		}
	}
	before := s.guard.Counts().Wrong
	for range 200 { // nobody reads this
		c.ask(t, "wrong")
	}
	time.Sleep(200 * time.Millisecond)
	if after := s.guard.Counts().Wrong; after.Dropped != before.Dropped && after.Dropped > 20 {
		t.Errorf("%d requests of a deaf connection were looked at", after.Dropped)
	}
	// The site's end closes it long before its time; TestMain sees what stays.
}

// TestManyWithFewWrongKeys: sources that present few wrong keys each, and many
// together, wait too, but none of them goes without an answer.
func TestManyWithFewWrongKeys(t *testing.T) {
	g := New(Limits{Wrong: 20, WrongTotal: 100, HeldTotal: 64})
	now := time.Unix(1_800_000_000, 0)
	conns := make([]context.Context, 300)
	for i := range conns {
		a, b := net.Pipe()
		defer func() { _, _ = a.Close(), b.Close() }()
		c := g.admit(&from{a, net.IPv4(10, 0, byte(i/250), byte(i%250))}, now)
		defer c.Close()
		conns[i] = context.WithValue(t.Context(), key{}, c)
	}
	var late []context.Context
	for i := range 3000 { // 1,000 a second; each waits half of one
		now = now.Add(time.Millisecond)
		ctx := conns[i%len(conns)]
		cost := g.Wrong(ctx, false, now)
		switch {
		case cost.Mute:
			t.Fatalf("no answer, at %d", i)
		case cost.Wait > 0:
			late = append(late, ctx)
		}
		if len(late) > 0 && i%10 == 0 {
			g.Waited(late[0])
			late = late[1:]
		}
	}
	got := g.Counts().Wrong
	if got.Late < 300 || got.Prompt < 200 || got.Waiting != 56 || got.Dropped != 0 {
		t.Errorf("%+v", got)
	}
	now = now.Add(15 * time.Second)
	for _, ctx := range late {
		g.Waited(ctx)
	}
	if cost := g.Wrong(conns[0], false, now); cost != (Penance{}) {
		t.Errorf("after the flood one pays %+v", cost)
	}
}

// TestManyComeBackApart: what waits because many sources present wrong keys
// does not go on in step, however it came.
func TestManyComeBackApart(t *testing.T) {
	const late = 500 * time.Millisecond
	g := New(Limits{WrongTotal: 100, HeldTotal: 1 << 20, Late: late, Silent: 1 << 20})
	now := time.Unix(1_800_000_000, 0)
	conns := make([]context.Context, 800)
	due := make([]time.Time, len(conns))
	for i := range conns {
		a, b := net.Pipe()
		defer func() { _, _ = a.Close(), b.Close() }()
		c := g.admit(&from{a, net.IPv4(10, 0, byte(i/250), byte(i%250))}, now)
		defer c.Close()
		conns[i], due[i] = context.WithValue(t.Context(), key{}, c), now // all at once
	}
	var sum time.Duration
	waits := 0
	when := make(map[int64]int) // by slices of a fiftieth of late
	for range 20 * len(conns) { // each asks again as soon as it has its answer
		i := 0
		for k := range due {
			if due[k].Before(due[i]) {
				i = k
			}
		}
		cost := g.Wrong(conns[i], false, due[i])
		if cost.Mute {
			t.Fatal("no answer")
		}
		wait := cost.Wait
		if due[i] = due[i].Add(wait + time.Millisecond); wait == 0 {
			continue
		}
		g.Waited(conns[i])
		sum += wait
		waits++
		if since := due[i].Sub(now); since > 3*late {
			when[int64(since/(late/50))]++
		}
	}
	most := 0
	for _, n := range when {
		most = max(most, n)
	}
	if mean := sum / time.Duration(waits); mean < late*9/10 || mean > late*11/10 {
		t.Errorf("%d waited %v on average", waits, mean)
	}
	if most > 3*len(conns)/50 {
		t.Errorf("%d of %d come back within %v", most, len(conns), late/50)
	}
}

// TestManyRest: where connections can rest, refusals beside a flood of many
// sources are answered at once and hold nothing, and the flood comes down to
// what it is let, however many there are; connections of somebody known do not rest.
func TestManyRest(t *testing.T) {
	for _, n := range []int{300, 1000, 4000} {
		g := New(Limits{WrongTotal: 1000, Silent: 1 << 20})
		now := time.Unix(1_800_000_000, 0)
		conns, due := make([]context.Context, n), make([]time.Time, n)
		for i := range conns {
			a, b := net.Pipe()
			defer func() { _, _ = a.Close(), b.Close() }()
			c := g.admit(&from{a, net.IPv4(10, 0, byte(i/250), byte(i%250))}, now)
			defer c.Close()
			conns[i], due[i] = context.WithValue(t.Context(), key{}, c), now
		}
		const seconds = 30
		refused := 0
		for tick := range seconds * 1000 {
			at := now.Add(time.Duration(tick) * time.Millisecond)
			for i := range due {
				if due[i].After(at) {
					continue
				}
				cost := g.Wrong(conns[i], true, at)
				if cost.Mute || cost.Wait != 0 || cost.Rest > 15*time.Second/2 {
					t.Fatalf("%+v", cost)
				}
				due[i] = at.Add(cost.Rest + time.Millisecond) // and asks again at once
				if tick >= seconds*500 {
					refused++
				}
			}
		}
		if rate := refused / (seconds / 2); rate < 800 || rate > 1200 {
			t.Errorf("%d connections: %d refusals a second", n, rate)
		}
		end := now.Add(seconds * time.Second)
		Known(conns[0])
		if cost := g.Wrong(conns[0], true, end); cost.Rest != 0 || cost.Wait == 0 {
			t.Errorf("on a connection of somebody known: %+v", cost)
		}
		if cost := g.Wrong(conns[1], true, end.Add(15*time.Second)); cost != (Penance{}) {
			t.Errorf("after the flood: %+v", cost)
		}
	}
}

// TestDebtIsForgotten: a source that stops is like new after a while, and its
// memory goes.
func TestDebtIsForgotten(t *testing.T) {
	var d debt
	now := time.Unix(1_800_000_000, 0)
	for range 100_000 {
		now = now.Add(100 * time.Microsecond)
		d.charge(20, 500*time.Millisecond, now)
	}
	if wait := d.charge(20, 500*time.Millisecond, now); wait != 500*time.Millisecond {
		t.Errorf("in a flood: %v", wait)
	}
	if left := d.left(20, now.Add(12*time.Second)); left != 0 {
		t.Errorf("12 s later %v is owed", left)
	}
	g := New(Limits{})
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	for i := range 3 * sweepAt {
		now = now.Add(10 * time.Millisecond)
		c := g.admit(&from{a, net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))}, now)
		for range 50 {
			g.Wrong(context.WithValue(t.Context(), key{}, c), false, now)
		}
		for c.source.held > 0 {
			g.Waited(context.WithValue(t.Context(), key{}, c))
		}
		_ = c.Close()
	}
	if n := g.Counts().Sources; n > 2*sweepAt {
		t.Errorf("%d sources are kept", n)
	}
}

// TestLimitsChangeWhileOpen: Set holds for what comes from then on.
func TestLimitsChangeWhileOpen(t *testing.T) {
	s := open(t, Limits{Conns: 1}, ok)
	one := s.client(t, "127.0.0.2")
	if err := get(t, one, s.addr); err != nil {
		t.Fatal(err)
	}
	two := s.client(t, "127.0.0.2")
	if err := get(t, two, s.addr); err == nil {
		t.Fatal("two connections of a source that may have one")
	}
	s.guard.Set(Limits{Conns: 2})
	if err := get(t, two, s.addr); err != nil {
		t.Errorf("after the limit was raised: %v", err)
	}
	s.guard.Set(Limits{Conns: 1})
	if err := get(t, one, s.addr); err != nil {
		t.Errorf("a connection that was open: %v", err)
	}
}

// TestProxiesDoNotRest: beside a flood a source of somebody known, such as a proxy
// with many behind it, has no connection left unread: a good key may be behind the
// wrong one.
func TestProxiesDoNotRest(t *testing.T) {
	g := New(Limits{WrongTotal: 100, Silent: 1 << 20})
	now := time.Unix(1_800_000_000, 0)
	admit := func(last byte) (context.Context, *conn) {
		a, b := net.Pipe()
		t.Cleanup(func() { _, _ = a.Close(), b.Close() })
		c := g.admit(&from{a, net.IPv4(10, 0, 0, last)}, now)
		t.Cleanup(func() { _ = c.Close() })
		return context.WithValue(t.Context(), key{}, c), c
	}
	for last := range byte(250) {
		ctx, _ := admit(last)
		for range 4 {
			g.Wrong(ctx, true, now)
		}
	}
	one, first := admit(251)
	two, second := admit(251)
	for range 2 {
		Known(one)
	}
	if cost := g.Wrong(two, true, now); cost.Rest != 0 || cost.Wait == 0 || cost.Mute {
		t.Errorf("beside somebody known: %+v", cost)
	}
	g.Waited(two)
	Known(two)
	_, _ = first.Close(), first.Close()
	three, _ := admit(251)
	if cost := g.Wrong(three, true, now); cost.Rest != 0 {
		t.Errorf("beside somebody known: %+v", cost)
	}
	g.Waited(three)
	_ = second.Close()
	Known(one)
	if cost := g.Wrong(three, true, now); cost.Rest == 0 {
		t.Errorf("after they left: %+v", cost)
	}
}
