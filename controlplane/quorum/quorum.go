// Package quorum is a region's consensus. With its parts it is the one importer
// of hashicorp/raft: wire carries the messages, store keeps log and snapshots,
// machine is what the log is applied to, members says who belongs, image is the
// durable copy, raftlog speaks. What is left here is what they have in common: a
// node's life, who leads, the numbering of what is proposed, reads that are
// current, and beginning a region, or beginning it anew.
//
// What the records mean is registry's business, and what reaches other regions
// feed's; neither HTTP nor gossip may enter. DESIGN.md, beside this file, has
// the decisions, and why this is not cut further.
package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"ringmain/controlplane/quorum/machine"
	"ringmain/controlplane/quorum/members"
	"ringmain/controlplane/quorum/raftlog"
	"ringmain/controlplane/quorum/store"
	"ringmain/controlplane/quorum/wire"
	"ringmain/controlplane/registry/ledger"
)

// Quorum is one control node's part in its region's Raft. It is safe for
// concurrent use.
type Quorum struct {
	cfg     Config
	log     *slog.Logger
	metrics *metrics

	lock    *os.File
	store   *store.Log
	machine *machine.Machine
	trans   *wire.Transport
	raft    *raft.Raft
	members *members.Keeper

	notify   chan bool // raft's; never blocks it
	observed chan raft.Observation
	lead     leadership
	known    bool                  // the directory has a past: nothing is to be founded
	problem  atomic.Pointer[error] // what ails the node without stopping it

	queue    chan *proposal
	reads    chan read
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

// nameImage is the durable image of the registry, in a node's directory.
const nameImage = "image.db"

// Timeouts that no deployment should have to change.
const (
	drainTimeout  = 500 * time.Millisecond // for proposals under way, before a handover
	settleTimeout = 5 * time.Second        // for raft to answer what it holds, at the end
	probeEvery    = 2 * time.Second
)

// Bounds that no deployment should reach.
const (
	maxReads = 1024 // reads that wait for the proof that this node leads
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
	if q.lock, err = store.Claim(q.cfg.Dir, store.Owner{Cluster: q.cfg.Cluster, Region: q.cfg.Region, Node: q.cfg.Node}, nameImage); err != nil {
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
	q.machine = machine.New(machine.Config{
		Image: img, State: state, OnApply: q.cfg.OnApply, Fatal: q.fail,
		Restored: func(from io.Reader) {
			if meta, ok := store.MetaOf(from); ok {
				q.store.Installed(meta)
			}
		},
		Flushed: func(took time.Duration) { q.metrics.flush.Observe(took.Seconds()) },
	})
	if q.store, err = store.OpenLog(q.cfg.store(q.fail)); err != nil {
		return err
	}
	return nil
}

func (q *Quorum) closeFiles() error {
	var errs []error
	if q.machine != nil {
		errs = append(errs, q.machine.Close())
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
	logger := raftlog.New(q.log)
	snaps, err := store.OpenSnapshots(q.cfg.store(q.fail))
	if err != nil {
		return errors.Join(err, q.cfg.Listener.Close())
	}
	if err := q.reconcile(snaps); err != nil {
		return errors.Join(err, q.cfg.Listener.Close())
	}
	q.trans = wire.New(q.cfg.wire(logger))
	defer func() {
		// Raft panics when it cannot read its log.
		if r := recover(); r != nil {
			err = fmt.Errorf("quorum: start raft: %v", r)
		}
		if err != nil {
			err = errors.Join(err, q.trans.Close())
			q.trans.Cut()
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
	q.members = members.New(q.membersConfig())
	q.trans.Follow(q.members.Addr, func(term uint64) bool { return q.raft.State() == raft.Leader && q.raft.CurrentTerm() == term }, q.raft.LastContact)
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
		q.store.Follows(metas[0])
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
	if last > 0 && base > 0 && !q.store.Continues(metas[0], first, last) {
		// The crash came between a snapshot from the leader and the removal of
		// the entries it replaces.
		if err := q.store.DeleteRange(first, last); err != nil {
			return fmt.Errorf("quorum: %w", err)
		}
		last = 0
	}
	if last > base && first > base+1 {
		return q.store.Damage("it begins at entry %d, and the newest whole snapshot in %s ends at %d", first, filepath.Join(q.cfg.Dir, "snapshots"), base)
	}
	if applied := q.machine.Mark().Applied; applied > max(last, base) {
		return q.store.Damage("it ends at entry %d, and entry %d had been applied", max(last, base), applied)
	}
	return nil
}

// catchUp restores a snapshot that is ahead of the image: the crash came while
// it was being installed, or the image was moved away.
func (q *Quorum) catchUp(snaps raft.SnapshotStore, meta *raft.SnapshotMeta) error {
	if q.machine.Mark().Applied >= meta.Index {
		return nil
	}
	err := q.machine.CatchUp(func() (io.ReadCloser, error) {
		_, r, err := snaps.Open(meta.ID)
		return r, err
	})
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
	dog := store.NewWatchdog(q.cfg.Dir, probeEvery)
	use(func() error { return q.runProposer(q.ctx) })
	use(q.runResolver)
	use(func() error { return q.establish(q.ctx) })
	run(func() error { return q.runReads(q.ctx) })
	run(func() error { return q.members.Run(q.ctx) })
	run(func() error { return q.found(q.ctx) })
	run(q.drainNotify)
	run(q.drainObserver)
	run(func() error { return q.machine.RunFlusher(q.ctx, q.cfg.Tunables.Flush, q.ails) })
	run(func() error { return dog.Probe(q.ctx) })
	run(func() error { return dog.Watch(q.ctx, q.cfg.Tunables.Stall, q.store.Began) })
	go q.end() // Close waits for it
}

// ails notes what is wrong with the image; nil if nothing is any more.
func (q *Quorum) ails(err error) {
	if err == nil {
		q.problem.Store(nil)
		q.log.Info("the image is written again")
	} else if q.problem.Swap(&err) == nil {
		q.log.Error("cannot write the image, trying on", "error", err)
	}
}

// fail stops the node because of err. For its peers it is gone at once.
func (q *Quorum) fail(err error) {
	q.cancel(err)
	if q.trans != nil {
		q.trans.Cut()
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
	q.trans.Cut()
	err = errors.Join(down.Error(), err)
	close(q.raftDown)
	q.metrics.unregister()
	err = errors.Join(q.group.Wait(), err)
	if errors.Is(context.Cause(q.ctx), errClosed) {
		// Saves the next start a replay. After a failure the image stays as it
		// is: the log has the rest.
		err = errors.Join(err, q.machine.Flush())
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
func (q *Quorum) View(f func(*ledger.State)) { q.machine.View(f) }

// Wait returns once the shard is applied here up to point.
func (q *Quorum) Wait(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(q.ctx, func() { cancel(controlplane.ErrNoLeader) })
	defer stop()
	return q.machine.Wait(ctx, shard, point)
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
		Applied:   q.machine.Mark().Applied,
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
	s.Leader, _, _ = q.Leader()
	for _, m := range q.raft.GetConfiguration().Configuration().Servers {
		s.Members = append(s.Members, string(m.ID))
	}
	if err := q.store.FullDisk(); err != nil {
		s.Problem = err.Error()
	} else if p := q.problem.Load(); p != nil {
		s.Problem = (*p).Error()
	} else if err := q.members.Outside(); err != nil && s.Leader == "" {
		s.Problem = err.Error()
	}
	return s
}
