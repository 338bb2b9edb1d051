package registry

import (
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
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

// Span is where an epoch begins in a shard's history, and what its opening said.
type Span = ownership.Span

// ShardInfo is a shard's place in the world. Its slices are read-only.
type ShardInfo struct {
	Shard     controlplane.Shard
	Members   []string           // regions that hold it, sorted
	Home      string             // region that may write it
	Epoch     controlplane.Epoch // highest epoch promised: lower senders are refused
	Last      controlplane.Point // last entry applied
	Spans     []Span             // epochs by ascending start, as far back as is known; at cluster version 1 without members
	Confirmed uint64             // highest sequence known confirmed; 0 at cluster version 1
}

// Copy is what the rules of ownership need of i. It means nothing at cluster
// version 1.
func (i ShardInfo) Copy() ownership.Copy {
	return ownership.Copy{Promised: i.Epoch, Last: i.Last, Spans: i.Spans, Confirmed: i.Confirmed}
}

// follow makes i what the rules of ownership made of its copy.
func (i *ShardInfo) follow(c ownership.Copy) {
	former := i.Spans
	i.Epoch, i.Last, i.Spans, i.Confirmed = c.Promised, c.Last, c.Spans, c.Confirmed
	switch n := len(c.Spans); {
	case n == 0:
		i.Members, i.Home = nil, ""
	case n != len(former) || c.Spans[n-1].Epoch != former[n-1].Epoch:
		i.Home, i.Members = c.Spans[n-1].Epoch.Region, nil
		for _, m := range c.Spans[n-1].Members {
			i.Members = append(i.Members, m.Region)
		}
	}
}

// StageInfo says how far the staging of a shard's snapshot is.
type StageInfo struct {
	Snapshot string
	Chunks   uint64 // chunks held: the next one expected has this number
}
