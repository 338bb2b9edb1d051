// Package spool keeps metadata records on disk until they are shipped: sealed
// segments, filled from the rings that workers put their records in, written
// before a ring gives the room back and synced in groups.
//
// It knows records as bytes with a number; what they say may not matter here.
package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
)

// ErrFull means that the spool has reached its bound: ship or remove segments.
var ErrFull = errors.New("the spool of records has reached its bound: ship or remove segments")

// Config says where and how records are kept. Zero values take the defaults in
// brackets.
type Config struct {
	Dir     string // the node's data directory: segments go to Dir/spool
	Name    string // "<cluster>/<node>", bound into every segment
	Sealer  *seal.Sealer
	Damaged func(run uint64) // called when a ring cannot be read on: its worker must be replaced; nil = nobody
	Segment int64            // bytes of a segment before the next is begun [64 MiB]
	Total   int64            // bytes of all segments before records are refused [4 GiB]
	Gather  time.Duration    // how often a busy ring is looked at [20 ms]
	Sync    time.Duration    // how long a written record may not be on the medium yet [50 ms]
	Keep    time.Duration    // age after which a segment is removed, counted from its last record [30 days]
	Logger  *slog.Logger     // [discards]
}

// Spool empties the rings of one or more worker runs. It is safe for concurrent use.
type Spool struct {
	cfg     Config
	dir     string
	group   *errgroup.Group
	cancel  context.CancelFunc
	wake    chan struct{} // records lie in a ring
	dirtied chan struct{} // something was written
	frame   []byte        // write's alone, reused

	mu      sync.Mutex
	sources []*source
	total   int64
	oldest  int64 // number of the oldest segment; 0 = there is none
	failing error

	segMu   sync.Mutex // guards seg against being closed while it is synced
	seg     *segment   // nil = begin one at the next write
	lastSeg int64      // number of the newest segment
}

type segment struct {
	f      *os.File
	w      *seal.Writer
	path   string
	number int64
	begun  time.Time // number may be ahead of the clock, which steps back
	header int64     // bytes before the first frame
	size   int64
	dirty  bool
}

// Write counts what goes to disk. Only seal.Writer calls it.
func (g *segment) Write(b []byte) (int, error) {
	n, err := g.f.Write(b)
	g.size += int64(n)
	g.dirty = true
	return n, err
}

// cut ends a segment whose last frame failed: what was written of it was never
// acknowledged, and others need the room.
func (g *segment) cut(size int64) error {
	if size == g.header {
		return errors.Join(g.f.Close(), os.Remove(g.path))
	}
	return errors.Join(g.f.Truncate(size), g.f.Close())
}

