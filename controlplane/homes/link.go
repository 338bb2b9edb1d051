package homes

import (
	"context"
	"math/rand/v2"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/retry"
)

// link keeps one other region told how far this one's copies are. The answers
// say the same of that region.
type link struct {
	region string
	news   chan struct{} // something that its home waits for; capacity 1
}

// linkSenders is how many words may be on their way to one region: the next
// acceptance need not wait for the answer to the former.
const linkSenders = 4

// linkTo makes sure that there is a link. mu is held.
func (t *term) linkTo(region string) {
	if t.links[region] != nil {
		return
	}
	l := &link{region: region, news: make(chan struct{}, 1)}
	t.links[region] = l
	for i := range linkSenders {
		t.backgroundLocked(func() { t.keep(l, i == 0) })
	}
}

// keep sends words when there is news; the regular sender also each second, and
// at the start.
func (t *term) keep(l *link, regular bool) {
	var tick <-chan time.Time
	if regular {
		ticker := time.NewTicker(t.h.cfg.Word)
		defer ticker.Stop()
		tick = ticker.C
		wake(l.news)
	}
	for {
		select {
		case <-l.news:
		case <-tick:
		case <-t.ctx.Done():
			return
		}
		if err := t.say(t.ctx, l.region); err != nil && t.ctx.Err() == nil {
			t.h.log.Debug("homes: a region does not hear this one; it is told again", "to", l.region, "err", err)
			if !retry.Sleep(t.ctx, rand.N(t.h.cfg.Word/2)) { //nolint:gosec // spreads retries, guards nothing
				return
			}
		}
	}
}

// say exchanges words with region.
func (t *term) say(ctx context.Context, region string) error {
	said := words{Cluster: t.h.cfg.Cluster, Words: t.words(region, nil)}
	if len(said.Words) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.h.cfg.Call)
	defer cancel()
	var answer words
	if err := t.h.client.ask(ctx, region, pathWord, &said, &answer); err != nil {
		return err
	}
	if answer.Cluster != t.h.cfg.Cluster {
		return controlplane.ErrWrongCluster
	}
	t.hear(region, answer.Words)
	return nil
}

// jitter is between d and twice d.
func jitter(d time.Duration) time.Duration {
	return d + rand.N(d) //nolint:gosec // spreads attempts, guards nothing
}
