package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/internal/testkit/memnet"
)

// newcomer is one more node, which lists itself beside those that were there.
// The others' configuration does not know it.
func (c *cluster) newcomer(name string) *node {
	dir := filepath.Join(filepath.Dir(c.nodes[0].dir), name)
	nd := &node{name: name, addr: fmt.Sprintf("10.0.0.%s:7000", name[1:]), dir: dir}
	peers := append(slices.Clone(c.peers), Peer{nd.name, nd.addr})
	nd.peers = peers
	c.nodes = append(c.nodes, nd)
	return nd
}

func (c *cluster) member(name string) Member {
	c.t.Helper()
	for _, m := range c.leader().q.Members() {
		if m.Node == name {
			return m
		}
	}
	return Member{}
}

func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	var refusal *controlplane.RuleError
	if !errors.As(err, &refusal) {
		t.Errorf("not refused: %v", err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestAddReplaceRemove(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery = 5, 20, time.Second
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		for i := range 60 {
			c.mustPropose(lead, create(orgID(i), "x"))
		}
		time.Sleep(3 * time.Second)
		c4 := c.newcomer("c4")
		c.start(c4)
		time.Sleep(2 * time.Second)
		if c4.q.Stats().Problem == "" {
			t.Error("a node without a region does not say so")
		}
		follower := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		if err := follower.q.Add(t.Context(), Peer{"c4", c4.addr}, false); !errors.Is(err, controlplane.ErrNotLeader) {
			t.Errorf("added at a follower: %v", err)
		}
		for range 2 { // twice does nothing more
			if err := lead.q.Add(t.Context(), Peer{"c4", c4.addr}, false); err != nil {
				t.Fatal(err)
			}
		}
		refused(t, lead.q.Add(t.Context(), Peer{"c5", c4.addr}, false), "c4")
		refused(t, lead.q.Add(t.Context(), Peer{"c4", "10.0.0.9:1"}, false), "remove it first")
		refused(t, lead.q.Add(t.Context(), Peer{"c5", "nowhere"}, false), "host:port")
		c.converged()
		start := time.Now()
		if m := c.member("c4"); m.Role != RoleJoining {
			t.Errorf("at first: %+v", m)
		}
		c.eventually(30*time.Second, "a vote for c4", func() bool { return c.member("c4").Role == RoleVoter })
		if took := time.Since(start); took < 9*time.Second || took > 15*time.Second {
			t.Errorf("it votes after %s", took)
		}
		// Its predecessor goes: with c4 in its place the region can lose another.
		gone := c.nodes[(slices.Index(c.nodes, lead)+2)%3]
		if err := lead.q.Remove(t.Context(), gone.name, false); err != nil {
			t.Fatal(err)
		}
		if err := lead.q.Remove(t.Context(), gone.name, false); err != nil {
			t.Errorf("removed again: %v", err)
		}
		time.Sleep(10 * time.Second)
		if term := lead.q.Stats().Term; gone.q.Stats().Problem == "" || term != 2 {
			t.Errorf("the removed node says %q, and the term is %d", gone.q.Stats().Problem, term)
		}
		c.stop(gone)
		c.nodes = slices.DeleteFunc(c.nodes, func(nd *node) bool { return nd == gone })
		c.kill(lead)
		c.eventually(10*time.Second, "a leader among those left", func() bool {
			return slices.ContainsFunc(c.live(), func(nd *node) bool { return nd.q.IsLeader() })
		})
		c.start(lead)
		c.converged()
		var names []string
		for _, m := range c.leader().q.Members() {
			names = append(names, m.Node)
		}
		slices.Sort(names)
		if len(names) != 3 || slices.Contains(names, gone.name) {
			t.Errorf("members %v", names)
		}
	})
}

// Founders that all answer do not wait for a leader that nobody can be yet.
func TestFoundsAtOnce(t *testing.T) {
	for _, n := range []int{1, 3, 5} {
		inFakeTime(t, n, func(t *testing.T, c *cluster) {
			defer c.stopAll()
			c.startAll()
			begun := time.Now()
			lead := c.leader()
			if took := time.Since(begun); took > 300*time.Millisecond || lead.q.Stats().Term != 2 {
				t.Errorf("of %d, %s leads after %v, in term %d", n, lead.name, took, lead.q.Stats().Term)
			}
			c.mustPropose(lead, create(orgID(1), "a"))
			c.converged()
		})
	}
}

