package keeper

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/dataplane/keeper/trial"
)

// note numbers frames that are sent to the worker. With copied set they may
// change afterwards.
func (w *worker) note(frames [][]byte, copied bool) {
	_, done := w.applying()
	w.given.Add(frames, copied, done)
}

// applying is the number of the frame that the worker turned to last, and of
// the one it was last through with.
func (w *worker) applying() (begun, done uint64) {
	w.progressMu.Lock()
	defer w.progressMu.Unlock()
	if w.progress == nil {
		return 0, 0
	}
	return w.progress.Load()
}

// forget lets go of the memory in which the worker noted how far it is.
func (w *worker) forget() error {
	w.progressMu.Lock()
	defer w.progressMu.Unlock()
	p := w.progress
	w.progress = nil
	if p == nil {
		return nil
	}
	return p.Close()
}

// settled reports that the worker has applied all that it was given.
func (w *worker) settled() bool {
	begun, done := w.applying()
	return done == begun && done == w.given.Last()
}

const (
	lookEvery = 100 * time.Millisecond
	hearEvery = time.Second
	// stuckAfter is how long a worker that talks may be at one frame. The largest
	// takes a few seconds.
	stuckAfter = 30 * time.Second
)

// look follows how the worker fares with what it was given, and has what waits
// for other nodes go on.
func (k *Keeper) look(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var at uint64
	var since, heard time.Time
	for {
		var now time.Time
		select {
		case <-ctx.Done():
			return
		case now = <-tick.C:
		}
		if k.cfg.Nodes != nil && now.Sub(heard) >= hearEvery {
			heard = now
			k.trials.Heard(k.self(), k.cfg.Nodes(), now)
		}
		if k.flow.mu.TryLock() { // who holds it may wait for a worker that is stuck
			k.goOn(ctx, now)
		}
		w := k.current()
		if w == nil {
			continue
		}
		if begun, done := w.applying(); begun == done || begun != at {
			at, since = begun, now
		} else if k.heard(now) && now.Sub(since) > stuckAfter {
			k.log.Error("the worker does not get through with a change of the state; it is replaced", "pid", w.pid, "since", since)
			w.kill()
			since = now
		}
	}
}

// goOn gives what waited and need not any more, and notes what is proven. It
// unlocks the flow.
func (k *Keeper) goOn(ctx context.Context, now time.Time) {
	f := &k.flow
	w, position := f.live, f.tracker.Position()
	refused, err := k.advance(ctx)
	if err != nil {
		k.log.Warn("what waited for other nodes does not fit: it is asked for anew", "error", err)
		f.kick()
	}
	f.mu.Unlock()
	for _, s := range refused {
		k.isolate(s)
	}
	if w != nil && w.settled() {
		k.trials.Seen(now, position)
	}
}

// heard reports a worker that talks: it is neither stopped nor starved.
func (k *Keeper) heard(now time.Time) bool {
	return now.Sub(time.UnixMilli(k.stats.heardWorker.Load())) < silence
}

// judge finds out whether the state that w was given killed it.
func (k *Keeper) judge(w *worker, given controlplane.Position) {
	if k.isClosing() {
		return
	}
	crashed, dead := w.fate()
	if !dead {
		return
	}
	var span trial.Span
	var found bool
	if begun, done := w.applying(); begun != done {
		if f := w.given.At(begun); f != nil {
			span, found = k.trials.SpanOf(f, given)
		}
	} else if crashed {
		span, found = k.trials.Since(given)
	}
	if found {
		k.trials.Died(span, w.hello.Build, time.Now(), k.past)
	}
}

// crashExit is how a Go program ends that panics.
const crashExit = 2

// fate reports whether the process is dead, and whether it ended by a fault of
// its own. Of another keeper's child only the first can be known.
func (w *worker) fate() (crashed, dead bool) {
	if w.child == nil {
		return false, errors.Is(w.process.Signal(syscall.Signal(0)), os.ErrProcessDone)
	}
	select {
	case <-w.exited:
	case <-time.After(time.Second):
		return false, false // only the connection broke
	}
	ws, ok := w.child.status.Sys().(syscall.WaitStatus)
	if !ok {
		return false, true
	}
	switch ws.Signal() {
	case syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGILL, syscall.SIGFPE:
		return true, true
	}
	return ws.Exited() && ws.ExitStatus() == crashExit, true
}

// past finds what the records of s were before it.
func (k *Keeper) past(s trial.Span) map[string][]byte {
	p := trial.NewPast(s)
	k.flow.mu.Lock()
	waiting := k.flow.queue.Frames()
	k.flow.mu.Unlock()
	for _, f := range waiting {
		if err := p.Touch(f); err != nil {
			k.log.Warn("what waits for other nodes cannot be read", "error", err)
		}
	}
	for _, look := range []func(*feed.Frame) error{p.Touch, p.Keep} {
		if err := k.disk.Past(look); err != nil {
			k.log.Warn("what was before a change that is left out is not known as a whole", "change", s, "error", err)
		}
	}
	before, err := p.Before()
	if err != nil {
		k.log.Error("what was before a change that is left out is not known", "change", s, "error", err)
	}
	return before
}

// isolate leaves out what another node died on, before this one takes it.
func (k *Keeper) isolate(s trial.Span) {
	build := ""
	if w := k.current(); w != nil {
		build = w.hello.Build
	}
	k.trials.Isolate(trial.Isolated{Span: s, Build: build, At: time.Now().UnixMilli(), Before: k.past(s)})
}

// waiting is how much waits for other nodes.
func (k *Keeper) waiting() float64 {
	k.flow.mu.Lock()
	defer k.flow.mu.Unlock()
	return float64(k.flow.queue.Len())
}
