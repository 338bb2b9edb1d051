package members

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	lookEvery    = time.Second     // at every member, by the leader
	keepsUp      = 250             // entries that a member may lack and still keep up
	outsideAfter = 5 * time.Second // without a leader
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

// Run looks after the membership, while this node leads, until ctx ends. Call it once.
func (k *Keeper) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(k.ended)
	k.led = time.Now()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-k.changes:
			c.done <- c.do()
			continue
		case <-tick.C:
		}
		k.noteOutside()
		term, leads := k.cfg.Leads()
		k.watch.reset(term, leads)
		if !leads {
			continue
		}
		for _, s := range k.servers() {
			if s.ID == raft.ServerID(k.cfg.Self) || !k.watch.begin(s.ID) {
				continue
			}
			last := k.cfg.Raft.LastIndex()
			wg.Go(func() {
				resp, err := k.cfg.Pulse(term, s)
				if err != nil {
					resp = nil
				}
				k.watch.end(term, s.ID, resp, last)
			})
		}
		k.promote()
		k.settle()
		k.removeDead()
	}
}

// noteOutside remembers why this node does not belong to its region, if it does
// not. A node that was removed may never hear of it.
func (k *Keeper) noteOutside() {
	conf := k.servers()
	member := slices.ContainsFunc(conf, func(s raft.Server) bool { return s.ID == raft.ServerID(k.cfg.Self) })
	_, leader := k.cfg.Raft.LeaderWithID()
	led := leader != ""
	if led {
		k.led = time.Now()
	}
	var why error
	switch {
	case len(conf) == 0:
		why = errors.New("this node has no part in its region yet: it waits for the others to answer, or to be added by them")
	case !member:
		why = errors.New("this node was removed from its region: retire it, or add it again")
	case !led && time.Since(k.led) > outsideAfter:
		why = errors.New("this node knows no leader: a majority of the region is away, or it was removed; ask another node for the members")
	default:
		k.outside.Store(nil)
		return
	}
	if k.outside.Swap(&why) == nil {
		k.cfg.Logger.Warn(why.Error())
	}
}

// Outside is why this node has no part in its region; nil if it has.
func (k *Keeper) Outside() error {
	if why := k.outside.Load(); why != nil {
		return *why
	}
	return nil
}

// promote makes a voter of a joining node that has kept up for long enough.
func (k *Keeper) promote() {
	future := k.cfg.Raft.GetConfiguration()
	_, of := k.watch.known()
	for _, s := range future.Configuration().Servers {
		steady := of[s.ID].steady
		if RoleOf(s) != RoleJoining || steady.IsZero() || time.Since(steady) < k.cfg.Promote {
			continue
		}
		if err := k.changed(k.cfg.Raft.AddVoter(s.ID, s.Address, future.Index(), 0)); err != nil {
			k.cfg.Logger.Warn("cannot make a node a voter yet", "node", s.ID, "error", err)
			return
		}
		k.cfg.Logger.Info("a node has kept up and votes from now on", "node", s.ID)
		return // the configuration is another now
	}
}

// removeDead removes one voter that was silent for too long, if that is asked
// for, and enough others answer.
func (k *Keeper) removeDead() {
	limit := k.cfg.RemoveDead
	since, _ := k.watch.known()
	if limit <= 0 || since.IsZero() || time.Since(since) < limit {
		return
	}
	dead := deadVoter(k.List(), k.cfg.Self, limit, time.Now())
	if dead == "" {
		return
	}
	if err := k.remove(dead, false); err != nil {
		k.cfg.Logger.Warn("cannot remove a dead node", "node", dead, "error", err)
		return
	}
	k.cfg.Logger.Warn("removed a node that was silent for too long", "node", dead, "limit", limit)
}

// settle writes down where members are that answer elsewhere than they were
// added: an operator moved them in the configuration.
func (k *Keeper) settle() {
	_, of := k.watch.known()
	for _, s := range k.servers() {
		addr := k.cfg.Moved(s.ID, AddrOf(s))
		if addr == "" || s.ID != raft.ServerID(k.cfg.Self) && time.Since(of[s.ID].heard) >= silentFor {
			continue
		}
		if err := k.move(Peer{string(s.ID), addr}); err != nil {
			k.cfg.Logger.Warn("cannot write down where a node is", "node", s.ID, "addr", addr, "error", err)
		} else {
			k.cfg.Logger.Info("a node is at another address", "node", s.ID, "addr", addr, "before", AddrOf(s))
		}
		return // the configuration is another now
	}
}
