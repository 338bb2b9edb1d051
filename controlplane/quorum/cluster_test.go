package quorum

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/memnet"
)

func TestElectProposeReplicate(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		for i := range 20 {
			out := c.mustPropose(lead, create(orgID(i), "one"))
			// Seq 1 opened the shard.
			if p := out.Points[testShard]; p.Seq != uint64(i+2) || p.Epoch != (controlplane.Epoch{Counter: 1, Region: testRegion}) {
				t.Fatalf("entry %d is at %v", i, p)
			}
		}
		c.converged()
		for _, nd := range c.nodes {
			if nd == lead {
				continue
			}
			if node, addr, ok := nd.q.Leader(); !ok || node != lead.name || addr != lead.addr {
				t.Errorf("%s says the leader is %s at %s", nd.name, node, addr)
			}
			if _, err := nd.q.Propose(context.Background(), testShard, put(orgID(1), "x")); !errors.Is(err, controlplane.ErrNotLeader) {
				t.Errorf("proposal at a follower: %v", err)
			}
		}
		for _, nd := range c.nodes {
			c.eventually(time.Second, "22 entries heard", func() bool { return len(nd.heard.all()) == 22 })
			for i, p := range nd.heard.all()[2:] { // the first two opened shards
				if p.Seq != uint64(i+2) {
					t.Fatalf("%s: OnApply heard entry %d where %d belongs", nd.name, p.Seq, i+2)
				}
			}
		}
	})
}

func TestFailover(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		var took []time.Duration
		for i := range 40 {
			victim := c.leader()
			c.converged()
			start := time.Now()
			c.kill(victim)
			next := c.leader()
			c.mustPropose(next, put(orgID(i), "after"))
			took = append(took, time.Since(start))
			c.start(victim)
		}
		slices.Sort(took)
		p50, worst := took[len(took)/2], took[len(took)-1]
		t.Logf("writes again after p50 %s, max %s, n %d", p50, worst, len(took))
		if p50 > 1200*time.Millisecond || worst > 2*time.Second {
			t.Errorf("too slow: %v", took)
		}
	})
}

func TestHandover(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		for i := range 10 {
			old := c.leader()
			c.mustPropose(old, put(orgID(i), "before"))
			start := time.Now()
			c.stop(old)
			if !slices.ContainsFunc(c.live(), func(nd *node) bool { return nd.q.Stats().State == "leader" }) {
				t.Error("a leader stopped before another led")
			}
			next := c.leader()
			c.mustPropose(next, put(orgID(i), "after"))
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("handover took %s", took)
			}
			c.start(old)
			c.converged()
		}
	})
}

// TestStopWithNobodyToTakeOver: the stop of a leader, or of one that just led,
// does not wait for peers that do not answer.
func TestStopWithNobodyToTakeOver(t *testing.T) {
	for _, state := range []memnet.State{memnet.Cut, memnet.Dark} {
		for _, leads := range []bool{true, false} {
			inFakeTime(t, 3, func(t *testing.T, c *cluster) {
				c.startAll()
				defer c.stopAll()
				old := c.leader()
				c.mustPropose(old, put(orgID(1), "before"))
				for _, nd := range c.nodes {
					if nd != old {
						c.net.Set(old.addr, nd.addr, state)
					}
				}
				start := time.Now()
				if !leads {
					old.q.awaitLeader(time.Second) // as if one had agreed to lead, and died
					if took := time.Since(start); took != time.Second {
						t.Errorf("waited %s for a leader", took)
					}
				}
				start = time.Now()
				c.stop(old)
				if took := time.Since(start); took > 2*time.Second {
					t.Errorf("the stop took %s", took)
				}
			})
		}
	}
}

