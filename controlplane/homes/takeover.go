package homes

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/retry"
)

const (
	fresh      = 2500 * time.Millisecond // a member heard within is taken to be there
	lookAgain  = 50 * time.Millisecond
	probeTime  = 700 * time.Millisecond
	grace      = 100 * time.Millisecond // for further reports, once they are enough: each may save records that one region alone has
	rivalMin   = 200 * time.Millisecond
	rivalMax   = 3 * time.Second
	smallLag   = 64 // entries that a move may begin behind the home
	moveWithin = 3 * time.Second
)

// candidacy is one wish to become home of a shard; it may take several epochs.
type candidacy struct {
	t     *term
	s     *standing
	began time.Time
	from  string             // the home that hands over; "" for a takeover
	lost  []string           // as TakeoverOptions
	add   []string           // as TakeoverOptions
	used  controlplane.Epoch // highest epoch it sealed
}

// takeover is Homes.Takeover.
func (t *term) takeover(ctx context.Context, shard controlplane.Shard, opts TakeoverOptions) (res Result, err error) {
	c, err := t.candidate(shard, opts)
	if err != nil {
		return res, err
	}
	defer t.release(c.s)
	c.lost, c.add = opts.Lost, opts.Add
	ctx, cancel := t.during(ctx)
	defer cancel()
	if !opts.Live {
		if err := c.homeIsLost(ctx); err != nil {
			return res, err
		}
	}
	if err := c.parted(ctx); err != nil {
		return res, err
	}
	res, err = c.run(ctx)
	t.h.metrics.tookOver("takeover", err)
	return res, err
}

// move is Homes.Move.
func (t *term) move(ctx context.Context, shard controlplane.Shard) (res Result, err error) {
	c, err := t.candidate(shard, TakeoverOptions{})
	if err != nil {
		return res, err
	}
	defer t.release(c.s)
	ctx, cancel := t.during(ctx)
	defer cancel()
	if err := c.closeBehind(ctx); err != nil {
		return res, err
	}
	ctx, within := context.WithTimeoutCause(ctx, moveWithin, errors.New("the move took too long"))
	defer within()
	c.from = c.home()
	res, err = c.run(ctx)
	if err != nil && !errors.Is(err, ErrRival) {
		err = fmt.Errorf("%w: %w", ErrMoveAborted, err)
	}
	t.h.metrics.tookOver("move", err)
	return res, err
}

// during ends with the caller's context and with the term.
func (t *term) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(t.ctx, func() { cancel(controlplane.ErrNoLeader) })
	return ctx, func() { stop(); cancel(nil) }
}

// candidate claims the shard for one candidacy. Release it afterwards.
func (t *term) candidate(shard controlplane.Shard, opts TakeoverOptions) (*candidacy, error) {
	var version uint64
	t.h.cfg.Store.View(func(s *ledger.State) { version = s.Version() })
	t.look()
	t.mu.Lock()
	defer t.mu.Unlock()
	s, err := t.standingOf(shard)
	switch {
	case err != nil:
		return nil, err
	case version < registry.VersionOwnership:
		return nil, ErrNoVersion
	case s.role == ownership.Outside && !s.formerly():
		return nil, fmt.Errorf("shard %s: %w", shard, ErrNotMember)
	case s.role == ownership.Outside && !slices.Contains(opts.Lost, t.h.cfg.Region):
		return nil, fmt.Errorf("shard %s: %w", shard, ErrFormerLife)
	case s.role == ownership.Home && len(opts.Add) == 0:
		return nil, fmt.Errorf("shard %s: %w", shard, ErrAlreadyHome)
	case s.busy:
		return nil, fmt.Errorf("shard %s: %w", shard, ErrBusy)
	case t.ended:
		return nil, controlplane.ErrNoLeader
	}
	s.busy = true
	return &candidacy{t: t, s: s, began: time.Now()}, nil
}

// formerly reports that a former life of this region is a member.
func (s *standing) formerly() bool {
	return slices.ContainsFunc(s.copy.Members(), func(m ownership.Member) bool { return m.Region == s.self.Region && m != s.self })
}

// home is the region that opened the last epoch this copy holds.
func (c *candidacy) home() string {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	return c.s.copy.Last.Epoch.Region
}

