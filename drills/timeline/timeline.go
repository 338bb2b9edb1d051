// Package timeline works out, from what one observer saw of a run, when what
// happened and what the loss of a region meant for each request.
//
// It is pure: no clock, no goroutine, nothing read or written.
package timeline

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"ringmain/drills/load"
)

// Observations are everything one observer saw in a run, on one monotonic
// clock that starts with the load.
type Observations struct {
	Lost         Place
	Survivors    []Place
	RemoteModel  string // its only upstream is in RemoteRegion; "" = none
	RemoteRegion string

	Measured time.Duration // end of the warm-up: what was planned before is not counted
	Killed   time.Duration // just before the first signal
	Released time.Duration // restarts were allowed again
	End      time.Duration // the last moment for which a request was planned
	Ready    time.Duration // every node ready again; 0 = not seen

	Probes       []Probe
	Publications []Publication
	Results      []load.Result
}

// Place is a region's name and jurisdiction.
type Place struct{ Name, Jurisdiction string }

// Probe is one TCP connect to a data node of the lost region.
type Probe struct {
	At   time.Duration
	Node string
	OK   bool
}

// Publication is a change of what a region's control plane says of the lost region.
type Publication struct {
	At       time.Duration
	Observer string // region
	Down     bool
}

// Moments are the marks of a run; nil = did not happen. T4 (the hypothesis
// held for five minutes) and T6 (shares as before) are of longer drills.
type Moments struct {
	T0          *time.Duration // fault proven: first failed connect to the lost region
	T1          *time.Duration // first survivor publishes it down
	T2          *time.Duration // first good answer to a request that the lost region owed
	T3          *time.Duration // start of the first SteadyWindow with steadyShare good answers
	T5          *time.Duration // every node ready again
	PublishedUp *time.Duration // the same survivor publishes it up again
}

// SteadyWindow is how long nearly all answers must be good for a recovery to count.
const SteadyWindow = 10 * time.Second

const (
	steadyShare = 0.999
	steadyStep  = 10 * time.Millisecond // to which T3 is resolved
)

// Group says what the loss of the region means for a request.
type Group string

// Groups. Each request is in the first that applies.
const (
	NoSecondHome Group = "no_second_home" // its pin or its model has no other region: it must fail while the region is lost
	ByFrontDoor  Group = "front_door"     // entered by the front door
	EnteredLost  Group = "entered_lost"   // entered by the lost region itself; clients go on to the next region
	Relayed      Group = "relayed"        // entered by a survivor, ran or was to run in the lost region
	Unaffected   Group = "unaffected"     // everything else: must not notice
)

// Groups in the order in which reports show them.
func Groups() []Group { return []Group{Unaffected, ByFrontDoor, EnteredLost, Relayed, NoSecondHome} }

// Group finds the group of r.
func (o *Observations) Group(r *load.Result) Group {
	if r.Residency == o.Lost.Jurisdiction && !slices.ContainsFunc(o.Survivors, func(p Place) bool { return p.Jurisdiction == r.Residency }) {
		return NoSecondHome
	}
	if o.RemoteModel != "" && r.Model == o.RemoteModel && o.RemoteRegion == o.Lost.Name {
		return NoSecondHome
	}
	switch r.Entry {
	case load.FrontDoor:
		return ByFrontDoor
	case o.Lost.Name:
		return EnteredLost
	}
	if a := r.First(); a.Ran == o.Lost.Name || routedThrough(a.Route, o.Lost.Name) {
		return Relayed
	}
	return Unaffected
}

// routedThrough reads an idc-route such as
// "us-east/us-east-d1 > eu-fra/eu-fra-d2 > openai-eu".
func routedThrough(route, region string) bool {
	for hop := range strings.SplitSeq(route, ">") {
		if name, _, isNode := strings.Cut(strings.TrimSpace(hop), "/"); isNode && name == region {
			return true
		}
	}
	return false
}

// Phase of a request.
type Phase string

// Phases a request falls in.
const (
	Before   Phase = "before"    // answered before the kill
	InFlight Phase = "in_flight" // planned before the kill, not answered by then
	During   Phase = "during"    // planned while the region was lost
	After    Phase = "after"     // planned after restarts were released
)

