package check

import (
	"slices"
	"strings"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// planted are bugs, one each; the check must find every one of them.
var planted = []struct {
	name  string
	plant func(*Rules)
	cfg   Config
	want  string // property that breaks
	steps int    // of the shortest way to it, fixed so that a blunter check is noticed
}{
	{name: "confirming with a majority minus one", steps: 4, cfg: three(1), want: "S3", plant: func(r *Rules) {
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			through := confirmed(heard, self, c)
			for _, m := range c.Members() {
				through = max(through, confirmed(append(slices.Clone(heard), Heard{m, c.Last}), self, c))
			}
			return through
		}
	}},
	{name: "sealing with a majority minus one", steps: 4, cfg: three(1), want: "S3", plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			plan := c.Next()
			for _, m := range plan.Missing {
				invented := ownership.Report{From: m, Copy: ownership.Copy{Promised: c.Epoch}}
				if p := c.Hear(invented).Next(); p.Move == ownership.Take {
					return p
				}
			}
			return plan
		}
	}},
	{name: "the candidate keeps its own tail", steps: 5, cfg: three(1), want: "S3", plant: taking(func(c ownership.Campaign, _ ownership.Plan) ownership.Report {
		return c.Reports[slices.IndexFunc(c.Reports, func(r ownership.Report) bool { return r.From == c.Self })]
	})},
	{name: "the second best tail, as the best cannot be reached", steps: 5, cfg: three(1), want: "S3", plant: taking(func(c ownership.Campaign, _ ownership.Plan) ownership.Report {
		byLast := slices.SortedFunc(slices.Values(c.Reports), func(a, b ownership.Report) int { return b.Copy.Last.Compare(a.Copy.Last) })
		return byLast[min(1, len(byLast)-1)]
	})},
	{name: "the longest tail instead of the highest", steps: 10, cfg: three(2), want: "S3", plant: taking(func(c ownership.Campaign, plan ownership.Plan) ownership.Report {
		return slices.MaxFunc(c.Reports, func(a, b ownership.Report) int {
			if n := int(a.Copy.Last.Seq) - int(b.Copy.Last.Seq); n != 0 {
				return n
			}
			return a.Copy.Last.Compare(b.Copy.Last)
		})
	})},
	{name: "confirming entries below the opening (figure 8)", steps: 11, cfg: three(1), want: "S3", plant: func(r *Rules) {
		r.Prefix = true
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			as := slices.Clone(heard)
			for i := range as {
				as[i].Last.Epoch = c.Last.Epoch
			}
			below := c
			below.Spans = slices.Clone(c.Spans)
			below.Spans[len(below.Spans)-1].Start = 1
			return confirmed(as, self, below)
		}
	}},
	{name: "an opening accepted before what is under it", steps: 8, cfg: three(1), want: "S3", plant: func(r *Rules) { r.Early = true }},
	{name: "a seal that a crash forgets", steps: 6, cfg: three(1), want: "S3", plant: func(r *Rules) { r.Forgets = true }},
	{name: "a region that lost a commit and is trusted as before", steps: 6, cfg: three(1), want: "S", plant: func(r *Rules) { r.Loses = true }},
	{name: "comparing the previous entry's sequence alone", steps: 8, cfg: three(1), want: "S1", plant: func(r *Rules) {
		r.Accept = func(c ownership.Copy, sender controlplane.Epoch, h ownership.Header) (ownership.Step, error) {
			step, err := c.Accept(sender, h)
			if err == nil || sender.Compare(c.Promised) < 0 || h.Seq > c.Last.Seq+1 || h.Seq <= c.Confirmed || h.Seq < 2 {
				return step, err
			}
			step = ownership.Step{Copy: c, Append: true}
			if h.Seq <= c.Last.Seq {
				step.Cut = h.Seq
			}
			step.Copy.Promised, step.Copy.Last = sender, h.Point()
			step.Copy.Spans = slices.DeleteFunc(slices.Clone(c.Spans), func(s ownership.Span) bool { return s.Start >= h.Seq })
			if h.Opens() {
				step.Copy.Spans = append(step.Copy.Spans, ownership.Span{Epoch: h.Epoch, Start: h.Seq, Members: h.Members, Forced: h.Forced})
			}
			return step, nil
		}
	}},
	{name: "no fence", steps: 5, cfg: three(1), want: "S", plant: func(r *Rules) {
		r.Accept = func(c ownership.Copy, sender controlplane.Epoch, h ownership.Header) (ownership.Step, error) {
			open := c
			open.Promised = controlplane.Epoch{}
			step, err := open.Accept(sender, h)
			if step.Copy.Promised.Compare(c.Promised) < 0 {
				step.Copy.Promised = c.Promised
			}
			return step, err
		}
	}},
	{name: "a fence that compares the entry's epoch", steps: 1, cfg: living(three(1)), want: "L", plant: func(r *Rules) {
		r.Accept = func(c ownership.Copy, sender controlplane.Epoch, h ownership.Header) (ownership.Step, error) {
			if h.Epoch.Compare(c.Promised) < 0 {
				return ownership.Step{}, &ownership.Refused{Reason: ownership.Deposed}
			}
			return c.Accept(sender, h)
		}
	}},
	{name: "what is cut is dropped", steps: 5, cfg: three(1), want: "S4", plant: func(r *Rules) { r.Unquarantine = true }},
	{name: "a snapshot replaces the safety set", steps: 5, cfg: revoking(three(1)), want: "S5", plant: func(r *Rules) { r.Overwrites = true }},
	{name: "an older snapshot is adopted", steps: 3, cfg: revoking(three(1)), want: "S", plant: func(r *Rules) {
		r.Adopt = func(c ownership.Copy, sender controlplane.Epoch, s ownership.Snapshot) (ownership.Step, error) {
			empty := ownership.Copy{Promised: c.Promised}
			step, err := empty.Adopt(sender, s)
			step.Copy.Confirmed = c.Confirmed
			return step, err
		}
	}},
	{name: "a move without the old home's seal", steps: 4, cfg: moving(three(1)), want: "S6", plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan { c.From = ""; return c.Next() }
	}},
	{name: "a move from a former home", steps: 4, cfg: moving(three(1)), want: "S6", plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			from := slices.IndexFunc(c.Reports, func(r ownership.Report) bool { return r.From.Region == c.From })
			if c.From == "" || from < 0 {
				return c.Next()
			}
			old := c.Reports[from]
			c.From = ""
			plan := c.Next()
			if plan.Move == ownership.Take && plan.Base != old.Copy.Last {
				plan.Move = ownership.GiveUp
			}
			return plan
		}
	}},
	{name: "forcing one of three", steps: 4, want: "S3", cfg: Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 1, Changes: 1,
		Writes: 1, Options: []Option{{Remove: []int{0, 1}, Force: true}}, Lossy: true}, plant: func(*Rules) {}},

	// The members change.
	{name: "members: confirming by the new members alone", steps: 6, cfg: shrinking(2), want: "S3", plant: func(r *Rules) { r.Confirmed = confirmingByNew }},
	{name: "members: sealing by the new members alone", steps: 9, cfg: shrinking(3), want: "S3", plant: func(r *Rules) { r.Next = sealingByNew }},
	{name: "members: one at a time, by new members alone, at a takeover", steps: 12, want: "S3", cfg: Config{Lives: lives("a", "b", "c", "d"), Founders: 4, Counters: 2, Openings: 3,
		Changes: 2, Options: []Option{{Remove: []int{1}, By: []int{0}}, {Remove: []int{0}, By: []int{1}}}},
		plant: func(r *Rules) { r.Confirmed, r.Next = confirmingByNew, sealingByNew }},
	{name: "members: sealing by the oldest members alone", steps: 11, cfg: replacing(2), want: "S3", plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			return plannedAs(c, func(r *ownership.Copy) {
				old := r.Spans[0].Members
				for i := range r.Spans {
					r.Spans[i].Members = old
				}
			})
		}
	}},
	{name: "members: confirming by the oldest members alone", steps: 8, want: "S3", cfg: Config{Lives: lives("a", "b", "c"), Founders: 1, Counters: 2, Openings: 2, Changes: 1, Writes: 1,
		Options: []Option{{Add: []int{1, 2}}}}, plant: func(r *Rules) {
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			old := c.Spans[0].Members
			c.Spans = slices.Clone(c.Spans)
			for i := range c.Spans {
				c.Spans[i].Members = old
			}
			return confirmed(heard, self, c)
		}
	}},
	{name: "members: confirming by a majority of all of them together", steps: 10, want: "S3", cfg: Config{Lives: lives("a", "b", "c", "d", "e"), Founders: 3, Counters: 2, Openings: 2,
		Changes: 1, Campaign: []int{0, 1}, Options: []Option{{Remove: []int{1, 2}, Add: []int{3, 4}, By: []int{0}}}}, plant: func(r *Rules) {
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			var all []ownership.Member
			for _, members := range c.Memberships() {
				for _, m := range members {
					if !slices.Contains(all, m) {
						all = append(all, m)
					}
				}
			}
			c.Spans = slices.Clone(c.Spans)
			for i := range c.Spans {
				c.Spans[i].Members = all
			}
			return confirmed(heard, self, c)
		}
	}},
	{name: "members: the candidate counts by its own copy, not by the base", steps: 11, want: "S3", cfg: Config{Lives: lives("a", "b", "c", "d"), Founders: 3, Counters: 2, Openings: 2,
		Changes: 1, Writes: 1, Options: []Option{{Remove: []int{1}, Add: []int{3}, By: []int{0}}}}, plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			own := slices.IndexFunc(c.Reports, func(r ownership.Report) bool { return r.From == c.Self })
			if own < 0 {
				return c.Next()
			}
			members := c.Reports[own].Copy.Members()
			plan := plannedAs(c, func(r *ownership.Copy) {
				for i := range r.Spans {
					r.Spans[i].Members = members
				}
			})
			return plan
		}
	}},
	{name: "members: what others call confirmed shortens the list, whatever the base holds", steps: 12, cfg: campaigning(restored(3), 1, 1, 2), want: "S3", plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			var most uint64
			for _, r := range c.Reports {
				most = max(most, r.Copy.Confirmed)
			}
			return plannedAs(c, func(r *ownership.Copy) { r.Confirmed = most })
		}
	}},
	{name: "members: a new home does not learn what was confirmed", steps: 7, want: "L", cfg: Config{Lives: lives("a", "b", "c"), Founders: 2, Counters: 2, Openings: 1, Changes: 1,
		Options: []Option{{Add: []int{2}}}, Lazy: true, Alive: 1}, plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			plan := c.Next()
			plan.Known = controlplane.Point{}
			return plan
		}
	}},
	{name: "members: a restored region counts as the one it was", steps: 6, cfg: restored(2), want: "S", plant: func(r *Rules) { r.Nameless = true }},
	{name: "members: a restored home writes on", steps: 3, want: "S1", cfg: Config{Lives: lives("a", "b", "c", "a'"), Founders: 3, Counters: 1, Writes: 2, Restores: []Restore{{From: 0, To: 3}}}, plant: func(r *Rules) {
		r.Role = func(c ownership.Copy, self ownership.Member) ownership.Role {
			self.Since = 0
			return c.Role(self)
		}
	}},
	{name: "members: a seal asked for again is granted again", steps: 12, cfg: campaigning(restored(3), 0, 0, 2, 3), want: "S1", plant: func(r *Rules) {
		r.Seal = func(c ownership.Copy, e controlplane.Epoch) (ownership.Copy, error) {
			if e == c.Promised && c.Last.Epoch != e {
				return c, nil
			}
			return c.Seal(e)
		}
	}},
	{name: "members: anybody's word counts", steps: 6, want: "S3", cfg: Config{Lives: lives("a", "b", "c", "d"), Founders: 3, Counters: 2, Openings: 1, Writes: 1}, plant: func(r *Rules) {
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			as := slices.Clone(heard)
			for i, h := range as {
				if !slices.Contains(c.Members(), h.From) {
					as[i].From = c.Members()[1]
				}
			}
			return confirmed(as, self, c)
		}
	}},
	{name: "forced: the survivor confirms alone, and so does the other", steps: 4, cfg: bothForced(), want: "S", plant: func(r *Rules) {
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			through := confirmed(heard, self, c)
			if len(c.Members()) == 1 && c.Role(self) == ownership.Home {
				return c.Last.Seq
			}
			return through
		}
	}},
	{name: "forced: without the word of every survivor", steps: 5, want: "S3", cfg: Config{Lives: lives("a", "b", "c", "d"), Founders: 4, Counters: 2, Openings: 1, Changes: 1,
		Writes: 1, Options: []Option{{Remove: []int{0, 1}, Force: true}}}, plant: func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			plan := c.Next()
			for _, m := range plan.Missing {
				invented := ownership.Report{From: m, Copy: ownership.Copy{Promised: c.Epoch}}
				if p := c.Hear(invented).Next(); p.Move == ownership.Take {
					return p
				}
			}
			return plan
		}
	}},
	{name: "forced: while the members grew by the new members' word alone", steps: 7, want: "S3", cfg: Config{Lives: lives("a", "b", "c"), Founders: 2, Counters: 2, Openings: 2, Changes: 2,
		Options: []Option{{Add: []int{2}}, {Remove: []int{0}, Force: true}, {Remove: []int{1}, Force: true}}}, plant: func(r *Rules) { r.Confirmed = confirmingByNew }},
	{name: "returning: in an epoch that the former life may have opened", steps: 5, cfg: returning(1, 2), want: "S1", plant: func(r *Rules) {
		r.Above = func(m ownership.Member, counter uint64) controlplane.Epoch {
			return controlplane.Epoch{Counter: counter + 1, Region: m.Region}
		}
	}},
	{name: "returning: confirming alone, although there was another member", steps: 5, cfg: returning(2, 2), want: "S", plant: func(r *Rules) {
		r.Confirmed = func(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
			if members := c.Members(); len(members) == 1 && self.Since > 0 && c.Role(self) == ownership.Home {
				return c.Last.Seq
			}
			return confirmed(heard, self, c)
		}
	}},
}