func addresses(q *Quorum) (all []Peer) {
	for _, m := range q.Members() {
		all = append(all, Peer{m.Node, m.Addr})
	}
	return all
}

// A follower and then the leader get other addresses, one of which was
// another's. Nobody but the node that moves has its configuration changed.
// A node that comes back under its name, with an empty disk, has kept up with
// nothing yet, however long the one before it did.
func TestAddedAgainWaitsAnew(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		c.mustPropose(lead, create(orgID(1), "x"))
		time.Sleep(20 * time.Second)
		nd := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		if err := lead.q.Remove(t.Context(), nd.name, false); err != nil {
			t.Fatal(err)
		}
		c.stop(nd)
		if err := os.RemoveAll(nd.dir); err != nil {
			t.Fatal(err)
		}
		c.start(nd)
		if err := lead.q.Add(t.Context(), Peer{nd.name, nd.addr}, false); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		c.eventually(30*time.Second, "its vote", func() bool { return c.member(nd.name).Role == RoleVoter })
		if took := time.Since(start); took < 9*time.Second {
			t.Errorf("it votes after %s", took)
		}
		c.converged()
	})
}

func TestMove(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		i := slices.Index(c.nodes, lead)
		c2, c3 := c.nodes[(i+1)%3], c.nodes[(i+2)%3]
		move := func(nd *node, addr string) {
			t.Helper()
			nd.addr, nd.peers = addr, []Peer{{nd.name, addr}}
			for _, p := range c.peers {
				if p.Node != nd.name && p.Addr != addr {
					nd.peers = append(nd.peers, p)
				}
			}
			c.start(nd)
			for range 2 { // twice does nothing more
				if err := c.leader().q.Move(t.Context(), Peer{nd.name, addr}); err != nil {
					t.Fatal(err)
				}
			}
			c.mustPropose(c.leader(), put(orgID(1), addr))
			c.converged()
		}
		before := c2.addr
		c.stop(c2)
		move(c2, "10.0.1.2:7000")
		c.stop(c3)
		move(c3, before)
		c.stop(lead)
		move(lead, "10.0.1.1:7000")
		// What is in the logs is enough for those that know other addresses only.
		c.stopAll()
		c.startAll()
		c.mustPropose(c.leader(), put(orgID(1), "again"))
		c.converged()
		want := map[string]string{c2.name: c2.addr, c3.name: before, lead.name: lead.addr}
		for _, p := range addresses(c2.q) {
			if want[p.Node] != p.Addr {
				t.Errorf("%s is at %s, want %s", p.Node, p.Addr, want[p.Node])
			}
		}
		now := c.leader().q
		refused(t, now.Move(t.Context(), Peer{"c9", "10.0.0.9:7000"}), "c9", "add it")
		refused(t, now.Move(t.Context(), Peer{c2.name, c3.addr}), c3.name)
		refused(t, now.Move(t.Context(), Peer{c2.name, "nowhere"}), "host:port")
	})
}

