package report_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ringmain/drills/load"
	"ringmain/drills/report"
	"ringmain/drills/timeline"
	"ringmain/drills/timeline/outagekit"
)

const second = time.Second

var update = flag.Bool("update", false, "rewrite the golden files")

// regionLoss is what the runner would say of a run of region-loss.
func regionLoss(o timeline.Observations, p report.Proof, stats load.Stats) *report.Report {
	return report.Of(&report.Run{
		Drill: "region-loss", Seen: o, Proof: p, Stats: stats, Started: time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC), Took: o.End + second,
		Scenario:   report.RanScenario{Title: "A whole region dies under load", Version: 1, Runbook: "A region is down", SHA256: "0123456789abcdef", Fault: "kill", Rate: 30, Seed: 41},
		Hypothesis: report.Hypothesis{SurvivorsAnswerWithin: second, FrontDoorAnswersWithin: 3 * second},
	})
}

var (
	goodProof = report.Proof{Killed: []string{"eu-fra-c1", "eu-fra-d1"}, PIDs: []int{11, 12, 13}, Probes: 310, FailedConnects: 310}
	goodStats = load.Stats{Planned: 1500, LagP99: 3 * time.Millisecond, LagMax: 12 * time.Millisecond, InFlightMax: 40}
)

func TestReportRendering(t *testing.T) {
	o := outagekit.Outage()
	o.Results[33].Attempts[0].Route = "us-east/us-east-d1 > openai-eu"
	for i := range o.Results { // some latency to see
		for j := range o.Results[i].Attempts {
			o.Results[i].Attempts[j].End += time.Duration(i%100) * time.Millisecond
		}
	}
	o.Results[301] = outagekit.Request(301, o.Results[301].At, "us-east", load.Truncated)
	o.Results[301].Attempts[0].Detail = "connection\nended early"
	o.Results[301].Attempts[0].Status = 200
	r := regionLoss(o, goodProof, goodStats)
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), "null") {
		t.Errorf("something that happened, or an empty list, is null: %s", data)
	}
	var summary strings.Builder
	if err := r.Summary(&summary); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{"report.md": r.Markdown(), "report.svg": r.SVG(), "summary.txt": summary.String()} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.MkdirAll("testdata", 0o750); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s changed: look at it, then run with -update", path)
		}
	}
	for dec := xml.NewDecoder(strings.NewReader(r.SVG())); ; {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the SVG is no XML: %v", err)
		}
	}
	if !strings.Contains(summary.String(), "processes on one host") {
		t.Error("the summary does not say that the regions share a host")
	}
}

// Each thing that can be wrong with a run gives its verdict.
func TestVerdicts(t *testing.T) {
	for name, c := range map[string]struct {
		change func(o *timeline.Observations, p *report.Proof, s *load.Stats)
		want   report.Verdict
		reason string
	}{
		"as hoped": {func(*timeline.Observations, *report.Proof, *load.Stats) {}, report.Met, ""},
		"one wrong answer, warm-up": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			o.Results[1].Attempts[0].Class = load.WronglyComplete
		}, report.Missed, "wrongly called complete: 1"},
		"a pinned request that ran elsewhere": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			r := &o.Results[100]
			r.Residency, r.Attempts[0].Status = "apac", 200
			r.Attempts[0].Route, r.Attempts[0].Ran = "us-east/us-east-d1 > sim", "us-east"
		}, report.Missed, "outside of their jurisdiction: 1, of 51"},
		"no pinned request was answered": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			for i := range o.Results {
				o.Results[i].Residency = ""
			}
		}, report.Missed, "outside of their jurisdiction: 0, of 0"},
		"one survivor shed": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			o.Results[100].Attempts[0].Class = load.Shed
		}, report.Missed, "does not concern: 1"},
		"survivor too late": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			r := &o.Results[3*112+1] // at 11.2 s
			r.Attempts[0].Class, r.Attempts[0].Ran = load.Failed, "eu-fra"
		}, report.Missed, "surviving regions, after the kill: 1.2s"},
		"survivor just in time": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			r := &o.Results[3*110+1]
			r.Attempts[0].Class, r.Attempts[0].Ran = load.InBandError, "eu-fra"
		}, report.Met, ""},
		"front door too late": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) {
			o.Results[3*131+2].Attempts[0].Class = load.Failed
		}, report.Missed, "front door, after the kill: 3.1s"},
		"no failed connect": {func(o *timeline.Observations, _ *report.Proof, _ *load.Stats) { o.Probes = nil }, report.Inconclusive, "no connect to the region failed"},
		"a node served on":  {func(_ *timeline.Observations, p *report.Proof, _ *load.Stats) { p.NotRefusing = []string{"eu-fra-d2"} }, report.Inconclusive, "eu-fra-d2"},
		"a process lives":   {func(_ *timeline.Observations, p *report.Proof, _ *load.Stats) { p.StillAlive = []int{12} }, report.Inconclusive, "survived SIGKILL"},
		"restarted early":   {func(_ *timeline.Observations, p *report.Proof, _ *load.Stats) { p.Restarted = []string{"eu-fra-d1"} }, report.Inconclusive, "did not last"},
		"generator late":    {func(_ *timeline.Observations, _ *report.Proof, s *load.Stats) { s.LagP99 = 2 * second }, report.Inconclusive, "did not keep up"},
		"generator choked":  {func(_ *timeline.Observations, _ *report.Proof, s *load.Stats) { s.NotSent = 1 }, report.Inconclusive, "did not keep up"},
	} {
		o, p, s := outagekit.Outage(), goodProof, goodStats
		c.change(&o, &p, &s)
		r := regionLoss(o, p, s)
		if r.Verdict != c.want || !strings.Contains(strings.Join(r.Reasons, "\n"), c.reason) || (c.want == report.Met) != (len(r.Reasons) == 0) {
			t.Errorf("%s: %s %q, want %s %q", name, r.Verdict, r.Reasons, c.want, c.reason)
		}
	}
}
