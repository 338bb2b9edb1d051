package quorum

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/members"
)

// Transfer has another node lead, the named one or ("") whichever is furthest.
// Writes that arrive meanwhile are turned away with nothing written. It returns
// once this node leads no more; after an error it leads on.
//
// Errors: controlplane.ErrNotLeader, ErrNoLeader; a *controlplane.RuleError if
// the node cannot lead.
func (q *Quorum) Transfer(ctx context.Context, to string) error {
	if err := q.notLeading(); err != nil {
		return err
	}
	target, err := q.successor(to)
	if err != nil || to == q.cfg.Node {
		return err
	}
	if target != nil {
		if err := q.near(*target); err != nil {
			return err
		}
	}
	start := time.Now()
	if !q.lead.hold() {
		return q.elsewhere()
	}
	gone := false
	defer func() { q.lead.release(gone) }()
	q.drain(ctx)
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	var future raft.Future
	if target == nil {
		future = q.raft.LeadershipTransfer()
	} else {
		future = q.raft.LeadershipTransferToServer(target.ID, target.Address)
	}
	if err := future.Error(); err != nil { // raft answers within an election timeout
		return fmt.Errorf("%w: leadership stays here: %w", controlplane.ErrNoLeader, err)
	}
	gone = true
	q.log.Info("handed leadership over", "to", to, "after", time.Since(start))
	return nil
}

// handoverLag is how many entries a node may lack that is to lead: raft sends
// them first, within an election timeout.
const handoverLag = 1024

// near asks the node whether it is there and has nearly all. Raft cannot give up
// a transfer to one that is not, while a former one still waits for it: this node
// would lead on and turn every write away until that node is back.
func (q *Quorum) near(s raft.Server) error {
	term, leads := q.leadsIn()
	if !leads {
		return q.elsewhere()
	}
	last := q.raft.LastIndex()
	resp, err := q.pulse(term, s)
	if err == nil && resp.LastLog+handoverLag < last {
		err = fmt.Errorf("it lacks %d entries", last-resp.LastLog)
	}
	if err != nil {
		return fmt.Errorf("%w: leadership stays here: %s: %w", controlplane.ErrNoLeader, s.ID, err)
	}
	return nil
}

// successor is the voter named to, or nil for whichever.
func (q *Quorum) successor(to string) (*raft.Server, error) {
	others := 0
	for _, s := range q.raft.GetConfiguration().Configuration().Servers {
		switch {
		case string(s.ID) == to && s.Suffrage == raft.Voter:
			return &s, nil
		case string(s.ID) == to:
			return nil, controlplane.Refuse(controlplane.RuleConflict, "to", "%s is a %s: only a voter can lead", to, members.RoleOf(s))
		case s.Suffrage == raft.Voter && string(s.ID) != q.cfg.Node:
			others++
		}
	}
	switch {
	case to != "":
		return nil, controlplane.Refuse(controlplane.RuleNotFound, "to", "%s is not a node of this region", to)
	case others == 0:
		return nil, controlplane.Refuse(controlplane.RuleConflict, "", "no other voter is there to lead: add one first")
	}
	return nil, nil //nolint:nilnil // nobody in particular
}

// drain waits for what is under way, for a while.
func (q *Quorum) drain(ctx context.Context) {
	timer := time.NewTimer(drainTimeout)
	defer timer.Stop()
	select {
	case <-q.inFlight.idle():
	case <-timer.C:
	case <-ctx.Done():
	}
}

// handOver has another node lead before this one stops, so that the region
// need not notice.
func (q *Quorum) handOver() {
	if _, err := q.successor(""); err != nil || q.raft.State() != raft.Leader {
		return
	}
	start := time.Now()
	q.lead.end() // takes no more proposals
	q.drain(context.Background())
	if err := q.raft.LeadershipTransfer().Error(); err != nil && !errors.Is(err, raft.ErrNotLeader) {
		q.log.Warn("cannot hand leadership over", "error", err)
		return
	}
	q.awaitLeader(2 * q.cfg.Tunables.Election)
	q.log.Info("handed leadership over", "after", time.Since(start))
}

// awaitLeader waits for another node to lead, for a while. Raft says that
// leadership is handed over when the other asks for votes; this node's may be
// the one that it needs.
func (q *Quorum) awaitLeader(limit time.Duration) {
	heard := make(chan raft.Observation, 1) // one that is not read yet will do
	observer := raft.NewObserver(heard, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	q.raft.RegisterObserver(observer)
	defer q.raft.DeregisterObserver(observer)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		if _, id := q.raft.LeaderWithID(); id != "" && string(id) != q.cfg.Node {
			return
		}
		select {
		case <-heard:
		case <-timer.C:
			return
		case <-q.ctx.Done():
			return
		}
	}
}
