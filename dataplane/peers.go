package dataplane

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/relay"
)

// locate finds the address of a peer for the relay.
func (w *Worker) locate(region, node string) (string, bool) {
	for _, n := range w.cfg.Peers().Nodes {
		if n.Region == region && n.Node == node && n.Addr != "" {
			return n.Addr, true
		}
	}
	return "", false
}

// trips keeps measured round trips to nodes of other regions.
type trips struct {
	mu    sync.RWMutex
	nodes map[nodeName]trip
}

type nodeName struct{ region, node string }

type trip struct {
	recent [4]time.Duration
	n      int
}

func newTrips() *trips { return &trips{nodes: make(map[nodeName]trip)} }

func (t *trips) add(name nodeName, rtt time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x := t.nodes[name]
	x.recent[x.n%len(x.recent)] = rtt
	x.n++
	t.nodes[name] = x
}

// keep forgets the nodes that are not in seen.
func (t *trips) keep(seen map[nodeName]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.nodes {
		if !seen[name] {
			delete(t.nodes, name)
		}
	}
}

// region is the shortest of the last few round trips to any node of region:
// the least disturbed by handshakes and load.
func (t *trips) region(region string) (rtt time.Duration, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for name, x := range t.nodes {
		if name.region != region {
			continue
		}
		for _, d := range x.recent[:min(x.n, len(x.recent))] {
			if !ok || d < rtt {
				rtt, ok = d, true
			}
		}
	}
	return rtt, ok
}

const (
	probeTimeout = time.Second
	maxProbes    = 32 // at once
)

// probe measures the round trip to every node of the other regions, round
// after round, and tells their circuits whether they answer.
func (w *Worker) probe(ctx context.Context) {
	for ctx.Err() == nil {
		w.probeAll(ctx)
		every := w.tunables.ProbeEvery
		pause := time.NewTimer(every*3/4 + rand.N(every/2)) //nolint:gosec // jitter
		select {
		case <-ctx.Done():
			pause.Stop()
		case <-pause.C:
		}
	}
}

func (w *Worker) probeAll(ctx context.Context) {
	seen := make(map[nodeName]bool)
	slots := make(chan struct{}, maxProbes)
	var running sync.WaitGroup
	for _, n := range w.cfg.Peers().Nodes {
		if n.Region == w.setup.Region || n.Addr == "" || !n.Alive {
			continue
		}
		name := nodeName{n.Region, n.Node}
		seen[name] = true
		slots <- struct{}{}
		running.Go(func() {
			defer func() { <-slots }()
			w.probeOne(ctx, name)
		})
	}
	running.Wait()
	w.trips.keep(seen)
}

func (w *Worker) probeOne(ctx context.Context, name nodeName) {
	ticket, ok := w.ground.PeerNodes.Allow(breaker.Peer(name.node))
	if !ok {
		return // resting
	}
	limited, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	rtt, err := w.ground.Client.Probe(limited, name.region, name.node)
	switch {
	case err == nil:
		w.trips.add(name, rtt)
		ticket.Done(breaker.OK)
	case ctx.Err() != nil, errors.Is(err, relay.ErrNoSockets): // nothing was learned
		ticket.Done(breaker.ClientGone)
	case timedOut(err):
		ticket.Done(breaker.Timeout)
	default:
		ticket.Done(breaker.Transport)
	}
	if err != nil && ctx.Err() == nil {
		w.log.Debug("a peer does not answer probes", "peer_region", name.region, "peer_node", name.node, "error", err)
	}
}

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout() || errors.Is(err, context.DeadlineExceeded)
}
