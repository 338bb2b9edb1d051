// Package edge guards a listener that strangers can reach: how many
// connections one source may hold, how many of them may still owe their first
// request, how fast it may open them, how often a connection may break off what
// it asked, and how long a connection may live. It knows connections, not
// requests; header, body and write times are the server's own limits.
package edge

import (
	"cmp"
	"container/list"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/dataplane/sock"
)

// Limits of a Guard. Zero values take the defaults in brackets. A source is an
// IPv4 address, or the /64 of an IPv6 address; behind a balancer that hides
// its clients all limits must be wide.
type Limits struct {
	Conns     int           // open connections of one source [16384]
	Silent    int           // of those, how many may not have sent a request yet [512]
	PerSecond int           // new connections of one source, and twice that at once [1000]
	Total     int           // open connections of all sources [131072]; if half of that are silent, the oldest of them makes room for a new one
	Aborts    int           // requests that one connection may break off in 10 s, if that is more than half of what it asked: then it is told to go, at ten times as many broken [200]
	Age       time.Duration // when a connection is told to go, give or take a quarter [10 min]
	Wrong     int           // refused keys of one source in a second, and twice that at once, that are answered without delay [20]; below 0 all are
	Late      time.Duration // how long a refusal beyond that waits at most [500 ms]
	Held      int           // refusals of one source that wait at once [64]; one more has no answer, and its connection ends
	HeldTotal int           // refusals of all sources that wait at once [1024], at about 30 KiB each

	// WrongTotal is how many refused keys of all sources in a second, and twice that
	// at once, cost nothing more [1000]. Beyond that HTTP/2 connections of strangers,
	// from where nobody is known, are not read after each refusal, until there are no more than that, but for
	// 10·Late at most; where that cannot be, refusals wait Late, give or take half,
	// as many as seven eighths of HeldTotal.
	WrongTotal int
}

func (l Limits) withDefaults() Limits {
	l.Conns = cmp.Or(l.Conns, 16384)
	l.Silent = cmp.Or(l.Silent, 512)
	l.PerSecond = cmp.Or(l.PerSecond, 1000)
	l.Total = cmp.Or(l.Total, 131072)
	l.Aborts = cmp.Or(l.Aborts, 200)
	l.Age = cmp.Or(l.Age, 10*time.Minute)
	l.Wrong = cmp.Or(l.Wrong, 20)
	l.Late = cmp.Or(l.Late, 500*time.Millisecond)
	l.Held = cmp.Or(l.Held, 64)
	l.HeldTotal = cmp.Or(l.HeldTotal, 1024)
	l.WrongTotal = cmp.Or(l.WrongTotal, 1000)
	return l
}

// Counts of what a Guard did.
type Counts struct {
	Open     int64  // connections at the moment
	Silent   int64  // of those, how many have not sent a request yet
	Sources  int    // at the moment
	Turned   uint64 // connections refused so far: too many, or too fast
	Expelled uint64 // connections broken so far, for breaking off requests
	Wrong    Refusals
}

// Guard watches one listener. It is safe for concurrent use.
type Guard struct {
	limits atomic.Pointer[Limits]

	mu      sync.Mutex
	sources map[netip.Addr]*source
	sweepAt int    // sources, from which on those without connections are looked for
	swept   uint64 // sources that were looked at for that so far
	open    int64
	silent  int64
	quiet   list.List // of *conn: those that are silent, the oldest first
	wrong   Refusals
	debt    debt // of all sources
	deaf    int  // connections that are not read from, until they end

	turned   atomic.Uint64
	expelled atomic.Uint64
}

// source is what is known of one address while it has connections, and until
// its bucket is full again.
type source struct {
	open, silent int
	known        int     // of the open ones, those on which somebody known has asked
	bucket       float64 // connections it may open at once
	filled       time.Time
	debt         debt
	held         int // refusals that wait
}

// New makes a Guard.
func New(l Limits) *Guard {
	g := &Guard{sources: make(map[netip.Addr]*source), sweepAt: sweepAt}
	g.Set(l)
	return g
}

// Set changes the limits. What is open stays, also beyond a limit, and keeps
// the age it was given.
func (g *Guard) Set(l Limits) {
	l = l.withDefaults()
	g.limits.Store(&l)
}

