package quorum

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
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

const (
	lookEvery    = time.Second     // at every member, by the leader
	silentFor    = 3 * time.Second // after which a member counts as gone
	keepsUp      = 250             // entries that a member may lack and still keep up
	outsideAfter = 5 * time.Second // without a leader
	minVoters    = 3               // that removing the dead leaves
	readerMark   = "reader@"       // begins the address of a reader in raft's configuration
)

// sighting is what came of looking at a member.
type sighting struct {
	heard  time.Time
	behind uint64
	steady time.Time
}

// watch is what the leader knows of the others.
type watch struct {
	mu    sync.Mutex
	since time.Time // of this leadership; zero = this node does not lead
	term  uint64
	of    map[raft.ServerID]sighting
	busy  map[raft.ServerID]bool
}

// reset forgets everything if the term is another.
func (w *watch) reset(term uint64, leads bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !leads:
		w.since, w.term, w.of = time.Time{}, 0, nil
	case w.term != term:
		w.since, w.term, w.of = time.Now(), term, make(map[raft.ServerID]sighting)
	}
}

func (w *watch) known() (since time.Time, of map[raft.ServerID]sighting) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.since, maps.Clone(w.of)
}

// begin reports whether the member owes no earlier answer.
func (w *watch) begin(id raft.ServerID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.busy[id] {
		return false
	}
	w.busy[id] = true
	return true
}

// forget drops what was seen of a member, so that its successor of the same name
// begins anew.
func (w *watch) forget(id raft.ServerID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.of, id)
}

func (w *watch) end(term uint64, id raft.ServerID, resp *raft.AppendEntriesResponse, last uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.busy, id)
	if w.term != term {
		return
	}
	a := w.of[id]
	if resp == nil || resp.Term != term {
		a.steady = time.Time{}
		w.of[id] = a
		return
	}
	a.heard, a.behind = time.Now(), last-min(last, resp.LastLog)
	switch {
	case a.behind > keepsUp:
		a.steady = time.Time{}
	case a.steady.IsZero():
		a.steady = a.heard
	}
	w.of[id] = a
}

