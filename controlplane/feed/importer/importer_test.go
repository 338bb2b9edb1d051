package importer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/hub"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/feedkit"
	"ringmain/internal/testkit/feedkit/hubkit"
)

// imports starts an importer at to that watches sources.
func imports(ca *feedkit.CA, to *feedkit.Node, node string, set func(*Config), sources ...*feedkit.Node) *Importer {
	to.T.Helper()
	cfg := Config{Cluster: feedkit.Cluster, Region: to.Region, State: to, Propose: to.Propose, Pushed: hubkit.Hub(to).Board().Receive,
		BackoffMin: time.Millisecond, BackoffMax: 10 * time.Millisecond}
	clients := map[string]*http.Client{}
	addrs := map[string][]string{}
	for _, s := range sources {
		i := slices.IndexFunc(cfg.Sources, func(x Source) bool { return x.Region == s.Region })
		if i < 0 {
			clients[s.Region] = ca.CallerTo(s.Region, to.Region, identity.RoleControl, node).Client
			cfg.Sources = append(cfg.Sources, Source{Region: s.Region, HTTP: clients[s.Region]})
			i = len(cfg.Sources) - 1
		}
		addrs[s.Region] = append(addrs[s.Region], s.Addr)
		cfg.Sources[i].Targets = feed.Fixed(addrs[s.Region]...)
	}
	if set != nil {
		set(&cfg)
	}
	im, err := Open(context.Background(), cfg)
	if err != nil {
		to.T.Fatal(err)
	}
	return im
}

// sameAs waits until n holds shard as from does.
func sameAs(t *testing.T, n, from *feedkit.Node, shard controlplane.Shard) {
	t.Helper()
	feedkit.Eventually(t, func() string {
		var a, b [32]byte
		var ai, bi registry.ShardInfo
		from.View(func(s *ledger.State) { a = s.Digest(shard); ai, _ = s.Shard(shard) })
		n.View(func(s *ledger.State) { b = s.Digest(shard); bi, _ = s.Shard(shard) })
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
	ca := feedkit.NewCA(t)
	tune := func(c *hub.Config) { c.Ring = 64; c.SnapshotKeep = 20 * time.Millisecond }
	us, fra := hubkit.Node(ca, "us-east", "u1", tune), hubkit.Node(ca, "eu-fra", "f1", tune)
	all := []string{"us-east", "eu-fra"}
	global, anyUS, anyFra, eu := feedkit.NewHistory("any-global", "us-east", 1), feedkit.NewHistory("any-us-east", "us-east", 2), feedkit.NewHistory("any-eu-fra", "eu-fra", 3), feedkit.NewHistory("eu", "eu-fra", 4)
	us.Accept(global.Open("us-east", all...), anyUS.Open("us-east", all...))
	fra.Accept(anyFra.Open("eu-fra", all...), eu.Open("eu-fra", "eu-fra"))
	for range 200 { // more than the ring holds: the first import is a snapshot
		us.Accept(global.Next(), anyUS.Next())
		fra.Accept(anyFra.Next(), eu.Next())
	}
	small := func(c *Config) { c.BatchEntries, c.BatchBytes = 16, 4<<10 } // many chunks
	toFra := imports(ca, fra, "f1", small, us)
	toUS := imports(ca, us, "u1", small, fra)
	check := func() {
		t.Helper()
		sameAs(t, fra, us, "any-global")
		sameAs(t, fra, us, "any-us-east")
		sameAs(t, us, fra, "any-eu-fra")
	}
	check()
	rng := global.Rand
	for round := range 30 {
		switch round % 6 {
		case 1:
			us.Restart() // an empty ring
		case 2:
			fra.Drop.Store(2) // two commands vanish: a gap
		case 3:
			fra.Fail.Store(3)
			us.Fail.Store(1)
		case 4: // the importing region is away while the ring runs over
			if err := toFra.Close(); err != nil {
				t.Fatal(err)
			}
			for range 100 {
				us.Accept(global.Next())
			}
			toFra = imports(ca, fra, "f1", small, us)
		case 5:
			hubkit.Hub(us).Reset()
		}
		for range rng.IntN(40) {
			us.Accept(global.Next(), anyUS.Next())
			fra.Accept(anyFra.Next(), eu.Next())
		}
	}
	check()
	if _, ok := us.Position()["eu"]; ok {
		t.Error("a pinned shard left its jurisdiction")
	}
	if err := errors.Join(toFra.Close(), toUS.Close()); err != nil {
		t.Error(err)
	}
}

// TestAdoptReachesWatchers: what a region takes over as a whole reaches its
// keepers without a further entry.
func TestAdoptReachesWatchers(t *testing.T) {
	ca := feedkit.NewCA(t)
	tune := func(c *hub.Config) { c.Ring = 8 }
	us, fra := hubkit.Node(ca, "us-east", "u1", tune), hubkit.Node(ca, "eu-fra", "f1", tune)
	keeper := feedkit.NewTwin()
	keeper.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d1"), "eu-fra", nil, fra)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"))
	for range 3 { // the shard is new at first, known later
		for range 50 {
			us.Accept(h.Next())
		}
		im := imports(ca, fra, "f1", nil, us)
		sameAs(t, fra, us, h.Shard)
		keeper.Same(t, fra, h.Shard)
		if err := im.Close(); err != nil {
			t.Error(err)
		}
	}
	keeper.Locked(func() {
		if keeper.Resets != 3 {
			t.Errorf("%d resets", keeper.Resets)
		}
	})
}