func TestReaderNeverVotes(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		r := c.newcomer("c4")
		r.peers = []Peer{{"c4", r.addr}} // its first contact is wrong: it must not take itself for a region
		c.adjust = func(cfg *Config) { cfg.Reader = cfg.Node == "c4" }
		c.start(r)
		time.Sleep(5 * time.Second)
		if s := r.q.Stats(); s.LastIndex != 0 || len(s.Members) != 0 {
			t.Fatalf("it founded a region: %+v", s)
		}
		if err := lead.q.Add(t.Context(), Peer{"c4", r.addr}, true); err != nil {
			t.Fatal(err)
		}
		for i := range 20 {
			c.mustPropose(lead, create(orgID(i), "x"))
			time.Sleep(time.Second)
		}
		c.converged()
		if m := c.member("c4"); m.Role != RoleReader || m.Addr != r.addr || m.Steady.IsZero() {
			t.Errorf("after 20 s: %+v", m)
		}
		refused(t, lead.q.Transfer(t.Context(), "c4"), "voter")
		refused(t, lead.q.Add(t.Context(), Peer{"c4", r.addr}, false), "remove it first")
		// It counts for nothing: with both other voters away nothing is read or
		// written, and it does not stand for election.
		for _, nd := range c.nodes[:3] {
			if nd != lead {
				c.net.Set(lead.addr, nd.addr, memnet.Cut)
				c.net.Set(r.addr, nd.addr, memnet.Cut)
			}
		}
		if err := lead.q.Read(t.Context()); err == nil {
			t.Error("a reader's word was taken for a voter's")
		}
		time.Sleep(5 * time.Second)
		if r.q.IsLeader() || lead.q.IsLeader() {
			t.Error("somebody leads with one vote of three")
		}
		for _, nd := range c.nodes[:3] {
			c.net.Set(lead.addr, nd.addr, 0)
			c.net.Set(r.addr, nd.addr, 0)
		}
		if err := c.leader().q.Remove(t.Context(), "c4", false); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRemoveKeepsMajority(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		i := slices.Index(c.nodes, lead)
		dead, other := c.nodes[(i+1)%3], c.nodes[(i+2)%3]
		time.Sleep(2 * time.Second)
		refused(t, lead.q.Remove(t.Context(), lead.name, false), "transfer")
		refused(t, lead.q.Remove(t.Context(), lead.name, true), "transfer")
		c.kill(dead)
		time.Sleep(5 * time.Second)
		// Two of two would be needed without the one that answers.
		refused(t, lead.q.Remove(t.Context(), other.name, false), "2 voters", "1 answer")
		if err := lead.q.Remove(t.Context(), dead.name, false); err != nil {
			t.Fatalf("the dead one: %v", err)
		}
		if err := lead.q.Remove(t.Context(), other.name, false); err != nil {
			t.Fatalf("down to one: %v", err)
		}
		refused(t, lead.q.Remove(t.Context(), lead.name, true), "last voter")
		c.stop(other)
		c.nodes = []*node{lead}
		c.mustPropose(lead, create(orgID(1), "alone"))
	})
}

// The leader is replaced: its successor is asked to remove it before it had
// time to look who answers.
func TestRemoveAfterTransfer(t *testing.T) {
	inFakeTime(t, 4, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		old := c.leader()
		to := c.nodes[(slices.Index(c.nodes, old)+1)%4]
		time.Sleep(5 * time.Second)
		if err := old.q.Transfer(t.Context(), to.name); err != nil {
			t.Fatal(err)
		}
		c.eventually(time.Second, "the successor", to.q.IsLeader)
		if err := to.q.Remove(t.Context(), old.name, false); err != nil {
			t.Errorf("all four answer, and it says: %v", err)
		}
	})
}

func TestRemoveDead(t *testing.T) {
	for _, on := range []bool{false, true} {
		inFakeTime(t, 5, func(t *testing.T, c *cluster) {
			if on {
				c.tune.RemoveDead = 10 * time.Minute
			}
			c.tune.Commit = 100 * time.Millisecond
			c.startAll()
			defer c.stopAll()
			lead := c.leader()
			for range 2 { // to four, to three; never to two
				victim := c.nodes[(slices.Index(c.nodes, lead)+1)%len(c.nodes)]
				c.kill(victim)
				c.nodes = slices.DeleteFunc(c.nodes, func(nd *node) bool { return nd == victim })
			}
			time.Sleep(9 * time.Minute)
			if n := len(lead.q.Members()); n != 5 {
				t.Errorf("%d members after 9 minutes", n)
			}
			time.Sleep(3 * time.Minute)
			if n := len(lead.q.Members()); n != 3 && on || n != 5 && !on {
				t.Errorf("%d members after 12 minutes, cleaning: %v", n, on)
			}
			if !on {
				return
			}
			victim := c.nodes[(slices.Index(c.nodes, lead)+1)%len(c.nodes)]
			c.kill(victim)
			c.nodes = slices.DeleteFunc(c.nodes, func(nd *node) bool { return nd == victim })
			time.Sleep(15 * time.Minute)
			if n := len(c.leader().q.Members()); n != 3 {
				t.Errorf("%d members: a region of two was left", n)
			}
		})
	}
}

