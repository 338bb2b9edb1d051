package registry

import (
	"fmt"

	"ringmain/controlplane"
)

// Cluster versions: what the region's log may carry from each on.
const (
	VersionOwnership = 2 // seal, take, confirm, and what is cut goes to the quarantine
	VersionSafety    = 3 // all kinds of the safety set, and forgetting

	Version = VersionSafety // the newest that this code knows
)

// Version is what all nodes of the region can read: it decides which rules and
// formats hold. It starts at 1, and only CmdVersion raises it.
func (s *State) Version() uint64 { return max(1, s.version) }

func (s *State) applyVersion(v uint64) Outcome {
	switch {
	case v > Version:
		return Outcome{Err: fmt.Errorf("%w: cluster version %d", controlplane.ErrUnknownEntry, v)}
	case v <= s.Version():
		return Outcome{}
	}
	var out Outcome
	before := s.Version()
	s.version = v
	if before >= VersionOwnership {
		return out
	}
	for _, sh := range s.shards {
		if !sh.known() {
			continue
		}
		// Nobody left a shard before this version: whoever is a member now was
		// asked for all that is not confirmed.
		tx := *sh
		c := tx.info.Copy()
		members := Change{Members: tx.info.Members}
		c.Spans = make([]Span, len(tx.info.Spans))
		for i, span := range tx.info.Spans {
			c.Spans[i] = Span{Epoch: span.Epoch, Start: span.Start, Members: members.members()}
		}
		tx.info.follow(c)
		tx.settle()
		s.set(&tx)
		out.report(tx.report())
	}
	return out
}
