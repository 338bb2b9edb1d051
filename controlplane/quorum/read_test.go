package quorum

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/memnet"
	"ringmain/internal/testkit/synckit"
)

func TestRead(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		if err := lead.q.Read(t.Context()); err != nil { // the last entry is not one that the machine hears of
			t.Fatal(err)
		}
		for i := range 20 {
			c.mustPropose(lead, create(orgID(i), "x"))
			if err := lead.q.Read(t.Context()); err != nil || nameOf(lead.q, orgID(i)) != "x" {
				t.Fatalf("read %d: %v", i, err)
			}
		}
		for i := range 2000 { // each asks whom the one before asked
			if err := lead.q.Read(t.Context()); err != nil {
				t.Fatalf("read %d without a pause: %v", i, err)
			}
		}
		for _, nd := range c.nodes {
			if age := time.Since(nd.q.Contact()); age > c.nodes[0].q.cfg.Tunables.Heartbeat {
				t.Errorf("%s heard %s ago", nd.name, age)
			}
			if err := nd.q.Read(t.Context()); nd != lead && !errors.Is(err, controlplane.ErrNotLeader) {
				t.Errorf("read at a follower: %v", err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := lead.q.Read(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("a read given up: %v", err)
		}
	})
}

// A leader that is cut off answers no read once others may have written.
func TestReadAtDeposedLeader(t *testing.T) {
	for _, state := range []memnet.State{memnet.Cut, memnet.Dark} {
		inFakeTime(t, 3, func(t *testing.T, c *cluster) {
			c.startAll()
			defer c.stopAll()
			old := c.leader()
			c.mustPropose(old, create(orgID(1), "old"))
			for _, nd := range c.nodes {
				c.net.Set(old.addr, nd.addr, state)
			}
			start := time.Now()
			if err := old.q.Read(t.Context()); !errors.Is(err, controlplane.ErrNoLeader) {
				t.Errorf("a read without a majority: %v", err)
			}
			if took := time.Since(start); took > old.q.cfg.Tunables.Lease {
				t.Errorf("it took %s", took)
			}
			c.leaderBeside(old)
			if err := old.q.Read(t.Context()); err == nil {
				t.Error("a deposed leader answered")
			}
			for _, nd := range c.nodes {
				c.net.Set(old.addr, nd.addr, 0)
			}
			c.converged()
		})
	}
}

// Whatever happens to the nodes, a read that succeeds shows every write that
// was acknowledged before it began.
func TestReadSchedules(t *testing.T) {
	seeds, reads := uint64(20), 0
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		dir := diskkit.Fast(t)
		synckit.Test(t, func(t *testing.T) { reads += readSchedule(t, dir, seed) })
	}
	t.Logf("%d reads in %d schedules", reads, seeds)
	if reads < int(seeds)*20 {
		t.Errorf("only %d reads were answered", reads)
	}
}

func readSchedule(t *testing.T, dir string, seed uint64) int {
	c := newCluster(t, dir, 3)
	c.tune.Commit = 100 * time.Millisecond // an idle follower costs real time
	c.startAll()
	c.leader()
	var mu sync.Mutex
	node := func(i int) *Quorum {
		mu.Lock()
		defer mu.Unlock()
		return c.nodes[i%3].q
	}
	until := time.Now().Add(5 * time.Second)
	var acked, read atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() { // one writer, so that values ascend
		for n := int64(1); time.Now().Before(until); {
			for i := range 3 {
				if q := node(i); q != nil && q.IsLeader() {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					_, err := q.Propose(ctx, testShard, put(orgID(1), strconv.FormatInt(n, 10)))
					cancel()
					if err == nil {
						acked.Store(n)
					}
					n++
				}
			}
			time.Sleep(3 * time.Millisecond)
		}
	})
	for i := range 3 {
		wg.Go(func() {
			for time.Now().Before(until) {
				time.Sleep(5 * time.Millisecond)
				q, floor := node(i), acked.Load()
				if q == nil {
					continue
				}
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				err := q.Read(ctx)
				cancel()
				if err != nil {
					continue
				}
				read.Add(1)
				got, _ := strconv.ParseInt(nameOf(q, orgID(1)), 10, 64) // 0 before the first write
				if got < floor {
					t.Errorf("seed %d: a read at %s shows %d, and %d was acknowledged before it", seed, q.cfg.Node, got, floor)
				}
			}
		})
	}
	nemesis(c, seeded(seed), &mu, until)
	wg.Wait()
	for _, nd := range c.nodes {
		for _, other := range c.nodes {
			c.net.Set(nd.addr, other.addr, 0)
		}
		if nd.q == nil {
			c.start(nd)
		}
	}
	c.converged()
	c.stopAll()
	return int(read.Load())
}

// BenchmarkRead is one read at a time, and 64 at once, beside writes or not.
func BenchmarkRead(b *testing.B) {
	for _, readers := range []int{1, 64} {
		b.Run(fmt.Sprintf("readers=%d", readers), func(b *testing.B) {
			c := newTCPCluster(b, 3)
			c.startAll()
			defer c.stopAll()
			lead := c.leader()
			c.mustPropose(lead, put(orgID(1), "x"))
			concurrently(b, readers, "reads/s", func(int) error { return lead.q.Read(context.Background()) })
		})
	}
}
