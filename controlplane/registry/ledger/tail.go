package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
)

// A home whose tail is this long, or has this many bytes, takes no more writes
// until the other members confirm some.
const (
	MaxTail      = 1 << 16
	MaxTailBytes = 64 << 20
)

// Held is one entry of a shard's tail: applied, but not known confirmed, so
// that another home's history may still take its place. It is never changed.
type Held struct {
	Entry *registry.Entry
	Level registry.Level // asked for by the writer; 0 in a region that was not told

	bytes  uint64             // of its encoding when it was applied
	before []*registry.Record // parallel to the entry's changes: what each replaced; nil = nothing
}

func compareHeld(a, b *Held) int { return cmp.Compare(a.Entry.Seq, b.Entry.Seq) }

// base is the last sequence that cannot be undone here.
func (sh *shard) base() uint64 { return sh.info.Last.Seq - uint64(sh.tail.Len()) }

// hold makes h, which was just applied, the end of the tail.
func (sh *shard) hold(h *Held) {
	sh.tail = sh.tail.With(h)
	sh.tailBytes += h.bytes
}

// unhold takes h off the tail.
func (sh *shard) unhold(h *Held) {
	sh.tail = sh.tail.Without(h)
	sh.tailBytes -= h.bytes
}

// after yields the tail from the sequence after seq on.
func (sh *shard) after(seq uint64) iter.Seq[*Held] {
	return sh.tail.From(func(h *Held) int { return cmp.Compare(h.Entry.Seq, seq+1) })
}

// forget makes everything through seq impossible to undo.
func (sh *shard) forget(seq uint64) {
	for h := range sh.tail.All() {
		if h.Entry.Seq > seq {
			break
		}
		sh.unhold(h)
	}
}

// settle drops what need not be undone any more. A home that is the only member
// confirms by itself. A follower that is not told what is confirmed lets go of
// its oldest entries; should they lose, it has to take a snapshot.
func (sh *shard) settle() {
	sh.info.Confirmed = confirmedAlone(sh.info.Copy())
	sh.forget(sh.info.Confirmed)
	for sh.tail.Len() > 2*MaxTail || sh.tailBytes > 2*MaxTailBytes {
		sh.forget(sh.base() + 1)
	}
}

// confirmedAlone is how far the copy is confirmed if nobody but its home was
// asked.
func confirmedAlone(c ownership.Copy) uint64 {
	members := c.Members()
	if len(members) != 1 {
		return c.Confirmed
	}
	return ownership.Tally{}.Confirmed(members[0], c)
}

// undo makes sh's content what it was before the last entry of its tail, but
// for the safety set, from which it takes nothing out.
func (sh *shard) undo() *Held {
	h, _ := sh.tail.Get(func(h *Held) int { return cmp.Compare(h.Entry.Seq, sh.info.Last.Seq) })
	sh.unhold(h)
	for i, c := range slices.Backward(h.Entry.Changes) {
		sh.content.Undo(c, h.before[i])
	}
	sh.info.Last = controlplane.Point{Epoch: h.Entry.Prev, Seq: h.Entry.Seq - 1}
	return h
}

// cut undoes everything from seq on, and keeps it in the quarantine: by is the
// home whose history takes its place. The tail must reach as far back.
func (sh *shard) cut(seq uint64, by controlplane.Epoch, out *Outcome) {
	var lost []*Held
	for sh.info.Last.Seq >= seq {
		h := sh.undo()
		lost = append(lost, h)
		out.touch(h.Entry)
	}
	out.Reset = append(out.Reset, sh.info.Shard)
	sh.quarantine(lost, sh.info.Last, by, out)
}

// touch notes what the entry changes.
func (o *Outcome) touch(e *registry.Entry) {
	for i := range e.Changes {
		if ref := e.Changes[i].Ref(e.Shard); ref.ID != "" {
			o.Touched = append(o.Touched, ref)
		}
	}
}

