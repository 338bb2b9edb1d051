package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"ringmain/dataplane/link/ring"
)

// source is the ring of one worker run, whose records count from 1. But for
// over, it is the writing goroutine's alone.
type source struct {
	ring    *ring.Consumer
	written uint64 // number of the last record on disk
	over    bool   // its worker is gone: closed once it is empty; guarded by Spool.mu
}

// Attach takes over a ring and empties it from now on. With adopted, another
// keeper read it before: records that it wrote, and had no time to take out,
// are not kept twice. An error says that they may be, which Read makes good;
// the ring is taken over nevertheless. A ring that is attached already stays
// as it is.
func (s *Spool) Attach(c *ring.Consumer, adopted bool) error {
	s.mu.Lock()
	for _, src := range s.sources {
		if src.ring.Run() == c.Run() {
			src.over = false
			s.mu.Unlock()
			s.Wake() // the worker may have called for it on the connection that broke
			return c.Close()
		}
	}
	s.mu.Unlock()
	src := &source{ring: c}
	var err error
	if adopted {
		src.written, err = lastOf(s.cfg.Sealer, s.dir, s.cfg.Name, c.Run())
	}
	s.mu.Lock()
	s.sources = append(s.sources, src)
	s.mu.Unlock()
	s.Wake()
	return err
}

// End says that no worker lives any more. What lies in their rings is still
// written. It returns how many rings wait for the disk.
func (s *Spool) End() (waiting int) {
	s.mu.Lock()
	for _, src := range s.sources {
		src.over = true
		if src.ring.Waiting() > 0 {
			waiting++
		}
	}
	s.mu.Unlock()
	s.Wake()
	return waiting
}

// Wake says that a ring has records, while Spool waits for that.
func (s *Spool) Wake() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// quietRounds is how often the rings are found empty before the writer sleeps
// until it is woken: waking it costs about as much as these looks.
const quietRounds = 4

// write moves records to disk. Under load it looks at the rings at fixed
// times, so that a worker need not wake it; after a failure it tries again.
func (s *Spool) write(ctx context.Context) {
	wait, quiet := time.Duration(0), 0
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for ctx.Err() == nil {
		n, err := s.drain()
		s.note(err)
		wake := s.wake
		switch {
		case err != nil:
			wait, quiet, wake = min(max(2*wait, 200*time.Millisecond), 5*time.Second), 0, nil
		case n > 0:
			wait, quiet, wake = s.cfg.Gather, 0, nil
		case quiet < quietRounds:
			wait, wake = s.cfg.Gather, nil
			quiet++
		case !s.sleep():
			continue
		default:
			wait, quiet = time.Hour, 0
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-wake:
			timer.Stop()
		case <-timer.C:
		}
		if wake != nil {
			wait = 0
			for _, src := range s.attached() {
				src.ring.Wake()
			}
		}
	}
}

func (s *Spool) attached() []*source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sources)
}

// sleep tells the workers to wake the writer. It is false if there is
// something to do, or the writer was called since it looked last.
func (s *Spool) sleep() bool {
	select {
	case <-s.wake:
		return false
	default:
	}
	all := s.attached()
	for i, src := range all {
		if src.ring.Sleep() {
			continue
		}
		for _, src := range all[:i] {
			src.ring.Wake()
		}
		return false
	}
	return true
}

// drain writes until all rings are empty. It returns how many records it found.
func (s *Spool) drain() (n int, err error) {
	for _, src := range s.attached() {
		found, failed := s.empty(src)
		n, err = n+found, errors.Join(err, failed)
	}
	return n, err
}

// empty writes group after group of one ring.
func (s *Spool) empty(src *source) (n int, err error) {
	s.mu.Lock()
	over := src.over // before the ring is read: what is in it then is all
	s.mu.Unlock()
	for {
		frame, last, end := s.collect(src)
		if len(frame) > 0 {
			if err := s.writeFrame(frame); err != nil {
				src.ring.Rewind()
				return n, err
			}
			n += int(last - src.written)
			src.written = last
		}
		if err := src.ring.Commit(); err != nil {
			s.cfg.Logger.Warn("memory for records is not given back", "error", err)
		}
		switch {
		case end == nil:
			continue
		case errors.Is(end, io.EOF) && !over:
			return n, nil
		case !errors.Is(end, io.EOF):
			s.cfg.Logger.Error("the memory in which a worker left records is damaged: what it holds is lost",
				"run", src.ring.Run(), "bytes", src.ring.Waiting(), "error", end)
			s.cfg.Damaged(src.ring.Run())
		}
		s.mu.Lock()
		s.sources = slices.DeleteFunc(slices.Clone(s.sources), func(o *source) bool { return o == src })
		s.mu.Unlock()
		return n, src.ring.Close()
	}
}

// frameBytes is how large a sealed frame may become.
const frameBytes = 1 << 20

// collect reads records of a ring into one frame, empty if there are none that
// disk lacks, with the number of the last:
// run u64 | number of the first u64 | (length u32 | record)*, all big endian.
// End says why no more follow; nil = the frame is full.
func (s *Spool) collect(src *source) (frame []byte, last uint64, end error) {
	limit := int(min(frameBytes, s.cfg.Segment/2))
	frame = s.frame[:0]
	defer func() { s.frame = frame }()
	for len(frame) < limit {
		seq, record, err := src.ring.Next()
		if err != nil {
			return frame, last, err
		}
		if seq <= src.written {
			continue
		}
		if len(frame) == 0 {
			frame = binary.BigEndian.AppendUint64(frame, src.ring.Run())
			frame = binary.BigEndian.AppendUint64(frame, seq)
		}
		frame = binary.BigEndian.AppendUint32(frame, uint32(len(record)))
		frame = append(frame, record...)
		last = seq
	}
	return frame, last, nil
}

// expires ends segments that are old, and removes those older than Keep.
func (s *Spool) expires(ctx context.Context) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := s.Expire(now); err != nil {
				s.cfg.Logger.Error("old metadata records could not be removed", "error", err)
			}
		}
	}
}

// Expire removes segments whose last record was written more than Keep before
// now, and ends the present one once it is a thirtieth of that old, so that
// one segment does not mix what may stay with what must go.
func (s *Spool) Expire(now time.Time) error {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	var err error
	if s.seg != nil && now.Sub(s.seg.begun) > s.cfg.Keep/30 {
		err = s.finish()
	}
	segments, listErr := list(s.dir)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	kept := segments[:0]
	for _, g := range segments {
		if current := s.seg != nil && g.number == s.seg.number; current || now.Sub(g.changed) <= s.cfg.Keep {
			kept = append(kept, g)
			continue
		}
		if removeErr := s.remove(g.name); removeErr != nil {
			err = errors.Join(err, removeErr)
			kept = append(kept, g)
			continue
		}
		s.cfg.Logger.Info("removed metadata records that are older than they are kept", "segment", g.name, "last_written", g.changed)
	}
	s.count(kept)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	return nil
}

// count notes what segments there are, and returns their size.
func (s *Spool) count(segments []segmentInfo) (total int64) {
	for _, g := range segments {
		total += g.size
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total, s.oldest = total, 0
	if len(segments) > 0 {
		s.oldest = segments[0].number
	}
	return total
}
