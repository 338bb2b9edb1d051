package quorum

import (
	"context"

	"ringmain/controlplane/quorum/members"
)

// Role is what a node is to its region's Raft.
type Role = members.Role

// Roles of a node.
const (
	RoleVoter   = members.RoleVoter
	RoleJoining = members.RoleJoining
	RoleReader  = members.RoleReader
)

// Member is one node of the region.
type Member = members.Member

// Members lists the region's nodes by name, as raft's latest configuration has
// them.
func (q *Quorum) Members() []Member { return q.members.List() }

// Add lets a node into the region: it copies the state, and becomes a voter
// once it has kept up for Tunables.Promote, unless it is to be a reader. Its own
// configuration must list it among its Peers, and its directory must be empty.
// Adding a member again does nothing.
//
// Errors: controlplane.ErrNotLeader, ErrNoLeader and ErrUncertain as of
// Propose; a *controlplane.RuleError if it cannot be.
func (q *Quorum) Add(ctx context.Context, p Peer, reader bool) error {
	return q.members.Add(ctx, members.Peer(p), reader)
}

// Remove puts a node out of the region. It refuses what would leave fewer
// voters than a majority needs among those that answer now, unless forced, and
// always the last voter and the leader itself: Transfer first. Removing a node
// that is no member does nothing. Errors are as of Add.
func (q *Quorum) Remove(ctx context.Context, node string, force bool) error {
	return q.members.Remove(ctx, node, force)
}

// Move notes that a member is at another address from now on. Its own
// configuration must say the same. Errors are as of Add.
func (q *Quorum) Move(ctx context.Context, p Peer) error { return q.members.Move(ctx, members.Peer(p)) }

// Roster is who belongs to the region, as this node's log has it.
type Roster struct {
	Life    uint64 // Since
	Applied uint64 // entries that it knows of: of two rosters of one life, the higher is the newer
	Members []Member
}

// Roster returns the present one.
func (q *Quorum) Roster() Roster {
	// Applied comes before the members, so that they are as new at least.
	r := Roster{Life: q.Since(), Applied: q.machine.Mark().Applied}
	r.Members = q.Members()
	return r
}
