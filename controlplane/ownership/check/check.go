// Package check explores every way in which the regions of a shard may follow
// the rules of ownership, within bounds, and looks for one that breaks what they
// promise. It drives the very functions that production calls.
//
// Messages are facts: what was said once may be heard at any later time, any
// number of times, in any order, or never. So loss, delay, duplication, crashes
// and regions that are gone need no steps of their own. Nothing but the model
// and its tests may enter; no production code imports it.
package check

import (
	"fmt"
	"hash/maphash"
	"strings"

	"ringmain/controlplane/ownership"
)

// Config bounds an exploration.
type Config struct {
	Lives    []ownership.Member // every life of every region, regions in order; at most 6
	Founders int                // the first so many lives are the first epoch's members; the first is its home
	Cold     bool               // only the home holds the first opening at the start
	Counters int                // epochs have counters up to this
	Openings int                // campaigns at most, the founding not counted; at most 4
	Writes   int                // at most 8
	Safety   int                // how many of the writes may be revocations
	Changes  int                // how many campaigns may have one of Options
	Options  []Option           // besides plain takeovers
	Campaign []int              // the lives that campaign; nil = all
	Moves    bool               // planned moves, too
	Adopts   bool               // snapshots, too
	Lazy     bool               // without the shortcuts of settle
	Restores []Restore          // lives that may begin
	Lossy    bool               // carry on with forced openings that may lose records
	Alive    int                // check liveness in one of so many states; 0 = never
	Limit    int                // states at most; reaching it is an error
}

// Option is a change of the members that a campaign may make, by indexes of lives.
type Option struct {
	Add, Remove []int
	Force       bool
	By          []int // only these lives; nil = all
	from        int   // 1 + index of the region that hands over
}

// Restore says that a region may lose its disk and start its next life with any
// earlier state of it.
type Restore struct {
	From, To int
	Zombie   bool // the former life is not gone: it goes on as if nothing had happened
}

// Result is what an exploration found.
type Result struct {
	States int
	Depth  int
	Lively int // states whose liveness was checked
	// Violation is empty if there is none; Transcript are the steps to it.
	Violation  string
	Transcript []string
}

func (r Result) String() string {
	if r.Violation == "" {
		return fmt.Sprintf("%d states, depth %d, %d checked for liveness", r.States, r.Depth, r.Lively)
	}
	return fmt.Sprintf("%s\nafter %d steps:\n%s", r.Violation, len(r.Transcript), strings.Join(r.Transcript, "\n"))
}

// seen is the set of states, by 128 bits of hash.
type seen struct {
	seeds [2]maphash.Seed
	ids   map[[2]uint64]struct{}
}

func newSeen() *seen {
	return &seen{seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, ids: make(map[[2]uint64]struct{})}
}

func (v *seen) add(s *state) bool {
	key := [2]uint64{maphash.Comparable(v.seeds[0], *s), maphash.Comparable(v.seeds[1], *s)}
	if _, ok := v.ids[key]; ok {
		return false
	}
	v.ids[key] = struct{}{}
	return true
}

// step is how a state was reached first.
type step struct {
	parent uint32
	action action
}

// Run explores cfg breadth first, so that the transcript to a violation is as
// short as can be.
func Run(cfg Config, rules Rules) Result {
	m := newModel(cfg, rules)
	first := m.first()
	visited := newSeen()
	visited.add(&first)
	how := []step{{}}
	layer, begin := []state{first}, 0
	var res Result
	for len(layer) > 0 {
		var next []state
		for i := range layer {
			at := uint32(begin + i)
			m.violation = ""
			if cfg.Alive > 0 && (begin+i)%cfg.Alive == 0 {
				res.Lively++
				m.lively(&layer[i])
			}
			var failed action
			if m.violation == "" {
				m.successors(&layer[i], func(a action, s *state) bool {
					if m.violation != "" {
						failed = a
						return false
					}
					if visited.add(s) {
						next = append(next, *s)
						how = append(how, step{at, a})
					}
					return true
				})
			}
			if m.violation != "" {
				res.States, res.Violation = len(how), m.violation
				res.Transcript = m.transcript(first, how, at, failed)
				return res
			}
		}
		if cfg.Limit > 0 && len(how) > cfg.Limit {
			res.Violation = fmt.Sprintf("more than %d states", cfg.Limit)
			break
		}
		begin += len(layer)
		layer = next
		if len(layer) > 0 {
			res.Depth++
		}
	}
	res.States = len(how)
	return res
}
