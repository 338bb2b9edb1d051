// Package admission decides who is served when not everybody can be: a gate
// per worker that sheds the least important requests first, and an adaptive
// limit per upstream. Both are counters and arithmetic: time and measurements
// are arguments, and nothing here waits.
package admission

import (
	"sync"
	"sync/atomic"
	"time"
)

// Priority orders requests; lower is more important.
type Priority uint8

// Priorities. Interactive goes before batch, and paid plans before trial.
const (
	Enterprise Priority = iota
	Scale
	Build
	Trial
	PaidBatch // enterprise and scale
	BuildBatch
	TrialBatch
	Test // keys that reach simulated models only
	priorities
)

// PriorityOf gives the priority of a request: the org's plan, whether its
// project is one of batch work, and whether the key is a test key. A plan that
// is not known counts as trial.
func PriorityOf(plan string, batch, test bool) Priority {
	if test {
		return Test
	}
	p, b := Trial, TrialBatch
	switch plan {
	case "enterprise":
		p, b = Enterprise, PaidBatch
	case "scale":
		p, b = Scale, PaidBatch
	case "build":
		p, b = Build, BuildBatch
	}
	if batch {
		return b
	}
	return p
}

// Steps of a brown-out: what a worker no longer does. Each step includes those
// before it.
const (
	StepNone     = 0
	StepFrugal   = 1 // no optional work: streams that break are not spliced
	StepNoBatch  = 2 // batch work and test keys are shed
	StepNoTrial  = 3 // trial plans are shed
	StepPaidOnly = 4 // only enterprise and scale are served, and of them only interactive work
)

// served is the number of priorities that a step still serves.
var served = [...]int{priorities0, priorities0, int(PaidBatch), int(Trial), int(Build)}

const (
	priorities0 = int(priorities)
	// lots divide each priority, so that a part of it can be shed.
	lots = 128
	full = priorities0 * lots // the threshold that sheds nobody
)

// share of the capacity that requests of a priority may fill, in percent: the
// less important, the sooner it is refused as the worker fills up.
var share = [priorities]int64{100, 98, 95, 90, 80, 80, 75, 70}

// GateConfig of a Gate. Zero values take the defaults in brackets.
type GateConfig struct {
	Capacity int64         // requests under way at once [4096]
	Target   time.Duration // scheduling delay above which the worker is overloaded [20 ms]
}

// Gate lets requests in. Its overload control is that of DAGOR (Zhou et al.,
// "Overload Control for Scaling WeChat Microservices", SoCC 2018): in each
// window the delay says whether fewer or more requests than came in may come
// in, and a histogram of their priorities says where to cut. All methods are
// safe for concurrent use and quick.
type Gate struct {
	cfg      GateConfig
	inflight atomic.Int64
	cut      atomic.Int32 // priority·lots + lot below which requests are let in
	forced   atomic.Int32 // step that an operator asked for
	seen     [full]atomic.Uint32
	shed     [priorities]atomic.Uint64
	refused  atomic.Uint64 // at capacity, priority unknown

	mu  sync.Mutex // guards Window
	max int32      // cut as load alone would have it
}

// NewGate makes a Gate that sheds nobody.
func NewGate(cfg GateConfig) *Gate {
	if cfg.Capacity <= 0 {
		cfg.Capacity = 4096
	}
	if cfg.Target <= 0 {
		cfg.Target = 20 * time.Millisecond
	}
	g := &Gate{cfg: cfg, max: int32(full)}
	g.cut.Store(int32(full))
	return g
}

// Arrive counts a request whose priority is not known yet. False: the worker
// is full; the request was not counted.
func (g *Gate) Arrive() bool {
	if g.inflight.Add(1) > g.cfg.Capacity {
		g.inflight.Add(-1)
		g.refused.Add(1)
		return false
	}
	return true
}

// Pass decides about a request that Arrive counted, once it is known whose it
// is. lot is a random number: of requests of one priority it picks those that
// are shed first. False: shed it, and Leave.
func (g *Gate) Pass(p Priority, lot uint64) bool {
	at := int(p)*lots + int(lot%lots)
	g.seen[at].Add(1)
	if int32(at) >= g.cut.Load() || g.inflight.Load() > (g.cfg.Capacity*share[p]+99)/100 {
		g.shed[p].Add(1)
		return false
	}
	return true
}

