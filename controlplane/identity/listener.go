package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane/retry"
)

const (
	handshakeTimeout = 5 * time.Second
	maxHandshakes    = 1024 // under way at once, most of them waiting for their turn; more wait in the kernel's queue
	handshakeEvery   = 5 * time.Millisecond
	handshakesAtOnce = 20 // before they are spread out so
	maxWaiting       = 64 // done, and not accepted yet, per protocol; more are closed
	maxAcceptDelay   = time.Second
)

// Demux shares one TLS listener among protocols by ALPN. It completes the
// handshakes itself, many at once, so that a slow peer delays nobody. Clients
// that do not speak the first protocol are let in at a pace, 200 a second: the
// cryptography of a thousand at once would keep the first from its work for a
// second, and raft's heartbeats may not wait for half of that.
type Demux struct {
	inner   net.Listener
	first   string
	pace    pacer
	config  *tls.Config
	own     func(*tls.ClientHelloInfo) (*tls.Config, error) // of the config it was given, or nil
	protos  map[string]*protoListener
	refused atomic.Pointer[func(net.Addr, error)]

	cancel context.CancelFunc // ends the handshakes under way
	done   sync.WaitGroup
	once   sync.Once
	err    error // of closing inner
}

// Listener serves inner with config, which it copies, and hands out the
// connections that negotiated one of protos through For. It owns inner.
func Listener(inner net.Listener, config *tls.Config, protos ...string) *Demux {
	d := &Demux{inner: inner, config: config.Clone(), protos: make(map[string]*protoListener, len(protos))}
	d.config.NextProtos, d.first = protos, protos[0]
	d.own, d.config.GetConfigForClient = d.config.GetConfigForClient, d.configFor
	ctx, cancel := context.WithCancel(context.Background())
	d.cancel = cancel
	for _, p := range protos {
		d.protos[p] = &protoListener{addr: inner.Addr(), conns: make(chan net.Conn, maxWaiting), closed: make(chan struct{})}
	}
	d.done.Go(func() { d.accept(ctx) })
	return d
}

// configFor offers a client the protocols that are open, and refuses it before
// it can write anything if it speaks none of them: in TLS 1.3 whatever is found
// out later reaches a client that may have sent its request already.
func (d *Demux) configFor(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	config := d.config.Clone()
	if d.own != nil {
		own, err := d.own(hello)
		if err != nil {
			return nil, err
		}
		config = own.Clone()
	}
	config.NextProtos = slices.DeleteFunc(slices.Clone(d.config.NextProtos), func(p string) bool { return d.protos[p].isClosed() })
	if !slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(config.NextProtos, p) }) {
		return nil, fmt.Errorf("identity: the peer asked for no protocol served here: %w", ErrNotAllowed)
	}
	if !slices.Contains(hello.SupportedProtos, d.first) && !retry.Sleep(hello.Context(), d.pace.turn(time.Now())) {
		return nil, context.Cause(hello.Context())
	}
	return config, nil
}

// pacer spreads out what comes too fast.
type pacer struct {
	mu   sync.Mutex
	next time.Time // if nothing may come at once
}

// turn is how long who comes now has to wait.
func (p *pacer) turn(now time.Time) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if idle := now.Add(-handshakesAtOnce * handshakeEvery); p.next.Before(idle) {
		p.next = idle
	}
	p.next = p.next.Add(handshakeEvery)
	return max(0, p.next.Sub(now))
}

// For is the listener of one of the protocols. Its connections are *tls.Conn
// with the handshake done, as http.Server.Serve wants them for h2. Closing it
// refuses that protocol from then on and leaves the others alone.
func (d *Demux) For(proto string) net.Listener {
	l, ok := d.protos[proto]
	if !ok {
		panic("identity: Demux.For of a protocol not given to Listener: " + proto) // a slip in the calling code
	}
	return l
}

// OnRefused sets what is told of every connection that was turned away, with
// its reason. It is called from many goroutines and must not block.
func (d *Demux) OnRefused(f func(remote net.Addr, err error)) { d.refused.Store(&f) }

// Addr is the address of the shared listener.
func (d *Demux) Addr() net.Addr { return d.inner.Addr() }

// Close ends all its listeners, the handshakes under way and the connections
// nobody accepted, and waits for them. Accepted connections live on.
func (d *Demux) Close() error {
	d.once.Do(func() {
		d.cancel()
		if err := d.inner.Close(); !errors.Is(err, net.ErrClosed) {
			d.err = err
		}
	})
	d.done.Wait()
	return d.err
}

func (d *Demux) accept(ctx context.Context) {
	defer func() {
		for _, l := range d.protos {
			_ = l.Close() // never fails
		}
	}()
	slots := make(chan struct{}, maxHandshakes)
	delay := time.Duration(0)
	for {
		conn, err := d.inner.Accept()
		switch {
		case err == nil:
			delay = 0
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return
		default:
			// Out of descriptors, most likely: it passes, so wait and go on.
			d.refuse(ctx, nil, fmt.Errorf("identity: accept: %w", err))
			delay = min(max(2*delay, 5*time.Millisecond), maxAcceptDelay)
			if !retry.Sleep(ctx, delay) {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return
		}
		d.done.Go(func() {
			defer func() { <-slots }()
			d.handshake(ctx, conn)
		})
	}
}

func (d *Demux) handshake(ctx context.Context, conn net.Conn) {
	limited, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	tlsConn := tls.Server(conn, d.config)
	err := tlsConn.HandshakeContext(limited)
	if err == nil {
		err = d.protos[tlsConn.ConnectionState().NegotiatedProtocol].offer(tlsConn)
	}
	if err != nil {
		_ = conn.Close() // the refusal is what counts
		d.refuse(ctx, conn.RemoteAddr(), err)
	}
}

func (d *Demux) refuse(ctx context.Context, remote net.Addr, err error) {
	if f := d.refused.Load(); f != nil && ctx.Err() == nil {
		(*f)(remote, err)
	}
}

// protoListener hands out the connections of one protocol.
type protoListener struct {
	addr   net.Addr
	conns  chan net.Conn
	mu     sync.Mutex // orders offer before or after Close
	shut   bool
	closed chan struct{}
}

var errBusy = errors.New("identity: too many connections wait to be accepted")

// offer passes conn on without waiting.
func (l *protoListener) offer(conn net.Conn) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return net.ErrClosed
	}
	select {
	case l.conns <- conn:
		return nil
	default:
		return errBusy
	}
}

func (l *protoListener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *protoListener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut {
		return nil
	}
	l.shut = true
	close(l.closed)
	for {
		select {
		case conn := <-l.conns:
			_ = conn.Close() // nobody will use it
		default:
			return nil
		}
	}
}

func (l *protoListener) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut
}

func (l *protoListener) Addr() net.Addr { return l.addr }
