package trial

import (
	"slices"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// queueBytes bounds what may wait: beyond it, it is taken without waiting.
const queueBytes = 16 << 20

// Queue holds the frames of one shard that wait for other nodes. It has no
// clock and no lock.
type Queue struct {
	shard  controlplane.Shard
	frames []*feed.Frame
	bytes  int
	since  map[controlplane.Point]time.Time // when a change arrived; kept over connections, as waits are
	waits  map[controlplane.Point]*Wait
}

// NewQueue returns an empty queue.
func NewQueue(shard controlplane.Shard) *Queue {
	return &Queue{shard: shard, since: map[controlplane.Point]time.Time{}, waits: map[controlplane.Point]*Wait{}}
}

// Takes reports whether f has to go through the queue, on a node that is at at.
// Nothing that a node could lose needs to wait on one that holds nothing yet.
func (q *Queue) Takes(f *feed.Frame, at controlplane.Point) bool {
	if f.Shard != q.shard || at == (controlplane.Point{}) {
		return false
	}
	switch f.Type {
	case feed.FrameReset, feed.FrameRecord, feed.FrameEnd:
		return true
	case feed.FrameEntry:
		return len(q.frames) > 0 || !harmless(f)
	default:
		return false
	}
}

// harmless reports an entry that changes no record but regions': what operators
// reach for in an emergency (a brownout) waits for nobody.
func harmless(f *feed.Frame) bool {
	e, err := registry.DecodeEntry(f.Entry)
	if err != nil {
		return false
	}
	for i := range e.Changes {
		switch c := &e.Changes[i]; {
		case c.Op == registry.OpRevoke, c.Op == registry.OpOpen:
		case c.Op == registry.OpPut && c.Record != nil && c.Record.Kind == registry.KindRegion:
		default:
			return false
		}
	}
	return true
}

// Add puts f in, which arrived at now. It returns what waits for nobody: the
// revocations in it, and how upstreams are to be narrowed (see Narrow) by a
// change of an epoch with counter epoch, or, of a record in a snapshot, before it.
func (q *Queue) Add(now time.Time, f *feed.Frame) (revoked []registry.Revocation, narrowed []*registry.Record, epoch uint64) {
	q.frames = append(q.frames, f)
	q.bytes += size(f)
	switch f.Type {
	case feed.FrameEnd:
		q.arrived(f.Point, now)
	case feed.FrameRecord:
		epoch = f.Sender.Counter
		if rec, err := registry.DecodeRecord(f.Record); err == nil && rec.Kind == registry.KindUpstream {
			narrowed = append(narrowed, Narrow(f.Shard, rec.Meta.ID, rec.Meta.Revision, rec.Upstream))
		}
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return nil, nil, 0
		}
		q.arrived(e.Point(), now)
		epoch = e.Epoch.Counter
		for i := range e.Changes {
			switch c := &e.Changes[i]; {
			case c.Op == registry.OpRevoke:
				revoked = append(revoked, registry.Revocation{Kind: c.Kind, ID: c.ID, Shard: e.Shard, At: c.At, Expires: c.Expires})
			case c.Op == registry.OpPut && c.Record != nil && c.Record.Kind == registry.KindUpstream:
				narrowed = append(narrowed, Narrow(e.Shard, c.Record.Meta.ID, e.Seq, c.Record.Upstream))
			case c.Op == registry.OpDelete && c.Kind == registry.KindUpstream:
				narrowed = append(narrowed, Narrow(e.Shard, c.ID, e.Seq, nil))
			}
		}
	default:
	}
	return revoked, narrowed, epoch
}

func (q *Queue) arrived(p controlplane.Point, now time.Time) {
	if _, ok := q.since[p]; !ok {
		q.since[p] = now
	}
}

// Narrow is what a worker is told of a change of an upstream that it may not
// have yet: no more than what the change may forbid. Later is nil if the
// upstream is deleted.
func Narrow(shard controlplane.Shard, id string, seq uint64, later *registry.Upstream) *registry.Record {
	up := &registry.Upstream{Disabled: true}
	if later != nil {
		up = &registry.Upstream{Region: later.Region, Auth: later.Auth, Simulated: later.Simulated, Disabled: later.Disabled, Dedicated: later.Dedicated,
			Terms: registry.Terms{Retention: later.Terms.Retention, PromptCache: later.Terms.PromptCache}}
	}
	return &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: id, Shard: shard, Revision: seq}, Upstream: up}
}

func size(f *feed.Frame) int { return len(f.Entry) + len(f.Record) + 64 }

// Frames are those that wait.
func (q *Queue) Frames() []*feed.Frame { return slices.Clone(q.frames) }

// Len is how many frames wait.
func (q *Queue) Len() int { return len(q.frames) }

// Drop forgets what waits, since its sender is gone and the next sends it
// again; how long it has waited counts on.
func (q *Queue) Drop() { q.frames, q.bytes = nil, 0 }

// head is the first change in the queue, which ends before frame n at point p
// and was made by region home; false while its end has not come.
func (q *Queue) head() (n int, p controlplane.Point, home string, ok bool) {
	for i, f := range q.frames {
		switch f.Type {
		case feed.FrameEntry:
			e, err := registry.DecodeEntry(f.Entry)
			if err != nil {
				return i + 1, controlplane.Point{}, "", true // whoever takes it says what is wrong
			}
			return i + 1, e.Point(), e.Epoch.Region, true
		case feed.FrameEnd:
			return i + 1, f.Point, f.Point.Epoch.Region, true
		default:
		}
	}
	return 0, controlplane.Point{}, "", false
}

// Next returns the frames of the next change that the node, which is at at, may
// take now, and what has to be isolated before more is asked for.
func (q *Queue) Next(self Node, at controlplane.Point, nodes func() []Node, leftOut func(Span) bool, now time.Time) (frames []*feed.Frame, refused []Span) {
	n, p, home, ok := q.head()
	if !ok && q.bytes <= queueBytes {
		return nil, nil
	}
	if ok && p.Compare(at) > 0 && q.bytes <= queueBytes {
		all := nodes()
		w := q.waits[p]
		if w == nil {
			w = newWait(q.shard, p, home, self, all, q.since[p])
			q.waits[p] = w
		}
		may, refused := w.Next(at, all, leftOut, now)
		if !may {
			return nil, refused
		}
	}
	if !ok {
		n = len(q.frames)
	}
	for waited := range q.waits {
		if waited.Compare(p) <= 0 {
			delete(q.waits, waited)
		}
	}
	for arrived := range q.since {
		if arrived.Compare(p) <= 0 {
			delete(q.since, arrived)
		}
	}
	frames = q.frames[:n:n]
	q.frames = q.frames[n:]
	for _, f := range frames {
		q.bytes -= size(f)
	}
	return frames, nil
}
