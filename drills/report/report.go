// Package report judges a run against its hypothesis and renders what it
// shows: JSON for tools, Markdown and SVG for readers, a summary for a terminal.
//
// It is pure but for WriteFiles.
package report

import (
	"fmt"
	"math"
	"slices"
	"time"

	"ringmain/drills/load"
	"ringmain/drills/timeline"
)

// Verdict of a run.
type Verdict string

// Verdicts. A run that breaks has no report.
const (
	Met          Verdict = "met"          // every objective was met
	Missed       Verdict = "missed"       // at least one was not
	Inconclusive Verdict = "inconclusive" // the fault, or the load, is not proven: the numbers show nothing
)

// Report is what a run leaves behind. Times are milliseconds, from T0 where
// their name says so and else from the start of the load.
type Report struct {
	Format     int          `json:"format"` // 1
	Drill      string       `json:"drill"`
	Scenario   RanScenario  `json:"scenario"`
	Region     string       `json:"region"`
	Regions    []string     `json:"regions"`
	Started    time.Time    `json:"started"`
	TookMS     float64      `json:"took_ms"`
	Verdict    Verdict      `json:"verdict"`
	Reasons    []string     `json:"reasons"` // why it is not met; empty if it is
	Objectives []Objective  `json:"objectives"`
	Timeline   []Mark       `json:"timeline"`
	Proof      Proof        `json:"proof"`
	Counts     []CountRow   `json:"counts"`
	Latency    []LatencyRow `json:"latency"`
	Generator  Generator    `json:"generator"`
	Seconds    []Second     `json:"seconds"`
	Examples   []Example    `json:"examples"` // some of the requests that were not answered
	Notes      []string     `json:"notes"`    // what the numbers mean and what they cannot show
}

// RanScenario is what a reader needs to know of the scenario file. Two runs
// compare only where SHA256, seed and machine are the same.
type RanScenario struct {
	Title      string  `json:"title"`
	Version    int     `json:"version"`
	Runbook    string  `json:"runbook"`
	SHA256     string  `json:"sha256"`
	Fault      string  `json:"fault"`
	Rate       float64 `json:"rate"`
	Seed       uint64  `json:"seed"`
	WarmupMS   float64 `json:"warmup_ms"`
	BaselineMS float64 `json:"baseline_ms"`
	OutageMS   float64 `json:"outage_ms"`
	RecoveryMS float64 `json:"recovery_ms"`
}

// Hypothesis is what the drill sets out to show. Durations count from the kill.
type Hypothesis struct {
	WronglyCompleteMax      int           `yaml:"wrongly_complete_max"`
	UnaffectedUnansweredMax int           `yaml:"unaffected_unanswered_max"`
	SurvivorsAnswerWithin   time.Duration `yaml:"survivors_answer_within"`
	FrontDoorAnswersWithin  time.Duration `yaml:"front_door_answers_within"`
}

// Objective is one line of the hypothesis, measured.
type Objective struct {
	Name string `json:"name"`
	Want string `json:"want"`
	Got  string `json:"got"`
	Met  bool   `json:"met"`
}

// Mark is one moment of the timeline.
type Mark struct {
	ID     string   `json:"id"`
	What   string   `json:"what"`
	AtMS   *float64 `json:"at_ms"`   // from the start of the load; null = did not happen
	FromT0 *float64 `json:"from_t0"` // milliseconds
}

// Proof is the evidence that the region was really gone.
type Proof struct {
	Killed         []string `json:"killed"`
	PIDs           []int    `json:"pids"`
	StillAlive     []int    `json:"still_alive"`
	Restarted      []string `json:"restarted"` // nodes that ran again although restarts were withheld
	Probes         int      `json:"probes"`    // connects to its data nodes from the kill to the release
	FailedConnects int      `json:"failed_connects"`
	NotRefusing    []string `json:"not_refusing"` // data nodes that no connect failed to reach
	ServedOn       int      `json:"served_on"`    // connects that succeeded after one to the same node had failed
}

// CountRow counts the requests of one group in one phase by what their entry
// answered. Answered counts those with a good answer in the end, the next
// region's included.
type CountRow struct {
	Group    timeline.Group     `json:"group"`
	Phase    timeline.Phase     `json:"phase"`
	Requests int                `json:"requests"`
	Entry    map[load.Class]int `json:"entry"`
	Answered int                `json:"answered"`
}

// LatencyRow holds percentiles of good answers, from the planned moment.
type LatencyRow struct {
	Phase      timeline.Phase `json:"phase"`
	Plain      Quantile       `json:"plain"`       // whole answer
	FirstToken Quantile       `json:"first_token"` // of streams
	Stream     Quantile       `json:"stream"`      // whole stream
}