// returning has a, with or without b, restored: a's next life takes its place by
// its own word, and what a goes on saying is heard all the time.
func returning(founders, openings int) Config {
	return Config{Lives: lives("a", "b", "a'''"), Founders: founders, Counters: 3, Openings: openings, Writes: 1, Changes: 3, Lossy: true, Alive: 16,
		Options:  []Option{{Add: []int{2}, Remove: []int{0, 1}[:founders], Force: true, By: []int{2}}, {Remove: []int{0}, Force: true, By: []int{1}}, {Add: []int{1}, By: []int{2}}, {Remove: []int{2}, By: []int{0}}},
		Restores: []Restore{{From: 0, To: 2, Zombie: true}}}
}

func three(writes int) Config {
	return Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: 2, Openings: 3, Writes: writes}
}

func shrinking(openings int) Config {
	return Config{Lives: lives("a", "b", "c"), Founders: 3, Counters: openings, Openings: openings, Writes: 1, Changes: 1, Options: []Option{{Remove: []int{1, 2}, By: []int{0}}}}
}

func restored(openings int) Config {
	return Config{Lives: lives("a", "b", "c", "c'"), Founders: 3, Counters: 2, Openings: openings, Writes: 1, Changes: 1, Options: []Option{{Add: []int{3}}}, Restores: []Restore{{From: 2, To: 3}}}
}

