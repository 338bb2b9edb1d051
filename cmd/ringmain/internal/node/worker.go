package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ringmain/dataplane"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/link"
	"ringmain/dataplane/view"
)

const (
	// workerDrain bounds how long a worker lets streams finish whose keeper does not
	// say how long it waits: longer than a stream may take.
	workerDrain = time.Hour + 5*time.Minute
	// unasked is the same where no keeper asked, but a signal: this node serves nobody
	// meanwhile, since no keeper starts another worker before this one ends.
	unasked = 5 * time.Minute
)

// drainFor is how long a worker lets streams finish, so that it can tell those that
// are left that they end, before its keeper kills it; zero = that does not say when.
func drainFor(killed, now time.Time) time.Duration {
	if killed.IsZero() {
		return workerDrain
	}
	left := killed.Sub(now)
	return max(0, left-min(left/4, 3*time.Second))
}

// drainer is a link.Attendant.
type drainer interface {
	Drain() <-chan struct{}
	DrainBy() time.Time
}

// draining ends when a worker that drains has waited for long enough. A signal to
// all processes of a unit comes to it before the keeper says how long that is.
func draining(ctx context.Context, keeper drainer) (context.Context, context.CancelFunc) {
	ctx, done := context.WithCancel(ctx)
	go func() {
		end := time.NewTimer(unasked)
		defer end.Stop()
		for asked := keeper.Drain(); ; {
			select {
			case <-ctx.Done():
				return
			case <-asked:
				asked = nil
				end.Reset(drainFor(keeper.DrainBy(), time.Now()))
			case <-end.C:
				done()
			}
		}
	}()
	return ctx, done
}

// Worker is the whole life of a worker process, which its keeper executes
// already confined. It returns the exit code. What it must know comes over the
// socket.
func Worker(version string) int {
	// What libraries print by themselves may quote what they carry (GODEBUG=
	// http2debug=2 prints every header), and the keeper would log it.
	log.SetOutput(io.Discard)
	if err := keeper.EnterWorker(); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	if err := work(version); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

// heapFloor is held and never touched, so that it takes address space and no
// memory: the collector, which runs whenever the heap has doubled, leaves a small
// heap alone for another heapFloor bytes. GOMEMLIMIT counts it.
const heapFloor = 32 << 20

func work(version string) (err error) {
	floor := make([]byte, heapFloor)
	defer runtime.KeepAlive(&floor)
	api, peer, socket, files, err := link.Inherited()
	if err != nil {
		return err
	}
	// The keeper asks for a drain over the socket. A signal meant for the whole
	// group (a terminal's Ctrl-C) must not cut streams that the keeper drains,
	// and certificates that SIGHUP asks for come from the keeper, too.
	signal.Ignore(os.Interrupt, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	abandoned := make(chan struct{})
	if os.Getenv("RINGMAIN_LIFELINE") != "" {
		onParentGone(os.NewFile(link.FirstExtraFD, "lifeline"), func() { close(abandoned) })
	}

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector())
	store := view.New(view.Config{})
	attendant, err := link.Attend(context.WithoutCancel(ctx), link.AttendConfig{
		Listener: socket, Files: files, Build: version, State: store, Measure: keeper.MeasureConfinement, Gatherer: registry,
	})
	if err != nil {
		return err
	}
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "ringmain_worker_log_lines_lost_total", Help: "Log lines that found no keeper, or a slow one.",
	}, func() float64 { return float64(attendant.Dropped()) }))
	logger := slog.New(attendant.LogHandler())
	defer func() {
		if err != nil {
			logger.Error("the worker failed", "err", err)
		}
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, attendant.Flush(flush), attendant.Close())
	}()
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ends with the process at the latest
		<-abandoned
		cancel()
	}()
	setup, err := attendant.Setup(waiting)
	if err != nil {
		return err
	}
	w, err := dataplane.Open(context.WithoutCancel(ctx), dataplane.Config{
		API: api, Peer: peer, Setup: *setup, Store: store, Peers: attendant.Peers,
		Emit: attendant.Emit, Room: attendant.Room, Confined: attendant.Confinement, Verdict: attendant.ShareVerdict,
		KeepReceipts: attendant.KeepReceipts, AskReceipt: attendant.AskReceipt, WatchReceipts: attendant.WatchReceipts,
		Logger: logger, Registerer: registry,
	})
	if err != nil {
		return err
	}
	attendant.WatchHealth(w.Health)
	renewing := make(chan struct{})
	go func() {
		defer close(renewing)
		renew(waiting, attendant, w, logger)
	}()
	defer func() {
		cancel()
		<-renewing
	}()
	select {
	case <-attendant.Drain():
	case <-ctx.Done():
	case <-abandoned:
		// The keeper drains when the same pipe tells it, but it may be dead.
		select {
		case <-attendant.Drain():
		case <-time.After(time.Second):
			return w.Close()
		}
	}
	drain, done := draining(context.WithoutCancel(ctx), attendant)
	defer done()
	if err := w.Drain(drain); err != nil {
		logger.Warn("drained in part", "err", err)
	}
	return w.Close()
}

// renew gives the worker each certificate that a keeper sends, until ctx ends.
func renew(ctx context.Context, attendant *link.Attendant, w *dataplane.Worker, logger *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-attendant.SetupChanged():
		}
		setup, err := attendant.Setup(ctx)
		if err == nil {
			err = w.Renew(setup)
		}
		if err != nil && ctx.Err() == nil {
			logger.Error("a certificate of the keeper's cannot be used: what is in use stays", "error", err)
		}
	}
}
