package quorum

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/registry"
)

// machine is what raft applies its log to: the registry in memory, and the
// image that follows it on disk.
type machine struct {
	onApply   func(registry.Outcome, controlplane.Epoch)
	installed func(*raft.SnapshotMeta) // told of a snapshot from the leader, once it is in place
	fatal     func(error)
	metrics   *metrics

	mu       sync.RWMutex // guards what follows
	state    *registry.State
	at       image.Mark // of the last raft entry in state
	halted   error      // nothing is applied any more
	dirty    *image.Dirty
	waiters  int
	advanced chan struct{} // closed when the state advances; then replaced
	kick     chan struct{} // wakes the flusher; capacity 1

	life atomic.Uint64 // image.Life

	imageMu sync.Mutex // taken before mu
	image   *image.Image
}

var _ raft.BatchingFSM = (*machine)(nil)

func newMachine(cfg *Config, img *image.Image, state *registry.State, fatal func(error), metrics *metrics) *machine {
	m := &machine{
		onApply:  cfg.OnApply,
		fatal:    fatal,
		metrics:  metrics,
		state:    state,
		at:       img.Mark(),
		dirty:    image.NewDirty(),
		advanced: make(chan struct{}),
		kick:     make(chan struct{}, 1),
		image:    img,
	}
	m.life.Store(img.Life())
	return m
}

// effect is what OnApply is told of one command.
type effect struct {
	out    registry.Outcome
	sender controlplane.Epoch
}

// Apply implements raft.FSM.
func (m *machine) Apply(l *raft.Log) any { return m.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch implements raft.BatchingFSM. The answer to a command is its
// registry.Outcome, or an error if this node halted.
func (m *machine) ApplyBatch(logs []*raft.Log) []any {
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
	select {
	case m.kick <- struct{}{}:
	default:
	}
	if m.onApply != nil {
		for _, e := range effects {
			m.onApply(e.out, e.sender)
		}
	}
	return answers
}

func (m *machine) applyOne(l *raft.Log, effects *[]effect) any {
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
	var out registry.Outcome
	if err == nil {
		out = m.state.Apply(cmd)
		if errors.Is(out.Err, controlplane.ErrUnknownEntry) {
			err = out.Err
		}
	}
	if err != nil {
		// To go on without it would fork this copy from the others.
		m.halted = fmt.Errorf("quorum: entry %d of the raft log cannot be applied: %w", l.Index, err)
		m.fatal(m.halted)
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
func senderOf(cmd *registry.Command, out *registry.Outcome) controlplane.Epoch {
	switch {
	case cmd.Take != nil:
		return cmd.Take.Epoch
	case cmd.Type == registry.CmdEntry && len(out.Effective) > 0:
		return out.Effective[len(out.Effective)-1].Epoch
	}
	return cmd.Sender
}

// view calls f with the state, which must not be kept.
func (m *machine) view(f func(*registry.State)) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	f(m.state)
}

// wait returns once the shard is at or past point.
func (m *machine) wait(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error {
	err := m.until(ctx, func() bool {
		info, _ := m.state.Shard(shard)
		return info.Last.Compare(point) >= 0
	})
	if err != nil {
		return fmt.Errorf("quorum: shard %s is not at %s.%d yet: %w", shard, point.Epoch, point.Seq, err)
	}
	return nil
}

// until returns once reached, which is called with mu held, says so.
func (m *machine) until(ctx context.Context, reached func() bool) error {
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

// flush makes the image hold all that was applied before the call.
func (m *machine) flush() error {
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	return m.flushLocked()
}

func (m *machine) flushLocked() error {
	m.mu.Lock()
	d, at := m.dirty, m.at
	m.dirty = image.NewDirty()
	state := m.state.Clone() // shares structure; encoding needs no lock
	m.mu.Unlock()
	if at == m.image.Mark() {
		return nil
	}
	stop := m.metrics.timeFlush()
	if err := m.image.Flush(d, state, at); err != nil {
		m.mu.Lock()
		m.dirty.Merge(d)
		m.mu.Unlock()
		return fmt.Errorf("quorum: %w", err)
	}
	stop()
	return nil
}

// Snapshot implements raft.FSM: it brings the image up to date, so that raft
// may cut the log behind it, and keeps a view of it open.
func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
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
func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.Dump(sink); err != nil {
		return errors.Join(fmt.Errorf("quorum: write a snapshot: %w", err), sink.Cancel())
	}
	return sink.Close()
}

// Restore implements raft.FSM: the snapshot becomes image and state.
func (m *machine) Restore(r io.ReadCloser) error {
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
	out := registry.Outcome{Points: state.Position(), Reports: state.Reports()}
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
	if m.onApply != nil && len(out.Reset) > 0 {
		m.onApply(out, controlplane.Epoch{})
	}
	if w, ok := r.(raft.ReadCloserWrapper); ok {
		if s, ok := w.WrappedReadCloser().(snapshotReader); ok && m.installed != nil {
			m.installed(s.meta)
		}
	}
	return nil
}

func (m *machine) close() error {
	m.imageMu.Lock()
	defer m.imageMu.Unlock()
	return m.image.Close()
}
