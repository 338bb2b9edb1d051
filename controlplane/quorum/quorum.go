// Package quorum is a region's consensus: the one importer of hashicorp/raft.
// It owns the log, the transport's use, leadership, the registry in memory and
// its durable image, and numbers what is proposed.
//
// What the records mean is registry's business, and what reaches other regions
// feed's; neither HTTP nor gossip may enter. DESIGN.md, beside this file, has
// the decisions.
package quorum

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/registry"
)

// Quorum is one control node's part in its region's Raft. It is safe for
// concurrent use.
type Quorum struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	lock    *os.File
	store   *sealedLog
	machine *machine
	streams *streamLayer
	book    *addressBook
	trans   *transport
	raft    *raft.Raft

	notify   chan bool // raft's; never blocks it
	observed chan raft.Observation
	lead     leadership
	watch    watch
	known    bool                  // the directory has a past: nothing is to be founded
	problem  atomic.Pointer[error] // what ails the node without stopping it
	outside  atomic.Pointer[error] // why it is no member of its region
	led      time.Time             // when there last was a leader; of runMembers

	queue    chan *proposal
	reads    chan read
	changes  chan change
	flights  chan flight
	inFlight counter
	gap      atomic.Bool // an entry in flight was lost

	ctx      context.Context // ends when the node stops or fails; its cause says why
	cancel   context.CancelCauseFunc
	group    *errgroup.Group
	users    sync.WaitGroup // goroutines that wait for raft's answers
	raftDown chan struct{}
	stopped  chan struct{} // closed once everything is released
	err      error         // first failure; read after stopped
}

// Timeouts that no deployment should have to change.
const (
	streamTimeout = 3 * time.Second        // dialling a peer, or one message to it
	drainTimeout  = 500 * time.Millisecond // for proposals under way, before a handover
	settleTimeout = 5 * time.Second        // for raft to answer what it holds, at the end
	probeEvery    = 2 * time.Second
)

// Bounds that no deployment should reach.
const (
	maxReads   = 1024 // reads that wait for the proof that this node leads
	maxMembers = 64   // nodes of a region
)

var errClosed = errors.New("quorum: closed")

// Open starts the node: it loads the image, verifies the log, founds the region
// if Dir is empty and Expect peers are known, and takes part from then on. It
// does not wait for a leader. Ctx bounds the node's life; when it ends the node
// stops without handing over, so prefer Close.
//
// Errors: controlplane.ErrWrongCluster if Dir belongs to another cluster,
// region or node; controlplane.ErrDiskFull; controlplane.ErrUnknownEntry if
// Dir was written by a newer version; any other names what to mend.
func Open(ctx context.Context, cfg Config) (_ *Quorum, err error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	q := &Quorum{
		cfg:      cfg,
		log:      cfg.Logger,
		metrics:  newMetrics(),
		notify:   make(chan bool, 64),
		observed: make(chan raft.Observation, 64),
		queue:    make(chan *proposal, cfg.Tunables.Queue),
		reads:    make(chan read, maxReads),
		changes:  make(chan change),
		watch:    watch{busy: make(map[raft.ServerID]bool)},
		flights:  make(chan flight, 1024),
		raftDown: make(chan struct{}),
		stopped:  make(chan struct{}),
	}
	q.lead.kick = make(chan struct{}, 1)
	q.ctx, q.cancel = context.WithCancelCause(ctx)
	if err := q.openFiles(); err != nil {
		q.cancel(err)
		return nil, errors.Join(err, cfg.Listener.Close(), q.closeFiles())
	}
	if err := q.startRaft(); err != nil {
		q.cancel(err)
		return nil, errors.Join(err, q.closeFiles())
	}
	q.start()
	if err := q.metrics.register(cfg.Registerer, q); err != nil {
		q.fail(err)
		<-q.stopped
		return nil, q.err
	}
	return q, nil
}

func (q *Quorum) openFiles() error {
	var err error
	if q.lock, err = claimDir(q.cfg.Dir, owner{Cluster: q.cfg.Cluster, Region: q.cfg.Region, Node: q.cfg.Node}); err != nil {
		return err
	}
	img, state, err := image.Open(image.Config{
		Path:    filepath.Join(q.cfg.Dir, nameImage),
		Cluster: q.cfg.Cluster,
		Region:  q.cfg.Region,
		Sealer:  q.cfg.Sealer,
	})
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	q.machine = newMachine(&q.cfg, img, state, q.fail, q.metrics)
	if q.store, err = openLog(&q.cfg, q.cfg.logFiles, q.fail); err != nil {
		return err
	}
	q.machine.installed = q.store.installed
	return nil
}

func (q *Quorum) closeFiles() error {
	var errs []error
	if q.machine != nil {
		errs = append(errs, q.machine.close())
	}
	if q.store != nil {
		errs = append(errs, q.store.Close())
	}
	if q.lock != nil {
		errs = append(errs, q.lock.Close())
	}
	return errors.Join(errs...)
}

