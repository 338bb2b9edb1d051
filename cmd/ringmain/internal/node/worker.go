package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ringmain/dataplane"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/link"
	"ringmain/dataplane/view"
)

// workerDrain bounds how long a worker lets streams finish; its keeper kills
// it sooner if it must.
const workerDrain = 5 * time.Minute

// Worker is the whole life of a worker process, which its keeper executes
// already confined. It returns the exit code.
//
// Its one argument is how many bytes of metadata records may wait for a disk
// that takes none; "0" or nothing stands for the default. What else it must
// know comes over the socket.
func Worker(version string, args []string) int {
	if err := keeper.EnterWorker(); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	if err := work(version, args); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		return 1
	}
	return 0
}

func work(version string, args []string) (err error) {
	backlog := uint64(0)
	if len(args) > 0 {
		if backlog, err = strconv.ParseUint(args[0], 10, 32); err != nil {
			return err
		}
	}
	api, peer, socket, files, err := link.Inherited()
	if err != nil {
		return err
	}
	// The keeper asks for a drain over the socket. A signal meant for the whole
	// group (a terminal's Ctrl-C) must not cut streams that the keeper drains.
	signal.Ignore(os.Interrupt)
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
		Listener: socket, Listeners: files, Build: version, State: store, Measure: keeper.MeasureConfinement, Gatherer: registry,
		Backlog: int(backlog),
	})
	if err != nil {
		return err
	}
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
		Emit: attendant.Emit, Verdict: attendant.ShareVerdict, Logger: logger, Registerer: registry,
	})
	if err != nil {
		return err
	}
	attendant.WatchHealth(w.Health)
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
	drain, done := context.WithTimeout(context.WithoutCancel(ctx), workerDrain)
	defer done()
	if err := w.Drain(drain); err != nil {
		logger.Warn("drained in part", "err", err)
	}
	return w.Close()
}
