// Package spool keeps metadata records on disk until they are shipped: sealed
// segments, written before they are acknowledged and synced in groups.
//
// It knows records as bytes with a number; what they say may not matter here.
package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/seal"
)

// ErrFull means that the spool has reached its bound: ship or remove segments.
var ErrFull = errors.New("the spool of records has reached its bound: ship or remove segments")

// Config says where and how records are kept. Zero values take the defaults in
// brackets.
type Config struct {
	Dir     string // the node's data directory: segments go to Dir/spool
	Name    string // "<cluster>/<node>", bound into every segment
	Sealer  *seal.Sealer
	Acked   func(run, upto uint64, resend bool) // called when records are written; must not block
	Segment int64                               // bytes of a segment before the next is begun [64 MiB]
	Total   int64                               // bytes of all segments before records are refused [4 GiB]
	Pending int                                 // bytes held in memory while the disk takes none [64 MiB]
	Sync    time.Duration                       // how long a written record may not be on the medium yet [50 ms]
	Logger  *slog.Logger                        // [discards]
}

// Spool takes records of one or more worker runs. It is safe for concurrent use.
type Spool struct {
	cfg     Config
	dir     string
	group   *errgroup.Group
	cancel  context.CancelFunc
	wake    chan struct{} // records are pending
	dirtied chan struct{} // something was written

	mu      sync.Mutex
	runs    map[uint64]*run
	pending []record
	bytes   int // of pending
	total   int64
	failing error

	segMu   sync.Mutex // guards seg against being closed while it is synced
	seg     *segment   // nil = begin one at the next write
	lastSeg int64      // number of the newest segment
}

// run is one worker process, whose records count from 1.
type run struct {
	accepted uint64 // taken over, in order
	written  uint64
	refused  bool // some were not taken: ask for them again
}

type record struct {
	run, seq uint64
	body     []byte
}

type segment struct {
	f     *os.File
	w     *seal.Writer
	path  string
	size  int64
	dirty bool
}

// Write counts what goes to disk. Only seal.Writer calls it.
func (g *segment) Write(b []byte) (int, error) {
	n, err := g.f.Write(b)
	g.size += int64(n)
	g.dirty = true
	return n, err
}

// Open prepares the directory and starts writing. Segments of former runs are
// never appended to.
func Open(ctx context.Context, cfg Config) (*Spool, error) {
	def(&cfg.Segment, 64<<20)
	def(&cfg.Total, 4<<30)
	def(&cfg.Pending, 64<<20)
	def(&cfg.Sync, 50*time.Millisecond)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Spool{cfg: cfg, dir: filepath.Join(cfg.Dir, "spool"), runs: make(map[uint64]*run), wake: make(chan struct{}, 1), dirtied: make(chan struct{}, 1)}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("spool: %w", diskError(err))
	}
	segments, err := list(s.dir)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	for _, g := range segments {
		s.total += g.size
		s.lastSeg = g.number
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.group, ctx = errgroup.WithContext(ctx)
	s.group.Go(func() error { s.write(ctx); return nil })
	s.group.Go(func() error { s.syncs(ctx); return nil })
	return s, nil
}

