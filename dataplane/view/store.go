package view

import (
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// ErrGap means that frames are missing before the one given: ask for the shard
// again from its present position. Nothing was changed.
var ErrGap = errors.New("the feed skipped something: ask for the shard again")

// Config shapes a Store. The zero Config is good.
type Config struct {
	Now      func() time.Time // for HeardAt; nil = time.Now
	Verdicts int              // keys that the verdict table remembers; 0 = 262144
}

// Store applies feed frames and publishes a View after each that changes
// anything. View and Verdicts are safe for concurrent use; so are the writing
// methods, which wait for each other.
type Store struct {
	now      func() time.Time
	current  atomic.Pointer[View]
	verdicts *Verdicts
	heard    atomic.Int64
	asOf     atomic.Int64

	mu     sync.Mutex // guards what follows, and publication
	edit   uint64     // pieces made in this edit were never published
	stages map[controlplane.Shard]*stage
	pins   map[string]*registry.Record // by record id, as the safety file told
	told   func(registry.Revocation)   // of each revocation; nil = nobody
}

// New returns an empty store, whose View holds nothing and is not loaded.
func New(cfg Config) *Store {
	s := &Store{
		now:      cfg.Now,
		verdicts: newVerdicts(cfg.Verdicts),
		edit:     1,
		stages:   make(map[controlplane.Shard]*stage),
		pins:     make(map[string]*registry.Record),
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.current.Store(&View{
		seed: maphash.MakeSeed(), position: controlplane.Position{}, heard: &s.heard, asOf: &s.asOf,
		stamps: make(map[controlplane.Shard]int64),
	})
	return s
}

// View returns the newest state. A request keeps the one it began with.
func (s *Store) View() *View { return s.current.Load() }

// Verdicts returns the table of shared key verdicts.
func (s *Store) Verdicts() *Verdicts { return s.verdicts }

// SetLoaded says that the state is complete: keys may be judged by it.
// safetyUnknown says that the node's revocations could not be read (see
// View.SafetyUnknown). It may be called again when that changes.
func (s *Store) SetLoaded(safetyUnknown bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.View()
	next.loaded, next.noSafety = true, safetyUnknown
	s.publish(&next)
}

// Pin adds an encoded record that tightens what the view says for as long as the
// view is older than the record: a policy or an org that the safety file holds,
// or what is forbidden by a change of an upstream that has not arrived yet. Epoch
// is the counter of that change's, which ends with a later one: the change then
// is in the view, or was cut off.
func (s *Store) Pin(record []byte, epoch uint64) error {
	rec, err := registry.DecodeRecord(record)
	if err != nil {
		return err
	}
	if err := checkBody(rec); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch rec.Kind {
	case registry.KindUpstream:
		next := *s.View()
		next.narrow(rec, epoch)
		s.publish(&next)
		return nil
	case registry.KindPolicy, registry.KindOrg:
	default:
		return fmt.Errorf("pin of record %q: only an org, a policy or an upstream can be one", rec.Meta.ID)
	}
	if old, ok := s.pins[rec.Meta.ID]; ok && old.Meta.Revision >= rec.Meta.Revision {
		return nil
	}
	s.pins[rec.Meta.ID] = rec
	next := *s.View()
	s.pinned(&next)
	s.publish(&next)
	return nil
}

// Abandon forgets unfinished snapshots: whoever sent them is gone.
func (s *Store) Abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.stages)
}

