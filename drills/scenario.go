package drills

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"ringmain/drills/load"
	"ringmain/drills/report"
	"ringmain/drills/timeline"
)

// Scenario is one drill as its file describes it.
type Scenario struct {
	Drill       string            `yaml:"drill"`
	Version     int               `yaml:"version"`
	Title       string            `yaml:"title"`
	Runbook     string            `yaml:"runbook"` // heading of RUNBOOK.md that it rehearses
	Fault       FaultSpec         `yaml:"fault"`
	Hypothesis  report.Hypothesis `yaml:"hypothesis"`
	Load        LoadSpec          `yaml:"load"`
	Phases      Phases            `yaml:"phases"`
	MaxDuration time.Duration     `yaml:"max_duration"` // after preflight; a run that takes longer is broken

	SHA256 string `yaml:"-"` // of the file: two runs compare only where it is the same
}

// FaultSpec says what is done to the region.
type FaultSpec struct {
	Kind string `yaml:"kind"` // kill
}

// faultKill ends every process of the region with SIGKILL.
const faultKill = "kill"

// LoadSpec is the load of load.Config that a scenario decides.
type LoadSpec struct {
	Rate         float64       `yaml:"rate"`
	Seed         uint64        `yaml:"seed"`
	Mix          load.Mix      `yaml:"mix"`
	FrontDoor    float64       `yaml:"front_door"`
	Remote       float64       `yaml:"remote"`
	Pinned       float64       `yaml:"pinned"`
	PlainTokens  int           `yaml:"plain_tokens"`
	StreamTokens int           `yaml:"stream_tokens"`
	Timeout      time.Duration `yaml:"timeout"`
}

// Phases of a run, in order. The fault is in force during Outage only.
type Phases struct {
	Warmup   time.Duration `yaml:"warmup"`
	Baseline time.Duration `yaml:"baseline"`
	Outage   time.Duration `yaml:"outage"`
	Recovery time.Duration `yaml:"recovery"`
}

func (p Phases) total() time.Duration { return p.Warmup + p.Baseline + p.Outage + p.Recovery }

// durations are the fields that hold one.
var durations = []string{
	"hypothesis.survivors_answer_within", "hypothesis.front_door_answers_within", "load.timeout",
	"phases.warmup", "phases.baseline", "phases.outage", "phases.recovery", "max_duration",
}

var drillName = regexp.MustCompile(`^[a-z][a-z0-9-]{1,40}$`)

// ParseScenario reads a scenario strictly: an unknown or repeated field is an
// error. Errors begin with file:line.
func ParseScenario(file string, text []byte) (*Scenario, error) {
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, located(file, err)
	}
	for _, path := range durations { // the library's own complaint has no line
		if text, line := scalarAt(tree, path); text != "" {
			if _, err := time.ParseDuration(text); err != nil {
				return nil, fmt.Errorf("%s:%d: %s: want a duration such as 10s, got %q", file, line, path, text)
			}
		}
	}
	s := new(Scenario)
	if err := yaml.UnmarshalWithOptions(text, s, yaml.Strict()); err != nil {
		return nil, located(file, err)
	}
	var problems []error
	complain := func(path, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s:%d: %s: %s", file, lineOf(tree, path), path, fmt.Sprintf(format, args...)))
	}
	s.check(complain)
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	sum := sha256.Sum256(text)
	s.SHA256 = hex.EncodeToString(sum[:])
	return s, nil
}

