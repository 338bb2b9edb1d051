package quorum

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/wire"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/memnet"
	"ringmain/internal/testkit/synckit"
)

// history is the naive twin: every effective entry that any node applied, by
// sequence, and what each client was told of its writes.
type history struct {
	mu      sync.Mutex
	applied map[uint64]applied
	told    []told
	errs    []string
}

type applied struct {
	point controlplane.Point
	id    string // "" = no effect
	name  string
}

type told struct {
	client   int
	id, name string
	fate     fate
	seq      uint64 // if acknowledged
}

type fate int

const (
	acknowledged fate = iota
	uncertain
	unwritten
)

func (h *history) onApply(out ledger.Outcome, _ controlplane.Epoch) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range out.Effective {
		if e.Shard != testShard {
			continue
		}
		a := applied{point: e.Point()}
		if len(e.Changes) == 1 && e.Changes[0].Op == registry.OpPut {
			a.id, a.name = e.Changes[0].Record.Meta.ID, e.Changes[0].Record.Org.Name
		}
		if old, ok := h.applied[e.Seq]; ok && old != a {
			h.errs = append(h.errs, fmt.Sprintf("entry %d is %v on one node, %v on another", e.Seq, old, a))
		}
		h.applied[e.Seq] = a
	}
}

func (h *history) tell(t told) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = append(h.told, t)
}

// check compares what clients were told with what happened, and with final.
func (h *history) check(final func(id string) string) (acks int, errs []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	errs = h.errs
	at := make(map[string]uint64) // name -> seq; names are unique
	state := make(map[string]string)
	for seq := uint64(1); seq <= uint64(len(h.applied)); seq++ {
		a, ok := h.applied[seq]
		if !ok {
			errs = append(errs, fmt.Sprintf("nobody applied entry %d of %d", seq, len(h.applied)))
			continue
		}
		if a.id == "" {
			continue
		}
		if before, twice := at[a.name]; twice {
			errs = append(errs, fmt.Sprintf("%s was applied at %d and at %d", a.name, before, seq))
		}
		at[a.name], state[a.id] = seq, a.name
	}
	lastOf := make(map[int]uint64)
	for _, w := range h.told {
		seq, written := at[w.name]
		switch {
		case w.fate == acknowledged && (!written || seq != w.seq):
			errs = append(errs, fmt.Sprintf("%s was acknowledged at %d and is at %d (%v)", w.name, w.seq, seq, written))
		case w.fate == unwritten && written:
			errs = append(errs, fmt.Sprintf("%s was reported as not written and is at %d", w.name, seq))
		case w.fate == acknowledged && seq <= lastOf[w.client]:
			errs = append(errs, fmt.Sprintf("%s at %d came after one at %d", w.name, seq, lastOf[w.client]))
		}
		if w.fate == acknowledged {
			acks++
			lastOf[w.client] = seq
		}
	}
	for id, want := range state {
		if got := final(id); got != want {
			errs = append(errs, fmt.Sprintf("%s is %q, want %q", id, got, want))
		}
	}
	return acks, errs
}

// fateOf reads Propose's answer as its documentation says.
func fateOf(err error) fate {
	var refusal *controlplane.RuleError
	switch {
	case err == nil:
		return acknowledged
	case errors.Is(err, controlplane.ErrUncertain):
		return uncertain
	case errors.As(err, &refusal), errors.Is(err, controlplane.ErrNotLeader), errors.Is(err, controlplane.ErrNoLeader),
		errors.Is(err, controlplane.ErrOverloaded), errors.Is(err, context.DeadlineExceeded):
		return unwritten
	default:
		panic(fmt.Sprintf("undocumented answer: %v", err))
	}
}

func TestSchedules(t *testing.T) {
	budget, seeds := 18*time.Second, uint64(300)
	if testing.Short() {
		seeds = 30
	}
	start := time.Now()
	total, ran := 0, uint64(0)
	for ran = 0; ran < seeds && time.Since(start) < budget && !t.Failed(); ran++ {
		dir := diskkit.Fast(t)
		synckit.Test(t, func(t *testing.T) { total += runSchedule(t, dir, ran) })
	}
	t.Logf("%d schedules, %d acknowledged writes, %s", ran, total, time.Since(start).Round(time.Millisecond))
}