// Writable says whether self, a life of this region, may propose to the shard
// now. The error is controlplane.ErrNotHome if another region is its home,
// ErrNoHome if nobody is yet, and ErrTailFull.
func (s *State) Writable(name controlplane.Shard, self ownership.Member) error {
	sh, ok := s.shard(name)
	if !ok || !sh.known() {
		return nil // the rules say that it does not exist
	}
	info := &sh.info
	notHome := fmt.Errorf("%w: %s is written by %s", controlplane.ErrNotHome, name, info.Home)
	if s.Version() < 2 {
		if info.Home != self.Region {
			return notHome
		}
		return nil
	}
	switch info.Copy().Role(self) {
	case ownership.Home:
		if sh.tail.Len() >= MaxTail || sh.tailBytes >= MaxTailBytes {
			return fmt.Errorf("%w (%s: %d since %d)", controlplane.ErrTailFull, name, sh.tail.Len(), info.Confirmed)
		}
		return nil
	case ownership.Outside, ownership.Follower:
		return notHome
	case ownership.Sealed, ownership.Candidate, ownership.Opening:
	}
	return fmt.Errorf("%w: %s", controlplane.ErrNoHome, name)
}

// TailRows yields the shard's tail for a durable image. Equal pointers are
// equal rows.
func (s *State) TailRows(name controlplane.Shard) iter.Seq[*Held] {
	return s.orNew(name).tail.All()
}

// Tail returns what follows the point after in this copy, at most limit entries
// (0 = all). It is false if this copy cannot tell: the point is not in its
// history, or lies before its tail. Take a snapshot then.
func (s *State) Tail(name controlplane.Shard, after controlplane.Point, limit int) (entries []*Held, ok bool) {
	sh := s.orNew(name)
	if after.Seq < sh.base() || !sh.info.Copy().Holds(after) {
		return nil, false
	}
	for h := range sh.after(after.Seq) {
		entries = append(entries, h)
		if len(entries) == limit {
			break
		}
	}
	return entries, true
}

type heldRow struct {
	_      struct{} `cbor:",toarray"`
	Entry  []byte
	Level  registry.Level
	Bytes  uint64
	Before [][]byte // empty = nothing
}

// Encode returns h as snapshots and images hold it.
func (h *Held) Encode() ([]byte, error) {
	e, err := registry.EncodeEntry(h.Entry)
	if err != nil {
		return nil, err
	}
	row := heldRow{Entry: e, Level: h.Level, Bytes: h.bytes, Before: make([][]byte, len(h.before))}
	for i, r := range h.before {
		if r == nil {
			continue
		}
		if row.Before[i], err = registry.EncodeRecord(r); err != nil {
			return nil, err
		}
	}
	return registry.Encode(row)
}

// decodeHeld reads what Held.Encode wrote, for the shard.
func decodeHeld(shard controlplane.Shard, b []byte) (*Held, error) {
	var row heldRow
	if err := registry.Decode(b, &row); err != nil {
		return nil, err
	}
	e, err := decodeEntryOf(shard, row.Entry)
	if err != nil {
		return nil, err
	}
	h := &Held{Entry: e, Level: row.Level, bytes: row.Bytes}
	if len(row.Before) != len(e.Changes) {
		return nil, fmt.Errorf("entry %d of %s cannot be undone", e.Seq, shard)
	}
	for i, b := range row.Before {
		var r *registry.Record
		if len(b) > 0 {
			if r, err = registry.DecodeRecord(b); err != nil {
				return nil, err
			}
			if ref := e.Changes[i].Ref(shard); ref.ID != r.Meta.ID || ref.Kind != r.Kind {
				return nil, fmt.Errorf("entry %d of %s: %s is no before-image of %s", e.Seq, shard, r.Meta.ID, ref.ID)
			}
			if err := r.WellFormed(shard); err != nil {
				return nil, err
			}
		}
		h.before = append(h.before, r)
	}
	return h, nil
}

// decodeEntryOf reads an entry that was applied to the shard once.
func decodeEntryOf(shard controlplane.Shard, b []byte) (*registry.Entry, error) {
	e, err := registry.DecodeEntry(b)
	if err != nil {
		return nil, err
	}
	if e.Shard != shard || e.Seq == 0 || e.Epoch == (controlplane.Epoch{}) {
		return nil, errors.New("an entry of another shard, or of none")
	}
	for i := range e.Changes {
		if err := e.Changes[i].WellFormed(shard, i); err != nil {
			return nil, err
		}
	}
	return e, nil
}
