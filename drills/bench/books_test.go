package main

import (
	"math/rand/v2"
	"testing"
	"time"
)

// memory makes 400 samples, a second apart, of 200 MiB that grow by growth and
// wander by about 1 MiB; each keeps the share stays of the wandering before it.
func memory(seed uint64, growth, stays float64) []sample {
	rng := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // G404: a test's
	samples := make([]sample, 400)
	var off float64
	for i := range samples {
		off = stays*off + (1-stays)*rng.NormFloat64()
		samples[i] = sample{at: time.Duration(i) * time.Second, worker: 200 + growth*float64(i)/400 + off}
	}
	return samples
}

// What wanders slowly looks like a trend to a line through samples that are
// taken to know nothing of each other.
func TestWanderingIsNoTrend(t *testing.T) {
	worker := func(p *sample) float64 { return p.worker }
	for _, stays := range []float64{0, 0.5, 0.9, 0.95} {
		wrong, missed := 0, 0
		for seed := range uint64(500) {
			flat, grown := memory(seed, 0, stays), memory(seed, 6, stays)
			if perHour, se := slope(flat, worker); perHour > 3*se {
				wrong++
			}
			if perHour, se := slope(grown, worker); perHour <= 3*se {
				missed++
			}
		}
		t.Logf("keeps %.2f: %d of 500 flat ones seen to grow, %d of 500 that grew by 6 MiB not seen", stays, wrong, missed)
		if wrong > 15 || missed > 5 {
			t.Errorf("keeps %.2f: %d of 500 flat ones seen to grow, %d of 500 that grew by 6 MiB not seen", stays, wrong, missed)
		}
	}
}

func TestGrowthThatIsNone(t *testing.T) {
	still := make([]sample, 30)
	for i := range still {
		still[i] = sample{at: time.Duration(i) * time.Second, worker: 200}
	}
	worker := func(p *sample) float64 { return p.worker }
	if got := trendOf(still, still[0], still[29], worker); got.grows(0.01) {
		t.Errorf("memory that stands still: %+v", got)
	}
	for i := range still {
		still[i].worker += 0.01 * float64(i)
	}
	if got := trendOf(still, still[0], still[29], worker); got.grows(0.01) {
		t.Errorf("a trend of 0.1 %% is said to be growth: %+v", got)
	}
	for i := range still {
		still[i].worker += 0.5 * float64(i)
	}
	if got := trendOf(still, still[0], still[29], worker); !got.grows(0.01) {
		t.Errorf("5 %% in 20 s is not said to be growth: %+v", got)
	}
}
