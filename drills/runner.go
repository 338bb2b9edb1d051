// Package drills rehearses failures: it puts a cluster under load, injects a
// fault, watches from outside what clients get, and says whether the hypothesis
// held.
//
// It sees a cluster only through its public listeners, its admin API and the
// supervisor's socket, never through its packages.
package drills

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/drills/fault"
	"ringmain/drills/load"
	"ringmain/drills/report"
	"ringmain/drills/timeline"
	"ringmain/internal/clusterfile"
)

// Options are one run.
type Options struct {
	Scenario    *Scenario
	ClusterFile string
	Region      string                           // the one to lose
	Progress    func(format string, args ...any) // one line each; nil = silent
	GreenWithin time.Duration                    // how long to wait for a cluster that is not all ready; 0 = 60 s
}

// Patience of the runner beyond the scenario's phases.
const (
	readyGrace    = 15 * time.Second       // for the region to be ready again after the load has ended
	warmupShare   = 0.99                   // of good answers in the warm-up; less is no steady state to start from
	warmupLag     = 250 * time.Millisecond // by which nine of ten requests of the warm-up must be sent
	greenPoll     = 500 * time.Millisecond
	readyPoll     = 200 * time.Millisecond
	progressEvery = 5 * time.Second
)

// ErrBusy means that another drill runs on the cluster: wait for its end.
var ErrBusy = errors.New("another drill runs on this cluster: wait for it to end")

// ErrUnknownRegion means that the region to lose is not in the cluster file: name one that is.
var ErrUnknownRegion = errors.New("no such region")

// run is one run under way.
type run struct {
	Options
	cluster *clusterfile.Cluster
	lost    *clusterfile.Region
	sup     *fault.Supervisor
	seen    *observer
	roots   *x509.CertPool
	out     report.Run
}

// Run carries out the drill and reports. An error means that the run broke: it
// says nothing about the hypothesis. However it ends, also by ctx or by the
// death of this process, restarts of the region are released.
func Run(ctx context.Context, opts Options) (*report.Report, error) {
	if opts.Progress == nil {
		opts.Progress = func(string, ...any) {}
	}
	if opts.GreenWithin == 0 {
		opts.GreenWithin = time.Minute
	}
	r := &run{Options: opts}
	if err := r.open(); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(filepath.Dir(opts.ClusterFile), "drill.lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if r.sup, err = fault.Dial(ctx, r.cluster.Supervisor); err != nil {
		return nil, err
	}
	defer r.sup.Close() // ends the hold, if one is left
	defer r.seen.close()
	if err := r.green(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.Scenario.MaxDuration, fmt.Errorf("the drill took longer than max_duration, %s", opts.Scenario.MaxDuration))
	defer cancel()
	if err := r.rehearse(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil { // stopped from outside or out of time: whatever else failed followed from it
			err = fmt.Errorf("stopped, restarts of %s are released: %w", opts.Region, cause)
		}
		return nil, err
	}
	return report.Of(&r.out), nil
}

// open reads what the run needs and checks that the drill makes sense here.
func (r *run) open() error {
	var err error
	if r.cluster, err = clusterfile.Read(r.ClusterFile); err != nil {
		return err
	}
	c := r.cluster
	if !c.Ready {
		return fmt.Errorf("%s says that the cluster is not ready: wait for `make run`, or start it", r.ClusterFile)
	}
	var names []string
	for i := range c.Regions {
		names = append(names, c.Regions[i].Name)
		place := timeline.Place{Name: c.Regions[i].Name, Jurisdiction: c.Regions[i].Jurisdiction}
		if place.Name == r.Region {
			r.lost, r.out.Seen.Lost = &c.Regions[i], place
		} else {
			r.out.Seen.Survivors = append(r.out.Seen.Survivors, place)
		}
	}
	if r.lost == nil {
		return fmt.Errorf("%w: %q in %s: choose one of %s", ErrUnknownRegion, r.Region, r.ClusterFile, strings.Join(names, ", "))
	}
	if len(c.Regions) < 2 {
		return errors.New("the cluster has one region: nothing would survive")
	}
	if c.RemoteModel != "" {
		r.out.Seen.RemoteModel, r.out.Seen.RemoteRegion = c.RemoteModel, names[len(names)-1]
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return err
	}
	r.roots = x509.NewCertPool()
	if !r.roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", c.CAFile)
	}
	token, err := os.ReadFile(c.AdminTokenFile)
	if err != nil {
		return err
	}
	r.seen = newObserver(r.roots, controlplane.NewSecret(strings.TrimSpace(string(token))))
	r.out.Drill, r.out.Scenario, r.out.Hypothesis = r.Scenario.Drill, r.Scenario.ran(), r.Scenario.Hypothesis
	return nil
}

