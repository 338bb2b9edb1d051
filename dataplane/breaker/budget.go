package breaker

import (
	"cmp"
	"sync"
	"time"
)

// BudgetRules bound how much of an upstream's load may be futile repetition.
// Zero values take the defaults in brackets.
type BudgetRules struct {
	Share  float64       // of the requests that came to the upstream [0.1]
	Least  int           // that may be spent whatever the load is [10]
	Window time.Duration // over which both are counted [10 s]
}

// budgetSlots is in how many steps a budget's window slides.
const budgetSlots = 10

func (r BudgetRules) withDefaults() BudgetRules {
	r.Share = cmp.Or(r.Share, 0.1)
	r.Least = cmp.Or(r.Least, 10)
	r.Window = cmp.Or(r.Window, 10*time.Second)
	return r
}

// Budgets hold a retry budget per upstream: within any window, at most Share of
// its requests, and Least more, may be asked in vain for a second time ("Site
// Reliability Engineering", chapter 21). They are safe for concurrent use, and
// read no clock.
type Budgets struct {
	rules BudgetRules
	all   sync.Map // upstream -> *budget
}

// NewBudgets makes Budgets.
func NewBudgets(rules BudgetRules) *Budgets { return &Budgets{rules: rules.withDefaults()} }

type budget struct {
	mu    sync.Mutex
	slots [budgetSlots]struct{ asked, again int }
	last  int64 // number of the newest slot, since 1970
}

func (b *Budgets) of(upstream string) *budget {
	if x, ok := b.all.Load(upstream); ok {
		return x.(*budget) //nolint:forcetypeassert // only budgets are stored
	}
	x, _ := b.all.LoadOrStore(upstream, new(budget))
	return x.(*budget) //nolint:forcetypeassert // only budgets are stored
}

// slot slides the window to now and gives its newest slot. The caller holds mu.
func (x *budget) slot(now time.Time, r *BudgetRules) *struct{ asked, again int } {
	n := now.UnixNano() / int64(r.Window/budgetSlots)
	for skipped := 0; x.last < n; skipped++ {
		if skipped == budgetSlots {
			x.last = n
			break
		}
		x.last++
		x.slots[x.last%budgetSlots] = struct{ asked, again int }{}
	}
	return &x.slots[x.last%budgetSlots]
}

// room reports whether one more may be spent. The caller holds mu and has slid
// the window.
func (x *budget) room(r *BudgetRules) bool {
	asked, again := 0, 0
	for i := range x.slots {
		asked += x.slots[i].asked
		again += x.slots[i].again
	}
	return float64(again)+1 <= r.Share*float64(asked)+float64(r.Least)
}

// Asked notes a request that upstream had not seen before.
func (b *Budgets) Asked(upstream string, now time.Time) {
	x := b.of(upstream)
	x.mu.Lock()
	x.slot(now, &b.rules).asked++
	x.mu.Unlock()
}

// Room reports whether upstream may be burdened with a request that failed
// before, there or elsewhere.
func (b *Budgets) Room(upstream string, now time.Time) bool {
	x := b.of(upstream)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.slot(now, &b.rules)
	return x.room(&b.rules)
}

// Take spends one if there is room: upstream is asked again for a request that
// it failed.
func (b *Budgets) Take(upstream string, now time.Time) bool {
	x := b.of(upstream)
	x.mu.Lock()
	defer x.mu.Unlock()
	s := x.slot(now, &b.rules)
	if !x.room(&b.rules) {
		return false
	}
	s.again++
	return true
}

// Spend notes that a request, which had failed elsewhere, failed at upstream
// too. One that succeeds costs nothing: it was load moved, not load added.
func (b *Budgets) Spend(upstream string, now time.Time) {
	x := b.of(upstream)
	x.mu.Lock()
	x.slot(now, &b.rules).again++
	x.mu.Unlock()
}
