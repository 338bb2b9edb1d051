// Package machine is what raft applies its log to: a node's copy of the registry,
// in memory, and the image on disk that follows it.
//
// An entry that this code does not know halts the node, and an image is flushed
// before any snapshot, so that raft may cut its log behind one. Who leads, and
// who may write, may not enter.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Config is what a Machine needs. All of it is needed, but for OnApply.
type Config struct {
	Image *image.Image  // opened; the Machine closes it
	State *ledger.State // what the image holds

	OnApply  func(out ledger.Outcome, sender controlplane.Epoch)
	Restored func(from io.Reader) // called once a snapshot is in place, with what it was read from
	Fatal    func(error)          // called when nothing is applied any more: stop the node
	Flushed  func(took time.Duration)
}

// Machine is what raft applies its log to. It is safe for concurrent use.
type Machine struct {
	cfg Config

	mu       sync.RWMutex // guards what follows
	state    *ledger.State
	at       image.Mark // of the last raft entry in state
	halted   error      // nothing is applied any more
	dirty    *image.Dirty
	waiters  int
	advanced chan struct{} // closed when the state advances; then replaced
	kick     chan struct{} // wakes RunFlusher; capacity 1

	life atomic.Uint64 // image.Life

	imageMu sync.Mutex // taken before mu
	image   *image.Image
}

var _ raft.BatchingFSM = (*Machine)(nil)

// New returns the Machine of a node.
func New(cfg Config) *Machine {
	m := &Machine{
		cfg:      cfg,
		state:    cfg.State,
		at:       cfg.Image.Mark(),
		dirty:    image.NewDirty(),
		advanced: make(chan struct{}),
		kick:     make(chan struct{}, 1),
		image:    cfg.Image,
	}
	m.cfg.State = nil // it is not the state any more, once something is applied
	m.life.Store(cfg.Image.Life())
	return m
}

// effect is what OnApply is told of one command.
type effect struct {
	out    ledger.Outcome
	sender controlplane.Epoch
}

// Apply implements raft.FSM.
func (m *Machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The answer to a command is its
// ledger.Outcome, or an error if this node halted.
func (m *Machine) ApplyBatch(logs []*raft.Log) []any {
	answers := make([]any, len(logs))
	effects := make([]effect, 0, len(logs))
	m.mu.Lock()
	for i, l := range logs {
		answers[i] = m.applyOne(l, &effects)
	}
	if m.waiters > 0 {
		close(m.advanced)
		m.advanced = make(chan struct{})
	}
	m.mu.Unlock()
	m.wake()
	if m.cfg.OnApply != nil {
		for _, e := range effects {
			m.cfg.OnApply(e.out, e.sender)
		}
	}
	return answers
}

func (m *Machine) applyOne(l *raft.Log, effects *[]effect) any {
	switch {
	case m.halted != nil:
		return m.halted
	case l.Index <= m.at.Applied:
		return nil // the image held it already
	case l.Type != raft.LogCommand:
		m.at = image.Mark{Applied: l.Index, Term: l.Term}
		return nil
	}
	cmd, err := registry.DecodeCommand(l.Data)
	var out ledger.Outcome
	if err == nil {
		out = m.state.Apply(cmd)
		if errors.Is(out.Err, controlplane.ErrUnknownEntry) {
			err = out.Err
		}
	}
	if err != nil {
		// To go on without it would fork this copy from the others.
		m.halted = fmt.Errorf("quorum: entry %d of the raft log cannot be applied: %w", l.Index, err)
		m.cfg.Fatal(m.halted)
		return m.halted
	}
	m.at = image.Mark{Applied: l.Index, Term: l.Term}
	m.dirty.Note(m.state, cmd, l.Data, &out)
	if len(out.Effective)+len(out.Touched)+len(out.Reset)+len(out.Reports) > 0 {
		*effects = append(*effects, effect{out, senderOf(cmd, &out)})
	}
	return out
}

// senderOf is the epoch whose home made the command.
func senderOf(cmd *registry.Command, out *ledger.Outcome) controlplane.Epoch {
	switch {
	case cmd.Take != nil:
		return cmd.Take.Epoch
	case cmd.Type == registry.CmdEntry && len(out.Effective) > 0:
		return out.Effective[len(out.Effective)-1].Epoch
	}
	return cmd.Sender
}

// View calls f with the state, which must not be kept. It holds up Apply.
func (m *Machine) View(f func(*ledger.State)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.state)
}

