package homes

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

const (
	mendWithin = 15 * time.Second // one takeover that nobody asked for
	rankStep   = 3 * time.Second  // between members that may take over by themselves
)

// tick does what depends on the clock.
func (t *term) tick() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.notePublished(now)
	for _, s := range t.shards {
		t.h.metrics.show(s, t.isolated(s, now), now)
		if s.busy {
			continue
		}
		switch {
		case t.reclaims(s, now):
			t.mendLocked(s, "a former home takes back a shard that was sealed and not opened", TakeoverOptions{Live: true})
		case t.takesOver(s, now):
			t.mendLocked(s, "the home of a shard has been down for the configured time", TakeoverOptions{})
		}
	}
}

// mendLocked takes a shard over that nobody asked for. mu is held.
func (t *term) mendLocked(s *standing, why string, opts TakeoverOptions) {
	shard := s.shard
	s.orphaned, s.patience = time.Now(), jitter(t.h.cfg.Reclaim) // not again at once
	t.h.log.Warn("homes: taking over", "shard", shard, "why", why)
	t.backgroundLocked(func() {
		ctx, cancel := context.WithTimeout(t.ctx, mendWithin)
		defer cancel()
		if _, err := t.takeover(ctx, shard, opts); err != nil && t.ctx.Err() == nil && !errors.Is(err, ErrBusy) {
			t.h.log.Warn("homes: a takeover that nobody asked for did not come about", "shard", shard, "why", why, "err", err)
		}
	})
}

// reclaims reports that this region was home until somebody sealed a later
// epoch, and nobody has opened one since: a candidate that failed, a move that
// was given up. mu is held.
func (t *term) reclaims(s *standing, now time.Time) bool {
	if s.orphaned.IsZero() || now.Sub(s.orphaned) < s.patience {
		return false
	}
	for _, h := range s.heard {
		if h.word.Last.Epoch.Compare(s.copy.Last.Epoch) > 0 {
			return false // it has been opened; the feed brings it
		}
	}
	return true
}

// notePublished keeps since when regions are published as down. mu is held.
func (t *term) notePublished(now time.Time) {
	if t.h.cfg.AutomaticAfter <= 0 || t.h.cfg.Published == nil {
		return
	}
	up := t.h.cfg.Published()
	maps.DeleteFunc(t.down, func(region string, _ time.Time) bool { return up[region] })
	for region, is := range up {
		if _, noted := t.down[region]; !is && !noted {
			t.down[region] = now
		}
	}
}

// takesOver reports that this region is the one to take over a shard whose home
// has been published as down for long enough. The others give it a head start
// by their rank, so that rivals are rare. mu is held.
func (t *term) takesOver(s *standing, now time.Time) bool {
	home := s.copy.Last.Epoch.Region
	since, down := t.down[home]
	if !down || s.role == ownership.Outside || home == t.h.cfg.Region || len(s.copy.Members()) < 3 {
		return false
	}
	rank := 0
	for _, m := range s.members {
		if _, gone := t.down[m]; !gone && m < t.h.cfg.Region {
			rank++
		}
	}
	return now.Sub(since) >= t.h.cfg.AutomaticAfter+time.Duration(rank)*rankStep
}

// mend brings this region up to the protocol, what it cut to the new home, and
// finds copies that drifted.
func (t *term) mend() error {
	ticker := time.NewTicker(t.h.cfg.Word)
	defer ticker.Stop()
	sent := make(map[revocationOf]bool)
	seen, looked := make(map[controlplane.Shard]spent), time.Now()
	for {
		t.raise()
		t.handIn(sent)
		if time.Since(looked) >= forgetEvery {
			t.forget(seen)
			looked = time.Now()
		}
		t.h.cfg.Store.View(t.h.metrics.showQuarantine)
		select {
		case <-ticker.C:
		case <-t.met:
		case <-t.ctx.Done():
			return nil
		}
	}
}

