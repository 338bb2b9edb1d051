package quorum

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/quorum/wire"
	"ringmain/internal/testkit/memnet"
)

// TestHealedFollowerIsSoonCurrent: a follower that was away for a minute, while
// others wrote, has caught up shortly after the network healed, and not only
// when a pause of the leader's ends, which are as long as 10 s by then.
func TestHealedFollowerIsSoonCurrent(t *testing.T) {
	for name, how := range map[string]struct {
		state    memnet.State
		snapshot bool
		within   time.Duration
	}{
		"cut":                  {memnet.Cut, false, time.Second},
		"cut, by a snapshot":   {memnet.Cut, true, time.Second},
		"silent":               {memnet.Dark, false, wire.Timeout + time.Second},
		"silent, and snapshot": {memnet.Dark, true, wire.Timeout + time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, 3, func(t *testing.T, c *cluster) {
				c.tune.Commit = 100 * time.Millisecond
				if how.snapshot {
					c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery, c.tune.SegmentBytes = 1, 10, 500*time.Millisecond, 4<<10
				}
				c.startAll()
				defer c.stopAll()
				lead := c.leader()
				away := c.nodes[slices.IndexFunc(c.nodes, func(nd *node) bool { return nd != lead })]
				for i := range 4 { // that one heals does not depend on when
					c.isolate(away, how.state)
					for range 100 {
						c.mustPropose(lead, put(orgID(1), "meanwhile"))
						time.Sleep(600*time.Millisecond + time.Duration(i)*37*time.Millisecond)
					}
					c.isolate(away, memnet.Open)
					healed := time.Now()
					want := lead.q.Stats().Applied
					c.eventually(30*time.Second, "a current follower", func() bool { return away.q.Stats().Applied >= want })
					if took := time.Since(healed); took > how.within {
						t.Errorf("it was current after %s, the bound is %s", took, how.within)
					}
				}
				if got := away.heard.resetCount() > 0; got != how.snapshot {
					t.Errorf("caught up by a snapshot: %v", got)
				}
			})
		})
	}
}

// TestLeaderLostAmidSnapshot: a follower whose leader falls silent while it
// sends a snapshot has a vote again soon, and the region another leader.
func TestLeaderLostAmidSnapshot(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery, c.tune.SegmentBytes = 1, 10, 500*time.Millisecond, 4<<10
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		behind := c.nodes[slices.IndexFunc(c.nodes, func(nd *node) bool { return nd != lead })]
		c.stop(behind)
		for i := range 200 {
			c.mustPropose(lead, put(orgID(i), "meanwhile"))
		}
		time.Sleep(2 * time.Second) // a snapshot is taken
		var lost atomic.Pointer[time.Time]
		c.net.Pass(func(from, to string, p []byte) int {
			if lost.Load() != nil || from != lead.addr || to != behind.addr || len(p) < 16<<10 {
				return len(p)
			}
			now := time.Now()
			lost.Store(&now)
			c.isolate(lead, memnet.Dark)
			return len(p) / 2
		})
		c.start(behind)
		c.eventually(30*time.Second, "another leader", func() bool {
			return slices.ContainsFunc(c.nodes, func(nd *node) bool { return nd != lead && nd.q.IsLeader() })
		})
		if at := lost.Load(); at == nil {
			t.Error("no snapshot was sent")
		} else if took := time.Since(*at); took > wire.Timeout+3*time.Second {
			t.Errorf("another leads %s after the first fell silent", took)
		}
		c.isolate(lead, memnet.Open)
		c.writeAgain(put(orgID(1), "after"))
		c.converged()
	})
}
