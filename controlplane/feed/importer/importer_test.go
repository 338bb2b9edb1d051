package feed

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// imports starts an importer at to that watches sources.
func (c *testCA) imports(to *node, node string, set func(*ImporterConfig), sources ...*node) *Importer {
	c.t.Helper()
	cfg := ImporterConfig{Cluster: testCluster, Region: to.region, State: to, Propose: to.propose, Hub: to.hub.Load(),
		BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond}
	clients := map[string]*http.Client{}
	addrs := map[string][]string{}
	for _, s := range sources {
		i := slices.IndexFunc(cfg.Sources, func(x ImportSource) bool { return x.Region == s.region })
		if i < 0 {
			clients[s.region] = c.caller(to.region, identity.RoleControl, node).Client
			cfg.Sources = append(cfg.Sources, ImportSource{Region: s.region, HTTP: clients[s.region]})
			i = len(cfg.Sources) - 1
		}
		addrs[s.region] = append(addrs[s.region], s.addr)
		cfg.Sources[i].Targets = Fixed(addrs[s.region]...)
	}
	if set != nil {
		set(&cfg)
	}
	im, err := OpenImporter(context.Background(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	return im
}

// sameAs waits until n holds shard as from does.
func (n *node) sameAs(t *testing.T, from *node, shard controlplane.Shard) {
	t.Helper()
	eventually(t, func() string {
		var a, b [32]byte
		var ai, bi registry.ShardInfo
		from.View(func(s *registry.State) { a = s.Digest(shard); ai, _ = s.Shard(shard) })
		n.View(func(s *registry.State) { b = s.Digest(shard); bi, _ = s.Shard(shard) })
		if a != b || ai.Last != bi.Last || !slices.Equal(ai.Members, bi.Members) || ai.Home != bi.Home || ai.Epoch != bi.Epoch {
			return fmt.Sprintf("shard %s: at the source %+v, here %+v; same digest: %v", shard, ai, bi, a == b)
		}
		return ""
	})
}

// TestImport: two regions, each the home of some shards. The source dies and
// restarts, falls behind, loses what the ring held; proposals are refused and
// lost. The copies end equal, a pinned shard stays where it belongs, and no
// entry is imported twice.
func TestImport(t *testing.T) {
	ca := newTestCA(t)
	tune := func(c *HubConfig) { c.Ring = 64; c.SnapshotKeep = 20 * time.Millisecond }
	us, fra := ca.node("us-east", "u1", tune), ca.node("eu-fra", "f1", tune)
	all := []string{"us-east", "eu-fra"}
	global, anyUS, anyFra, eu := newHistory("any-global", "us-east", 1), newHistory("any-us-east", "us-east", 2), newHistory("any-eu-fra", "eu-fra", 3), newHistory("eu", "eu-fra", 4)
	us.accept(global.open("us-east", all...), anyUS.open("us-east", all...))
	fra.accept(anyFra.open("eu-fra", all...), eu.open("eu-fra", "eu-fra"))
	for range 200 { // more than the ring holds: the first import is a snapshot
		us.accept(global.next(), anyUS.next())
		fra.accept(anyFra.next(), eu.next())
	}
	small := func(c *ImporterConfig) { c.BatchEntries, c.BatchBytes = 16, 4<<10 } // many chunks
	toFra := ca.imports(fra, "f1", small, us)
	toUS := ca.imports(us, "u1", small, fra)
	check := func() {
		t.Helper()
		fra.sameAs(t, us, "any-global")
		fra.sameAs(t, us, "any-us-east")
		us.sameAs(t, fra, "any-eu-fra")
	}
	check()
	rng := global.rng
	for round := range 30 {
		switch round % 6 {
		case 1:
			us.restart() // an empty ring
		case 2:
			fra.drop.Store(2) // two commands vanish: a gap
		case 3:
			fra.fail.Store(3)
			us.fail.Store(1)
		case 4: // the importing region is away while the ring runs over
			if err := toFra.Close(); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				us.accept(global.next())
			}
			toFra = ca.imports(fra, "f1", small, us)
		case 5:
			us.hub.Load().Reset()
		}
		for range rng.IntN(40) {
			us.accept(global.next(), anyUS.next())
			fra.accept(anyFra.next(), eu.next())
		}
	}
	check()
	if _, ok := us.position()["eu"]; ok {
		t.Error("a pinned shard left its jurisdiction")
	}
	if err := errors.Join(toFra.Close(), toUS.Close()); err != nil {
		t.Error(err)
	}
}

// TestAdoptReachesWatchers: what a region takes over as a whole reaches its
// keepers without a further entry.
func TestAdoptReachesWatchers(t *testing.T) {
	ca := newTestCA(t)
	tune := func(c *HubConfig) { c.Ring = 8 }
	us, fra := ca.node("us-east", "u1", tune), ca.node("eu-fra", "f1", tune)
	keeper := newTwin()
	keeper.watch(t, ca.caller("eu-fra", identity.RoleData, "d1"), "eu-fra", nil, fra)
	h := newHistory("any-us-east", "us-east", 2)
	us.accept(h.open("us-east", "us-east", "eu-fra"))
	for range 3 { // the shard is new at first, known later
		for range 50 {
			us.accept(h.next())
		}
		im := ca.imports(fra, "f1", nil, us)
		fra.sameAs(t, us, h.shard)
		keeper.same(t, fra, h.shard)
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
	keeper.locked(func() {
		if keeper.resets != 3 {
			t.Errorf("%d resets", keeper.resets)
		}
	})
}

// TestImportMovesBetweenTargets: the control node that is watched dies for good.
func TestImportMovesBetweenTargets(t *testing.T) {
	ca := newTestCA(t)
	a, b, fra := ca.node("us-east", "u1", nil), ca.node("us-east", "u2", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	e := h.open("us-east", "us-east", "eu-fra")
	a.accept(e)
	b.accept(e)
	im := ca.imports(fra, "f1", nil, a, b)
	fra.sameAs(t, a, h.shard)
	for _, n := range []*node{a, b} {
		if n.watchers() > 0 {
			if err := n.hub.Load().Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 20 {
		e := h.next()
		for _, n := range []*node{a, b} {
			n.accept(e)
		}
	}
	fra.sameAs(t, b, h.shard)
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// TestImportBatches: what arrives together is proposed together.
func TestImportBatches(t *testing.T) {
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	us.accept(h.open("us-east", "us-east", "eu-fra"))
	registerer := prometheus.NewPedanticRegistry()
	im := ca.imports(fra, "f1", func(c *ImporterConfig) { c.BatchDelay = 50 * time.Millisecond; c.Registerer = registerer }, us)
	fra.sameAs(t, us, h.shard)
	fra.calls.Store(0)
	for range 400 {
		us.accept(h.next())
	}
	fra.sameAs(t, us, h.shard)
	if calls := fra.calls.Load(); calls > 40 {
		t.Errorf("400 entries took %d commands", calls)
	}
	eventually(t, func() string {
		err := testutil.GatherAndCompare(registerer, strings.NewReader(`
# HELP ringmain_feed_lag_entries Entries of another region's shard that this region has not applied yet.
# TYPE ringmain_feed_lag_entries gauge
ringmain_feed_lag_entries{region="us-east",shard="any-us-east"} 0
`), "ringmain_feed_lag_entries")
		if err != nil {
			return err.Error()
		}
		return ""
	})
	if n, err := testutil.GatherAndCount(registerer, "ringmain_feed_age_seconds"); n != 1 || err != nil {
		t.Errorf("%d age metrics, %v", n, err)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
	if n, _ := testutil.GatherAndCount(registerer); n != 0 {
		t.Errorf("%d metrics are left after Close", n)
	}
}

// TestImportHalts: an entry of a later version stops the importer, for the
// node to halt; it is never skipped.
func TestImportHalts(t *testing.T) {
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	us.accept(h.open("us-east", "us-east", "eu-fra"))
	im := ca.imports(fra, "f1", func(c *ImporterConfig) {
		c.Propose = func(context.Context, *registry.Command) (registry.Outcome, error) {
			return registry.Outcome{Err: fmt.Errorf("entry: %w", controlplane.ErrUnknownEntry)}, nil
		}
	}, us)
	select {
	case <-im.Done():
	case <-time.After(10 * time.Second):
		t.Error("still running")
	}
	if err := im.Close(); !errors.Is(err, controlplane.ErrUnknownEntry) {
		t.Error(err)
	}
}

// TestImportCarriesVerdicts: a region hears verdicts and hints with the feed,
// and gives them to its own watchers, not to Raft.
func TestImportCarriesVerdicts(t *testing.T) {
	ca := newTestCA(t)
	us, fra := ca.node("us-east", "u1", nil), ca.node("eu-fra", "f1", nil)
	h := newHistory("any-us-east", "us-east", 2)
	us.accept(h.open("us-east", "us-east", "eu-fra"))
	im := ca.imports(fra, "f1", nil, us)
	fra.sameAs(t, us, h.shard)
	w := newTwin()
	w.watch(t, ca.caller("eu-fra", identity.RoleData, "d1"), "eu-fra", func(c *WatchConfig) { c.Verdicts = true }, fra)
	w.same(t, fra, h.shard)
	calls := fra.calls.Load()
	v := Verdict{Key: "key_any_0000000000000003", Revision: 2, MAC: [32]byte{2}}
	us.hub.Load().PushVerdicts([]Verdict{v})
	us.hub.Load().PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: "key_any_0000000000000004", Shard: h.shard, At: 7}})
	eventually(t, w.hasVerdict(v))
	eventually(t, w.hasHint("key_any_0000000000000004"))
	if fra.calls.Load() != calls {
		t.Error("something was proposed")
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// A region's node must not depose another home by sending in its name.
func TestRegionsSpeakForThemselves(t *testing.T) {
	for _, typ := range []FrameType{FrameReset, FrameEnd, FrameEntry} {
		w := &importWatch{src: ImportSource{Region: "us-east"}, current: &session{ctx: t.Context()}}
		err := w.take(&Frame{Type: typ, Shard: "any-eu-fra", Sender: controlplane.Epoch{Counter: 9, Region: "eu-fra"}})
		if err == nil || !strings.Contains(err.Error(), "in the name of") {
			t.Errorf("frame type %d of another region's epoch: %v", typ, err)
		}
		t.Logf("BADINPUT feed: a region that sends a shard in another home's name (frame %d) -> the stream ends: %v", typ, err)
	}
}