// Two of three lose their disks while the third is away: they must not begin a
// rival of the region that it remembers.
func TestEmptyNodesFoundNoRival(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		c.mustPropose(c.leader(), create(orgID(1), "kept"))
		c.converged()
		want := digests(c.nodes[0].q)
		c.stopAll()
		wipe(t, c.nodes[1].dir)
		wipe(t, c.nodes[2].dir)
		c.start(c.nodes[1])
		c.start(c.nodes[2])
		time.Sleep(time.Minute)
		if c.nodes[1].q.IsLeader() || c.nodes[2].q.IsLeader() {
			t.Fatal("a rival region was founded")
		}
		c.start(c.nodes[0])
		defer c.stopAll()
		c.leader()
		c.converged()
		if got := digests(c.nodes[1].q); got != want {
			t.Errorf("they hold\n%s\nwant\n%s", got, want)
		}
	})
}

func TestTransfer(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		for i := range 12 {
			old := c.leader()
			to := c.nodes[(slices.Index(c.nodes, old)+1)%3]
			start := time.Now()
			if err := old.q.Transfer(t.Context(), to.name); err != nil {
				t.Fatal(err)
			}
			if next := c.leader(); next != to {
				t.Fatalf("%s leads, asked for was %s", next.name, to.name)
			}
			c.mustPropose(to, put(orgID(i), "after"))
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Errorf("transfer took %s", took)
			}
			c.converged()
			c.eventually(time.Second, "word of the new leader", func() bool { _, _, ok := old.q.Leader(); return ok })
			if err := old.q.Transfer(t.Context(), to.name); !errors.Is(err, controlplane.ErrNotLeader) {
				t.Errorf("from a follower: %v", err)
			}
		}
		lead := c.leader()
		refused(t, lead.q.Transfer(t.Context(), "c9"), "c9")
		if err := lead.q.Transfer(t.Context(), lead.name); err != nil || !lead.q.IsLeader() {
			t.Errorf("to itself: %v", err)
		}
		// To one that cannot be reached: it leads on.
		to := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		c.net.Set(lead.addr, to.addr, memnet.Cut)
		if err := lead.q.Transfer(t.Context(), to.name); !errors.Is(err, controlplane.ErrNoLeader) {
			t.Errorf("to one that is cut off: %v", err)
		}
		c.net.Set(lead.addr, to.addr, 0)
		if now := c.leader(); now != lead {
			t.Errorf("%s leads, after a transfer that failed", now.name)
		}
		c.mustPropose(lead, put(orgID(1), "on"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := lead.q.Transfer(ctx, ""); !errors.Is(err, context.Canceled) || c.leader() != lead {
			t.Errorf("given up: %v", err)
		}
	})
}

// TestTransferToOneThatIsAway: asked as often as one likes to hand over to a node
// that is away and lacks entries, the leader goes on taking writes.
func TestTransferToOneThatIsAway(t *testing.T) {
	for name, how := range map[string]memnet.State{"cut": memnet.Cut, "silent": memnet.Dark} {
		t.Run(name, func(t *testing.T) {
			inFakeTime(t, 3, func(t *testing.T, c *cluster) {
				c.startAll()
				defer c.stopAll()
				lead := c.leader()
				away := c.nodes[slices.IndexFunc(c.nodes, func(nd *node) bool { return nd != lead })]
				c.isolate(away, how)
				for i := range 4 {
					c.mustPropose(lead, put(orgID(i), "meanwhile"))
					if err := lead.q.Transfer(t.Context(), away.name); !errors.Is(err, controlplane.ErrNoLeader) {
						t.Errorf("handed over: %v", err)
					}
					time.Sleep(5 * time.Second)
				}
				c.mustPropose(lead, put(orgID(5), "after"))
				c.isolate(away, memnet.Open)
				c.converged()
				if err := lead.q.Transfer(t.Context(), away.name); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// BenchmarkTransfer is from the call to the next acknowledged write elsewhere,
// under a load of writes.
func BenchmarkTransfer(b *testing.B) {
	c := newTCPCluster(b, 3)
	c.startAll()
	defer c.stopAll()
	var took []time.Duration
	for i := range b.N {
		old := c.leader()
		c.writeAgain(put(orgID(i), "before"))
		to := c.nodes[(slices.Index(c.nodes, old)+1)%3]
		start := time.Now()
		if err := old.q.Transfer(context.Background(), to.name); err != nil {
			b.Fatal(err)
		}
		c.writeAgain(put(orgID(i), "after"))
		took = append(took, time.Since(start))
		time.Sleep(20 * time.Millisecond)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
}
