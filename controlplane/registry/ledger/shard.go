package ledger

import (
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
	"ringmain/controlplane/registry/tree"
)

// shard is one shard's state. A value that a State holds is never changed:
// changes are made on a copy, which shares all structure with the original.
type shard struct {
	info    registry.ShardInfo
	content content.Shard
	stage   *stage // unfinished snapshot, or nil

	// From cluster version 2; empty before.
	tail      tree.Tree[*Held] // entries that can be undone, by sequence, to the last
	tailBytes uint64
	lost      tree.Tree[*Quarantined] // the quarantine, by (epoch, sequence)
}

func newShard(name controlplane.Shard) *shard {
	return &shard{
		info:    registry.ShardInfo{Shard: name},
		content: content.New(name),
		tail:    tree.New(compareHeld),
		lost:    tree.New(compareQuarantined),
	}
}

// apply makes one well-formed change take effect as part of entry seq. It
// returns what the change was stored as, and the record that it replaced.
func (sh *shard) apply(c registry.Change, epoch controlplane.Epoch, seq, version uint64) (registry.Change, *registry.Record) {
	switch {
	case c.Op == registry.OpOpen:
		sh.info.Members = sorted(c.Members)
		sh.info.Home = c.Home
		sh.info.Epoch = epoch
		sh.info.Spans = append(slices.Clip(sh.info.Spans), registry.Span{Epoch: epoch, Start: seq})
	case c.Op == registry.OpForget && sh.waits(c.ID): // replayed, it would be in force again
	default:
		return sh.content.Apply(c, seq, version)
	}
	return c, nil
}

// firstLives are the members, by region, where no region was ever replaced.
func firstLives(regions []string) (members []ownership.Member) {
	for _, r := range sorted(regions) {
		members = append(members, ownership.Member{Region: r})
	}
	return members
}

func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }
