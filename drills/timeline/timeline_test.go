package timeline_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"ringmain/drills/load"
	"ringmain/drills/timeline"
	"ringmain/drills/timeline/outagekit"
)

const second = time.Second

func at(t *testing.T, what string, got *time.Duration, want time.Duration) {
	t.Helper()
	if got == nil || *got != want {
		t.Errorf("%s at %v, want %s", what, got, want)
	}
}

func TestTimelineOfAnOutage(t *testing.T) {
	o := outagekit.Outage()
	got := o.Moments()
	at(t, "T0", got.T0, 10*second)
	at(t, "T1", got.T1, 12*second)
	at(t, "published up", got.PublishedUp, 46*second)
	at(t, "T2", got.T2, 10*second+100*time.Millisecond)
	at(t, "T3", got.T3, 10*second+610*time.Millisecond) // just after the last request by the front door that failed
	at(t, "T5", got.T5, 41*second)

	nothing := timeline.Observations{Lost: o.Lost, Survivors: o.Survivors, End: 50 * second, Killed: 10 * second, Released: 35 * second, Results: o.Results}
	if got := nothing.Moments(); got != (timeline.Moments{}) {
		t.Errorf("a timeline without a proven fault: %+v", got)
	}
}

func TestGroups(t *testing.T) {
	o := outagekit.Outage()
	with := func(change func(*load.Result)) load.Result {
		r := outagekit.Request(0, 20*second, "us-east", load.Failed)
		change(&r)
		return r
	}
	for name, c := range map[string]struct {
		r    load.Result
		want timeline.Group
	}{
		"a survivor":                 {with(func(*load.Result) {}), timeline.Unaffected},
		"the lost region":            {with(func(r *load.Result) { r.Entry = "eu-fra" }), timeline.EnteredLost},
		"the front door":             {with(func(r *load.Result) { r.Entry = load.FrontDoor }), timeline.ByFrontDoor},
		"ran in the lost region":     {with(func(r *load.Result) { r.Attempts[0].Ran = "eu-fra" }), timeline.Relayed},
		"routed by the lost region":  {with(func(r *load.Result) { r.Attempts[0].Route = "us-east/us-east-d1 > eu-fra/eu-fra-d2 > openai-eu" }), timeline.Relayed},
		"an upstream of that name":   {with(func(r *load.Result) { r.Attempts[0].Route = "us-east/us-east-d1 > eu-fra" }), timeline.Unaffected},
		"pinned there":               {with(func(r *load.Result) { r.Entry, r.Residency = "eu-fra", "eu" }), timeline.NoSecondHome},
		"pinned elsewhere":           {with(func(r *load.Result) { r.Residency = "us" }), timeline.Unaffected},
		"remote model, other region": {with(func(r *load.Result) { r.Model = "far" }), timeline.Unaffected},
	} {
		if got := o.Group(&c.r); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	far := with(func(r *load.Result) { r.Model, r.Entry = "far", load.FrontDoor })
	o.RemoteRegion = "eu-fra"
	if got := o.Group(&far); got != timeline.NoSecondHome {
		t.Errorf("a model with its only upstream in the lost region: %s", got)
	}
	pinned := with(func(r *load.Result) { r.Entry, r.Residency = "eu-fra", "eu" })
	o.Survivors = append(o.Survivors, timeline.Place{Name: "eu-par", Jurisdiction: "eu"})
	if got := o.Group(&pinned); got != timeline.EnteredLost {
		t.Errorf("pinned to a jurisdiction with a second region: %s", got)
	}
}

// twin computes T2 and T3 by looking at everything again for each candidate.
func twin(o timeline.Observations, t0 time.Duration) (t2, t3 time.Duration) {
	t2, t3 = -1, -1
	led, ledAt := false, time.Duration(-1)
	for _, r := range o.Results {
		last := r.Attempts[len(r.Attempts)-1]
		if r.Entry == load.FrontDoor && r.At >= o.Measured && last.End < o.Killed && last.Class == load.OK && r.At >= ledAt { // N ascends
			led, ledAt = last.EntryWas == o.Lost.Name, r.At
		}
	}
	for _, r := range o.Results {
		last := r.Attempts[len(r.Attempts)-1]
		owed := o.Group(&r) == timeline.EnteredLost || (o.Group(&r) == timeline.ByFrontDoor && led)
		if owed && r.At >= t0 && r.At < o.Released && last.Class == load.OK && (t2 < 0 || last.End < t2) {
			t2 = last.End
		}
	}
	for from := t0; from+10*second <= o.End; from += 10 * time.Millisecond {
		n, good := 0, 0
		for _, r := range o.Results {
			if r.At >= from && r.At < from+10*second && o.Group(&r) != timeline.NoSecondHome {
				n++
				if r.Attempts[len(r.Attempts)-1].Class == load.OK {
					good++
				}
			}
		}
		if n > 0 && good*1000 >= 999*n {
			return t2, from
		}
	}
	return t2, t3
}

func TestTimelineAgainstANaiveTwin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenth := rapid.IntRange(0, 400)
		moment := func(name string) time.Duration {
			return time.Duration(tenth.Draw(t, name)) * 100 * time.Millisecond
		}
		o := timeline.Observations{
			Lost: timeline.Place{Name: "eu-fra", Jurisdiction: "eu"}, Survivors: []timeline.Place{{Name: "us-east", Jurisdiction: "us"}},
			Measured: 2 * second, Killed: 8 * second, Released: 8*second + moment("released"), End: 40 * second,
			Probes: []timeline.Probe{{At: 8*second + time.Duration(rapid.IntRange(0, 3000).Draw(t, "t0"))*time.Millisecond}},
		}
		steady := moment("steady from") // few failures after it, so that there often is a T3
		for n := range rapid.IntRange(0, 400).Draw(t, "requests") {
			r := outagekit.Request(n, moment("at"), rapid.SampledFrom([]string{"eu-fra", "us-east", load.FrontDoor}).Draw(t, "entry"), load.OK)
			for i := range r.Attempts {
				if bad := rapid.IntRange(0, 99).Draw(t, "bad"); (r.At < steady && bad < 30) || bad == 0 {
					r.Attempts[i].Class = load.Failed
				}
				r.Attempts[i].EntryWas = rapid.SampledFrom([]string{"eu-fra", "us-east"}).Draw(t, "led to")
			}
			o.Results = append(o.Results, r)
		}
		got := o.Moments()
		t2, t3 := twin(o, o.Probes[0].At)
		for name, c := range map[string]struct {
			got  *time.Duration
			want time.Duration
		}{"T2": {got.T2, t2}, "T3": {got.T3, t3}} {
			if (c.got == nil) != (c.want < 0) || (c.got != nil && *c.got != c.want) {
				t.Fatalf("%s is %v, the twin says %s", name, c.got, c.want)
			}
		}
	})
}
