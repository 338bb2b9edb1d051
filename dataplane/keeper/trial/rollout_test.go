package trial

import (
	"fmt"
	"testing"
	"time"

	"ringmain/controlplane"
)

var epoch = controlplane.Epoch{Counter: 1, Region: "us"}

func at(seq uint64) controlplane.Point { return controlplane.Point{Epoch: epoch, Seq: seq} }

// world is two regions of three nodes, all at sequence 1.
func world() []Node {
	var all []Node
	for _, region := range []string{"eu", "us"} {
		for i := range 3 {
			all = append(all, Node{Region: region, Name: fmt.Sprintf("%s-d%d", region, i+1), Ready: true, Report: Report{Proven: at(1)}})
		}
	}
	return all
}

func none(Span) bool { return false }

// run plays a roll-out of sequence 2: each second, who may take it takes it, and
// lives with it (or not, as said) from the next second on. It returns when each
// node took it.
func run(t *testing.T, nodes []Node, seconds int, take func(n *Node)) map[string]int {
	t.Helper()
	start := time.Unix(0, 0)
	waits := map[string]*Wait{}
	for _, n := range nodes {
		waits[n.Name] = newWait(controlplane.ShardGlobal, at(2), "us", n, nodes, start)
	}
	took := map[string]int{}
	for s := range seconds {
		var now []int
		for i, n := range nodes {
			if _, has := took[n.Name]; has || !n.Ready {
				continue
			}
			may, refused := waits[n.Name].Next(at(1), nodes, none, start.Add(time.Duration(s)*time.Second))
			if may && len(refused) == 0 {
				now = append(now, i)
			}
		}
		for _, i := range now {
			took[nodes[i].Name] = s
			take(&nodes[i])
		}
	}
	return took
}

func TestOrder(t *testing.T) {
	t.Run("healthy", func(t *testing.T) {
		took := run(t, world(), 10, func(n *Node) { n.Proven = at(2) })
		if want := "map[eu-d1:2 eu-d2:3 eu-d3:3 us-d1:0 us-d2:1 us-d3:1]"; fmt.Sprint(took) != want {
			t.Errorf("taken at %v, want %s", took, want)
		}
	})
	t.Run("a canary that never answers", func(t *testing.T) {
		took := run(t, world(), 60, func(n *Node) {
			if n.Name != "us-d1" {
				n.Proven = at(2)
			}
		})
		if len(took) != 6 || took["us-d2"] != 5 || took["us-d3"] != 6 || took["eu-d1"] != 15 {
			t.Errorf("taken at %v", took)
		}
	})
	t.Run("a canary that is gone", func(t *testing.T) {
		nodes := world()
		took := run(t, nodes, 60, func(n *Node) {
			if n.Proven = at(2); n.Name == "us-d1" {
				n.Proven, n.Ready = at(1), false
			}
		})
		if took["us-d2"] != 5 || took["eu-d1"] != 7 || took["eu-d3"] != 8 {
			t.Errorf("taken at %v", took)
		}
	})
	t.Run("nobody answers", func(t *testing.T) {
		took := run(t, world(), 60, func(*Node) {})
		if len(took) != 6 || took["us-d3"] != 10 || took["eu-d1"] != 15 || took["eu-d3"] != 25 {
			t.Errorf("taken at %v", took)
		}
	})
	t.Run("no home region", func(t *testing.T) {
		took := run(t, world()[:3], 10, func(n *Node) { n.Proven = at(2) })
		if took["eu-d1"] != 0 || took["eu-d2"] != 1 {
			t.Errorf("taken at %v", took)
		}
	})
}

// One that died once holds the others, and one that died twice refuses for all.
func TestRefusal(t *testing.T) {
	bad := Span{Shard: controlplane.ShardGlobal, From: 2, To: 2, Epoch: epoch}
	nodes := world()
	took := run(t, nodes, 50, func(n *Node) { n.Suspects, n.Ready = []Span{bad}, false })
	if len(took) != 1 {
		t.Errorf("taken at %v though the first had died", took)
	}
	nodes = world()
	took = run(t, nodes, 100, func(n *Node) { n.Suspects = []Span{bad} })
	if took["us-d2"] != 60 {
		t.Errorf("taken at %v: a suspicion that is never settled holds for ever", took)
	}
	nodes = world()
	start := time.Unix(0, 0)
	w := newWait(controlplane.ShardGlobal, at(3), "us", nodes[5], nodes, start)
	nodes[3].Isolated, nodes[3].Proven = []Span{bad}, at(3)
	may, refused := w.Next(at(1), nodes, none, start.Add(time.Hour))
	if may || len(refused) != 1 || refused[0] != bad {
		t.Errorf("may %v, refused %v", may, refused)
	}
	if may, refused := w.Next(at(1), nodes, func(s Span) bool { return s == bad }, start); !may || len(refused) > 0 {
		t.Errorf("what is left out already: may %v, refused %v", may, refused)
	}
	if may, refused := w.Next(at(2), nodes, none, start); !may || len(refused) > 0 {
		t.Errorf("what a node has already: may %v, refused %v", may, refused)
	}
	other := bad
	other.Shard = "any-us"
	nodes[3].Isolated = []Span{other}
	if may, refused := w.Next(at(1), nodes, none, start); !may || len(refused) > 0 {
		t.Errorf("another shard's: may %v, refused %v", may, refused)
	}
}

