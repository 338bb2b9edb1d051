package machine

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/diskkit"
)

const shard = controlplane.Shard("any-us-east")

// node is where a Machine's image is, and what it was told.
type node struct {
	image image.Config
	heard int
	fatal error
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	return &node{image: image.Config{Path: filepath.Join(dir, "image.db"), Cluster: "test", Region: "us-east", Sealer: diskkit.Sealer(t)}}
}

func (n *node) open(t *testing.T) *Machine {
	t.Helper()
	img, state, err := image.Open(n.image)
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{
		Image: img, State: state,
		OnApply:  func(ledger.Outcome, controlplane.Epoch) { n.heard++ },
		Restored: func(io.Reader) {},
		Fatal:    func(err error) { n.fatal = err },
		Flushed:  func(time.Duration) {},
	})
}

// entry is the next of the shard's, as raft has it at index.
func entry(t *testing.T, m *Machine, index uint64) *raft.Log {
	t.Helper()
	var data []byte
	m.View(func(s *ledger.State) {
		changes := []registry.Change{{Op: registry.OpOpen, Members: []string{"us-east"}, Home: "us-east"}}
		if _, ok := s.Shard(shard); ok {
			changes = []registry.Change{{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindOrg,
				Meta: registry.Meta{ID: "org_any_0000000000000001", Shard: shard, Created: 1, Updated: 1},
				Org:  &registry.Org{Name: "a", Plan: "build", State: "verified", Jurisdiction: "any"}}}}
		}
		next, err := s.Next(shard, changes)
		if err != nil {
			t.Fatal(err)
		}
		enc, err := registry.EncodeEntry(next)
		if err != nil {
			t.Fatal(err)
		}
		if data, err = registry.EncodeCommand(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}}); err != nil {
			t.Fatal(err)
		}
	})
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

// TestReplayAppliesWhatTheImageLacks: after a restart the log is applied again
// from its beginning, and takes effect from where the image ends.
func TestReplayAppliesWhatTheImageLacks(t *testing.T) {
	n := newNode(t)
	m := n.open(t)
	var log []*raft.Log
	for i := range 4 {
		log = append(log, entry(t, m, uint64(i+1)))
		m.Apply(log[i])
		if i == 1 {
			if err := m.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	want, at := m.Freeze()
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	n.heard = 0
	m = n.open(t)
	if saved := m.Saved().Applied; saved != 2 || m.Mark() != m.Saved() {
		t.Fatalf("the image holds %d entries, the memory %d", saved, m.Mark().Applied)
	}
	m.ApplyBatch(log)
	got, now := m.Freeze()
	if now != at || got.Digest(shard) != want.Digest(shard) || n.heard != 2 {
		t.Errorf("at %v with %d effects, want %v with 2", now, n.heard, at)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestSnapshotHoldsWhatWasApplied: a snapshot begins with a flush, and another
// node is as far once it caught up with it.
func TestSnapshotHoldsWhatWasApplied(t *testing.T) {
	n := newNode(t)
	m := n.open(t)
	for i := uint64(1); i <= 3; i++ {
		m.Apply(entry(t, m, i))
	}
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if m.Saved() != m.Mark() {
		t.Errorf("the image is at %v of %v", m.Saved(), m.Mark())
	}
	store := raft.NewInmemSnapshotStore()
	_, trans := raft.NewInmemTransport("")
	sink, err := store.Create(raft.SnapshotVersionMax, 3, 1, raft.Configuration{}, 1, trans)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Persist(sink); err != nil {
		t.Fatal(err)
	}
	s.Release()
	other := newNode(t)
	other.image.Sealer = n.image.Sealer
	o := other.open(t)
	for range 2 { // the second time there is nothing to do
		if err := o.CatchUp(func() (io.ReadCloser, error) {
			_, r, err := store.Open(sink.ID())
			return r, err
		}); err != nil {
			t.Fatal(err)
		}
	}
	want, at := m.Freeze()
	if got, now := o.Freeze(); now != at || got.Digest(shard) != want.Digest(shard) || other.heard != 1 {
		t.Errorf("at %v, told %d times; want %v, once", now, other.heard, at)
	}
	if err := errors.Join(m.Close(), o.Close(), trans.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestUnknownEntryHalts: nothing is applied from an entry on that this code does
// not know, and no snapshot is taken of what came before it.
func TestUnknownEntryHalts(t *testing.T) {
	n := newNode(t)
	m := n.open(t)
	m.Apply(entry(t, m, 1))
	next := entry(t, m, 3)
	for _, l := range []*raft.Log{{Index: 2, Term: 1, Type: raft.LogCommand, Data: []byte{99, 1, 2}}, next} {
		if err, ok := m.Apply(l).(error); !ok || !errors.Is(err, controlplane.ErrUnknownEntry) {
			t.Errorf("entry %d: %v", l.Index, err)
		}
	}
	if m.Mark().Applied != 1 || !errors.Is(n.fatal, controlplane.ErrUnknownEntry) {
		t.Errorf("it is at %d, and its node was told %v", m.Mark().Applied, n.fatal)
	}
	if _, err := m.Snapshot(); err == nil {
		t.Error("a halted node takes snapshots")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.Reach(ctx, 3); err == nil {
		t.Error("it reached an entry that it does not apply")
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}
