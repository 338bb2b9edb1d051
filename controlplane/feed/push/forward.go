package feed

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/identity"
)

const (
	gatherFor    = 20 * time.Millisecond // verdicts wait for company; what somebody waits for does not
	sendTimeout  = 3 * time.Second
	sendAttempts = 5
	sendQueue    = 64 // batches waiting for one peer; more are dropped
)

// forward gathers what was pushed here and hands it to a sender per peer.
func (h *Hub) forward(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	senders := make(map[Peer]*sender)
	timer := time.NewTimer(gatherFor)
	timer.Stop()
	defer timer.Stop()
	var all Batch
	deal := func() {
		timer.Stop()
		if len(all.Verdicts)+len(all.Revocations)+len(all.Held) == 0 {
			return
		}
		h.deal(ctx, group, senders, all)
		all = Batch{}
	}
	for {
		select {
		case b := <-h.out:
			if len(all.Verdicts)+len(b.Verdicts) > maxBatch || len(all.Revocations)+len(b.Revocations) > maxBatch || len(all.Held)+len(b.Held) > maxBatch {
				deal()
			}
			if len(all.Verdicts) == 0 {
				timer.Reset(gatherFor)
			}
			all.Verdicts = append(all.Verdicts, b.Verdicts...)
			all.Revocations = append(all.Revocations, b.Revocations...)
			all.Held = append(all.Held, b.Held...)
			if len(all.Revocations)+len(all.Held) > 0 && len(h.out) == 0 {
				deal()
			}
		case <-timer.C:
			deal()
		case <-ctx.Done():
			return group.Wait()
		}
	}
}

// sender posts to one peer, in order.
type sender struct {
	queue  chan Batch
	cancel context.CancelFunc
}

// deal gives to each peer what it may hear. Senders of former peers end.
func (h *Hub) deal(ctx context.Context, group *errgroup.Group, senders map[Peer]*sender, all Batch) {
	h.refresh() // who may hear what
	peers := h.cfg.Peers()
	for p, s := range senders {
		if !slices.Contains(peers, p) {
			s.cancel()
			delete(senders, p)
		}
	}
	for _, p := range peers {
		b := h.audible(p, all)
		if len(b.Verdicts)+len(b.Revocations)+len(b.Held) == 0 {
			continue
		}
		s := senders[p]
		if s == nil {
			sctx, cancel := context.WithCancel(ctx)
			s = &sender{queue: make(chan Batch, sendQueue), cancel: cancel}
			senders[p] = s
			group.Go(func() error {
				defer cancel()
				h.send(sctx, p, s.queue)
				return nil
			})
		}
		select {
		case s.queue <- b:
		default:
			h.metrics.dropped.Inc()
		}
	}
}

// audible is the part of b that p's region may hear.
func (h *Hub) audible(p Peer, b Batch) Batch {
	id := identity.ID{Cluster: h.cfg.Cluster, Region: p.Region, Role: identity.RoleControl, Node: p.Node}
	part := Batch{Cluster: h.cfg.Cluster}
	h.steady(h.mu.RLocker(), func() {
		for _, v := range b.Verdicts {
			if h.mayHear(id, keyShard(v.Key)) {
				part.Verdicts = append(part.Verdicts, v)
			}
		}
		for _, r := range b.Revocations {
			if h.mayHear(id, r.Shard) {
				part.Revocations = append(part.Revocations, r)
			}
		}
		for _, x := range b.Held {
			if h.mayHold(id, h.rings[x.Shard]) {
				part.Held = append(part.Held, x)
			}
		}
	})
	return part
}

// send posts batches to p until ctx ends. Each gets a few attempts.
func (h *Hub) send(ctx context.Context, p Peer, queue <-chan Batch) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-queue:
			// Revocations first: they are the ones somebody waits for.
			h.attempt(ctx, p, PathRevoke, Batch{Cluster: b.Cluster, Revocations: b.Revocations}, len(b.Revocations))
			h.attempt(ctx, p, PathHeld, Batch{Cluster: b.Cluster, Held: b.Held}, len(b.Held))
			h.attempt(ctx, p, PathVerdicts, Batch{Cluster: b.Cluster, Verdicts: b.Verdicts}, len(b.Verdicts))
		}
	}
}

func (h *Hub) attempt(ctx context.Context, p Peer, path string, b Batch, n int) {
	if n == 0 {
		return
	}
	wait := backoff{base: 50 * time.Millisecond, limit: 2 * time.Second}
	var err error
	for range sendAttempts {
		pctx, cancel := context.WithTimeout(ctx, sendTimeout)
		err = post(pctx, h.cfg.HTTP, p.Region, p.Addr, path, b)
		cancel()
		if err == nil {
			return
		}
		var no *statusError
		if errors.As(err, &no) && no.status/100 == 4 && no.status != http.StatusTooManyRequests {
			break
		}
		if !sleep(ctx, wait.next()) {
			return
		}
	}
	h.metrics.dropped.Inc()
	h.cfg.Logger.Warn("feed: a peer could not be told; its data nodes learn it from the commit or by themselves",
		"peer", p.Node, "region", p.Region, "path", path, "count", n, "err", err)
}