// Counts gives the present counts.
func (g *Guard) Counts() Counts {
	g.mu.Lock()
	defer g.mu.Unlock()
	return Counts{Open: g.open, Silent: g.silent, Sources: len(g.sources), Turned: g.turned.Load(), Expelled: g.expelled.Load(), Wrong: g.wrong}
}

// Listen wraps l: a connection over a limit is reset at once, before any
// handshake.
func (g *Guard) Listen(l net.Listener) net.Listener { return &listener{l, g} }

type listener struct {
	net.Listener
	guard *Guard
}

// Accept gives the next connection that is within the limits.
func (l *listener) Accept() (net.Conn, error) {
	for {
		nc, err := l.Listener.Accept()
		if err != nil {
			return nil, err //nolint:wrapcheck // the server compares it
		}
		if c := l.guard.admit(nc, time.Now()); c != nil {
			return c, nil
		}
		l.guard.turned.Add(1)
		linger(nc)
		_ = nc.Close() // refused anyway
	}
}

// admit counts nc, or gives nil. One that asks does so within a round trip or
// two, so those that have been silent for longest are worth least.
func (g *Guard) admit(nc net.Conn, now time.Time) *conn {
	g.mu.Lock()
	c, oldest := g.count(nc, now)
	g.mu.Unlock()
	if oldest != nil {
		g.turned.Add(1)
		linger(oldest.Conn)
		_ = oldest.Close() // it never was of use
	}
	return c
}

// linger has nothing kept of nc once it is closed.
func linger(nc net.Conn) {
	if tcp, ok := nc.(interface{ SetLinger(sec int) error }); ok {
		_ = tcp.SetLinger(0)
	}
}

// addressOf gives what counts as one source.
func addressOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	ip := tcp.AddrPort().Addr().Unmap()
	if ip.Is6() {
		if p, err := ip.WithZone("").Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return ip
}

// count counts nc, if it is within the limits, and finds who must go for it.
// The caller holds mu.
func (g *Guard) count(nc net.Conn, now time.Time) (c, oldest *conn) {
	addr, limits := addressOf(nc.RemoteAddr()), g.limits.Load()
	perSecond := float64(limits.PerSecond)
	most := 2 * perSecond
	s := g.sources[addr]
	if s == nil {
		if len(g.sources) >= g.sweepAt {
			g.sweep(now)
		}
		s = &source{bucket: most, filled: now}
		g.sources[addr] = s
	}
	s.bucket = min(most, s.bucket+now.Sub(s.filled).Seconds()*perSecond)
	s.filled = now
	if s.bucket < 1 || s.open >= limits.Conns || s.silent >= limits.Silent || g.open >= int64(limits.Total) {
		return nil, nil
	}
	if first := g.quiet.Front(); first != nil && g.silent >= int64(limits.Total/2) {
		oldest, _ = first.Value.(*conn)
		oldest.speak() // no more of the silent ones
	}
	s.bucket--
	s.open++
	s.silent++
	g.open++
	g.silent++
	quarter := int64(limits.Age / 4)
	age := limits.Age - time.Duration(quarter) + time.Duration(rand.Int64N(2*quarter+1)) //nolint:gosec // jitter
	c = &conn{Conn: sock.Direct(nc), guard: g, source: s, aged: now.Add(age), window: now}
	c.silent = g.quiet.PushBack(c)
	return c, oldest
}

// sweepAt is how many sources are kept at least before those without
// connections go.
const sweepAt = 4096

// sweep forgets sources of which nothing need be known. It comes again when
// there are twice as many as it left, so that a new source costs no more the
// more there are. The caller holds mu.
func (g *Guard) sweep(now time.Time) {
	wrong := g.limits.Load().Wrong
	g.swept += uint64(len(g.sources))
	for addr, s := range g.sources {
		if s.open == 0 && now.Sub(s.filled) > 2*time.Second && s.debt.left(wrong, now) == 0 { // its bucket is full
			delete(g.sources, addr)
		}
	}
	g.sweepAt = max(sweepAt, 2*len(g.sources))
}

