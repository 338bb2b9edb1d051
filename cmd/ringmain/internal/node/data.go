package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/link"
	"ringmain/gossip/bulletin"
)

// Hidden subcommands by which a keeper's process becomes a worker.
const (
	ConfineCommand = "confine"
	WorkerCommand  = "worker"
)

const defaultDrain = 30 * time.Second

// RunData runs a data node's keeper, which starts its worker, until ctx ends.
func RunData(ctx context.Context, env Env) (err error) {
	cfg := env.Config
	bundle, err := loadIdentity(cfg, identity.RoleData)
	if err != nil {
		return err
	}
	setup, err := workerSetup(cfg)
	if err != nil {
		return err
	}
	holder, err := openSealKey(cfg)
	if err != nil {
		return err
	}
	metrics, err := listen("listen.metrics", cfg.Listen.Metrics)
	if err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return errors.Join(err, metrics.Close())
	}
	calls := feed.NewHTTPClient(bundle.Client([]string{"h2"}, identity.AllowControl(cfg.Region)))
	defer calls.CloseIdleConnections()
	var targets []string
	for _, n := range cfg.Own().Control {
		targets = append(targets, n.Internal)
	}
	g, ctx := errgroup.WithContext(ctx)
	// Gossip outlives ctx: a node that drains has to say so.
	room, err := openGossip(context.WithoutCancel(ctx), env, bulletin.Digest{Peer: cfg.Listen.Peer, API: cfg.Listen.API, Pools: setup.Pools})
	if err != nil {
		return errors.Join(err, metrics.Close())
	}
	// Any control node will do: they are tried in turn.
	var next atomic.Uint64
	var workerFiles []*os.File
	if env.lifeline != nil {
		workerFiles = append(workerFiles, env.lifeline)
	}
	k, err := keeper.Open(context.WithoutCancel(ctx), keeper.Config{
		Dir: cfg.DataDir, Setup: setup, Sealer: seal.New(holder),
		APIAddr: cfg.Listen.API, PeerAddr: cfg.Listen.Peer,
		Worker:      []string{exe, ConfineCommand, exe, WorkerCommand, strconv.FormatUint(uint64(cfg.Tunables.RecordMemory), 10)},
		WorkerFiles: workerFiles,
		WorkerLog:   env.Stderr,
		Watch: func(ctx context.Context, from func() controlplane.Position, sink func(*feed.Frame) error) error {
			return feed.Watch(ctx, feed.WatchConfig{
				Cluster: cfg.Cluster, Region: cfg.Region, Targets: targets, HTTP: calls,
				From: from, Verdicts: true, Sink: sink, Logger: env.Logger.With("room", "feed"),
			})
		},
		ShareVerdicts: func(ctx context.Context, verdicts []feed.Verdict) error {
			var errs error
			for range targets {
				addr := targets[next.Load()%uint64(len(targets))]
				err := feed.PostVerdicts(ctx, calls, cfg.Region, addr, cfg.Cluster, verdicts)
				if err == nil {
					return nil
				}
				errs = errors.Join(errs, err)
				next.Add(1)
			}
			return errs
		},
		Peers:        func() link.Peers { return peersOf(room, cfg) },
		PeersChanged: room.Changed(),
		Health: func(h link.Health, up bool) {
			room.Publish(func(d *bulletin.Digest) {
				d.WorkerAlive, d.Ready, d.Draining = up, up && h.Ready, h.Draining
				d.InFlight, d.Capacity, d.Breakers = h.InFlight, h.Capacity, h.Breakers
			})
		},
		Gatherer: env.Registry, Registerer: env.Registry,
		Logger: env.Logger.With("room", "keeper"),
		Tunables: keeper.Tunables{
			SpoolPending: int(cfg.Tunables.RecordMemory),
			SpoolTotal:   int64(min(cfg.Tunables.RecordDisk, math.MaxInt64)),
		},
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("listen.api or listen.peer: %w: end what listens there or configure another address", err)
	}
	if err != nil {
		return errors.Join(err, room.Close(), metrics.Close())
	}
	mux := debugMux(k.MetricsHandler())
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]int{"worker_pid": k.WorkerPID()}) // the asker is gone: nothing to do
	})
	g.Go(func() error { return serve(ctx, metrics, mux, env.Logger) })
	g.Go(func() error { return room.alone(ctx) })
	<-ctx.Done()
	drain := cfg.Tunables.DrainTimeout
	if drain == 0 {
		drain = defaultDrain
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	return errors.Join(k.Close(stopCtx), room.leave(context.WithoutCancel(ctx)), g.Wait())
}

// workerSetup reads the files that the worker must not open.
func workerSetup(cfg *config.Config) (link.Setup, error) {
	s := link.Setup{
		Cluster: cfg.Cluster, Region: cfg.Region, Jurisdiction: cfg.Own().Jurisdiction, Node: cfg.Node,
		Pools: cfg.Pools, Capacity: cfg.Tunables.Capacity,
	}
	if len(s.Pools) == 0 {
		s.Pools = []string{"standard", "zero-retention"}
	}
	var err error
	if s.VerdictSecret, err = key32(cfg.ClusterSecretFile); err != nil {
		return s, err
	}
	for _, f := range []struct {
		into *[]byte
		path string
	}{
		{&s.APICert, cfg.Identity.TLSCert}, {&s.APIKey, cfg.Identity.TLSKey},
		{&s.NodeCert, filepath.Join(cfg.Identity.Dir, "node.pem")}, {&s.NodeKey, filepath.Join(cfg.Identity.Dir, "node.key")},
		{&s.Roots, filepath.Join(cfg.Identity.Dir, "roots.pem")}, {&s.UpstreamCA, cfg.UpstreamCAFile},
	} {
		if f.path == "" {
			continue
		}
		if *f.into, err = os.ReadFile(f.path); err != nil {
			return s, fmt.Errorf("data node: %w", err)
		}
	}
	return s, nil
}

// peersOf is the gossip table as a worker needs it: the other data nodes.
func peersOf(room *gossipRoom, cfg *config.Config) link.Peers {
	view := room.Table()
	var p link.Peers
	for _, n := range view.Nodes {
		if n.Role != string(config.Data) || n.Node == cfg.Node || n.Peer == "" {
			continue
		}
		p.Nodes = append(p.Nodes, link.Peer{
			Region: n.Region, Node: n.Node, Addr: n.Peer, Alive: n.Alive, Ready: n.Ready && n.WorkerAlive, Draining: n.Draining,
			InFlight: n.InFlight, Capacity: n.Capacity, Pools: n.Pools,
		})
	}
	for name, r := range view.Regions {
		p.Regions = append(p.Regions, link.PeerRegion{Region: name, Up: r.Up, Since: r.Since.UnixMilli()})
	}
	slices.SortFunc(p.Regions, func(a, b link.PeerRegion) int {
		if a.Region < b.Region {
			return -1
		}
		return 1
	})
	return p
}
