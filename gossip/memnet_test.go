package gossip_test

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// memnet is a network in memory for fake time. Unlike memberlist's mock it
// never blocks on a peer that is gone: it drops, as a network does.
type memnet struct {
	mu    sync.Mutex
	hosts map[string]*memhost
	cut   func(from, to string) bool // by node name
	delay time.Duration
}

func newMemnet(delay time.Duration) *memnet {
	return &memnet{hosts: map[string]*memhost{}, delay: delay, cut: func(string, string) bool { return false }}
}

func (n *memnet) setCut(cut func(from, to string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = cut
}

func (n *memnet) host(name string) *memhost {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := &memhost{
		net: n, name: name, ip: net.IPv4(10, 0, byte(len(n.hosts)>>8), byte(1+len(n.hosts))),
		packets: make(chan *memberlist.Packet, 1024), streams: make(chan net.Conn, 64),
	}
	n.hosts[h.addr()] = h
	return h
}

// reach finds a host, and says whether it answers. The caller sees a silence if
// the way is cut, and a refusal if the host is down.
func (n *memnet) reach(from, addr string) (h *memhost, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	h = n.hosts[addr]
	if h == nil {
		return nil, false
	}
	if n.cut(from, h.name) {
		return nil, true
	}
	if h.down {
		return nil, false
	}
	return h, false
}

// memhost is one node's transport in one group.
type memhost struct {
	net     *memnet
	name    string
	ip      net.IP
	packets chan *memberlist.Packet
	streams chan net.Conn
	down    bool // guarded by net.mu
}

func (h *memhost) addr() string { return net.JoinHostPort(h.ip.String(), "7946") }

func (h *memhost) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return h.ip, 7946, nil }

func (h *memhost) WriteTo(b []byte, addr string) (time.Time, error) {
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: &net.UDPAddr{IP: h.ip, Port: 7946}}
	time.AfterFunc(h.net.delay, func() {
		to, _ := h.net.reach(h.name, addr)
		if to == nil {
			return
		}
		p.Timestamp = time.Now()
		select {
		case to.packets <- p:
		default:
		}
	})
	return time.Now(), nil
}

func (h *memhost) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return h.WriteTo(b, a.Addr)
}

func (h *memhost) PacketCh() <-chan *memberlist.Packet { return h.packets }

func (h *memhost) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, cut := h.net.reach(h.name, addr)
	switch {
	case cut:
		time.Sleep(timeout)
		return nil, fmt.Errorf("dial %s: timeout", addr)
	case to == nil:
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	time.Sleep(h.net.delay)
	near, far := net.Pipe()
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	if to.down {
		return nil, fmt.Errorf("dial %s: connection refused", addr)
	}
	select {
	case to.streams <- &memconn{far, h.ip}:
		return &memconn{near, to.ip}, nil
	default:
		return nil, fmt.Errorf("dial %s: queue is full", addr)
	}
}

func (h *memhost) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return h.DialTimeout(a.Addr, timeout)
}

func (h *memhost) StreamCh() <-chan net.Conn { return h.streams }

func (h *memhost) Shutdown() error {
	h.net.mu.Lock()
	defer h.net.mu.Unlock()
	h.down = true
	for {
		select {
		case c := <-h.streams:
			_ = c.Close()
		default:
			return nil
		}
	}
}

// memconn gives a pipe addresses that can be printed.
type memconn struct {
	net.Conn
	remote net.IP
}

func (c *memconn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: c.remote, Port: 7946} }
