package trial

import (
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

func global(t *testing.T, seq uint64, changes ...registry.Change) *feed.Frame {
	t.Helper()
	b, err := registry.EncodeEntry(&registry.Entry{Shard: controlplane.ShardGlobal, Epoch: epoch, Prev: epoch, Seq: seq, Changes: changes})
	if err != nil {
		t.Fatal(err)
	}
	return &feed.Frame{Type: feed.FrameEntry, Shard: controlplane.ShardGlobal, Sender: epoch, Entry: b}
}

func TestQueue(t *testing.T) {
	region := registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindRegion, Region: &registry.Region{Name: "us"}}}
	route := registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindRoute, Route: &registry.Route{Model: "m"}}}
	revoke := registry.Change{Op: registry.OpRevoke, Kind: registry.KindUpstream, ID: "ups_1", At: 1}
	nodes := world()
	self := nodes[4] // us-d2: second of the home region
	q := NewQueue(controlplane.ShardGlobal)
	for name, tc := range map[string]struct {
		f     *feed.Frame
		at    controlplane.Point
		takes bool
	}{
		"a route":                    {global(t, 2, route), at(1), true},
		"a route, to an empty node":  {global(t, 2, route), controlplane.Point{}, false},
		"a region":                   {global(t, 2, region), at(1), false},
		"a revocation":               {global(t, 2, revoke), at(1), false},
		"nothing":                    {global(t, 2), at(1), false},
		"another shard":              {entry(t, 2, put(t, "prj_a", "x")), at(1), false},
		"a revocation of a snapshot": {&feed.Frame{Type: feed.FrameRevocation, Shard: controlplane.ShardGlobal}, at(1), false},
		"a snapshot":                 {&feed.Frame{Type: feed.FrameReset, Shard: controlplane.ShardGlobal}, at(1), true},
	} {
		if got := q.Takes(tc.f, tc.at); got != tc.takes {
			t.Errorf("%s: waits %v", name, got)
		}
	}
	start := time.Unix(0, 0)
	next := func(have uint64, after time.Duration) int {
		t.Helper()
		frames, refused := q.Next(self, at(have), func() []Node { return nodes }, none, start.Add(after))
		if len(refused) > 0 {
			t.Errorf("refused %v", refused)
		}
		return len(frames)
	}
	if now, _, _ := q.Add(start, global(t, 2, route, revoke)); len(now) != 1 || now[0].ID != "ups_1" {
		t.Errorf("revocations that wait for nobody: %v", now)
	}
	if !q.Takes(global(t, 3, region), at(1)) {
		t.Error("what follows in the shard overtakes what waits")
	}
	q.Add(start, global(t, 3, region))
	if n := next(1, 0); n != 0 {
		t.Errorf("%d frames before anybody lives with them", n)
	}
	q.Drop() // the connection broke, and its successor sends the same
	q.Add(start, global(t, 2, route))
	q.Add(start, global(t, 3, region))
	if n := next(1, Patience-1); n != 0 {
		t.Errorf("%d frames though nobody lives with them", n)
	}
	if n := next(1, Patience); n != 1 {
		t.Errorf("%d frames after the time that the first had, want one", n)
	}
	nodes[3].Proven = at(9)
	if n := next(2, Patience); n != 1 || q.Len() != 0 {
		t.Errorf("%d frames that another lives with, %d left", n, q.Len())
	}

	// A snapshot waits for its end, which says how far it goes.
	q.Add(start, &feed.Frame{Type: feed.FrameReset, Shard: controlplane.ShardGlobal})
	q.Add(start, &feed.Frame{Type: feed.FrameRecord, Shard: controlplane.ShardGlobal, Record: make([]byte, 100)})
	if n := next(3, time.Hour); n != 0 {
		t.Errorf("%d frames of a snapshot without an end", n)
	}
	q.Add(start, &feed.Frame{Type: feed.FrameEnd, Shard: controlplane.ShardGlobal, Point: at(3)})
	if n := next(3, 0); n != 3 {
		t.Errorf("%d frames of a snapshot of what is here already, want all", n)
	}

	// What outgrows the memory for it waits no longer.
	nodes[3].Proven = at(1)
	q.Add(start, global(t, 10, route))
	for range queueBytes/(1<<20) + 1 {
		q.Add(start, &feed.Frame{Type: feed.FrameRecord, Shard: controlplane.ShardGlobal, Record: make([]byte, 1<<20)})
	}
	if n := next(3, 0); n == 0 {
		t.Error("more waits than may")
	}
}

// What came together waits together: a first node that says nothing costs its
// time once, not once for each change.
func TestWaitsBeginAtArrival(t *testing.T) {
	route := registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindRoute, Route: &registry.Route{Model: "m"}}}
	nodes, start := world(), time.Unix(0, 0)
	q := NewQueue(controlplane.ShardGlobal)
	const changes = 20
	for i := range uint64(changes) {
		q.Add(start, global(t, 2+i, route))
	}
	for i := range uint64(changes) {
		frames, _ := q.Next(nodes[4], at(1+i), func() []Node { return nodes }, none, start.Add(Patience))
		if len(frames) != 1 {
			t.Fatalf("after the time that the first had, %d of %d changes were taken", i, changes)
		}
	}
}

// What a record in a snapshot forbids is not over with what the snapshot waits
// behind: it is of its sender's epoch, or of an earlier one.
func TestARecordIsNarrowedInTheEpochOfItsSender(t *testing.T) {
	b, err := registry.EncodeRecord(&registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_1", Shard: controlplane.ShardGlobal, Revision: 7},
		Upstream: &registry.Upstream{Name: "u", Disabled: true}})
	if err != nil {
		t.Fatal(err)
	}
	second := controlplane.Epoch{Counter: 2, Region: "eu"}
	q := NewQueue(controlplane.ShardGlobal)
	_, narrowed, of := q.Add(time.Unix(0, 0), &feed.Frame{Type: feed.FrameRecord, Shard: controlplane.ShardGlobal, Sender: second, Record: b})
	if len(narrowed) != 1 || of != second.Counter {
		t.Errorf("%d upstreams are narrowed, in epoch %d", len(narrowed), of)
	}
}