func replacing(openings int) Config {
	return Config{Lives: lives("a", "b", "c", "d"), Founders: 3, Counters: 2, Openings: openings, Writes: 1, Changes: 1, Options: []Option{{Remove: []int{2}, Add: []int{3}, By: []int{0}}}}
}

func bothForced() Config {
	return Config{Lives: lives("a", "b"), Founders: 2, Counters: 2, Openings: 3, Writes: 1, Changes: 3,
		Options: []Option{{Remove: []int{0}, Force: true}, {Remove: []int{1}, Force: true}, {Add: []int{0}}, {Add: []int{1}}}}
}

func campaigning(c Config, changes int, by ...int) Config {
	c.Campaign = by
	c.Options[0].By = []int{changes}
	return c
}

func living(c Config) Config   { c.Alive = 1; return c }
func revoking(c Config) Config { c.Safety, c.Adopts = 1, true; return c }
func moving(c Config) Config   { c.Moves, c.Changes = true, 1; return c }

// taking makes the candidate take another report than the highest.
func taking(choose func(ownership.Campaign, ownership.Plan) ownership.Report) func(*Rules) {
	return func(r *Rules) {
		r.Next = func(c ownership.Campaign) ownership.Plan {
			plan := c.Next()
			if plan.Move == ownership.Take {
				other := choose(c, plan)
				plan.From, plan.Base = other.From, other.Copy.Last
			}
			return plan
		}
	}
}

