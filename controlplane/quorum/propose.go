package quorum

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/quorum/store"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// proposal is one caller's wish. Exactly one side takes it off "queued".
type proposal struct {
	ctx     context.Context //nolint:containedctx // the caller's, looked at when its turn comes
	shard   controlplane.Shard
	changes []registry.Change
	level   registry.Level
	command *registry.Command // instead of changes: an import
	state   atomic.Int32
	done    chan answer // capacity 1
}

const (
	queued    = iota
	taken     // by the proposer: its fate is raft's
	abandoned // by the caller: nothing was written
)

type answer struct {
	out ledger.Outcome
	err error
}

// flight is a proposal that raft holds.
type flight struct {
	*proposal
	future raft.ApplyFuture
	start  time.Time
}

// Propose appends one entry with the changes to the shard, and returns once it
// is committed and applied here. Only the leader of the shard's home does it.
//
// Nothing was written if the error is a *controlplane.RuleError (the changes
// are refused), controlplane.ErrNotLeader, ErrNoLeader, ErrNotHome, ErrNoHome,
// ErrTailFull, ErrOverloaded, or ErrDiskFull or the context's alone. After
// controlplane.ErrUncertain it may have been: read before retrying. An Outcome
// comes with a RuleError if the entry was refused only when applied.
func (q *Quorum) Propose(ctx context.Context, shard controlplane.Shard, changes []registry.Change) (ledger.Outcome, error) {
	return q.ProposeLevel(ctx, shard, 0, changes)
}

// ProposeLevel is Propose, and notes beside the entry, for whoever may find it
// in a quarantine, which acknowledgement its writer asked for. It waits for
// none but the region's commit.
func (q *Quorum) ProposeLevel(ctx context.Context, shard controlplane.Shard, level registry.Level, changes []registry.Change) (ledger.Outcome, error) {
	return q.submit(&proposal{ctx: ctx, shard: shard, changes: changes, level: level, done: make(chan answer, 1)})
}

// ProposeCommand commits an import (entries, or a shard snapshot, of another
// home) or a step of the shard's regions towards another home. Errors are as of
// Propose, and *ledger.StructureError, which says where the shard stands.
//
// While the region is at cluster version 1, imports lose what only later
// versions carry, and other commands are refused: see Raise.
func (q *Quorum) ProposeCommand(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error) {
	switch cmd.Type {
	case registry.CmdEntry:
		return ledger.Outcome{}, errors.New("quorum: own entries go through Propose, which numbers them")
	case registry.CmdVersion:
		return ledger.Outcome{}, errors.New("quorum: the cluster version is raised by Raise, which asks the nodes first")
	default:
	}
	if cmd.Take != nil && cmd.Take.Epoch.Region != q.cfg.Region {
		return ledger.Outcome{}, fmt.Errorf("quorum: %s takes its shards over itself, not through %s", cmd.Take.Epoch.Region, q.cfg.Region)
	}
	return q.submit(&proposal{ctx: ctx, command: cmd, done: make(chan answer, 1)})
}

func (q *Quorum) submit(p *proposal) (ledger.Outcome, error) {
	if err := q.notLeading(); err != nil {
		return ledger.Outcome{}, err
	}
	select {
	case q.queue <- p:
	default:
		return ledger.Outcome{}, controlplane.ErrOverloaded
	}
	var cause error
	select {
	case a := <-p.done:
		return a.out, a.err
	case <-p.ctx.Done():
		cause = context.Cause(p.ctx)
	case <-q.stopped:
		cause = controlplane.ErrNoLeader
	}
	if p.state.CompareAndSwap(queued, abandoned) {
		return ledger.Outcome{}, cause
	}
	select {
	case a := <-p.done: // it was decided meanwhile
		return a.out, a.err
	default:
		return ledger.Outcome{}, fmt.Errorf("%w: %w", controlplane.ErrUncertain, cause)
	}
}

// proposer hands queued proposals to raft, one after the other, without
// waiting for their commit: each continues where the one before will end.
type proposer struct {
	tails map[controlplane.Shard]controlplane.Point // ends of shards with entries in flight
}

func (q *Quorum) runProposer(ctx context.Context) error {
	defer close(q.flights)
	p := &proposer{tails: make(map[controlplane.Shard]controlplane.Point)}
	for {
		select {
		case next := <-q.queue:
			if !next.state.CompareAndSwap(queued, taken) {
				continue
			}
			if err := q.launch(p, next); err != nil {
				next.done <- answer{err: err}
			}
		case <-ctx.Done():
			q.sendBack()
			return nil
		}
	}
}

// sendBack answers the proposals that nobody will launch.
func (q *Quorum) sendBack() {
	for {
		select {
		case p := <-q.queue:
			if p.state.CompareAndSwap(queued, taken) {
				p.done <- answer{err: q.elsewhere()}
			}
		default:
			return
		}
	}
}

// counter counts what is under way.
type counter struct {
	mu     sync.Mutex
	n      int
	waiter chan struct{} // closed at zero; nil if nobody waits
}

func (c *counter) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += n
	if c.n == 0 && c.waiter != nil {
		close(c.waiter)
		c.waiter = nil
	}
}

// idle returns a channel that is closed once nothing is under way.
func (c *counter) idle() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	if c.waiter == nil {
		c.waiter = make(chan struct{})
	}
	return c.waiter
}

