// Package node assembles whole nodes from the rooms: a control node, a data
// node's keeper, and its worker. Nothing here decides anything; it wires.
package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"ringmain/cmd/ringmain/internal/config"
)

// Env is what a node gets from its process.
type Env struct {
	Config   *config.Config
	Version  string
	Stderr   io.Writer
	Lifeline string // number of a descriptor that becomes readable when the parent is gone; empty = none
	Logger   *slog.Logger
	Registry *prometheus.Registry

	lifeline *os.File // Lifeline, open; nil = none
}

var errParentGone = errors.New("the process that started this node is gone")

// Run prepares what every node has (log, metrics registry, data directory,
// lifeline) and runs it until ctx ends.
func Run(ctx context.Context, env Env, run func(context.Context, Env) error) error {
	var level slog.Level
	if env.Config.LogLevel != "" {
		if err := level.UnmarshalText([]byte(env.Config.LogLevel)); err != nil {
			return err
		}
	}
	c := env.Config
	env.Logger = slog.New(slog.NewJSONHandler(env.Stderr, &slog.HandlerOptions{Level: level})).With("region", c.Region, "node", c.Node)
	env.Registry = prometheus.NewRegistry()
	env.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if env.Lifeline != "" {
		fd, err := strconv.ParseUint(env.Lifeline, 10, 16)
		if err != nil {
			return fmt.Errorf("RINGMAIN_LIFELINE: %w", err)
		}
		syscall.CloseOnExec(int(fd))
		env.lifeline = os.NewFile(uintptr(fd), "lifeline")
		onParentGone(env.lifeline, func() { cancel(errParentGone) })
	}
	env.Logger.Info("starting", "role", c.Role, "version", env.Version, "pid", os.Getpid())
	err := run(ctx, env)
	if cause := context.Cause(ctx); errors.Is(cause, errParentGone) {
		env.Logger.Warn("stopped", "cause", cause)
	}
	if err != nil {
		env.Logger.Error("failed", "err", err)
		return err
	}
	env.Logger.Info("stopped")
	return nil
}

// onParentGone calls gone once the pipe ends or anything is written to it.
func onParentGone(lifeline *os.File, gone func()) {
	// Ends with the process: the read cannot be interrupted, and must not be.
	go func() {
		_, _ = lifeline.Read(make([]byte, 1)) // any return means the same
		gone()
	}()
}

// listen binds addr, with an error that says what to do.
func listen(field, addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr) //nolint:noctx // binding does not wait
	if err != nil {
		return nil, fmt.Errorf("%s: %w: end what listens there or configure another address", field, err)
	}
	return l, nil
}

// debugMux is the loopback listener's: metrics, and the profiler.
func debugMux(metrics http.Handler) *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// serve runs h on l until ctx ends, then gives requests under way a second.
func serve(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	return serveWith(ctx, l, &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	})
}

func serveWith(ctx context.Context, l net.Listener, srv *http.Server) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		wait, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err := srv.Shutdown(wait)
		if err != nil {
			err = srv.Close()
		}
		stopped <- err
	})
	err := srv.Serve(l)
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	if !stop() {
		err = errors.Join(err, <-stopped)
	}
	return err
}
