package gossip

import (
	"context"
	"sync"
	"time"
)

// Target is one region to observe. Each path reaches its ingress in another
// way, such as by the public name and by a node's address; a region counts as
// reached if any path is. A path returns nil on any good answer and honours ctx.
type Target struct {
	Region string
	Paths  []func(ctx context.Context) error
}

// ObserveConfig is what Observe needs. Targets and Claim must be set.
type ObserveConfig struct {
	Targets  func() []Target               // asked every round; the own region is not among them
	Claim    func(subject string, up bool) // called every round with the verdict; Gossip.Claim
	Interval time.Duration                 // 0 = 500 ms
	Timeout  time.Duration                 // of one path; 0 = 450 ms; below Interval
	Misses   int                           // rounds in a row for a verdict to change; 0 = 3
}

// Observe probes every target each round until ctx ends. It claims a region
// down after three misses in a row and up after three answers; the first round
// with an answer, or the third without, makes the first claim.
func Observe(ctx context.Context, cfg ObserveConfig) {
	fill(&cfg.Interval, 500*time.Millisecond)
	fill(&cfg.Timeout, 450*time.Millisecond)
	fill(&cfg.Misses, 3)
	watches := map[string]*watch{}
	ticker := time.NewTicker(cfg.Interval)
	defer ticker.Stop()
	for {
		targets := cfg.Targets()
		reached := probe(ctx, targets, cfg.Timeout)
		if ctx.Err() != nil {
			return // misses of an ending round mean nothing
		}
		for i, t := range targets {
			w := watches[t.Region]
			if w == nil {
				w = &watch{}
				watches[t.Region] = w
			}
			if w.saw(reached[i], cfg.Misses) {
				cfg.Claim(t.Region, w.up)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// probe asks every path of every target at once.
func probe(ctx context.Context, targets []Target, timeout time.Duration) []bool {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reached := make([]bool, len(targets))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, t := range targets {
		for _, path := range t.Paths {
			wg.Go(func() {
				if path(ctx) == nil {
					mu.Lock()
					reached[i] = true
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	return reached
}

// watch turns rounds into a verdict about one region.
type watch struct {
	known bool
	up    bool
	run   int // rounds in a row that speak against the verdict
}

// saw takes one round and reports whether there is a verdict.
func (w *watch) saw(reached bool, needed int) bool {
	if w.known && reached == w.up {
		w.run = 0
		return true
	}
	w.run++
	if w.run >= needed || (!w.known && reached) {
		w.known, w.up, w.run = true, reached, 0
	}
	return w.known
}