func TestMinorityLeader(t *testing.T) {
	for _, state := range []memnet.State{memnet.Cut, memnet.Dark} {
		inFakeTime(t, 3, func(t *testing.T, c *cluster) {
			c.startAll()
			defer c.stopAll()
			old := c.leader()
			c.mustPropose(old, create(orgID(1), "kept"))
			changes := old.q.Leading()
			if !<-changes {
				t.Fatal("the leader does not say it leads")
			}
			for _, nd := range c.nodes {
				if nd != old {
					c.net.Set(old.addr, nd.addr, state)
				}
			}
			_, err := old.q.Propose(context.Background(), testShard, create(orgID(2), "lost"))
			if !errors.Is(err, controlplane.ErrUncertain) {
				t.Fatalf("proposal without a majority: %v", err)
			}
			if <-changes {
				t.Error("a leader without a majority still leads")
			}
			next := c.leaderBeside(old)
			c.mustPropose(next, create(orgID(2), "won"))
			if _, err := old.q.Propose(context.Background(), testShard, create(orgID(3), "x")); !errors.Is(err, controlplane.ErrNoLeader) {
				t.Errorf("proposal at the cut-off node: %v", err)
			}
			for _, nd := range c.nodes {
				c.net.Set(old.addr, nd.addr, 0)
			}
			c.converged()
			if got := nameOf(old.q, orgID(2)); got != "won" {
				t.Errorf("after healing the old leader has %q", got)
			}
		})
	}
}

func TestRefusedEntryConsumesSequence(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		// Refused before it is proposed: no sequence is used.
		c.mustPropose(lead, create(orgID(1), "a"))
		_, err := lead.q.Propose(context.Background(), testShard, create(orgID(1), "b"))
		var refusal *controlplane.RuleError
		if !errors.As(err, &refusal) || refusal.Code != controlplane.RuleConflict && refusal.Code != controlplane.RuleRevision {
			t.Fatalf("second create: %v", err)
		}
		// Ten at once: they all pass the check, one passes when applied.
		type result struct {
			out ledger.Outcome
			err error
		}
		results := make(chan result, 10)
		for range 10 {
			go func() {
				out, err := lead.q.Propose(context.Background(), testShard, create(orgID(2), "b"))
				results <- result{out, err}
			}()
		}
		won, atApply := 0, 0
		for range 10 {
			r := <-results
			switch {
			case r.err == nil:
				won++
			case !errors.As(r.err, &refusal):
				t.Errorf("concurrent create: %v", r.err)
			case len(r.out.Points) > 0:
				atApply++
			}
		}
		if won != 1 {
			t.Errorf("%d of 10 creates of one id succeeded", won)
		}
		out := c.mustPropose(lead, put(orgID(2), "c"))
		if got, want := out.Points[testShard].Seq, uint64(1+1+1+atApply+1); got != want {
			t.Errorf("the next entry is %d, want %d: %d were refused when applied", got, want, atApply)
		}
		c.converged()
	})
}

func TestRestartFromImageAndLog(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		for i := range 50 {
			c.mustPropose(lead, create(orgID(i), "x"))
		}
		time.Sleep(200 * time.Millisecond) // flushed
		for i := range 30 {
			c.mustPropose(lead, put(orgID(i), "y")) // some only in the log
		}
		c.converged()
		want := digests(lead.q)
		before := make(map[string]uint64)
		for _, nd := range c.nodes {
			nd.q.trans.Cut()
		}
		for _, nd := range c.nodes {
			before[nd.name] = nd.q.machine.Saved().Applied
			c.kill(nd)
		}
		c.startAll()
		lead = c.leader()
		c.converged()
		if got := digests(lead.q); got != want {
			t.Errorf("after the restart\n%s\nwas\n%s", got, want)
		}
		for _, nd := range c.nodes {
			// Nothing the image held was applied again.
			if n := len(nd.heard.all()); n > 30 {
				t.Errorf("%s replayed %d entries", nd.name, n)
			}
		}
		c.mustPropose(lead, put(orgID(1), "z"))
	})
}

