package route

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/view"
)

// world holds regions us-east, us-west, eu-fra (drained if asked) and ap-sg.
func world(t *testing.T, drained string, route *registry.Route, ups ...*registry.Upstream) *view.View {
	t.Helper()
	recs := []*registry.Record{{Kind: registry.KindRoute, Meta: registry.Meta{ID: "rte"}, Route: route}}
	for _, u := range ups {
		recs = append(recs, &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_" + u.Name}, Upstream: u})
	}
	for name, j := range map[string]string{"us-east": "us", "us-west": "us", "eu-fra": "eu", "ap-sg": "apac"} {
		state := "active"
		if name == drained {
			state = "drained"
		}
		recs = append(recs, &registry.Record{Kind: registry.KindRegion, Meta: registry.Meta{ID: "reg_" + name}, Region: &registry.Region{Name: name, Jurisdiction: j, State: state}})
	}
	store := view.New(view.Config{})
	frames := []*feed.Frame{{Type: feed.FrameReset, Shard: controlplane.ShardGlobal}}
	for _, rec := range recs {
		rec.Meta.Shard = controlplane.ShardGlobal
		b, err := registry.EncodeRecord(rec)
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, &feed.Frame{Type: feed.FrameRecord, Shard: controlplane.ShardGlobal, Record: b})
	}
	frames = append(frames, &feed.Frame{Type: feed.FrameEnd, Shard: controlplane.ShardGlobal, Point: controlplane.Point{Epoch: controlplane.Epoch{Counter: 1}, Seq: 1}})
	for _, f := range frames {
		if err := store.Apply(f); err != nil {
			t.Fatal(err)
		}
	}
	return store.View()
}

func up(name, region string, change ...func(*registry.Upstream)) *registry.Upstream {
	u := &registry.Upstream{Name: name, Region: region, Provider: "p", Dialect: "openai", Simulated: true}
	for _, c := range change {
		c(u)
	}
	return u
}

func target(name string, order, weight uint32) registry.Target {
	return registry.Target{Upstream: name, Model: "m", Order: order, Weight: weight}
}

var everyone = link.Peers{
	Nodes: []link.Peer{
		{Region: "us-west", Node: "w1", Alive: true, Ready: true}, {Region: "us-west", Node: "w2", Alive: false, Ready: true},
		{Region: "eu-fra", Node: "e1", Alive: true, Ready: true, InFlight: 9, Capacity: 10}, {Region: "eu-fra", Node: "e2", Alive: true, Ready: true, InFlight: 1, Capacity: 10},
		{Region: "ap-sg", Node: "a1", Alive: true, Ready: true}, {Region: "ap-sg", Node: "a2", Alive: true, Ready: true, Draining: true}, {Region: "ap-sg", Node: "a3", Alive: true},
	},
	Regions: []link.PeerRegion{{Region: "us-west", Up: true}, {Region: "eu-fra", Up: true}, {Region: "ap-sg", Up: true}},
}

func stops(list []Stop) string {
	var names []string
	for _, s := range list {
		if s.Upstream != nil {
			names = append(names, s.Upstream.Upstream.Name)
		} else {
			names = append(names, s.Peer.Node)
		}
	}
	return strings.Join(names, " ")
}

