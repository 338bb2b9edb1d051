package quorum

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

// leadership is what this node knows of its own leading. Raft's word is not
// enough: proposals wait until everything committed before is applied.
type leadership struct {
	mu    sync.Mutex
	leads bool   // raft says so
	turn  uint64 // counts every change of leads
	ready bool   // leads, and is established
	term  uint64 // that it is established in
	held  bool   // leadership is being handed over: stay unready
	ended bool
	subs  []chan bool
	kick  chan struct{} // wakes establish; capacity 1
}

// note takes raft's word.
func (l *leadership) note(leads bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turn++
	l.leads = leads
	l.setReady(false)
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// setReady tells the subscribers if ready changes. mu is held.
func (l *leadership) setReady(ready bool) {
	if l.ready == ready || l.ended {
		return
	}
	l.ready = ready
	for _, c := range l.subs {
		latest(c, ready)
	}
}

// latest puts v in place of a value nobody has read yet.
func latest(c chan bool, v bool) {
	select {
	case <-c:
	default:
	}
	c <- v // mu is held by the only sender, so there is room
}

// establishable returns the present turn if there is something to establish.
func (l *leadership) establishable() (turn uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.turn, l.leads && !l.ready && !l.held && !l.ended
}

// established makes the node ready in term, unless leadership moved since turn.
func (l *leadership) established(turn, term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.turn != turn || l.held {
		return false
	}
	l.term = term
	l.setReady(true)
	return l.ready
}

// readyIn reports whether the node is ready in term.
func (l *leadership) readyIn(term uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready && l.term == term
}

// hold makes the node unready until release. It reports false if it was not
// ready.
func (l *leadership) hold() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ready {
		return false
	}
	l.held = true
	l.setReady(false)
	return true
}

// release ends hold. Unless leadership is gone, the node becomes ready again.
func (l *leadership) release(gone bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = false
	if gone {
		l.leads = false // raft is about to say so
	}
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *leadership) isReady() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

func (l *leadership) subscribe() <-chan bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan bool, 1)
	if l.ended {
		close(c)
		return c
	}
	c <- l.ready
	l.subs = append(l.subs, c)
	return c
}

// end makes the node unready for good.
func (l *leadership) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.setReady(false)
	l.ended = true
	for _, c := range l.subs {
		close(c)
	}
	l.subs = nil
}

// drainNotify passes on what raft says of leadership; raft blocks if nobody
// listens, so it goes on until raft is down.
func (q *Quorum) drainNotify() error {
	for {
		select {
		case leads := <-q.notify:
			q.lead.note(leads)
		case <-q.raftDown:
			return nil
		}
	}
}

// drainObserver counts elections. A node that misses its leader becomes a
// candidate to raft, but asks first whether the others would vote: while they
// hear the leader they would not, and it follows on.
func (q *Quorum) drainObserver() error {
	for {
		select {
		case o := <-q.observed:
			switch o.Data {
			case raft.Leader:
				q.metrics.elections.Inc()
			case raft.Candidate:
				q.metrics.candidacies.Inc()
			}
		case <-q.raftDown:
			return nil
		}
	}
}

// establish makes every leadership ready for proposals, or gives it away.
func (q *Quorum) establish(ctx context.Context) error {
	stuck := 0
	for {
		select {
		case <-q.lead.kick:
		case <-ctx.Done():
			return nil
		}
		turn, ok := q.lead.establishable()
		if !ok {
			continue
		}
		start := time.Now()
		term := q.raft.CurrentTerm()
		err := q.raft.Barrier(0).Error()
		if err == nil {
			err = q.openHomes()
		}
		if err == nil {
			stuck = 0
			if q.lead.established(turn, term) {
				q.log.Info("leading the region", "term", term, "after", time.Since(start))
			}
			continue
		}
		if now, still := q.lead.establishable(); !still || now != turn {
			continue
		}
		q.log.Warn("cannot take up leadership, giving it away", "error", err)
		if err := q.raft.LeadershipTransfer().Error(); err != nil {
			// An attempt to hand over that was overtaken by an election can
			// leave raft refusing entries for ever, even as a later leader.
			if stuck++; stuck >= 5 {
				return fmt.Errorf("quorum: this node leads, but cannot: restart it: %w", err)
			}
			q.retryEstablish(ctx)
		}
	}
}

