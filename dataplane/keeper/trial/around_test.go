package trial

import (
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/seal"
)

// openBook opens the book of us-d2 in dir, whose worker lives with sequence 1.
func openBook(t *testing.T, dir string) *Book {
	t.Helper()
	key := filepath.Join(dir, "kek")
	if err := seal.CreateKeyFile(key); err != nil && !slices.Contains(must(filepath.Glob(key)), key) {
		t.Fatal(err)
	}
	b := Open(File{Dir: dir, Name: "test/us-d2", Sealer: seal.New(must(seal.OpenFileHolder(key)))}, controlplane.ShardGlobal, 0,
		slog.New(slog.DiscardHandler), func(Report) {})
	start := time.Unix(0, 0)
	b.Seen(start, controlplane.Position{controlplane.ShardGlobal: at(1)})
	b.Seen(start.Add(time.Minute), controlplane.Position{controlplane.ShardGlobal: at(1)})
	return b
}

// A node that hears nobody waits in turn for those that it last heard: no longer
// than if they did not answer, and not for those that said goodbye, nor if it
// never had any.
func TestWhoHearsNobodyWaitsForWhomItKnew(t *testing.T) {
	nodes := world()
	self := nodes[4]
	start := time.Unix(1_000_000, 0)
	// waits is how long us-d2, or who self is, waits for sequence 2 while it hears nodes.
	waits := func(b *Book, self Node, nodes []Node) time.Duration {
		t.Helper()
		around := b.Around(self, nodes)
		w := newWait(controlplane.ShardGlobal, at(2), "us", self, around, start)
		for d := time.Duration(0); d < 10*time.Minute; d += time.Second {
			if may, _ := w.Next(at(1), around, none, start.Add(d)); may {
				return d
			}
		}
		t.Fatal("it waits for ever")
		return 0
	}
	dir := t.TempDir()
	b := openBook(t, dir)
	b.Heard(self, nil, start)
	b.Heard(self, []Node{self}, start)
	if d := waits(b, self, []Node{self}); d != 0 {
		t.Errorf("one that never had others waits %v", d)
	}
	b.Heard(self, nodes, start)
	b = openBook(t, dir)
	if d := waits(b, self, nil); d != Patience {
		t.Errorf("the second of the home region waits %v", d)
	}
	if d := waits(b, nodes[2], nil); d != homePart+2*Patience {
		t.Errorf("the third of another region waits %v", d)
	}
	gone := slices.Clone(nodes)
	for i := range gone {
		gone[i].Ready = false
	}
	if d := waits(b, self, gone); d != Patience {
		t.Errorf("one whose gossip ended waits %v", d)
	}
	heard := slices.Clone(gone)
	heard[0].Ready = true
	if d := waits(b, self, heard); d != 0 {
		t.Errorf("one that hears of others and none of them before it waits %v", d)
	}
	heard = slices.Clone(nodes)
	heard[3].Proven = at(2)
	if d := waits(b, self, heard[3:4]); d != 0 {
		t.Errorf("one that hears who lives with it waits %v", d)
	}
	b.Heard(self, gone, start.Add(time.Minute))
	b.Heard(self, nil, start.Add(memory-time.Second))
	if d := waits(b, self, nil); d != Patience {
		t.Errorf("one that hears nobody for less than an hour waits %v", d)
	}
	b.Heard(self, nil, start.Add(memory+2*time.Minute))
	if d := waits(b, self, nil); d != 0 {
		t.Errorf("one that has heard nobody for an hour waits %v", d)
	}
	if d := waits(openBook(t, dir), self, nil); d != 0 {
		t.Errorf("after a start that one waits %v", d)
	}
	b.Heard(self, nodes, start)
	for i := range gone {
		gone[i].Left = true
	}
	b.Heard(self, gone, start)
	if d := waits(b, self, gone); d != 0 {
		t.Errorf("one whose others left waits %v", d)
	}
}

// However large the cluster, few names are remembered.
func TestFewAreRemembered(t *testing.T) {
	b := openBook(t, t.TempDir())
	var all []Node
	for i := range 1000 {
		all = append(all, Node{Region: "us", Name: "us-d" + string(rune('a'+i%26)) + string(rune('a'+i/26%26)), Ready: true, Report: Report{Proven: at(1)}})
	}
	b.Heard(all[5], all, time.Unix(0, 0))
	if n := len(b.ledger.Peers); n != maxRank+1 {
		t.Errorf("%d are remembered", n)
	}
}

// What is left out on the word of others is let go an hour after the last of
// them said so, by one who hears somebody; what this node died on is not.
func TestHearsayEnds(t *testing.T) {
	dir := t.TempDir()
	b := openBook(t, dir)
	nodes := world()
	self := nodes[4]
	start := time.Unix(1_000_000, 0)
	heard, own := One(controlplane.ShardGlobal, at(5)), One(controlplane.ShardGlobal, at(7))
	b.Isolate(Isolated{Span: heard})
	b.Isolate(Isolated{Span: own, Own: true})
	saying := slices.Clone(nodes)
	saying[0].Isolated, saying[0].Ready = []Span{heard}, false
	full := slices.Clone(nodes)
	full[0].Isolated = slices.Repeat([]Span{own}, MaxSaid)
	isolated := func() int {
		_, n := b.Counts()
		return n
	}
	for minute, heard := range [][]Node{nodes, saying, nil, full, nodes} {
		b.Heard(self, heard, start.Add(time.Duration(minute)*(memory-time.Minute)))
		if isolated() != 2 {
			t.Fatalf("let go after look %d", minute)
		}
	}
	last := start.Add(3 * (memory - time.Minute))
	b.Heard(self, nodes, last.Add(memory+time.Minute))
	if isolated() != 1 || b.LeavesOut(heard) || !b.LeavesOut(own) {
		t.Errorf("%d are left out an hour after nobody said so", isolated())
	}
	if _, n := openBook(t, dir).Counts(); n != 1 {
		t.Errorf("after a start %d are", n)
	}
}

// A node asks for its turn while it looks who is there, from its first look on.
func TestAroundIsAskedWhileOthersAreHeard(t *testing.T) {
	dir, nodes := t.TempDir(), world()
	self, start := nodes[4], time.Unix(1_000_000, 0)
	openBook(t, dir).Heard(self, nodes, start)
	b := openBook(t, dir)
	var asking sync.WaitGroup
	asking.Go(func() {
		for range 100 {
			if len(b.Around(self, nil)) == 0 {
				t.Error("nobody is remembered")
			}
		}
	})
	b.Heard(self, nodes[:1], start)
	asking.Wait()
}
