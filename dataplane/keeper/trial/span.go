package trial

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// Span names entries of a shard and all that they changed. A record carries
// the sequence of the entry that it is from as its revision.
type Span struct {
	Shard controlplane.Shard `cbor:"1,keyasint"`
	From  uint64             `cbor:"2,keyasint"` // inclusive
	To    uint64             `cbor:"3,keyasint"` // inclusive
	Epoch controlplane.Epoch `cbor:"4,keyasint"` // of To or later; zero = not known
}

// One is the span of the entry at p.
func One(shard controlplane.Shard, p controlplane.Point) Span {
	return Span{Shard: shard, From: p.Seq, To: p.Seq, Epoch: p.Epoch}
}

// Point is where the span ends.
func (s Span) Point() controlplane.Point { return controlplane.Point{Epoch: s.Epoch, Seq: s.To} }

func (s Span) has(shard controlplane.Shard, seq uint64) bool {
	return s.Shard == shard && s.From <= seq && seq <= s.To
}

// with reports whether s and the entry at p may be of one history: epochs never
// fall, so that what ends at p or later in an earlier one was cut off.
func (s Span) with(p controlplane.Point) bool {
	return s.To < p.Seq || s.Epoch == (controlplane.Epoch{}) || s.Epoch.Compare(p.Epoch) >= 0
}

// SpanOf says what a process died on that was at frame f. Proven is how far a
// worker has lived, and offered how far the state was that it was on its way to:
// what ends a snapshot is none of its entries alone.
func SpanOf(f *feed.Frame, proven, offered controlplane.Position) (Span, bool) {
	switch f.Type {
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return Span{}, false
		}
		return One(e.Shard, e.Point()), true
	case feed.FrameRecord:
		rec, err := registry.DecodeRecord(f.Record)
		if err != nil || rec.Meta.Revision == 0 {
			return Span{}, false
		}
		s := One(f.Shard, controlplane.Point{Seq: rec.Meta.Revision})
		if to := offered[f.Shard]; to.Seq >= s.To {
			s.Epoch = to.Epoch
		}
		return s, true
	case feed.FrameEnd:
		return Since(f.Shard, proven, controlplane.Position{f.Shard: f.Point})
	default:
		return Span{}, false
	}
}

// Since is what came to shard between two positions; false if nothing did. With
// nothing proven it is all there is.
func Since(shard controlplane.Shard, proven, given controlplane.Position) (Span, bool) {
	from, to := proven[shard].Seq+1, given[shard]
	return Span{Shard: shard, From: from, To: to.Seq, Epoch: to.Epoch}, from <= to.Seq
}

// String writes a span as positions are written: <shard>=<counter>/<region>.<seq>,
// or <from>-<to> for seq.
func (s Span) String() string {
	seq := strconv.FormatUint(s.To, 10)
	if s.From != s.To {
		seq = strconv.FormatUint(s.From, 10) + "-" + seq
	}
	return fmt.Sprintf("%s=%d/%s.%s", s.Shard, s.Epoch.Counter, s.Epoch.Region, seq)
}

// ParseSpan reads what String wrote.
func ParseSpan(text string) (s Span, err error) {
	shard, rest, ok := strings.Cut(text, "=")
	counter, rest, ok2 := strings.Cut(rest, "/")
	dot := strings.LastIndexByte(rest, '.')
	if !ok || !ok2 || shard == "" || dot < 0 {
		return Span{}, fmt.Errorf("%q is not <shard>=<counter>/<region>.<sequence>", text)
	}
	from, to, wide := strings.Cut(rest[dot+1:], "-")
	if !wide {
		to = from
	}
	s.Shard, s.Epoch.Region = controlplane.Shard(shard), rest[:dot]
	var errs [3]error
	s.Epoch.Counter, errs[0] = strconv.ParseUint(counter, 10, 64)
	s.From, errs[1] = strconv.ParseUint(from, 10, 64)
	s.To, errs[2] = strconv.ParseUint(to, 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return Span{}, fmt.Errorf("%q: %w", text, err)
	}
	return s, nil
}
