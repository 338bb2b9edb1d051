package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// crowd is all watchers of this process.
type crowd struct {
	bundle *identity.Bundle
	addrs  []string
	cancel context.CancelFunc
	done   sync.WaitGroup
	all    []*watcher

	mu   sync.Mutex
	lags []time.Duration
}

// watcher is one data node's feed, on a connection of its own.
type watcher struct {
	crowd *crowd
	http  *http.Client
	at    atomic.Pointer[controlplane.Point]
	holds atomic.Bool // since the last cut a server has said that there is nothing more

	mu   sync.Mutex
	conn net.Conn
}

func serveWatchers(ctx context.Context, o options) error {
	bundle, err := identity.LoadBundle(filepath.Join(o.dir, "d1"))
	if err != nil {
		return err
	}
	c := &crowd{bundle: bundle, addrs: o.addrs()}
	defer c.leave()
	return obeyAll(func(ask order) (a answer, err error) {
		switch ask.Do {
		case "watch":
			begun := time.Now()
			c.watch(ctx, ask.N)
			err := c.await(func(w *watcher) bool { return w.holds.Load() })
			a.Seconds = time.Since(begun).Seconds()
			return a, err
		case "cut":
			begun := time.Now()
			for _, w := range c.all {
				w.mu.Lock()
				w.holds.Store(false)
				_ = w.conn.Close() // that is the cut
				w.mu.Unlock()
			}
			err := c.await(func(w *watcher) bool { return w.holds.Load() })
			a.Seconds = time.Since(begun).Seconds()
			return a, err
		case "leave":
			c.leave()
			c.mu.Lock()
			defer c.mu.Unlock()
			a.P50, a.P99, a.Max = quantiles(c.lags)
			c.lags = nil
			return a, nil
		}
		return a, fmt.Errorf("unknown order %q", ask.Do)
	})
}

// await waits until ok holds of all watchers.
func (c *crowd) await(ok func(*watcher) bool) error {
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		missing := 0
		for _, w := range c.all {
			if !ok(w) {
				missing++
			}
		}
		if missing == 0 {
			return nil
		}
	}
	return errors.New("not all watchers hold the state after a minute")
}

func (c *crowd) watch(ctx context.Context, n int) {
	ctx, c.cancel = context.WithCancel(ctx)
	for range n {
		w := &watcher{crowd: c}
		w.http = feed.NewHTTPClient(c.bundle.Client([]string{"h2"}, identity.AllowControl(regionName)))
		transport, _ := w.http.Transport.(*http.Transport)
		transport.DialContext = w.dial
		c.all = append(c.all, w)
		c.done.Go(func() {
			_ = feed.Watch(ctx, feed.WatchConfig{ // nil at the end of ctx
				Cluster: cluster, Region: regionName, Targets: feed.Fixed(c.addrs...), HTTP: w.http, Verdicts: true,
				From: w.from, Sink: w.take, Members: func([]byte) {},
			})
			w.http.CloseIdleConnections()
		})
	}
}

func (c *crowd) leave() {
	if c.cancel != nil {
		c.cancel()
	}
	c.done.Wait()
	c.all = nil
}

func (w *watcher) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, addr)
	if err == nil {
		w.mu.Lock()
		w.conn = conn
		w.mu.Unlock()
	}
	return conn, err
}

func (w *watcher) from() controlplane.Position {
	if at := w.at.Load(); at != nil {
		return controlplane.Position{shard: *at}
	}
	return nil
}

func (w *watcher) take(f *feed.Frame) error {
	switch f.Type {
	case feed.FrameHeartbeat:
		if at := w.at.Load(); at != nil && f.Position[shard] == *at {
			w.holds.Store(true)
		}
	case feed.FrameEnd:
		w.at.Store(&f.Point)
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return err
		}
		at := e.Point()
		w.at.Store(&at)
		if len(e.Changes) == 1 && e.Changes[0].Record != nil && e.Changes[0].Record.Meta.ID == key(0).Meta.ID {
			lag := time.Since(time.UnixMicro(e.Changes[0].Record.Meta.Updated))
			w.crowd.mu.Lock()
			w.crowd.lags = append(w.crowd.lags, lag)
			w.crowd.mu.Unlock()
		}
	}
	return nil
}
