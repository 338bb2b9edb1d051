package breaker

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// naiveBudget keeps every event.
type naiveBudget struct {
	asked, again []time.Time
	rules        BudgetRules
}

func (n *naiveBudget) within(list []time.Time, now time.Time) int {
	step := n.rules.Window / budgetSlots
	count := 0
	for _, at := range list {
		if at.Truncate(step).After(now.Truncate(step).Add(-n.rules.Window)) {
			count++
		}
	}
	return count
}

func (n *naiveBudget) room(now time.Time) bool {
	return float64(n.within(n.again, now)+1) <= n.rules.Share*float64(n.within(n.asked, now))+float64(n.rules.Least)
}

func TestBudgetAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rules := BudgetRules{
			Share: rapid.SampledFrom([]float64{0.1, 0.25, 0.5}).Draw(t, "share"), Least: rapid.IntRange(1, 5).Draw(t, "least"),
			Window: rapid.SampledFrom([]time.Duration{time.Second, 10 * time.Second}).Draw(t, "window"),
		}
		b, n := NewBudgets(rules), &naiveBudget{rules: rules}
		now := time.Unix(1_800_000_000, 0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(rules.Window)/4).Draw(t, "pause")))
			if rapid.IntRange(0, 30).Draw(t, "long") == 0 {
				now = now.Add(time.Duration(rapid.Int64Range(0, int64(rules.Window)*3).Draw(t, "long pause")))
			}
			want := n.room(now)
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0:
				b.Asked("u", now)
				n.asked = append(n.asked, now)
			case 1:
				if got := b.Take("u", now); got != want {
					t.Fatalf("take %t, want %t", got, want)
				}
				if want {
					n.again = append(n.again, now)
				}
			case 2:
				b.Spend("u", now)
				n.again = append(n.again, now)
			case 3:
				if got := b.Room("u", now); got != want {
					t.Fatalf("room %t, want %t", got, want)
				}
			}
		}
	})
}

// TestBudgetOfAStorm: of requests that all fail and would all be repeated twice,
// a tenth and a few are.
func TestBudgetOfAStorm(t *testing.T) {
	b := NewBudgets(BudgetRules{})
	now := time.Unix(1_800_000_000, 0)
	const requests = 10_000
	again := 0
	for range requests {
		b.Asked("u", now)
		for range 2 {
			if b.Take("u", now) {
				again++
			}
		}
		now = now.Add(100 * time.Microsecond) // all within one window
	}
	if again > requests/10+10 || again < requests/10-10 {
		t.Errorf("%d repeated of %d", again, requests)
	}
	if !b.Take("other", now) {
		t.Error("one upstream's storm used up another's budget")
	}
}
