package quorum

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/members"
	"ringmain/controlplane/registry/ledger"
)

// Read returns once this node's copy, as View shows it, holds every write that
// the region acknowledged before the call. Only the leader can know: others
// get controlplane.ErrNotLeader, which names it, or ErrNoLeader. For a read
// that may be old, call Contact instead, which says how old.
//
// The order matters. The commit index is noted first; only then is a majority
// of the voters asked, by messages that leave after the call, whether this node
// still leads: had another leader acknowledged anything before it, one of them
// would know of the higher term. Raft's own VerifyLeader will not do: it counts
// answers to heartbeats that left before it was called, and those of readers.
func (q *Quorum) Read(ctx context.Context) error {
	term, ok := q.leadsIn()
	if !ok {
		return q.elsewhere()
	}
	index := q.raft.CommitIndex()
	r := read{term: term, done: make(chan error, 1)}
	select {
	case q.reads <- r:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-q.ctx.Done():
		return controlplane.ErrNoLeader
	}
	select {
	case err := <-r.done:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-q.ctx.Done():
		return controlplane.ErrNoLeader
	}
	return q.reach(ctx, index)
}

// Contact is when this node last knew that its copy was current, but for what
// was on its way: now on a leader, which one that is cut off takes itself for
// no longer than Tunables.Lease; elsewhere the leader's last word. It is zero
// if there never was one.
func (q *Quorum) Contact() time.Time {
	if q.lead.isReady() {
		return time.Now()
	}
	return q.raft.LastContact()
}

// Freeze returns the registry as applied here, and the index and term of the
// last entry in it. The State is the caller's.
func (q *Quorum) Freeze() (state *ledger.State, applied, term uint64) {
	state, at := q.machine.Freeze()
	return state, at.Applied, at.Term
}

// leadsIn returns the term that this node leads in and is established for.
func (q *Quorum) leadsIn() (term uint64, ok bool) {
	// Terms only grow, so whoever leads between two equal ones leads in that.
	term = q.raft.CurrentTerm()
	leads := q.raft.State() == raft.Leader && q.raft.CurrentTerm() == term
	return term, leads && q.lead.readyIn(term)
}

// reach waits until all that takes effect up to index is applied here.
func (q *Quorum) reach(ctx context.Context, index uint64) error {
	index, err := q.lastEffect(index)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(q.ctx, func() { cancel(controlplane.ErrNoLeader) })()
	return q.machine.Reach(ctx, index)
}

// lastEffect is the last entry up to index that the machine is told of: those
// that only serve raft, such as the first of a term, never reach it.
func (q *Quorum) lastEffect(index uint64) (uint64, error) {
	applied := q.machine.Mark().Applied
	for ; index > applied; index-- {
		var e raft.Log
		switch err := q.store.GetLog(index, &e); {
		case errors.Is(err, raft.ErrLogNotFound):
			return applied, nil // cut, behind a snapshot of what is applied
		case err != nil:
			return 0, err
		case e.Type == raft.LogCommand || e.Type == raft.LogConfiguration:
			return index, nil
		}
	}
	return index, nil
}

// read waits for proof that its node still leads in term.
type read struct {
	term uint64
	done chan error // capacity 1
}

// runReads proves leadership, each time for all reads that wait.
func (q *Quorum) runReads(ctx context.Context) error {
	p := &prover{q: q, busy: make(map[raft.ServerID]bool)}
	defer p.wait.Wait()
	for {
		var waiting []read
		select {
		case r := <-q.reads:
			waiting = append(waiting, r)
		case <-ctx.Done():
			return nil
		}
		for more := true; more; {
			select {
			case r := <-q.reads:
				waiting = append(waiting, r)
			default:
				more = false
			}
		}
		term, _ := q.leadsIn()
		err := p.prove(ctx, term)
		for _, r := range waiting {
			if err == nil && r.term != term {
				r.done <- controlplane.ErrNoLeader
				continue
			}
			r.done <- err
		}
	}
}

// prover asks voters whether this node still leads.
type prover struct {
	q    *Quorum
	wait sync.WaitGroup

	mu   sync.Mutex
	busy map[raft.ServerID]bool // has not answered an earlier question
}

// prove returns nil if, after the call, a majority of the voters took this node
// for the leader of term.
func (p *prover) prove(ctx context.Context, term uint64) error {
	q := p.q
	var voters, asked int
	answers := make(chan bool, members.Max)
	for _, s := range q.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == raft.ServerID(q.cfg.Node) {
			answers <- true
			asked++
		} else if p.ask(term, s, answers) {
			asked++
		}
	}
	timer := time.NewTimer(q.cfg.Tunables.Lease)
	defer timer.Stop()
	for agree := 0; asked > 0; asked-- {
		select {
		case yes := <-answers:
			if yes {
				agree++
			}
		case <-timer.C:
			return q.elsewhere()
		case <-ctx.Done():
			return controlplane.ErrNoLeader
		}
		if agree > voters/2 {
			return nil
		}
	}
	return q.elsewhere()
}

// ask sends one question, unless s owes an answer to an earlier one.
func (p *prover) ask(term uint64, s raft.Server, answers chan<- bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy[s.ID] {
		return false
	}
	p.busy[s.ID] = true
	p.wait.Go(func() {
		resp, err := p.q.pulse(term, s)
		p.mu.Lock()
		delete(p.busy, s.ID) // before its answer lets the next read begin
		p.mu.Unlock()
		answers <- err == nil && resp.Success && resp.Term == term
	})
	return true
}

// pulse sends s a heartbeat beside raft's own. Call it only for a term that
// this node leads in.
func (q *Quorum) pulse(term uint64, s raft.Server) (*raft.AppendEntriesResponse, error) {
	self := q.trans.EncodePeer(raft.ServerID(q.cfg.Node), q.trans.LocalAddr())
	req := &raft.AppendEntriesRequest{
		RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(q.cfg.Node), Addr: self},
		Term:      term,
	}
	resp := new(raft.AppendEntriesResponse)
	if err := q.trans.AppendEntries(s.ID, s.Address, req, resp); err != nil {
		return nil, err
	}
	return resp, nil
}