// retryEstablish has establish try again, after a pause.
func (q *Quorum) retryEstablish(ctx context.Context) {
	if !retry.Sleep(ctx, q.cfg.Tunables.Election) {
		return
	}
	select {
	case q.lead.kick <- struct{}{}:
	default:
	}
}

// openHomes opens the configured shards that do not exist, and lets new
// members into those that do. It runs while no proposal is under way.
func (q *Quorum) openHomes() error {
	for _, spec := range q.cfg.Homes {
		err := q.openHome(spec)
		var refusal *controlplane.RuleError
		if errors.As(err, &refusal) {
			q.log.Error("cannot open a configured shard", "shard", spec.Shard, "error", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("open shard %s: %w", spec.Shard, err)
		}
	}
	return nil
}

func (q *Quorum) openHome(spec ShardSpec) error {
	cmd, err := q.opening(spec)
	if err != nil || cmd == nil {
		return err
	}
	data, err := registry.EncodeCommand(cmd)
	if err != nil {
		return err
	}
	future := q.raft.ApplyLog(raft.Log{Data: data}, 0)
	if err := future.Error(); err != nil {
		return err
	}
	switch answer := future.Response().(type) {
	case ledger.Outcome:
		if answer.Err != nil {
			return answer.Err
		}
	case error:
		return answer
	}
	q.log.Info("opened a shard", "shard", spec.Shard, "members", spec.Members)
	return nil
}

// opening is the command that makes the shard as spec says, or nil.
func (q *Quorum) opening(spec ShardSpec) (cmd *registry.Command, err error) {
	members := slices.Sorted(slices.Values(spec.Members))
	q.machine.View(func(s *ledger.State) {
		info, exists := s.Shard(spec.Shard)
		switch {
		case !exists && s.Copy(spec.Shard).Promised != (controlplane.Epoch{}):
			q.log.Warn("a configured shard is being taken over elsewhere: leaving it", "shard", spec.Shard)
			return
		case !exists:
		case info.Home != q.cfg.Region:
			q.log.Warn("a configured shard has another home: leaving it", "shard", spec.Shard, "home", info.Home)
			return
		case slices.Equal(info.Members, members):
			return
		case !containsAll(members, info.Members):
			q.log.Warn("a shard has members that are not configured: leaving them in", "shard", spec.Shard, "members", info.Members, "configured", members)
			return
		}
		if exists && s.Version() > 1 && len(info.Members) > 1 {
			q.log.Warn("a shard lacks members that are configured: its members must agree to let them in", "shard", spec.Shard, "members", info.Members, "configured", members)
			return
		}
		changes := []registry.Change{{Op: registry.OpOpen, Members: members, Home: q.cfg.Region}}
		if err = s.Check(spec.Shard, changes); err != nil {
			return
		}
		var entry *registry.Entry
		if entry, err = s.Next(spec.Shard, changes); err != nil {
			return
		}
		var enc []byte
		if enc, err = registry.EncodeEntry(entry); err == nil {
			cmd = &registry.Command{Type: registry.CmdEntry, Entries: [][]byte{enc}}
		}
	})
	return cmd, err
}

func containsAll(all, some []string) bool {
	for _, s := range some {
		if !slices.Contains(all, s) {
			return false
		}
	}
	return true
}

// notLeading says why a proposal cannot be taken now; nil if it can.
func (q *Quorum) notLeading() error {
	if q.lead.isReady() {
		return nil
	}
	return q.elsewhere()
}

// elsewhere says where a proposal belongs, given that it was not written.
func (q *Quorum) elsewhere() error {
	_, id := q.raft.LeaderWithID()
	if id != "" && string(id) != q.cfg.Node {
		return fmt.Errorf("%w (%s)", controlplane.ErrNotLeader, id)
	}
	if full := q.store.FullDisk(); full != nil {
		return full
	}
	return controlplane.ErrNoLeader
}
