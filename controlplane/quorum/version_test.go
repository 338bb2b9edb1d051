package quorum

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// whole is all that the node's registry holds, tails and quarantines too.
func whole(t *testing.T, q *Quorum) string {
	t.Helper()
	var b bytes.Buffer
	q.View(func(s *ledger.State) {
		if err := s.Snapshot(&b); err != nil {
			t.Fatal(err)
		}
	})
	return b.String()
}

// A region goes over to the next cluster version only together.
func TestRaise(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		lead := c.leader()
		ctx := context.Background()
		c.mustPropose(lead, create(orgID(1), "before"))
		seal := &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: testShard, Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}}}
		if _, err := lead.q.ProposeCommand(ctx, seal); err == nil || !strings.Contains(err.Error(), "cluster version 2") {
			t.Errorf("a seal at version 1: %v", err)
		}
		if _, err := lead.q.ProposeCommand(ctx, &registry.Command{Type: registry.CmdVersion, Version: 2}); err == nil {
			t.Error("the version was raised without asking the nodes")
		}
		var follower *node
		for _, nd := range c.nodes {
			if nd != lead {
				follower = nd
			}
		}
		if err := follower.q.Raise(ctx); !errors.Is(err, controlplane.ErrNotLeader) {
			t.Errorf("raised by a follower: %v", err)
		}
		c.kill(follower)
		if err := lead.q.Raise(ctx); err == nil || !strings.Contains(err.Error(), follower.name) {
			t.Errorf("raised while a node is away: %v", err)
		}
		c.start(follower)
		lead = c.leader()
		if err := lead.q.Raise(ctx); err != nil {
			t.Fatal(err)
		}
		if err := lead.q.Raise(ctx); err != nil {
			t.Errorf("raised again: %v", err)
		}
		c.converged()
		if name := nameOf(lead.q, orgID(1)); name != "before" {
			t.Errorf("the record is called %q", name)
		}
		for _, nd := range c.nodes {
			c.eventually(10*time.Second, "version 2 at "+nd.name, func() (there bool) {
				nd.q.View(func(s *ledger.State) { there = s.Version() == registry.Version })
				return there
			})
		}
	})
}

// From opening to quarantine, through Raft and restarts of all nodes.
func TestHomeIsDeposed(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		c.startAll()
		defer c.stopAll()
		ctx := context.Background()
		lead := c.leader()
		restart := func() {
			t.Helper()
			before := whole(t, lead.q)
			same := func() {
				t.Helper()
				for _, nd := range c.nodes {
					c.eventually(10*time.Second, "an equal copy at "+nd.name, func() bool { return whole(t, nd.q) == before })
				}
			}
			same()
			time.Sleep(time.Second) // the image follows
			for _, nd := range c.nodes {
				c.kill(nd)
			}
			c.startAll()
			lead = c.leader()
			same()
		}
		do := func(cmd *registry.Command) ledger.Outcome {
			t.Helper()
			out, err := lead.q.ProposeCommand(ctx, cmd)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		c.mustPropose(lead, create(orgID(1), "mine"))
		if err := lead.q.Raise(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := lead.q.Propose(ctx, testShard, create(orgID(2), "early")); !errors.Is(err, controlplane.ErrNoHome) {
			t.Fatalf("a write before the opening is confirmed: %v", err)
		}
		one := controlplane.Epoch{Counter: 1, Region: testRegion}
		do(&registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: testShard, Epoch: one, Seq: 2}})
		restart()
		if _, err := lead.q.ProposeLevel(ctx, testShard, registry.LevelRegion, put(orgID(1), "lost")); err != nil {
			t.Fatal(err)
		}
		if _, err := lead.q.Propose(ctx, testShard, create(orgID(2), "lost")); err != nil {
			t.Fatal(err)
		}
		restart()
		two := controlplane.Epoch{Counter: 2, Region: "eu-fra"}
		do(&registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: testShard, Epoch: two}})
		if _, err := lead.q.Propose(ctx, testShard, create(orgID(3), "late")); !errors.Is(err, controlplane.ErrNoHome) {
			t.Fatalf("a write after the seal: %v", err)
		}
		entry := &registry.Entry{Shard: testShard, Epoch: two, Seq: 3, Prev: one,
			Changes: []registry.Change{{Op: registry.OpOpen, Home: "eu-fra", Members: []string{"eu-fra", testRegion}}}}
		enc, err := registry.EncodeEntry(entry)
		if err != nil {
			t.Fatal(err)
		}
		out := do(&registry.Command{Type: registry.CmdAccept, Sender: two, Entries: [][]byte{enc}})
		if len(out.Cut) != 1 || out.Cut[0].Count != 2 || nameOf(lead.q, orgID(1)) != "mine" || nameOf(lead.q, orgID(2)) != "" {
			t.Fatalf("cut: %+v", out.Cut)
		}
		if _, err := lead.q.Propose(ctx, testShard, create(orgID(3), "late")); !errors.Is(err, controlplane.ErrNotHome) {
			t.Fatalf("a write to another's shard: %v", err)
		}
		restart()
		var lost []*ledger.Quarantined
		lead.q.View(func(s *ledger.State) {
			for l := range s.Quarantine(testShard) {
				lost = append(lost, l)
			}
		})
		if len(lost) != 2 || lost[0].Level != registry.LevelRegion || lost[0].By != two || lost[0].Branch != (controlplane.Point{Epoch: one, Seq: 2}) {
			t.Fatalf("in quarantine: %+v", lost)
		}
		do(&registry.Command{Type: registry.CmdResolve, Resolve: &registry.Resolve{Shard: testShard, Verdict: registry.VerdictReplayed,
			Entries: []controlplane.Point{lost[0].Entry.Point(), lost[1].Entry.Point()}}})
		three := controlplane.Epoch{Counter: 3, Region: testRegion}
		do(&registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: testShard, Epoch: three}})
		take := do(&registry.Command{Type: registry.CmdTake, Take: &registry.Take{Shard: testShard, Epoch: three,
			Base: entry.Point(), Members: entry.Header().Members, Known: entry.Point()}})
		if take.Points[testShard] != (controlplane.Point{Epoch: three, Seq: 4}) {
			t.Fatalf("taken: %+v", take)
		}
		restart()
		do(&registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: testShard, Epoch: three, Seq: 4}})
		c.mustPropose(lead, create(orgID(3), "mine again"))
		restart()
	})
}
