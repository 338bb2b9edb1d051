// Package keeper is the disk's owner of a data node: it starts the worker
// confined, feeds it the replicated state from disk and from the control
// nodes, keeps its metadata records, and outlives it or is outlived by it.
//
// Request content may not enter this process, and no second copy of the key
// table: state passes through as feed frames.
package keeper

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/confine"
	"ringmain/dataplane/keeper/datadir"
	"ringmain/dataplane/keeper/lkg"
	"ringmain/dataplane/keeper/receipts"
	"ringmain/dataplane/keeper/spool"
	"ringmain/dataplane/keeper/trial"
	"ringmain/dataplane/link"
)

// Config is what a keeper needs. Fields without a stated default must be set.
type Config struct {
	Dir    string     // data directory of this node alone, on a local disk; created 0700
	Setup  link.Setup // what the worker is told; Cluster and Node name this node
	Sealer *seal.Sealer

	APIAddr  string // host:port to bind for clients; unused while a worker is adopted
	PeerAddr string // host:port to bind for other workers; unused while a worker is adopted

	// Worker is the command that becomes the worker, which finds its descriptors
	// as link.APIFD, PeerFD, SocketFD and RingFD. It must call Confine before anything else,
	// as `ringmain confine -- ringmain worker` does.
	Worker      []string
	WorkerFiles []*os.File // passed on as descriptors link.FirstExtraFD and up; none by default
	WorkerLog   io.Writer  // lines of JSON that the worker logs; nil = discarded

	// Watch follows a control node's feed until ctx ends, asking from at each
	// connection how far this node is; feed.Watch is one. It returns early
	// only for controlplane.ErrUnknownEntry.
	Watch func(ctx context.Context, from func() controlplane.Position, sink func(*feed.Frame) error) error
	// Revoked is told of each revocation, those on disk too, while Open runs and
	// later; must not block. Nil = nobody
	Revoked func(registry.Revocation)
	// ShareVerdicts hands verdicts to a control node. Failures cost a bcrypt elsewhere. Nil = kept here.
	ShareVerdicts func(ctx context.Context, verdicts []feed.Verdict) error

	Peers        func() link.Peers            // the gossip table; nil = empty
	PeersChanged <-chan struct{}              // receives after it changed; nil = looked at each second
	Health       func(h link.Health, up bool) // told what the worker says, and when it is gone; must not block. Nil = nobody

	// Nodes is what gossip knows of the data nodes of all regions: changes of
	// the configuration are taken node by node. It must not block. Nil = this
	// node waits for none.
	Nodes func() []trial.Node
	// Trials is told what this node says of itself to those; it must not block. Nil = nobody.
	Trials func(trial.Report)

	Metrics    net.Listener          // plain, loopback: /metrics of keeper and worker together; nil = none
	Gatherer   prometheus.Gatherer   // this process's families; nil = none
	Registerer prometheus.Registerer // takes the keeper's families; nil = none
	Logger     *slog.Logger          // nil = discarded

	Tunables Tunables
}

// Tunables have defaults in brackets.
type Tunables struct {
	DeltaLimit   int64         // bytes of deltas before a new generation [64 MiB, or the snapshot's size if larger]
	SpoolSegment int64         // bytes [64 MiB]
	SpoolTotal   int64         // bytes before requests are refused [4 GiB]
	SpoolPending int           // bytes of records that wait in memory while the disk takes none [32 MiB]
	SpoolKeep    time.Duration // age at which records are removed from the disk [30 days]
	ReceiptBytes int64         // of signed receipts on disk; the oldest give way [1 GiB]
	ReceiptAge   time.Duration // how long they are kept there [24 h]
	Sync         time.Duration // how long a written record may not be on the medium yet [50 ms]
	Survival     time.Duration // a worker that lived with a state for so long did not die of it [10 s]
	Retry        time.Duration // first wait before the disk is tried again after a failure; doubles to 60 times that [5 s]
}

