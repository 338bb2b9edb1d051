package feed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// twin is the naive watcher: maps, and nothing clever.
type twin struct {
	mu       sync.Mutex
	shards   map[controlplane.Shard]*twinShard
	arriving *twinShard
	frames   int
	resets   int
	verdicts map[string]Verdict
	hints    []registry.Revocation
	beats    []*Frame
	gate     sync.RWMutex // held for writing: the sink takes nothing
	stopped  error
	came     chan struct{}
	entryAt  func(*registry.Entry)
	sender   controlplane.Epoch // lowest of the entries
}

type twinShard struct {
	name    controlplane.Shard
	point   controlplane.Point
	members []string
	records map[string]*registry.Record
	revoked map[string]int64
}

func newTwin() *twin {
	return &twin{shards: make(map[controlplane.Shard]*twinShard), verdicts: make(map[string]Verdict), came: make(chan struct{}, 1)}
}

func newTwinShard(name controlplane.Shard) *twinShard {
	return &twinShard{name: name, records: make(map[string]*registry.Record), revoked: make(map[string]int64)}
}

func (w *twin) from() controlplane.Position {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.arriving = nil
	p := make(controlplane.Position)
	for n, s := range w.shards {
		p[n] = s.point
	}
	return p
}

var errTwin = errors.New("twin")

func (w *twin) sink(f *Frame) error {
	w.gate.RLock()
	defer w.gate.RUnlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	defer func() {
		select {
		case w.came <- struct{}{}:
		default:
		}
	}()
	w.frames++
	switch f.Type {
	case FrameReset:
		w.resets++
		w.arriving = newTwinShard(f.Shard)
		w.arriving.members = f.Members
	case FrameRecord:
		r, err := registry.DecodeRecord(f.Record)
		if err != nil {
			return err
		}
		w.arriving.records[r.Meta.ID] = r
	case FrameRevocation:
		if w.arriving == nil {
			w.hints = append(w.hints, *f.Revocation)
			return nil
		}
		w.arriving.revoked[f.Revocation.ID] = f.Revocation.At
	case FrameEnd:
		s := w.arriving
		w.arriving = nil
		s.point = f.Point
		if old := w.shards[f.Shard]; old != nil {
			if old.point.Compare(s.point) > 0 {
				w.stopped = fmt.Errorf("%w: shard %s went back from %v to %v", errTwin, f.Shard, old.point, s.point)
			}
			for id := range old.revoked {
				if _, still := s.revoked[id]; !still {
					w.stopped = fmt.Errorf("%w: %s was un-revoked by a snapshot", errTwin, id)
				}
			}
		}
		w.shards[f.Shard] = s
	case FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return err
		}
		if w.entryAt != nil {
			w.entryAt(e)
		}
		if w.sender == (controlplane.Epoch{}) || f.Sender.Compare(w.sender) < 0 {
			w.sender = f.Sender
		}
		return w.apply(e)
	case FrameVerdicts:
		for _, v := range f.Verdicts {
			w.verdicts[v.Key] = v
		}
	case FrameHeartbeat:
		w.beats = append(w.beats, f)
	}
	return w.stopped
}

func (w *twin) apply(e *registry.Entry) error {
	s := w.shards[e.Shard]
	if s == nil {
		s = newTwinShard(e.Shard)
		w.shards[e.Shard] = s
	}
	if e.Seq != s.point.Seq+1 || e.Prev != s.point.Epoch {
		w.stopped = fmt.Errorf("%w: %s: entry %v after %v, whose epoch should be %v", errTwin, e.Shard, e.Point(), s.point, e.Prev)
		return w.stopped
	}
	for _, c := range e.Changes {
		switch c.Op {
		case registry.OpPut:
			r := *c.Record
			r.Meta.Revision = e.Seq
			if at := s.revoked[r.Meta.ID]; at != 0 && r.Key.Revoked == 0 {
				w.stopped = fmt.Errorf("%w: %s was un-revoked by an entry", errTwin, r.Meta.ID)
			}
			s.records[r.Meta.ID] = &r
		case registry.OpDelete:
			delete(s.records, c.ID)
		case registry.OpRevoke:
			if old, ok := s.revoked[c.ID]; !ok || c.At < old {
				s.revoked[c.ID] = c.At
			}
			if r := s.records[c.ID]; r != nil && r.Key.Revoked != s.revoked[c.ID] {
				n, k := *r, *r.Key
				k.Revoked = s.revoked[c.ID]
				n.Key, n.Meta.Revision, n.Meta.Updated = &k, e.Seq, max(n.Meta.Updated, c.At)
				s.records[c.ID] = &n
			}
		case registry.OpOpen:
			s.members = c.Members
		}
	}
	s.point = e.Point()
	return w.stopped
}

