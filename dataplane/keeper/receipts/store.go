// Package receipts keeps a worker's signed batches of receipts on disk, sealed,
// for as long and as many bytes as configured, and finds a receipt in them.
//
// It verifies no signature and judges no caller: the worker does.
package receipts

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
	"ringmain/dataplane/receipt/proof"
)

// Config says where and how batches are kept. Zero values take the defaults in
// brackets.
type Config struct {
	Dir     string // the node's data directory: segments go to Dir/receipts
	Name    string // "<cluster>/<node>", bound into every segment
	Sealer  *seal.Sealer
	Acked   func(from, number uint64) // called when a batch is on the medium; must not block
	Total   int64                     // bytes of all segments; the oldest give way [1 GiB]
	Age     time.Duration             // how long a batch is kept, and at most a segment's length more [24 h]
	Segment int64                     // bytes of a segment before the next is begun; memory holds the index of one [16 MiB, at most Total/8 and 1 GiB]
	Span    time.Duration             // time of a segment before the next is begun [1 h]
	Pending int                       // bytes held in memory while the disk takes none [32 MiB]
	Now     func() time.Time          // [time.Now]
	Logger  *slog.Logger              // [discards]
}

// Store keeps batches. It is safe for concurrent use.
type Store struct {
	cfg    Config
	dir    string
	group  *errgroup.Group
	cancel context.CancelFunc
	wake   chan struct{}

	mu      sync.Mutex // of what follows
	pending []put
	bytes   int // of pending
	failing error

	files sync.Mutex // held to make and remove files that others may look for; taken before segs
	out   []byte     // append's alone, reused

	segs    sync.RWMutex // of what follows; the writer alone changes it
	old     []*segment   // oldest first
	current *writing     // nil = begin one at the next write
	spare   []entry      // the memory of the former current's
	lastSeg int64
	damaged int

	found atomic.Int64 // damage met in Find
}

type put struct {
	from, number uint64
	batch        *proof.Batch
	size         int // bytes
}

// maxSegment keeps offsets within 32 bits.
const maxSegment = 1 << 30

// Open looks at what is there, makes the indexes that are missing, and starts
// writing. Damage costs the batches it touches, and is counted; a key that this
// node lacks is an error.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	def(&cfg.Total, 1<<30)
	def(&cfg.Age, 24*time.Hour)
	def(&cfg.Segment, min(16<<20, cfg.Total/8))
	cfg.Segment = min(cfg.Segment, maxSegment)
	def(&cfg.Span, time.Hour)
	def(&cfg.Pending, 32<<20)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Acked == nil {
		cfg.Acked = func(uint64, uint64) {}
	}
	s := &Store{cfg: cfg, dir: filepath.Join(cfg.Dir, "receipts"), wake: make(chan struct{}, 1)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("receipts: %w", disk.Error(err))
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.group, ctx = errgroup.WithContext(ctx)
	s.group.Go(func() error { s.write(ctx); return nil })
	return s, nil
}

func def[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Put takes over a batch; from says whose it is to Acked, and raw must not
// change afterwards. One that finds no room in memory is dropped: the worker
// offers again what is not acknowledged. One that waits already is as well.
func (s *Store) Put(from, number uint64, raw []byte) {
	b, err := proof.ParseBatch(raw)
	if err != nil {
		s.cfg.Logger.Error("a batch of receipts from the worker cannot be read and is dropped", "number", number, "error", err)
		return
	}
	s.mu.Lock()
	taken := s.bytes+len(raw) <= s.cfg.Pending &&
		!slices.ContainsFunc(s.pending, func(p put) bool { return p.from == from && p.number == number })
	if taken {
		s.pending = append(s.pending, put{from, number, b, len(raw)})
		s.bytes += len(raw)
	}
	s.mu.Unlock()
	if !taken {
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// write moves what is pending to disk, and tries again after failures.
func (s *Store) write(ctx context.Context) {
	wait := time.Duration(0)
	clean := time.NewTicker(time.Minute)
	defer clean.Stop()
	for {
		if wait == 0 {
			select {
			case <-ctx.Done():
				return
			case <-clean.C:
				s.retire(0)
			case <-s.wake:
			}
		} else {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		}
		err := s.drain()
		s.note(err)
		if err == nil {
			wait = 0
		} else {
			wait = min(max(2*wait, 200*time.Millisecond), 10*time.Second)
		}
	}
}

// note logs when the disk stops taking receipts, and when it takes them again.
func (s *Store) note(err error) {
	s.mu.Lock()
	before, waiting := s.failing, s.bytes
	s.failing = err
	s.mu.Unlock()
	switch {
	case err != nil && before == nil:
		s.cfg.Logger.Error("receipts cannot be written; they wait in memory, and those that find no room there cannot be fetched later",
			"dir", s.dir, "waiting_bytes", waiting, "error", err)
	case err == nil && before != nil:
		s.cfg.Logger.Info("receipts are written again", "dir", s.dir)
	}
}

// drain writes and syncs all that is pending.
func (s *Store) drain() error {
	for {
		s.mu.Lock()
		if len(s.pending) == 0 {
			s.mu.Unlock()
			return nil
		}
		written := s.pending
		s.mu.Unlock()
		var err error
		for i := 0; i < len(written) && err == nil; i++ {
			err = s.append(written[i].batch)
		}
		if err == nil {
			err = s.sync()
		}
		if err != nil {
			s.end() // unsynced batches of it are written again, to another
			return disk.Error(err)
		}
		s.mu.Lock()
		for _, p := range written {
			s.bytes -= p.size
		}
		s.pending = append([]put(nil), s.pending[len(written):]...)
		s.mu.Unlock()
		for _, p := range written {
			s.cfg.Acked(p.from, p.number)
		}
	}
}

// Stats is a look at a Store.
type Stats struct {
	Bytes   int64 // of all segments and their indexes
	Batches int   // that can be found
	Waiting int   // bytes not on the medium yet
	Damaged int   // batches and segments that could not be read
	Failing error // why; nil = the disk takes receipts
}

// Stats returns what metrics show.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	st := Stats{Waiting: s.bytes, Failing: s.failing}
	s.mu.Unlock()
	s.segs.RLock()
	defer s.segs.RUnlock()
	st.Damaged = s.damaged + int(s.found.Load())
	for _, g := range s.old {
		st.Bytes += g.bytes + g.index
		st.Batches += g.batches
	}
	if g := s.current; g != nil {
		st.Bytes += g.bytes
		st.Batches += g.batches
	}
	return st
}

// Close writes what is pending, and waits.
func (s *Store) Close() error {
	s.cancel()
	err := errors.Join(s.group.Wait(), s.drain())
	s.end()
	if err != nil {
		return fmt.Errorf("receipts: %w", err)
	}
	return nil
}