func (s *Scenario) check(complain func(path, format string, args ...any)) {
	if !drillName.MatchString(s.Drill) {
		complain("drill", "want a name such as region-loss, got %q", s.Drill)
	}
	if s.Version < 1 {
		complain("version", "want 1 or more, got %d", s.Version)
	}
	if s.Title == "" {
		complain("title", "say in one line what happens")
	}
	if s.Runbook == "" {
		complain("runbook", "name the heading of RUNBOOK.md that this drill rehearses")
	}
	if s.Fault.Kind != faultKill {
		complain("fault.kind", "want kill, got %q", s.Fault.Kind)
	}
	l := s.Load
	if l.Rate < 1 || l.Rate > 10_000 {
		complain("load.rate", "want 1 to 10000 requests per second, got %v", l.Rate)
	}
	if m := l.Mix; m.Chat < 0 || m.ChatStream < 0 || m.Messages < 0 || m.MessagesStream < 0 || m == (load.Mix{}) {
		complain("load.mix", "want weights of 0 or more, not all 0")
	}
	share := func(path string, v float64) {
		if v < 0 || v > 1 {
			complain(path, "want a share from 0 to 1, got %v", v)
		}
	}
	share("load.front_door", l.FrontDoor)
	share("load.remote", l.Remote)
	share("load.pinned", l.Pinned)
	tokens := func(path string, n int) {
		if n < 2 || n > 10_000 {
			complain(path, "want 2 to 10000 tokens, got %d", n)
		}
	}
	tokens("load.plain_tokens", l.PlainTokens)
	tokens("load.stream_tokens", l.StreamTokens)
	positive := func(path string, d time.Duration) {
		if d <= 0 {
			complain(path, "want a duration above 0, such as 10s")
		}
	}
	positive("hypothesis.survivors_answer_within", s.Hypothesis.SurvivorsAnswerWithin)
	positive("hypothesis.front_door_answers_within", s.Hypothesis.FrontDoorAnswersWithin)
	positive("load.timeout", l.Timeout)
	positive("phases.warmup", s.Phases.Warmup)
	positive("phases.baseline", s.Phases.Baseline)
	positive("phases.recovery", s.Phases.Recovery)
	if h := s.Hypothesis; h.WronglyCompleteMax < 0 || h.UnaffectedUnansweredMax < 0 {
		complain("hypothesis", "the maxima are 0 or more")
	}
	if s.Phases.Outage < timeline.SteadyWindow+2*time.Second {
		complain("phases.outage", "want at least %s: recovery is a window of %s of good answers", timeline.SteadyWindow+2*time.Second, timeline.SteadyWindow)
	}
	if s.MaxDuration < s.Phases.total()+s.Load.Timeout {
		complain("max_duration", "want at least %s: all phases and one timeout", s.Phases.total()+s.Load.Timeout)
	}
}

// ran is what a report says of s.
func (s *Scenario) ran() report.RanScenario {
	return report.RanScenario{
		Title: s.Title, Version: s.Version, Runbook: s.Runbook, SHA256: s.SHA256, Fault: s.Fault.Kind, Rate: s.Load.Rate, Seed: s.Load.Seed,
		WarmupMS: report.Milliseconds(s.Phases.Warmup), BaselineMS: report.Milliseconds(s.Phases.Baseline),
		OutageMS: report.Milliseconds(s.Phases.Outage), RecoveryMS: report.Milliseconds(s.Phases.Recovery),
	}
}

// located puts file:line before what the YAML library says.
func located(file string, err error) error {
	var y yaml.Error
	if errors.As(err, &y) && y.GetToken() != nil {
		return fmt.Errorf("%s:%d: %s", file, y.GetToken().Position.Line, y.GetMessage())
	}
	return fmt.Errorf("%s: %w", file, err)
}

// lineOf finds the line of path, or of the nearest parent that is there.
func lineOf(tree *ast.File, path string) int {
	for ; path != ""; path = path[:max(0, strings.LastIndexByte(path, '.'))] {
		if node := nodeAt(tree, path); node != nil {
			return node.GetToken().Position.Line
		}
	}
	return 1
}

// scalarAt is the text at path; "" if there is none, or a list or map.
func scalarAt(tree *ast.File, path string) (text string, line int) {
	node := nodeAt(tree, path)
	if scalar, ok := node.(ast.ScalarNode); ok {
		return fmt.Sprint(scalar.GetValue()), node.GetToken().Position.Line
	}
	return "", 0
}

func nodeAt(tree *ast.File, path string) ast.Node {
	p, err := yaml.PathString("$." + path)
	if err != nil {
		return nil
	}
	node, err := p.FilterFile(tree)
	if err != nil {
		return nil
	}
	return node
}