// Open prepares the directory and starts writing. Segments of former runs are
// never appended to.
func Open(ctx context.Context, cfg Config) (*Spool, error) {
	def(&cfg.Segment, 64<<20)
	def(&cfg.Total, 4<<30)
	def(&cfg.Gather, 20*time.Millisecond)
	def(&cfg.Sync, 50*time.Millisecond)
	def(&cfg.Keep, 30*24*time.Hour)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Damaged == nil {
		cfg.Damaged = func(uint64) {}
	}
	s := &Spool{cfg: cfg, dir: filepath.Join(cfg.Dir, "spool"), wake: make(chan struct{}, 1), dirtied: make(chan struct{}, 1)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", disk.Error(err))
	}
	segments, err := list(s.dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	s.count(segments)
	for _, g := range segments {
		s.lastSeg = g.number
	}
	if err := s.Expire(time.Now()); err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.group, ctx = errgroup.WithContext(ctx)
	s.group.Go(func() error { s.write(ctx); return nil })
	s.group.Go(func() error { s.syncs(ctx); return nil })
	s.group.Go(func() error { s.expires(ctx); return nil })
	return s, nil
}

func def[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// note logs when the disk stops taking records, and when it takes them again.
func (s *Spool) note(err error) {
	s.mu.Lock()
	before := s.failing
	s.failing = err
	s.mu.Unlock()
	switch {
	case err != nil && before == nil:
		s.cfg.Logger.Error("metadata records cannot be written; they wait in memory, and requests are refused once that is full",
			"dir", s.dir, "waiting_bytes", s.Stats().Waiting, "error", err)
	case err == nil && before != nil:
		s.cfg.Logger.Info("metadata records are written again", "dir", s.dir)
	}
}

// frameOverhead is what sealing adds to a frame, and the end mark after it.
const frameOverhead = 64

// writeFrame writes one sealed frame.
func (s *Spool) writeFrame(frame []byte) error {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	if err := s.fits(int64(len(frame))); err != nil {
		return err
	}
	if s.seg != nil && s.seg.size+int64(len(frame))+frameOverhead > s.cfg.Segment {
		if err := s.finish(); err != nil {
			return err
		}
	}
	if s.seg == nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	g, before := s.seg, s.seg.size
	if err := g.w.Frame(frame); err != nil {
		s.seg = nil
		err = errors.Join(disk.Error(err), g.cut(before))
		segments, listErr := list(s.dir)
		if listErr == nil {
			s.count(segments)
		}
		return errors.Join(err, listErr)
	}
	s.mu.Lock()
	s.total += g.size - before
	s.mu.Unlock()
	select {
	case s.dirtied <- struct{}{}:
	default:
	}
	return nil
}

// fits refuses what exceeds the total. The directory is measured again first:
// somebody may have shipped segments.
func (s *Spool) fits(n int64) error {
	s.mu.Lock()
	total := s.total
	s.mu.Unlock()
	if total+n <= s.cfg.Total {
		return nil
	}
	segments, err := list(s.dir)
	if err != nil {
		return err
	}
	if total = s.count(segments); total+n > s.cfg.Total {
		return fmt.Errorf("%w (%s holds %d of %d bytes)", ErrFull, s.dir, total, s.cfg.Total)
	}
	return nil
}

func (s *Spool) begin() error {
	s.lastSeg = max(s.lastSeg+1, time.Now().UnixNano())
	name := segmentName(s.lastSeg)
	g := &segment{path: filepath.Join(s.dir, name), number: s.lastSeg, begun: time.Now()}
	var err error
	g.f, err = os.OpenFile(g.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return disk.Error(err)
	}
	g.w, err = s.cfg.Sealer.NewWriter(g, sealContext(s.cfg.Name, name))
	if err == nil {
		err = disk.SyncDir(s.dir)
	}
	if err != nil {
		return errors.Join(disk.Error(err), g.f.Close(), os.Remove(g.path))
	}
	g.header = g.size
	s.mu.Lock()
	s.total += g.size
	if s.oldest == 0 {
		s.oldest = g.number
	}
	s.mu.Unlock()
	s.seg = g
	return nil
}

// finish ends the current segment with its end mark. The caller holds segMu.
func (s *Spool) finish() error {
	g := s.seg
	s.seg = nil
	return disk.Error(errors.Join(g.w.Close(), g.f.Sync(), g.f.Close()))
}

// syncs brings what was written to the medium, in groups.
func (s *Spool) syncs(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirtied:
		}
		gather := time.NewTimer(s.cfg.Sync)
		select {
		case <-ctx.Done():
			gather.Stop()
			return
		case <-gather.C:
		}
		s.segMu.Lock()
		var err error
		if g := s.seg; g != nil && g.dirty {
			g.dirty = false
			if err = g.f.Sync(); err != nil {
				_ = g.f.Close() // what follows goes to another segment
				s.seg = nil
			}
		}
		s.segMu.Unlock()
		if err != nil {
			s.cfg.Logger.Error("written records could not be synced: a crash of the host may lose them", "error", disk.Error(err))
		}
	}
}

// Stats is a look at a Spool.
type Stats struct {
	Bytes   int64     // of all segments
	Waiting int       // bytes of records not written yet
	Oldest  time.Time // when the oldest segment was begun; zero = there is none
	Failing error     // why; nil = the disk takes records
}

// Stats returns what metrics show.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{Bytes: s.total, Failing: s.failing}
	if s.oldest != 0 {
		st.Oldest = time.Unix(0, s.oldest)
	}
	for _, src := range s.sources {
		st.Waiting += src.ring.Waiting()
	}
	return st
}

// Close writes what lies in the rings and closes them, ends the segment and
// waits. A worker that lives on keeps its memory, for the next keeper.
func (s *Spool) Close() error {
	s.cancel()
	err := s.group.Wait()
	s.End()
	_, drainErr := s.drain()
	err = errors.Join(err, drainErr)
	s.mu.Lock()
	for _, src := range s.sources { // the disk did not take them
		err = errors.Join(err, src.ring.Close())
	}
	s.sources = nil
	s.mu.Unlock()
	s.segMu.Lock()
	defer s.segMu.Unlock()
	if s.seg != nil {
		err = errors.Join(err, s.finish())
	}
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

func sealContext(name, segment string) string { return "spool/" + name + "/" + segment }

const segmentSuffix = ".seg"

func segmentName(start int64) string { return fmt.Sprintf("%019d%s", start, segmentSuffix) }

func parseSegment(name string) (int64, bool) {
	base, ok := strings.CutSuffix(name, segmentSuffix)
	start, err := strconv.ParseInt(base, 10, 64)
	return start, ok && err == nil
}

func (s *Spool) remove(segment string) error { return os.Remove(filepath.Join(s.dir, segment)) }
