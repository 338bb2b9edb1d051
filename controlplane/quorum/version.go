package quorum

import (
	"context"
	"fmt"

	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Raise has the region go over to the newest cluster version that this code
// knows, if it has not. All nodes of the region must run, and read that
// version: whoever does not halts at the first command of it. Errors are as of
// Propose, or name the node to be upgraded or started first.
func (q *Quorum) Raise(ctx context.Context) error {
	if err := q.notLeading(); err != nil {
		return err
	}
	var at uint64
	q.machine.View(func(s *ledger.State) { at = s.Version() })
	if at >= registry.Version {
		return nil
	}
	for _, server := range q.raft.GetConfiguration().Configuration().Servers {
		if string(server.ID) == q.cfg.Node {
			continue
		}
		v, err := q.trans.Ask(ctx, string(server.ID))
		if err != nil {
			return fmt.Errorf("quorum: node %s does not say which cluster version it reads: start it, with this release: %w", server.ID, err)
		}
		if uint64(v) < registry.Version {
			return fmt.Errorf("quorum: node %s reads cluster version %d, not %d: upgrade it first", server.ID, v, registry.Version)
		}
	}
	out, err := q.submit(&proposal{ctx: ctx, command: &registry.Command{Type: registry.CmdVersion, Version: registry.Version}, done: make(chan answer, 1)})
	if err == nil {
		err = out.Err
	}
	if err == nil {
		q.log.Info("the region went over to a newer cluster version", "from", at, "to", registry.Version)
	}
	return err
}
