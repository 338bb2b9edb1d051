package feed

import (
	"context"
	"fmt"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// raise has the node's region apply the ownership protocol.
func (n *node) raise() {
	n.t.Helper()
	if out := n.apply(&registry.Command{Type: registry.CmdVersion, Version: registry.Version}); out.Err != nil {
		n.t.Fatal(out.Err)
	}
}

// TestCutReachesWatchers: a region loses the end of its copy to another home's
// history. Its keepers take a snapshot, and no revocation is taken back, also
// none that was in the end that lost.
func TestCutReachesWatchers(t *testing.T) {
	ca := newTestCA(t)
	fra := ca.node("eu-fra", "f1", nil)
	keeper := newTwin()
	old := newHistory("any-us-east", "us-east", 2)
	members := []string{"us-east", "eu-fra", "ap-sg"}
	fra.accept(old.open("us-east", members...))
	fra.raise()
	keeper.watch(t, ca.caller("eu-fra", identity.RoleData, "d1"), "eu-fra", nil, fra)
	ids := []string{old.newKey(), old.newKey(), old.newKey()}
	for _, id := range ids {
		fra.accept(old.entry(registry.Change{Op: registry.OpPut, Record: old.key(id)}))
	}
	won := *old // the history that ap-sg goes on from
	fra.accept(old.entry(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: ids[0], At: 1000}),
		old.entry(registry.Change{Op: registry.OpPut, Record: old.key(old.newKey())}))
	keeper.same(t, fra, old.shard)
	before := 0
	keeper.locked(func() { before = keeper.resets })

	fra.accept(won.openAs(2, "ap-sg", members...), won.entry(registry.Change{Op: registry.OpPut, Record: won.key(ids[1])}))
	keeper.same(t, fra, old.shard)
	keeper.locked(func() {
		s := keeper.shards[old.shard]
		if keeper.resets != before+1 {
			t.Errorf("%d resets, want one more than %d", keeper.resets, before)
		}
		if s.revoked[ids[0]] == 0 || s.records[ids[0]].Key.Revoked == 0 {
			t.Error("a revocation was taken back")
		}
	})
	lost := 0
	fra.View(func(s *registry.State) {
		for range s.Quarantine(old.shard) {
			lost++
		}
	})
	if lost != 2 {
		t.Errorf("%d entries in quarantine, want 2", lost)
	}
}

// openAs opens a later epoch.
func (h *history) openAs(counter uint64, home string, members ...string) *registry.Entry {
	e := h.open(home, members...)
	e.Epoch.Counter = counter
	h.at = e.Point()
	return e
}

// TestFormerHomeSendsNothing: once a region has promised to follow another, it
// offers the shard to no other region, and says so in its heartbeats.
func TestFormerHomeSendsNothing(t *testing.T) {
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	us.accept(h.open("us-east", "us-east", "eu-fra"), h.next())
	us.raise()
	fra.raise()
	im := ca.imports(fra, "f1", nil, us)
	defer func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}()
	fra.sameAs(t, us, h.shard)
	if out := us.apply(&registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: h.shard, Epoch: controlplane.Epoch{Counter: 2, Region: "eu-fra"}}}); out.Err != nil {
		t.Fatal(out.Err)
	}
	eventually(t, func() string {
		if lags := im.Lags(); len(lags) > 0 {
			return fmt.Sprintf("a sealed region still offers %v", lags)
		}
		return ""
	})
}

// TestConfirmedTravels: what the home knows confirmed, its followers come to know.
func TestConfirmedTravels(t *testing.T) {
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	us.accept(h.open("us-east", "us-east", "eu-fra"), h.next(), h.next())
	us.raise()
	fra.raise()
	im := ca.imports(fra, "f1", nil, us)
	defer func() {
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}()
	fra.sameAs(t, us, h.shard)
	if out := us.apply(&registry.Command{Type: registry.CmdConfirm, Confirm: &registry.Confirm{Shard: h.shard, Epoch: h.at.Epoch, Seq: 2}}); out.Err != nil {
		t.Fatal(out.Err)
	}
	eventually(t, func() (why string) {
		fra.View(func(s *registry.State) {
			if info, _ := s.Shard(h.shard); info.Confirmed != 2 {
				why = fmt.Sprintf("confirmed through %d, want 2", info.Confirmed)
			}
		})
		return why
	})
}

// TestPoisonStaysAlone: a shard that cannot be imported, neither by entries nor
// as a whole, is isolated and shows; the source's other shards go on.
func TestPoisonStaysAlone(t *testing.T) {
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	bad, good := newHistory("any-bad", "us-east", 2), newHistory("any-good", "us-east", 3)
	us.accept(bad.open("us-east", "us-east", "eu-fra"), good.open("us-east", "us-east", "eu-fra"))
	reg := prometheus.NewRegistry()
	im := ca.imports(fra, "f1", func(c *ImporterConfig) {
		c.Registerer = reg
		inner := c.Propose
		c.Propose = func(ctx context.Context, cmd *registry.Command) (registry.Outcome, error) {
			if cmd.Stage != nil && cmd.Stage.Shard == bad.shard || cmd.Adopt != nil && cmd.Adopt.Shard == bad.shard || len(cmd.Entries) > 0 && isOf(cmd.Entries[0], bad.shard) {
				return registry.Outcome{Err: &registry.StructureError{Shard: bad.shard, Reason: "it makes this version stumble"}}, nil
			}
			return inner(ctx, cmd)
		}
	}, us)
	for range 5 {
		us.accept(bad.next(), good.next())
	}
	fra.sameAs(t, us, good.shard)
	eventually(t, func() string {
		if n := testutil.ToFloat64(im.metrics.isolated.WithLabelValues("us-east", string(bad.shard))); n != 1 {
			return "the shard is not shown as isolated"
		}
		return ""
	})
	us.accept(good.next())
	fra.sameAs(t, us, good.shard)
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
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	twin := *h
	first := h.open("us-east", "us-east", "eu-fra")
	us.accept(first)
	fra.accept(twin.open("us-east", "us-east", "eu-fra"))
	id := h.newKey()
	us.accept(h.entry(registry.Change{Op: registry.OpPut, Record: h.key(id)}))
	fra.accept(twin.entry(registry.Change{Op: registry.OpPut, Record: twin.key("key_any_0000000000000042")})) // drifted
	us.raise()
	fra.raise()
	im := ca.imports(fra, "f1", nil, us)
	im.Retake("us-east", h.shard)
	fra.sameAs(t, us, h.shard)
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}