// Keeper is a running keeper.
type Keeper struct {
	cfg    Config
	log    *slog.Logger
	lock   *os.File
	disk   *lkg.Store
	spool  *spool.Spool
	proofs *receipts.Store
	trials *trial.Book
	group  *errgroup.Group
	cancel context.CancelFunc
	stats  stats

	closing  chan struct{} // closed by Close: no worker is started any more
	closeBy  atomic.Int64  // when Close kills the worker, Unix milliseconds; 0 = no time is set
	gone     chan struct{} // closed when the last worker is gone after closing
	once     sync.Once
	verdicts chan feed.Verdict
	asked    errgroup.Group // what workers ask for on disk

	child    *worker        // the one started last; supervise's alone
	children sync.WaitGroup // waits for processes started here, and reads what they print

	procMu    sync.Mutex
	listeners []*os.File // api, peer; held so that connections wait while no worker runs
	worker    *worker    // nil while none runs
	setup     link.Setup
	renewals  uint64        // of setup
	renewed   chan struct{} // receives after setup changed

	flow flow
}

// Open takes the data directory, adopts the worker that serves it or binds the
// listeners for a new one, and starts. A directory of another node, one that
// another keeper has, and a port in use are errors at once; an unreachable
// control plane, damaged state and a full disk are not.
func Open(ctx context.Context, cfg Config) (*Keeper, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.WorkerLog == nil {
		cfg.WorkerLog = io.Discard
	}
	if cfg.Peers == nil {
		cfg.Peers = func() link.Peers { return link.Peers{} }
	}
	if cfg.Health == nil {
		cfg.Health = func(link.Health, bool) {}
	}
	if cfg.Trials == nil {
		cfg.Trials = func(trial.Report) {}
	}
	if cfg.Tunables.Retry <= 0 {
		cfg.Tunables.Retry = 5 * time.Second
	}
	if cfg.Tunables.Survival <= 0 {
		cfg.Tunables.Survival = 10 * time.Second
	}
	k := newKeeper(cfg)
	if err := k.open(ctx); err != nil {
		return nil, errors.Join(err, k.release())
	}
	return k, nil
}

func newKeeper(cfg Config) *Keeper {
	k := &Keeper{
		cfg: cfg, log: cfg.Logger, setup: cfg.Setup,
		closing: make(chan struct{}), gone: make(chan struct{}), verdicts: make(chan feed.Verdict, 4096),
		renewed: make(chan struct{}, 1),
	}
	k.asked.SetLimit(maxAsks)
	return k
}

// open does what may fail at once, then starts the goroutines.
func (k *Keeper) open(ctx context.Context) (err error) {
	cfg := &k.cfg
	name := cfg.Setup.Cluster + "/" + cfg.Setup.Node
	if k.lock, err = datadir.Take(cfg.Dir, cfg.Setup.Cluster, cfg.Setup.Node); err != nil {
		return err
	}
	k.trials = trial.Open(trial.File{Dir: cfg.Dir, Name: name, Sealer: cfg.Sealer}, controlplane.ShardGlobal, cfg.Tunables.Survival, k.log, cfg.Trials)
	k.disk, err = lkg.Open(lkg.Config{
		Dir: cfg.Dir, Name: name, Sealer: cfg.Sealer, DeltaLimit: cfg.Tunables.DeltaLimit, Logger: k.log, Revoked: cfg.Revoked,
		Load: k.trials.Load, Loaded: k.trials.Loaded,
	})
	if err != nil {
		return err
	}
	first, err := k.adopt(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil && first != nil {
			err = errors.Join(err, first.conn.Close(), first.ring.Close(), first.progress.Close())
		}
	}()
	if first == nil {
		if err := k.bind(ctx); err != nil {
			return err
		}
	}
	ctx, k.cancel = context.WithCancel(context.WithoutCancel(ctx))
	k.spool, err = spool.Open(ctx, spool.Config{
		Dir: cfg.Dir, Name: name, Sealer: cfg.Sealer, Damaged: k.damaged, Segment: cfg.Tunables.SpoolSegment,
		Total: cfg.Tunables.SpoolTotal, Keep: cfg.Tunables.SpoolKeep, Sync: cfg.Tunables.Sync, Logger: k.log,
	})
	if err != nil {
		return err
	}
	if err := k.openReceipts(ctx, name); err != nil {
		return err
	}
	k.flow.init(k)
	if err := k.stats.register(k); err != nil {
		return err
	}
	k.group, ctx = errgroup.WithContext(ctx)
	k.group.Go(func() error { defer close(k.gone); k.supervise(ctx, first); return nil })
	k.group.Go(func() error { k.watch(ctx); return nil })
	k.group.Go(func() error { k.tend(ctx); return nil })
	k.group.Go(func() error { k.look(ctx); return nil })
	k.group.Go(func() error { k.pushPeers(ctx); return nil })
	k.group.Go(func() error { k.pushVerdicts(ctx); return nil })
	if cfg.Metrics != nil {
		k.group.Go(func() error { return k.serveMetrics(ctx) })
	}
	return nil
}