// Quantile is a sample's size and percentiles.
type Quantile struct {
	N     int     `json:"n"`
	P50MS float64 `json:"p50_ms"`
	P99MS float64 `json:"p99_ms"`
}

// Generator says whether the load was as planned.
type Generator struct {
	Planned     int     `json:"planned"`
	NotSent     int     `json:"not_sent"`
	LagP99MS    float64 `json:"lag_p99_ms"`
	LagMaxMS    float64 `json:"lag_max_ms"`
	InFlightMax int     `json:"in_flight_max"`
}

// Second counts the requests planned in one second, by what their entry
// answered; Elsewhere are those that another region answered after their entry
// gave nothing.
type Second struct {
	Second    int `json:"second"` // from the start of the load
	OK        int `json:"ok"`
	Elsewhere int `json:"elsewhere"`
	Shed      int `json:"shed"`
	Failed    int `json:"failed"` // with not sent
	InBand    int `json:"in_band_error"`
	Truncated int `json:"truncated"`
	Wrong     int `json:"wrongly_complete"`
}

func (s *Second) total() int {
	return s.OK + s.Elsewhere + s.Shed + s.Failed + s.InBand + s.Truncated + s.Wrong
}

// Example is one request that its entry did not answer as it should.
type Example struct {
	Group     timeline.Group   `json:"group"`
	Phase     timeline.Phase   `json:"phase"`
	N         int              `json:"n"` // in the plan
	AtMS      float64          `json:"at_ms"`
	Model     string           `json:"model"`
	Shape     string           `json:"shape"` // such as "messages stream, HTTP/2"
	Residency string           `json:"residency,omitempty"`
	Attempts  []ExampleAttempt `json:"attempts"`
}

// ExampleAttempt is one attempt of an Example.
type ExampleAttempt struct {
	Entry     string     `json:"entry"`
	SentMS    float64    `json:"sent_ms"`
	EndMS     float64    `json:"end_ms"`
	Class     load.Class `json:"class"`
	Status    int        `json:"status,omitempty"`
	Code      string     `json:"code,omitempty"`
	Detail    string     `json:"detail,omitempty"`
	RequestID string     `json:"request_id,omitempty"`
	Route     string     `json:"route,omitempty"`
}

func example(g timeline.Group, p timeline.Phase, r *load.Result) Example {
	e := Example{Group: g, Phase: p, N: r.N, AtMS: Milliseconds(r.At), Model: r.Model, Shape: "chat", Residency: r.Residency}
	if r.Messages {
		e.Shape = "messages"
	}
	if r.Stream {
		e.Shape += " stream"
	}
	if r.HTTP2 {
		e.Shape += ", HTTP/2"
	} else {
		e.Shape += ", HTTP/1.1"
	}
	for _, a := range r.Attempts {
		e.Attempts = append(e.Attempts, ExampleAttempt{Entry: a.Entry, SentMS: Milliseconds(a.Sent), EndMS: Milliseconds(a.End), Class: a.Class,
			Status: a.Status, Code: a.Code, Detail: a.Detail, RequestID: a.RequestID, Route: a.Route})
	}
	return e
}

const maxExamples = 20

// lagLimit is how late the generator may send, at the 99th percentile, before
// the load is not the one planned. No objective rests on latency, so it is wide.
const lagLimit = time.Second

// Run is what a report is made from.
type Run struct {
	Drill      string
	Scenario   RanScenario
	Hypothesis Hypothesis
	Seen       timeline.Observations
	Proof      Proof
	Stats      load.Stats
	Started    time.Time
	Took       time.Duration
}

// Of judges a run.
func Of(x *Run) *Report {
	o := &x.Seen
	t := o.Moments()
	r := &Report{
		Format: 1, Drill: x.Drill, Scenario: x.Scenario, Region: o.Lost.Name, Regions: []string{o.Lost.Name},
		Started: x.Started.UTC().Truncate(time.Second), TookMS: Milliseconds(x.Took), Reasons: []string{},
		Objectives: objectives(o, x.Hypothesis), Timeline: marks(o, t), Proof: x.Proof,
		Counts: counts(o), Latency: latency(o), Seconds: perSecond(o), Examples: examples(o),
		Generator: Generator{Planned: x.Stats.Planned, NotSent: x.Stats.NotSent, LagP99MS: Milliseconds(x.Stats.LagP99), LagMaxMS: Milliseconds(x.Stats.LagMax), InFlightMax: x.Stats.InFlightMax},
		Notes:     notes(),
	}
	for _, s := range o.Survivors {
		r.Regions = append(r.Regions, s.Name)
	}
	slices.Sort(r.Regions)
	p := &r.Proof
	p.Killed, p.PIDs, p.StillAlive = list(p.Killed), list(p.PIDs), list(p.StillAlive)
	p.Restarted, p.NotRefusing = list(p.Restarted), list(p.NotRefusing)
	r.Verdict = Met
	for _, obj := range r.Objectives {
		if !obj.Met {
			r.Verdict = Missed
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s: %s, wanted %s", obj.Name, obj.Got, obj.Want))
		}
	}
	if doubts := x.doubts(t); len(doubts) > 0 {
		r.Verdict, r.Reasons = Inconclusive, doubts
	}
	return r
}

