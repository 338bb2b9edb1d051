package homes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

// term is one leadership of this node: everything volatile.
type term struct {
	h      *Homes
	ctx    context.Context //nolint:containedctx // the term's own life
	cancel context.CancelFunc
	group  *errgroup.Group
	began  time.Time
	woken  chan struct{} // the state changed; capacity 1
	due    chan struct{} // more is confirmed than the log says; capacity 1
	met    chan struct{} // a region was heard for the first time; capacity 1

	looking sync.Mutex // taken before mu

	mu     sync.Mutex // guards what follows
	ended  bool
	shards map[controlplane.Shard]*standing
	links  map[string]*link     // by region
	down   map[string]time.Time // since when regions are published as down

	digests digests
}

// standing is how a shard stands here and, as far as was heard, elsewhere.
type standing struct {
	shard     controlplane.Shard
	copy      ownership.Copy
	members   []string // regions of every membership that counts, sorted
	ever      []string // regions that were members at some time, sorted: they too are told who is home
	self      ownership.Member
	role      ownership.Role
	tally     ownership.Tally
	confirmed uint64 // by the tally, at least what the log says
	heard     map[string]heard
	waiters   []waiter
	orphaned  time.Time // since when this former home waits for the next epoch to be opened
	patience  time.Duration
	busy      bool // a candidacy is under way
	wroteAt   time.Time
}

type heard struct {
	at   time.Time
	word Word
}

type waiter struct {
	point controlplane.Point
	done  chan error // capacity 1
}

func newTerm(ctx context.Context, h *Homes) *term {
	t := &term{
		h: h, began: time.Now(), woken: make(chan struct{}, 1), due: make(chan struct{}, 1), met: make(chan struct{}, 1),
		shards: make(map[controlplane.Shard]*standing), links: make(map[string]*link), down: make(map[string]time.Time),
	}
	ctx, t.cancel = context.WithCancel(ctx)
	t.group, t.ctx = errgroup.WithContext(ctx)
	t.look()
	t.group.Go(t.watch)
	t.group.Go(t.confirm)
	t.group.Go(t.mend)
	t.group.Go(t.compare)
	return t
}

// end forgets everything; who waits is told.
func (t *term) end() error {
	t.cancel()
	t.mu.Lock()
	t.ended = true
	for _, s := range t.shards {
		for _, w := range s.waiters {
			w.done <- fmt.Errorf("whether the write is confirmed can be asked again: %w", controlplane.ErrNoLeader)
		}
		s.waiters = nil
	}
	t.mu.Unlock()
	t.h.metrics.forget()
	return t.group.Wait()
}

// background runs f until it returns or the term ends; not after that.
func (t *term) background(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.backgroundLocked(f)
}

func (t *term) backgroundLocked(f func()) {
	if !t.ended {
		t.group.Go(func() error { f(); return nil })
	}
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // woken already
	}
}

func (t *term) kick() { wake(t.woken) }

// watch looks at the state whenever it changed, and at the clock.
func (t *term) watch() error {
	ticker := time.NewTicker(t.h.cfg.Word)
	defer ticker.Stop()
	for {
		select {
		case <-t.woken:
			t.look()
		case <-ticker.C:
			t.look()
			t.tick()
		case <-t.ctx.Done():
			return nil
		}
	}
}

// look takes in what the region's log says by now.
func (t *term) look() {
	t.looking.Lock() // else an older view could overwrite a later one
	defer t.looking.Unlock()
	var infos []registry.ShardInfo
	t.h.cfg.Store.View(func(s *ledger.State) { infos = s.Shards() })
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, info := range infos {
		s := t.shards[info.Shard]
		if s == nil {
			s = &standing{shard: info.Shard, heard: make(map[string]heard)}
			t.shards[info.Shard] = s
		}
		before := s.copy
		s.copy = info.Copy()
		s.self = t.h.self()
		s.role = s.copy.Role(s.self)
		if s.members = membersOf(s.copy); len(s.members) == 0 {
			s.members = info.Members // cluster version 1
		}
		s.ever = everOf(s.copy, s.members)
		for _, m := range s.members {
			if m != t.h.cfg.Region {
				t.linkTo(m)
			}
		}
		if s.copy.Last != before.Last || s.copy.Promised != before.Promised {
			if l := t.links[s.copy.Promised.Region]; l != nil {
				wake(l.news)
			}
		}
		t.settle(s)
	}
}

// self is this region in its present life.
func (h *Homes) self() ownership.Member {
	return ownership.Member{Region: h.cfg.Region, Since: h.cfg.Since()}
}

