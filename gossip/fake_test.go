package gossip_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"ringmain/gossip"
	"ringmain/gossip/bulletin"
	"ringmain/internal/testkit/synckit"
)

// fake is a cluster in fake time.
type fake struct {
	t        *testing.T
	lan, wan *memnet
	nodes    map[string]*gossip.Gossip
	lanSeeds map[string][]string
	wanSeeds []string
}

func newFake(t *testing.T) *fake {
	return &fake{t: t, lan: newMemnet(time.Millisecond), wan: newMemnet(80 * time.Millisecond),
		nodes: map[string]*gossip.Gossip{}, lanSeeds: map[string][]string{}}
}

// cut severs both groups' ways between nodes.
func (f *fake) cut(cut func(from, to string) bool) {
	f.lan.setCut(cut)
	f.wan.setCut(cut)
}

func (f *fake) open(region, node string) *gossip.Gossip {
	f.t.Helper()
	lanHost, wanHost := f.lan.host(node), f.wan.host(node)
	cfg := config(region, node, slices.Clone(f.lanSeeds[region]), slices.Clone(f.wanSeeds))
	cfg.Digest.Incarnation = uint64(time.Now().UnixMilli())
	g, err := gossip.Open(context.Background(), gossip.WithTransport(cfg, func(lan bool) memberlist.NodeAwareTransport {
		if lan {
			return lanHost
		}
		return wanHost
	}))
	if err != nil {
		f.t.Fatal(err)
	}
	// The first node of a region is its LAN seed, the first of all the WAN's.
	if f.lanSeeds[region] == nil {
		f.lanSeeds[region] = []string{lanHost.addr()}
	}
	f.wanSeeds = append(f.wanSeeds, wanHost.addr())[:1]
	f.nodes[node] = g
	return g
}

func (f *fake) region(name string, n int) {
	for i := range n {
		f.open(name, fmt.Sprintf("%s-%d", name, i+1))
	}
}

func (f *fake) close() {
	for _, g := range f.nodes {
		if err := g.Close(); err != nil {
			f.t.Error(err)
		}
	}
	time.Sleep(time.Minute) // memberlist's probes end with their timeouts
}

func (f *fake) kill(node string) {
	if err := f.nodes[node].Kill(); err != nil {
		f.t.Error(err)
	}
	delete(f.nodes, node)
}

// until polls in fake time and returns how long it took.
func (f *fake) until(limit time.Duration, what string, cond func() bool) time.Duration {
	f.t.Helper()
	start := time.Now()
	for !cond() {
		if time.Since(start) > limit {
			f.t.Errorf("not within %s: %s\n%s", limit, what, f.disagreement())
			return time.Since(start)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return time.Since(start)
}

// agree says that every node sees exactly the nodes that run alive.
func (f *fake) agree() bool {
	for _, g := range f.nodes {
		n := 0
		for _, v := range g.Table().Nodes {
			if v.Alive != (f.nodes[v.Node] != nil) {
				return false
			}
			n++
		}
		if n < len(f.nodes) {
			return false
		}
	}
	return true
}

// disagreement says who is wrong about whom.
func (f *fake) disagreement() string {
	var b strings.Builder
	for self, g := range f.nodes {
		seen := map[string]bool{}
		for _, v := range g.Table().Nodes {
			seen[v.Node] = v.Alive
		}
		for name := range f.nodes {
			if !seen[name] {
				fmt.Fprintf(&b, "%s takes %s for dead\n", self, name)
			}
			delete(seen, name)
		}
		for name, alive := range seen {
			if alive {
				fmt.Fprintf(&b, "%s takes %s for alive\n", self, name)
			}
		}
	}
	return b.String()
}

func (f *fake) in(region string) (gs []*gossip.Gossip) {
	for name, g := range f.nodes {
		if strings.HasPrefix(name, region+"-") {
			gs = append(gs, g)
		}
	}
	return gs
}

func all(gs []*gossip.Gossip, node string, want bool) bool {
	return !slices.ContainsFunc(gs, func(g *gossip.Gossip) bool { return alive(g, node) != want })
}

func bubble(t *testing.T, f func(t *testing.T, c *fake)) {
	synckit.Test(t, func(t *testing.T) {
		c := newFake(t)
		defer c.close()
		f(t, c)
	})
}

// Every node of a region in turn dies: known at home within 2.5 s, in the other
// region a second later, and nobody else is taken for dead meanwhile.
func TestDetection(t *testing.T) {
	for round := range 10 {
		bubble(t, func(t *testing.T, c *fake) {
			c.region("eu", 5)
			c.region("us", 3)
			c.until(20*time.Second, "everybody agrees", c.agree)
			time.Sleep(time.Duration(round) * 130 * time.Millisecond)
			victim := fmt.Sprintf("eu-%d", 1+round%5)
			c.kill(victim)
			home := c.until(2500*time.Millisecond, "death known at home", func() bool { return all(c.in("eu"), victim, false) })
			away := c.until(time.Second, "death known elsewhere", func() bool { return all(c.in("us"), victim, false) })
			if !c.agree() {
				t.Error("somebody else is taken for dead")
			}
			t.Logf("home %s, elsewhere %s later", home, away)
		})
	}
}

// Half an hour with a tenth of all packets and connections lost: nobody dies.
func TestNoFalseDeath(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("eu", 5)
		c.region("us", 2)
		c.until(20*time.Second, "everybody agrees", c.agree)
		var n atomic.Uint64
		c.cut(func(string, string) bool { return n.Add(1)%10 == 0 })
		for range 30 * 60 / 5 {
			time.Sleep(5 * time.Second)
			if !c.agree() {
				t.Fatal("somebody is taken for dead")
			}
		}
	})
}

