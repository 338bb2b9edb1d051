package dev

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

// backend is one address behind a pass-through, with its own health check.
type backend struct {
	addr  string
	check string // URL that answers 200 when ready
	ready atomic.Bool
}

const (
	checkEvery   = 250 * time.Millisecond
	checkTimeout = 500 * time.Millisecond
	missesDown   = 2
)

// watch keeps b.ready as an outside balancer would know it.
func (b *backend) watch(ctx context.Context, client *http.Client) error {
	misses := 0
	for tick := time.NewTicker(checkEvery); ; {
		if probe(ctx, client, b.check) {
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

func probeClient(roots *x509.CertPool) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		MaxIdleConnsPerHost: 1,
	}}
}

// passThrough hands TCP connections to the first ready backend, in order; or,
// with spread, to the ready ones in turn. It ends no TLS. Its listener is open
// only while a backend is ready (unless always), so that a dead region refuses
// connections as it would without this process.
type passThrough struct {
	addr     string
	backends []*backend
	spread   bool
	always   bool
	next     atomic.Uint64
}

func (p *passThrough) run(ctx context.Context) error {
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
		open := p.always || len(p.candidates()) > 0
		if open && l == nil {
			opened, err := net.Listen("tcp", p.addr) //nolint:noctx // binding a loopback port does not wait
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

func (p *passThrough) accept(ctx context.Context, g *errgroup.Group, l net.Listener) error {
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

func (p *passThrough) candidates() []*backend {
	var ready []*backend
	for _, b := range p.backends {
		if b.ready.Load() {
			ready = append(ready, b)
		}
	}
	if p.spread && len(ready) > 1 {
		k := int(p.next.Add(1) % uint64(len(ready)))
		ready = append(ready[k:], ready[:k]...)
	}
	return ready
}

func (p *passThrough) carry(ctx context.Context, in *net.TCPConn) {
	var out *net.TCPConn
	for _, b := range p.candidates() {
		d := net.Dialer{Timeout: checkTimeout}
		if c, err := d.DialContext(ctx, "tcp", b.addr); err == nil {
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