func TestSnapshotToWipedFollower(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery = 5, 20, time.Second
		c.tune.SegmentBytes = 4 << 10 // the wal serves cut entries as long as their file lives
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		victim := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		c.kill(victim)
		stageHalf(t, lead)
		for i := range 60 {
			c.mustPropose(lead, create(orgID(i), "x"))
		}
		c.mustPropose(lead, []registry.Change{{Op: registry.OpDelete, Kind: registry.KindOrg, ID: orgID(7)}})
		time.Sleep(5 * time.Second)
		first, err := lead.q.store.FirstIndex()
		if err != nil || first < 40 {
			t.Fatalf("the log still begins at %d, %v", first, err)
		}
		wipe(t, victim.dir)
		c.start(victim)
		c.converged()
		if victim.heard.resetCount() == 0 {
			t.Error("OnApply was not told of the snapshot")
		}
		// What was staged came along: the rest of it is adopted alike.
		stageRest(t, lead)
		c.converged()
		victim.q.View(func(s *ledger.State) {
			if _, ok := s.Shard("eu"); !ok {
				t.Error("the adopted shard is missing")
			}
		})
		// And from the snapshot's image the node starts again.
		c.kill(victim)
		c.start(victim)
		c.converged()
		for i := range 30 { // its own snapshot, from a restored image
			c.mustPropose(c.leader(), put(orgID(i), "y"))
		}
		time.Sleep(5 * time.Second)
		c.converged()
	})
}

func TestLaggingFollowerIsReset(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery = 5, 20, time.Second
		c.tune.SegmentBytes = 4 << 10 // the wal serves cut entries as long as their file lives
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		victim := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		for i := range 10 {
			c.mustPropose(lead, create(orgID(i), "x"))
		}
		c.converged()
		for _, nd := range c.nodes {
			if nd != victim {
				c.net.Set(victim.addr, nd.addr, memnet.Cut)
			}
		}
		for i := range 60 {
			c.mustPropose(lead, put(orgID(i), "y"))
		}
		time.Sleep(5 * time.Second)
		for _, nd := range c.nodes {
			c.net.Set(victim.addr, nd.addr, 0)
		}
		waiting, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		var point controlplane.Point
		lead.q.View(func(s *ledger.State) { info, _ := s.Shard(testShard); point = info.Last })
		if err := victim.q.Wait(waiting, testShard, point); err != nil {
			t.Fatal(err)
		}
		c.converged()
	})
}

// A leader that was cut off with writes nobody else has comes back to a region
// whose log no longer reaches back to where they parted.
func TestSnapshotOverUncommittedTail(t *testing.T) {
	for _, extra := range []int{1, 4, 30} {
		inFakeTime(t, 3, func(t *testing.T, c *cluster) {
			c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery, c.tune.SegmentBytes = 1, 2, 100*time.Millisecond, 1<<10
			c.startAll()
			defer c.stopAll()
			old := c.leader()
			for i := range 10 {
				c.mustPropose(old, create(orgID(i), "x"))
			}
			c.converged()
			c.isolate(old, memnet.Cut)
			for i := range extra {
				go func() {
					_, err := old.q.Propose(context.Background(), testShard, create(orgID(100+i), "lost"))
					if err == nil {
						t.Error("a write without a majority was acknowledged")
					}
				}()
			}
			next := c.leaderBeside(old)
			for i := range 6 {
				c.mustPropose(next, put(orgID(i), "won"))
			}
			time.Sleep(time.Second)
			// This leader holds entries for the old one since before they were cut.
			if err := next.q.Transfer(t.Context(), ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			c.isolate(old, memnet.Open)
			c.converged()
			if got := nameOf(old.q, orgID(1)); got != "won" {
				t.Errorf("the old leader has %q", got)
			}
			if extra > 10 && c.restarts != 1 {
				t.Errorf("%d restarts, the case was not met", c.restarts)
			}
			c.mustPropose(c.leader(), put(orgID(1), "on"))
			c.converged()
		})
	}
}
