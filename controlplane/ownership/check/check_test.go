package check

import (
	"flag"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/ownership"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lives are regions of one letter, with a prime for each life but the first.
func lives(names ...string) []ownership.Member {
	var out []ownership.Member
	for _, n := range names {
		out = append(out, ownership.Member{Region: n[:1], Since: uint64(len(n) - 1)})
	}
	return out
}

type exploration struct {
	name   string
	cfg    Config
	states int
}

// explored are the bounds that every change is checked within. The numbers of
// states are exact, so that an exploration that shrinks is noticed.
var explored = []exploration{
	{"two regions, every message by itself", Config{Lazy: true, Lives: lives("a", "b"), Founders: 2, Counters: 3, Openings: 3, Writes: 2, Adopts: true, Alive: 16}, 154546},
	{"three regions, three takeovers", Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 3, Openings: 3, Writes: 2, Alive: 16}, 554016},
	{"three regions, moves, snapshots, revocations", Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 2, Writes: 2, Safety: 1, Moves: true, Changes: 2, Adopts: true, Alive: 16}, 204476},
	{"three regions, every message by itself", Config{Lazy: true, Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 1, Writes: 1, Alive: 16}, 21025},
	{"four regions", Config{Lives: lives("a", "b", "c", "d"), Founders: 4, Counters: 2, Openings: 2, Writes: 1, Alive: 16}, 65849},
	{"five regions, one takeover", Config{Lives: lives("a", "b", "c", "d", "e"), Founders: 5, Counters: 2, Openings: 1, Writes: 2, Alive: 16}, 122242},
	{"one grows to three", Config{Lives: lives("a", "b", "c"), Founders: 1, Counters: 3, Openings: 3, Writes: 1, Changes: 2, Options: []Option{{Add: []int{1}}, {Add: []int{2}}, {Add: []int{1, 2}}}, Alive: 4}, 90765},
	{"two grow to three, every message by itself", Config{Lazy: true, Lives: lives("a", "b", "c"), Founders: 2, Counters: 2, Openings: 2, Changes: 1, Options: []Option{{Add: []int{2}}}, Alive: 16}, 118903},
	{"three shrink to one", Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 3, Writes: 1, Changes: 2, Options: []Option{{Remove: []int{0}}, {Remove: []int{1}}, {Remove: []int{2}}, {Remove: []int{1, 2}}}, Alive: 16}, 561164},
	{"one of three is replaced", Config{Lives: lives("a", "b", "c", "d"), Founders: 3, Counters: 2, Openings: 2, Writes: 1, Changes: 1, Options: []Option{{Remove: []int{0}, Add: []int{3}}, {Remove: []int{2}, Add: []int{3}}}, Alive: 16}, 250486},
	{"a follower is restored", Config{Lives: lives("a", "b", "c", "c'"), Founders: 3, Counters: 2, Openings: 2, Writes: 1, Changes: 1, Campaign: []int{0, 1, 3}, Options: []Option{{Add: []int{3}, By: []int{0}}}, Restores: []Restore{{From: 2, To: 3}}, Alive: 16}, 633837},
	{"a home is restored", Config{Lives: lives("a", "b", "c", "a'"), Founders: 3, Counters: 2, Openings: 2, Writes: 1, Changes: 1, Campaign: []int{1, 3}, Options: []Option{{Add: []int{3}, By: []int{1}}}, Restores: []Restore{{From: 0, To: 3}}, Alive: 16}, 349062},
	{"both of two are forced", bothForced(), 7063},
	{"one of two is forced, a third is added", Config{Lives: lives("a", "b", "c"), Founders: 2, Counters: 2, Openings: 3, Writes: 1, Changes: 3, Options: []Option{{Remove: []int{0}, Force: true}, {Add: []int{2}}}, Alive: 16}, 117260},
	{"the only member is restored, and its former life goes on", returning(1, 2), 54842},
	{"one of two is restored, and both are forced", returning(2, 2), 221596},
	{"half of four is forced", Config{Lives: lives("a", "b", "c", "d"), Founders: 4, Counters: 2, Openings: 2, Writes: 1, Changes: 2, Options: []Option{{Remove: []int{0, 1}, Force: true}}, Alive: 16}, 210370},
}

func TestRulesHold(t *testing.T) {
	for _, e := range explored {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			if underRace && e.states > 100_000 {
				t.Skip("one goroutine: the race detector has nothing to see, and takes ten times as long")
			}
			e.explore(t)
		})
	}
}

func (e exploration) explore(t *testing.T) {
	t.Helper()
	start := time.Now()
	res := Run(e.cfg, Correct())
	t.Logf("%v, %.1f s", res, time.Since(start).Seconds())
	if res.Violation != "" {
		t.Fail()
	} else if res.States != e.states {
		t.Errorf("%d states, want %d", res.States, e.states)
	}
}

// wide are bounds that take minutes to hours.
var wide = []exploration{
	{"four members, two removals, three openings", Config{Lives: lives("a", "b", "c", "d"), Founders: 4, Counters: 2, Openings: 3, Writes: 1, Changes: 2, Options: []Option{{Remove: []int{0}}, {Remove: []int{1}}}, Alive: 64}, 12820823},
	{"a follower is restored, three openings", Config{Lives: lives("a", "b", "c", "c'"), Founders: 3, Counters: 2, Openings: 3, Writes: 1, Changes: 1, Campaign: []int{0, 1, 3}, Options: []Option{{Add: []int{3}, By: []int{0}}}, Restores: []Restore{{From: 2, To: 3}}, Alive: 64}, 16704722},
	{"three regions, four takeovers", Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 4, Writes: 2, Alive: 64}, 542930},
	{"three regions, all combined", Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 3, Writes: 2, Safety: 1, Moves: true, Changes: 2, Options: []Option{{Remove: []int{0}}}, Adopts: true, Alive: 64}, 4836393},
	{"five regions, two takeovers", Config{Lives: lives("a", "b", "c", "d", "e"), Founders: 5, Counters: 2, Openings: 2, Writes: 1, Alive: 64}, 1817642},
	{"two grow to three, every message by itself, a write", Config{Lazy: true, Lives: lives("a", "b", "c"), Founders: 2, Counters: 2, Openings: 2, Writes: 1, Changes: 1, Options: []Option{{Add: []int{2}}}, Alive: 64}, 1897381},
}

var only = flag.String("wide", "", "explore the wide bounds whose names contain this; \".\" for all")

func TestWide(t *testing.T) {
	if *only == "" {
		t.Skip("-wide says which bounds that take long to explore")
	}
	for _, e := range wide {
		if *only != "." && !strings.Contains(e.name, *only) {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			e.explore(t)
		})
	}
}
