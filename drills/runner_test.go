package drills_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ringmain/drills"
	"ringmain/drills/load"
	"ringmain/drills/report"
	"ringmain/drills/timeline"
)

// short is region-loss with phases that a test can wait for.
func short(t *testing.T) *drills.Scenario {
	t.Helper()
	s, err := drills.ParseScenario("region-loss.yaml", []byte(shipped(t)["region-loss.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	s.Load.Rate = 30
	// Several drills run here at once, beside other tests: how soon a cluster answers
	// is no matter of theirs.
	s.Hypothesis.SurvivorsAnswerWithin, s.Hypothesis.FrontDoorAnswersWithin = 8*time.Second, 8*time.Second
	s.Phases = drills.Phases{Warmup: 2 * time.Second, Baseline: time.Second, Outage: 20 * time.Second, Recovery: 3 * time.Second}
	s.MaxDuration = time.Minute
	return s
}

func drill(t *testing.T, c *cluster, s *drills.Scenario) *report.Report {
	t.Helper()
	r, err := drills.Run(t.Context(), drills.Options{Scenario: s, ClusterFile: c.file, Region: "eu-fra", Progress: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func total(r *report.Report, g timeline.Group, p timeline.Phase) (n, ok, answered int) {
	for _, row := range r.Counts {
		if row.Group == g && row.Phase == p {
			return row.Requests, row.Entry[load.OK], row.Answered
		}
	}
	return 0, 0, 0
}

// The whole drill on a cluster that does what it should.
func TestRegionLossMet(t *testing.T) {
	t.Parallel()
	c := startCluster(t, nil)
	r := drill(t, c, short(t))
	if r.Verdict != report.Met {
		t.Errorf("%s %v", r.Verdict, r.Reasons)
	}
	for _, m := range r.Timeline {
		if m.AtMS == nil {
			t.Errorf("%s (%s) did not happen", m.ID, m.What)
		}
	}
	if n, ok, answered := total(r, timeline.EnteredLost, timeline.During); n < 50 || ok > 3 || answered != n {
		t.Errorf("entered by the lost region during the outage: %d, %d answered there, %d in the end", n, ok, answered)
	}
	if n, ok, _ := total(r, timeline.Unaffected, timeline.During); n < 50 || ok != n {
		t.Errorf("entered by the survivor: %d, answered %d", n, ok)
	}
	if n, _, answered := total(r, timeline.NoSecondHome, timeline.During); n == 0 || answered > n/2 {
		t.Errorf("pinned to the lost region: %d, answered %d", n, answered)
	}
	if r.Proof.FailedConnects < 100 || len(r.Proof.PIDs) != 2 || c.heldNow("eu-fra") != 0 {
		t.Errorf("%+v, still held: %d", r.Proof, c.heldNow("eu-fra"))
	}
	dir := filepath.Join(t.TempDir(), "out")
	if err := r.WriteFiles(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var back report.Report
	if err := json.Unmarshal(data, &back); err != nil || back.Verdict != report.Met || strings.Contains(string(data), "idc_live") {
		t.Errorf("report.json read again: %v, %s", err, back.Verdict)
	}
}

// A front door that does not turn away from the dead region.
func TestRegionLossMissed(t *testing.T) {
	t.Parallel()
	c := startCluster(t, func(c *cluster) { c.frozen = true })
	r := drill(t, c, short(t))
	if r.Verdict != report.Missed || len(r.Reasons) != 1 || !strings.Contains(r.Reasons[0], "front door") {
		t.Errorf("%s %v", r.Verdict, r.Reasons)
	}
}

// A supervisor that names other processes: the region goes on serving, and a
// drill that only believed its own kill would call that resilience.
func TestRegionLossInconclusive(t *testing.T) {
	t.Parallel()
	decoy := exec.CommandContext(t.Context(), "sleep", "600")
	if err := decoy.Start(); err != nil {
		t.Fatal(err)
	}
	c := startCluster(t, func(c *cluster) { c.lie["eu-fra-c1"], c.lie["eu-fra-d1"] = decoy.Process.Pid, decoy.Process.Pid })
	r := drill(t, c, short(t))
	_ = decoy.Wait()
	if r.Verdict != report.Inconclusive || !strings.Contains(strings.Join(r.Reasons, ";"), "no connect to the region failed") {
		t.Errorf("%s %v", r.Verdict, r.Reasons)
	}
}

// Stopping a drill in the middle of the outage lets the region come back, and
// while it runs no other can start.
func TestStoppedDrillReleases(t *testing.T) {
	t.Parallel()
	c := startCluster(t, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("ctrl-c")
	second := make(chan error, 1)
	progress := func(format string, _ ...any) {
		if strings.HasPrefix(format, "outage: killed") {
			_, err := drills.Run(t.Context(), drills.Options{Scenario: short(t), ClusterFile: c.file, Region: "us-east"})
			second <- err
			if c.heldNow("eu-fra") != 1 {
				t.Error("restarts are not withheld during the outage")
			}
			cancel(stopped)
		}
	}
	if _, err := drills.Run(ctx, drills.Options{Scenario: short(t), ClusterFile: c.file, Region: "eu-fra", Progress: progress}); !errors.Is(err, stopped) {
		t.Errorf("ended with %v", err)
	}
	if err := <-second; !errors.Is(err, drills.ErrBusy) {
		t.Errorf("a second drill at the same time: %v", err)
	}
	for deadline := time.Now().Add(5 * time.Second); c.heldNow("eu-fra") != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hold outlived the drill")
		}
	}
	if _, err := drills.Run(t.Context(), drills.Options{Scenario: short(t), ClusterFile: c.file, Region: "mars"}); !errors.Is(err, drills.ErrUnknownRegion) {
		t.Errorf("a drill on an unknown region: %v", err)
	}
}

// A cluster that is not green, or not steady, is not drilled.
func TestPreflightRefuses(t *testing.T) {
	t.Parallel()
	c := startCluster(t, func(c *cluster) { c.held["us-east"] = 1 })
	_, err := drills.Run(t.Context(), drills.Options{Scenario: short(t), ClusterFile: c.file, Region: "eu-fra", GreenWithin: time.Second})
	if err == nil || !strings.Contains(err.Error(), "us-east-d1 is held") || !strings.Contains(err.Error(), "us-east-d1 is not ready") {
		t.Errorf("with a region that does not run: %v", err)
	}
	c.mu.Lock()
	c.held["us-east"] = 0
	c.mu.Unlock()
	s := short(t)
	s.Load.StreamTokens, s.Load.Timeout = 600, 100*time.Millisecond // no stream ends in time
	_, err = drills.Run(t.Context(), drills.Options{Scenario: s, ClusterFile: c.file, Region: "eu-fra", GreenWithin: 10 * time.Second})
	if err == nil || !strings.Contains(err.Error(), "of the warm-up were answered") {
		t.Errorf("with streams that never end: %v", err)
	}
	if c.heldNow("eu-fra") != 0 {
		t.Error("a drill that did not start holds a region")
	}
}