// AllPhases in order.
func AllPhases() []Phase { return []Phase{Before, InFlight, During, After} }

// Phase finds the phase of r.
func (o *Observations) Phase(r *load.Result) Phase {
	switch {
	case r.At >= o.Released:
		return After
	case r.At >= o.Killed:
		return During
	case r.Final().End >= o.Killed:
		return InFlight
	default:
		return Before
	}
}

// Counted lists the requests that count, in the order in which they were planned.
func (o *Observations) Counted() []*load.Result {
	var out []*load.Result
	for i := range o.Results {
		if o.Results[i].At >= o.Measured {
			out = append(out, &o.Results[i])
		}
	}
	slices.SortFunc(out, func(a, b *load.Result) int { return cmp.Or(cmp.Compare(a.At, b.At), cmp.Compare(a.N, b.N)) })
	return out
}

// frontDoorLed reports whether the front door led to the lost region before
// the kill: whether the last request planned and answered before it entered there.
func (o *Observations) frontDoorLed() bool {
	led := false
	for _, r := range o.Counted() {
		if r.Entry == load.FrontDoor && o.Phase(r) == Before && r.Final().Class == load.OK {
			led = r.Final().EntryWas == o.Lost.Name
		}
	}
	return led
}

// Moments finds them.
func (o *Observations) Moments() Moments {
	var t Moments
	for _, p := range o.Probes {
		if !p.OK && p.At >= o.Killed {
			t.T0 = earlier(t.T0, p.At)
		}
	}
	o.publications(&t)
	if o.Ready > 0 {
		t.T5 = &o.Ready
	}
	if t.T0 == nil {
		return t
	}
	var planned []time.Duration // of the requests that T3 looks at, ascending
	bad := []int{0}             // bad[i] of the first i are not good
	led := o.frontDoorLed()
	for _, r := range o.Counted() {
		group, good := o.Group(r), r.Final().Class == load.OK
		if group == NoSecondHome || r.At < *t.T0 {
			continue
		}
		if good && r.At < o.Released && (group == EnteredLost || (group == ByFrontDoor && led)) {
			t.T2 = earlier(t.T2, r.Final().End)
		}
		planned = append(planned, r.At)
		n := bad[len(bad)-1]
		if !good {
			n++
		}
		bad = append(bad, n)
	}
	for from := *t.T0; from+SteadyWindow <= o.End; from += steadyStep {
		i, _ := slices.BinarySearch(planned, from)
		j, _ := slices.BinarySearch(planned, from+SteadyWindow)
		if n := j - i; n > 0 && float64(n-(bad[j]-bad[i])) >= steadyShare*float64(n) {
			t.T3 = &from
			break
		}
	}
	return t
}

func (o *Observations) publications(t *Moments) {
	first := ""
	for _, p := range o.Publications {
		if p.Down && p.At >= o.Killed && p.Observer != o.Lost.Name && (t.T1 == nil || p.At < *t.T1) {
			t.T1, first = earlier(t.T1, p.At), p.Observer
		}
	}
	for _, p := range o.Publications {
		if !p.Down && p.At >= o.Released && p.Observer == first {
			t.PublishedUp = earlier(t.PublishedUp, p.At)
		}
	}
}

func earlier(have *time.Duration, at time.Duration) *time.Duration {
	if have != nil && *have <= at {
		return have
	}
	return &at
}

// AnsweredAgain is how long after the kill the last request was sent that its
// entry did not answer, among those planned since and of the groups given; some
// is false if it answered all. Sent, not planned: a late generator must not
// make a late recovery look early.
func (o *Observations) AnsweredAgain(groups ...Group) (last time.Duration, some bool) {
	for _, r := range o.Counted() {
		if r.At >= o.Killed && r.First().Class != load.OK && slices.Contains(groups, o.Group(r)) {
			last, some = max(last, r.First().Sent-o.Killed), true
		}
	}
	return last, some
}

// Percentile is the nearest-rank percentile of sorted; 0 of nothing.
func Percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[(len(sorted)*p+99)/100-1]
}