// A region is cut off for ten minutes, longer than memberlist remembers the
// dead. After the cut both sides find each other again without help.
func TestHealedPartition(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("us", 2)
		c.region("eu", 3)
		c.region("ap", 2)
		c.until(20*time.Second, "everybody agrees", c.agree)
		c.cut(func(from, to string) bool { return strings.HasPrefix(from, "eu-") != strings.HasPrefix(to, "eu-") })
		c.until(20*time.Second, "both sides see the cut", func() bool {
			return all(c.in("us"), "eu-1", false) && all(c.in("us"), "eu-3", false) && all(c.in("ap"), "eu-2", false) &&
				all(c.in("eu"), "us-1", false) && all(c.in("eu"), "ap-2", false)
		})
		if !all(c.in("eu"), "eu-2", true) || !all(c.in("us"), "ap-1", true) {
			t.Error("nodes on one side are taken for dead")
		}
		time.Sleep(10 * time.Minute)
		c.cut(func(string, string) bool { return false })
		took := c.until(30*time.Second, "everybody agrees again", c.agree)
		t.Logf("healed after %s", took)
	})
}

// The same inside a region: the minority that was cut off does not tell the
// other regions that the majority died.
func TestMinorityDoesNotSpeak(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("us", 2)
		c.region("eu", 5)
		c.until(20*time.Second, "everybody agrees", c.agree)
		// Only eu's LAN breaks; the WAN does not.
		c.lan.setCut(func(from, to string) bool { return (from == "eu-5") != (to == "eu-5") })
		c.until(5*time.Second, "eu-5 known dead at home", func() bool {
			for name, g := range c.nodes {
				if strings.HasPrefix(name, "eu-") && name != "eu-5" && alive(g, "eu-5") {
					return false
				}
			}
			return true
		})
		c.until(10*time.Second, "eu-5 sees nobody", func() bool { return !alive(c.nodes["eu-5"], "eu-1") && !alive(c.nodes["eu-5"], "eu-4") })
		for range 100 {
			time.Sleep(50 * time.Millisecond)
			for _, n := range []string{"eu-2", "eu-3", "eu-4"} {
				if !all(c.in("us"), n, true) {
					t.Fatalf("us believes the minority that %s is dead", n)
				}
			}
		}
		// The majority's word was refuted by eu-5 itself over the WAN.
		c.until(5*time.Second, "us hears eu-5's objection", func() bool { return all(c.in("us"), "eu-5", true) })
		c.lan.setCut(func(string, string) bool { return false })
		c.until(30*time.Second, "everybody agrees again", c.agree)
	})
}

// All of a region dies: its nodes are known dead elsewhere, and a newcomer that
// hears of them later does not take them for alive.
func TestRegionDies(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("us", 3)
		c.region("eu", 3)
		c.until(20*time.Second, "everybody agrees", c.agree)
		for _, n := range []string{"eu-1", "eu-2", "eu-3"} {
			c.kill(n)
		}
		took := c.until(15*time.Second, "known elsewhere", c.agree)
		t.Logf("known after %s", took)
		time.Sleep(3 * time.Minute)
		c.open("us", "us-4")
		c.until(10*time.Second, "the newcomer agrees", c.agree)
		time.Sleep(2 * time.Minute)
		if !c.agree() {
			t.Error("the dead came back")
		}
		time.Sleep(40 * time.Minute)
		if n := len(c.nodes["us-1"].Table().Nodes); n != 4 {
			t.Errorf("%d nodes are still remembered", n)
		}
	})
}

