package homes

import (
	"bytes"
	"context"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

const (
	compareEvery = time.Minute
	compareTries = 5         // while writes keep the two copies apart
	retakeEvery  = time.Hour // at most: what a snapshot does not mend, the next one will not either
)

// digests remembers the digest of each shard where it last was, so that several
// members who ask cost one computation.
type digests struct {
	mu   sync.Mutex
	last map[controlplane.Shard]digest
}

type digest struct {
	at  controlplane.Point
	sum [32]byte
}

// at is the digest of the shard's copy, if that is at p.
func (d *digests) at(store Store, shard controlplane.Shard, p controlplane.Point) (sum [32]byte, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if last, ok := d.last[shard]; ok && last.at == p {
		return last.sum, true
	}
	var clone *ledger.State
	store.View(func(s *ledger.State) {
		if info, held := s.Shard(shard); held && info.Last == p {
			clone = s.Clone()
		}
	})
	if clone == nil {
		return sum, false
	}
	sum = clone.Digest(shard)
	if d.last == nil {
		d.last = make(map[controlplane.Shard]digest)
	}
	d.last[shard] = digest{p, sum}
	return sum, true
}

// compare asks the homes of the shards that this region follows whether the
// copies are the same. One that is not is brought in anew.
func (t *term) compare() error {
	retaken := make(map[controlplane.Shard]time.Time)
	for retry.Sleep(t.ctx, jitter(compareEvery/2)) {
		for shard, home := range t.following() {
			if home == t.h.cfg.Region || time.Since(retaken[shard]) < retakeEvery {
				continue
			}
			same, err := t.sameAs(shard, home)
			if err == nil && same {
				continue
			}
			if err != nil {
				t.h.log.Debug("homes: a copy could not be compared", "shard", shard, "home", home, "err", err)
				continue
			}
			retaken[shard] = time.Now()
			t.h.metrics.drift.WithLabelValues(string(shard)).Inc()
			t.h.log.Error("homes: this region's copy of a shard differs from its home's at the same point; it is taken anew", "shard", shard, "home", home)
			if t.h.cfg.Retake != nil {
				t.h.cfg.Retake(home, shard)
			}
		}
	}
	return nil
}

// sameAs compares this copy with the home's at the same point. Without such a
// point nothing is found to differ.
func (t *term) sameAs(shard controlplane.Shard, home string) (bool, error) {
	ctx, cancel := context.WithTimeout(t.ctx, answerIn)
	defer cancel()
	for range compareTries {
		at := t.pointOf(shard)
		own, ok := t.digests.at(t.h.cfg.Store, shard, at)
		if !ok {
			continue
		}
		var answer digestAnswer
		if err := t.h.client.ask(ctx, home, pathDigest, &digestRequest{Cluster: t.h.cfg.Cluster, Shard: shard, At: at}, &answer); err != nil {
			return true, err
		}
		if len(answer.Digest) > 0 {
			return bytes.Equal(answer.Digest, own[:]), nil
		}
		if !retry.Sleep(ctx, lookAgain) {
			break
		}
	}
	return true, nil
}

func (t *term) pointOf(shard controlplane.Shard) controlplane.Point {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.shards[shard]; s != nil && s.role == ownership.Follower {
		return s.copy.Last
	}
	return controlplane.Point{}
}
