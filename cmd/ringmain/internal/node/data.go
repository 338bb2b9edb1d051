package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/cmd/ringmain/internal/config"
	"ringmain/cmd/ringmain/internal/node/certs"
	"ringmain/cmd/ringmain/internal/node/expelled"
	"ringmain/cmd/ringmain/internal/node/neighbours"
	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/documents"
	"ringmain/dataplane/keeper"
	"ringmain/dataplane/keeper/trial"
	"ringmain/dataplane/link"
	"ringmain/dataplane/policy"
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
	api, err := certs.ReadAPI(cfg)
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
	calls := client(bundle, identity.AllowControl(cfg.Region))
	defer calls.CloseIdleConnections()
	book := openRoster(env, calls, nil)
	g, ctx := errgroup.WithContext(ctx)
	// Gossip outlives ctx: a node that drains has to say so.
	room, err := neighbours.Open(context.WithoutCancel(ctx), cfg, env.Logger, env.Registry, bulletin.Digest{Peer: cfg.Listen.Peer, API: cfg.Listen.API, Pools: poolsOf(setup.Pools, link.Confinement{})})
	if err != nil {
		return errors.Join(err, metrics.Close())
	}
	gone := expelled.New(bundle, env.Logger)
	gone.Hush(room)
	// Any control node will do: they are tried in turn.
	var next atomic.Uint64
	inTurn := func(ask func(addr string) error) error {
		var errs error
		all := book.Addresses(cfg.Region)
		for range all {
			err := ask(all[next.Load()%uint64(len(all))])
			if err == nil {
				return nil
			}
			errs = errors.Join(errs, err)
			next.Add(1)
		}
		return errs
	}
	teller := &heldTeller{queue: make(chan feed.Held, heldQueue), region: cfg.Region, node: cfg.Node, log: env.Logger.With("room", "feed"),
		post: func(ctx context.Context, held []feed.Held) error {
			return inTurn(func(addr string) error { return feed.PostHeld(ctx, calls, cfg.Region, addr, cfg.Cluster, held) })
		}}
	var workerFiles []*os.File
	if env.lifeline != nil {
		workerFiles = append(workerFiles, env.lifeline)
	}
	k, err := keeper.Open(context.WithoutCancel(ctx), keeper.Config{
		Dir: cfg.DataDir, Setup: setup, Sealer: seal.New(holder),
		APIAddr: cfg.Listen.API, PeerAddr: cfg.Listen.Peer,
		Worker:      []string{exe, ConfineCommand, exe, WorkerCommand},
		WorkerFiles: workerFiles,
		WorkerLog:   env.Stderr,
		Watch: func(ctx context.Context, from func() controlplane.Position, sink func(*feed.Frame) error) error {
			return feed.Watch(ctx, feed.WatchConfig{
				Cluster: cfg.Cluster, Region: cfg.Region, Targets: watched(book, cfg.Region, true), HTTP: calls,
				Members: func(list []byte) { learn(book, cfg.Region, list, env.Logger) },
				From:    from, Verdicts: true, Sink: teller.after(sink), Logger: env.Logger.With("room", "feed"),
			})
		},
		ShareVerdicts: func(ctx context.Context, verdicts []feed.Verdict) error {
			return inTurn(func(addr string) error {
				return feed.PostVerdicts(ctx, calls, cfg.Region, addr, cfg.Cluster, verdicts)
			})
		},
		Revoked:      gone.Take,
		Peers:        func() link.Peers { return peersOf(room, cfg) },
		PeersChanged: room.Changed(),
		Health: func(h link.Health, up bool) {
			room.Publish(func(d *bulletin.Digest) {
				d.WorkerAlive, d.Ready, d.Draining = up, up && h.Ready, h.Draining
				d.InFlight, d.Capacity, d.Breakers = h.InFlight, h.Capacity, h.Breakers
				d.StateAge = h.StateAge / 10 * 10
				d.Pools = poolsOf(setup.Pools, h.Confinement)
			})
		},
		Nodes:  func() []trial.Node { return neighbours.TrialNodes(room.Table().Nodes) },
		Trials: func(r trial.Report) { room.Publish(func(d *bulletin.Digest) { neighbours.PublishTrials(d, r) }) },

		Gatherer: env.Registry, Registerer: env.Registry,
		Logger: env.Logger.With("room", "keeper"),
		Tunables: keeper.Tunables{
			SpoolPending: int(cfg.Tunables.RecordMemory),
			SpoolTotal:   int64(min(cfg.Tunables.RecordDisk, math.MaxInt64)),
			SpoolKeep:    cfg.Tunables.RecordAge,
			ReceiptBytes: int64(min(cfg.Tunables.ReceiptDisk, math.MaxInt64)),
			ReceiptAge:   cfg.Tunables.ReceiptAge,
		},
	})
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("listen.api or listen.peer: %w: end what listens there or configure another address", err)
	}
	if err != nil {
		return errors.Join(err, room.Close(), metrics.Close())
	}
	renew, err := certs.Open(env.Logger, env.Registry,
		certs.OfNode(cfg, bundle, func(cert, key, roots []byte) {
			setup.NodeCert, setup.NodeKey, setup.Roots = cert, key, roots
			k.Renew(setup)
		}),
		certs.OfAPI(cfg, api, func(cert, key []byte) {
			setup.APICert, setup.APIKey = cert, key
			k.Renew(setup)
		}))
	if err != nil {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultDrain)
		defer cancel()
		return errors.Join(err, k.Close(stop), room.Close(), metrics.Close())
	}
	renew.Also = func() error {
		again, err := cfg.Again()
		if err != nil {
			return err
		}
		if limits := edgeOf(again); limits != setup.Edge {
			setup.Edge = limits
			k.Renew(setup)
			env.Logger.Info("the limits of the edge are changed")
		}
		return nil
	}
	g.Go(func() error { renew.Follow(ctx); return nil })
	g.Go(func() error { neighbours.PublishPosition(ctx, room.Publish, k.Given); return nil })
	mux := debugMux(k.MetricsHandler())
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]int{"worker_pid": k.WorkerPID()}) // the asker is gone: nothing to do
	})
	g.Go(func() error { return serve(ctx, metrics, mux, env.Logger) })
	g.Go(func() error { return room.Alone(ctx) })
	g.Go(func() error { room.Remember(ctx); return nil })
	g.Go(func() error { return gone.Wait(ctx) })
	g.Go(func() error { gone.Part(ctx); return nil })
	given := k.Given
	teller.given.Store(&given)
	g.Go(func() error { teller.run(ctx); return nil })
	<-ctx.Done()
	drain := cfg.Tunables.DrainTimeout
	if drain == 0 {
		drain = defaultDrain
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	return errors.Join(k.Close(stopCtx), room.Leave(context.WithoutCancel(ctx)), g.Wait())
}