func def[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

// Expect prepares for a run whose records another keeper may have written
// before: those on disk are acknowledged, not kept twice.
func (s *Spool) Expect(number uint64) error {
	last, err := lastOf(s.cfg.Sealer, s.dir, s.cfg.Name, number)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.runs[number] == nil && last > 0 {
		s.runs[number] = &run{accepted: last, written: last}
	}
	return nil
}

// Put takes over record seq of a run; body must not change afterwards. What
// does not follow the last one taken, or does not fit, is left to be sent
// again.
func (s *Spool) Put(number, seq uint64, body []byte) {
	s.mu.Lock()
	r := s.runs[number]
	if r == nil {
		r = &run{accepted: seq - 1, written: seq - 1}
		s.runs[number] = r
	}
	var ack func()
	switch {
	case seq <= r.written:
		upto := r.written
		ack = func() { s.cfg.Acked(number, upto, false) }
	case seq <= r.accepted:
	case seq != r.accepted+1, s.bytes+len(body) > s.cfg.Pending:
		r.refused = true
	default:
		r.accepted = seq
		s.pending = append(s.pending, record{number, seq, body})
		s.bytes += len(body)
	}
	s.mu.Unlock()
	if ack != nil {
		ack()
		return
	}
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// frameBytes bounds the records in one sealed frame.
const frameBytes = 1 << 20

// write moves what is pending to disk, and tries again after failures.
func (s *Spool) write(ctx context.Context) {
	wait := time.Duration(0)
	for {
		if !s.sleep(ctx, wait) {
			return
		}
		err := s.drain()
		s.note(err)
		switch {
		case err == nil:
			wait = 0
		case wait == 0:
			wait = 200 * time.Millisecond
		default:
			wait = min(2*wait, 5*time.Second)
		}
	}
}

// sleep waits for records, or after a failure for its time. It is false when ctx ended.
func (s *Spool) sleep(ctx context.Context, wait time.Duration) bool {
	if wait == 0 {
		select {
		case <-ctx.Done():
			return false
		case <-s.wake:
			return true
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// note logs when the disk stops taking records, and when it takes them again.
func (s *Spool) note(err error) {
	s.mu.Lock()
	before := s.failing
	s.failing = err
	waiting := s.bytes
	s.mu.Unlock()
	switch {
	case err != nil && before == nil:
		s.cfg.Logger.Error("metadata records cannot be written; they wait in memory, and requests are refused once that is full",
			"dir", s.dir, "waiting_bytes", waiting, "error", err)
	case err == nil && before != nil:
		s.cfg.Logger.Info("metadata records are written again", "dir", s.dir)
	}
}

// drain writes batch after batch until nothing is pending.
func (s *Spool) drain() error {
	for {
		batch := s.batch()
		if len(batch) == 0 {
			s.askAgain()
			return nil
		}
		if err := s.writeBatch(batch); err != nil {
			return err
		}
		s.written(batch)
	}
}

// batch returns the oldest pending records of one run, which stay pending.
func (s *Spool) batch() []record {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := 0
	for i, r := range s.pending {
		if r.run != s.pending[0].run || i > 0 && size+len(r.body) > frameBytes {
			return s.pending[:i:i]
		}
		size += len(r.body)
	}
	return s.pending[:len(s.pending):len(s.pending)]
}

func (s *Spool) written(batch []record) {
	s.mu.Lock()
	for _, r := range batch {
		s.bytes -= len(r.body)
	}
	s.pending = s.pending[len(batch):]
	if len(s.pending) == 0 {
		s.pending = nil
	}
	last := batch[len(batch)-1]
	s.runs[last.run].written = last.seq
	s.mu.Unlock()
	s.cfg.Acked(last.run, last.seq, false)
}

// askAgain asks for records that were refused, now that there is room.
func (s *Spool) askAgain() {
	s.mu.Lock()
	again := make(map[uint64]uint64)
	for number, r := range s.runs {
		if r.refused && r.accepted == r.written {
			r.refused = false
			again[number] = r.written
		}
	}
	s.mu.Unlock()
	for number, upto := range again {
		s.cfg.Acked(number, upto, true)
	}
}

// frameOverhead is what sealing adds to a frame, and the end mark after it.
const frameOverhead = 64

// writeBatch writes one sealed frame:
// run u64 | number of the first u64 | (length u32 | record)*, all big endian.
func (s *Spool) writeBatch(batch []record) error {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	frame := binary.BigEndian.AppendUint64(nil, batch[0].run)
	frame = binary.BigEndian.AppendUint64(frame, batch[0].seq)
	for _, r := range batch {
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(r.body)))
		frame = append(frame, r.body...)
	}
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
	before := s.seg.size
	err := s.seg.w.Frame(frame)
	s.mu.Lock()
	s.total += s.seg.size - before
	s.mu.Unlock()
	if err != nil {
		_ = s.seg.f.Close() // its torn tail was never acknowledged
		s.seg = nil
		return diskError(err)
	}
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
	total = 0
	for _, g := range segments {
		total += g.size
	}
	s.mu.Lock()
	s.total = total
	s.mu.Unlock()
	if total+n > s.cfg.Total {
		return fmt.Errorf("%w (%s holds %d of %d bytes)", ErrFull, s.dir, total, s.cfg.Total)
	}
	return nil
}

func (s *Spool) begin() error {
	s.lastSeg = max(s.lastSeg+1, time.Now().UnixNano())
	name := segmentName(s.lastSeg)
	g := &segment{path: filepath.Join(s.dir, name)}
	var err error
	g.f, err = os.OpenFile(g.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return diskError(err)
	}
	g.w, err = s.cfg.Sealer.NewWriter(g, sealContext(s.cfg.Name, name))
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return errors.Join(diskError(err), g.f.Close(), os.Remove(g.path))
	}
	s.mu.Lock()
	s.total += g.size
	s.mu.Unlock()
	s.seg = g
	return nil
}

// finish ends the current segment with its end mark. The caller holds segMu.
func (s *Spool) finish() error {
	g := s.seg
	s.seg = nil
	return diskError(errors.Join(g.w.Close(), g.f.Sync(), g.f.Close()))
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
			s.cfg.Logger.Error("written records could not be synced: a crash of the host may lose them", "error", diskError(err))
		}
	}
}

// Standing is the last record of a run that is on disk, and whether those
// after it are to be sent again.
func (s *Spool) Standing(number uint64) (written uint64, resend bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.runs[number]
	if r == nil {
		return 0, false
	}
	return r.written, r.refused && r.accepted == r.written
}

// Stats is a look at a Spool.
type Stats struct {
	Bytes   int64 // of all segments
	Waiting int   // bytes of records not written yet
	Failing error // why; nil = the disk takes records
}

// Stats returns what metrics show.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Bytes: s.total, Waiting: s.bytes, Failing: s.failing}
}

// Close writes what is pending, ends the segment and waits.
func (s *Spool) Close() error {
	s.cancel()
	err := s.group.Wait()
	err = errors.Join(err, s.drain())
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

func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", controlplane.ErrDiskFull, err)
	}
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
