package dataplane

import (
	"context"
	"time"

	"ringmain/dataplane/link"
)

// controls are the parts of a confinement, as metrics name them.
func controls(c link.Confinement) map[string]bool {
	return map[string]bool{"landlock": c.Landlock > 0, "no_file_write": c.NoFileWrite, "no_dump": c.NoDump, "no_swap": c.NoSwap}
}

// watchConfinement shows in metrics which controls hold, and logs each change,
// until ctx ends.
func (w *Worker) watchConfinement(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := link.Confinement{}
	for first := true; ; first = false {
		if now := w.cfg.Confined(); first || now != last {
			last = now
			for name, holds := range controls(now) {
				value := 0.0
				if holds {
					value = 1
				}
				w.metrics.confined.WithLabelValues(name).Set(value)
			}
			if now.Holds() {
				w.log.Info("this worker is confined: it serves zero retention", "landlock", now.Landlock)
			} else {
				w.log.Warn("this worker is not confined: it refuses requests with zero retention", "landlock", now.Landlock,
					"no_file_write", now.NoFileWrite, "no_dump", now.NoDump, "no_swap", now.NoSwap)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
