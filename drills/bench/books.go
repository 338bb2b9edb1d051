package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/goccy/go-yaml"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/meter"
	"ringmain/drills/simmodel"
)

// bookkeeping is what the node's records say.
type bookkeeping struct {
	Records  int `json:"records"`
	Missing  int `json:"missing"`  // answered requests without one
	Double   int `json:"double"`   // requests with more than one
	Unasked  int `json:"unasked"`  // of requests nobody saw answered
	Complete int `json:"complete"` // answers
	Attempts int `json:"attempts"` // recorded
	// Asked is how many requests the provider read.
	Asked int `json:"asked"`
	// Given up are requests with one attempt more than the provider read, whose
	// clients left: the last attempt ended as it was handed over.
	GivenUp int `json:"given_up"`
	// Miscounted are requests whose attempts are not what the provider read,
	// other than those.
	Miscounted int `json:"miscounted"`
	// Example is one of them.
	Example string `json:"example,omitempty"`
}

// books reads the node's records until every answered request has one.
func (s *soaking) books() (b bookkeeping, err error) {
	n := s.Node()
	var conf struct {
		Cluster, Node string
		SealKeyFile   string `yaml:"seal_key_file"`
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(n.DataDir), "node.yaml"))
	if err == nil {
		err = yaml.Unmarshal(text, &conf)
	}
	if err != nil {
		return b, err
	}
	holder, err := seal.OpenFileHolder(conf.SealKeyFile)
	if err != nil {
		return b, err
	}
	for range 10 {
		b = bookkeeping{}
		seen := make(map[string]int, len(s.answered))
		if err := keeper.ReadSpool(n.DataDir, conf.Cluster, conf.Node, seal.New(holder), func(raw []byte) error {
			rec, err := meter.Decode(raw)
			if err != nil {
				return err
			}
			seen[rec.RequestID]++
			s.enter(&b, rec)
			return nil
		}); err != nil {
			return b, err
		}
		for id := range s.answered {
			if seen[id] == 0 {
				b.Missing++
			}
		}
		for id, n := range seen {
			if n > 1 {
				b.Double++
			}
			if _, ok := s.answered[id]; !ok {
				b.Unasked++
			}
		}
		if b.Missing == 0 {
			break
		}
		time.Sleep(time.Second)
	}
	s.provider.mu.Lock()
	defer s.provider.mu.Unlock()
	for _, n := range s.provider.asked {
		b.Asked += int(n)
	}
	return b, nil
}

// enter compares one record with what the provider read of its request. An
// attempt is what a provider may have read: one that ended in the moment it was
// handed over counts, whether it was read or not, and that happens only if the
// client leaves.
func (s *soaking) enter(b *bookkeeping, rec *meter.Record) {
	b.Records++
	b.Attempts += rec.Attempts
	if rec.Ended == meter.EndComplete {
		b.Complete++
	}
	answer, ok := s.answered[rec.RequestID]
	if !ok {
		return
	}
	s.provider.mu.Lock()
	read := 0
	if answer.serial < len(s.provider.asked) {
		read = int(s.provider.asked[answer.serial])
	}
	s.provider.mu.Unlock()
	switch {
	case rec.Attempts == read:
	case rec.Attempts == read+1 && rec.Ended == meter.EndClientGone:
		b.GivenUp++
	default:
		b.Miscounted++
		b.Example = fmt.Sprintf("%s: %d attempts, the provider read %d; ended %s, status %d, %d splices", rec.RequestID, rec.Attempts, read, rec.Ended, rec.Status, rec.Splices)
	}
}

// trend is how one part of the node's memory went over the last two thirds.
type trend struct {
	Quiet   float64 `json:"quiet_mib"` // before the load
	Third   float64 `json:"third_mib"` // after a third of it
	End     float64 `json:"end_mib"`
	After   float64 `json:"after_mib"`    // quiet again
	PerHour float64 `json:"mib_per_hour"` // of a line through the last two thirds
	Error   float64 `json:"standard_error"`
	Grown   float64 `json:"grown_mib"` // along that line
}

// trendOf looks at one figure of the samples.
func trendOf(samples []sample, quiet, after sample, figure func(*sample) float64) trend {
	rest := samples[len(samples)/3:]
	perHour, se := slope(rest, figure)
	first, last := &rest[0], &rest[len(rest)-1]
	return trend{
		Quiet: figure(&quiet), Third: figure(first), End: figure(last), After: figure(&after),
		PerHour: perHour, Error: se, Grown: perHour * (last.at - first.at).Hours(),
	}
}