// doubts lists why the run shows nothing.
func (x *Run) doubts(t timeline.Moments) []string {
	var out []string
	p := x.Proof
	if t.T0 == nil {
		out = append(out, "the fault is not proven: no connect to the region failed")
	} else if len(p.NotRefusing) > 0 || p.ServedOn > 0 {
		out = append(out, fmt.Sprintf("the fault is not proven: %d connects succeeded after one to the same node had failed; never refused: %v", p.ServedOn, p.NotRefusing))
	}
	if len(p.StillAlive) > 0 {
		out = append(out, fmt.Sprintf("the fault is not proven: processes %v survived SIGKILL", p.StillAlive))
	}
	if len(p.Restarted) > 0 {
		out = append(out, fmt.Sprintf("the fault did not last: %v ran again before the release", p.Restarted))
	}
	if x.Stats.NotSent > 0 || x.Stats.LagP99 > lagLimit {
		out = append(out, fmt.Sprintf("the load generator did not keep up: %d of %d requests not sent, p99 %s late (limit %s)",
			x.Stats.NotSent, x.Stats.Planned, x.Stats.LagP99.Round(time.Millisecond), lagLimit))
	}
	return out
}

func notes() []string {
	return []string{
		"All regions of this run are processes on one host. It shows that the software fails over; it shows nothing about networks, power or clocks between sites, nor about capacity: the survivors had the dead region's share of the cores to themselves.",
		"Latency counts from the moment a request was planned for, not from when it was sent; percentiles are of good answers, nearest rank.",
		"T2 is the first good answer to a request that the lost region owed: planned after T0 for the lost region itself and repeated by the client at the next region in the file's order because no answer had begun, or planned for the front door while it led to the lost region.",
		"T3 is resolved to 10 ms and looks at what clients were left with, the next region's answers included, without requests that have no second home.",
		"An answer is wrongly complete if an official SDK would take it for whole and it is not, word for word, what the simulated provider says.",
	}
}

func objectives(o *timeline.Observations, h Hypothesis) []Objective {
	wrong, unanswered := 0, 0
	for i := range o.Results { // warm-up included: this must never happen
		for _, a := range o.Results[i].Attempts {
			if a.Class == load.WronglyComplete {
				wrong++
			}
		}
	}
	outside, pinned := o.Outside()
	for _, r := range o.Counted() {
		if o.Group(r) == timeline.Unaffected && r.First().Class != load.OK {
			unanswered++
		}
	}
	again := func(name string, limit time.Duration, groups ...timeline.Group) Objective {
		last, some := o.AnsweredAgain(groups...)
		got := "never unanswered"
		if some {
			got = last.Round(time.Millisecond).String()
		}
		return Objective{"all answered again " + name + ", after the kill", "<= " + limit.String(), got, last <= limit}
	}
	return []Objective{
		{"answers wrongly called complete", atMost(h.WronglyCompleteMax), fmt.Sprint(wrong), wrong <= h.WronglyCompleteMax},
		{"unanswered requests that the loss does not concern", atMost(h.UnaffectedUnansweredMax), fmt.Sprint(unanswered), unanswered <= h.UnaffectedUnansweredMax},
		{"pinned requests served, or sent on, outside of their jurisdiction", "0, of some", fmt.Sprintf("%d, of %d answered", outside, pinned), outside == 0 && pinned > 0},
		again("at surviving regions", h.SurvivorsAnswerWithin, timeline.Unaffected, timeline.Relayed),
		again("through the front door", h.FrontDoorAnswersWithin, timeline.ByFrontDoor),
	}
}

func atMost(n int) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("<= %d", n)
}