func TestPlan(t *testing.T) {
	ups := []*registry.Upstream{
		up("l1", "us-east"), up("l2", "us-east"), up("w", "us-west"), up("e", "eu-fra"), up("a", "ap-sg"),
		up("other", "us-east", func(u *registry.Upstream) { u.Provider = "q" }),
		up("off", "us-east", func(u *registry.Upstream) { u.Disabled = true }),
		up("claude", "us-east", func(u *registry.Upstream) { u.Dialect = "anthropic" }),
		up("real", "us-east", func(u *registry.Upstream) { u.Simulated = false }),
		up("nowhere", "mars"),
	}
	rtt := map[string]time.Duration{"eu-fra": 80 * time.Millisecond, "us-west": 60 * time.Millisecond}
	for _, c := range []struct {
		name          string
		targets       []registry.Target
		change        func(*Input)
		drained       string
		local, remote string
		code          string
	}{
		{name: "local by order, remote by distance, unmeasured last",
			targets: []registry.Target{target("l2", 2, 0), target("l1", 1, 0), target("a", 0, 0), target("e", 0, 0), target("w", 9, 0)},
			local:   "l1 l2", remote: "w1 e2 e1 a1"},
		{name: "hint first", change: func(in *Input) { in.Hint = "eu-fra" },
			targets: []registry.Target{target("l1", 0, 0), target("e", 0, 0), target("w", 0, 0)}, local: "l1", remote: "e2 e1 w1"},
		{name: "published down goes last", change: func(in *Input) {
			in.Peers = func() link.Peers {
				p := everyone
				p.Regions = []link.PeerRegion{{Region: "us-west", Up: false}}
				return p
			}
		}, targets: []registry.Target{target("w", 0, 0), target("e", 0, 0)}, remote: "e2 e1 w1"},
		{name: "drained is left out", drained: "us-west", targets: []registry.Target{target("w", 0, 0), target("e", 0, 0)}, remote: "e2 e1"},
		{name: "pinned", change: func(in *Input) { in.Decision.Pin = "us" },
			targets: []registry.Target{target("e", 0, 0), target("w", 0, 0), target("l1", 0, 0)}, local: "l1", remote: "w1"},
		{name: "pinned elsewhere", change: func(in *Input) { in.Decision.Pin = "eu" }, targets: []registry.Target{target("l1", 0, 0)}, code: "residency_unavailable"},
		{name: "first provider only", targets: []registry.Target{target("l1", 0, 0), target("other", 1, 0)}, local: "l1"},
		{name: "another provider where allowed", change: func(in *Input) { in.Decision.CrossProvider = true },
			targets: []registry.Target{target("l1", 0, 0), target("other", 1, 0)}, local: "l1 other"},
		{name: "the first provider does not change when it is off",
			targets: []registry.Target{target("off", 0, 0), target("other", 1, 0)}, code: "no_healthy_route"},
		{name: "other dialect", targets: []registry.Target{target("claude", 0, 0)}, code: "model_not_found"},
		{name: "test key", change: func(in *Input) { in.Decision.Class = "test" }, targets: []registry.Target{target("real", 0, 0), target("l1", 1, 0)}, local: "l1"},
		{name: "test key, real only", change: func(in *Input) { in.Decision.Class = "test" }, targets: []registry.Target{target("real", 0, 0)}, code: "model_not_found"},
		{name: "dangling", targets: []registry.Target{target("missing", 0, 0)}, code: "model_not_found"},
		{name: "region that does not exist", targets: []registry.Target{target("nowhere", 0, 0)}, code: "no_healthy_route"},
		{name: "forwarded here", change: func(in *Input) { in.LocalOnly = true }, targets: []registry.Target{target("l1", 0, 0), target("e", 0, 0)}, local: "l1"},
		{name: "forwarded here, nothing here", change: func(in *Input) { in.LocalOnly = true }, targets: []registry.Target{target("e", 0, 0)}, code: "no_healthy_route"},
		{name: "unknown model", change: func(in *Input) { in.Model = "x" }, targets: []registry.Target{target("l1", 0, 0)}, code: "model_not_found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			in := Input{
				View: world(t, c.drained, &registry.Route{Model: "m", Targets: c.targets}, ups...), Decision: &policy.Decision{Class: "live"},
				Model: "m", Dialect: "openai", Region: "us-east", Jurisdiction: "us", Random: rng.Uint64,
				Peers: func() link.Peers { return everyone },
				RTT:   func(r string) (time.Duration, bool) { d, ok := rtt[r]; return d, ok },
			}
			if c.change != nil {
				c.change(&in)
			}
			p, refused := New(in)
			if c.code != "" {
				if refused == nil || refused.Code != c.code {
					t.Fatalf("%v, want %s", refused, c.code)
				}
				return
			}
			if refused != nil {
				t.Fatal(refused)
			}
			remote := ""
			if !in.LocalOnly {
				remote = stops(p.Remote())
			}
			if got := stops(p.Local()); got != c.local || remote != c.remote {
				t.Errorf("local %q remote %q, want %q %q", got, remote, c.local, c.remote)
			}
		})
	}
}

func TestHint(t *testing.T) {
	v := world(t, "eu-fra", &registry.Route{Model: "m", Targets: []registry.Target{target("l", 0, 0), target("w", 0, 0), target("e", 0, 0)}}, up("l", "us-east"), up("w", "us-west"), up("e", "eu-fra"))
	for _, c := range []struct{ hint, pin, executed, want string }{
		{"", "", "us-east", ""},
		{"us-east", "", "us-east", "honoured"},
		{"us-west", "", "us-west", "honoured"},
		{"us-west", "", "us-east", "unhealthy"},
		{"us-west", "", "", "unhealthy"},
		{"eu-fra", "", "us-east", "unhealthy"}, // drained
		{"ap-sg", "", "us-east", "policy"},     // serves no such model
		{"eu-fra", "us", "us-east", "policy"},
	} {
		p, refused := New(Input{View: v, Decision: &policy.Decision{Pin: c.pin}, Model: "m", Dialect: "openai", Hint: c.hint, Region: "us-east", Jurisdiction: "us"})
		if refused != nil {
			t.Fatal(refused)
		}
		if got := p.Hint(c.executed); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
		if got, want := p.HintAway(), c.hint == "us-west"; got != want {
			t.Errorf("%+v: away %t", c, got)
		}
	}
}

func TestWeights(t *testing.T) {
	v := world(t, "", &registry.Route{Model: "m", Targets: []registry.Target{target("one", 0, 1), target("three", 0, 3)}}, up("one", "us-east"), up("three", "us-east"))
	rng := rand.New(rand.NewPCG(3, 4))
	first := map[string]int{}
	const n = 20_000
	for range n {
		p, refused := New(Input{View: v, Decision: &policy.Decision{}, Model: "m", Dialect: "openai", Region: "us-east", Jurisdiction: "us", Random: rng.Uint64})
		if refused != nil {
			t.Fatal(refused)
		}
		first[p.Local()[0].Upstream.Upstream.Name]++
	}
	if share := float64(first["three"]) / n; share < 0.73 || share > 0.77 {
		t.Errorf("%s: %.3f", fmt.Sprint(first), share)
	}
}
