// Package controlplane holds the nouns and error values that every room of
// ringmain shares: shards, epochs, positions, secrets and error codes.
//
// It imports the standard library only, and holds no request or response
// types: those belong to the room that speaks them.
package controlplane

import (
	"cmp"
	"fmt"
	"strings"
)

// Shard names a group of records with one writer region at a time:
// "global", "any-<region>" or "<jurisdiction>".
type Shard string

// ShardGlobal holds routes, upstreams and regions; its home is the first region.
const ShardGlobal Shard = "global"

// ShardAny is the shard of the unpinned orgs created in region.
func ShardAny(region string) Shard { return Shard("any-" + region) }

// ShardPinned is the shard of the orgs pinned to jurisdiction.
func ShardPinned(jurisdiction string) Shard { return Shard(jurisdiction) }

// JurisdictionAny marks an unpinned org in key and record ids.
const JurisdictionAny = "any"

// Epoch fences former homes of a shard. Epochs order by counter, then region.
// The zero Epoch precedes every other.
type Epoch struct {
	_       struct{} `cbor:",toarray"`
	Counter uint64   `json:"counter"`
	Region  string   `json:"region"`
}

// Compare returns -1, 0 or +1 as e precedes, equals or follows f.
func (e Epoch) Compare(f Epoch) int {
	if c := cmp.Compare(e.Counter, f.Counter); c != 0 {
		return c
	}
	return strings.Compare(e.Region, f.Region)
}

// String gives "counter/region", or "-" for the zero Epoch.
func (e Epoch) String() string {
	if e == (Epoch{}) {
		return "-"
	}
	return fmt.Sprintf("%d/%s", e.Counter, e.Region)
}

// Point is how far a copy of one shard is: the epoch and sequence of the last
// entry applied. The zero Point means nothing was applied.
type Point struct {
	_     struct{} `cbor:",toarray"`
	Epoch Epoch    `json:"epoch"`
	Seq   uint64   `json:"seq"`
}

// Compare orders points by epoch, then sequence.
func (p Point) Compare(q Point) int {
	if c := p.Epoch.Compare(q.Epoch); c != 0 {
		return c
	}
	return cmp.Compare(p.Seq, q.Seq)
}

// Position is how far a copy of the state is, shard by shard. Raft indexes
// never appear in it: they mean nothing outside their region.
type Position map[Shard]Point

// Clone returns a copy of p that shares nothing with it.
func (p Position) Clone() Position {
	q := make(Position, len(p))
	for s, pt := range p {
		q[s] = pt
	}
	return q
}

// Covers reports whether p is at or past every point of q.
func (p Position) Covers(q Position) bool {
	for s, pt := range q {
		if p[s].Compare(pt) < 0 {
			return false
		}
	}
	return true
}