func marks(o *timeline.Observations, t timeline.Moments) []Mark {
	lost := o.Lost.Name
	out := []Mark{
		{ID: "kill", What: "SIGKILL to every process of " + lost},
		{ID: "T0", What: "fault proven: first failed connect to " + lost},
		{ID: "T1", What: "first survivor publishes " + lost + " down"},
		{ID: "T2", What: "first good answer to a request that " + lost + " owed"},
		{ID: "T3", What: "first 10 s with 99.9 % good answers begin"},
		{ID: "release", What: "restarts of " + lost + " released"},
		{ID: "T5", What: "every node ready again"},
		{ID: "up", What: "that survivor publishes " + lost + " up again"},
	}
	for i, at := range []*time.Duration{&o.Killed, t.T0, t.T1, t.T2, t.T3, &o.Released, t.T5, t.PublishedUp} {
		if at == nil {
			continue
		}
		v := Milliseconds(*at)
		out[i].AtMS = &v
		if t.T0 != nil {
			d := Milliseconds(*at - *t.T0)
			out[i].FromT0 = &d
		}
	}
	return out
}

func counts(o *timeline.Observations) []CountRow {
	rows := map[timeline.Group]map[timeline.Phase]*CountRow{}
	for _, r := range o.Counted() {
		g, p := o.Group(r), o.Phase(r)
		if rows[g] == nil {
			rows[g] = map[timeline.Phase]*CountRow{}
		}
		row := rows[g][p]
		if row == nil {
			row = &CountRow{Group: g, Phase: p, Entry: map[load.Class]int{}}
			rows[g][p] = row
		}
		row.Requests++
		row.Entry[r.First().Class]++
		if r.Final().Class == load.OK {
			row.Answered++
		}
	}
	out := []CountRow{}
	for _, g := range timeline.Groups() {
		for _, p := range timeline.AllPhases() {
			if row := rows[g][p]; row != nil {
				out = append(out, *row)
			}
		}
	}
	return out
}

func latency(o *timeline.Observations) []LatencyRow {
	var out []LatencyRow
	for _, p := range []timeline.Phase{timeline.Before, timeline.During, timeline.After} {
		var plain, first, stream []time.Duration
		for _, r := range o.Counted() {
			a := r.Final()
			if o.Phase(r) != p || a.Class != load.OK {
				continue
			}
			if r.Stream {
				first, stream = append(first, a.FirstToken-r.At), append(stream, a.End-r.At)
			} else {
				plain = append(plain, a.End-r.At)
			}
		}
		out = append(out, LatencyRow{Phase: p, Plain: quantile(plain), FirstToken: quantile(first), Stream: quantile(stream)})
	}
	return out
}

func quantile(sample []time.Duration) Quantile {
	slices.Sort(sample)
	return Quantile{N: len(sample), P50MS: Milliseconds(timeline.Percentile(sample, 50)), P99MS: Milliseconds(timeline.Percentile(sample, 99))}
}

// perSecond counts everything planned, the warm-up included: the chart shows it.
func perSecond(o *timeline.Observations) []Second {
	out := make([]Second, int(math.Ceil(o.End.Seconds())))
	for i := range out {
		out[i].Second = i
	}
	for i := range o.Results {
		r := &o.Results[i]
		n := int(r.At / time.Second)
		if n >= len(out) {
			continue
		}
		s := &out[n]
		switch r.First().Class {
		case load.OK:
			s.OK++
		case load.Shed:
			s.Shed++
		case load.InBandError:
			s.InBand++
		case load.Truncated:
			s.Truncated++
		case load.WronglyComplete:
			s.Wrong++
		default:
			if r.Final().Class == load.OK {
				s.Elsewhere++
			} else {
				s.Failed++
			}
		}
	}
	return out
}

// examples picks what a reader will ask about first: what must not happen.
func examples(o *timeline.Observations) []Example {
	out := []Example{}
	rank := func(e Example) int {
		switch {
		case e.Attempts[0].Class == load.WronglyComplete:
			return 0
		case e.Group == timeline.Unaffected:
			return 1
		case e.Phase == timeline.After:
			return 2
		case e.Group == timeline.ByFrontDoor:
			return 3
		default:
			return 4
		}
	}
	for _, r := range o.Counted() {
		if r.First().Class != load.OK {
			out = append(out, example(o.Group(r), o.Phase(r), r))
		}
	}
	slices.SortStableFunc(out, func(a, b Example) int { return rank(a) - rank(b) })
	return out[:min(len(out), maxExamples)]
}

// list makes an absent list an empty one: JSON readers need not tell them apart.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// Milliseconds is d in milliseconds, to a tenth.
func Milliseconds(d time.Duration) float64 { return math.Round(float64(d)/1e5) / 10 }
