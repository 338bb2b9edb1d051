package machine

import (
	"context"
	"time"

	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/retry"
)

// retryFull is how long RunFlusher waits for a full disk.
const retryFull = time.Second

// RunFlusher keeps the image at most lag behind, until ctx ends; Flush then. It
// goes on while the disk is full, since the log has everything, but cannot be
// cut: ails is told of it, and with nil once the image is written again. Any
// other failure it returns.
func (m *Machine) RunFlusher(ctx context.Context, lag time.Duration, ails func(error)) error {
	failing := false
	for {
		select {
		case <-m.kick:
		case <-ctx.Done():
			return nil
		}
		if !retry.Sleep(ctx, lag) {
			return nil
		}
		err := m.Flush()
		switch {
		case err == nil && failing:
			failing = false
			ails(nil)
		case err == nil:
		case image.IsFull(err):
			failing = true
			ails(err)
			if !retry.Sleep(ctx, retryFull) {
				return nil
			}
			m.wake()
		default:
			return err
		}
	}
}

// wake has RunFlusher flush.
func (m *Machine) wake() {
	select {
	case m.kick <- struct{}{}:
	default:
	}
}