// startRaft closes the listener if it fails.
func (q *Quorum) startRaft() (err error) {
	q.book = newAddressBook(&q.cfg)
	q.streams = newStreamLayer(&q.cfg, q.book)
	logger := newRaftLogger(q.log)
	snaps, err := openSnapshots(&q.cfg)
	if err != nil {
		return errors.Join(err, q.cfg.Listener.Close())
	}
	if err := q.reconcile(snaps); err != nil {
		return errors.Join(err, q.cfg.Listener.Close())
	}
	q.trans = newTransport(q.streams, q.book, logger)
	defer func() {
		// Raft panics when it cannot read its log.
		if r := recover(); r != nil {
			err = fmt.Errorf("quorum: start raft: %v", r)
		}
		if err != nil {
			err = errors.Join(err, q.trans.Close())
			q.streams.cut()
		}
	}()
	if err := q.recoverIfAsked(snaps); err != nil {
		return err
	}
	if q.known, err = raft.HasExistingState(q.store, q.store, snaps); err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	rc := q.cfg.raftConfig(q.notify)
	if !q.known {
		rc.HeartbeatTimeout, rc.ElectionTimeout = rc.HeartbeatTimeout+founding, rc.ElectionTimeout+founding
	}
	if q.raft, err = raft.NewRaft(rc, q.machine, q.store, q.store, snaps, q.trans); err != nil {
		return fmt.Errorf("quorum: start raft: %w", err)
	}
	q.book.follow(func() []raft.Server { return q.raft.GetConfiguration().Configuration().Servers })
	q.raft.RegisterObserver(raft.NewObserver(q.observed, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.RaftState)
		return ok
	}))
	return nil
}

// reconcile makes image, snapshot and log fit each other as far as a crash can
// part them, and refuses what only damage explains.
func (q *Quorum) reconcile(snaps raft.SnapshotStore) error {
	metas, err := snaps.List()
	if err != nil {
		return fmt.Errorf("quorum: snapshots: %w", err)
	}
	var base uint64
	if len(metas) > 0 {
		base = metas[0].Index
		q.store.follows(metas[0])
		if err := q.catchUp(snaps, metas[0]); err != nil {
			return err
		}
	}
	first, err := q.store.FirstIndex()
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	last, err := q.store.LastIndex()
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	if last > 0 && base > 0 && !q.store.continues(metas[0], first, last) {
		// The crash came between a snapshot from the leader and the removal of
		// the entries it replaces.
		if err := q.store.DeleteRange(first, last); err != nil {
			return fmt.Errorf("quorum: %w", err)
		}
		last = 0
	}
	if last > base && first > base+1 {
		return q.store.damage("it begins at entry %d, and the newest whole snapshot in %s ends at %d", first, filepath.Join(q.cfg.Dir, "snapshots"), base)
	}
	if applied := q.machine.at.Applied; applied > max(last, base) {
		return q.store.damage("it ends at entry %d, and entry %d had been applied", max(last, base), applied)
	}
	return nil
}

