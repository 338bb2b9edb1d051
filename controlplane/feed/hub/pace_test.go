package hub

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/feedkit"
	"ringmain/internal/testkit/synckit"
)

// timed is a hub that notes how long it keeps whoever applies entries.
type timed struct {
	*Hub
	took []time.Duration
}

func (h *timed) Applied(out ledger.Outcome, sender controlplane.Epoch) {
	begun := time.Now()
	h.Hub.Applied(out, sender)
	h.took = append(h.took, time.Since(begun))
}

// TestSlowWatcher: one watcher reads nothing, commits go on at speed, others
// are served, and the slow one is dropped, comes back and catches up.
func TestSlowWatcher(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		const patience = 500 * time.Millisecond
		ca := feedkit.NewMemoryCA(t)
		var hub *timed
		n := ca.Node("eu-fra", "c1", func(n *feedkit.Node) feedkit.Hub {
			h, err := Open(t.Context(), Config{Cluster: feedkit.Cluster, Region: "eu-fra", Node: "c1", Source: n, Ring: 256, WriteTimeout: patience})
			if err != nil {
				t.Fatal(err)
			}
			hub = &timed{Hub: h}
			return hub
		})
		h := feedkit.Fill(n, "eu", "eu-fra", 10, "eu-fra")
		slow, quick := feedkit.NewTwin(), feedkit.NewTwin()
		slow.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d1"), "eu-fra", nil, n)
		quick.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d2"), "eu-fra", nil, n)
		slow.Same(t, n, "eu")
		slow.Gate.Lock()
		hub.took = nil
		for i := range 10_000 { // about 12 MB: more than any window or buffer on the way
			rec := h.Key(h.NewKey())
			rec.Key.Hash = bytes.Repeat([]byte{1}, 1000)
			n.Accept(h.Entry(registry.Change{Op: registry.OpPut, Record: rec}))
			if i%250 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		if worst := slices.Max(hub.took); len(hub.took) != 10_000 || worst > 0 {
			t.Errorf("of %d commits one waited %v for a watcher that reads nothing", len(hub.took), worst)
		}
		quick.Same(t, n, "eu")
		time.Sleep(patience + time.Second) // and the heartbeat that finds out
		if got := n.Watchers(); got != 1 {
			t.Errorf("%d watchers; the slow one should be dropped", got)
		}
		slow.Gate.Unlock()
		slow.Same(t, n, "eu")
		if slow.Resets < 2 {
			t.Errorf("the slow watcher took %d snapshots", slow.Resets)
		}
	})
}

// TestLatency: from Applied to the sinks nothing waits, with entries at a steady
// pace. What the machine takes for it no test can bound.
func TestLatency(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		ca := feedkit.NewMemoryCA(t)
		n := newNode(ca, "eu-fra", "c1", nil)
		h := feedkit.Fill(n, "eu", "eu-fra", 10, "eu-fra")
		const watchers, entries = 8, 300
		var mu sync.Mutex
		var took []time.Duration
		sent := make(map[uint64]time.Time)
		for i := range watchers {
			w := feedkit.NewTwin()
			w.EntryAt = func(e *registry.Entry) {
				mu.Lock()
				defer mu.Unlock()
				if at, ok := sent[e.Seq]; ok {
					took = append(took, time.Since(at))
				}
			}
			w.Watch(t, ca.Caller("eu-fra", identity.RoleData, fmt.Sprint("d", i)), "eu-fra", nil, n)
			w.Same(t, n, "eu")
		}
		for range entries {
			e := h.Next()
			mu.Lock()
			sent[e.Seq] = time.Now()
			mu.Unlock()
			n.Accept(e)
			time.Sleep(3 * time.Millisecond)
		}
		feedkit.Eventually(t, func() string {
			mu.Lock()
			defer mu.Unlock()
			if len(took) != watchers*entries {
				return fmt.Sprintf("%d of %d arrived", len(took), watchers*entries)
			}
			return ""
		})
		slices.Sort(took)
		p := func(q int) time.Duration { return took[(len(took)-1)*q/100] }
		t.Logf("%d watchers: p50 %v, p99 %v, max %v", watchers, p(50), p(99), p(100))
		if p(50) > 100*time.Millisecond {
			t.Errorf("p50 %v", p(50))
		}
	})
}

// BenchmarkPublish is what a commit pays for the hub, per entry, with a number
// of watchers attached.
func BenchmarkPublish(b *testing.B) {
	for _, watchers := range []int{0, 16} {
		b.Run(fmt.Sprint(watchers, " watchers"), func(b *testing.B) {
			hub, err := Open(context.Background(), Config{Cluster: feedkit.Cluster, Region: "eu-fra", Source: viewFunc(func(f func(*ledger.State)) { f(ledger.New()) })})
			if err != nil {
				b.Fatal(err)
			}
			h := feedkit.NewHistory("eu", "eu-fra", 1)
			hub.Publish(controlplane.Epoch{}, []*registry.Entry{h.Open("eu-fra", "eu-fra")})
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for range watchers {
				wg.Go(func() {
					w := &watcher{hub: hub, peer: identity.ID{Region: "eu-fra", Role: identity.RoleControl}, cursors: make(map[controlplane.Shard]*cursor), started: true}
					for ctx.Err() == nil {
						if p := w.pull(); len(p.frames) == 0 {
							select {
							case <-p.wake:
							case <-ctx.Done():
							}
						}
					}
				})
			}
			for b.Loop() {
				hub.Publish(controlplane.Epoch{}, []*registry.Entry{h.Entry(registry.Change{Op: registry.OpPut, Record: h.Key("key_eu_0000000000000001")})})
			}
			b.StopTimer()
			cancel()
			wg.Wait()
			_ = hub.Close()
		})
	}
}

// BenchmarkSnapshot encodes a shard of 100,000 keys.
func BenchmarkSnapshot(b *testing.B) {
	st := ledger.New()
	h := feedkit.NewHistory("eu", "eu-fra", 1)
	apply := func(e *registry.Entry) {
		raw, err := registry.EncodeEntry(e)
		if err != nil {
			b.Fatal(err)
		}
		if out := st.Apply(&registry.Command{Type: registry.CmdAccept, Sender: e.Epoch, Entries: [][]byte{raw}}); out.Err != nil {
			b.Fatal(out.Err)
		}
	}
	apply(h.Open("eu-fra", "eu-fra"))
	for range 100 {
		var changes []registry.Change
		for range 1000 {
			changes = append(changes, registry.Change{Op: registry.OpPut, Record: h.Key(h.NewKey())})
		}
		apply(h.Entry(changes...))
	}
	hub, err := Open(context.Background(), Config{Cluster: feedkit.Cluster, Region: "eu-fra", Source: viewFunc(func(f func(*ledger.State)) { f(st) })})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = hub.Close() }()
	for b.Loop() {
		s := &snapshot{taken: make(chan struct{}), grown: make(chan struct{})}
		hub.build(s, "eu")
		if s.err != nil {
			b.Fatal(s.err)
		}
		total := 0
		for _, c := range s.chunks {
			total += len(c)
		}
		b.SetBytes(int64(total))
	}
}
