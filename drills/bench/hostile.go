package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"ringmain/drills/bench/rig"
	"ringmain/drills/bench/storm"
)

// goodRate is how many good requests a second are sent, whatever else happens:
// a window of 2 s has 1,000, of which a p99 can be told.
const goodRate = 500

// attackerCPU names the last column; all conditions of a table have the same.
const attackerCPU = "CPU s of the attacker"

// attack is one kind of hostile client.
type attack struct {
	name  string // for -attack
	title string
	plan  storm.Plan
	sink  bool // it can be made upon nothing, too
}

func attacks(key string) []attack {
	const other = "127.0.0.2" // good requests come from 127.0.0.1
	return []attack{
		{"keys", "wrong keys for a known id, 10,000/s, from one source", storm.Plan{Kind: storm.WrongKeys, Rate: 10_000, Conns: 16, From: other, Key: key}, true},
		{"keys-nat", "wrong keys, 10,000/s, from the good caller's own source", storm.Plan{Kind: storm.WrongKeys, Rate: 10_000, Conns: 16, From: "127.0.0.1", Key: key}, false},
		{"keys-many", "wrong keys, 10,000/s, from 1,000 sources", storm.Plan{Kind: storm.WrongKeys, Rate: 10_000, Sources: 1000, Key: key}, true},
		{"slow-writers", "500 connections that send a byte a second", storm.Plan{Kind: storm.SlowWriters, Conns: 500, From: other}, false},
		{"slow-readers", "200 streams read a byte a second", storm.Plan{Kind: storm.SlowReaders, Conns: 200, From: other, Key: key, Body: rig.Request("burst")}, false},
		{"head-bombs", "heads of 1 MiB, 100/s", storm.Plan{Kind: storm.HeadBombs, Rate: 100, From: other}, true},
	}
}

// condition is what goes on beside the good requests.
type condition struct {
	name    string
	target  string // of the attack
	path    string
	attacks bool
	windows []window
	ratios  []float64 // p99 of p99 when quiet, round by round
	seen    storm.Tally
}

// measureHostile sends good requests to ringmain at a steady rate, in turn with
// nothing beside them, with each attack upon ringmain, and, to tell the node's
// doing from the machine's, with the same attack upon others: nginx, which
// answers each with a constant 401, and a sink, which reads and says nothing.
// All share the machine's cores.
func measureHostile(ctx context.Context, r *run, o options) error {
	at := slices.IndexFunc(r.Contenders, func(c *rig.Contender) bool { return c.Name == rig.Ringmain })
	c := r.Contenders[at]
	c.HTTP = r.client(false)
	defer c.HTTP.CloseIdleConnections()
	if o.apart {
		if err := r.apart(); err != nil {
			return fmt.Errorf("-apart: %w", err)
		}
	}
	chosen := strings.Split(o.attacks, ",")
	for _, a := range attacks(c.Key) {
		if o.attacks != "" && !slices.Contains(chosen, a.name) {
			continue
		}
		conditions := []*condition{{name: "quiet"}}
		if a.sink {
			conditions = append(conditions, &condition{name: "machine alone: upon a sink", attacks: true, path: rig.RefusedPath})
		}
		if i := slices.IndexFunc(r.Contenders, func(c *rig.Contender) bool { return c.Name == rig.Nginx }); i >= 0 {
			conditions = append(conditions, &condition{name: "machine alone: upon nginx", attacks: true, target: r.Contenders[i].Addr, path: rig.RefusedPath})
		}
		conditions = append(conditions, &condition{name: "upon ringmain", attacks: true, target: c.Addr, path: "/v1/chat/completions"})
		for round := range o.rounds + 1 {
			var quiet float64
			got := make([]window, len(conditions))
			for k := range conditions {
				i := (k + round) % len(conditions)
				w, err := r.beside(ctx, c, a, conditions[i], o, round == 0)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", a.title, conditions[i].name, err)
				}
				got[i] = w
				if i == 0 {
					quiet = w.values[1].value
				}
			}
			if round == 0 { // it warms up
				continue
			}
			for i, cond := range conditions {
				cond.windows = append(cond.windows, got[i])
				cond.ratios = append(cond.ratios, got[i].values[1].value/quiet)
			}
			progress("%s, round %d of %d", a.title, round, o.rounds)
		}
		for _, cond := range conditions {
			r.addHostile(a, cond, o.apart)
		}
	}
	return nil
}