// catchUp restores a snapshot that is ahead of the image: the crash came while
// it was being installed, or the image was moved away.
func (q *Quorum) catchUp(snaps raft.SnapshotStore, meta *raft.SnapshotMeta) error {
	if q.machine.at.Applied >= meta.Index {
		return nil
	}
	// A snapshot's index counts entries that no image sees, such as barriers,
	// so its own summary decides.
	_, r, err := snaps.Open(meta.ID)
	var mark image.Mark
	if err == nil {
		mark, err = q.machine.image.DumpMark(r)
		err = errors.Join(err, r.Close())
	}
	if err == nil && mark.Applied > q.machine.at.Applied {
		if _, r, err = snaps.Open(meta.ID); err == nil {
			err = errors.Join(q.machine.Restore(r), r.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("quorum: the snapshot %s is damaged, and the image is behind it: %w: while the other nodes of the region have a leader, move this node's whole directory away and start it again",
			filepath.Join(q.cfg.Dir, "snapshots", meta.ID), err)
	}
	return nil
}

func (q *Quorum) start() {
	q.group = new(errgroup.Group)
	run := func(f func() error) {
		q.group.Go(func() error {
			err := f()
			if err != nil {
				q.fail(err)
			}
			return err
		})
	}
	use := func(f func() error) {
		q.users.Add(1)
		run(func() error {
			defer q.users.Done()
			return f()
		})
	}
	dog := &watchdog{path: filepath.Join(q.cfg.Dir, nameProbe), every: probeEvery}
	use(func() error { return q.runProposer(q.ctx) })
	use(q.runResolver)
	use(func() error { return q.establish(q.ctx) })
	run(func() error { return q.runReads(q.ctx) })
	run(func() error { return q.runMembers(q.ctx) })
	run(func() error { return q.found(q.ctx) })
	run(q.drainNotify)
	run(q.drainObserver)
	run(func() error { return q.runFlusher(q.ctx) })
	run(func() error { return dog.probe(q.ctx) })
	run(func() error { return dog.watch(q.ctx, q.cfg.Tunables.Stall, &q.store.since) })
	go q.end() // Close waits for it
}

// fail stops the node because of err. For its peers it is gone at once.
func (q *Quorum) fail(err error) {
	q.cancel(err)
	if q.streams != nil {
		q.streams.cut()
	}
}

// end releases everything once the node is to stop.
func (q *Quorum) end() {
	<-q.ctx.Done()
	q.lead.end()
	settled := make(chan struct{})
	go func() { q.users.Wait(); close(settled) }()
	timer := time.NewTimer(settleTimeout)
	select {
	case <-settled:
		timer.Stop()
	case <-timer.C:
		// Raft hangs, which means that the disk does.
	}
	down := q.raft.Shutdown()
	// Raft waits for what it asked of peers, which may be away.
	err := q.trans.Close()
	q.streams.cut()
	err = errors.Join(down.Error(), err)
	close(q.raftDown)
	q.metrics.unregister()
	err = errors.Join(q.group.Wait(), err)
	if errors.Is(context.Cause(q.ctx), errClosed) {
		// Saves the next start a replay. After a failure the image stays as it
		// is: the log has the rest.
		err = errors.Join(err, q.machine.flush())
	}
	err = errors.Join(err, q.closeFiles())
	if cause := context.Cause(q.ctx); err == nil && !errors.Is(cause, errClosed) && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	q.err = err
	if err != nil {
		q.log.Error("quorum stopped", "error", err)
	}
	close(q.stopped)
}

// Close hands leadership over, if this node leads, stops it and releases its
// files. It returns the first failure of the node's life. When ctx ends first,
// which means that the disk hangs, exit the process.
func (q *Quorum) Close(ctx context.Context) error {
	if q.ctx.Err() == nil {
		q.handOver()
	}
	q.cancel(errClosed)
	select {
	case <-q.stopped:
		return q.err
	case <-ctx.Done():
		return fmt.Errorf("quorum: does not stop: %w", context.Cause(ctx))
	}
}

// Done is closed when the node stops working, by Close or by failure: Err says
// which. After a failure call Close, exit, and let the supervisor restart.
func (q *Quorum) Done() <-chan struct{} { return q.ctx.Done() }

// Err is why the node stopped; nil while it works, and after Close.
func (q *Quorum) Err() error {
	cause := context.Cause(q.ctx)
	if errors.Is(cause, errClosed) {
		return nil
	}
	return cause
}

// Leader returns the region's leader and its address; false if none is known.
// It may not accept proposals yet.
func (q *Quorum) Leader() (node, addr string, ok bool) {
	at, id := q.raft.LeaderWithID()
	if id == "" {
		return "", "", false
	}
	return string(id), string(at), true // which it says itself
}

// IsLeader reports whether this node leads its region and accepts proposals.
func (q *Quorum) IsLeader() bool { return q.lead.isReady() }

// Leading returns a channel that yields, first at once and then after every
// change, whether this node leads and accepts proposals. Changes that nobody
// read in time are skipped, the latest is kept. It is closed with the node.
func (q *Quorum) Leading() <-chan bool { return q.lead.subscribe() }

// View calls f with the registry as applied here. F must not keep the State
// nor take long, for it holds up Apply: take a Clone and work on that. Records
// may be kept, but not changed.
func (q *Quorum) View(f func(*registry.State)) { q.machine.view(f) }

// Wait returns once the shard is applied here up to point.
func (q *Quorum) Wait(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(q.ctx, func() { cancel(controlplane.ErrNoLeader) })
	defer stop()
	return q.machine.wait(ctx, shard, point)
}

// Stats describe a node for people and metrics.
type Stats struct {
	State     string // follower, candidate, leader
	Leading   bool   // leads and accepts proposals
	Term      uint64
	Applied   uint64 // index of the last entry applied
	LastIndex uint64 // index of the last entry in the log
	Leader    string // node; "" = none known
	Members   []string
	Problem   string // what ails this node without stopping it; "" = nothing
}

// Stats returns the present figures.
func (q *Quorum) Stats() Stats {
	s := Stats{
		Leading:   q.lead.isReady(),
		Term:      q.raft.CurrentTerm(),
		LastIndex: q.raft.LastIndex(),
	}
	switch q.raft.State() {
	case raft.Leader:
		s.State = "leader"
	case raft.Candidate:
		s.State = "candidate"
	default:
		s.State = "follower"
	}
	q.machine.mu.RLock()
	s.Applied = q.machine.at.Applied
	q.machine.mu.RUnlock()
	s.Leader, _, _ = q.Leader()
	for _, m := range q.raft.GetConfiguration().Configuration().Servers {
		s.Members = append(s.Members, string(m.ID))
	}
	if err := q.store.fullDisk(); err != nil {
		s.Problem = err.Error()
	} else if p := q.problem.Load(); p != nil {
		s.Problem = (*p).Error()
	} else if p := q.outside.Load(); p != nil && s.Leader == "" {
		s.Problem = (*p).Error()
	}
	return s
}