// homeIsLost asks the home, if there is a sign that it lives.
func (c *candidacy) homeIsLost(ctx context.Context) error {
	home := c.home()
	if home == c.t.h.cfg.Region {
		return nil
	}
	c.t.mu.Lock()
	asked := time.Since(c.s.heard[home].at) < fresh || time.Since(c.t.began) < fresh
	c.t.mu.Unlock()
	if asked {
		probe, cancel := context.WithTimeout(ctx, probeTime)
		defer cancel()
		if c.t.say(probe, home) != nil {
			return nil //nolint:nilerr // no answer is the answer
		}
	}
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	if h, ok := c.s.heard[home]; ok && time.Since(h.at) < probeTime && h.word.Promised.Region == home && h.word.Last.Epoch == h.word.Promised {
		return fmt.Errorf("shard %s, home %s: %w", c.s.shard, home, ErrHomeLives)
	}
	return nil
}

// closeBehind waits until this copy is nearly where the home is, so that little
// is left to copy while nobody writes.
func (c *candidacy) closeBehind(ctx context.Context) error {
	for {
		home := c.home()
		if err := c.t.say(ctx, home); err != nil {
			return fmt.Errorf("shard %s: its home %s must hand it over: %w", c.s.shard, home, err)
		}
		c.t.look()
		c.t.mu.Lock()
		w, role, at := c.s.heard[home].word, c.s.role, c.s.copy.Last
		c.t.mu.Unlock()
		switch {
		case role == ownership.Follower && w.Promised == at.Epoch && w.Last.Epoch == at.Epoch && w.Last.Seq <= at.Seq+smallLag:
			return nil
		case !retry.Sleep(ctx, lookAgain):
			return fmt.Errorf("shard %s: this region, at %s.%d, is not close behind its home, at %s.%d: %w",
				c.s.shard, at.Epoch, at.Seq, w.Last.Epoch, w.Last.Seq, context.Cause(ctx))
		}
	}
}

// run seals one epoch after the other until one is opened or a rival's is.
func (c *candidacy) run(ctx context.Context) (Result, error) {
	for window := rivalMin; ; window = min(2*window, rivalMax) {
		if err := c.enoughAnswer(ctx); err != nil {
			return Result{}, err
		}
		res, err := c.campaign(ctx)
		var misfit *ledger.StructureError
		var refused *refusedError
		switch {
		case err == nil:
			c.t.h.log.Warn("homes: this region is home of a shard now", "shard", res.Shard, "epoch", res.Epoch.String(),
				"base", fmt.Sprintf("%s.%d", res.Base.Epoch, res.Base.Seq), "from", res.From, "entries", res.Copied, "lossless", res.Lossless, "after", res.Confirmed)
			return res, nil
		case c.from != "", !errors.As(err, &misfit) && !errors.As(err, &refused) && !errors.Is(err, ErrDeposed):
			return res, err
		}
		c.t.h.log.Info("homes: a candidacy was refused; it is tried again above", "shard", c.s.shard, "epoch", c.used.String(), "err", err)
		if !retry.Sleep(ctx, window/2+rand.N(window)) { //nolint:gosec // parts rivals, guards nothing
			return res, fmt.Errorf("shard %s: %w", c.s.shard, tooFew(ctx))
		}
		if rival := c.rival(); rival != "" {
			return res, fmt.Errorf("shard %s, home %s: %w", c.s.shard, rival, ErrRival)
		}
	}
}

// rival is the region that opened an epoch above those sealed here; "" if none
// is known to have.
func (c *candidacy) rival() string {
	c.t.look()
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	best := c.s.copy.Last.Epoch
	for _, h := range c.s.heard {
		if e := h.word.Last.Epoch; e.Compare(best) > 0 {
			best = e
		}
	}
	if best.Compare(c.used) > 0 && best.Region != c.t.h.cfg.Region {
		return best.Region
	}
	return ""
}

// enoughAnswer waits until those whose reports are needed can be heard. Nobody
// seals before: a seal that leads to nothing would stop the home there may be.
func (c *candidacy) enoughAnswer(ctx context.Context) error {
	for {
		silent := c.silent()
		if len(silent) == 0 {
			return nil
		}
		if !retry.Sleep(ctx, lookAgain) {
			return fmt.Errorf("shard %s: nothing was done: no word from %s: %w", c.s.shard, strings.Join(silent, ", "), tooFew(ctx))
		}
	}
}