// TestImportMovesBetweenTargets: the control node that is watched dies for good.
func TestImportMovesBetweenTargets(t *testing.T) {
	ca := feedkit.NewCA(t)
	a, b, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "us-east", "u2", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	e := h.Open("us-east", "us-east", "eu-fra")
	a.Accept(e)
	b.Accept(e)
	im := imports(ca, fra, "f1", nil, a, b)
	sameAs(t, fra, a, h.Shard)
	for _, n := range []*feedkit.Node{a, b} {
		if n.Watchers() > 0 {
			if err := hubkit.Hub(n).Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 20 {
		e := h.Next()
		for _, n := range []*feedkit.Node{a, b} {
			n.Accept(e)
		}
	}
	sameAs(t, fra, b, h.Shard)
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// TestImportBatches: what arrives together is proposed together.
func TestImportBatches(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"))
	registerer := prometheus.NewPedanticRegistry()
	const delay, together = 50 * time.Millisecond, 256
	im := imports(ca, fra, "f1", func(c *Config) { c.BatchDelay, c.BatchEntries, c.Registerer = delay, together, registerer }, us)
	sameAs(t, fra, us, h.Shard)
	fra.Calls.Store(0)
	begun := time.Now()
	for range 400 {
		us.Accept(h.Next())
	}
	sameAs(t, fra, us, h.Shard)
	took := time.Since(begun)
	if calls := fra.Calls.Load(); calls > 2+400/together+int64(took/delay) {
		t.Errorf("400 entries took %d commands in %v", calls, took)
	}
	feedkit.Eventually(t, func() string {
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

// TestImportBeginsAnewAtOnce: what could not be proposed is asked for again soon,
// and not only when the source has something more to say.
func TestImportBeginsAnewAtOnce(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", func(c *hub.Config) { c.Heartbeat = time.Minute }), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"))
	var refused atomic.Int64
	im := imports(ca, fra, "f1", func(c *Config) {
		c.Liveness = time.Minute
		c.Propose = func(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error) {
			if cmd.Type == registry.CmdAccept && refused.Add(1) <= 3 {
				return ledger.Outcome{}, controlplane.ErrOverloaded
			}
			return fra.Propose(ctx, cmd)
		}
	}, us)
	sameAs(t, fra, us, h.Shard)
	us.Accept(h.Next())
	sameAs(t, fra, us, h.Shard)
	if n := refused.Load(); n != 4 {
		t.Errorf("the entry was proposed %d times", n)
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// TestImportHalts: an entry of a later version stops the importer, for the
// node to halt; it is never skipped.
func TestImportHalts(t *testing.T) {
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"))
	im := imports(ca, fra, "f1", func(c *Config) {
		c.Propose = func(context.Context, *registry.Command) (ledger.Outcome, error) {
			return ledger.Outcome{Err: fmt.Errorf("entry: %w", controlplane.ErrUnknownEntry)}, nil
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
	ca := feedkit.NewCA(t)
	us, fra := hubkit.Node(ca, "us-east", "u1", nil), hubkit.Node(ca, "eu-fra", "f1", nil)
	h := feedkit.NewHistory("any-us-east", "us-east", 2)
	us.Accept(h.Open("us-east", "us-east", "eu-fra"))
	im := imports(ca, fra, "f1", nil, us)
	sameAs(t, fra, us, h.Shard)
	w := feedkit.NewTwin()
	w.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d1"), "eu-fra", func(c *feed.WatchConfig) { c.Verdicts = true }, fra)
	w.Same(t, fra, h.Shard)
	calls := fra.Calls.Load()
	v := feed.Verdict{Key: "key_any_0000000000000003", Revision: 2, MAC: [32]byte{2}}
	hubkit.Hub(us).Board().PushVerdicts([]feed.Verdict{v})
	hubkit.Hub(us).Board().PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: "key_any_0000000000000004", Shard: h.Shard, At: 7}})
	feedkit.Eventually(t, w.HasVerdict(v))
	feedkit.Eventually(t, w.HasHint("key_any_0000000000000004"))
	if fra.Calls.Load() != calls {
		t.Error("something was proposed")
	}
	if err := im.Close(); err != nil {
		t.Error(err)
	}
}

// A region's node must not depose another home by sending in its name.
func TestRegionsSpeakForThemselves(t *testing.T) {
	for _, typ := range []feed.FrameType{feed.FrameReset, feed.FrameEnd, feed.FrameEntry} {
		w := &importWatch{src: Source{Region: "us-east"}, current: &session{ctx: t.Context()}}
		err := w.take(&feed.Frame{Type: typ, Shard: "any-eu-fra", Sender: controlplane.Epoch{Counter: 9, Region: "eu-fra"}})
		if err == nil || !strings.Contains(err.Error(), "in the name of") {
			t.Errorf("frame type %d of another region's epoch: %v", typ, err)
		}
		t.Logf("BADINPUT feed: a region that sends a shard in another home's name (frame %d) -> the stream ends: %v", typ, err)
	}
}