// plannedAs is the plan after the reports were bent.
func plannedAs(c ownership.Campaign, bend func(*ownership.Copy)) ownership.Plan {
	bent := c
	bent.Reports = slices.Clone(c.Reports)
	for i := range bent.Reports {
		r := &bent.Reports[i].Copy
		r.Spans = slices.Clone(r.Spans)
		if len(r.Spans) > 0 {
			bend(r)
		}
	}
	plan := bent.Next()
	plan.Known = controlplane.Point{}
	if plan.Move == ownership.Take {
		if plan.Members = memberOf(c, plan); !slices.Contains(plan.Members, c.Self) {
			plan.Move = ownership.GiveUp
		}
	}
	return plan
}

// memberOf is what the base itself says of its members, changed as asked.
func memberOf(c ownership.Campaign, plan ownership.Plan) []ownership.Member {
	for _, r := range c.Reports {
		if r.From != plan.From {
			continue
		}
		members := slices.DeleteFunc(slices.Clone(r.Copy.Members()), func(m ownership.Member) bool {
			return slices.Contains(c.Remove, m) || slices.ContainsFunc(c.Add, func(a ownership.Member) bool { return a.Region == m.Region })
		})
		members = append(members, c.Add...)
		slices.SortFunc(members, func(a, b ownership.Member) int { return strings.Compare(a.Region, b.Region) })
		return members
	}
	return nil
}

func confirmingByNew(heard []Heard, self ownership.Member, c ownership.Copy) uint64 {
	c.Spans = c.Spans[len(c.Spans)-1:]
	return confirmed(heard, self, c)
}

func sealingByNew(c ownership.Campaign) ownership.Plan {
	return plannedAs(c, func(r *ownership.Copy) { r.Confirmed = max(r.Confirmed, r.Spans[len(r.Spans)-1].Start) })
}

func TestPlantedBugsAreFound(t *testing.T) {
	for _, p := range planted {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			rules := Correct()
			p.plant(&rules)
			cfg := p.cfg
			cfg.Limit = 3_000_000
			res := Run(cfg, rules)
			t.Logf("%d states: %v", res.States, res)
			if !strings.HasPrefix(res.Violation, p.want) {
				t.Fatalf("want a violation of %s", p.want)
			}
			if len(res.Transcript) != p.steps {
				t.Errorf("found in %d steps, want %d", len(res.Transcript), p.steps)
			}
		})
	}
}