// silent lists members of whom one or more have to be heard first.
func (c *candidacy) silent() []string {
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	var all []string
	note := func(region string) {
		if !slices.Contains(all, region) {
			all = append(all, region)
		}
	}
	quiet := func(m ownership.Member) bool {
		h := c.s.heard[m.Region] // a later life would report as no member
		return m.Region != c.t.h.cfg.Region && (time.Since(h.at) >= fresh || h.word.Since != m.Since)
	}
	for _, ms := range c.s.copy.Memberships() {
		needed := ms
		if len(c.lost) > 0 {
			needed = slices.DeleteFunc(slices.Clone(ms), func(m ownership.Member) bool { return slices.Contains(c.lost, m.Region) })
		}
		var missing []ownership.Member
		for _, m := range needed {
			if quiet(m) {
				missing = append(missing, m)
			}
		}
		if len(c.lost) == 0 && len(ms)-len(missing) >= ownership.Majority(len(ms)) {
			continue
		}
		for _, m := range missing {
			note(m.Region)
		}
	}
	return all
}

// campaign tries one epoch.
func (c *candidacy) campaign(ctx context.Context) (Result, error) {
	camp, err := c.sealOwn(ctx)
	if err != nil {
		return Result{}, err
	}
	plan, camp, err := c.gather(ctx, camp)
	res := Result{Shard: c.s.shard, Epoch: camp.Epoch, Base: plan.Base, Lossless: plan.Lossless, Sealed: time.Since(c.began)}
	switch {
	case err != nil:
		return res, err
	case plan.Move == ownership.GiveUp:
		return res, fmt.Errorf("shard %s: epoch %s is given up: this region is no member by the highest copy, or the former home could not hand over", c.s.shard, camp.Epoch)
	}
	take := &registry.Take{Shard: c.s.shard, Epoch: camp.Epoch, Base: plan.Base, Known: plan.Known, Members: plan.Members, Forced: plan.Forced}
	if plan.From != camp.Self {
		i := slices.IndexFunc(camp.Reports, func(r ownership.Report) bool { return r.From == plan.From })
		reported := camp.Reports[i].Copy
		res.From = plan.From.Region
		if err := c.copyTail(ctx, plan.From.Region, reported, take); err != nil {
			return res, err
		}
	}
	res.Copied = len(take.Entries)
	if err := c.t.propose(ctx, &registry.Command{Type: registry.CmdTake, Take: take}); err != nil {
		return res, err
	}
	res.Opened = time.Since(c.began)
	c.t.look()
	opened := controlplane.Point{Epoch: camp.Epoch, Seq: plan.Base.Seq + 1}
	if !plan.Forced {
		if err := c.t.confirmed(ctx, c.s.shard, opened); err != nil {
			return res, fmt.Errorf("shard %s: epoch %s is open, and takes writes once a majority of the members has it: %w", c.s.shard, camp.Epoch, err)
		}
		if err := c.writable(ctx); err != nil {
			return res, err
		}
	}
	res.Confirmed = time.Since(c.began)
	return res, nil
}

// sealOwn commits this region's own seal of a new epoch, above all it heard of.
// Nobody was asked before that, so no epoch is ever used twice.
func (c *candidacy) sealOwn(ctx context.Context) (ownership.Campaign, error) {
	c.t.mu.Lock()
	counter := max(c.s.copy.Promised.Counter, c.used.Counter)
	for _, h := range c.s.heard {
		counter = max(counter, h.word.Promised.Counter)
	}
	self := c.s.self
	added, err := c.added()
	lost := slices.DeleteFunc(slices.Concat(c.s.copy.Memberships()...), func(m ownership.Member) bool { return m == self || !slices.Contains(c.lost, m.Region) })
	if c.s.role == ownership.Outside {
		added = append(added, self) // in the place of its former life
	}
	c.t.mu.Unlock()
	if err != nil {
		return ownership.Campaign{}, err
	}
	camp := ownership.Campaign{Self: self, Epoch: self.Above(counter),
		From: c.from, Add: added, Remove: lost, Force: len(lost) > 0}
	c.used = camp.Epoch
	if err := c.t.seal(ctx, c.s.shard, camp.Epoch); err != nil {
		return camp, err
	}
	c.t.look()
	c.t.mu.Lock()
	defer c.t.mu.Unlock()
	return camp.Hear(ownership.Report{From: self, Copy: c.s.copy}), nil
}

