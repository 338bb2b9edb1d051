package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	walfs "github.com/hashicorp/raft-wal/fs"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/memnet"
	"ringmain/internal/testkit/synckit"
)

// Entries that raft turns away were numbered already; those after them must
// not be refused for ever.
func TestNumberingAfterLostEntries(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		dark := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		c.net.Set(lead.addr, dark.addr, memnet.Dark)
		c.mustPropose(lead, create(orgID(1), "a"))
		handover := lead.q.raft.LeadershipTransferToServer(raft.ServerID(dark.name), raft.ServerAddress(dark.addr))
		time.Sleep(10 * time.Millisecond)
		var wg sync.WaitGroup
		for i := range 5 {
			wg.Go(func() {
				if _, err := lead.q.Propose(context.Background(), testShard, put(orgID(i), "lost")); !errors.Is(err, controlplane.ErrNoLeader) {
					t.Errorf("during a handover: %v", err)
				}
			})
		}
		wg.Wait()
		if err := handover.Error(); err == nil {
			t.Fatal("the handover to an unreachable node succeeded")
		}
		c.eventually(5*time.Second, "a write", func() bool {
			_, err := lead.q.Propose(context.Background(), testShard, put(orgID(1), "b"))
			return err == nil
		})
		c.net.Set(lead.addr, dark.addr, 0)
		c.converged()
		if nameOf(dark.q, orgID(1)) != "b" || nameOf(dark.q, orgID(2)) != "" {
			t.Error("an entry that was turned away took effect")
		}
	})
}

// Many callers share the log without waiting for one another.
func TestPipelining(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		var wg sync.WaitGroup
		for w := range 50 {
			wg.Go(func() {
				for i := range 10 {
					if _, err := lead.q.Propose(context.Background(), testShard, create(orgID(w*10+i), "x")); err != nil {
						t.Errorf("propose: %v", err)
					}
				}
			})
		}
		wg.Wait()
		c.converged()
		lead.q.View(func(s *ledger.State) {
			if n := len(s.List(registry.KindOrg, "", 0, nil)); n != 500 {
				t.Errorf("%d records of 500", n)
			}
		})
	})
}

func TestOverloadAndAbandon(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.tune.Queue = 4
		hang := new(atomic.Pointer[chan struct{}])
		c.adjust = func(cfg *Config) { cfg.logFiles = stalledDisk{walfs.New(), hang} }
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := lead.q.Propose(ctx, testShard, create(orgID(1), "x")); !errors.Is(err, context.Canceled) {
			t.Errorf("with an ended context: %v", err)
		}
		// With the disk at a stand the proposer is stuck once raft holds what it may.
		const many = 200
		release := make(chan struct{})
		hang.Store(&release)
		results := make(chan error, many)
		for i := range many {
			go func() {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				defer cancel()
				_, err := lead.q.Propose(ctx, testShard, create(orgID(100+i), "x"))
				results <- err
			}()
			time.Sleep(100 * time.Microsecond) // none is forgotten yet when the last comes
		}
		time.Sleep(time.Second)
		hang.Store(nil)
		close(release)
		time.Sleep(time.Second)
		overloaded, abandoned, unsure := 0, 0, 0
		for range many {
			switch err := <-results; {
			case errors.Is(err, controlplane.ErrOverloaded):
				overloaded++
			case errors.Is(err, controlplane.ErrUncertain):
				unsure++
			case errors.Is(err, context.DeadlineExceeded):
				abandoned++
			}
		}
		// Raft holds two batches of 64, and one entry at its door.
		if abandoned != c.tune.Queue || unsure > 2*64+2 || overloaded+abandoned+unsure != many {
			t.Errorf("%d overloaded, %d abandoned, %d uncertain of %d with room for %d", overloaded, abandoned, unsure, many, c.tune.Queue)
		}
		c.mustPropose(lead, create(orgID(1), "x"))
	})
}