func runSchedule(t *testing.T, dir string, seed uint64) int {
	r := seeded(seed)
	h := &history{applied: make(map[uint64]applied)}
	c := newCluster(t, dir, 3)
	c.tune.SegmentBytes = 16 << 10
	c.tune.Commit = 100 * time.Millisecond // an idle follower costs real time
	if r.IntN(2) == 0 {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery = uint64(1+r.IntN(40)), uint64(10+r.IntN(60)), time.Duration(5+r.IntN(2000))*time.Millisecond
	}
	c.adjust = func(cfg *Config) { cfg.OnApply = h.onApply }
	c.startAll()
	c.leader()

	var mu sync.Mutex // guards nodes' q against the nemesis
	pick := func(r *rand.Rand) *Quorum {
		mu.Lock()
		defer mu.Unlock()
		for _, nd := range c.nodes {
			if nd.q != nil && nd.q.IsLeader() && r.IntN(10) > 0 {
				return nd.q
			}
		}
		return c.nodes[r.IntN(3)].q
	}
	until := time.Now().Add(time.Duration(2+r.IntN(4)) * time.Second)
	var clients sync.WaitGroup
	for id := range 4 {
		r := seeded(seed<<8 | uint64(id+1))
		clients.Go(func() {
			for n := 0; time.Now().Before(until); n++ {
				q := pick(r)
				if q == nil {
					time.Sleep(time.Millisecond)
					continue
				}
				w := told{client: id, id: orgID(r.IntN(6)), name: fmt.Sprintf("c%d-%d", id, n)}
				changes := put(w.id, w.name)
				if r.IntN(8) == 0 {
					changes = create(w.id, w.name)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+r.IntN(3000))*time.Millisecond)
				out, err := q.Propose(ctx, testShard, changes)
				cancel()
				w.fate, w.seq = fateOf(err), out.Points[testShard].Seq
				h.tell(w)
				time.Sleep(time.Duration(r.IntN(200)) * time.Millisecond)
			}
		})
	}
	nemesis(c, r, &mu, until)
	clients.Wait()
	for _, nd := range c.nodes {
		for _, other := range c.nodes {
			c.net.Set(nd.addr, other.addr, 0)
		}
		if nd.q == nil {
			c.start(nd)
		}
	}
	time.Sleep(10 * time.Second) // who led when the network healed need not stay
	c.mustPropose(c.leader(), put(orgID(9), "last"))
	last := time.Now()
	c.converged()
	if took := time.Since(last); took > wire.Timeout { // nobody waits for the end of a pause any more
		t.Errorf("seed %d: all were current %s after the last write", seed, took)
	}
	acks, errs := h.check(func(id string) string { return nameOf(c.nodes[0].q, id) })
	c.stopAll()
	for _, e := range errs {
		t.Errorf("seed %d: %s", seed, e)
	}
	return acks
}

// nemesis kills, stops, restarts and separates nodes until the given time.
func nemesis(c *cluster, r *rand.Rand, mu *sync.Mutex, until time.Time) {
	for time.Now().Before(until) {
		time.Sleep(time.Duration(r.IntN(900)) * time.Millisecond)
		nd, other := c.nodes[r.IntN(3)], c.nodes[r.IntN(3)]
		mu.Lock()
		q := nd.q
		mu.Unlock()
		switch r.IntN(6) {
		case 0, 1:
			if q != nil {
				q.trans.Cut()
				nd.cancel()
				<-q.stopped
				mu.Lock()
				nd.q = nil
				mu.Unlock()
			}
		case 2:
			if q != nil {
				if err := q.Close(context.Background()); err != nil {
					c.t.Errorf("close: %v", err)
				}
				nd.cancel()
				mu.Lock()
				nd.q = nil
				mu.Unlock()
			}
		case 3:
			c.net.Set(nd.addr, other.addr, memnet.State(1+r.IntN(2)))
		case 4:
			for _, a := range c.nodes {
				for _, b := range c.nodes {
					c.net.Set(a.addr, b.addr, 0)
				}
			}
		case 5:
			if q != nil && q.IsLeader() {
				for _, b := range c.nodes {
					c.net.Set(nd.addr, b.addr, memnet.State(1+r.IntN(2)))
				}
			}
		}
		if r.IntN(2) == 0 {
			for _, nd := range c.nodes {
				mu.Lock()
				down := nd.q == nil
				if down {
					c.start(nd)
				}
				mu.Unlock()
			}
		}
	}
}