// Wait returns once the shard is at or past point.
func (m *Machine) Wait(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error {
	err := m.until(ctx, func() bool {
		info, _ := m.state.Shard(shard)
		return info.Last.Compare(point) >= 0
	})
	if err != nil {
		return fmt.Errorf("quorum: shard %s is not at %s.%d yet: %w", shard, point.Epoch, point.Seq, err)
	}
	return nil
}

// Reach returns once the entry at index is applied.
func (m *Machine) Reach(ctx context.Context, index uint64) error {
	return m.until(ctx, func() bool { return m.at.Applied >= index })
}

// Mark is the last entry applied.
func (m *Machine) Mark() image.Mark {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.at
}

// Saved is the last entry that the image holds.
func (m *Machine) Saved() image.Mark { return m.image.Mark() }

// Freeze returns the state, which is the caller's, and the last entry in it.
func (m *Machine) Freeze() (*ledger.State, image.Mark) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.state.Clone(), m.at
}

// until returns once reached, which is called with mu held, says so.
func (m *Machine) until(ctx context.Context, reached func() bool) error {
	for {
		m.mu.Lock()
		if reached() {
			m.mu.Unlock()
			return nil
		}
		m.waiters++
		advanced := m.advanced
		m.mu.Unlock()
		var err error
		select {
		case <-advanced:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		m.mu.Lock()
		m.waiters--
		m.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// Flush makes the image hold all that was applied before the call.
func (m *Machine) Flush() error {
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	return m.flushLocked()
}

func (m *Machine) flushLocked() error {
	m.mu.Lock()
	d, at := m.dirty, m.at
	m.dirty = image.NewDirty()
	state := m.state.Clone() // shares structure; encoding needs no lock
	m.mu.Unlock()
	if at == m.image.Mark() {
		return nil
	}
	start := time.Now()
	if err := m.image.Flush(d, state, at); err != nil {
		m.mu.Lock()
		m.dirty.Merge(d)
		m.mu.Unlock()
		return fmt.Errorf("quorum: %w", err)
	}
	m.cfg.Flushed(time.Since(start))
	return nil
}

// Snapshot implements raft.FSM: it brings the image up to date, so that raft
// may cut the log behind it, and keeps a view of it open.
func (m *Machine) Snapshot() (raft.FSMSnapshot, error) {
	m.mu.RLock()
	halted := m.halted
	m.mu.RUnlock()
	if halted != nil {
		return nil, halted
	}
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	if err := m.flushLocked(); err != nil {
		return nil, err
	}
	view, err := m.image.View()
	if err != nil {
		return nil, fmt.Errorf("quorum: snapshot: %w", err)
	}
	return snapshot{view}, nil
}

type snapshot struct{ *image.View }

// Persist implements raft.FSMSnapshot.
func (s snapshot) Persist(sink raft.SnapshotSink) error { return Persist(s.View, sink) }

// Persist writes a snapshot of the image, as Restore reads it, and closes the sink.
func Persist(view *image.View, sink raft.SnapshotSink) error {
	if err := view.Dump(sink); err != nil {
		return errors.Join(fmt.Errorf("quorum: write a snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Restore implements raft.FSM: the snapshot becomes image and state.
func (m *Machine) Restore(r io.ReadCloser) error {
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	m.mu.RLock()
	at := m.at
	m.mu.RUnlock()
	state, err := m.image.Replace(r, at)
	if err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	m.life.Store(m.image.Life())
	out := ledger.Outcome{Points: state.Position(), Reports: state.Reports()}
	m.mu.Lock()
	seen := make(map[controlplane.Shard]struct{})
	for _, info := range append(m.state.Shards(), state.Shards()...) {
		if _, ok := seen[info.Shard]; !ok {
			seen[info.Shard] = struct{}{}
			out.Reset = append(out.Reset, info.Shard)
		}
	}
	m.state, m.dirty, m.at = state, image.NewDirty(), m.image.Mark()
	close(m.advanced)
	m.advanced = make(chan struct{})
	m.mu.Unlock()
	if m.cfg.OnApply != nil && len(out.Reset) > 0 {
		m.cfg.OnApply(out, controlplane.Epoch{})
	}
	m.cfg.Restored(r)
	return nil
}

// Begin makes this copy one of another life of the region.
func (m *Machine) Begin(life uint64) error {
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	if err := m.image.Begin(life); err != nil {
		return fmt.Errorf("quorum: %w", err)
	}
	m.life.Store(life)
	return nil
}

// Life is which life of the region this copy belongs to; 0 is the first.
func (m *Machine) Life() uint64 { return m.life.Load() }

// CatchUp makes this copy what the snapshot that open opens holds, if that is
// ahead of it.
func (m *Machine) CatchUp(open func() (io.ReadCloser, error)) error {
	r, err := open()
	if err != nil {
		return err
	}
	// A snapshot's index counts entries that no image sees, such as barriers, so
	// its own summary decides.
	mark, err := m.image.DumpMark(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return err
	}
	if mark.Applied <= m.Mark().Applied {
		return nil
	}
	if r, err = open(); err != nil {
		return err
	}
	return errors.Join(m.Restore(r), r.Close())
}

// Close releases the image, as far as it was flushed.
func (m *Machine) Close() error {
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	return m.image.Close()
}
