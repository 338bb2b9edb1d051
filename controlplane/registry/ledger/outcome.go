package ledger

import (
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

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
	Effective []*registry.Entry
	// Refused runs parallel to Effective: why an entry was refused, or nil.
	Refused []*controlplane.RuleError
	// Touched names every record put, deleted or revoked. What it is now
	// (record, revocation, both or neither) is to be looked up.
	Touched []registry.Ref
	// Reset names the shards whose past is not what it was, by a cut or because
	// all was replaced: what was derived from their entries is void.
	Reset []controlplane.Shard
	// Replaced names the shards whose records were all replaced.
	Replaced []controlplane.Shard
	// Cut names what went into the quarantine.
	Cut []Cut
	// Reports has every shard of which something in it changed. From cluster
	// version 2.
	Reports []Report
	// Staged names the shards whose staging area changed: see State.Staged.
	Staged []controlplane.Shard
}

// Report is where a shard stands: what an acceptor answers.
type Report struct {
	Shard     controlplane.Shard
	Promised  controlplane.Epoch
	Last      controlplane.Point
	Confirmed uint64
}

// Cut says that a copy lost its end to another home's history.
type Cut struct {
	Shard  controlplane.Shard
	Branch controlplane.Point // last entry that stayed
	By     controlplane.Epoch // the home whose history it is
	Count  int                // entries that went into the quarantine
}

// StructureError says why a command does not fit the shard's history. Nothing
// changed. The sender should continue from Last, or send a snapshot.
type StructureError struct {
	Shard    controlplane.Shard
	Promised controlplane.Epoch // entries from lower epochs are refused
	Last     controlplane.Point // end of this copy
	Have     controlplane.Point // where an entry does not follow: what this copy holds in the place before it, or Last
	Reason   string
	Snapshot bool // entries will not do: this copy cannot undo as much, send a snapshot
	cause    error
}

func (e *StructureError) Error() string {
	return fmt.Sprintf("shard %s at %s.%d: %s", e.Shard, e.Last.Epoch, e.Last.Seq, e.Reason)
}

// Unwrap gives the *ownership.Refused if a rule of ownership was broken,
// controlplane.ErrNotHome if the sender was deposed, and
// controlplane.ErrUnknownEntry if what it sent needs a newer version.
func (e *StructureError) Unwrap() error { return e.cause }

// StageInfo says how far the staging of a shard's snapshot is.
type StageInfo struct {
	Snapshot string
	Chunks   uint64 // chunks held: the next one expected has this number
}