// What others died on in a history that was cut off says nothing of what took
// its place.
func TestACutHistoryHoldsNobody(t *testing.T) {
	later := controlplane.Epoch{Counter: 2, Region: "us"}
	bad := Span{Shard: controlplane.ShardGlobal, From: 2, To: 2, Epoch: epoch}
	start := time.Unix(0, 0)
	for name, tc := range map[string]struct {
		span    Span
		point   controlplane.Point
		refused bool
	}{
		"of the history itself":                {bad, at(2), true},
		"cut off":                              {bad, controlplane.Point{Epoch: later, Seq: 2}, false},
		"cut off, and wider":                   {Span{bad.Shard, 1, 9, epoch}, controlplane.Point{Epoch: later, Seq: 2}, false},
		"within a snapshot of a later epoch":   {bad, controlplane.Point{Epoch: later, Seq: 7}, true},
		"of an epoch that is not known":        {Span{bad.Shard, 2, 2, controlplane.Epoch{}}, controlplane.Point{Epoch: later, Seq: 2}, true},
		"that ends in a later epoch than this": {Span{bad.Shard, 2, 9, later}, at(2), true},
	} {
		nodes := world()
		nodes[3].Isolated, nodes[3].Proven = []Span{tc.span}, at(9)
		w := newWait(controlplane.ShardGlobal, tc.point, "us", nodes[5], nodes, start)
		if _, refused := w.Next(at(1), nodes, none, start); len(refused) > 0 != tc.refused {
			t.Errorf("%s: refused %v", name, refused)
		}
		nodes[3].Isolated, nodes[3].Suspects = nil, []Span{tc.span}
		if may, _ := w.Next(at(1), nodes, none, start.Add(suspectPart-1)); may == tc.refused {
			t.Errorf("%s, suspected: may %v", name, may)
		}
	}
	// What ended before this node's own epoch is behind it, or cut off.
	nodes := world()
	nodes[3].Isolated = []Span{{bad.Shard, 5, 5, epoch}}
	w := newWait(controlplane.ShardGlobal, controlplane.Point{Epoch: later, Seq: 7}, "us", nodes[5], nodes, start)
	if _, refused := w.Next(controlplane.Point{Epoch: later, Seq: 4}, nodes, none, start); len(refused) > 0 {
		t.Errorf("refused %v", refused)
	}
}

// What another node says reaches no further than what waits here, and a node
// that says so of everything holds back a few changes only.
func TestHearsayIsBounded(t *testing.T) {
	all := Span{Shard: controlplane.ShardGlobal, From: 1, To: 1 << 60, Epoch: epoch}
	nodes := world()
	nodes[0].Isolated = []Span{all}
	w := newWait(controlplane.ShardGlobal, at(6), "us", nodes[5], nodes, time.Unix(0, 0))
	_, refused := w.Next(at(4), nodes, none, time.Unix(0, 0))
	if want := (Span{Shard: controlplane.ShardGlobal, From: 5, To: 6, Epoch: epoch}); len(refused) != 1 || refused[0] != want {
		t.Errorf("refused %v, want %v", refused, want)
	}
	b := Book{ledger: &Ledger{}}
	for seq := range uint64(2 * maxHeard) {
		s := One(controlplane.ShardGlobal, at(2*seq+5))
		if b.LeavesOut(s) {
			if seq != maxHeard {
				t.Errorf("%d changes are left out on the word of others, want %d", seq, maxHeard)
			}
			return
		}
		if !b.ledger.Isolate(Isolated{Span: s}) {
			t.Fatal("not isolated, and waited for")
		}
	}
	t.Error("there is no bound")
}