// conn is one connection that is counted.
type conn struct {
	net.Conn
	guard  *Guard
	source *source
	aged   time.Time

	once   sync.Once
	silent *list.Element                 // guarded by guard.mu; nil = it has sent a request
	spoke  atomic.Bool                   // silent is nil
	told   atomic.Bool                   // to go
	known  atomic.Bool                   // somebody known has asked on it
	deaf   atomic.Pointer[chan struct{}] // not nil = nothing more is read; closed when the connection is
	closed bool                          // guarded by guard.mu

	mu              sync.Mutex
	window          time.Time // start of the present 10 s
	asked, brokeOff int       // requests in it
}

// Close closes the connection and counts it out, once.
func (c *conn) Close() error {
	c.once.Do(func() {
		g := c.guard
		g.mu.Lock()
		defer g.mu.Unlock()
		c.source.open--
		if c.known.Load() {
			c.source.known--
		}
		g.open--
		c.speak()
		c.closed = true
		if ended := c.deaf.Load(); ended != nil {
			g.deaf--
			close(*ended)
		}
	})
	return c.Conn.Close() //nolint:wrapcheck // the server compares it
}

// speak counts the connection as one that has sent a request. The caller holds guard.mu.
func (c *conn) speak() {
	if c.silent != nil {
		c.guard.quiet.Remove(c.silent)
		c.silent = nil
		c.spoke.Store(true)
		c.source.silent--
		c.guard.silent--
	}
}

// under finds the counted connection beneath TLS.
func under(nc net.Conn) *conn {
	for {
		if c, ok := nc.(*conn); ok {
			return c
		}
		above, ok := nc.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		nc = above.NetConn()
	}
}

// Handler counts a connection as one that has sent a request when the first
// whole head has come: a byte of it, or HTTP/2's preface, is cheap.
func (g *Guard) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(key{}).(*conn); ok && !c.spoke.Load() {
			g.mu.Lock()
			c.speak()
			g.mu.Unlock()
		}
		h.ServeHTTP(w, r)
	})
}

type key struct{}

// CloseWrite tells the client that nothing more comes.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite() //nolint:wrapcheck // as net.TCPConn's
	}
	return errors.ErrUnsupported
}

// NetConn is what lies under the connection.
func (c *conn) NetConn() net.Conn { return c.Conn }

// ConnContext is for http.Server.ConnContext.
func (g *Guard) ConnContext(ctx context.Context, nc net.Conn) context.Context {
	if c := under(nc); c != nil {
		return context.WithValue(ctx, key{}, c)
	}
	return ctx
}

// Aged reports whether the request's connection has lived long enough, or
// breaks off too much: let this answer be its last. Clients that come back find
// the nearest region again, which may have been down when they connected.
func Aged(ctx context.Context, now time.Time) bool {
	c, ok := ctx.Value(key{}).(*conn)
	return ok && (now.After(c.aged) || c.told.Load())
}

const (
	abortWindow = 10 * time.Second
	// mercy is how many times the limit a connection may break off before it is
	// broken itself. One that was told to go has at most the streams left that
	// it had.
	mercy = 10
)

// Asked counts one request on its connection; broken off means that the client
// took it back before it was answered. A connection that mostly does that is
// told to go with its next answer, and nothing that runs on it breaks: there
// may be hundreds behind it who press stop. One that goes on, and so lets
// nothing be answered, is closed: it costs more than it could ever use
// (CVE-2023-44487, HTTP/2 rapid reset). It reports whether it was closed.
func Asked(ctx context.Context, brokenOff bool, now time.Time) bool {
	c, ok := ctx.Value(key{}).(*conn)
	if !ok {
		return false
	}
	c.mu.Lock()
	if now.Sub(c.window) > abortWindow {
		c.window, c.asked, c.brokeOff = now, 0, 0
	}
	c.asked++
	if brokenOff {
		c.brokeOff++
	}
	most, mostly := c.guard.limits.Load().Aborts, 2*c.brokeOff > c.asked
	if mostly && c.brokeOff > most {
		c.told.Store(true)
	}
	over := mostly && c.brokeOff > mercy*most
	c.mu.Unlock()
	if !over {
		return false
	}
	if err := c.Close(); !errors.Is(err, net.ErrClosed) { // counted once
		c.guard.expelled.Add(1)
	}
	return true
}
