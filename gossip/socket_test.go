package gossip_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"ringmain/gossip"
	"ringmain/gossip/bulletin"
	"ringmain/internal/testkit/clockkit"
	"ringmain/internal/testkit/netkit"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		// Memberlist's probes may outlive Shutdown by their own timeout.
		var leak error
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if leak = goleak.Find(); leak == nil {
				break
			}
		}
		if leak != nil {
			fmt.Fprintln(os.Stderr, leak)
			code = 1
		}
	}
	os.Exit(code)
}

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

func config(region, node string, lanSeeds, wanSeeds []string) gossip.Config {
	return gossip.Config{
		Cluster: "test", Region: region, Node: node, Role: "data",
		LANBind: "127.0.0.1:0", WANBind: "127.0.0.1:0",
		LANKey: key(region[0]), WANKey: key('w'), LANSeeds: lanSeeds, WANSeeds: wanSeeds,
		Digest: bulletin.Digest{Incarnation: uint64(time.Now().UnixMilli()), Ready: true},
	}
}

func open(t testing.TB, cfg gossip.Config) *gossip.Gossip {
	t.Helper()
	if os.Getenv("GOSSIP_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("self", cfg.Node)
	}
	g, err := gossip.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func waitFor(t testing.TB, limit time.Duration, what string, cond func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > limit {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(start)
}

func alive(g *gossip.Gossip, node string) bool {
	for _, n := range g.Table().Nodes {
		if n.Node == node {
			return n.Alive
		}
	}
	return false
}

func nobody(gs []*gossip.Gossip, node string) bool {
	for _, g := range gs {
		if alive(g, node) {
			return false
		}
	}
	return true
}

func everybody(gs []*gossip.Gossip, nodes int) bool {
	for _, g := range gs {
		n := 0
		for _, v := range g.Table().Nodes {
			if v.Alive {
				n++
			}
		}
		if n != nodes {
			return false
		}
	}
	return true
}

// region opens n nodes that know the first one.
func region(t testing.TB, name string, n int, wanSeeds []string) []*gossip.Gossip {
	t.Helper()
	var gs []*gossip.Gossip
	var lanSeeds []string
	for i := range n {
		g := open(t, config(name, fmt.Sprintf("%s-%d", name, i+1), lanSeeds, wanSeeds))
		if i == 0 {
			lanAddr, wanAddr := g.Addrs()
			lanSeeds = []string{lanAddr}
			if wanSeeds == nil {
				wanSeeds = []string{wanAddr}
			}
		}
		gs = append(gs, g)
	}
	return gs
}

// Five nodes of one region over real sockets, one of another: the killed node is
// known to be dead within 2.5 s at home and soon after elsewhere.
func TestKilledNodeOverSockets(t *testing.T) {
	home := region(t, "eu", 5, nil)
	_, wanSeed := home[0].Addrs()
	away := region(t, "us", 1, []string{wanSeed})[0]
	all := append(append([]*gossip.Gossip(nil), home...), away)
	waitFor(t, 15*time.Second, "everybody knows everybody", func() bool { return everybody(all, 6) })

	since := clockkit.Watch(t)
	if err := home[4].Kill(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, 20*time.Second, "death known at home", func() bool { return nobody(home[:4], "eu-5") })
	atHome := since()
	elsewhere := waitFor(t, 20*time.Second, "death known elsewhere", func() bool { return !alive(away, "eu-5") })
	t.Logf("known at home after %s, elsewhere %s later", atHome, elsewhere)
	if atHome > 2500*time.Millisecond {
		t.Errorf("known at home after %s", atHome)
	}
	// On a busy machine another may be suspected wrongly, and says that it lives:
	// TestDetection has time in which nobody is late.
	waitFor(t, 20*time.Second, "the others live", func() bool { return everybody(home[:4], 5) })
}

// A node that leaves is known to have left at once, and is not tried again.
func TestLeave(t *testing.T) {
	gs := region(t, "eu", 3, nil)
	waitFor(t, 15*time.Second, "everybody knows everybody", func() bool { return everybody(gs, 3) })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := gs[2].Leave(ctx); err != nil {
		t.Error(err)
	}
	if err := gs[2].Close(); err != nil {
		t.Error(err)
	}
	if err := gs[2].Leave(ctx); err != nil {
		t.Errorf("Leave after Close: %v", err)
	}
	since := clockkit.Watch(t)
	waitFor(t, 20*time.Second, "leave known", func() bool { return nobody(gs[:2], "eu-3") })
	if took := since(); took > time.Second {
		t.Errorf("known after %s", took)
	}
	waitFor(t, 20*time.Second, "counted as left", func() bool {
		l, w := gs[0].Members()
		return l == (gossip.Counts{Alive: 2, Left: 1}) && w == (gossip.Counts{Alive: 2, Left: 1})
	})
}

// A node that returns under its name, at once, with a clock that went back, at
// its former address or another one, is believed again.
func TestRestart(t *testing.T) {
	for _, moved := range []bool{false, true} {
		t.Run(fmt.Sprintf("moved=%v", moved), func(t *testing.T) {
			gs := region(t, "eu", 2, nil)
			lanSeed, wanSeed := gs[0].Addrs()
			cfg := config("eu", "eu-3", []string{lanSeed}, []string{wanSeed})
			cfg.LANBind, cfg.WANBind = netkit.Address(), netkit.Address()
			gs = append(gs, open(t, cfg))
			waitFor(t, 15*time.Second, "everybody knows everybody", func() bool { return everybody(gs, 3) })
			if err := gs[2].Kill(); err != nil {
				t.Fatal(err)
			}
			cfg.Digest.Incarnation = 1
			cfg.Digest.API = "the new one"
			if moved {
				cfg.LANBind, cfg.WANBind = netkit.Address(), netkit.Address()
			}
			again := open(t, cfg)
			took := waitFor(t, 20*time.Second, "restarted node known", func() bool {
				for _, n := range gs[0].Table().Nodes {
					if n.Node == "eu-3" {
						return n.Alive && n.API == "the new one"
					}
				}
				return false
			})
			t.Logf("known after %s", took)
			// Its former address is found dead meanwhile, which must not stick to it.
			time.Sleep(3 * time.Second)
			waitFor(t, 10*time.Second, "all there", func() bool { return everybody([]*gossip.Gossip{gs[0], gs[1], again}, 3) })
		})
	}
}

func TestPublishReachesOtherRegions(t *testing.T) {
	home := region(t, "eu", 2, nil)
	_, wanSeed := home[0].Addrs()
	away := region(t, "us", 1, []string{wanSeed})[0]
	waitFor(t, 15*time.Second, "everybody knows everybody", func() bool { return everybody([]*gossip.Gossip{home[0], home[1], away}, 3) })
	breakers := map[string]string{}
	for i := range 60 {
		breakers[fmt.Sprintf("upstream-%02d/%s", i, strings.Repeat("m", 30))] = "open"
	}
	home[1].Publish(func(d *bulletin.Digest) {
		d.Draining, d.Breakers, d.Node, d.Incarnation = true, breakers, "someone else", 1
	})
	took := waitFor(t, 3*time.Second, "drain known elsewhere", func() bool {
		for _, n := range away.Table().Nodes {
			if n.Node == "eu-2" {
				// As many breakers as fit into one packet.
				return n.Draining && len(n.Breakers) > 10 && len(n.Breakers) < 60
			}
		}
		return false
	})
	t.Logf("drain known after %s", took)
	for i := range uint32(50) {
		home[1].Publish(func(d *bulletin.Digest) { d.InFlight = i + 1 })
	}
	waitFor(t, 5*time.Second, "figures known elsewhere", func() bool {
		for _, n := range away.Table().Nodes {
			if n.Node == "eu-2" && n.InFlight == 50 {
				return n.Seq < 20 // gathered, not one digest each
			}
		}
		return false
	})
}

func TestForeignClusterNeverMerges(t *testing.T) {
	gs := region(t, "eu", 2, nil)
	lanSeed, wanSeed := gs[0].Addrs()
	foreign := config("eu", "eu-9", []string{lanSeed}, []string{wanSeed})
	foreign.Cluster = "other" // with the same keys
	stranger := config("eu", "eu-8", []string{lanSeed}, []string{wanSeed})
	stranger.LANKey, stranger.WANKey = key('x'), key('x')
	others := []*gossip.Gossip{open(t, foreign), open(t, stranger)}
	waitFor(t, 15*time.Second, "the two know each other", func() bool { return everybody(gs, 2) })
	time.Sleep(2500 * time.Millisecond) // two rounds of joining
	for _, node := range []string{"eu-8", "eu-9"} {
		if alive(gs[0], node) || alive(gs[1], node) {
			t.Errorf("%s, of another cluster or with other keys, was let in", node)
		}
	}
	for _, node := range []string{"eu-1", "eu-2"} {
		if alive(others[0], node) || alive(others[1], node) {
			t.Errorf("%s let in nodes of another cluster or with other keys", node)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	taken := open(t, config("eu", "eu-1", nil, nil))
	lanAddr, _ := taken.Addrs()
	for name, c := range map[string]struct {
		change func(*gossip.Config)
		want   string
	}{
		"no node":            {func(c *gossip.Config) { c.Node = "" }, "Node"},
		"short key":          {func(c *gossip.Config) { c.WANKey = c.WANKey[:16] }, "both need 32"},
		"no incarnation":     {func(c *gossip.Config) { c.Digest.Incarnation = 0 }, "incarnation"},
		"host name":          {func(c *gossip.Config) { c.LANBind = "localhost:1" }, "IP:port"},
		"port in use":        {func(c *gossip.Config) { c.LANBind = lanAddr }, "choose another address"},
		"WAN port in use":    {func(c *gossip.Config) { c.WANBind = lanAddr }, "wan group"},
		"advertised nowhere": {func(c *gossip.Config) { c.LANAdvertise = "eu-1" }, "IP:port"},
	} {
		cfg := config("eu", "eu-2", nil, nil)
		c.change(&cfg)
		if g, err := gossip.Open(context.Background(), cfg); err == nil {
			_ = g.Close()
			t.Errorf("%s: opened", name)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg := config("eu", "eu-2", nil, nil)
	cfg.LANBind = lanAddr
	if _, err := gossip.Open(context.Background(), cfg); !errors.Is(err, syscall.EADDRINUSE) {
		t.Logf("port in use: %v", err) // memberlist hides the cause
	}
}

func TestMetrics(t *testing.T) {
	registry := prometheus.NewRegistry()
	cfg := config("eu", "eu-1", nil, nil)
	cfg.Registerer = registry
	g := open(t, cfg)
	want := `
		# HELP ringmain_gossip_members Members of the group as this node sees them.
		# TYPE ringmain_gossip_members gauge
		ringmain_gossip_members{group="lan",state="alive"} 1
		ringmain_gossip_members{group="lan",state="dead"} 0
		ringmain_gossip_members{group="lan",state="left"} 0
		ringmain_gossip_members{group="wan",state="alive"} 1
		ringmain_gossip_members{group="wan",state="dead"} 0
		ringmain_gossip_members{group="wan",state="left"} 0
	`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "ringmain_gossip_members"); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 12 {
		t.Errorf("%d series, %v", n, err)
	}
	if err := g.Close(); err != nil {
		t.Error(err)
	}
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 0 {
		t.Errorf("after Close %d series, %v", n, err)
	}
}