// lock keeps a second drill off the cluster. The kernel lets go of it when
// this process ends, however it ends.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // nothing was written
		return nil, ErrBusy
	}
	return func() { _ = f.Close() }, nil
}

// green waits until every node runs and is ready and every region is published up.
func (r *run) green(ctx context.Context) error {
	said := ""
	for deadline := time.Now().Add(r.GreenWithin); ; {
		red, err := r.red(ctx)
		if err != nil {
			return err
		}
		if len(red) == 0 {
			r.Progress("preflight: every node ready, every region published up")
			return nil
		}
		what := strings.Join(red, "; ")
		if time.Now().After(deadline) {
			return fmt.Errorf("preflight: the cluster is not green after %s: %s: see RUNBOOK.md", r.GreenWithin, what)
		}
		if what != said {
			r.Progress("preflight: waiting: %s", what)
			said = what
		}
		if err := sleep(ctx, greenPoll); err != nil {
			return err
		}
	}
}

// red lists what is not as it should be before a drill.
func (r *run) red(ctx context.Context) ([]string, error) {
	processes, err := r.sup.Status(ctx)
	if err != nil {
		return nil, err
	}
	var red []string
	known := map[string]bool{}
	for _, p := range processes {
		known[p.Name] = true
		if p.State != fault.StateRunning {
			red = append(red, p.Name+" is "+p.State)
		}
	}
	for _, region := range r.cluster.Regions {
		for _, n := range region.Nodes {
			if !known[n.Name] {
				return nil, fmt.Errorf("preflight: the supervisor does not know %s of %s: they belong to different clusters", n.Name, r.ClusterFile)
			}
		}
		// A region that says nothing of the others yet is no reason to wait: T1 will show it.
		says, err := r.seen.published(ctx, region.Admin)
		if err != nil {
			red = append(red, "the admin API of "+region.Name+" does not answer: "+err.Error())
		}
		for name, state := range says {
			if state == "down" {
				red = append(red, region.Name+" publishes "+name+" down")
			}
		}
	}
	for _, n := range r.seen.notReady(ctx, r.cluster.Regions) {
		red = append(red, n+" is not ready")
	}
	slices.Sort(red)
	return red, nil
}

