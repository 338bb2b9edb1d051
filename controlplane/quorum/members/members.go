package members

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/retry"
)

// Role is what a node is to its region's Raft.
type Role string

// Roles of a node.
const (
	RoleVoter   Role = "voter"
	RoleJoining Role = "joining" // copies the state; a voter once it has kept up for Tunables.Promote
	RoleReader  Role = "reader"  // holds the state and serves feeds; never votes
)

// Member is one node of the region.
type Member struct {
	Node   string
	Addr   string
	Role   Role
	Leader bool

	// Only the leader knows these of others. Heard is when it last answered;
	// zero = not since this node leads. Behind is how many entries it lacked
	// then. Steady is since when it has answered and kept up; zero = it does not.
	Heard  time.Time
	Behind uint64
	Steady time.Time
}

// List returns the region's nodes by name, as raft's latest configuration has
// them.
func (k *Keeper) List() []Member {
	since, of := k.watch.known()
	if !k.leads() {
		since, of = time.Time{}, nil // of a leadership that has ended
	}
	_, leader := k.cfg.Raft.LeaderWithID()
	var out []Member
	for _, s := range k.servers() {
		m := Member{Node: string(s.ID), Addr: AddrOf(s), Role: RoleOf(s), Leader: s.ID == leader}
		if a := of[s.ID]; m.Node != k.cfg.Self {
			m.Heard, m.Behind, m.Steady = a.heard, a.behind, a.steady
		} else if !since.IsZero() {
			m.Heard, m.Steady = time.Now(), since
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// AddrOf is a member's address without the mark of its role.
func AddrOf(s raft.Server) string { return strings.TrimPrefix(string(s.Address), readerMark) }

// Addr is where the membership has the node; "" if it is no member.
func (k *Keeper) Addr(id raft.ServerID) string {
	for _, s := range k.servers() {
		if s.ID == id {
			return AddrOf(s)
		}
	}
	return ""
}

// RoleOf is what a server of raft's configuration is.
func RoleOf(s raft.Server) Role {
	switch {
	case s.Suffrage == raft.Voter:
		return RoleVoter
	case strings.HasPrefix(string(s.Address), readerMark):
		return RoleReader
	}
	return RoleJoining
}

// change is a change of membership that waits for its turn.
type change struct {
	do   func() error
	done chan error // capacity 1
}

// Add lets a node into the region: it copies the state, and becomes a voter
// once it has kept up for a while, unless it is to be a reader. Its own
// configuration must list it among its Peers, and its directory must be empty.
// Adding a member again does nothing.
//
// Errors: controlplane.ErrNotLeader, ErrNoLeader and ErrUncertain as of
// Propose; a *controlplane.RuleError if it cannot be.
func (k *Keeper) Add(ctx context.Context, p Peer, reader bool) error {
	return k.change(ctx, func() error { return k.add(p, reader) })
}

func (k *Keeper) add(p Peer, reader bool) error {
	if err := checkPeer(p); err != nil {
		return err
	}
	addr, role := p.Addr, RoleJoining
	if reader {
		addr, role = readerMark+addr, RoleReader
	}
	future := k.cfg.Raft.GetConfiguration()
	servers := future.Configuration().Servers
	for _, s := range servers {
		is := RoleOf(s)
		switch same := s.ID == raft.ServerID(p.Node); {
		case same && AddrOf(s) == p.Addr && (is == role || is == RoleVoter && !reader):
			return nil
		case same:
			return controlplane.Refuse(controlplane.RuleConflict, "node", "%s is a %s at %s already: move it, or remove it first", p.Node, is, AddrOf(s))
		case AddrOf(s) == p.Addr:
			return controlplane.Refuse(controlplane.RuleConflict, "addr", "%s is the address of %s", p.Addr, s.ID)
		}
	}
	if len(servers) >= Max {
		return controlplane.Refuse(controlplane.RuleConflict, "node", "the region has %d nodes, as many as it may: remove one first", len(servers))
	}
	k.watch.forget(raft.ServerID(p.Node))
	return k.changed(k.cfg.Raft.AddNonvoter(raft.ServerID(p.Node), raft.ServerAddress(addr), future.Index(), 0))
}

// Remove puts a node out of the region. It refuses what would leave fewer
// voters than a majority needs among those that answer now, unless forced, and
// always the last voter and the leader itself: Transfer first. Removing a node
// that is no member does nothing. Errors are as of Add.
func (k *Keeper) Remove(ctx context.Context, node string, force bool) error {
	if !force && !k.looked(ctx) {
		return context.Cause(ctx)
	}
	return k.change(ctx, func() error { return k.remove(node, force) })
}

// looked waits until a node that has just begun to lead knows who answers: who
// was not asked yet is not silent. It is false if ctx ended first.
func (k *Keeper) looked(ctx context.Context) bool {
	for k.leads() {
		since, of := k.watch.known()
		if !since.IsZero() && time.Since(since) >= silentFor {
			return true
		}
		servers := k.servers()
		if !slices.ContainsFunc(servers, func(s raft.Server) bool {
			return s.ID != raft.ServerID(k.cfg.Self) && of[s.ID].heard.IsZero()
		}) {
			return true
		}
		if !retry.Sleep(ctx, lookEvery/20) {
			return false
		}
	}
	return true
}

func (k *Keeper) remove(node string, force bool) error {
	future := k.cfg.Raft.GetConfiguration()
	if is, err := removable(k.List(), k.cfg.Self, node, force, time.Now()); !is || err != nil {
		return err
	}
	return k.changed(k.cfg.Raft.RemoveServer(raft.ServerID(node), future.Index(), 0))
}

// Move notes that a member is at another address from now on. Its own
// configuration must say the same. Errors are as of Add.
func (k *Keeper) Move(ctx context.Context, p Peer) error {
	return k.change(ctx, func() error { return k.move(p) })
}

func (k *Keeper) move(p Peer) error {
	if err := checkPeer(p); err != nil {
		return err
	}
	future := k.cfg.Raft.GetConfiguration()
	var member *raft.Server
	for _, s := range future.Configuration().Servers {
		switch {
		case s.ID == raft.ServerID(p.Node):
			member = &s
		case AddrOf(s) == p.Addr:
			return controlplane.Refuse(controlplane.RuleConflict, "addr", "%s is the address of %s", p.Addr, s.ID)
		}
	}
	switch {
	case member == nil:
		return controlplane.Refuse(controlplane.RuleNotFound, "node", "%s is not a node of this region: add it", p.Node)
	case AddrOf(*member) == p.Addr:
		return nil
	}
	switch addr := raft.ServerAddress(p.Addr); RoleOf(*member) {
	case RoleVoter:
		return k.changed(k.cfg.Raft.AddVoter(member.ID, addr, future.Index(), 0))
	case RoleReader:
		return k.changed(k.cfg.Raft.AddNonvoter(member.ID, readerMark+addr, future.Index(), 0))
	default:
		return k.changed(k.cfg.Raft.AddNonvoter(member.ID, addr, future.Index(), 0))
	}
}

func checkPeer(p Peer) error {
	if _, _, err := net.SplitHostPort(p.Addr); err != nil || p.Node == "" || len(p.Node) > 63 || strings.Contains(p.Node+p.Addr, "@") {
		return controlplane.Refuse(controlplane.RuleInvalid, "addr", "a node needs a name and host:port of its internal listener, not %q at %q", p.Node, p.Addr)
	}
	return nil
}

// change has Run do something, one at a time.
func (k *Keeper) change(ctx context.Context, do func() error) error {
	if !k.leads() {
		return k.cfg.Elsewhere()
	}
	c := change{do: do, done: make(chan error, 1)}
	select {
	case k.changes <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-k.ended:
		return controlplane.ErrNoLeader
	}
	select {
	case err := <-c.done: // it comes: raft answers, if only that it was shut down
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", controlplane.ErrUncertain, context.Cause(ctx))
	}
}

// changed says what became of a change that raft was given.
func (k *Keeper) changed(future raft.IndexFuture) error {
	err := future.Error()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return k.cfg.Elsewhere() // it never entered the log
	case strings.HasPrefix(err.Error(), "configuration changed since"):
		return controlplane.Refuse(controlplane.RuleConflict, "", "the membership changed meanwhile: look at it and try again")
	default:
		return fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
}
