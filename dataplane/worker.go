// Package dataplane assembles the worker: the process that ends client TLS,
// sees content, and takes a request from its caller to an upstream and back.
// The rooms below it each do one step; this one opens them, listens, measures
// its peers, its load and its confinement, renews, drains and closes. What
// happens to a request is exchange's.
//
// Nothing on the path waits for the control plane or for a disk, and nothing
// of a request's content leaves it but towards the upstream that serves it.
package dataplane

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/feed"
	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/caller"
	"ringmain/dataplane/documents"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/exchange"
	"ringmain/dataplane/link"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/view"
	"ringmain/dataplane/walk"
)

// Config of a Worker.
type Config struct {
	API   net.Listener // plain TCP; the worker speaks TLS on it
	Peer  net.Listener // plain TCP; mutual TLS, HTTP/2 only
	Setup link.Setup
	Store *view.Store
	// Peers is what gossip knows; it is called for each forwarded request and
	// must not block. Its slices are not changed.
	Peers func() link.Peers
	// Emit hands one encoded meter.Record to the keeper, and returns when it is
	// sure to be kept. It is called before an answer's last byte goes out. Any
	// error becomes metering_unavailable. The record may be changed once it returned.
	Emit func(record []byte) error
	// Room reports whether the keeper has room for more records; without it
	// requests are refused before an upstream is asked. nil = always.
	Room func() bool
	// Confined is what holds for this process, as last measured; without all of
	// it no request with zero retention is served. nil = nothing holds.
	Confined func() link.Confinement
	// KeepReceipts hands an encoded batch of receipts to the keeper without
	// waiting; AskReceipt asks it for one again. nil = they stay in memory.
	KeepReceipts func(number uint64, batch []byte) bool
	AskReceipt   func(ctx context.Context, requestID string) ([]byte, error)
	// WatchReceipts names who is told that a batch is kept, and that another
	// keeper is there. nil = nobody tells.
	WatchReceipts func(acked func(number uint64), again func())
	// Verdict shares a new key verdict; it must not block. nil = not shared.
	Verdict    func(feed.Verdict)
	Logger     *slog.Logger          // nil = discard
	Registerer prometheus.Registerer // nil = no metrics
	Tunables   Tunables
}

// Tunables may be left zero; the defaults are in brackets.
type Tunables struct {
	Attempts      int                    // at upstreams for one request, over all regions [3]
	ProbeEvery    time.Duration          // pause between round-trip probes of a peer [1 s], with jitter
	DrainGrace    time.Duration          // /readyz fails for so long before listeners close [2 s]
	HeaderTimeout time.Duration          // for a request's head, and the TLS handshake [10 s]
	BodyTimeout   time.Duration          // for head and body [120 s]
	IdleTimeout   time.Duration          // of a kept connection [120 s]
	WriteStall    time.Duration          // a client that takes nothing for so long is cut off [60 s]
	Overload      time.Duration          // goroutines that could run wait longer than this: the least important requests are shed [20 ms]
	Bodies        int64                  // bytes of large request bodies held at once; more are shed [1 GiB]
	Events        int64                  // bytes of long events held at once; the streams of more are shed [1 GiB]
	Upstreams     breaker.Rules          // per (upstream, model, endpoint)
	Edge          edge.Limits            // of the listener for clients [Setup.Edge]
	Limits        admission.LimitsConfig // of requests at once, per upstream
	Retries       breaker.BudgetRules    // per upstream
	PeerNodes     breaker.Rules          // per peer node [2 failures in a row, 2 s rest]
}

func (t Tunables) withDefaults() Tunables {
	t.Attempts = cmp.Or(t.Attempts, 3)
	t.ProbeEvery = cmp.Or(t.ProbeEvery, time.Second)
	t.DrainGrace = cmp.Or(t.DrainGrace, 2*time.Second)
	t.HeaderTimeout = cmp.Or(t.HeaderTimeout, 10*time.Second)
	t.BodyTimeout = cmp.Or(t.BodyTimeout, 120*time.Second)
	t.IdleTimeout = cmp.Or(t.IdleTimeout, 120*time.Second)
	t.Bodies = cmp.Or(t.Bodies, 1<<30)
	t.WriteStall = cmp.Or(t.WriteStall, 60*time.Second)
	t.PeerNodes.Run = cmp.Or(t.PeerNodes.Run, 2)
	t.PeerNodes.Rest = cmp.Or(t.PeerNodes.Rest, 2*time.Second)
	return t
}