// added are the regions to be added, in the lives that they speak of. mu is held.
func (c *candidacy) added() (out []ownership.Member, err error) {
	for _, region := range c.add {
		h, ok := c.s.heard[region]
		if !ok || time.Since(h.at) >= fresh {
			return nil, fmt.Errorf("shard %s: region %s is not heard from, and cannot be added: start it first, and have it reach this one", c.s.shard, region)
		}
		out = append(out, ownership.Member{Region: region, Since: h.word.Since})
	}
	return out, nil
}

// gather asks the members to seal until the reports are enough.
func (c *candidacy) gather(ctx context.Context, camp ownership.Campaign) (ownership.Plan, ownership.Campaign, error) {
	type answer struct {
		report ownership.Report
		err    error
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answers := make(chan answer)
	asked := map[string]bool{camp.Self.Region: true}
	waiting := 0
	ask := func(region string) {
		if asked[region] || slices.Contains(c.lost, region) {
			return
		}
		asked[region] = true
		waiting++
		c.t.background(func() {
			r, err := c.t.askSeal(ctx, region, c.s.shard, camp.Epoch)
			select {
			case answers <- answer{r, err}:
			case <-ctx.Done():
			}
		})
	}
	c.t.mu.Lock()
	regions := c.s.members
	c.t.mu.Unlock()
	for _, region := range regions {
		ask(region)
	}
	var patience <-chan time.Time
	for {
		plan := camp.Next()
		for _, m := range plan.Missing {
			ask(m.Region)
		}
		if plan.Move != ownership.Wait && patience == nil {
			patience = time.After(grace)
		}
		if plan.Move != ownership.Wait && (waiting == 0 || c.from != "") {
			return plan, camp, nil
		}
		select {
		case a := <-answers:
			waiting--
			if a.err != nil {
				return plan, camp, a.err
			}
			camp = camp.Hear(a.report)
		case <-patience:
			return plan, camp, nil
		case <-ctx.Done():
			return plan, camp, fmt.Errorf("shard %s: epoch %s waits for %s: %w", c.s.shard, camp.Epoch, regionsOf(plan.Missing), tooFew(ctx))
		}
	}
}

// tooFew is why a candidacy ends whose time is over. One that ends because this
// node stopped leading is abandoned.
func tooFew(ctx context.Context) error {
	cause := context.Cause(ctx)
	if errors.Is(cause, controlplane.ErrNoLeader) {
		return cause
	}
	return fmt.Errorf("%w: %w", ErrNoMajority, cause)
}

func regionsOf(ms []ownership.Member) string {
	names := make([]string, 0, len(ms))
	for _, m := range ms {
		names = append(names, m.Region)
	}
	return strings.Join(names, ", ")
}

// askSeal has region commit the seal and report.
func (t *term) askSeal(ctx context.Context, region string, shard controlplane.Shard, e controlplane.Epoch) (ownership.Report, error) {
	var r report
	err := t.h.client.ask(ctx, region, pathSeal, &sealRequest{Cluster: t.h.cfg.Cluster, Shard: shard, Epoch: e}, &r)
	return ownership.Report{From: ownership.Member{Region: region, Since: r.Since}, Copy: r.copy()}, err
}

// writable waits until the log says that the epoch is confirmed.
func (c *candidacy) writable(ctx context.Context) error {
	for {
		c.t.look()
		c.t.mu.Lock()
		role := c.s.role
		c.t.mu.Unlock()
		switch {
		case role == ownership.Home:
			return nil
		case role != ownership.Opening:
			return fmt.Errorf("shard %s: %w", c.s.shard, ErrRival)
		case !retry.Sleep(ctx, 2*time.Millisecond):
			return context.Cause(ctx)
		}
	}
}