// Apply applies one frame. Frames of the same shard must come in the feed's
// order; what the view already holds is skipped. After an error nothing was
// changed: ErrGap asks for the shard again, controlplane.ErrUnknownEntry for
// an upgrade.
func (s *Store) Apply(f *feed.Frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.View().loaded {
		s.heard.Store(s.now().UnixMilli())
	}
	switch f.Type {
	case feed.FrameReset:
		s.stages[f.Shard] = newStage(f.Shard, s.View().seed)
		return nil
	case feed.FrameRecord:
		return s.stageRecord(f)
	case feed.FrameRevocation:
		if f.Revocation == nil {
			return errors.New("revocation frame without a revocation")
		}
		s.revoke(*f.Revocation)
		return nil
	case feed.FrameEnd:
		return s.end(f)
	case feed.FrameEntry:
		return s.entry(f)
	case feed.FrameVerdicts:
		for _, v := range f.Verdicts {
			s.verdicts.Put(v)
		}
		return nil
	case feed.FrameHeartbeat:
		offered := f.Position.Clone()
		delete(offered, controlplane.ShardGlobal) // has no keys, and may wait for other nodes
		if s.View().position.Covers(offered) {
			s.advanceAsOf(f.At)
		}
		return nil
	default:
		return fmt.Errorf("frame of type %d: %w", f.Type, controlplane.ErrUnknownEntry)
	}
}

// publish makes next the current view. What it shares with its predecessors is
// frozen from here on.
func (s *Store) publish(next *View) {
	next.generation++
	s.edit++
	s.current.Store(next)
}

func (s *Store) advanceAsOf(ms int64) {
	if ms > s.asOf.Load() {
		s.asOf.Store(ms)
	}
}

func (s *Store) stageRecord(f *feed.Frame) error {
	st := s.stages[f.Shard]
	if st == nil {
		return fmt.Errorf("%w: a record of shard %q came outside a snapshot", ErrGap, f.Shard)
	}
	rec, err := registry.DecodeRecord(f.Record)
	if err != nil {
		return err
	}
	if rec.Meta.Shard != f.Shard {
		return fmt.Errorf("record %q of shard %q came with the snapshot of shard %q", rec.Meta.ID, rec.Meta.Shard, f.Shard)
	}
	if err := checkBody(rec); err != nil {
		return err
	}
	return st.put(rec)
}

// revoke adds r to the safety set at once, whatever else is going on. A view
// that a request began with keeps its records; the next attempt takes a new one.
func (s *Store) revoke(r registry.Revocation) {
	next := *s.View()
	id := revocationKey(r.Kind, r.ID)
	if _, known := next.revoked.get(next.seed, id); known {
		return
	}
	next.revoked.set(s.edit, next.seed, id, r)
	switch r.Kind {
	case registry.KindCredential:
		next.withdraw()
	case registry.KindPin:
		next.confine(r.ID)
	default:
	}
	s.publish(&next)
	if s.told != nil {
		s.told(r)
	}
}

// OnRevocation has f told of each revocation, once, those known by now too. f
// must not block, or call the Store.
func (s *Store) OnRevocation(f func(registry.Revocation)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = f
	for _, r := range s.View().revoked.all {
		f(r)
	}
}

// end makes a snapshot the content of its shard, unless the view is further.
func (s *Store) end(f *feed.Frame) error {
	st := s.stages[f.Shard]
	if st == nil {
		return fmt.Errorf("%w: the end of shard %q came without its beginning", ErrGap, f.Shard)
	}
	delete(s.stages, f.Shard)
	next := *s.View()
	if next.position[f.Shard].Compare(f.Point) > 0 {
		return nil
	}
	if err := s.adopt(&next, st); err != nil {
		return err
	}
	s.move(&next, f.Shard, f.Point, st.updated)
	s.publish(&next)
	return nil
}

