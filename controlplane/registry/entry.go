package registry

import (
	"fmt"
	"slices"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/strict"
)

// First bytes of an encoded Entry. What needs the second halts nodes that
// cannot read it.
const (
	FormatVersion       = 1
	formatVersionSafety = 2 // from cluster version 3
)

// Op is what a Change does.
type Op uint8

// Operations of format version 1.
const (
	OpPut    Op = iota + 1 // create or replace Record
	OpDelete               // remove the record (Kind, ID)
	OpRevoke               // add (Kind, ID) to the grow-only safety set; a key's record is marked too
	OpOpen                 // first entry of an epoch: Members and Home take effect
	OpForget               // take (Kind, ID) out of the safety set; format version 2
)

// RevisionAbsent as IfRevision asks that the record not exist yet.
const RevisionAbsent = ^uint64(0)

// Change is one effect of an Entry. All changes of an Entry take effect, or none.
type Change struct {
	Op         Op      `cbor:"1,keyasint"`
	Record     *Record `cbor:"2,keyasint,omitempty"` // OpPut
	Kind       Kind    `cbor:"3,keyasint,omitempty"` // OpDelete, OpRevoke, OpForget
	ID         string  `cbor:"4,keyasint,omitempty"`
	IfRevision uint64  `cbor:"5,keyasint,omitempty"` // 0 = whatever it is; RevisionAbsent; else must equal
	At         int64   `cbor:"6,keyasint,omitempty"` // OpRevoke: Unix milliseconds, stamped by the proposer; OpForget: the revocation's
	Expires    int64   `cbor:"7,keyasint,omitempty"` // OpRevoke: when the credential would have ended, 0 = never; OpForget: the revocation's

	Members []string `cbor:"8,keyasint,omitempty"`  // OpOpen: regions that hold the shard
	Home    string   `cbor:"9,keyasint,omitempty"`  // OpOpen
	Since   []uint64 `cbor:"10,keyasint,omitempty"` // OpOpen: which life of its region each member is; empty = the first
	Forced  bool     `cbor:"11,keyasint,omitempty"` // OpOpen: without the word of members declared lost

	Now int64 `cbor:"12,keyasint,omitempty"` // OpForget: Unix milliseconds, stamped by the proposer
}

// Entry is one command in a shard's history: the frozen envelope. It is what
// Raft's log, a feed and a data node's delta log all carry.
type Entry struct {
	_       struct{} `cbor:",toarray"`
	Shard   controlplane.Shard
	Epoch   controlplane.Epoch
	Seq     uint64             // contiguous within the shard, across epochs; the first is 1
	Prev    controlplane.Epoch // epoch of the entry at Seq-1; zero at 1
	Changes []Change           // empty for an entry whose changes were refused when applied
}

// Header is e without its content.
func (e *Entry) Header() ownership.Header {
	h := ownership.Header{Epoch: e.Epoch, Seq: e.Seq, Prev: e.Prev}
	if e.Opens() {
		h.Members, h.Forced = e.Changes[0].members(), e.Changes[0].Forced
	}
	return h
}

// members are those of an opening, by region.
func (c *Change) members() []ownership.Member {
	all := make([]ownership.Member, len(c.Members))
	for i, m := range c.Members {
		all[i].Region = m
		if i < len(c.Since) {
			all[i].Since = c.Since[i]
		}
	}
	slices.SortFunc(all, func(a, b ownership.Member) int { return strings.Compare(a.Region, b.Region) })
	return all
}

// Opening is the change that opens an epoch of the home for the members.
func Opening(home string, members []ownership.Member, forced bool) Change {
	c := Change{Op: OpOpen, Home: home, Forced: forced}
	for _, m := range members {
		c.Members = append(c.Members, m.Region)
		c.Since = append(c.Since, m.Since)
	}
	if !slices.ContainsFunc(c.Since, func(n uint64) bool { return n != 0 }) {
		c.Since = nil
	}
	return c
}

