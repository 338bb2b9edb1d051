package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
)

// ErrRevoked says that a node is nobody any more, for good: give the machine
// another name, and a certificate for it.
var ErrRevoked = errors.New("the node is revoked: give it another name and a certificate for that")

// revoked are the nodes that a Bundle refuses, and the connections that it
// closes when it hears of another.
type revoked struct {
	mu    sync.Mutex
	ids   map[ID]struct{}
	conns map[ID]map[*tracked]struct{}
	own   chan struct{} // closed once this node itself is revoked
}

// Refuse refuses the node in every handshake from now on, whatever its
// certificates say. Nothing undoes it. Connections that are open go on, so that
// it can be told: Revoke ends them.
func (b *Bundle) Refuse(id ID) {
	r := &b.revoked
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.ids[id]; known {
		return
	}
	r.ids[id] = struct{}{}
	if id == b.id {
		close(r.own)
	}
}

// Revoke refuses the node, and closes the connections with it that Listen and
// Dial made.
func (b *Bundle) Revoke(id ID) {
	b.Refuse(id)
	r := &b.revoked
	r.mu.Lock()
	var open []*tracked
	for t := range r.conns[id] {
		open = append(open, t)
	}
	r.mu.Unlock()
	for _, t := range open {
		_ = t.Close() // nothing that its peer says counts
	}
}

// Revoked is closed once this node itself is revoked: it must stop serving.
func (b *Bundle) Revoked() <-chan struct{} { return b.revoked.own }

// admit refuses a revoked peer, and keeps the connection, if it is a tracked
// one, to be closed when the peer is revoked later.
func (r *revoked) admit(id ID, conn net.Conn) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, gone := r.ids[id]; gone {
		return fmt.Errorf("identity: peer %s: %w", id, ErrRevoked)
	}
	t := trackedUnder(conn)
	if t == nil || t.closed {
		return nil
	}
	if r.conns[id] == nil {
		r.conns[id] = make(map[*tracked]struct{})
	}
	t.id = id
	r.conns[id][t] = struct{}{}
	return nil
}

// tracked is the transport of a TLS connection.
type tracked struct {
	net.Conn
	set    *revoked
	id     ID   // once admitted; guarded by set.mu
	closed bool // guarded by set.mu
}

// Close forgets the connection and closes it.
func (t *tracked) Close() error {
	t.set.mu.Lock()
	t.closed = true
	if conns := t.set.conns[t.id]; conns != nil {
		if delete(conns, t); len(conns) == 0 {
			delete(t.set.conns, t.id)
		}
	}
	t.set.mu.Unlock()
	return t.Conn.Close()
}

// CloseWrite passes on TCP's half close, where there is one.
func (t *tracked) CloseWrite() error {
	if c, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return nil
}

// trackedUnder finds the tracked connection that conn is, or is laid over.
func trackedUnder(conn net.Conn) *tracked {
	for conn != nil {
		if t, ok := conn.(*tracked); ok {
			return t
		}
		over, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			return nil
		}
		conn = over.NetConn()
	}
	return nil
}

// Listen has the connections that inner accepts closed when their peers are
// revoked. Lay the TLS of Server over it; what lies between must have NetConn.
func (b *Bundle) Listen(inner net.Listener) net.Listener { return &trackingListener{inner, &b.revoked} }

type trackingListener struct {
	net.Listener
	set *revoked
}

func (l *trackingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &tracked{Conn: conn, set: l.set}, nil
}

// Dial lays the TLS of Client over raw, which it owns, and has the connection
// closed when its peer is revoked. ctx bounds the handshake.
func (b *Bundle) Dial(ctx context.Context, raw net.Conn, nextProtos []string, want func(ID) error) (*tls.Conn, error) {
	under := &tracked{Conn: raw, set: &b.revoked}
	config := b.Client(nextProtos, want)
	config.VerifyConnection = b.verifier(usageServer, want, under)
	conn := tls.Client(under, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, under.Close())
	}
	return conn, nil
}

// Dialer is Dial for http.Transport.DialTLSContext and the like, over TCP.
func (b *Bundle) Dialer(tcp *net.Dialer, nextProtos []string, want func(ID) error) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		raw, err := tcp.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conn, err := b.Dial(ctx, raw, nextProtos, want)
		if err != nil {
			return nil, err // not a nil *tls.Conn in an interface
		}
		return conn, nil
	}
}
