package feedkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Twin is the naive watcher: maps, and nothing clever.
type Twin struct {
	Mu       sync.Mutex // guards the others, but for Gate and EntryAt
	Shards   map[controlplane.Shard]*TwinShard
	Arriving *TwinShard
	Frames   int
	Resets   int
	Verdicts map[string]feed.Verdict
	Hints    []registry.Revocation
	Beats    []*feed.Frame
	Gate     Gate // locked: the sink takes nothing
	stopped  error
	came     chan struct{}
	EntryAt  func(*registry.Entry)
	Sender   controlplane.Epoch // lowest of the entries
}

// Gate is a mutex under which fake time goes on.
type Gate chan struct{}

// Lock waits until nobody holds it.
func (g Gate) Lock() { g <- struct{}{} }

func (g Gate) pass() { g <- struct{}{}; <-g }

// Unlock lets the next one in.
func (g Gate) Unlock() { <-g }

// TwinShard is its copy of a shard.
type TwinShard struct {
	name    controlplane.Shard
	Point   controlplane.Point
	members []string
	Records map[string]*registry.Record
	Revoked map[string]int64
}

// NewTwin holds nothing yet.
func NewTwin() *Twin {
	return &Twin{Shards: make(map[controlplane.Shard]*TwinShard), Verdicts: make(map[string]feed.Verdict), Gate: make(Gate, 1), came: make(chan struct{}, 1)}
}

func newShard(name controlplane.Shard) *TwinShard {
	return &TwinShard{name: name, Records: make(map[string]*registry.Record), Revoked: make(map[string]int64)}
}

// From is what it holds.
func (w *Twin) From() controlplane.Position {
	w.Mu.Lock()
	defer w.Mu.Unlock()
	w.Arriving = nil
	p := make(controlplane.Position)
	for n, s := range w.Shards {
		p[n] = s.Point
	}
	return p
}

var errTwin = errors.New("twin")

// Sink takes a frame.
func (w *Twin) Sink(f *feed.Frame) error {
	w.Gate.pass()
	w.Mu.Lock()
	defer w.Mu.Unlock()
	defer func() {
		select {
		case w.came <- struct{}{}:
		default:
		}
	}()
	w.Frames++
	switch f.Type {
	case feed.FrameReset:
		w.Resets++
		w.Arriving = newShard(f.Shard)
		w.Arriving.members = f.Members
	case feed.FrameRecord:
		r, err := registry.DecodeRecord(f.Record)
		if err != nil {
			return err
		}
		w.Arriving.Records[r.Meta.ID] = r
	case feed.FrameRevocation:
		if w.Arriving == nil {
			w.Hints = append(w.Hints, *f.Revocation)
			return nil
		}
		w.Arriving.Revoked[f.Revocation.ID] = f.Revocation.At
	case feed.FrameEnd:
		s := w.Arriving
		w.Arriving = nil
		s.Point = f.Point
		if old := w.Shards[f.Shard]; old != nil {
			if old.Point.Compare(s.Point) > 0 {
				w.stopped = fmt.Errorf("%w: shard %s went back from %v to %v", errTwin, f.Shard, old.Point, s.Point)
			}
			for id := range old.Revoked {
				if _, still := s.Revoked[id]; !still {
					w.stopped = fmt.Errorf("%w: %s was un-revoked by a snapshot", errTwin, id)
				}
			}
		}
		w.Shards[f.Shard] = s
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return err
		}
		if w.EntryAt != nil {
			w.EntryAt(e)
		}
		if w.Sender == (controlplane.Epoch{}) || f.Sender.Compare(w.Sender) < 0 {
			w.Sender = f.Sender
		}
		return w.apply(e)
	case feed.FrameVerdicts:
		for _, v := range f.Verdicts {
			w.Verdicts[v.Key] = v
		}
	case feed.FrameHeartbeat:
		w.Beats = append(w.Beats, f)
	}
	return w.stopped
}