const (
	endWait        = time.Second // for requests under way to say that they end
	closeWait      = 10 * time.Second
	maxHeaderBytes = 32 << 10
)

// Worker serves requests until Close.
type Worker struct {
	cfg      Config
	setup    link.Setup
	tunables Tunables
	log      *slog.Logger
	metrics  *metrics

	node     *exchange.Node
	ground   *walk.Ground
	trips    *trips
	receipts *receipt.Log
	certs    *certificates
	gate     *admission.Gate
	guard    *edge.Guard

	api   server
	peer  *http.Server
	group *errgroup.Group
	stop  context.CancelFunc
	end   context.CancelFunc // of the requests under way
}

// Open starts to serve on the listeners, which belong to the worker from here
// on. ctx bounds the worker's life as Close does.
func Open(ctx context.Context, cfg Config) (*Worker, error) {
	if cfg.API == nil || cfg.Peer == nil || cfg.Store == nil || cfg.Emit == nil {
		return nil, errors.New("dataplane: API, Peer, Store and Emit must be set")
	}
	if cfg.Peers == nil {
		cfg.Peers = func() link.Peers { return link.Peers{} }
	}
	if cfg.Room == nil {
		cfg.Room = func() bool { return true }
	}
	if cfg.Confined == nil {
		cfg.Confined = func() link.Confinement { return link.Confinement{} }
	}
	w := &Worker{cfg: cfg, setup: cfg.Setup, tunables: cfg.Tunables.withDefaults(), log: cfg.Logger, trips: newTrips()}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	w.log = w.log.With("region", w.setup.Region, "node", w.setup.Node)
	w.gate = admission.NewGate(admission.GateConfig{Capacity: int64(w.setup.Capacity), Target: w.tunables.Overload})
	w.guard = edge.New(cmp.Or(cfg.Tunables.Edge, edge.Limits(w.setup.Edge)))
	var err error
	if w.certs, err = openCertificates(&w.setup); err != nil {
		return nil, err
	}
	cfg.Store.OnRevocation(w.certs.revoke)
	roots, err := upstreamRoots(w.setup.UpstreamCA)
	if err != nil {
		return nil, err
	}
	limits, requests := admission.NewLimits(w.tunables.Limits), exchange.NewMetrics()
	if w.metrics, err = newMetrics(cfg.Registerer, requests, &loadMetrics{w.gate, limits, w.guard}, w.certs, w.withdrawn()); err != nil {
		return nil, fmt.Errorf("dataplane: register metrics: %w", err)
	}
	w.ground = &walk.Ground{
		Region: w.setup.Region, Node: w.setup.Node, Jurisdiction: w.setup.Jurisdiction, Pools: w.setup.Pools,
		Client:    relay.New(relay.Config{UpstreamRoots: roots, Identity: w.certs.node, Locate: w.locate, Events: w.tunables.Events}),
		Upstreams: breaker.New(w.tunables.Upstreams, w.circuitChanged), PeerNodes: breaker.New(w.tunables.PeerNodes, w.circuitChanged),
		Limits: limits, Budgets: breaker.NewBudgets(w.tunables.Retries),
		Peers: cfg.Peers, RTT: w.trips.region, Attempted: requests.Attempted, Log: w.log,
	}
	if err := w.openReceipts(ctx); err != nil {
		w.ground.Client.Close()
		w.metrics.close()
		return nil, err
	}
	w.watchSecurity()
	w.node = exchange.New(exchange.Config{
		Setup: &w.setup, Store: cfg.Store, Ground: w.ground, Receipts: w.receipts, Gate: w.gate, Guard: w.guard,
		Checker: caller.New(caller.Config{
			Store: cfg.Store, Jurisdiction: w.setup.Jurisdiction, VerdictSecret: w.setup.VerdictSecret,
			Emit: cfg.Verdict, Counted: w.metrics.bcrypted, MaxAge: w.setup.KeyAge,
		}),
		Metrics: requests, Log: w.log, Emit: cfg.Emit, Room: cfg.Room, Confined: cfg.Confined, Revoked: w.certs.revoked,
		Attempts: w.tunables.Attempts, WriteStall: w.tunables.WriteStall, Bodies: w.tunables.Bodies,
	})
	w.serve(ctx)
	return w, nil
}

