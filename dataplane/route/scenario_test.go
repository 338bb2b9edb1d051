package route

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
)

// scene is a world of testdata/decisions.txt, and the request asked last.
type scene struct {
	t       *testing.T
	ups     []*registry.Upstream
	targets []registry.Target
	nodes   []link.Peer
	rtt     map[string]time.Duration
	busy    map[string]int
	down    []string
	drained string

	plan    *Plan
	refused *policy.Refusal
	hint    string
}

// options reads "word k=v" into a map; a bare word is its own value.
func options(words []string) map[string]string {
	out := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		out[k] = v
		if v == "" {
			out[k] = k
		}
	}
	return out
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (s *scene) upstream(words []string) {
	o := options(words[2:])
	s.ups = append(s.ups, &registry.Upstream{
		Name: words[0], Region: words[1], Provider: or(o["provider"], "p"), Dialect: or(o["dialect"], "openai"),
		Simulated: o["real"] == "", Disabled: o["off"] != "", Dedicated: o["dedicated"], Endpoints: list(o["paths"]),
		Terms: registry.Terms{Retention: or(o["retention"], "30d"), PromptCache: or(o["cache"], "memory")},
	})
}

func (s *scene) node(words []string) {
	o := options(words[1:])
	region, name, _ := strings.Cut(words[0], "/")
	n := link.Peer{Region: region, Node: name, Alive: o["dead"] == "", Ready: true, Draining: o["draining"] != "", Pools: list(o["pools"])}
	if o["load"] != "" {
		in, of, _ := strings.Cut(o["load"], "/")
		n.InFlight, n.Capacity = uint32(number(s.t, in)), uint32(number(s.t, of))
	}
	for _, up := range list(o["open"]) {
		if n.Breakers == nil {
			n.Breakers = map[string]string{}
		}
		n.Breakers[up+"/m"] = "open"
	}
	s.nodes = append(s.nodes, n)
}

func (s *scene) request(words []string) {
	o := options(words)
	region := or(o["in"], "us-east")
	d := &policy.Decision{
		Pin: o["pin"], Class: or(o["class"], "live"), CrossProvider: o["cross"] != "", ZeroRetention: o["zero"] != "",
		Billed: &registry.Record{Project: &registry.Project{Org: "org_1"}},
	}
	switch {
	case o["pool"] != "":
		d.Pool = o["pool"]
	case d.ZeroRetention:
		d.Pool = policy.PoolZeroRetention
	default:
		d.Pool = policy.PoolStandard
	}
	peers := link.Peers{Nodes: s.nodes}
	for _, name := range []string{"us-east", "us-west", "eu-fra", "ap-sg"} {
		peers.Regions = append(peers.Regions, link.PeerRegion{Region: name, Up: !slices.Contains(s.down, name)})
	}
	s.hint = o["hint"]
	s.plan, s.refused = New(Input{
		View: world(s.t, s.drained, &registry.Route{Model: "m", Targets: s.targets}, s.ups...), Decision: d,
		Model: "m", Dialect: "openai", Path: o["path"], Hint: s.hint, Provider: o["provider"],
		Region: region, Jurisdiction: map[string]string{"us-east": "us", "us-west": "us", "eu-fra": "eu", "ap-sg": "apac"}[region],
		Pools: list(or(o["mine"], "standard,zero-retention")), LocalOnly: o["forwarded"] != "",
		Peers: func() link.Peers { return peers }, Random: rand.New(rand.NewPCG(1, 2)).Uint64,
		RTT:      func(r string) (time.Duration, bool) { d, ok := s.rtt[r]; return d, ok },
		InFlight: func(up string) int { return s.busy[up] },
	})
}

// answer is what became of the request, as the file says it.
func (s *scene) answer(forwarded bool) string {
	if s.refused != nil {
		return "refused " + s.refused.Code
	}
	remote := ""
	if !forwarded {
		remote = stops(s.plan.Remote())
	}
	return strings.TrimSpace(stops(s.plan.Local()) + " | " + remote)
}

// same compares two answers; where want ends in ~, neighbours may be in any order.
func same(got, want string) bool {
	want, loose := strings.CutSuffix(want, " ~")
	if !loose {
		return got == want
	}
	sorted := func(s string) []string { return slices.Sorted(slices.Values(strings.Fields(s))) }
	region := func(s string) string { // the run of regions, by the nodes' first letters
		var b strings.Builder
		for _, w := range strings.Fields(s) {
			if l := w[:1]; !strings.HasSuffix(b.String(), l) {
				b.WriteString(l)
			}
		}
		return b.String()
	}
	return slices.Equal(sorted(got), sorted(want)) && region(got) == region(want)
}

func TestDecisions(t *testing.T) {
	f, err := os.Open("testdata/decisions.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var s *scene
	asked, forwarded, checked := "", false, 0
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text := strings.TrimSpace(lines.Text())
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		where := fmt.Sprintf("decisions.txt:%d", n)
		words := strings.Fields(text)
		o := options(words[1:])
		switch words[0] {
		case "world":
			s = &scene{t: t, rtt: map[string]time.Duration{}, busy: map[string]int{}}
		case "upstream":
			s.upstream(words[1:])
		case "route":
			s.targets = nil
			for _, w := range words[1:] {
				part := append(strings.Split(w, ":"), "0", "0")
				s.targets = append(s.targets, target(part[0], uint32(number(t, part[1])), uint32(number(t, part[2]))))
			}
		case "node":
			s.node(words[1:])
		case "rtt":
			for region, ms := range o {
				s.rtt[region] = time.Duration(number(t, ms)) * time.Millisecond
			}
		case "busy":
			for up, count := range o {
				s.busy[up] = number(t, count)
			}
		case "down":
			s.down = words[1:]
		case "drained":
			s.drained = words[1]
		case "request":
			asked, forwarded = text, slices.Contains(words, "forwarded")
			s.request(words[1:])
		case ">":
			checked++
			if got, want := s.answer(forwarded), strings.TrimSpace(strings.TrimPrefix(text, ">")); !same(got, want) {
				t.Errorf("%s: %s\n got %s\nwant %s", where, asked, got, want)
			}
		case "hint":
			got := s.plan.Hint("us-east")
			if s.plan.HintAway() {
				got += " away"
			}
			if want := strings.Join(words[1:], " "); got != want {
				t.Errorf("%s: hint %s: %q, want %q", where, s.hint, got, want)
			}
		default:
			t.Fatalf("%s: %q", where, words[0])
		}
	}
	if err := lines.Err(); err != nil || checked < 30 {
		t.Errorf("%d decisions checked, %v", checked, err)
	}
}

// TestEndpointsAgree: the registry accepts exactly the paths that are served.
func TestEndpointsAgree(t *testing.T) {
	want := map[string][]string{}
	for _, ep := range dialect.Endpoints() {
		if !ep.Stores {
			want[ep.Dialect.String()] = append(want[ep.Dialect.String()], ep.Path)
		}
	}
	for name, paths := range want {
		got := registry.EndpointsOf(name)
		slices.Sort(paths)
		slices.Sort(got)
		if !slices.Equal(got, paths) {
			t.Errorf("%s: the registry accepts %v, the data nodes serve %v", name, got, paths)
		}
	}
}