// Leave ends what Arrive began.
func (g *Gate) Leave() { g.inflight.Add(-1) }

// InFlight is how many requests are under way.
func (g *Gate) InFlight() int64 { return g.inflight.Load() }

// Capacity is how many may be.
func (g *Gate) Capacity() int64 { return g.cfg.Capacity }

// Force sets the least step, as an operator asks; 0 leaves it to the load.
// Steps out of range count as the nearest.
func (g *Gate) Force(step int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forced.Store(int32(min(max(step, StepNone), StepPaidOnly)))
	g.apply()
}

// apply puts the stricter of load and operator in force. The caller holds mu.
func (g *Gate) apply() {
	g.cut.Store(min(g.max, int32(served[g.forced.Load()]*lots)))
}

const (
	shrink = 0.8  // of what came in, after an overloaded window
	grow   = 1.05 // of what came in, after a calm one
	few    = 64   // requests that came or are under way: fewer are not what a worker suffers from
)

// Window closes a window of observation: delay is how long a goroutine that
// could run had to wait in it. Call it some times a second. The most important
// priority is never shed by load, and nobody is by a worker that has few
// requests: the machine is noisy then, and shedding would not help.
func (g *Gate) Window(delay time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var seen [full]uint32
	admitted := 0.0
	load := g.inflight.Load()
	for i := range seen {
		seen[i] = g.seen[i].Swap(0)
		load += int64(seen[i])
		if int32(i) < g.max {
			admitted += float64(seen[i])
		}
	}
	switch {
	case load < few:
		g.max = int32(full)
	case delay > g.cfg.Target:
		g.max = max(lots, lower(&seen, g.max, admitted*shrink))
	default:
		g.max = raise(&seen, g.max, admitted*grow)
	}
	g.apply()
}

// lower gives the greatest cut that lets in no more than goal, but below cut.
func lower(seen *[full]uint32, cut int32, goal float64) int32 {
	sum := 0.0
	for i := range cut {
		sum += float64(seen[i])
		if sum > goal {
			return i
		}
	}
	return max(cut-lots/8, 0) // nobody came: the load is of requests let in before
}

// raise gives the greatest cut that lets in no more than goal, but above cut.
func raise(seen *[full]uint32, cut int32, goal float64) int32 {
	sum := 0.0
	for i := range cut {
		sum += float64(seen[i])
	}
	cut = min(cut+lots/32, int32(full)) // a calm window always wins a little ground back
	for cut < int32(full) {
		sum += float64(seen[cut])
		if sum > goal {
			break
		}
		cut++
	}
	return cut
}

// State is what a Gate does at the moment.
type State struct {
	Step     int                // in force
	Forced   int                // asked for by an operator
	Cut      float64            // share of the priorities' range that is served, 0 to 1
	InFlight int64              // requests under way
	Shed     [priorities]uint64 // requests shed so far, by priority
	Refused  uint64             // requests refused at full capacity so far
}

// Step gives the step in force.
func (g *Gate) Step() int {
	cut := int(g.cut.Load())
	step := int(g.forced.Load())
	switch {
	case cut <= served[StepPaidOnly]*lots:
		step = StepPaidOnly
	case cut <= served[StepNoTrial]*lots:
		step = max(step, StepNoTrial)
	case cut <= served[StepNoBatch]*lots:
		step = max(step, StepNoBatch)
	case cut < full:
		step = max(step, StepFrugal)
	}
	return step
}

// State gives a copy of what the Gate counts.
func (g *Gate) State() State {
	s := State{
		Step: g.Step(), Forced: int(g.forced.Load()), Cut: float64(g.cut.Load()) / float64(full),
		InFlight: g.inflight.Load(), Refused: g.refused.Load(),
	}
	for p := range s.Shed {
		s.Shed[p] = g.shed[p].Load()
	}
	return s
}

// String names the priority as metrics do.
func (p Priority) String() string {
	if p >= priorities {
		return "unknown"
	}
	return [...]string{"enterprise", "scale", "build", "trial", "paid-batch", "build-batch", "trial-batch", "test"}[p]
}
