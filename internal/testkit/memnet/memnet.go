// Package memnet is a network in memory, for tests in fake time: streams between
// addresses, over links that tests cut, darken and heal. It knows nothing of
// what is said on them.
package memnet

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"
)

// State is what a link between two addresses does.
type State int

// States of a link.
const (
	Open State = iota
	Cut        // dialling fails, streams break
	Dark       // dialling hangs, what is sent disappears, an end that closes included; streams break once it ends
)

// Net carries streams. It is safe for concurrent use.
type Net struct {
	mu        sync.Mutex
	listeners map[string]*listener
	links     map[[2]string]State
	conns     map[*conn]struct{}
	pass      func(from, to string, p []byte) int
}

// New returns a network whose links are open.
func New() *Net {
	return &Net{listeners: make(map[string]*listener), links: make(map[[2]string]State), conns: make(map[*conn]struct{})}
}

type listener struct {
	net    *Net
	addr   string
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen accepts streams to addr from now on, instead of who did so before.
func (n *Net) Listen(addr string) net.Listener {
	l := &listener{net: n, addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[addr] = l
	return l
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		if l.net.listeners[l.addr] == l {
			delete(l.net.listeners, l.addr)
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return addr(l.addr) }

type addr string

func (addr) Network() string  { return "memnet" }
func (a addr) String() string { return string(a) }

type conn struct {
	net.Conn
	net      *Net
	from, to string

	mu   sync.Mutex
	gone bool // closed, and the other end cannot know
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	state, pass := c.net.links[link(c.from, c.to)], c.net.pass
	c.net.mu.Unlock()
	switch {
	case state == Dark:
		return len(p), nil
	case pass != nil:
		if n := pass(c.from, c.to, p); n < len(p) {
			_, err := c.Conn.Write(p[:n])
			return len(p), err
		}
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.net.mu.Lock()
	dark := c.net.links[link(c.from, c.to)] == Dark
	if !dark {
		delete(c.net.conns, c)
	}
	c.net.mu.Unlock()
	if !dark {
		return c.Conn.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gone = true
	return c.Conn.SetDeadline(time.Unix(1, 0)) // whoever reads here stops
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.set(c.Conn.SetDeadline, t) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.set(c.Conn.SetReadDeadline, t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.set(c.Conn.SetWriteDeadline, t) }

func (c *conn) set(deadline func(time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return net.ErrClosed
	}
	return deadline(t)
}

// link is the same for both directions.
func link(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// Dial opens a stream between two addresses.
func (n *Net) Dial(ctx context.Context, from, to string) (net.Conn, error) {
	n.mu.Lock()
	state, l := n.links[link(from, to)], n.listeners[to]
	n.mu.Unlock()
	if state == Dark {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if state == Cut || l == nil {
		return nil, errors.New("connection refused")
	}
	ours, theirs := net.Pipe()
	a, b := &conn{Conn: ours, net: n, from: from, to: to}, &conn{Conn: theirs, net: n, from: to, to: from}
	select {
	case l.conns <- b:
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	n.mu.Lock()
	n.conns[a], n.conns[b] = struct{}{}, struct{}{}
	n.mu.Unlock()
	return a, nil
}

// Set changes the link between two addresses. Streams that lost bytes, or are
// cut, break.
func (n *Net) Set(a, b string, state State) {
	n.mu.Lock()
	before := n.links[link(a, b)]
	n.links[link(a, b)] = state
	var broken []*conn
	if state == Cut || before == Dark {
		for c := range n.conns {
			if link(c.from, c.to) == link(a, b) {
				broken = append(broken, c)
			}
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		_ = c.Close()
	}
}

// Pass has f say, before each write on an open link, how many of its bytes
// arrive. It may change the link.
func (n *Net) Pass(f func(from, to string, p []byte) int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pass = f
}
