package registry

import (
	"fmt"

	"ringmain/controlplane"
)

// Ref names a record or revocation.
type Ref struct {
	Shard controlplane.Shard
	Kind  Kind
	ID    string
}

// Outcome is what Apply did. Everything in it is read-only: records are shared
// with the State.
type Outcome struct {
	// Points holds the new end of every shard that advanced.
	Points map[controlplane.Shard]controlplane.Point
	// Err is nil if all of the command took effect. A *controlplane.RuleError
	// is the first refusal of an entry that advanced its shard all the same.
	// A *StructureError (it unwraps to controlplane.ErrNotHome for a deposed
	// sender) means that nothing changed. controlplane.ErrUnknownEntry means
	// that this node must halt.
	Err error
	// Effective is what feeds carry, in order: entries newly applied; those
	// that were refused have no Changes.
	Effective []*Entry
	// Refused runs parallel to Effective: why an entry was refused, or nil.
	Refused []*controlplane.RuleError
	// Touched names every record put, deleted or revoked. What it is now
	// (record, revocation, both or neither) is to be looked up.
	Touched []Ref
	// Reset names the shards whose records were all replaced.
	Reset []controlplane.Shard
	// Staged names the shards whose staging area changed: see State.Staged.
	Staged []controlplane.Shard
}

// StructureError says why a command does not fit the shard's history. Nothing
// changed. The sender should continue from Last, or send a snapshot.
type StructureError struct {
	Shard    controlplane.Shard
	Promised controlplane.Epoch // entries from lower epochs are refused
	Last     controlplane.Point // end of this copy
	Reason   string
	cause    error
}

func (e *StructureError) Error() string {
	return fmt.Sprintf("shard %s at %s.%d: %s", e.Shard, e.Last.Epoch, e.Last.Seq, e.Reason)
}

// Unwrap gives controlplane.ErrNotHome if the sender was deposed, and
// controlplane.ErrUnknownEntry if what it sent needs a newer version.
func (e *StructureError) Unwrap() error { return e.cause }

// Span is where an epoch begins in a shard's history.
type Span struct {
	_     struct{} `cbor:",toarray"`
	Epoch controlplane.Epoch
	Start uint64
}

// ShardInfo is a shard's place in the world. Its slices are read-only.
type ShardInfo struct {
	_       struct{} `cbor:",toarray"`
	Shard   controlplane.Shard
	Members []string           // regions that hold it, sorted
	Home    string             // region that may write it
	Epoch   controlplane.Epoch // highest epoch promised: lower senders are refused
	Last    controlplane.Point // last entry applied
	Spans   []Span             // epochs by ascending start, as far back as is known
}

// StageInfo says how far the staging of a shard's snapshot is.
type StageInfo struct {
	Snapshot string
	Chunks   uint64 // chunks held: the next one expected has this number
}