// Members lists the region's nodes by name, as raft's latest configuration has
// them.
func (q *Quorum) Members() []Member {
	since, of := q.watch.known()
	if !q.lead.isReady() {
		since, of = time.Time{}, nil // of a leadership that has ended
	}
	leader, _, _ := q.Leader()
	var out []Member
	for _, s := range q.raft.GetConfiguration().Configuration().Servers {
		m := Member{Node: string(s.ID), Addr: plainAddr(s), Role: roleOf(s), Leader: string(s.ID) == leader}
		if a := of[s.ID]; m.Node != q.cfg.Node {
			m.Heard, m.Behind, m.Steady = a.heard, a.behind, a.steady
		} else if !since.IsZero() {
			m.Heard, m.Steady = time.Now(), since
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func roleOf(s raft.Server) Role {
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
func (q *Quorum) Add(ctx context.Context, p Peer, reader bool) error {
	return q.change(ctx, func() error { return q.add(p, reader) })
}

func (q *Quorum) add(p Peer, reader bool) error {
	if err := checkPeer(p); err != nil {
		return err
	}
	addr, role := p.Addr, RoleJoining
	if reader {
		addr, role = readerMark+addr, RoleReader
	}
	future := q.raft.GetConfiguration()
	servers := future.Configuration().Servers
	for _, s := range servers {
		is := roleOf(s)
		switch same := s.ID == raft.ServerID(p.Node); {
		case same && plainAddr(s) == p.Addr && (is == role || is == RoleVoter && !reader):
			return nil
		case same:
			return controlplane.Refuse(controlplane.RuleConflict, "node", "%s is a %s at %s already: move it, or remove it first", p.Node, is, plainAddr(s))
		case plainAddr(s) == p.Addr:
			return controlplane.Refuse(controlplane.RuleConflict, "addr", "%s is the address of %s", p.Addr, s.ID)
		}
	}
	if len(servers) >= maxMembers {
		return controlplane.Refuse(controlplane.RuleConflict, "node", "the region has %d nodes, as many as it may: remove one first", len(servers))
	}
	q.watch.forget(raft.ServerID(p.Node))
	return q.changed(q.raft.AddNonvoter(raft.ServerID(p.Node), raft.ServerAddress(addr), future.Index(), 0))
}

// Remove puts a node out of the region. It refuses what would leave fewer
// voters than a majority needs among those that answer now, unless forced, and
// always the last voter and the leader itself: Transfer first. Removing a node
// that is no member does nothing. Errors are as of Add.
func (q *Quorum) Remove(ctx context.Context, node string, force bool) error {
	if !force && !q.looked(ctx) {
		return context.Cause(ctx)
	}
	return q.change(ctx, func() error { return q.remove(node, force) })
}

// looked waits until a node that has just begun to lead knows who answers: who
// was not asked yet is not silent. It is false if ctx ended first.
func (q *Quorum) looked(ctx context.Context) bool {
	for q.lead.isReady() {
		since, of := q.watch.known()
		if !since.IsZero() && time.Since(since) >= silentFor {
			return true
		}
		servers := q.raft.GetConfiguration().Configuration().Servers
		if !slices.ContainsFunc(servers, func(s raft.Server) bool {
			return s.ID != raft.ServerID(q.cfg.Node) && of[s.ID].heard.IsZero()
		}) {
			return true
		}
		if !sleep(ctx, lookEvery/20) {
			return false
		}
	}
	return true
}

func (q *Quorum) remove(node string, force bool) error {
	future := q.raft.GetConfiguration()
	var gone *Member
	var voters, answer int
	for _, m := range q.Members() {
		switch {
		case m.Node == node:
			gone = &m
		case m.Role == RoleVoter:
			voters++
			if m.Node == q.cfg.Node || time.Since(m.Heard) < silentFor {
				answer++
			}
		}
	}
	switch {
	case gone == nil:
		return nil
	case gone.Role != RoleVoter:
	case voters == 0:
		return controlplane.Refuse(controlplane.RuleConflict, "node", "%s is the last voter: add another first", node)
	case node == q.cfg.Node:
		return controlplane.Refuse(controlplane.RuleConflict, "node", "%s leads the region: transfer leadership first, then remove it", node)
	case answer <= voters/2 && !force:
		return controlplane.Refuse(controlplane.RuleConflict, "node",
			"without %s the region would have %d voters, of which %d answer: it could commit nothing. Bring one back first, or force it", node, voters, answer)
	}
	return q.changed(q.raft.RemoveServer(raft.ServerID(node), future.Index(), 0))
}

// Move notes that a member is at another address from now on. Its own
// configuration must say the same. Errors are as of Add.
func (q *Quorum) Move(ctx context.Context, p Peer) error {
	return q.change(ctx, func() error { return q.move(p) })
}

func (q *Quorum) move(p Peer) error {
	if err := checkPeer(p); err != nil {
		return err
	}
	future := q.raft.GetConfiguration()
	var member *raft.Server
	for _, s := range future.Configuration().Servers {
		switch {
		case s.ID == raft.ServerID(p.Node):
			member = &s
		case plainAddr(s) == p.Addr:
			return controlplane.Refuse(controlplane.RuleConflict, "addr", "%s is the address of %s", p.Addr, s.ID)
		}
	}
	switch {
	case member == nil:
		return controlplane.Refuse(controlplane.RuleNotFound, "node", "%s is not a node of this region: add it", p.Node)
	case plainAddr(*member) == p.Addr:
		return nil
	}
	switch addr := raft.ServerAddress(p.Addr); roleOf(*member) {
	case RoleVoter:
		return q.changed(q.raft.AddVoter(member.ID, addr, future.Index(), 0))
	case RoleReader:
		return q.changed(q.raft.AddNonvoter(member.ID, readerMark+addr, future.Index(), 0))
	default:
		return q.changed(q.raft.AddNonvoter(member.ID, addr, future.Index(), 0))
	}
}

// settle writes down where members are that answer elsewhere than they were
// added: an operator moved them in the configuration.
func (q *Quorum) settle() {
	_, of := q.watch.known()
	for _, s := range q.raft.GetConfiguration().Configuration().Servers {
		addr := q.book.moved(s)
		if addr == "" || s.ID != raft.ServerID(q.cfg.Node) && time.Since(of[s.ID].heard) >= silentFor {
			continue
		}
		if err := q.move(Peer{string(s.ID), addr}); err != nil {
			q.log.Warn("cannot write down where a node is", "node", s.ID, "addr", addr, "error", err)
		} else {
			q.log.Info("a node is at another address", "node", s.ID, "addr", addr, "before", plainAddr(s))
		}
		return // the configuration is another now
	}
}

// Roster is who belongs to the region, as this node's log has it.
type Roster struct {
	Life    uint64 // Since
	Applied uint64 // entries that it knows of: of two rosters of one life, the higher is the newer
	Members []Member
}

// Roster returns the present one.
func (q *Quorum) Roster() Roster {
	r := Roster{Life: q.Since()}
	q.machine.mu.RLock()
	r.Applied = q.machine.at.Applied // before the members, so that they are as new at least
	q.machine.mu.RUnlock()
	r.Members = q.Members()
	return r
}

func checkPeer(p Peer) error {
	if _, _, err := net.SplitHostPort(p.Addr); err != nil || p.Node == "" || len(p.Node) > 63 || strings.Contains(p.Node+p.Addr, "@") {
		return controlplane.Refuse(controlplane.RuleInvalid, "addr", "a node needs a name and host:port of its internal listener, not %q at %q", p.Node, p.Addr)
	}
	return nil
}

// change has the keeper of membership do something, one at a time.
func (q *Quorum) change(ctx context.Context, do func() error) error {
	if err := q.notLeading(); err != nil {
		return err
	}
	c := change{do: do, done: make(chan error, 1)}
	select {
	case q.changes <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-q.ctx.Done():
		return controlplane.ErrNoLeader
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", controlplane.ErrUncertain, context.Cause(ctx))
	case <-q.stopped:
		return controlplane.ErrUncertain
	}
}

// changed says what became of a change that raft was given.
func (q *Quorum) changed(future raft.IndexFuture) error {
	err := future.Error()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return q.elsewhere() // it never entered the log
	case strings.HasPrefix(err.Error(), "configuration changed since"):
		return controlplane.Refuse(controlplane.RuleConflict, "", "the membership changed meanwhile: look at it and try again")
	default:
		return fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
}

// runMembers looks after the membership while this node leads.
func (q *Quorum) runMembers(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	q.led = time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-q.changes:
			c.done <- c.do()
			continue
		case <-tick.C:
		}
		q.noteOutside()
		term, leads := q.leadsIn()
		q.watch.reset(term, leads)
		if !leads {
			continue
		}
		for _, s := range q.raft.GetConfiguration().Configuration().Servers {
			if s.ID == raft.ServerID(q.cfg.Node) || !q.watch.begin(s.ID) {
				continue
			}
			last := q.raft.LastIndex()
			wg.Go(func() {
				resp, err := q.pulse(term, s)
				if err != nil {
					resp = nil
				}
				q.watch.end(term, s.ID, resp, last)
			})
		}
		q.promote()
		q.settle()
		q.removeDead()
	}
}

// noteOutside remembers why this node does not belong to its region, if it does
// not. A node that was removed may never hear of it.
func (q *Quorum) noteOutside() {
	conf := q.raft.GetConfiguration().Configuration().Servers
	member := slices.ContainsFunc(conf, func(s raft.Server) bool { return s.ID == raft.ServerID(q.cfg.Node) })
	_, _, led := q.Leader()
	if led {
		q.led = time.Now()
	}
	var why error
	switch {
	case len(conf) == 0:
		why = errors.New("this node has no part in its region yet: it waits for the others to answer, or to be added by them")
	case !member:
		why = errors.New("this node was removed from its region: retire it, or add it again")
	case !led && time.Since(q.led) > outsideAfter:
		why = errors.New("this node knows no leader: a majority of the region is away, or it was removed; ask another node for the members")
	default:
		q.outside.Store(nil)
		return
	}
	if q.outside.Swap(&why) == nil {
		q.log.Warn(why.Error())
	}
}

// promote makes a voter of a joining node that has kept up for long enough.
func (q *Quorum) promote() {
	future := q.raft.GetConfiguration()
	_, of := q.watch.known()
	for _, s := range future.Configuration().Servers {
		steady := of[s.ID].steady
		if roleOf(s) != RoleJoining || steady.IsZero() || time.Since(steady) < q.cfg.Tunables.Promote {
			continue
		}
		if err := q.changed(q.raft.AddVoter(s.ID, s.Address, future.Index(), 0)); err != nil {
			q.log.Warn("cannot make a node a voter yet", "node", s.ID, "error", err)
			return
		}
		q.log.Info("a node has kept up and votes from now on", "node", s.ID)
		return // the configuration is another now
	}
}

// removeDead removes one voter that was silent for too long, if that is asked
// for, and enough others answer.
func (q *Quorum) removeDead() {
	limit := q.cfg.Tunables.RemoveDead
	since, of := q.watch.known()
	if limit <= 0 || since.IsZero() || time.Since(since) < limit {
		return
	}
	var dead string
	var voters, answer int
	for _, m := range q.Members() {
		if m.Role != RoleVoter {
			continue
		}
		voters++
		if m.Node == q.cfg.Node || time.Since(m.Heard) < silentFor {
			answer++
		} else if time.Since(of[raft.ServerID(m.Node)].heard) >= limit {
			dead = m.Node
		}
	}
	if dead == "" || voters-1 < minVoters || answer <= (voters-1)/2 {
		return
	}
	if err := q.remove(dead, false); err != nil {
		q.log.Warn("cannot remove a dead node", "node", dead, "error", err)
		return
	}
	q.log.Warn("removed a node that was silent for too long", "node", dead, "limit", limit)
}