// Point is the position right after e.
func (e *Entry) Point() controlplane.Point {
	return controlplane.Point{Epoch: e.Epoch, Seq: e.Seq}
}

// EncodeEntry returns the format version byte and the entry in deterministic CBOR.
func EncodeEntry(e *Entry) ([]byte, error) {
	b, err := strict.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("encode entry: %w", err)
	}
	return append([]byte{e.format()}, b...), nil
}

// format is the first byte of the encoded entry.
func (e *Entry) format() byte {
	f := byte(FormatVersion)
	for i := range e.Changes {
		f = max(f, e.Changes[i].format())
	}
	return f
}

// format is the oldest format version that has all that the change says.
func (c *Change) format() byte {
	if c.Op == OpForget || c.Op == OpRevoke && c.Kind.safety() || c.recent() {
		return formatVersionSafety
	}
	return FormatVersion
}

// DecodeEntry reads what EncodeEntry wrote. Anything else is
// controlplane.ErrUnknownEntry: the node must halt, never skip.
func DecodeEntry(b []byte) (*Entry, error) {
	if len(b) == 0 || b[0] != FormatVersion && b[0] != formatVersionSafety {
		return nil, fmt.Errorf("%w: format version byte %.1x", controlplane.ErrUnknownEntry, b)
	}
	e := new(Entry)
	if err := decMode.Unmarshal(b[1:], e); err != nil {
		return nil, fmt.Errorf("%w: %w", controlplane.ErrUnknownEntry, err)
	}
	for i := range e.Changes {
		if err := e.Changes[i].known(); err != nil {
			return nil, err
		}
	}
	if f := e.format(); f != b[0] {
		return nil, fmt.Errorf("%w: an entry of format %d under version byte %d", controlplane.ErrUnknownEntry, f, b[0])
	}
	return e, nil
}

// known reports an operation or kind of record that this version does not know.
func (c *Change) known() error {
	switch c.Op {
	case OpPut:
		if c.Record != nil {
			return c.Record.known()
		}
	case OpDelete:
		if !c.Kind.Known() {
			return fmt.Errorf("%w: %s", controlplane.ErrUnknownEntry, c.Kind)
		}
	case OpRevoke, OpForget:
		if !c.Kind.Known() && !c.Kind.safety() {
			return fmt.Errorf("%w: %s", controlplane.ErrUnknownEntry, c.Kind)
		}
	case OpOpen:
	default:
		return fmt.Errorf("%w: operation %d", controlplane.ErrUnknownEntry, c.Op)
	}
	return nil
}

func (r *Record) known() error {
	if !r.Kind.Known() || !r.oneBody() {
		return fmt.Errorf("%w: record of %s", controlplane.ErrUnknownEntry, r.Kind)
	}
	return nil
}

// NextAfter returns the entry that a home proposes after the point after, with
// the given changes. It checks nothing. A proposer with entries in flight
// passes the point of the last of them.
func NextAfter(shard controlplane.Shard, after controlplane.Point, changes []Change) *Entry {
	e := &Entry{Shard: shard, Epoch: after.Epoch, Seq: after.Seq + 1, Prev: after.Epoch, Changes: changes}
	if e.Opens() {
		e.Epoch = controlplane.Epoch{Counter: after.Epoch.Counter + 1, Region: changes[0].Home}
	}
	return e
}

// Opens reports an entry that starts an epoch.
func (e *Entry) Opens() bool { return len(e.Changes) > 0 && e.Changes[0].Op == OpOpen }

// Ref names a record or revocation.
type Ref struct {
	Shard controlplane.Shard
	Kind  Kind
	ID    string
}

// Ref names what the change is about; zero for an opening.
func (c *Change) Ref(shard controlplane.Shard) Ref {
	switch c.Op {
	case OpPut:
		return Ref{Shard: shard, Kind: c.Record.Kind, ID: c.Record.Meta.ID}
	case OpDelete, OpRevoke, OpForget:
		return Ref{Shard: shard, Kind: c.Kind, ID: c.ID}
	default:
		return Ref{}
	}
}