// rehearse runs the phases: load all along, the fault in the middle.
func (r *run) rehearse(ctx context.Context) error {
	s := r.Scenario
	o := &r.out.Seen
	o.Measured, o.End = s.Phases.Warmup, s.Phases.total()
	r.out.Started = time.Now()
	r.seen.start = r.out.Started

	g, ctx := errgroup.WithContext(ctx)
	loadDone := make(chan struct{})
	g.Go(func() (err error) {
		defer close(loadDone)
		r.out.Stats, err = load.Run(ctx, r.load(), r.seen.result)
		return err
	})
	watching, stopWatching := context.WithCancel(ctx)
	g.Go(func() error { return r.seen.watch(watching, r.cluster.Regions, r.Region) })
	g.Go(func() error {
		defer stopWatching()
		if err := r.phases(ctx); err != nil {
			return err
		}
		select {
		case <-loadDone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		return r.awaitReady(ctx, o.End+readyGrace)
	})
	err := g.Wait()
	o.Results, o.Probes, o.Publications = r.seen.results, r.seen.probes, r.seen.publications
	r.out.Took = r.seen.now()
	r.prove()
	return err
}

func (r *run) load() load.Config {
	c, l := r.cluster, r.Scenario.Load
	cfg := load.Config{
		Start: r.seen.start, Duration: r.out.Seen.End, Rate: l.Rate, Seed: l.Seed, Timeout: l.Timeout,
		FrontDoor: c.FrontDoor, Roots: r.roots, Key: controlplane.NewSecret(c.APIKey), Mix: l.Mix,
		FrontDoorShare: l.FrontDoor, RemoteShare: l.Remote, PinnedShare: l.Pinned,
		ChatModel: c.Model, MessagesModel: c.MessagesModel, RemoteModel: c.RemoteModel,
		PlainTokens: l.PlainTokens, StreamTokens: l.StreamTokens,
	}
	if c.MessagesModel == "" { // a cluster that speaks one dialect only
		cfg.Mix.Chat, cfg.Mix.ChatStream, cfg.Mix.Messages, cfg.Mix.MessagesStream = l.Mix.Chat+l.Mix.Messages, l.Mix.ChatStream+l.Mix.MessagesStream, 0, 0
	}
	for _, region := range c.Regions {
		cfg.Regions = append(cfg.Regions, load.Entry{Name: region.Name, URL: region.API, Jurisdiction: region.Jurisdiction})
	}
	return cfg
}

func (r *run) phases(ctx context.Context) error {
	p := r.Scenario.Phases
	r.Progress("warm-up: %s at %v requests per second", p.Warmup, r.Scenario.Load.Rate)
	if err := r.until(ctx, p.Warmup, "warm-up"); err != nil {
		return err
	}
	if n, good, example := r.seen.tally(0); n == 0 || float64(good) < warmupShare*float64(n) {
		return fmt.Errorf("preflight: %d of %d requests of the warm-up were answered, a steady state needs %.0f %%: first failure: %s", good, n, warmupShare*100, example)
	}
	if lag := r.seen.lag(90); lag > warmupLag {
		return fmt.Errorf("preflight: the load generator does not keep up: one request in ten goes out more than %s late: free the machine, or lower load.rate", lag.Round(time.Millisecond))
	}
	before, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	var probing errgroup.Group
	probing.Go(func() error { return r.seen.probe(before, r.lost, probeEveryBefore) })
	err := r.until(ctx, p.Warmup+p.Baseline, "baseline")
	stopProbing()
	if err := errors.Join(err, probing.Wait()); err != nil {
		return err
	}
	return r.outage(ctx)
}

// outage injects the fault, keeps it up, and lets go of it. If it fails in
// between, Run closes the connection to the supervisor, which ends the hold.
func (r *run) outage(ctx context.Context) error {
	o, p := &r.out.Seen, r.Scenario.Phases
	if err := r.sup.Hold(ctx, r.Region); err != nil {
		return err
	}
	during, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	var probing errgroup.Group
	probing.Go(func() error { return r.seen.probe(during, r.lost, probeEvery) })
	killed, err := fault.Kill(ctx, r.sup, r.Region)
	if err != nil {
		stopProbing()
		return errors.Join(err, probing.Wait())
	}
	o.Killed = killed.At.Sub(r.seen.start)
	r.out.Proof.Killed, r.out.Proof.PIDs, r.out.Proof.StillAlive = killed.Names, killed.PIDs, killed.Alive
	r.Progress("outage: killed %d processes of %s; restarts are withheld for %s", len(killed.PIDs), r.Region, p.Outage)
	err = r.until(ctx, o.Killed+p.Outage, "outage")
	stopProbing()
	if err := errors.Join(err, probing.Wait()); err != nil {
		return err
	}
	processes, err := r.sup.Status(ctx)
	if err != nil {
		return err
	}
	for _, q := range processes {
		if q.Region == r.Region && q.State == fault.StateRunning {
			r.out.Proof.Restarted = append(r.out.Proof.Restarted, q.Name)
		}
	}
	if err := r.sup.Release(ctx, r.Region); err != nil {
		return err
	}
	o.Released = r.seen.now()
	r.Progress("recovery: restarts of %s released", r.Region)
	if err := r.awaitReady(ctx, o.End); err != nil {
		return err
	}
	return r.until(ctx, o.End, "recovery")
}

// awaitReady notes when every node is ready again, if that is before the limit.
func (r *run) awaitReady(ctx context.Context, limit time.Duration) error {
	for r.out.Seen.Ready == 0 && r.seen.now() < limit {
		processes, err := r.sup.Status(ctx)
		if err != nil {
			return err
		}
		running := !slices.ContainsFunc(processes, func(p fault.Process) bool { return p.State != fault.StateRunning })
		if running && len(r.seen.notReady(ctx, r.cluster.Regions)) == 0 && ctx.Err() == nil {
			r.out.Seen.Ready = r.seen.now()
			r.Progress("recovery: every node ready again %.1f s after the release", (r.out.Seen.Ready - r.out.Seen.Released).Seconds())
			return nil
		}
		if err := sleep(ctx, readyPoll); err != nil {
			return err
		}
	}
	return nil
}

// until waits for a moment of the run and tells now and then how it goes.
func (r *run) until(ctx context.Context, at time.Duration, phase string) error {
	for {
		left := at - r.seen.now()
		if left <= 0 {
			return nil
		}
		began := r.seen.now()
		if err := sleep(ctx, min(left, progressEvery)); err != nil {
			return err
		}
		n, good, example := r.seen.tally(began)
		if example != "" {
			example = "; such as " + example
		}
		r.Progress("%s: %3.0f s: of the last %d answers %d were good at their entry%s", phase, r.seen.now().Seconds(), n, good, example)
	}
}

// prove fills in what the probes saw.
func (r *run) prove() {
	o, p := &r.out.Seen, &r.out.Proof
	refused := map[string]bool{}
	for _, probe := range o.Probes { // of each node in order
		if probe.At < o.Killed {
			continue
		}
		p.Probes++
		switch {
		case !probe.OK:
			p.FailedConnects++
			refused[probe.Node] = true
		case refused[probe.Node]:
			p.ServedOn++
		}
	}
	for _, n := range r.lost.Nodes {
		if n.API != "" && !refused[n.Name] {
			p.NotRefusing = append(p.NotRefusing, n.Name)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
