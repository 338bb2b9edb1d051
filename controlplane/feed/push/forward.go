package push

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/retry"
)

const (
	gatherFor    = 20 * time.Millisecond // verdicts wait for company; what somebody waits for does not
	sendTimeout  = 3 * time.Second
	sendAttempts = 5
	sendQueue    = 64 // batches waiting for one peer; more are dropped
)

// offer queues what is to be forwarded.
func (b *Board) offer(news feed.Batch) {
	for part := range slices.Chunk(news.Verdicts, feed.MaxBatch) {
		b.queue(feed.Batch{Verdicts: part})
	}
	for part := range slices.Chunk(news.Revocations, feed.MaxBatch) {
		b.queue(feed.Batch{Revocations: part})
	}
	for part := range slices.Chunk(news.Held, feed.MaxBatch) {
		b.queue(feed.Batch{Held: part})
	}
}

func (b *Board) queue(part feed.Batch) {
	select {
	case b.out <- part:
	default:
		b.metrics.dropped.Inc()
	}
}

// forward gathers what was pushed here and hands it to a sender per peer.
func (b *Board) forward(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	senders := make(map[Peer]*sender)
	timer := time.NewTimer(gatherFor)
	timer.Stop()
	defer timer.Stop()
	var all feed.Batch
	deal := func() {
		timer.Stop()
		if !empty(all) {
			b.deal(ctx, group, senders, all)
			all = feed.Batch{}
		}
	}
	for {
		select {
		case part := <-b.out:
			if len(all.Verdicts)+len(part.Verdicts) > feed.MaxBatch || len(all.Revocations)+len(part.Revocations) > feed.MaxBatch || len(all.Held)+len(part.Held) > feed.MaxBatch {
				deal()
			}
			if len(all.Verdicts) == 0 {
				timer.Reset(gatherFor)
			}
			all.Verdicts = append(all.Verdicts, part.Verdicts...)
			all.Revocations = append(all.Revocations, part.Revocations...)
			all.Held = append(all.Held, part.Held...)
			if len(all.Revocations)+len(all.Held) > 0 && len(b.out) == 0 {
				deal()
			}
		case <-timer.C:
			deal()
		case <-ctx.Done():
			return group.Wait()
		}
	}
}

func empty(b feed.Batch) bool { return len(b.Verdicts)+len(b.Revocations)+len(b.Held) == 0 }

// sender posts to one peer, in order.
type sender struct {
	queue  chan feed.Batch
	cancel context.CancelFunc
}

// deal gives to each peer what it may hear. Senders of former peers end.
func (b *Board) deal(ctx context.Context, group *errgroup.Group, senders map[Peer]*sender, all feed.Batch) {
	peers := b.cfg.Peers()
	for p, s := range senders {
		if !slices.Contains(peers, p) {
			s.cancel()
			delete(senders, p)
		}
	}
	for _, p := range peers {
		part := b.audible(p, all)
		if empty(part) {
			continue
		}
		s := senders[p]
		if s == nil {
			sctx, cancel := context.WithCancel(ctx)
			s = &sender{queue: make(chan feed.Batch, sendQueue), cancel: cancel}
			senders[p] = s
			group.Go(func() error {
				defer cancel()
				b.send(sctx, p, s.queue)
				return nil
			})
		}
		select {
		case s.queue <- part:
		default:
			b.metrics.dropped.Inc()
		}
	}
}

// audible is the part of all that p's region may hear.
func (b *Board) audible(p Peer, all feed.Batch) feed.Batch {
	hears, holds := b.hears(identity.ID{Cluster: b.cfg.Cluster, Region: p.Region, Role: identity.RoleControl, Node: p.Node})
	part := feed.Batch{Cluster: b.cfg.Cluster}
	for _, v := range all.Verdicts {
		if hears(keyShard(v.Key)) {
			part.Verdicts = append(part.Verdicts, v)
		}
	}
	for _, r := range all.Revocations {
		if hears(r.Shard) {
			part.Revocations = append(part.Revocations, r)
		}
	}
	for _, x := range all.Held {
		if holds(x.Shard) {
			part.Held = append(part.Held, x)
		}
	}
	return part
}

// send posts batches to p until ctx ends. Each gets a few attempts.
func (b *Board) send(ctx context.Context, p Peer, queue <-chan feed.Batch) {
	for {
		select {
		case <-ctx.Done():
			return
		case part := <-queue:
			// Revocations first: they are the ones somebody waits for.
			b.attempt(ctx, p, feed.PathRevoke, feed.Batch{Cluster: part.Cluster, Revocations: part.Revocations})
			b.attempt(ctx, p, feed.PathHeld, feed.Batch{Cluster: part.Cluster, Held: part.Held})
			b.attempt(ctx, p, feed.PathVerdicts, feed.Batch{Cluster: part.Cluster, Verdicts: part.Verdicts})
		}
	}
}

func (b *Board) attempt(ctx context.Context, p Peer, path string, part feed.Batch) {
	if empty(part) {
		return
	}
	wait := retry.Backoff{Base: 50 * time.Millisecond, Limit: 2 * time.Second}
	var err error
	for range sendAttempts {
		pctx, cancel := context.WithTimeout(ctx, sendTimeout)
		err = feed.Post(pctx, b.cfg.HTTP(p.Region), p.Region, p.Addr, path, part)
		cancel()
		if err == nil {
			return
		}
		var no *feed.StatusError
		if errors.As(err, &no) && no.Status/100 == 4 && no.Status != http.StatusTooManyRequests {
			break
		}
		if !retry.Sleep(ctx, wait.Next()) {
			return
		}
	}
	b.metrics.dropped.Inc()
	b.cfg.Logger.Warn("feed: a peer could not be told; its data nodes learn it from the commit or by themselves",
		"peer", p.Node, "region", p.Region, "path", path, "err", err)
}

// inherit fills the empty tables of a new board from the first peer that
// answers, own region first.
func (b *Board) inherit(ctx context.Context) error {
	for wait := (retry.Backoff{Base: 100 * time.Millisecond, Limit: 30 * time.Second}); ; {
		peers := slices.Clone(b.cfg.Peers())
		rand.Shuffle(len(peers), func(i, j int) { peers[i], peers[j] = peers[j], peers[i] }) //nolint:gosec // spreads questions, guards nothing
		foreign := func(p Peer) int {
			if p.Region == b.cfg.Region {
				return 0
			}
			return 1
		}
		slices.SortStableFunc(peers, func(x, y Peer) int { return foreign(x) - foreign(y) })
		for _, p := range peers {
			err := b.inheritFrom(ctx, p)
			if err == nil {
				return nil
			}
			b.cfg.Logger.Debug("feed: no verdicts from peer", "peer", p.Node, "err", err)
		}
		if !retry.Sleep(ctx, wait.Next()) {
			return nil
		}
	}
}

func (b *Board) inheritFrom(ctx context.Context, p Peer) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	from, answer, err := feed.Get(ctx, b.cfg.HTTP(p.Region), p.Region, p.Addr, feed.PathVerdicts)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	for r := feed.NewReader(answer); ; {
		f, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		b.Receive(from, f)
	}
}
