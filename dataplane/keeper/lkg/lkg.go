// Package lkg keeps a data node's last known good state on disk: sealed
// generations of a snapshot and its deltas, and the safety file of revocations
// and pins that is applied over every one of them.
//
// It stores feed frames as they came and holds no copy of the state. Requests,
// metadata records and sockets may not enter it.
package lkg

import (
	"encoding/binary"
	"errors"
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// ErrGap means that frames are missing before the one given: watch again from
// the present position.
var ErrGap = errors.New("the feed skipped something: watch again from the present position")

// Tracker follows how far a sequence of frames leads, by the rules that
// view.Store applies them by. The zero Tracker is not ready: use NewTracker.
type Tracker struct {
	position controlplane.Position
	open     map[controlplane.Shard]bool // snapshots without their End yet
}

// NewTracker returns a tracker that stands at from.
func NewTracker(from controlplane.Position) *Tracker {
	return &Tracker{position: from.Clone(), open: make(map[controlplane.Shard]bool)}
}

// Position is how far the frames seen lead.
func (t *Tracker) Position() controlplane.Position { return t.position.Clone() }

// Interrupt says that the sender is gone: unfinished snapshots will not go on.
func (t *Tracker) Interrupt() { clear(t.open) }

// Open reports whether a snapshot of shard has begun and not ended.
func (t *Tracker) Open(shard controlplane.Shard) bool { return t.open[shard] }

// Forget makes shard unknown: its next snapshot counts, however old.
func (t *Tracker) Forget(shard controlplane.Shard) { delete(t.position, shard) }

// Covers reports whether every shard of offered is complete in what was seen.
func (t *Tracker) Covers(offered controlplane.Position) bool {
	for shard, point := range offered {
		if _, has := t.position[shard]; !has && point != (controlplane.Point{}) || t.open[shard] {
			return false
		}
	}
	return true
}

// See takes one frame. It reports whether the frame adds anything; entry is
// set for FrameEntry. After an error nothing has moved.
func (t *Tracker) See(f *feed.Frame) (news bool, entry *registry.Entry, err error) {
	switch f.Type {
	case feed.FrameReset:
		t.open[f.Shard] = true
	case feed.FrameRecord:
		if !t.open[f.Shard] {
			return false, nil, fmt.Errorf("%w: a record of shard %q outside a snapshot", ErrGap, f.Shard)
		}
	case feed.FrameEnd:
		if !t.open[f.Shard] {
			return false, nil, fmt.Errorf("%w: shard %q ended without its beginning", ErrGap, f.Shard)
		}
		delete(t.open, f.Shard)
		if t.position[f.Shard].Compare(f.Point) <= 0 {
			t.position[f.Shard] = f.Point
		}
	case feed.FrameEntry:
		return t.entry(f)
	case feed.FrameVerdicts, feed.FrameHeartbeat:
		return false, nil, nil
	case feed.FrameRevocation:
		if f.Revocation == nil {
			return false, nil, errors.New("a revocation frame without a revocation")
		}
	default:
		return false, nil, fmt.Errorf("frame of type %d: %w", f.Type, controlplane.ErrUnknownEntry)
	}
	return true, nil, nil
}

func (t *Tracker) entry(f *feed.Frame) (bool, *registry.Entry, error) {
	e, err := registry.DecodeEntry(f.Entry)
	if err != nil {
		return false, nil, err
	}
	last := t.position[e.Shard]
	if e.Seq <= last.Seq && e.Epoch.Compare(last.Epoch) <= 0 {
		return false, e, nil
	}
	if e.Seq != last.Seq+1 || e.Prev != last.Epoch || e.Epoch.Compare(last.Epoch) < 0 || f.Sender.Compare(last.Epoch) < 0 {
		return false, e, fmt.Errorf("%w: shard %q is at %v/%d, entry %v/%d after %v came from a sender at %v",
			ErrGap, e.Shard, last.Epoch, last.Seq, e.Epoch, e.Seq, e.Prev, f.Sender)
	}
	delete(t.open, e.Shard)
	t.position[e.Shard] = e.Point()
	return true, e, nil
}

// chunk gathers encoded feed frames into one sealed frame of a file:
// (type u8 | u32 length big endian | frame)*.
type chunk []byte

const chunkBytes = 256 << 10

func (c *chunk) add(t feed.FrameType, raw []byte) {
	*c = append(*c, byte(t))
	*c = binary.BigEndian.AppendUint32(*c, uint32(len(raw)))
	*c = append(*c, raw...)
}

// split returns the frames of a chunk, which they share memory with.
func split(b []byte) (types []feed.FrameType, frames [][]byte, err error) {
	for len(b) > 0 {
		if len(b) < 5 || uint64(binary.BigEndian.Uint32(b[1:])) > uint64(len(b)-5) {
			return nil, nil, errors.New("a chunk of frames is cut short")
		}
		n := binary.BigEndian.Uint32(b[1:])
		types = append(types, feed.FrameType(b[0]))
		frames = append(frames, b[5:5+n:5+n])
		b = b[5+n:]
	}
	return types, frames, nil
}
