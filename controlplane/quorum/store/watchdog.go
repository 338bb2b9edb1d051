package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/retry"
)

// Watchdog notices a disk that has stopped: raft's heartbeats do not need the
// disk, so a leader that cannot write would keep its place for ever.
type Watchdog struct {
	path  string
	every time.Duration
	since atomic.Int64 // when the probe under way began, Unix nanoseconds; 0 = none
}

// NewWatchdog watches the disk under dir, a node's directory.
func NewWatchdog(dir string, every time.Duration) *Watchdog {
	return &Watchdog{path: filepath.Join(dir, nameProbe), every: every}
}

// Probe writes and syncs one byte, over and over, until ctx ends. Call it once.
func (w *Watchdog) Probe(ctx context.Context) error {
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("quorum: disk probe: %w", image.DiskError(err))
	}
	for n := byte(0); retry.Sleep(ctx, w.every); n++ {
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

// began is when the probe under way began; zero if there is none.
func (w *Watchdog) began() time.Time {
	if since := w.since.Load(); since != 0 {
		return time.Unix(0, since)
	}
	return time.Time{}
}

// Watch fails once a probe, or a write that one of the others says began, takes
// longer than the limit.
func (w *Watchdog) Watch(ctx context.Context, limit time.Duration, others ...func() time.Time) error {
	for retry.Sleep(ctx, w.every/2) {
		for _, began := range append(others, w.began) {
			if at := began(); at.IsZero() {
				continue
			} else if took := time.Since(at); took > limit {
				return fmt.Errorf("quorum: the disk under %s has not finished a write for %s: stop this process and look at the disk", filepath.Dir(w.path), took.Round(time.Second))
			}
		}
	}
	return nil
}