// launch gives one proposal to raft. An error means that nothing was written.
func (q *Quorum) launch(p *proposer, next *proposal) error {
	if err := q.notLeading(); err != nil {
		return err
	}
	if next.ctx.Err() != nil {
		return context.Cause(next.ctx)
	}
	if q.gap.Load() {
		// Something in flight was lost, and with it what was numbered after
		// it. Go on from what is applied once the last of them came down.
		<-q.inFlight.idle()
		q.gap.Store(false)
		clear(p.tails)
	}
	cmd, end, err := q.prepare(p, next)
	if err != nil {
		return err
	}
	data, err := registry.EncodeCommand(cmd)
	if err != nil {
		return err
	}
	if len(data) > maxCommand {
		return controlplane.Refuse(controlplane.RuleInvalid, "", "the change has %d bytes, at most %d fit: split it", len(data), maxCommand)
	}
	f := flight{proposal: next, start: time.Now(), future: q.raft.ApplyLog(raft.Log{Data: data}, 0)}
	if next.command == nil {
		p.tails[next.shard] = end
	}
	q.inFlight.add(1)
	q.flights <- f
	return nil
}

// prepare checks a proposal against what is applied, and numbers it behind what
// is in flight. What the latter changes, Apply checks again. A proposal that
// breaks the rules themselves is refused: in the log it would end every node.
func (q *Quorum) prepare(p *proposer, next *proposal) (cmd *registry.Command, end controlplane.Point, err error) {
	defer func() {
		if r := recover(); r != nil {
			q.cfg.Logger.Error("quorum: a proposal is refused on which the rules fail", "shard", next.shard, "panic", r, "stack", string(debug.Stack()))
			err = controlplane.Refuse(controlplane.RuleInvalid, "changes", "%v", ledger.ErrPoison)
		}
	}()
	if next.command != nil {
		var copied *ledger.State
		q.machine.View(func(s *ledger.State) {
			copied = s.Clone()
			cmd, err = next.command.At(s.Version())
		})
		if err == nil && (cmd.Type == registry.CmdAccept || cmd.Type == registry.CmdStage || cmd.Type == registry.CmdAdopt) {
			err = copied.Rehearse(cmd)
		}
		return cmd, end, err
	}
	var entry *registry.Entry
	version := uint64(0)
	q.machine.View(func(s *ledger.State) {
		version = s.Version()
		info, _ := s.Shard(next.shard)
		if err = s.Writable(next.shard, ownership.Member{Region: q.cfg.Region, Since: q.Since()}); err != nil {
			return
		}
		if err = s.Check(next.shard, next.changes); err != nil {
			return
		}
		if tail, ok := p.tails[next.shard]; ok && tail.Compare(info.Last) > 0 {
			entry = registry.NextAfter(next.shard, tail, next.changes)
			return
		}
		entry, err = s.Next(next.shard, next.changes)
	})
	if err != nil {
		return nil, end, err
	}
	enc, err := registry.EncodeEntry(entry)
	if err == nil {
		_, err = registry.DecodeEntry(enc) // as every node will
	}
	if err != nil {
		return nil, end, err
	}
	cmd = &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}}
	if next.level != 0 && version > 1 {
		cmd.Levels = []registry.Level{next.level}
	}
	return cmd, entry.Point(), nil
}

// runResolver answers the callers, in the order of the log.
func (q *Quorum) runResolver() error {
	for f := range q.flights {
		a, lost := q.resolve(f)
		if lost {
			q.gap.Store(true)
		}
		q.inFlight.add(-1)
		f.done <- a
	}
	return nil
}

// resolve waits for raft's word on f. Lost means that entries numbered after f
// cannot apply.
func (q *Quorum) resolve(f flight) (a answer, lost bool) {
	if err := f.future.Error(); err != nil {
		return answer{err: q.raftError(err)}, true
	}
	q.metrics.commit.Observe(time.Since(f.start).Seconds())
	switch v := f.future.Response().(type) {
	case ledger.Outcome:
		a.out = v
	case error:
		return answer{err: fmt.Errorf("%w: %w", controlplane.ErrUncertain, v)}, true
	default:
		return answer{err: fmt.Errorf("%w: raft gave %T", controlplane.ErrUncertain, v)}, true
	}
	a.err = a.out.Err
	var refusal *controlplane.RuleError
	switch {
	case a.err == nil, errors.As(a.err, &refusal), f.command != nil:
		return a, false
	case errors.Is(a.err, controlplane.ErrNotHome), errors.Is(a.err, controlplane.ErrNoHome):
		return a, true
	default:
		// An entry before it never made it into the log, so this one does not
		// fit: it is there, without effect.
		a.err = fmt.Errorf("%w: %w", controlplane.ErrNoLeader, a.err)
		return a, true
	}
}

// raftError says what became of an entry that raft did not confirm.
func (q *Quorum) raftError(err error) error {
	var failed *store.AppendError
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return q.elsewhere() // it never entered the log
	case errors.As(err, &failed) && !failed.Tried:
		return err
	default:
		if full := q.store.FullDisk(); full != nil { // that is why the lead was lost
			return fmt.Errorf("%w: %w: %w", controlplane.ErrUncertain, err, full)
		}
		return fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
}
