package importer

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/feedkit"
	"ringmain/internal/testkit/feedkit/hubkit"
)

// raise has the node's region apply the ownership protocol.
func raise(n *feedkit.Node) {
	n.T.Helper()
	if out := n.Apply(&registry.Command{Type: registry.CmdVersion, Version: registry.Version}); out.Err != nil {
		n.T.Fatal(out.Err)
	}
}

// TestCutReachesWatchers: a region loses the end of its copy to another home's
// history. Its keepers take a snapshot, and no revocation is taken back, also
// none that was in the end that lost.
func TestCutReachesWatchers(t *testing.T) {
	ca := feedkit.NewCA(t)
	fra := hubkit.Node(ca, "eu-fra", "f1", nil)
	keeper := feedkit.NewTwin()
	old := feedkit.NewHistory("any-us-east", "us-east", 2)
	members := []string{"us-east", "eu-fra", "ap-sg"}
	fra.Accept(old.Open("us-east", members...))
	raise(fra)
	keeper.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d1"), "eu-fra", nil, fra)
	ids := []string{old.NewKey(), old.NewKey(), old.NewKey()}
	for _, id := range ids {
		fra.Accept(old.Entry(registry.Change{Op: registry.OpPut, Record: old.Key(id)}))
	}
	won := *old // the history that ap-sg goes on from
	fra.Accept(old.Entry(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: ids[0], At: 1000}),
		old.Entry(registry.Change{Op: registry.OpPut, Record: old.Key(old.NewKey())}))
	keeper.Same(t, fra, old.Shard)
	before := 0
	keeper.Locked(func() { before = keeper.Resets })

	fra.Accept(won.OpenAs(2, "ap-sg", members...), won.Entry(registry.Change{Op: registry.OpPut, Record: won.Key(ids[1])}))
	keeper.Same(t, fra, old.Shard)
	keeper.Locked(func() {
		s := keeper.Shards[old.Shard]
		if keeper.Resets != before+1 {
			t.Errorf("%d resets, want one more than %d", keeper.Resets, before)
		}
		if s.Revoked[ids[0]] == 0 || s.Records[ids[0]].Key.Revoked == 0 {
			t.Error("a revocation was taken back")
		}
	})
	lost := 0
	fra.View(func(s *ledger.State) {
		for range s.Quarantine(old.Shard) {
			lost++
		}
	})
	if lost != 2 {
		t.Errorf("%d entries in quarantine, want 2", lost)
	}
}

// TestFormerHomeSendsNothing: once a region has promised to follow another, it
// offers the shard to no other region, and says so in its heartbeats.
func TestFormerHomeSendsNothing(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"), h.Next())
	raise(us)
	raise(fra)
	im := imports(ca, fra, "f1", nil, us)
	defer func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}()
	sameAs(t, fra, us, h.Shard)
	if out := us.Apply(&registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: h.Shard, Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}}}); out.Err != nil {
		t.Fatal(out.Err)
	}
	feedkit.Eventually(t, func() string {
		if lags := im.Lags(); len(lags) > 0 {
			return fmt.Sprintf("a sealed region still offers %v", lags)
		}
		return ""
	})
}

// TestConfirmedTravels: what the home knows confirmed, its followers come to know.
func TestConfirmedTravels(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"), h.Next(), h.Next())
	raise(us)
	raise(fra)
	im := imports(ca, fra, "f1", nil, us)
	defer func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}()
	sameAs(t, fra, us, h.Shard)
	if out := us.Apply(&registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: h.Shard, Epoch: h.At.Epoch, Seq: 2}}); out.Err != nil {
		t.Fatal(out.Err)
	}
	feedkit.Eventually(t, func() (why string) {
		fra.View(func(s *ledger.State) {
			if info, _ := s.Shard(h.Shard); info.Confirmed != 2 {
				why = fmt.Sprintf("confirmed through %d, want 2", info.Confirmed)
			}
		})
		return why
	})
}

// TestPoisonStaysAlone: a shard that cannot be imported, neither by entries nor
// as a whole, is isolated and shows; the source's other shards go on.
func TestPoisonStaysAlone(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	bad, good := feedkit.NewHistory("any-bad", "us-east", 2), feedkit.NewHistory("any-good", "us-east", 3)
	us.Accept(bad.Open("us-east", "us-east", "eu-fra"), good.Open("us-east", "us-east", "eu-fra"))
	reg := prometheus.NewRegistry()
	im := imports(ca, fra, "f1", func(c *Config) {
		c.Registerer = reg
		inner := c.Propose
		c.Propose = func(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error) {
			if cmd.Stage != nil && cmd.Stage.Shard == bad.Shard || cmd.Adopt != nil && cmd.Adopt.Shard == bad.Shard || len(cmd.Entries) > 0 && isOf(cmd.Entries[0], bad.Shard) {
				return ledger.Outcome{Err: &ledger.StructureError{Shard: bad.Shard, Reason: "it makes this version stumble"}}, nil
			}
			return inner(ctx, cmd)
		}
	}, us)
	for range 5 {
		us.Accept(bad.Next(), good.Next())
	}
	sameAs(t, fra, us, good.Shard)
	feedkit.Eventually(t, func() string {
		if n := testutil.ToFloat64(im.metrics.isolated.WithLabelValues("us-east", string(bad.Shard))); n != 1 {
			return "the shard is not shown as isolated"
		}
		return ""
	})
	us.Accept(good.Next())
	sameAs(t, fra, us, good.Shard)
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

func isOf(entry []byte, shard controlplane.Shard) bool {
	e, err := registry.DecodeEntry(entry)
	return err == nil && e.Shard == shard
}

// TestRetakeRepairs: a copy that drifted is replaced at the same point.
func TestRetakeRepairs(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	twin := *h
	first := h.Open("us-east", "us-east", "eu-fra")
	us.Accept(first)
	fra.Accept(twin.Open("us-east", "us-east", "eu-fra"))
	id := h.NewKey()
	us.Accept(h.Entry(registry.Change{Op: registry.OpPut, Record: h.Key(id)}))
	fra.Accept(twin.Entry(registry.Change{Op: registry.OpPut, Record: twin.Key("key_any_0000000000000042")})) // drifted
	raise(us)
	raise(fra)
	im := imports(ca, fra, "f1", nil, us)
	im.Retake("us-east", h.Shard)
	sameAs(t, fra, us, h.Shard)
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}
