package admission

import (
	"testing"
	"time"
)

// upstream plays one that serves so many at once, each in a second, and turns
// the rest away at once, as providers do.
type upstream struct {
	can   int
	ends  []time.Time // of requests under way
	began []time.Time
}

// play offers demand requests a tick of 100 ms for d, and gives how many were
// served and how many were turned away.
func (u *upstream) play(l *Limits, now *time.Time, demand int, d time.Duration) (served, throttled int) {
	for end := now.Add(d); now.Before(end); *now = now.Add(100 * time.Millisecond) {
		for len(u.ends) > 0 && !u.ends[0].After(*now) {
			l.Release("up", "m", Good, u.began[0], *now)
			u.ends, u.began = u.ends[1:], u.began[1:]
			served++
		}
		for range demand {
			if !l.Acquire("up", "m", 0, *now) {
				break
			}
			if len(u.ends) >= u.can {
				l.Release("up", "m", Overloaded, *now, *now)
				throttled++
				continue
			}
			u.ends, u.began = append(u.ends, now.Add(time.Second)), append(u.began, *now)
		}
	}
	return served, throttled
}

func TestLimitFindsWhatAnUpstreamCanDo(t *testing.T) {
	l, now := NewLimits(LimitsConfig{Start: 1024}), time.Unix(1_800_000_000, 0)
	u := &upstream{can: 100}
	u.play(l, &now, 40, time.Minute) // four times what it can
	served, throttled := u.play(l, &now, 40, 5*time.Minute)
	t.Logf("served %d, turned away %d in 5 min", served, throttled)
	if served < 300*100*8/10 {
		t.Errorf("served %d of %d possible", served, 300*100)
	}
	if throttled > served/10 {
		t.Errorf("%d turned away for %d served", throttled, served)
	}
	if most, _ := l.Limit("up", "m"); most < 60 || most > 140 {
		t.Errorf("limit %d for an upstream that can do 100", most)
	}

	u.can = 10 // an incident
	u.play(l, &now, 40, time.Minute)
	if most, _ := l.Limit("up", "m"); most > 30 {
		t.Errorf("limit %d for an upstream that can do 10", most)
	}
	u.can = 1000 // it is over
	u.play(l, &now, 200, 2*time.Minute)
	if most, _ := l.Limit("up", "m"); most < 900 {
		t.Errorf("limit %d two minutes after the incident", most)
	}
}

func TestOneRoundOfRefusalsIsOneSign(t *testing.T) {
	l, now := NewLimits(LimitsConfig{Start: 100}), time.Unix(1_800_000_000, 0)
	for range 100 {
		if !l.Acquire("up", "m", 0, now) {
			t.Fatal("no place below the limit")
		}
	}
	if l.Acquire("up", "m", 0, now) {
		t.Fatal("place 101 of 100")
	}
	later := now.Add(10 * time.Millisecond)
	for range 100 {
		l.Release("up", "m", Overloaded, now, later)
	}
	if most, used := l.Limit("up", "m"); most != 70 || used != 0 {
		t.Errorf("limit %d, used %d after one round of refusals, want 70, 0", most, used)
	}
}

func TestOwnBoundAndNames(t *testing.T) {
	l, now := NewLimits(LimitsConfig{Start: 1024}), time.Unix(1_800_000_000, 0)
	if !l.Acquire("a", "m", 1, now) || l.Acquire("a", "m", 1, now) {
		t.Error("an upstream's own bound of 1 is not kept")
	}
	if l.Acquire("a", "other", 1, now) {
		t.Error("an upstream's own bound is not for all its models")
	}
	if !l.Acquire("b", "m", 1, now) {
		t.Error("upstreams share a bound")
	}
	l.Release("a", "m", Neutral, now, now)
	if !l.Acquire("a", "m", 1, now) {
		t.Error("a place that was given back cannot be taken")
	}
	l.Release("nobody", "m", Good, now, now) // does nothing
}

func TestFewRefusals(t *testing.T) {
	l, now := NewLimits(LimitsConfig{Start: 1024}), time.Unix(1_800_000_000, 0)
	for i, want := range []int{1024, 1024, 16} {
		l.Acquire("up", "m", 0, now)
		now = now.Add(time.Second)
		l.Release("up", "m", Overloaded, now.Add(-time.Second), now)
		if most, _ := l.Limit("up", "m"); most != want {
			t.Errorf("limit %d after %d refusals of an idle upstream, want %d", most, i+1, want)
		}
	}
	if most, _ := l.Limit("up", "other"); most != 1024 {
		t.Errorf("limit %d of another model, want that of the start", most)
	}
}

// TestOneCustomersRefusals: a request that its provider always answers with
// 429, as one over the tokens a minute, says nothing of all the others, whom
// the upstream serves.
func TestOneCustomersRefusals(t *testing.T) {
	l, now := NewLimits(LimitsConfig{Start: 1024}), time.Unix(1_800_000_000, 0)
	u := &upstream{can: 2000}
	served, throttled := 0, 0
	for range 300 { // seconds
		if l.Acquire("up", "m", 0, now) {
			l.Release("up", "m", Overloaded, now, now.Add(time.Millisecond))
		}
		s, x := u.play(l, &now, 40, time.Second)
		served, throttled = served+s, throttled+x
	}
	most, _ := l.Limit("up", "m")
	t.Logf("served %d, turned away %d, limit %d", served, throttled, most)
	if served < 300*40*10*95/100 || most < 500 {
		t.Errorf("served %d of %d, limit %d, for one 429 a second", served, 300*400, most)
	}
}

// TestLimitHeals: a limit that fell and was not needed since is no limit for
// what comes an hour later.
func TestLimitHeals(t *testing.T) {
	l, now := NewLimits(LimitsConfig{Start: 1024}), time.Unix(1_800_000_000, 0)
	for range 20 {
		l.Acquire("up", "m", 0, now)
	}
	for range 20 {
		l.Release("up", "m", Overloaded, now, now.Add(time.Millisecond))
	}
	if most, _ := l.Limit("up", "m"); most > 30 {
		t.Fatalf("limit %d after a round of refusals", most)
	}
	for range 30 { // now and then a request that is served
		now = now.Add(2 * time.Second)
		l.Acquire("up", "m", 0, now)
		l.Release("up", "m", Good, now, now)
	}
	now = now.Add(time.Second)
	in := 0
	for range 200 {
		if l.Acquire("up", "m", 0, now) {
			in++
		}
	}
	if in != 200 {
		t.Errorf("%d of 200 at once are let in a minute after the last refusal", in)
	}
}
