package ledger

import (
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// Version is what all nodes of the region can read: it decides which rules and
// formats hold. It starts at 1, and only CmdVersion raises it.
func (s *State) Version() uint64 { return max(1, s.version) }

func (s *State) applyVersion(v uint64) Outcome {
	switch {
	case v > registry.Version:
		return Outcome{Err: fmt.Errorf("%w: cluster version %d", controlplane.ErrUnknownEntry, v)}
	case v <= s.Version():
		return Outcome{}
	}
	var out Outcome
	before := s.Version()
	s.version = v
	if before >= registry.VersionOwnership {
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
		members := firstLives(tx.info.Members)
		c.Spans = make([]registry.Span, len(tx.info.Spans))
		for i, span := range tx.info.Spans {
			c.Spans[i] = registry.Span{Epoch: span.Epoch, Start: span.Start, Members: members}
		}
		tx.info.Follow(c)
		tx.settle()
		s.set(&tx)
		out.report(tx.report())
	}
	return out
}