// Close asks the worker to drain, waits for it until ctx ends, kills it if it
// still runs, and stops. All its records are written first.
func (k *Keeper) Close(ctx context.Context) error {
	k.once.Do(func() {
		if by, ok := ctx.Deadline(); ok {
			k.closeBy.Store(by.UnixMilli())
		}
		close(k.closing)
	})
	if w := k.current(); w != nil {
		if err := w.conn.Deliver(ctx, k.drain()); err != nil {
			k.log.Warn("the worker cannot be asked to drain", "error", err)
		}
	}
	select {
	case <-k.gone:
	case <-ctx.Done():
		if w := k.current(); w != nil {
			k.log.Warn("the worker did not drain in time and is killed", "pid", w.pid)
			w.kill()
		}
		select {
		case <-k.gone:
		case <-time.After(5 * time.Second):
		}
	}
	k.cancel()
	err := k.group.Wait()
	return errors.Join(err, k.release())
}

// drain asks a worker to finish, and says how long it has.
func (k *Keeper) drain() *link.Message {
	m := &link.Message{Type: link.TypeDrain}
	if by := k.closeBy.Load(); by != 0 {
		m.Seq = uint64(max(1, by-time.Now().UnixMilli()))
	}
	return m
}

// release gives back what open took.
func (k *Keeper) release() error {
	var err error
	if k.cancel != nil {
		k.cancel()
	}
	if k.spool != nil {
		err = errors.Join(err, k.spool.Close())
	}
	if k.proofs != nil {
		err = errors.Join(err, k.proofs.Close())
	}
	if k.disk != nil {
		err = errors.Join(err, k.disk.Close())
	}
	k.stats.unregister(k)
	k.procMu.Lock()
	defer k.procMu.Unlock()
	for _, f := range k.listeners {
		_ = f.Close() // a listener that nobody accepts from
	}
	k.listeners = nil
	if k.lock != nil {
		err = errors.Join(err, k.lock.Close())
	}
	return err
}

// Renew replaces what the worker is told, such as renewed certificates, and
// tells it, or the next one. The cluster and the node's name stay.
func (k *Keeper) Renew(setup link.Setup) {
	k.procMu.Lock()
	setup.Cluster, setup.Node = k.setup.Cluster, k.setup.Node
	k.setup = setup
	k.renewals++
	k.procMu.Unlock()
	select {
	case k.renewed <- struct{}{}:
	default:
	}
}

// setupNow is what the worker is to be told, and how often it was renewed.
func (k *Keeper) setupNow() (*link.Setup, uint64) {
	k.procMu.Lock()
	defer k.procMu.Unlock()
	setup := k.setup
	return &setup, k.renewals
}

// WorkerPID is the worker's process id; 0 while none runs.
func (k *Keeper) WorkerPID() int {
	if w := k.current(); w != nil {
		return w.pid
	}
	return 0
}

func (k *Keeper) current() *worker {
	k.procMu.Lock()
	defer k.procMu.Unlock()
	return k.worker
}

// Confine replaces this process by argv, so confined that it can write no
// file. A first "--" is left out. It only returns on failure.
func Confine(argv []string) error {
	if len(argv) > 0 && argv[0] == "--" {
		argv = argv[1:]
	}
	return confine.Exec(argv)
}

// EnterWorker finishes the confinement from inside; a worker calls it first.
func EnterWorker() error { return confine.Enter() }

// MeasureConfinement tries which controls hold for this process.
func MeasureConfinement() link.Confinement {
	m := confine.Measure()
	return link.Confinement{Landlock: m.Landlock, NoFileWrite: m.NoFileWrite, NoDump: m.NoDump, NoSwap: m.NoSwap}
}

// ReadSpool calls each for every metadata record kept in a data directory, in
// order and once. The body is only valid during the call. The node may run.
func ReadSpool(dir, cluster, node string, sealer *seal.Sealer, each func(record []byte) error) error {
	return spool.Read(sealer, dir, cluster+"/"+node, each)
}