func TestUnknownEntryHalts(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		lead := c.leader()
		c.mustPropose(lead, create(orgID(1), "a"))
		c.converged()
		want := digests(lead.q)
		future := lead.q.raft.ApplyLog(raft.Log{Data: []byte{99, 1, 2}}, 0)
		if err := future.Error(); err == nil {
			if _, halted := future.Response().(error); !halted {
				t.Errorf("raft applied it: %v", future.Response())
			}
		}
		// The leader halts, then whoever follows it; the last one is alone and
		// learns of no commit.
		halted := func() (n int) {
			for _, nd := range c.nodes {
				if errors.Is(nd.q.Err(), controlplane.ErrUnknownEntry) {
					n++
				}
			}
			return n
		}
		c.eventually(10*time.Second, "two halted nodes", func() bool { return halted() >= 2 })
		for _, nd := range c.nodes {
			if got := digests(nd.q); got != want {
				t.Errorf("%s went on after the entry", nd.name)
			}
			failed := nd.q.Err() != nil
			if failed {
				t.Logf("BADINPUT log: an unknown command version -> %s stops before it: %v", nd.name, nd.q.Err())
			}
			if err := nd.q.Close(context.Background()); failed != errors.Is(err, controlplane.ErrUnknownEntry) {
				t.Errorf("close %s: %v", nd.name, err)
			}
			nd.cancel()
		}
		// It is never skipped, not by a restart either.
		c.startAll()
		c.eventually(20*time.Second, "halted nodes", func() bool { return halted() >= 2 })
		for _, nd := range c.nodes {
			_ = nd.q.Close(context.Background())
			nd.cancel()
		}
	})
}

func TestWait(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		c.startAll()
		lead := c.leader()
		point := c.mustPropose(lead, create(orgID(1), "a")).Points[testShard]
		if err := lead.q.Wait(context.Background(), testShard, point); err != nil {
			t.Error(err)
		}
		point.Seq += 2
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := lead.q.Wait(ctx, testShard, point); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("past the end: %v", err)
		}
		done := make(chan error, 2)
		go func() { done <- lead.q.Wait(context.Background(), testShard, point) }()
		synckit.Wait()
		c.mustPropose(lead, put(orgID(1), "b"))
		c.mustPropose(lead, put(orgID(1), "c"))
		if err := <-done; err != nil {
			t.Error(err)
		}
		point.Seq++
		go func() { done <- lead.q.Wait(context.Background(), testShard, point) }()
		synckit.Wait()
		c.stopAll()
		if err := <-done; !errors.Is(err, controlplane.ErrNoLeader) {
			t.Errorf("when the node stops: %v", err)
		}
	})
}

func TestFoundingWaitsForExpected(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		all := c.peers
		late := c.nodes[2]
		c.adjust = func(cfg *Config) {
			cfg.Expect = 3
			if cfg.Node == late.name {
				cfg.Peers = all[1:] // it does not know the first yet
			}
		}
		c.start(late)
		time.Sleep(10 * time.Second)
		if s := late.q.Stats(); s.LastIndex != 0 || len(s.Members) != 0 {
			t.Fatalf("a node with too few peers founded a region: %+v", s)
		}
		c.start(c.nodes[0])
		c.start(c.nodes[1])
		defer c.stopAll()
		c.mustPropose(c.leader(), create(orgID(1), "a"))
		c.converged()
		if s := late.q.Stats(); len(s.Members) != 3 {
			t.Errorf("the late node knows %v", s.Members)
		}
	})
}

func TestAddressChange(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		c.mustPropose(c.leader(), create(orgID(1), "a"))
		c.stopAll()
		for i, nd := range c.nodes {
			nd.addr = fmt.Sprintf("10.9.9.%d:7000", i)
			c.peers[i].Addr = nd.addr
		}
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		c.mustPropose(lead, put(orgID(1), "b"))
		c.converged()
		if _, addr, _ := c.nodes[0].q.Leader(); addr != lead.addr {
			t.Errorf("the leader's address is %s, want %s", addr, lead.addr)
		}
		// Others, whose configuration knows nothing of it, hear of it in turn.
		for _, nd := range c.nodes {
			c.eventually(10*time.Second, "the new addresses at "+nd.name, func() bool { return slices.Equal(addresses(nd.q), c.peers) })
		}
	})
}

func TestMembersAreAdded(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		c.mustPropose(c.leader(), create(orgID(1), "a"))
		c.stopAll()
		members := []string{"ap-sg", "eu-fra", testRegion}
		c.adjust = func(cfg *Config) {
			cfg.Homes = []ShardSpec{{testShard, members}, {"us", []string{testRegion}}, {controlplane.ShardGlobal, []string{testRegion}}}
		}
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		out := c.mustPropose(lead, put(orgID(1), "b"))
		if p := out.Points[testShard]; p.Epoch.Counter != 2 || p.Seq != 4 {
			t.Errorf("after a member was added the next entry is at %v", p)
		}
		lead.q.View(func(s *ledger.State) {
			if info, _ := s.Shard(testShard); !slices.Equal(info.Members, members) {
				t.Errorf("members are %v", info.Members)
			}
			if info, ok := s.Shard("us"); !ok || info.Home != testRegion {
				t.Errorf("the new shard is %+v", info)
			}
			if info, _ := s.Shard(controlplane.ShardGlobal); len(info.Members) != 2 {
				t.Errorf("a member was put out: %v", info.Members)
			}
		})
		c.converged()
	})
}
