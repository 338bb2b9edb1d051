// Package trial judges changes of the state by what became of the processes
// that took them: what a process died on twice is left out from then on.
//
// The rules are pure; File keeps them over restarts. Nothing about requests may
// enter it.
package trial

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
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
	Epoch controlplane.Epoch `cbor:"4,keyasint"` // of To as far as it is known; for people
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

// Suspect is a span on which a process died.
type Suspect struct {
	Span
	Deaths int
}

// Isolated is a span that is left out of what the worker is given. In the
// place of each of its records stands the one before it, if there was one.
type Isolated struct {
	Span
	Own    bool              // this node died on it; otherwise another one did, and said so
	Build  string            // of the worker that died: another one tries again
	At     int64             // Unix milliseconds
	Before map[string][]byte // by record id: registry.EncodeRecord
}

// MaxDeaths is how often a process may die on one change.
const MaxDeaths = 2

// maxIsolated bounds the ledger: a node that dies on more has another ailment.
const maxIsolated = 64

// Ledger is what has been found out so far. The zero Ledger knows nothing.
type Ledger struct {
	Suspects []Suspect             `cbor:"1,keyasint,omitempty"`
	Isolated []Isolated            `cbor:"2,keyasint,omitempty"`
	Proven   controlplane.Position `cbor:"3,keyasint,omitempty"` // workers live with it

	Loading uint64   `cbor:"4,keyasint,omitempty"` // generation on disk that a keeper is reading; 0 = none
	Loads   int      `cbor:"5,keyasint,omitempty"` // how many keepers began to read it and died
	Skipped []uint64 `cbor:"6,keyasint,omitempty"` // generations that keepers died on: the one before is used
}

// Load notes that a keeper is about to read a generation, and reports whether
// it may: not the one that keepers died on.
func (l *Ledger) Load(generation uint64) bool {
	if l.Loading == generation {
		l.Loads++
	} else {
		l.Loading, l.Loads = generation, 0
	}
	if l.Loads >= MaxDeaths && !slices.Contains(l.Skipped, generation) {
		l.Skipped = append(l.Skipped, generation)
	}
	return !slices.Contains(l.Skipped, generation)
}

// Loaded notes that the keeper lives with what it read, and forgets generations
// before oldest, which are gone.
func (l *Ledger) Loaded(oldest uint64) {
	l.Loading, l.Loads = 0, 0
	l.Skipped = slices.DeleteFunc(l.Skipped, func(g uint64) bool { return g < oldest })
}

// Died notes that a process died on s, and returns what is left of it together
// with the deaths before it on the same entries, and how many those are now.
func (l *Ledger) Died(s Span) Suspect {
	for i := range l.Suspects {
		if old := &l.Suspects[i]; old.Shard == s.Shard && old.From <= s.To && s.From <= old.To {
			if s.To < old.To {
				old.To, old.Epoch = s.To, s.Epoch
			}
			old.From = max(old.From, s.From)
			old.Deaths++
			return *old
		}
	}
	found := Suspect{s, 1}
	l.Suspects = append(l.Suspects, found)
	return found
}

// Prove notes that a worker lives with the state at p, and reports whether
// that clears anything or moves on in shard.
func (l *Ledger) Prove(p controlplane.Position, shard controlplane.Shard) (news bool) {
	n := len(l.Suspects)
	l.Suspects = slices.DeleteFunc(l.Suspects, func(s Suspect) bool { return s.To <= p[s.Shard].Seq })
	news = n != len(l.Suspects) || l.Proven[shard] != p[shard]
	l.Proven = p.Clone()
	return news
}

// Isolate leaves i out from now on. It is false if that was so already, or the
// ledger is full.
func (l *Ledger) Isolate(i Isolated) bool {
	l.Suspects = slices.DeleteFunc(l.Suspects, func(s Suspect) bool { return s.Shard == i.Shard && i.From <= s.From && s.To <= i.To })
	if l.leavesOut(i.Span) || len(l.Isolated) >= maxIsolated {
		return false
	}
	l.Isolated = append(l.Isolated, i)
	return true
}

func (l *Ledger) leavesOut(s Span) bool {
	return slices.ContainsFunc(l.Isolated, func(i Isolated) bool { return i.Shard == s.Shard && i.From <= s.From && s.To <= i.To })
}

// Hollow reports whether a shard is left out from its beginning: what is left
// is no state to serve by.
func (l *Ledger) Hollow() bool {
	return slices.ContainsFunc(l.Isolated, Isolated.hollow)
}

func (i Isolated) hollow() bool { return i.From <= 1 && i.To > 1 }

// Begin is a new keeper's: what left a shard hollow is tried again. It reports
// whether there was such.
func (l *Ledger) Begin() bool {
	n := len(l.Isolated)
	l.Isolated = slices.DeleteFunc(l.Isolated, Isolated.hollow)
	return n != len(l.Isolated)
}