// raise has the region's log carry the protocol once a majority of the members
// of each shard that this region writes speak it: before that a home would wait
// for confirmations that nobody can give.
func (t *term) raise() {
	ready := true
	t.h.cfg.Store.View(func(s *ledger.State) {
		if s.Version() >= registry.Version {
			ready = false
		}
	})
	if !ready || !t.spoken() {
		return
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.h.cfg.Call)
	defer cancel()
	if err := t.h.cfg.Store.Raise(ctx); err != nil {
		t.h.log.Debug("homes: the region cannot take up ownership yet", "err", err)
		return
	}
	t.h.log.Info("homes: the region has gone over to the newest cluster version; from 2 on, writes are confirmed by the other members")
	t.look()
}

func (t *term) spoken() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.shards {
		if s.copy.Last.Epoch.Region != t.h.cfg.Region {
			continue
		}
		speak := 1
		for _, m := range s.members {
			if _, ok := s.heard[m]; ok && m != t.h.cfg.Region {
				speak++
			}
		}
		if speak < ownership.Majority(len(s.members)) {
			return false
		}
	}
	return len(t.shards) > 0
}

type revocationOf struct {
	shard controlplane.Shard
	kind  registry.Kind
	id    string
}

// handIn brings revocations that this region accepted and then had to cut to
// the shard's home. Here they are in force all along; elsewhere nobody heard.
func (t *term) handIn(sent map[revocationOf]bool) {
	for shard, home := range t.following() {
		var news []registry.Revocation
		t.h.cfg.Store.View(func(s *ledger.State) {
			for q := range s.Quarantine(shard) {
				for _, c := range q.Entry.Changes {
					if c.Op != registry.OpRevoke || sent[revocationOf{shard, c.Kind, c.ID}] {
						continue
					}
					if v, ok := s.Revoked(c.Kind, c.ID); ok {
						news = append(news, v)
					}
				}
			}
		})
		for batch := range slices.Chunk(news, maxRevocations) {
			if err := t.tellRevocations(home, shard, batch); err != nil {
				t.h.log.Warn("homes: revocations that were cut here did not reach the shard's home; they are sent again",
					"shard", shard, "home", home, "count", len(batch), "err", err)
				break
			}
			for _, v := range batch {
				sent[revocationOf{shard, v.Kind, v.ID}] = true
			}
		}
	}
}

// following lists the shards with a home, by what this copy knows of it.
func (t *term) following() map[controlplane.Shard]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make(map[controlplane.Shard]string)
	for shard, s := range t.shards {
		if s.role == ownership.Follower || s.role == ownership.Home {
			out[shard] = s.copy.Last.Epoch.Region
		}
	}
	return out
}

func (t *term) tellRevocations(home string, shard controlplane.Shard, vs []registry.Revocation) error {
	ctx, cancel := context.WithTimeout(t.ctx, t.h.cfg.Call)
	defer cancel()
	if home == t.h.cfg.Region {
		return t.commitRevocations(ctx, shard, vs)
	}
	var done digestAnswer
	return t.h.client.ask(ctx, home, pathRevoke, &revokeRequest{Cluster: t.h.cfg.Cluster, Shard: shard, Revocations: vs}, &done)
}

// commitRevocations makes revocations part of the shard's history, where they
// are not: by that every member learns them.
func (t *term) commitRevocations(ctx context.Context, shard controlplane.Shard, vs []registry.Revocation) error {
	for _, v := range vs {
		_, err := t.h.cfg.Store.Propose(ctx, shard, []registry.Change{{Op: registry.OpRevoke, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires}})
		var refusal *controlplane.RuleError
		if err != nil && !errors.As(err, &refusal) {
			return err
		}
		if refusal != nil {
			t.h.log.Warn("homes: a revocation from a history that was cut is refused here", "shard", shard, "id", v.ID, "err", refusal)
		}
	}
	return nil
}