// entry applies the next entry of a shard, all of it or nothing. Its
// revocations count even when the entry itself was applied before.
func (s *Store) entry(f *feed.Frame) error {
	e, err := registry.DecodeEntry(f.Entry)
	if err != nil {
		return err
	}
	for i := range e.Changes {
		if c := &e.Changes[i]; c.Op == registry.OpRevoke {
			s.revoke(registry.Revocation{Kind: c.Kind, ID: c.ID, Shard: e.Shard, At: c.At, Expires: c.Expires})
		}
	}
	next := *s.View()
	last := next.position[e.Shard]
	if e.Seq <= last.Seq && e.Epoch.Compare(last.Epoch) <= 0 {
		return nil
	}
	if e.Seq != last.Seq+1 || e.Prev != last.Epoch || e.Epoch.Compare(last.Epoch) < 0 || f.Sender.Compare(last.Epoch) < 0 {
		return fmt.Errorf("%w: shard %q is at %v/%d, entry %v/%d after %v came from a sender at %v",
			ErrGap, e.Shard, last.Epoch, last.Seq, e.Epoch, e.Seq, e.Prev, f.Sender)
	}
	delete(s.stages, e.Shard)
	var updated int64
	for i := range e.Changes {
		if err := s.change(&next, e, &e.Changes[i], &updated); err != nil {
			return fmt.Errorf("entry %v/%d of shard %q: %w", e.Epoch, e.Seq, e.Shard, err)
		}
	}
	s.move(&next, e.Shard, e.Point(), updated)
	s.publish(&next)
	return nil
}

func (s *Store) change(next *View, e *registry.Entry, c *registry.Change, updated *int64) error {
	switch c.Op {
	case registry.OpPut:
		if c.Record == nil {
			return fmt.Errorf("%w: put without a record", controlplane.ErrUnknownEntry)
		}
		rec := *c.Record
		rec.Meta.Revision = e.Seq
		if rec.Meta.Shard == "" {
			rec.Meta.Shard = e.Shard
		}
		if rec.Meta.Shard != e.Shard {
			return fmt.Errorf("record %q belongs to shard %q", rec.Meta.ID, rec.Meta.Shard)
		}
		if err := checkBody(&rec); err != nil {
			return err
		}
		*updated = max(*updated, rec.Meta.Updated)
		return s.put(next, &rec)
	case registry.OpDelete:
		return s.remove(next, c.Kind, c.ID)
	case registry.OpForget:
		next.revoked.remove(s.edit, next.seed, revocationKey(c.Kind, c.ID))
		return nil
	case registry.OpRevoke, registry.OpOpen:
		return nil
	default:
		return fmt.Errorf("%w: operation %d", controlplane.ErrUnknownEntry, c.Op)
	}
}

// move sets the position of one shard, whose newest record is of updated (Unix
// milliseconds), and drops the pins it outruns.
func (s *Store) move(next *View, shard controlplane.Shard, to controlplane.Point, updated int64) {
	if updated > next.stamps[shard] {
		next.stamps = maps.Clone(next.stamps)
		next.stamps[shard] = updated
	}
	if to.Epoch != next.position[shard].Epoch {
		next.widen(shard, to.Epoch.Counter)
	}
	next.position = next.position.Clone()
	next.position[shard] = to
	s.pinned(next)
}

// pinned rebuilds the pins of next: those it is older than.
func (s *Store) pinned(next *View) {
	if len(s.pins) == 0 && len(next.pins) == 0 {
		return
	}
	next.pins = make(map[string][]*registry.Record)
	for _, rec := range s.pins {
		if next.position[rec.Meta.Shard].Seq >= rec.Meta.Revision {
			continue
		}
		org := rec.Meta.ID
		if rec.Kind == registry.KindPolicy {
			org = rec.Policy.Org
		}
		next.pins[org] = append(next.pins[org], rec)
	}
}

// shardNumber returns the number that packed keys of shard carry.
func (s *Store) shardNumber(next *View, shard controlplane.Shard) (uint16, error) {
	if i := slices.Index(next.keyShards, shard); i >= 0 {
		return uint16(i), nil
	}
	if len(next.keyShards) > math.MaxUint16 {
		return 0, fmt.Errorf("%w: too many shards", errKeyRecord)
	}
	// A copy, because readers of older views hold the old slice.
	next.keyShards = append(slices.Clip(next.keyShards), shard)
	return uint16(len(next.keyShards) - 1), nil
}

// Position says how far the newest view is.
func (s *Store) Position() controlplane.Position { return s.View().Position() }

// Loaded reports whether the newest view is complete.
func (s *Store) Loaded() bool { return s.View().Loaded() }
