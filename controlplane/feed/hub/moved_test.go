package hub

import (
	"fmt"
	"testing"
	"time"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/feedkit"
)

// TestMovedAndCut is the twin test: one history, two control nodes (one behind
// the other), and a watcher that is cut, stalled past the ring, and moved, while
// nodes restart. It must end with exactly the state, and never see time run
// backwards.
func TestMovedAndCut(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			ca := feedkit.NewCA(t)
			tune := func(c *Config) { c.Ring = 24; c.SnapshotKeep = 30 * time.Millisecond }
			lead, behind := newNode(ca, "eu-fra", "c1", tune), newNode(ca, "eu-fra", "c2", tune)
			shards := []*feedkit.History{feedkit.NewHistory("eu", "eu-fra", seed), feedkit.NewHistory("any-eu-fra", "eu-fra", seed+100)}
			var queue []*registry.Entry
			both := func(e *registry.Entry) {
				lead.Accept(e)
				queue = append(queue, e)
			}
			catchUp := func(n int) {
				behind.Accept(queue[:n]...)
				queue = queue[n:]
			}
			for _, h := range shards {
				both(h.Open("eu-fra", "eu-fra"))
			}
			rng := shards[0].Rand
			k := ca.Caller("eu-fra", identity.RoleData, "d1")
			w := feedkit.NewTwin()
			w.Watch(t, k, "eu-fra", func(c *feed.WatchConfig) { c.BackoffMin, c.BackoffMax = time.Millisecond, 4*time.Millisecond }, lead, behind)
			stalled := false
			for range 600 {
				switch rng.IntN(12) {
				case 0:
					k.Cut()
				case 1:
					catchUp(rng.IntN(len(queue) + 1))
				case 2:
					if stalled = !stalled; stalled {
						w.Gate.Lock()
					} else {
						w.Gate.Unlock()
					}
				case 3:
					if rng.IntN(8) == 0 {
						[]*feedkit.Node{lead, behind}[rng.IntN(2)].Restart()
					}
				case 4:
					if rng.IntN(2) == 0 {
						hubOf(lead).Reset() // as after a Raft snapshot was installed
					} else {
						hubOf(lead).Reset(shards[rng.IntN(2)].Shard) // as after an import as a whole
					}
				case 5:
					time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
				default:
					for range 1 + rng.IntN(6) {
						both(shards[rng.IntN(2)].Next())
					}
				}
			}
			if stalled {
				w.Gate.Unlock()
			}
			catchUp(len(queue))
			for _, h := range shards {
				w.Same(t, lead, h.Shard)
				w.Same(t, behind, h.Shard)
			}
			w.Locked(func() { t.Logf("%d frames, %d snapshots", w.Frames, w.Resets) })
		})
	}
}
