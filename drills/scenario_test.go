package drills_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"ringmain/drills"
	"ringmain/drills/scenarios"
)

func shipped(t *testing.T) map[string]string {
	t.Helper()
	files, err := scenarios.Files.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		text, err := scenarios.Files.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = string(text)
	}
	return out
}

func TestShippedScenarios(t *testing.T) {
	for file, text := range shipped(t) {
		s, err := drills.ParseScenario(file, []byte(text))
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if s.Drill+".yaml" != file {
			t.Errorf("%s holds the drill %s", file, s.Drill)
		}
		if s.MaxDuration > 2*time.Minute {
			t.Errorf("%s may take %s; a drill in dev takes at most 120 s", file, s.MaxDuration)
		}
	}
}

// Every drill rehearses a page of the runbook that exists.
func TestRunbookHasTheHeading(t *testing.T) {
	runbook, err := os.ReadFile("../RUNBOOK.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := map[string]bool{}
	for line := range strings.Lines(string(runbook)) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && strings.HasPrefix(line, "#") {
			headings[strings.TrimSpace(title)] = true
		}
	}
	for file, text := range shipped(t) {
		s, err := drills.ParseScenario(file, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if !headings[s.Runbook] {
			t.Errorf("%s rehearses %q, which is no heading of RUNBOOK.md", file, s.Runbook)
		}
	}
}

func TestScenarioErrorsSayWhere(t *testing.T) {
	good := shipped(t)["region-loss.yaml"]
	line := func(text, part string) string {
		before, _, ok := strings.Cut(text, part)
		if !ok {
			t.Fatalf("%q is not in the scenario", part)
		}
		return strings.Repeat("\n", strings.Count(before, "\n"))
	}
	for _, c := range []struct{ name, old, replacement, want string }{
		{"unknown field", "  rate: 40", "  rtae: 40", "rtae"},
		{"repeated field", "version: 1", "version: 1\ndrill: again", "drill"},
		{"wrong type", "rate: 40", "rate: fast", "float64"},
		{"bad duration", "outage: 25s", "outage: long", "phases.outage: want a duration"},
		{"not YAML", "hypothesis:", "hypothesis: [", ""},
		{"rate", "rate: 40", "rate: 0", "load.rate"},
		{"mix", "mix: {chat: 3, chat_stream: 4, messages: 1, messages_stream: 2}", "mix: {chat: 0}", "load.mix"},
		{"share", "pinned: 0.1", "pinned: 1.1", "load.pinned"},
		{"tokens", "stream_tokens: 40", "stream_tokens: 1", "load.stream_tokens"},
		{"fault", "kind: kill", "kind: unplug", "fault.kind"},
		{"outage too short", "outage: 25s", "outage: 5s", "phases.outage"},
		{"no baseline", "baseline: 10s", "baseline: 0s", "phases.baseline"},
		{"hypothesis", "front_door_answers_within: 3s", "front_door_answers_within: -3s", "front_door_answers_within"},
		{"too long", "max_duration: 110s", "max_duration: 30s", "max_duration"},
		{"drill name", "drill: region-loss", "drill: Region Loss", "drill: want a name"},
		{"no runbook", `runbook: "A region is down"`, `runbook: ""`, "RUNBOOK.md"},
	} {
		text := strings.Replace(good, c.old, c.replacement, 1)
		_, err := drills.ParseScenario("s.yaml", []byte(text))
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		n := 1 + len(line(good, c.old))
		if c.name == "repeated field" {
			n++ // the second one is the mistake
		}
		if c.name == "not YAML" {
			continue // the parser notices where it notices
		}
		if want := fmt.Sprintf("s.yaml:%d: ", n); !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %s… %s", c.name, err, want, c.want)
		}
	}
	if _, err := drills.ParseScenario("s.yaml", []byte("drill: x-y\n")); err == nil || strings.Count(err.Error(), "s.yaml:1: ") < 8 {
		t.Errorf("an almost empty scenario: %v", err)
	}
}