// poolsOf are the pools that a worker serves while it is confined so far: zero
// retention needs all of it.
func poolsOf(pools []string, c link.Confinement) []string {
	if c.Holds() {
		return pools
	}
	return slices.DeleteFunc(slices.Clone(pools), func(p string) bool { return p == policy.PoolZeroRetention })
}

// edgeOf is the part of a configuration that is in force as soon as it changes.
func edgeOf(cfg *config.Config) link.Edge {
	e := cfg.Tunables.Edge
	conns, total := int(e.Conns), int(e.TotalConns)
	if total == 0 {
		total = connsWithin(memory("/"), files())
		conns = cmp.Or(conns, total/8) // no source has them all
	}
	return link.Edge{
		Conns: conns, Silent: int(e.Silent), PerSecond: int(e.NewConns), Total: total, Aborts: int(e.Aborts), Age: e.ConnAge,
		Wrong: int(e.WrongKeys), Late: e.WrongDelay, Held: int(e.WrongHeld), HeldTotal: int(e.WrongHeldBy), WrongTotal: int(e.WrongByAll),
	}
}

// workerSetup reads the files that the worker must not open.
func workerSetup(cfg *config.Config) (link.Setup, error) {
	s := link.Setup{
		Cluster: cfg.Cluster, Region: cfg.Region, Jurisdiction: cfg.Own().Jurisdiction, Node: cfg.Node,
		Pools: cfg.Pools, Capacity: cfg.Tunables.Capacity, ReceiptHash: cfg.Receipts.Hash,
		StandardHTTP1: cfg.HTTP1 == "standard", StandardHTTP2: cfg.HTTP2 == "standard", Edge: edgeOf(cfg),
		KeyAge: map[string]time.Duration{"live": cfg.Tunables.KeyAge.Live, "test": cfg.Tunables.KeyAge.Test},
	}
	if len(s.Pools) == 0 {
		s.Pools = []string{policy.PoolStandard, policy.PoolZeroRetention}
	}
	var err error
	if s.VerdictSecret, err = config.ReadKey(cfg.ClusterSecretFile); err != nil {
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
	s.Documents, err = ReadDocuments(cfg, time.Now())
	return s, err
}

// ReadDocuments reads the documents that a data node publishes, and says which
// of them it cannot start with.
func ReadDocuments(cfg *config.Config, now time.Time) ([]link.Document, error) {
	var all []link.Document
	for _, f := range []struct{ field, name, path string }{
		{"documents.security_txt", documents.Security, cfg.Documents.SecurityTxt},
		{"documents.dpa", documents.DPA, cfg.Documents.DPA},
		{"documents.aup", documents.AUP, cfg.Documents.AUP},
		{"documents.compliance", documents.Compliance, cfg.Documents.Compliance},
	} {
		if f.path == "" {
			continue
		}
		kind, ok := documents.TypeOf(f.path)
		if !ok || f.name == documents.Security && !strings.HasPrefix(kind, "text/plain") {
			want := ".txt, .md, .html, .json or .pdf"
			if f.name == documents.Security {
				want = ".txt"
			}
			return nil, &config.FieldError{Field: f.field, Message: fmt.Sprintf("%s cannot be published: want a file that ends in %s", f.path, want)}
		}
		b, err := os.ReadFile(f.path)
		if err == nil {
			err = documents.Check(f.name, kind, b, now)
		}
		if err != nil {
			var missing *fs.PathError // names the file itself
			if !errors.As(err, &missing) {
				err = fmt.Errorf("%s: %w", f.path, err)
			}
			return nil, &config.FieldError{Field: f.field, Message: err.Error()}
		}
		all = append(all, link.Document{Name: f.name, Type: kind, Body: b})
	}
	return all, nil
}

// peersOf is the gossip table as a worker needs it: the other data nodes.
func peersOf(room *neighbours.Room, cfg *config.Config) link.Peers {
	view := room.Table()
	var p link.Peers
	for _, n := range view.Nodes {
		if n.Role != string(config.Data) || n.Node == cfg.Node || n.Peer == "" {
			continue
		}
		p.Nodes = append(p.Nodes, link.Peer{
			Region: n.Region, Node: n.Node, Addr: n.Peer, Alive: n.Alive, Ready: n.Ready && n.WorkerAlive, Draining: n.Draining,
			InFlight: n.InFlight, Capacity: n.Capacity, Pools: n.Pools, Breakers: n.Breakers,
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
