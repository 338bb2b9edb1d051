// Command bench measures one data node (keeper and worker together, everything
// on) beside nginx, HAProxy and net/http's own reverse proxy with a buffer
// pool: same bytes, same certificate and TLS settings, same provider, one
// interleaved run. It gates nothing. Progress goes to standard error, tables as
// Markdown to standard output. See BENCHMARKS.md for the method.
//
// It is longer than a package should be: each part is short, but all of them, the
// soak too, share windows, outcomes and clients, which would have to be exported
// to cut it. What has a seam is apart: rig (contenders, counters), storm, count.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"ringmain/drills/bench/rig"
	"ringmain/drills/bench/storm"
)

// options are the flags.
type options struct {
	binary   string
	before   string
	port     int
	rounds   int
	span     time.Duration
	only     string
	callers  string
	protocol string
	output   string
	idle     int
	idleH2   bool
	upH2     bool
	without  string
	soak     time.Duration
	load     float64
	receipts uint64
	verdict  string
	proxyFor string
	proxyDir string
	attacks  string
	attacker bool
	profile  string
	apart    bool
}

func main() {
	var o options
	flag.StringVar(&o.binary, "ringmain", "bin/ringmain", "the binary under test")
	flag.StringVar(&o.before, "before", "", "another build of ringmain, in turn with the one under test; empty = none")
	flag.IntVar(&o.port, "port", 28440, "the first of the ports that ringmain takes")
	flag.IntVar(&o.rounds, "rounds", 3, "windows per contender, protocol and concurrency; one more warms up")
	flag.DurationVar(&o.span, "window", 2*time.Second, "length of one window; streams take twice as long")
	flag.StringVar(&o.only, "only", "idle,json,stream,first,big", "parts to run; stream is paced and burst; hostile, which is not among them by default, sends good requests beside bad ones")
	flag.StringVar(&o.callers, "callers", "1,32,256", "json: how many ask at once")
	flag.StringVar(&o.protocol, "protocols", "h1,h2", "protocols of the client's side")
	flag.StringVar(&o.attacks, "attack", "", "with hostile: some of keys, keys-nat, keys-many, slow-writers, slow-readers, head-bombs; empty = all")
	flag.BoolVar(&o.apart, "apart", false, "with hostile: what is measured has a processor of its own, and the attacker stands behind everybody else on the others")
	flag.StringVar(&o.without, "without", "", "contenders to leave out, such as haproxy,proxy")
	flag.StringVar(&o.profile, "profile", "", "contenders to profile by symbol in the last window of each setting, with perf, such as nginx,ringmain; figures of such a run are too high")
	flag.StringVar(&o.output, "o", "markdown", "markdown or json")
	flag.IntVar(&o.idle, "idle", 1000, "idle streams to hold open")
	flag.BoolVar(&o.idleH2, "idle-h2", false, "idle streams over HTTP/2 instead of HTTP/1.1")
	flag.BoolVar(&o.upH2, "upstream-h2", false, "let the provider speak HTTP/2 with those who can (nginx and HAProxy do not)")
	flag.DurationVar(&o.soak, "soak", 0, "instead: run at -load with faults on for this long, such as 2m, and check what is left behind")
	flag.Float64Var(&o.load, "load", 0.8, "soak: share of the measured capacity")
	flag.Uint64Var(&o.receipts, "receipts", 64, "soak: MiB of receipts the node keeps on disk (its receipt_disk): few enough to be full for most of the time")
	flag.StringVar(&o.verdict, "verdict", "bin/soak.json", "soak: the file that its verdict is left in, as JSON")
	flag.StringVar(&o.proxyFor, "as-proxy", "", "internal: run the plain proxy in front of these URLs")
	flag.StringVar(&o.proxyDir, "proxy-dir", "", "internal: where the certificate is")
	flag.BoolVar(&o.attacker, "as-attacker", false, "internal: run the attack that standard input says")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case o.proxyFor != "":
		err = rig.RunProxy(ctx, strings.Split(o.proxyFor, ","), o.proxyDir, o.upH2)
	case o.attacker:
		err = storm.Serve(ctx, os.Stdin, os.Stdout)
	case o.soak > 0:
		err = soak(ctx, o)
	default:
		err = bench(ctx, o)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// h2 gives false for HTTP/1.1 and true for HTTP/2, as far as they are asked for.
func (o options) h2() (chosen []bool) {
	for _, name := range []string{"h1", "h2"} {
		if slices.Contains(strings.Split(o.protocol, ","), name) {
			chosen = append(chosen, name == "h2")
		}
	}
	return chosen
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }

// run is a bench under way.
type run struct {
	*rig.Rig
	rows []row
}

// bench runs the chosen parts over all contenders.
func bench(ctx context.Context, o options) (err error) {
	if len(o.h2()) == 0 {
		return fmt.Errorf("-protocols %s: want h1, h2 or both", o.protocol)
	}
	started, err := rig.Start(ctx, rig.Options{Binary: o.binary, Before: o.before, Port: o.port, Idle: o.idle, UpstreamH2: o.upH2, Without: strings.Split(o.without, ","), Progress: progress})
	if err != nil {
		return err
	}
	r := &run{Rig: started}
	defer func() { err = errors.Join(err, r.Stop()) }()
	// Idle memory comes first: what load leaves in a heap would hide it.
	all := []string{"idle", "json", "paced", "burst", "first", "big", "hostile"}
	measures := map[string]func(context.Context, *run, options) error{
		"idle": measureIdle, "json": measureJSON, "paced": measurePaced, "burst": measureBurst, "first": measureFirst, "big": measureBig, "hostile": measureHostile}
	chosen := strings.Split(strings.ReplaceAll(o.only, "stream", "paced,burst"), ",")
	for _, name := range chosen {
		if measures[name] == nil {
			return fmt.Errorf("-only %s: want some of %s", name, strings.Join(all, ", "))
		}
	}
	for _, name := range all {
		if slices.Contains(chosen, name) {
			if err := measures[name](ctx, r, o); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return r.report(o.output)
}

// figure is one measured number: the median of the windows, their range, and
// the median of each window's ratio to nginx, to the reverse proxy and to the
// other build.
type figure struct {
	Name     string  `json:"name"` // with its unit
	Cost     bool    `json:"cost"` // of the contender, so that ratios mean something
	Value    float64 `json:"value"`
	Low      float64 `json:"low"`
	High     float64 `json:"high"`
	Spread   bool    `json:"-"` // low and high are shown
	OfNginx  float64 `json:"of_nginx,omitempty"`
	OfProxy  float64 `json:"of_proxy,omitempty"`
	OfBefore float64 `json:"of_before,omitempty"`
}

// row is one contender in one setting.
type row struct {
	Part      string   `json:"part"`
	Protocol  string   `json:"protocol"` // of the client's side
	Callers   int      `json:"callers"`
	Contender string   `json:"contender"`
	Figures   []figure `json:"figures"`
	N         int      `json:"n"` // what was counted: requests, events or streams
}

// figures turns the windows of every contender in one setting into rows. costs
// (CPU, instructions, memory) get ratios; they are not known for "direct".
func (r *run) figures(part, protocol string, callers int, windows [][]window) {
	at := func(name string) int {
		return slices.IndexFunc(r.Contenders, func(c *rig.Contender) bool { return c.Name == name })
	}
	nginx, proxy, before := at(rig.Nginx), at(rig.Proxy), at(rig.Before)
	for i, c := range r.Contenders {
		if len(windows[i]) == 0 {
			continue
		}
		out := row{Part: part, Protocol: protocol, Callers: callers, Contender: c.Name}
		for k, first := range windows[i][0].values {
			f := figure{Name: first.name, Cost: first.cost}
			f.Value, f.Low, f.High = middle(windows[i], func(w window) float64 { return w.values[k].value })
			ratio := func(base int) float64 {
				if base < 0 || !first.cost || len(windows[base]) != len(windows[i]) {
					return 0
				}
				var all []window
				for n := range windows[i] {
					if b := windows[base][n].values[k].value; b > 0 {
						all = append(all, window{values: []value{{value: windows[i][n].values[k].value / b}}})
					}
				}
				m, _, _ := middle(all, func(w window) float64 { return w.values[0].value })
				return m
			}
			f.OfNginx, f.OfProxy, f.OfBefore = ratio(nginx), ratio(proxy), ratio(before)
			out.Figures = append(out.Figures, f)
		}
		for _, w := range windows[i] {
			out.N += w.n
		}
		r.rows = append(r.rows, out)
	}
}

func middle(ws []window, f func(window) float64) (median, low, high float64) {
	if len(ws) == 0 {
		return 0, 0, 0
	}
	v := make([]float64, len(ws))
	for i, w := range ws {
		v[i] = f(w)
	}
	slices.Sort(v)
	return v[len(v)/2], v[0], v[len(v)-1]
}

// report prints every row, in tables by part.
func (r *run) report(how string) error {
	if how == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"rows": r.rows, "not_run": r.NotRun})
	}
	var b strings.Builder
	for _, n := range r.NotRun {
		fmt.Fprintf(&b, "NOT RUN: %s\n\n", n)
	}
	part := ""
	for _, row := range r.rows {
		if row.Part != part {
			part = row.Part
			fmt.Fprintf(&b, "\n%s\n\n| protocol | callers | contender |", part)
			for _, f := range row.Figures {
				fmt.Fprintf(&b, " %s |", f.Name)
				if f.Cost {
					b.WriteString(" of nginx | of proxy |" + r.ifBefore(" of before |"))
				}
			}
			b.WriteString(" n |\n|" + strings.Repeat(" --- |", 4))
			for _, f := range row.Figures {
				b.WriteString(" --- |")
				if f.Cost {
					b.WriteString(" --- | --- |" + r.ifBefore(" --- |"))
				}
			}
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "| %s | %d | %s |", row.Protocol, row.Callers, row.Contender)
		for _, f := range row.Figures {
			fmt.Fprintf(&b, " %s", short(f.Value))
			if (f.Cost || f.Spread) && f.Value > 0 {
				fmt.Fprintf(&b, " (%s-%s)", short(f.Low), short(f.High))
			}
			if f.Cost {
				fmt.Fprintf(&b, " | %s | %s%s", ratio(f.OfNginx), ratio(f.OfProxy), r.ifBefore(" | "+ratio(f.OfBefore)))
			}
			b.WriteString(" |")
		}
		fmt.Fprintf(&b, " %d |\n", row.N)
	}
	_, err := os.Stdout.WriteString(b.String())
	return err
}

// ifBefore is text, if another build is a contender.
func (r *run) ifBefore(text string) string {
	if slices.ContainsFunc(r.Contenders, func(c *rig.Contender) bool { return c.Name == rig.Before }) {
		return text
	}
	return ""
}

// short keeps three figures.
func short(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 1:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.3f", v)
	}
}

func ratio(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f", v)
}
