package quorum

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"ringmain/controlplane/quorum/image"
)

// runFlusher keeps the image at most Tunables.Flush behind.
func (q *Quorum) runFlusher(ctx context.Context) error {
	failing := false
	for {
		select {
		case <-q.machine.kick:
		case <-ctx.Done():
			return nil
		}
		if !sleep(ctx, q.cfg.Tunables.Flush) {
			return nil // Close flushes
		}
		err := q.machine.flush()
		switch {
		case err == nil && failing:
			q.log.Info("the image is written again")
			failing = false
			q.problem.Store(nil)
		case err == nil:
		case image.IsFull(err):
			// The log has everything; it cannot be cut until this works.
			if !failing {
				q.log.Error("cannot write the image, trying on", "error", err)
			}
			failing = true
			q.problem.Store(&err)
			if !sleep(ctx, time.Second) {
				return nil
			}
			select {
			case q.machine.kick <- struct{}{}:
			default:
			}
		default:
			return err
		}
	}
}

// sleep reports whether ctx lived on.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// watchdog notices a disk that has stopped: raft's heartbeats do not need the
// disk, so a leader that cannot write would keep its place for ever.
type watchdog struct {
	path  string
	every time.Duration
	since atomic.Int64 // when the probe under way began, Unix nanoseconds; 0 = none
}

// probe writes and syncs one byte, over and over.
func (w *watchdog) probe(ctx context.Context) error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("quorum: disk probe: %w", image.DiskError(err))
	}
	for n := byte(0); sleep(ctx, w.every); n++ {
		w.since.Store(time.Now().UnixNano())
		_, err := f.WriteAt([]byte{n}, 0)
		if err == nil {
			err = f.Sync()
		}
		w.since.Store(0)
		if err != nil && !image.IsFull(err) {
			return errors.Join(fmt.Errorf("quorum: disk probe: %w", err), f.Close())
		}
	}
	return f.Close()
}

// watch fails once a probe, or what else is timed alike, takes longer than the
// limit.
func (w *watchdog) watch(ctx context.Context, limit time.Duration, others ...*atomic.Int64) error {
	for sleep(ctx, w.every/2) {
		for _, begun := range append(others, &w.since) {
			since := begun.Load()
			if since == 0 {
				continue
			}
			if took := time.Since(time.Unix(0, since)); took > limit {
				return fmt.Errorf("quorum: the disk under %s has not finished a write for %s: stop this process and look at the disk", filepath.Dir(w.path), took.Round(time.Second))
			}
		}
	}
	return nil
}