// everOf lists the regions that were members by any opening that is known.
func everOf(c ownership.Copy, now []string) []string {
	all := slices.Clone(now)
	for _, span := range c.Spans {
		for _, m := range span.Members {
			all = append(all, m.Region)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// membersOf lists the regions of every membership that counts, sorted.
func membersOf(c ownership.Copy) []string {
	all := make(map[string]struct{})
	for _, ms := range c.Memberships() {
		for _, m := range ms {
			all[m.Region] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// settle works out what is confirmed by now and tells who waits for it. mu is held.
func (t *term) settle(s *standing) {
	home := s.role == ownership.Home || s.role == ownership.Opening
	s.confirmed = s.tally.Confirmed(s.self, s.copy)
	if home && s.confirmed > s.copy.Confirmed {
		wake(t.due)
	}
	s.waiters = slices.DeleteFunc(s.waiters, func(w waiter) bool {
		verdict, known := s.verdict(w.point)
		if known {
			w.done <- verdict
		}
		return known
	})
	if !home && s.copy.Last.Epoch.Region == t.h.cfg.Region && s.role != ownership.Outside {
		if s.orphaned.IsZero() {
			s.orphaned, s.patience = time.Now(), jitter(t.h.cfg.Reclaim)
		}
	} else {
		s.orphaned = time.Time{}
	}
}

// verdict says what became of the entry at p; false if that is still open.
func (s *standing) verdict(p controlplane.Point) (error, bool) {
	through := max(s.confirmed, s.copy.Confirmed)
	switch {
	case p.Epoch == s.copy.Promised && s.copy.Last.Epoch == p.Epoch:
		// Its home, here or elsewhere: decided once it is confirmed.
		return nil, p.Seq <= through
	case p.Epoch.Compare(s.copy.Promised) > 0:
		return nil, false // the copy that was looked at is older than the entry
	case s.copy.Holds(p) && p.Seq <= through:
		return nil, true
	}
	return ErrDeposed, true
}

func (t *term) confirmed(ctx context.Context, shard controlplane.Shard, p controlplane.Point) error {
	w := waiter{point: p, done: make(chan error, 1)}
	if err := t.enlist(shard, w); err != nil {
		return err
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		t.dismiss(shard, w)
		return context.Cause(ctx)
	}
}

// enlist has w told what becomes of its entry: at once, if that is known.
func (t *term) enlist(shard controlplane.Shard, w waiter) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.shards[shard]
	if t.ended || s == nil {
		return controlplane.ErrNoLeader
	}
	if verdict, known := s.verdict(w.point); known {
		w.done <- verdict
		return nil
	}
	s.waiters = append(s.waiters, w)
	return nil
}

func (t *term) dismiss(shard controlplane.Shard, w waiter) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.shards[shard]
	s.waiters = slices.DeleteFunc(s.waiters, func(x waiter) bool { return x.done == w.done })
}

// laterLife is how long a region's later life speaks for it after it was heard:
// longer than a node takes to start again, and soon enough that a home is not
// held for isolated once an operator has gone back to the former one.
const laterLife = 5 * time.Second

// hear takes region's words: what it accepted, and whether it still follows.
func (t *term) hear(region string, ws []Word) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, w := range ws {
		s := t.shards[w.Shard]
		if s == nil || !slices.Contains(s.ever, region) {
			continue
		}
		s.tally = s.tally.Hear(ownership.Member{Region: region, Since: w.Since}, w.Last)
		t.settle(s)
		before, known := s.heard[region]
		if w.Since < before.word.Since && now.Sub(before.at) < laterLife {
			continue // peers that a recovery gave up: what they accepted is true, but they are not the region any more
		}
		if !known {
			wake(t.met)
		}
		s.heard[region] = heard{now, w}
		if home := s.role == ownership.Home || s.role == ownership.Opening; home && w.Promised.Compare(s.copy.Promised) > 0 && !s.busy {
			s.busy = true
			t.backgroundLocked(func() { t.giveWay(s, region, w.Promised) })
		}
	}
}

// giveWayAfter is how long a refused home waits for the candidate's own request:
// if it had promised the epoch by then, it would have to refuse it.
const giveWayAfter = 500 * time.Millisecond

// giveWay is what a refused home does: it commits the higher promise, and with
// that stops writing.
func (t *term) giveWay(s *standing, region string, e controlplane.Epoch) {
	defer t.release(s)
	if !retry.Sleep(t.ctx, giveWayAfter) || !t.stillHome(s, e) {
		return
	}
	t.h.log.Warn("homes: a member has promised a later epoch: this home stops writing", "shard", s.shard, "member", region, "epoch", e.String())
	if err := t.seal(t.ctx, s.shard, e); err != nil {
		t.h.log.Warn("homes: the later promise could not be committed; it is tried again", "shard", s.shard, "err", err)
	}
}

// stillHome reports that this region is home under a lower epoch than e.
func (t *term) stillHome(s *standing, e controlplane.Epoch) bool {
	t.look()
	t.mu.Lock()
	defer t.mu.Unlock()
	return (s.role == ownership.Home || s.role == ownership.Opening) && s.copy.Promised.Compare(e) < 0
}

func (t *term) release(s *standing) {
	t.mu.Lock()
	s.busy = false
	t.mu.Unlock()
	t.look()
}

func (t *term) seal(ctx context.Context, shard controlplane.Shard, e controlplane.Epoch) error {
	ctx, cancel := context.WithTimeout(ctx, t.h.cfg.Call)
	defer cancel()
	return t.propose(ctx, &registry.Command{Type: registry.CmdSeal, Seal: &registry.Seal{Shard: shard, Epoch: e}})
}

func (t *term) propose(ctx context.Context, cmd *registry.Command) error {
	out, err := t.h.cfg.Store.ProposeCommand(ctx, cmd)
	if err == nil {
		err = out.Err
	}
	return err
}

// words are what this region says of its shards to a region that is a member
// of them, or was one and asked.
func (t *term) words(region string, asked []Word) []Word {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Word
	for _, s := range t.shards {
		speaks := slices.Contains(s.members, region) || slices.Contains(s.ever, region) &&
			slices.ContainsFunc(asked, func(w Word) bool { return w.Shard == s.shard })
		if speaks && len(out) < maxWords {
			out = append(out, s.word())
		}
	}
	return out
}

func (s *standing) word() Word {
	return Word{Shard: s.shard, Since: s.self.Since, Promised: s.copy.Promised, Last: s.copy.Last}
}

// confirm writes into the log what the tally found confirmed: the opening of
// an epoch at once, the rest now and then.
func (t *term) confirm() error {
	ticker := time.NewTicker(t.h.cfg.Confirm)
	defer ticker.Stop()
	for {
		select {
		case <-t.due:
		case <-ticker.C:
		case <-t.ctx.Done():
			return nil
		}
		for _, c := range t.confirmable() {
			if err := t.propose(t.ctx, &registry.Command{Type: registry.CmdConfirm, Confirm: c}); err != nil && t.ctx.Err() == nil {
				t.h.log.Info("homes: what is confirmed could not be written; it is tried again", "shard", c.Shard, "err", err)
				if !retry.Sleep(t.ctx, t.h.cfg.Confirm) {
					return nil
				}
			}
		}
	}
}

func (t *term) confirmable() (out []*registry.Confirm) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.shards {
		if s.role != ownership.Home && s.role != ownership.Opening || s.confirmed <= s.copy.Confirmed {
			continue
		}
		if s.role == ownership.Opening || now.Sub(s.wroteAt) >= t.h.cfg.Confirm || s.confirmed-s.copy.Confirmed >= confirmEntries {
			s.wroteAt = now
			out = append(out, &registry.Confirm{Shard: s.shard, Epoch: s.copy.Promised, Seq: s.confirmed})
		}
	}
	return out
}

// standingOf returns the shard's standing for reading and changing under mu.
func (t *term) standingOf(shard controlplane.Shard) (*standing, error) {
	if s := t.shards[shard]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("shard %s is not held in region %s: %w", shard, t.h.cfg.Region, ErrNotMember)
}

func (t *term) reach(shard controlplane.Shard) (Reach, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := t.standingOf(shard)
	if err != nil {
		return Reach{}, err
	}
	r := Reach{Shard: shard, Role: s.role.String(), Home: s.copy.Last.Epoch.Region, Promised: s.copy.Promised,
		Last: s.copy.Last, Confirmed: max(s.confirmed, s.copy.Confirmed), Isolated: t.isolated(s, time.Now())}
	for _, m := range s.members {
		mr := MemberReach{Region: m, Heard: s.heard[m].at, Promised: s.heard[m].word.Promised, Last: s.heard[m].word.Last}
		if m == t.h.cfg.Region {
			mr.Heard, mr.Promised, mr.Last = time.Now(), s.copy.Promised, s.copy.Last
		}
		r.Members = append(r.Members, mr)
	}
	return r, nil
}

// isolated is since when no majority answers this home; zero if one does. mu is held.
func (t *term) isolated(s *standing, now time.Time) time.Time {
	if s.role != ownership.Home && s.role != ownership.Opening {
		return time.Time{}
	}
	since := now
	for _, ms := range s.copy.Memberships() {
		if at := t.majorityHeard(s, ms, now); at.Before(since) {
			since = at
		}
	}
	if now.Sub(since) < t.h.cfg.Isolated {
		return time.Time{}
	}
	return since
}

// majorityHeard is when a majority of ms, this region included, had last been
// heard. mu is held.
func (t *term) majorityHeard(s *standing, ms []ownership.Member, now time.Time) time.Time {
	var times []time.Time
	for _, m := range ms {
		at := t.began
		switch h, ok := s.heard[m.Region]; {
		case m.Region == t.h.cfg.Region:
			at = now
		case ok:
			at = h.at
		}
		times = append(times, at)
	}
	slices.SortFunc(times, func(a, b time.Time) int { return b.Compare(a) })
	if n := ownership.Majority(len(ms)); n <= len(times) {
		return times[n-1]
	}
	return t.began
}

// ErrNoVersion says that nothing was done, since the region does not follow the protocol yet.
var ErrNoVersion = errors.New("not all nodes of the regions concerned have been upgraded to a release with ownership: upgrade them first")
