package report

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"ringmain/drills/load"
	"ringmain/drills/timeline"
)

// WriteFiles puts report.json, report.md and report.svg into dir.
func (r *Report) WriteFiles(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string]string{
		"report.json": string(data) + "\n", "report.md": r.Markdown(), "report.svg": r.SVG(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// table is one table of a report, for Markdown and for a terminal alike.
type table struct {
	title string
	head  []string
	rows  [][]string
}

func (r *Report) tables() []table {
	objectives := table{title: "Objectives", head: []string{"objective", "wanted", "got", ""}}
	for _, o := range r.Objectives {
		objectives.rows = append(objectives.rows, []string{o.Name, o.Want, o.Got, map[bool]string{true: "met", false: "MISSED"}[o.Met]})
	}
	timeline := table{title: "Timeline", head: []string{"", "what", "from T0", "from start"}}
	for _, m := range r.Timeline {
		timeline.rows = append(timeline.rows, []string{m.ID, m.What, seconds(m.FromT0, "%+.2f s"), seconds(m.AtMS, "%.2f s")})
	}
	counts := table{title: "Requests, by what their entry answered", head: []string{"group", "when", "sent"}}
	for _, c := range load.Classes() {
		counts.head = append(counts.head, strings.ReplaceAll(string(c), "_", " "))
	}
	counts.head = append(counts.head, "good in the end")
	for _, row := range r.Counts {
		cells := []string{groupNames[row.Group], phaseNames[row.Phase], fmt.Sprint(row.Requests)}
		for _, c := range load.Classes() {
			cells = append(cells, fmt.Sprint(row.Entry[c]))
		}
		counts.rows = append(counts.rows, append(cells, fmt.Sprint(row.Answered)))
	}
	latency := table{title: "Latency of good answers, ms", head: []string{"when", "plain n", "p50", "p99", "streams n", "first token p50", "p99", "whole p50", "p99"}}
	for _, l := range r.Latency {
		latency.rows = append(latency.rows, []string{phaseNames[l.Phase], fmt.Sprint(l.Plain.N), fmt.Sprint(l.Plain.P50MS), fmt.Sprint(l.Plain.P99MS),
			fmt.Sprint(l.Stream.N), fmt.Sprint(l.FirstToken.P50MS), fmt.Sprint(l.FirstToken.P99MS), fmt.Sprint(l.Stream.P50MS), fmt.Sprint(l.Stream.P99MS)})
	}
	return []table{objectives, timeline, counts, latency}
}

var groupNames = map[timeline.Group]string{
	timeline.Unaffected: "not concerned", timeline.ByFrontDoor: "by the front door", timeline.EnteredLost: "entered by the lost region",
	timeline.Relayed: "relayed through it", timeline.NoSecondHome: "no second home",
}

var phaseNames = map[timeline.Phase]string{timeline.Before: "before", timeline.InFlight: "in flight at the kill", timeline.During: "during", timeline.After: "after the release"}

func seconds(v *float64, format string) string {
	if v == nil {
		return "did not happen"
	}
	return fmt.Sprintf(format, *v/1000)
}

// verdictLine is the report in one line.
func (r *Report) verdictLine() string {
	switch r.Verdict {
	case Met:
		return fmt.Sprintf("OBJECTIVE MET: %s of %s", r.Drill, r.Region)
	case Missed:
		return fmt.Sprintf("OBJECTIVE MISSED: %s of %s", r.Drill, r.Region)
	default:
		return fmt.Sprintf("INCONCLUSIVE: %s of %s shows nothing", r.Drill, r.Region)
	}
}

// Summary writes what a terminal needs.
func (r *Report) Summary(w io.Writer) error {
	var b strings.Builder
	b.WriteString(r.verdictLine() + "\n")
	for _, reason := range r.Reasons {
		b.WriteString("  " + reason + "\n")
	}
	for _, t := range r.tables() {
		b.WriteString("\n" + t.title + "\n")
		tw := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
		for _, row := range append([][]string{t.head}, t.rows...) {
			fmt.Fprintln(tw, "  "+strings.Join(row, "\t"))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	b.WriteString("\n" + r.Notes[0] + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Markdown is the whole report for a reader.
func (r *Report) Markdown() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("# %s\n", r.verdictLine())
	for _, reason := range r.Reasons {
		line("* %s", reason)
	}
	if len(r.Reasons) > 0 {
		line("")
	}
	line("%s. %s, %s long; regions %s; rehearses \"%s\" of RUNBOOK.md.\n", r.Scenario.Title,
		r.Started.Format("2006-01-02 15:04:05 UTC"), (time.Duration(r.TookMS) * time.Millisecond).Round(time.Second), strings.Join(r.Regions, ", "), r.Scenario.Runbook)
	line("![requests per second](report.svg)\n")
	for _, t := range r.tables() {
		line("## %s\n", t.title)
		line("| %s |", strings.Join(t.head, " | "))
		line("|%s", strings.Repeat(" --- |", len(t.head)))
		for _, row := range t.rows {
			line("| %s |", strings.Join(row, " | "))
		}
		line("")
	}
	p := r.Proof
	line("## Proof of the fault\n")
	line("* killed: %s (%d processes: %v); still alive: %v; ran again before the release: %v", strings.Join(p.Killed, ", "), len(p.PIDs), p.PIDs, p.StillAlive, p.Restarted)
	line("* connects to its data nodes from the kill to the release: %d, of which %d failed; succeeded after one to the same node had failed: %d; never refused: %v\n", p.Probes, p.FailedConnects, p.ServedOn, p.NotRefusing)
	line("## The load\n")
	line("* %v requests per second, open loop, seed %d: %d planned, %d not sent; sent late by %v ms (p99), %v ms (max); at most %d in flight", r.Scenario.Rate, r.Scenario.Seed,
		r.Generator.Planned, r.Generator.NotSent, r.Generator.LagP99MS, r.Generator.LagMaxMS, r.Generator.InFlightMax)
	line("* scenario version %d, sha256 %s\n", r.Scenario.Version, r.Scenario.SHA256)
	line("## Each second\n")
	line("`#` answered, `+` answered by the next region, `s` shed, `!` in-band error, `t` truncated, `x` failed, `W` wrongly complete\n")
	line("```")
	b.WriteString(r.bars())
	line("```\n")
	if len(r.Examples) > 0 {
		line("## Requests not answered by their entry (%d shown)\n", len(r.Examples))
		for _, e := range r.Examples {
			var attempts []string
			for _, a := range e.Attempts {
				attempts = append(attempts, strings.TrimSpace(fmt.Sprintf("%s at %s %s %s %s", a.Class, a.Entry, nonZero(a.Status), a.Code, oneLine(a.Detail))))
			}
			line("* %.2f s, %s, %s, %s: %s", e.AtMS/1000, groupNames[e.Group], e.Shape, e.Model, strings.Join(attempts, "; then "))
		}
		line("")
	}
	line("## What the numbers mean\n")
	for _, n := range r.Notes {
		line("* %s", n)
	}
	return b.String()
}

func nonZero(status int) string {
	if status == 0 {
		return ""
	}
	return fmt.Sprint(status)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// bars draws one line a second, at most 60 characters wide, marks beside.
func (r *Report) bars() string {
	widest := 1
	for i := range r.Seconds {
		widest = max(widest, r.Seconds[i].total())
	}
	scale := min(1, 60/float64(widest))
	var b strings.Builder
	for i := range r.Seconds {
		s := &r.Seconds[i]
		fmt.Fprintf(&b, "%3d ", s.Second)
		for _, part := range []struct {
			mark string
			n    int
		}{{"#", s.OK}, {"+", s.Elsewhere}, {"s", s.Shed}, {"!", s.InBand}, {"t", s.Truncated}, {"x", s.Failed}, {"W", s.Wrong}} {
			width := int(float64(part.n)*scale + 0.5)
			if part.n > 0 {
				width = max(width, 1) // one bad answer is never rounded away
			}
			b.WriteString(strings.Repeat(part.mark, width))
		}
		for _, m := range r.Timeline {
			if m.AtMS != nil && int(*m.AtMS/1000) == s.Second {
				b.WriteString(" <" + m.ID)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
