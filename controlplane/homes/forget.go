package homes

import (
	"context"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// forgetEvery is how often a home looks for what it may forget.
const forgetEvery = 10 * time.Minute

// spent is what a home saw in a shard's safety set that nobody needs any more,
// and where its copy stood.
type spent struct {
	at  controlplane.Point
	all []registry.Revocation
}

// forget takes out of the safety sets of the shards written here what was spent
// when it last looked, if every member has been heard to hold the shard as far
// as this copy was then. before is what it saw, and is brought up to date.
func (t *term) forget(before map[controlplane.Shard]spent) {
	now := time.Now()
	for shard := range t.following() {
		was := before[shard]
		delete(before, shard)
		if len(was.all) > 0 && t.allHold(shard, was.at) {
			changes := make([]registry.Change, len(was.all))
			for i := range was.all {
				changes[i] = was.all[i].Forget(now.UnixMilli())
			}
			ctx, cancel := context.WithTimeout(t.ctx, t.h.cfg.Call)
			_, err := t.h.cfg.Store.Propose(ctx, shard, changes)
			cancel()
			if err != nil {
				t.h.log.Debug("homes: nothing was forgotten", "shard", shard, "err", err)
			} else {
				t.h.log.Info("homes: revocations of keys that ended by themselves and are deleted are forgotten", "shard", shard, "count", len(changes))
			}
		}
		if at, home := t.writtenHere(shard); home {
			next := spent{at: at}
			t.h.cfg.Store.View(func(s *ledger.State) {
				if s.Version() >= registry.VersionSafety {
					next.all = s.Spent(shard, now.UnixMilli(), registry.MaxChanges)
				}
			})
			if len(next.all) > 0 {
				before[shard] = next
			}
		}
	}
}

// writtenHere says where the shard's copy ends, if this region is its home.
func (t *term) writtenHere(shard controlplane.Shard) (controlplane.Point, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.shards[shard]
	if s == nil || s.role != ownership.Home {
		return controlplane.Point{}, false
	}
	return s.copy.Last, true
}

// allHold reports whether this region is the shard's home and every region that
// may hold it was heard to hold it up to at. One that is not heard holds up
// forgetting for ever: it may hold a record that is refused by nothing else.
func (t *term) allHold(shard controlplane.Shard, at controlplane.Point) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.shards[shard]
	if s == nil || s.role != ownership.Home || !s.copy.Holds(at) {
		return false
	}
	for _, m := range s.members {
		if m == t.h.cfg.Region {
			continue
		}
		h, ok := s.heard[m]
		if !ok || h.word.Last.Seq < at.Seq || !s.copy.Holds(h.word.Last) {
			return false
		}
	}
	return true
}
