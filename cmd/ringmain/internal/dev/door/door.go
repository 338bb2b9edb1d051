// Package door stands for what an installation has in front of ringmain: health
// checks, and balancers that hand TCP connections on. It ends no TLS and knows
// nothing of nodes or regions.
package door

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Backend is one address behind a Balancer, with its own health check.
type Backend struct {
	Addr  string
	Check string // URL that answers 200 when ready
	ready atomic.Bool
}

// Ready reports what the last checks said.
func (b *Backend) Ready() bool { return b.ready.Load() }

const (
	checkEvery   = 250 * time.Millisecond
	checkTimeout = 500 * time.Millisecond
	missesDown   = 2
)

// Watch checks until ctx ends, as a balancer outside would.
func (b *Backend) Watch(ctx context.Context, client *http.Client) error {
	misses := 0
	for tick := time.NewTicker(checkEvery); ; {
		if probe(ctx, client, b.Check) {
			misses = 0
			b.ready.Store(true)
		} else if misses++; misses >= missesDown {
			b.ready.Store(false)
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return nil
		case <-tick.C:
		}
	}
}

func probe(ctx context.Context, client *http.Client, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 4096))
	_ = resp.Body.Close() // read side
	return err == nil && resp.StatusCode == http.StatusOK
}

// Client makes the client of checks, which trusts roots.
func Client(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: 1,
	}}
}

// Balancer hands TCP connections to the first ready backend, in order; or, with
// Spread, to the ready ones in turn. It ends no TLS. Its listener is open only
// while a backend is ready (unless Always), so that a dead region refuses
// connections as it would without this process.
type Balancer struct {
	Addr     string // where it listens
	Backends []*Backend
	Spread   bool
	Always   bool
	next     atomic.Uint64
}

// Run listens until ctx ends, and waits for the connections, which end with it.
func (p *Balancer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	var l net.Listener
	shut := func() {
		if l != nil {
			_ = l.Close() // Accept returns; nothing else depends on it
			l = nil
		}
	}
	defer shut()
	for tick := time.NewTicker(checkEvery / 5); ; {
		open := p.Always || len(p.candidates()) > 0
		if open && l == nil {
			opened, err := net.Listen("tcp", p.Addr) //nolint:noctx // binding a loopback port does not wait
			if err != nil {
				return errors.Join(err, g.Wait())
			}
			l = opened
			g.Go(func() error { return p.accept(ctx, g, opened) })
		} else if !open {
			shut()
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			shut()
			return g.Wait()
		case <-tick.C:
		}
	}
}

func (p *Balancer) accept(ctx context.Context, g *errgroup.Group, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return nil // closed by run
		}
		g.Go(func() error {
			p.carry(ctx, conn.(*net.TCPConn))
			return nil
		})
	}
}

func (p *Balancer) candidates() []*Backend {
	var ready []*Backend
	for _, b := range p.Backends {
		if b.ready.Load() {
			ready = append(ready, b)
		}
	}
	if p.Spread && len(ready) > 1 {
		k := int(p.next.Add(1) % uint64(len(ready)))
		ready = append(ready[k:], ready[:k]...)
	}
	return ready
}

func (p *Balancer) carry(ctx context.Context, in *net.TCPConn) {
	var out *net.TCPConn
	for _, b := range p.candidates() {
		d := net.Dialer{Timeout: checkTimeout}
		if c, err := d.DialContext(ctx, "tcp", b.Addr); err == nil {
			out = c.(*net.TCPConn)
			break
		}
	}
	if out == nil {
		_ = in.SetLinger(0) // a reset, not a clean end
		_ = in.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { half(out, in) })
	both.Go(func() { half(in, out) })
	both.Wait()
	_, _ = in.Close(), out.Close()
}

// half copies one direction. A reset on one side becomes a reset on the other.
func half(dst, src *net.TCPConn) {
	if _, err := io.Copy(dst, src); err != nil {
		_, _ = dst.SetLinger(0), src.SetLinger(0)
		_, _ = dst.Close(), src.Close()
		return
	}
	_ = dst.CloseWrite() // the other side may be gone already
}