func (w *Worker) circuitChanged(key breaker.Key, state string) {
	w.metrics.breaker(key, state)
	w.log.Info("circuit changed", "circuit", key.String(), "state", state)
}

// watchSecurity shows in metrics until when security.txt holds: it was good when
// the node started.
func (w *Worker) watchSecurity() {
	for _, d := range w.setup.Documents {
		if d.Name != documents.Security {
			continue
		}
		if expires, err := documents.CheckSecurity(d.Body, time.Now()); err == nil {
			w.metrics.security.WithLabelValues().Set(float64(expires.Unix()))
		} else {
			w.log.Error("security.txt does not hold: renew it", "error", err)
		}
	}
}

// openReceipts starts the log of receipts. It outlives the servers: what they
// answered last is stated too.
func (w *Worker) openReceipts(ctx context.Context) (err error) {
	w.receipts, err = receipt.Open(context.WithoutCancel(ctx), receipt.Config{
		Cert: w.setup.NodeCert, Key: w.setup.NodeKey, Roots: w.setup.Roots,
		Keep: w.cfg.KeepReceipts, Ask: w.cfg.AskReceipt, Logger: w.log, Registerer: w.cfg.Registerer,
	})
	if err != nil {
		return fmt.Errorf("dataplane: receipts: %w", err)
	}
	if w.cfg.WatchReceipts != nil {
		w.cfg.WatchReceipts(w.receipts.Acked, w.receipts.Again)
	}
	return nil
}

func upstreamRoots(extra []byte) (*x509.CertPool, error) {
	if len(extra) == 0 {
		return nil, nil //nolint:nilnil // nil means the system's
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a machine without roots of its own
	}
	if !roots.AppendCertsFromPEM(extra) {
		return nil, errors.New("dataplane: the upstream CA holds no certificate: give it in PEM")
	}
	return roots, nil
}

// Health is what gossip may say about this worker.
func (w *Worker) Health() link.Health {
	open := w.ground.Upstreams.Snapshot()
	maps.Copy(open, w.ground.PeerNodes.Snapshot())
	return link.Health{
		Ready: w.node.Ready(), Draining: w.node.Draining(),
		InFlight: uint32(max(0, w.gate.InFlight())),
		Capacity: uint32(w.gate.Capacity()),
		Breakers: open, StateAge: uint32(min(w.node.Age().Seconds(), math.MaxUint32)),
	}
}

// Drain takes the worker out of service: /readyz fails at once, new requests
// are still served for the grace, then listeners close, connections are told
// to go (GOAWAY, Connection: close), and streams may finish until ctx ends.
// Close must follow.
func (w *Worker) Drain(ctx context.Context) error {
	w.node.Drain()
	w.log.Info("draining", "grace", w.tunables.DrainGrace, "inflight", w.gate.InFlight())
	grace := time.NewTimer(w.tunables.DrainGrace)
	defer grace.Stop()
	select {
	case <-grace.C:
	case <-ctx.Done():
	}
	both, shut := errgroup.WithContext(ctx)
	both.Go(func() error { return w.api.Shutdown(shut) })
	both.Go(func() error { return w.peer.Shutdown(shut) })
	if err := both.Wait(); err != nil {
		return fmt.Errorf("dataplane: drain: %d requests were still under way: %w", w.gate.InFlight(), err)
	}
	return nil
}

// Close ends what still runs, waits for it, and returns the first failure.
// Requests under way have a moment to say so to their clients.
func (w *Worker) Close() error {
	if w.node.Busy() {
		w.node.End()
		w.end()
		last, cancel := context.WithTimeout(context.Background(), endWait)
		var both errgroup.Group
		both.Go(func() error { return w.api.Shutdown(last) })
		both.Go(func() error { return w.peer.Shutdown(last) })
		_ = both.Wait() // who has not ended by then is ended
		cancel()
	}
	w.stop()
	err := w.group.Wait()
	// Handlers end with their connections' contexts; none may outlive the worker.
	for start := time.Now(); w.node.Busy(); time.Sleep(time.Millisecond) {
		if time.Since(start) > closeWait {
			err = errors.Join(err, fmt.Errorf("dataplane: %d requests do not end", w.gate.InFlight()))
			break
		}
	}
	err = errors.Join(err, w.receipts.Close())
	w.ground.Client.Close()
	w.metrics.close()
	return err //nolint:wrapcheck // wrapped where it arose
}