// beside measures one window of good requests beside an attack, or beside nothing.
func (r *run) beside(ctx context.Context, c *rig.Contender, a attack, cond *condition, o options, warmUp bool) (w window, err error) {
	span := o.span
	if warmUp {
		span = o.span / 4
	}
	if !cond.attacks {
		w, err := r.steady(ctx, c, span)
		if err == nil && w.values[2].value > 0 {
			err = errors.New("good requests failed with nothing beside them")
		}
		w.values = append(w.values, value{attackerCPU, 0, false})
		return w, err
	}
	plan := a.plan
	plan.Target, plan.Path, plan.Behind = cond.target, cond.path, o.apart
	plan.Roots = []string{filepath.Join(r.Dir, "server.pem"), r.Cluster.CAFile}
	plan.Pair = [2]string{filepath.Join(r.Dir, "server.pem"), filepath.Join(r.Dir, "server.key")}
	exe, err := os.Executable()
	if err != nil {
		return window{}, err
	}
	s, err := storm.Start(ctx, plan, exe, "-as-attacker")
	if err != nil {
		return window{}, err
	}
	time.Sleep(300 * time.Millisecond) // until it is as it goes on
	w, err = r.steady(ctx, c, span)
	tally, cpu, stopErr := s.Stop()
	if err == nil {
		err = stopErr
	}
	if err != nil {
		return window{}, err
	}
	if !warmUp {
		if cond.seen == nil {
			cond.seen = storm.Tally{}
		}
		cond.seen.Add(tally)
	}
	w.values = append(w.values, value{attackerCPU, cpu.Seconds(), false})
	time.Sleep(200 * time.Millisecond) // what it left is cleaned up
	return w, nil
}

// apart gives all that is measured the last processor, and this process, its
// provider and its attackers the others: then what the attacker's own work takes
// is not taken from the node, nor, as it stands behind everybody else there,
// from those who ask and answer.
func (r *run) apart() error {
	last := runtime.NumCPU() - 1
	if last == 0 {
		return errors.New("this machine has one processor")
	}
	var others []int
	for i := range last {
		others = append(others, i)
	}
	for _, c := range r.Contenders {
		if err := pin([]int{last}, c.PIDs...); err != nil {
			return err
		}
	}
	if err := pin(others, os.Getpid()); err != nil {
		return err
	}
	time.Sleep(2 * time.Second) // until Go's runtimes know
	return nil
}

// addHostile makes a row of one condition.
func (r *run) addHostile(a attack, cond *condition, apart bool) {
	beside := "Good requests, 500/s, beside: "
	if apart {
		beside = "Good requests, 500/s, the node on a processor of its own, beside: "
	}
	out := row{Part: beside + a.title, Protocol: "HTTP/1.1", Callers: goodRate, Contender: cond.name}
	slices.Sort(cond.ratios)
	out.Figures = append(out.Figures, figure{Name: "p99 / quiet", Value: cond.ratios[len(cond.ratios)/2], Low: cond.ratios[0], High: cond.ratios[len(cond.ratios)-1], Spread: true})
	for i, v := range cond.windows[0].values {
		median, low, high := middle(cond.windows, func(w window) float64 { return w.values[i].value })
		out.Figures = append(out.Figures, figure{Name: v.name, Value: median, Low: low, High: high, Spread: true})
	}
	for _, w := range cond.windows {
		out.N += w.n
	}
	r.rows = append(r.rows, out)
	if cond.attacks {
		progress("%s, %s: %s", a.title, cond.name, cond.seen)
	}
}

// steady sends good requests in an open loop and gives their latencies, counted
// from when each was due, and what the node took for all that went on.
func (r *run) steady(ctx context.Context, c *rig.Contender, span time.Duration) (window, error) {
	if err := rig.ResetPeak(c.PIDs...); err != nil {
		return window{}, err
	}
	before, err := rig.UsageOf(c.PIDs...)
	if err != nil {
		return window{}, err
	}
	var (
		mu    sync.Mutex
		total outcome
		fails = map[string]int{}
		all   sync.WaitGroup
	)
	began := time.Now()
	for due := began; due.Sub(began) < span && ctx.Err() == nil; due = due.Add(time.Second / goodRate) {
		time.Sleep(time.Until(due))
		all.Go(func() {
			var mine outcome
			err := plain(ctx, c, rig.Request("plain"), &mine)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fails[err.Error()]++
				return
			}
			total.n++
			total.times = append(total.times, time.Since(due))
		})
	}
	all.Wait()
	wall := time.Since(began)
	failed := 0
	for what, n := range fails {
		progress("%d good requests failed: %s", n, what)
		failed += n
	}
	after, err := rig.UsageOf(c.PIDs...)
	if err != nil {
		return window{}, err
	}
	peak, err := rig.Peak(c.PIDs...)
	if err != nil {
		return window{}, err
	}
	slices.Sort(total.times)
	return window{n: total.n, values: []value{
		{"p50 ms", ms(quantile(total.times, .5)), false}, {"p99 ms", ms(quantile(total.times, .99)), false},
		{"failed", float64(failed), false},
		{"cores of the node", (after.CPU - before.CPU).Seconds() / wall.Seconds(), false},
		{"peak RSS MiB", float64(peak) / (1 << 20), false}}}, nil
}
