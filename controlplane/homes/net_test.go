package homes

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/retry"
)

// network carries HTTP between regions in memory. What one says to another
// takes a while, may be lost, and may be cut in one direction only.
type network struct {
	mu       sync.Mutex
	rng      *rand.Rand
	handlers map[string]http.Handler // by address
	cut      map[[2]string]bool      // from region, to region
	delay    time.Duration           // one way, up to twice
	loss     float64                 // of a question or an answer, or of a stream at each write
	opened   chan struct{}           // closed and replaced when a cut heals
}

func newNetwork(seed uint64) *network {
	return &network{rng: rand.New(rand.NewPCG(seed, 1)), handlers: make(map[string]http.Handler),
		cut: make(map[[2]string]bool), opened: make(chan struct{}), delay: time.Millisecond}
}

func (n *network) set(addr string, h http.Handler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h == nil {
		delete(n.handlers, addr)
		return
	}
	n.handlers[addr] = h
}

func (n *network) oneWay(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = cut
	close(n.opened)
	n.opened = make(chan struct{})
}

func (n *network) both(a, b string, cut bool) {
	n.oneWay(a, b, cut)
	n.oneWay(b, a, cut)
}

func (n *network) tune(delay time.Duration, loss float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay, n.loss = delay, loss
}

var errLost = errors.New("connection reset")

// pass takes as long as a message from one region to another does. Across a cut
// it waits: nobody is told of a packet that does not arrive.
func (n *network) pass(ctx context.Context, from, to string) error {
	n.mu.Lock()
	wait, lost := n.delay, n.rng.Float64() < n.loss
	if n.delay > 0 {
		wait += time.Duration(n.rng.Int64N(int64(n.delay)))
	}
	n.mu.Unlock()
	if !retry.Sleep(ctx, wait) {
		return ctx.Err()
	}
	for {
		n.mu.Lock()
		cut, opened := n.cut[[2]string{from, to}], n.opened
		n.mu.Unlock()
		if !cut {
			break
		}
		select {
		case <-opened:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if lost {
		return errLost
	}
	return nil
}

// certOf is as much of a certificate as PeerID reads.
func certOf(id identity.ID) *tls.ConnectionState {
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{id.URI()}}}}
}

func control(region string) identity.ID {
	return identity.ID{Cluster: testCluster, Region: region, Role: identity.RoleControl, Node: region + "-c1"}
}

// caller is one region's http.Client.
type caller struct {
	n    *network
	from string
}

func (n *network) client(from string) *http.Client { return &http.Client{Transport: &caller{n, from}} }

func regionOf(addr string) string {
	return strings.TrimSuffix(strings.TrimSuffix(addr, ":1"), oldPeers)
}

func (c *caller) RoundTrip(r *http.Request) (*http.Response, error) {
	to := regionOf(r.URL.Host)
	ctx, cancel := context.WithCancel(r.Context())
	if err := c.n.pass(ctx, c.from, to); err != nil {
		cancel()
		return nil, err
	}
	c.n.mu.Lock()
	h := c.n.handlers[r.URL.Host]
	c.n.mu.Unlock()
	if h == nil {
		cancel()
		return nil, errors.New("connection refused")
	}
	in := r.Clone(ctx)
	in.TLS, in.RemoteAddr, in.RequestURI = certOf(control(c.from)), c.from, r.URL.RequestURI()
	body, out := io.Pipe()
	w := &answer{ctx: ctx, net: c.n, from: to, to: c.from, body: out, header: make(http.Header), begun: make(chan struct{})}
	go func() {
		defer cancel()
		h.ServeHTTP(w, in)
		w.WriteHeader(http.StatusOK)
		if err := c.n.pass(ctx, to, c.from); err != nil {
			out.CloseWithError(err)
			return
		}
		_ = out.Close()
	}()
	select {
	case <-w.begun:
	case <-ctx.Done():
		_ = body.CloseWithError(ctx.Err())
		return nil, ctx.Err()
	}
	if err := c.n.pass(ctx, to, c.from); err != nil {
		cancel()
		_ = body.CloseWithError(err)
		return nil, err
	}
	return &http.Response{StatusCode: w.status, Header: w.sent, Request: r, ProtoMajor: 2,
		TLS: certOf(control(to)), Body: &stream{body, cancel}}, nil
}

// stream is an answer's body: who closes it ends the handler's context.
type stream struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (s *stream) Close() error {
	s.cancel()
	return s.PipeReader.Close()
}

// answer is the handler's side.
type answer struct {
	ctx      context.Context
	net      *network
	from, to string
	body     *io.PipeWriter
	header   http.Header
	once     sync.Once
	status   int
	sent     http.Header
	begun    chan struct{}
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, w.header.Clone()
		close(w.begun)
	})
}

func (w *answer) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if err := w.net.pass(w.ctx, w.from, w.to); err != nil {
		_ = w.body.CloseWithError(err)
		return 0, err
	}
	n, err := w.body.Write(b)
	if err != nil && w.ctx.Err() != nil {
		err = w.ctx.Err()
	}
	return n, err
}

func (w *answer) FlushError() error                { w.WriteHeader(http.StatusOK); return nil }
func (w *answer) SetWriteDeadline(time.Time) error { return nil }