// differs says how the twin's copy of shard differs from n's; "" if it does not.
func (w *twin) differs(n *node, shard controlplane.Shard) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped != nil {
		return w.stopped.Error()
	}
	var snap registry.ShardSnapshot
	var ok bool
	n.View(func(s *registry.State) { snap, ok = s.ShardSnapshot(shard) })
	own := w.shards[shard]
	if !ok || own == nil {
		return fmt.Sprintf("shard %s: at the server %v, here %v", shard, ok, own != nil)
	}
	if own.point != snap.Info.Last {
		return fmt.Sprintf("shard %s at %v, the server's at %v", shard, own.point, snap.Info.Last)
	}
	count := 0
	for r := range snap.Records {
		count++
		want, _ := registry.EncodeRecord(r)
		if own.records[r.Meta.ID] == nil {
			return "lacks " + r.Meta.ID
		}
		if got, _ := registry.EncodeRecord(own.records[r.Meta.ID]); !bytes.Equal(got, want) {
			return fmt.Sprintf("%s is %+v %+v, want %+v %+v", r.Meta.ID, own.records[r.Meta.ID].Meta, own.records[r.Meta.ID].Key, r.Meta, r.Key)
		}
	}
	if len(own.records) != count {
		return fmt.Sprintf("%d records, want %d", len(own.records), count)
	}
	revoked := 0
	for r := range snap.Revocations {
		revoked++
		if own.revoked[r.ID] != r.At {
			return "lacks the revocation of " + r.ID
		}
	}
	if len(own.revoked) != revoked {
		return fmt.Sprintf("%d revocations, want %d", len(own.revoked), revoked)
	}
	return ""
}

// watch runs a Watch with the twin until the test ends or stop is called.
func (w *twin) watch(t *testing.T, k *caller, region string, set func(*WatchConfig), nodes ...*node) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cfg := WatchConfig{Cluster: testCluster, Region: region, HTTP: k.Client, From: w.from, Sink: w.sink, BackoffMin: 2 * time.Millisecond, BackoffMax: 20 * time.Millisecond}
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr)
	}
	cfg.Targets = Fixed(addrs...)
	if set != nil {
		set(&cfg)
	}
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, cfg) }()
	var err error
	stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err = <-done:
		case <-time.After(20 * time.Second):
			err = errors.New("Watch did not end")
		}
		return err
	})
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return stop
}

// same waits until the twin equals n in shard.
func (w *twin) same(t *testing.T, n *node, shard controlplane.Shard) {
	t.Helper()
	eventually(t, func() string { return w.differs(n, shard) })
}

// locked runs f under the twin's lock.
func (w *twin) locked(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// TestMovedAndCut is the twin test: one history, two control nodes (one behind
// the other), and a watcher that is cut, stalled past the ring, and moved, while
// nodes restart. It must end with exactly the state, and never see time run
// backwards.
func TestMovedAndCut(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			ca := newTestCA(t)
			tune := func(c *HubConfig) { c.Ring = 24; c.SnapshotKeep = 30 * time.Millisecond }
			lead, behind := ca.node("eu-fra", "c1", tune), ca.node("eu-fra", "c2", tune)
			shards := []*history{newHistory("eu", "eu-fra", seed), newHistory("any-eu-fra", "eu-fra", seed+100)}
			var queue []*registry.Entry
			both := func(e *registry.Entry) {
				lead.accept(e)
				queue = append(queue, e)
			}
			catchUp := func(n int) {
				behind.accept(queue[:n]...)
				queue = queue[n:]
			}
			for _, h := range shards {
				both(h.open("eu-fra", "eu-fra"))
			}
			rng := shards[0].rng
			k := ca.caller("eu-fra", identity.RoleData, "d1")
			w := newTwin()
			w.watch(t, k, "eu-fra", func(c *WatchConfig) { c.BackoffMin, c.BackoffMax = time.Millisecond, 4*time.Millisecond }, lead, behind)
			stalled := false
			for range 600 {
				switch rng.IntN(12) {
				case 0:
					k.cut()
				case 1:
					catchUp(rng.IntN(len(queue) + 1))
				case 2:
					if stalled = !stalled; stalled {
						w.gate.Lock()
					} else {
						w.gate.Unlock()
					}
				case 3:
					if rng.IntN(8) == 0 {
						[]*node{lead, behind}[rng.IntN(2)].restart()
					}
				case 4:
					if rng.IntN(2) == 0 {
						lead.hub.Load().Reset() // as after a Raft snapshot was installed
					} else {
						lead.hub.Load().Reset(shards[rng.IntN(2)].shard) // as after an import as a whole
					}
				case 5:
					time.Sleep(time.Duration(rng.IntN(10)) * time.Millisecond)
				default:
					for range 1 + rng.IntN(6) {
						both(shards[rng.IntN(2)].next())
					}
				}
			}
			if stalled {
				w.gate.Unlock()
			}
			catchUp(len(queue))
			for _, h := range shards {
				w.same(t, lead, h.shard)
				w.same(t, behind, h.shard)
			}
			w.locked(func() { t.Logf("%d frames, %d snapshots", w.frames, w.resets) })
		})
	}
}