// Observers see a region's ingress fail and return.
func TestObservers(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		for _, r := range []string{"us", "eu", "ap"} {
			c.region(r, 3)
		}
		c.until(20*time.Second, "everybody agrees", c.agree)
		ctx, cancel := context.WithCancel(context.Background())
		defer func() { cancel(); synckit.Wait() }()
		var euDown, sick atomic.Bool
		for name, g := range c.nodes {
			own, _, _ := strings.Cut(name, "-")
			path := func(region string) func(context.Context) error {
				return func(ctx context.Context) error {
					time.Sleep(60 * time.Millisecond)
					if region == "eu" && euDown.Load() || name == "us-1" && sick.Load() {
						return errors.New("unreachable")
					}
					return nil
				}
			}
			silent := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
			go gossip.Observe(ctx, gossip.ObserveConfig{
				Targets: func() (ts []gossip.Target) {
					for _, r := range []string{"us", "eu", "ap"} {
						if r != own {
							ts = append(ts, gossip.Target{Region: r, Paths: []func(context.Context) error{silent, path(r)}})
						}
					}
					return ts
				},
				Claim: g.Claim,
			})
		}
		up := func(region string, want bool) bool {
			for _, g := range c.nodes {
				v, ok := g.Table().Regions[region]
				if !ok || v.Up != want || v.Observers != 6 {
					return false
				}
			}
			return true
		}
		c.until(10*time.Second, "all regions up", func() bool { return up("us", true) && up("eu", true) && up("ap", true) })
		sick.Store(true)
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if !up("eu", true) || !up("ap", true) {
				t.Fatal("one sick observer took a region down")
			}
		}
		sick.Store(false)
		time.Sleep(10 * time.Second)

		euDown.Store(true)
		first := c.until(3*time.Second, "first publishes eu down", func() bool {
			for _, g := range c.nodes {
				if !g.Table().Regions["eu"].Up {
					return true
				}
			}
			return false
		})
		last := c.until(time.Second, "all publish eu down", func() bool { return up("eu", false) })
		t.Logf("down published by the first after %s, by the last %s later", first, last)
		euDown.Store(false)
		took := c.until(20*time.Second, "eu up again", func() bool { return up("eu", true) })
		if took < 15*time.Second {
			t.Errorf("up again after %s, want 15 s clean", took)
		}
	})
}

func TestChangedIsCoalesced(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("eu", 2)
		c.until(20*time.Second, "everybody agrees", c.agree)
		time.Sleep(5 * time.Second)
		changed := c.nodes["eu-1"].Changed()
		select {
		case <-changed:
		default:
			t.Fatal("no change was told of")
		}
		select {
		case <-changed:
			t.Error("changes are not coalesced")
		default:
		}
		c.nodes["eu-2"].Publish(func(d *bulletin.Digest) { d.Draining = true })
		start := time.Now()
		<-changed
		if took := time.Since(start); took > time.Second {
			t.Errorf("told after %s", took)
		}
	})
}

// Two live nodes of one name: both are told, again and again, and the restart of
// one node at another address is not taken for that.
func TestNameTaken(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("eu", 3)
		c.until(20*time.Second, "everybody agrees", c.agree)
		var told atomic.Int32
		cfg := config("eu", "eu-2", c.lanSeeds["eu"], c.wanSeeds)
		cfg.OnConflict = func(err error) {
			if errors.Is(err, gossip.ErrNameTaken) {
				told.Add(1)
			}
		}
		lanHost, wanHost := c.lan.host("twin"), c.wan.host("twin")
		twin, err := gossip.Open(context.Background(), gossip.WithTransport(cfg, func(lan bool) memberlist.NodeAwareTransport {
			if lan {
				return lanHost
			}
			return wanHost
		}))
		if err != nil {
			t.Fatal(err)
		}
		c.nodes["twin"] = twin
		took := c.until(2*time.Minute, "the twin is told", func() bool { return told.Load() > 0 })
		t.Logf("told after %s", took)

		lan, wan := c.nodes["eu-1"].Members()
		if lan.Alive != 3 || wan.Alive != 3 {
			t.Errorf("members %v %v", lan, wan)
		}
	})
}
