package admission

import (
	"math/rand/v2"
	"testing"
	"time"
)

const (
	calm    = time.Millisecond
	strain  = 50 * time.Millisecond
	perTick = 100 // requests that the simulated worker can serve in one window
)

// worker plays windows of a worker that is overloaded once it lets in more
// than perTick requests. It gives how many of each priority it served.
func worker(g *Gate, r *rand.Rand, offered map[Priority]int) (served [priorities]int) {
	total := 0
	for p := range priorities {
		for range offered[p] {
			if !g.Arrive() {
				continue
			}
			if g.Pass(p, r.Uint64()) {
				served[p]++
				total++
			}
			g.Leave()
		}
	}
	if total > perTick {
		g.Window(strain)
	} else {
		g.Window(calm)
	}
	return served
}

func TestOverloadShedsFromBelowAndRecovers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	g := NewGate(GateConfig{})
	usual := map[Priority]int{Enterprise: 20, Scale: 20, Trial: 20, TrialBatch: 20}
	for range 20 {
		for p, n := range worker(g, r, usual) {
			if n != usual[Priority(p)] {
				t.Fatalf("a worker with room shed %d of %s", usual[Priority(p)]-n, Priority(p))
			}
		}
	}
	if g.Step() != StepNone {
		t.Fatalf("step %d without load", g.Step())
	}

	storm := map[Priority]int{Enterprise: 30, Scale: 40, Build: 20, Trial: 60, TrialBatch: 150, Test: 50}
	for range 40 {
		worker(g, r, storm)
	}
	var sum [priorities]int
	const windows = 200
	for range windows {
		for p, n := range worker(g, r, storm) {
			sum[p] += n
		}
	}
	total := 0
	for p, n := range sum {
		total += n
		t.Logf("%-12s %5.1f of %d a window", Priority(p), float64(n)/windows, storm[Priority(p)])
	}
	if sum[Enterprise] != windows*storm[Enterprise] {
		t.Errorf("enterprise was shed: %d of %d", sum[Enterprise], windows*storm[Enterprise])
	}
	if sum[Scale] < windows*storm[Scale]*95/100 {
		t.Errorf("scale was shed while trial was there to shed: %d of %d", sum[Scale], windows*storm[Scale])
	}
	if sum[TrialBatch]+sum[Test] > windows*10 {
		t.Errorf("batch and test work was served in the storm: %d", sum[TrialBatch]+sum[Test])
	}
	if per := float64(total) / windows; per < 0.8*perTick || per > 1.1*perTick {
		t.Errorf("%.1f requests a window served, of %d possible", per, perTick)
	}
	if g.Step() < StepNoBatch {
		t.Errorf("step %d in the storm", g.Step())
	}

	after := 0
	for g.Step() != StepNone {
		worker(g, r, usual)
		if after++; after > 1000 {
			t.Fatalf("step %d long after the storm", g.Step())
		}
	}
	t.Logf("all served again %d windows after the storm", after)
	if after > 240 { // a minute at four windows a second
		t.Errorf("%d windows until everybody was served again", after)
	}
}

func TestForcedSteps(t *testing.T) {
	for _, c := range []struct{ step, serves int }{
		{StepNone, int(priorities)}, {StepFrugal, int(priorities)}, {StepNoBatch, int(PaidBatch)},
		{StepNoTrial, int(Trial)}, {StepPaidOnly, int(Build)}, {9, int(Build)}, {-1, int(priorities)},
	} {
		g := NewGate(GateConfig{})
		g.Force(c.step)
		for p := range priorities {
			for _, lot := range []uint64{0, 1, lots - 1} {
				if got, want := g.Pass(p, lot), int(p) < c.serves; got != want {
					t.Errorf("step %d, %s: let in %v, want %v", c.step, p, got, want)
				}
			}
		}
		if want := min(max(c.step, 0), 4); g.Step() != want {
			t.Errorf("step %d is shown as %d", c.step, g.Step())
		}
		for range 100 {
			g.Window(calm)
		}
		if want := min(max(c.step, 0), 4); g.Step() != want {
			t.Errorf("calm windows turned step %d into %d", c.step, g.Step())
		}
	}
}

func TestCapacityIsKeptForTheImportant(t *testing.T) {
	g := NewGate(GateConfig{Capacity: 100})
	entered := func(p Priority) int {
		n := 0
		for g.Arrive() {
			if !g.Pass(p, 0) {
				g.Leave()
				break
			}
			n++
		}
		return n
	}
	for _, c := range []struct {
		p    Priority
		upTo int64
	}{{Test, 70}, {TrialBatch, 75}, {Trial, 90}, {Scale, 98}, {Enterprise, 100}} {
		entered(c.p)
		if g.InFlight() != c.upTo {
			t.Errorf("%s fills %d of 100, want %d", c.p, g.InFlight(), c.upTo)
		}
	}
	if g.Arrive() {
		t.Error("request 101 of 100 was let in")
	}
	if s := g.State(); s.Refused != 2 || s.Shed[Test] != 1 { // enterprise's 101st, and ours
		t.Errorf("counted %+v", s)
	}
}

func TestPriorityOf(t *testing.T) {
	order := []Priority{
		PriorityOf("enterprise", false, false), PriorityOf("scale", false, false), PriorityOf("build", false, false),
		PriorityOf("trial", false, false), PriorityOf("enterprise", true, false), PriorityOf("build", true, false),
		PriorityOf("trial", true, false), PriorityOf("enterprise", false, true),
	}
	for i, p := range order {
		if int(p) != i {
			t.Errorf("place %d is %s", i, p)
		}
	}
	if PriorityOf("no such plan", false, false) != Trial || PriorityOf("scale", true, false) != PaidBatch {
		t.Error("an unknown plan is a trial's, and batch of scale is paid")
	}
}

func BenchmarkPass(b *testing.B) {
	g := NewGate(GateConfig{})
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if g.Arrive() && g.Pass(Scale, uint64(i)) {
			g.Leave()
		}
	}
}

// TestNoiseShedsNobody: goroutines wait on a noisy machine too. A worker that
// has next to nothing to do is not overloaded by it, and sheds nobody for that.
func TestNoiseShedsNobody(t *testing.T) {
	g := NewGate(GateConfig{})
	var under int
	for i := range 200 {
		for p := range priorities { // two requests a second
			if i%16 != 2*int(p) {
				continue
			}
			if !g.Arrive() || !g.Pass(p, uint64(i)) {
				t.Fatalf("window %d: %s was shed", i, p)
			}
			if under++; under > 20 { // some streams last
				g.Leave()
			}
		}
		g.Window(strain)
		if g.Step() != StepNone {
			t.Fatalf("window %d: step %d", i, g.Step())
		}
	}
}