// Release ends what was left out for a worker of another build: one of this
// build starts with all there is. It reports whether anything ended.
func (l *Ledger) Release(build string) bool {
	n := len(l.Isolated)
	for i := range l.Isolated {
		l.Isolated[i].Build = cmp.Or(l.Isolated[i].Build, build) // what was heard while no worker ran
	}
	l.Isolated = slices.DeleteFunc(l.Isolated, func(i Isolated) bool { return i.Build != build })
	return n != len(l.Isolated)
}

// Screens reports whether frames of shard have to go through Screen.
func (l *Ledger) Screens(shard controlplane.Shard) bool {
	return slices.ContainsFunc(l.Isolated, func(i Isolated) bool { return i.Shard == shard })
}

// Screen returns the frame as the worker may have it: f itself, one in its
// place, or nil for none. Revocations always pass.
func (l *Ledger) Screen(f *feed.Frame) (*feed.Frame, error) {
	switch f.Type {
	case feed.FrameEntry:
		return l.entry(f)
	case feed.FrameRecord:
		return l.record(f)
	default:
		return f, nil
	}
}

func (l *Ledger) entry(f *feed.Frame) (*feed.Frame, error) {
	e, err := registry.DecodeEntry(f.Entry)
	if err != nil {
		return nil, err
	}
	if len(e.Changes) > 0 && e.Changes[0].Op == registry.OpOpen {
		// Another history takes the place of what was isolated behind it.
		l.Isolated = slices.DeleteFunc(l.Isolated, func(i Isolated) bool { return i.Shard == e.Shard && i.From >= e.Seq })
	}
	if l.isolated(e.Shard, e.Seq) == nil {
		return f, nil
	}
	kept := slices.DeleteFunc(e.Changes, func(c registry.Change) bool { return c.Op == registry.OpPut || c.Op == registry.OpDelete })
	bare := *e
	bare.Changes = kept
	screened := *f
	if screened.Entry, err = registry.EncodeEntry(&bare); err != nil {
		return nil, err
	}
	return &screened, nil
}

func (l *Ledger) record(f *feed.Frame) (*feed.Frame, error) {
	rec, err := registry.DecodeRecord(f.Record)
	if err != nil {
		return nil, err
	}
	i := l.isolated(f.Shard, rec.Meta.Revision)
	if i == nil {
		return f, nil
	}
	before, ok := i.Before[rec.Meta.ID]
	if !ok {
		return nil, nil //nolint:nilnil // nothing in its place
	}
	screened := *f
	screened.Record = before
	return &screened, nil
}

func (l *Ledger) isolated(shard controlplane.Shard, seq uint64) *Isolated {
	for i := range l.Isolated {
		if l.Isolated[i].has(shard, seq) {
			return &l.Isolated[i]
		}
	}
	return nil
}

// Past collects the versions of records that a span replaced. Give Touch every
// frame that is on disk, oldest first, then Keep, again all of them.
type Past struct {
	span   Span
	ids    map[string]bool
	before map[string][]byte
}

// NewPast returns an empty Past of s.
func NewPast(s Span) *Past {
	return &Past{span: s, ids: map[string]bool{}, before: map[string][]byte{}}
}

// Touch notes which records the span changed.
func (p *Past) Touch(f *feed.Frame) error {
	return p.look(f, func(id string, seq uint64, _ *registry.Record) {
		if p.span.From <= seq && seq <= p.span.To {
			p.ids[id] = true
		}
	})
}

// Keep notes what those were before it.
func (p *Past) Keep(f *feed.Frame) error {
	var failed error
	err := p.look(f, func(id string, seq uint64, rec *registry.Record) {
		switch {
		case !p.ids[id] || seq >= p.span.From:
		case rec == nil:
			delete(p.before, id)
		default:
			b, err := registry.EncodeRecord(rec)
			if err != nil {
				failed = err
				return
			}
			p.before[id] = b
		}
	})
	if err == nil {
		err = failed
	}
	return err
}

// Before is what was found.
func (p *Past) Before() map[string][]byte { return maps.Clone(p.before) }

// look calls each for all that a frame of the span's shard says of a record; a
// nil record was deleted.
func (p *Past) look(f *feed.Frame, each func(id string, seq uint64, rec *registry.Record)) error {
	if f.Shard != p.span.Shard {
		return nil
	}
	switch f.Type {
	case feed.FrameRecord:
		rec, err := registry.DecodeRecord(f.Record)
		if err != nil {
			return err
		}
		each(rec.Meta.ID, rec.Meta.Revision, rec)
	case feed.FrameEntry:
		e, err := registry.DecodeEntry(f.Entry)
		if err != nil {
			return err
		}
		for i := range e.Changes {
			switch c := &e.Changes[i]; c.Op {
			case registry.OpPut:
				rec := *c.Record
				rec.Meta.Shard, rec.Meta.Revision = e.Shard, e.Seq
				each(rec.Meta.ID, e.Seq, &rec)
			case registry.OpDelete:
				each(c.ID, e.Seq, nil)
			default:
			}
		}
	default:
	}
	return nil
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
		return One(f.Shard, controlplane.Point{Epoch: offered[f.Shard].Epoch, Seq: rec.Meta.Revision}), true
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