// grows says that the slope is no noise, and that it came to more than a share
// of what there was.
func (t *trend) grows(share float64) bool { return t.PerHour > 3*t.Error && t.Grown > share*t.Third }

// figures are what is to be flat, and how much growth is nothing. What the system
// counts as resident creeps: the runtime keeps up to a tenth more than the heap
// needs, and touches it bit by bit. The collector's goal has no such slack; what
// is not let go shows there twice.
var figures = []struct {
	name  string
	share float64
	of    func(*sample) float64
}{
	{"node", 0.02, (*sample).rss},
	{"keeper", 0.02, func(p *sample) float64 { return p.keeper }},
	{"worker", 0.02, func(p *sample) float64 { return p.worker }},
	{"keeper's heap goal", 0.01, func(p *sample) float64 { return p.keeperGoal }},
	{"worker's heap goal", 0.01, func(p *sample) float64 { return p.workerGoal }},
}

// slope fits a line to a figure of the samples, by the hour, with its standard
// error. Memory of one second is much like that of the second before, so n
// samples say as much as n(1-r)/(1+r) that know nothing of each other, r being the
// correlation of neighbours (Santer and others, J. Geophys. Res. 105, 2000, 7337).
func slope(samples []sample, figure func(*sample) float64) (perHour, standardError float64) {
	n := float64(len(samples))
	var sx, sy, sxx, sxy float64
	for i := range samples {
		x, y := samples[i].at.Hours(), figure(&samples[i])
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	perHour = (n*sxy - sx*sy) / (n*sxx - sx*sx)
	at := (sy - perHour*sx) / n
	var rest, neighbours, before float64
	for i := range samples {
		d := figure(&samples[i]) - at - perHour*samples[i].at.Hours()
		rest += d * d
		neighbours += d * before
		before = d
	}
	if rest == 0 {
		return perHour, 0
	}
	r := max(neighbours/rest, 0)
	independent := max(n*(1-r)/(1+r), 3)
	return perHour, math.Sqrt(rest / (independent - 2) / (sxx - sx*sx/n))
}

// verdict is what a soak found.
type verdict struct {
	Passed   bool     `json:"passed"`
	Failures []string `json:"failures"`
	// Judged is false if memory was still filling up after a third of the time:
	// its growth says nothing then.
	Judged     bool                 `json:"memory_judged"`
	Seconds    float64              `json:"seconds"`
	Rate       float64              `json:"requests_per_second"`
	Load       float64              `json:"load"` // share of the capacity
	Late       float64              `json:"late"` // share of requests that began over 1 s late
	Statuses   map[int]int          `json:"statuses"`
	Failed     int                  `json:"failed"` // requests without any answer
	Broken     int                  `json:"broken"` // answers
	Books      bookkeeping          `json:"books"`
	Provider   simmodel.ModelCounts `json:"provider"`
	Memory     map[string]trend     `json:"memory"`       // by the names of figures
	Receipts   [3]float64           `json:"receipts_mib"` // on disk: quiet before, after a third, at the end
	Bound      uint64               `json:"receipts_bound_mib"`
	Goroutines [3]float64           `json:"goroutines"` // quiet before, at the end, quiet after
	Series     []point              `json:"series"`
}

// point is a sample as the verdict shows it, one each 10 s.
type point struct {
	At         float64 `json:"s"`
	Keeper     float64 `json:"keeper_mib"`
	Worker     float64 `json:"worker_mib"`
	Stored     float64 `json:"receipts_on_disk_mib"`
	Recent     float64 `json:"receipts_in_memory_mib"`
	Goroutines float64 `json:"goroutines"`
	KeeperGoal float64 `json:"keeper_heap_goal_mib"`
	WorkerGoal float64 `json:"worker_heap_goal_mib"`
}

const (
	minSamples = 9
	minSlope   = 5 * time.Minute // a shorter soak need not show anything of memory
)

func (s *soaking) judge(o options, rate, late float64, samples []sample, quiet, after sample, b bookkeeping, served simmodel.ModelCounts) *verdict {
	v := &verdict{
		Seconds: o.soak.Seconds(), Rate: rate, Load: o.load, Late: late, Failed: s.failed, Broken: s.broken, Books: b, Provider: served,
		Bound: o.receipts, Statuses: map[int]int{}, Memory: map[string]trend{}, Failures: []string{},
	}
	for _, r := range s.answered {
		v.Statuses[r.status]++
	}
	fail := func(format string, args ...any) { v.Failures = append(v.Failures, fmt.Sprintf(format, args...)) }
	if b.Missing+b.Double > 0 {
		fail("not every answered request was recorded exactly once: %d missing, %d double", b.Missing, b.Double)
	}
	if b.Miscounted > 0 {
		fail("%d records count other attempts than the provider read, such as %s", b.Miscounted, b.Example)
	}
	if s.failed > 0 {
		fail("%d requests got no answer at all, the last: %v", s.failed, s.last)
	}
	if after.goroutines > quiet.goroutines+5 {
		fail("%.0f goroutines were left behind", after.goroutines-quiet.goroutines)
	}
	if len(samples) < minSamples {
		fail("too short to say anything of memory: want 10s or more")
		return v
	}
	third, end := samples[len(samples)/3], samples[len(samples)-1]
	v.Goroutines = [3]float64{quiet.goroutines, end.goroutines, after.goroutines}
	v.Receipts = [3]float64{quiet.stored, third.stored, end.stored}
	// A full store gives up a segment, an eighth of it at most, at a time; the
	// worker's memory a batch.
	v.Judged = third.stored > 0.75*float64(o.receipts) && third.recent > 0.9*end.recent
	if !v.Judged && o.soak >= minSlope {
		fail("bounded memory was still filling up after a third of the time: on disk %.0f of %d MiB of receipts, in memory %.0f of %.0f: run longer, or give the node less",
			third.stored, o.receipts, third.recent, end.recent)
	}
	for _, f := range figures {
		t := trendOf(samples, quiet, after, f.of)
		v.Memory[f.name] = t
		if v.Judged && t.grows(f.share) {
			fail("memory (%s) grew by %.1f MiB in the last two thirds", f.name, t.Grown)
		}
	}
	for i := 0; i < len(samples); i += 10 {
		p := samples[i]
		v.Series = append(v.Series, point{p.at.Seconds(), p.keeper, p.worker, p.stored, p.recent, p.goroutines, p.keeperGoal, p.workerGoal})
	}
	return v
}

// give prints the verdict, leaves it in a file, and is an error if the soak failed.
func (v *verdict) give(o options) error {
	v.Passed = len(v.Failures) == 0
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if o.verdict != "" {
		err = os.WriteFile(o.verdict, text, 0o600)
	}
	if o.output == "json" {
		_, printErr := os.Stdout.Write(text)
		err = errors.Join(err, printErr)
	} else {
		v.print()
	}
	if !v.Judged {
		progress("soak: the growth of memory is not judged: after a third of the time what is bounded was still filling up")
	}
	for _, f := range v.Failures {
		err = errors.Join(err, errors.New(f))
	}
	return err
}

func (v *verdict) print() {
	n := 0
	for _, k := range v.Statuses {
		n += k
	}
	fmt.Fprintf(os.Stdout, `Soak: %.0f s at %.0f requests/s (%.0f %% of capacity), %.0f %% of the provider's answers faulty; %.1f %% of requests began late.

| what | value |
| --- | --- |
| answered requests, by status | %d, %v |
| without any answer (connection failed) | %d |
| broken off or ended by an error event | %d |
| records missing / double / of requests nobody saw answered | %d / %d / %d |
| attempts recorded, requests read by the provider | %d, %d |
| of these, given up as they were handed over / miscounted | %d / %d |
| answers recorded as complete, by the provider | %d, %d |
| receipts on disk quiet before, at a third, at the end, of | %.0f, %.0f, %.0f, %d MiB |
| goroutines quiet before, at the end, quiet after | %.0f, %.0f, %.0f |

| memory, MiB; resident, and what the collector lets the heap reach | quiet before | at a third | at the end | quiet after | slope of the last two thirds |
| --- | --- | --- | --- | --- | --- |
`, v.Seconds, v.Rate, 100*v.Load, 100*faultShare, 100*v.Late, n, v.Statuses, v.Failed, v.Broken, v.Books.Missing, v.Books.Double, v.Books.Unasked,
		v.Books.Attempts, v.Books.Asked, v.Books.GivenUp, v.Books.Miscounted, v.Books.Complete, v.Provider.Completed,
		v.Receipts[0], v.Receipts[1], v.Receipts[2], v.Bound, v.Goroutines[0], v.Goroutines[1], v.Goroutines[2])
	for _, f := range figures {
		t := v.Memory[f.name]
		fmt.Fprintf(os.Stdout, "| %s | %.1f | %.1f | %.1f | %.1f | %+.1f MiB/h, standard error %.1f |\n", f.name, t.Quiet, t.Third, t.End, t.After, t.PerHour, t.Error)
	}
}