func (w *Twin) apply(e *registry.Entry) error {
	s := w.Shards[e.Shard]
	if s == nil {
		s = newShard(e.Shard)
		w.Shards[e.Shard] = s
	}
	if e.Seq != s.Point.Seq+1 || e.Prev != s.Point.Epoch {
		w.stopped = fmt.Errorf("%w: %s: entry %v after %v, whose epoch should be %v", errTwin, e.Shard, e.Point(), s.Point, e.Prev)
		return w.stopped
	}
	for _, c := range e.Changes {
		switch c.Op {
		case registry.OpPut:
			r := *c.Record
			r.Meta.Revision = e.Seq
			if at := s.Revoked[r.Meta.ID]; at != 0 && r.Key.Revoked == 0 {
				w.stopped = fmt.Errorf("%w: %s was un-revoked by an entry", errTwin, r.Meta.ID)
			}
			s.Records[r.Meta.ID] = &r
		case registry.OpDelete:
			delete(s.Records, c.ID)
		case registry.OpRevoke:
			if old, ok := s.Revoked[c.ID]; !ok || c.At < old {
				s.Revoked[c.ID] = c.At
			}
			if r := s.Records[c.ID]; r != nil && r.Key.Revoked != s.Revoked[c.ID] {
				n, k := *r, *r.Key
				k.Revoked = s.Revoked[c.ID]
				n.Key, n.Meta.Revision, n.Meta.Updated = &k, e.Seq, max(n.Meta.Updated, c.At)
				s.Records[c.ID] = &n
			}
		case registry.OpOpen:
			s.members = c.Members
		}
	}
	s.Point = e.Point()
	return w.stopped
}

// differs says how the twin's copy of shard differs from n's; "" if it does not.
func (w *Twin) differs(n *Node, shard controlplane.Shard) string {
	w.Mu.Lock()
	defer w.Mu.Unlock()
	if w.stopped != nil {
		return w.stopped.Error()
	}
	var snap ledger.ShardSnapshot
	var ok bool
	n.View(func(s *ledger.State) { snap, ok = s.ShardSnapshot(shard) })
	own := w.Shards[shard]
	if !ok || own == nil {
		return fmt.Sprintf("shard %s: at the server %v, here %v", shard, ok, own != nil)
	}
	if own.Point != snap.Info.Last {
		return fmt.Sprintf("shard %s at %v, the server's at %v", shard, own.Point, snap.Info.Last)
	}
	count := 0
	for r := range snap.Records {
		count++
		want, _ := registry.EncodeRecord(r)
		if own.Records[r.Meta.ID] == nil {
			return "lacks " + r.Meta.ID
		}
		if got, _ := registry.EncodeRecord(own.Records[r.Meta.ID]); !bytes.Equal(got, want) {
			return fmt.Sprintf("%s is %+v %+v, want %+v %+v", r.Meta.ID, own.Records[r.Meta.ID].Meta, own.Records[r.Meta.ID].Key, r.Meta, r.Key)
		}
	}
	if len(own.Records) != count {
		return fmt.Sprintf("%d records, want %d", len(own.Records), count)
	}
	revoked := 0
	for r := range snap.Revocations {
		revoked++
		if own.Revoked[r.ID] != r.At {
			return "lacks the revocation of " + r.ID
		}
	}
	if len(own.Revoked) != revoked {
		return fmt.Sprintf("%d revocations, want %d", len(own.Revoked), revoked)
	}
	return ""
}

// Watch runs a Watch with the twin until the test ends or stop is called.
func (w *Twin) Watch(t *testing.T, k *Caller, region string, set func(*feed.WatchConfig), nodes ...*Node) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cfg := feed.WatchConfig{Cluster: Cluster, Region: region, HTTP: k.Client, From: w.From, Sink: w.Sink, BackoffMin: 2 * time.Millisecond, BackoffMax: 20 * time.Millisecond}
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.Addr)
	}
	cfg.Targets = feed.Fixed(addrs...)
	if set != nil {
		set(&cfg)
	}
	done := make(chan error, 1)
	go func() { done <- feed.Watch(ctx, cfg) }()
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

// Same waits until the twin equals n in shard.
func (w *Twin) Same(t *testing.T, n *Node, shard controlplane.Shard) {
	t.Helper()
	Eventually(t, func() string { return w.differs(n, shard) })
}

// Locked runs f under the twin's lock.
func (w *Twin) Locked(f func()) {
	w.Mu.Lock()
	defer w.Mu.Unlock()
	f()
}

// HasVerdict says whether it lacks v, as Eventually asks.
func (w *Twin) HasVerdict(v feed.Verdict) func() string {
	return func() string {
		w.Mu.Lock()
		defer w.Mu.Unlock()
		if w.Verdicts[v.Key] != v {
			return fmt.Sprintf("verdict of %s is %+v", v.Key, w.Verdicts[v.Key])
		}
		return ""
	}
}

// HasHint says whether it lacks a hint of id, as Eventually asks.
func (w *Twin) HasHint(id string) func() string {
	return func() string {
		w.Mu.Lock()
		defer w.Mu.Unlock()
		for _, r := range w.Hints {
			if r.ID == id {
				return ""
			}
		}
		return "no hint of " + id
	}
}
