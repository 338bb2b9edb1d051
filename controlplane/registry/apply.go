package registry

import (
	"errors"
	"fmt"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// NextAfter returns the entry that a home proposes after the point after, with
// the given changes. It checks nothing. A proposer with entries in flight
// passes the point of the last of them.
func NextAfter(shard controlplane.Shard, after controlplane.Point, changes []Change) *Entry {
	e := &Entry{Shard: shard, Epoch: after.Epoch, Seq: after.Seq + 1, Prev: after.Epoch, Changes: changes}
	if e.opens() {
		e.Epoch = controlplane.Epoch{Counter: after.Epoch.Counter + 1, Region: changes[0].Home}
	}
	return e
}

// Next returns the entry that the shard's home proposes next. Changes that
// begin with OpOpen start a new epoch, above every epoch promised. The rules
// are not checked: that is Check. The error is ErrNotHome if the home that s
// knows of has not opened its epoch here, so that nobody may propose.
func (s *State) Next(shard controlplane.Shard, changes []Change) (*Entry, error) {
	info := s.orNew(shard).info
	e := NextAfter(shard, info.Last, changes)
	if e.opens() {
		e.Epoch.Counter = info.Epoch.Counter + 1
		return e, nil
	}
	if info.Last.Epoch != info.Epoch || info.Epoch == (controlplane.Epoch{}) {
		return nil, &StructureError{Shard: shard, Promised: info.Epoch, Last: info.Last,
			Reason: "its home has not opened it here", cause: controlplane.ErrNotHome}
	}
	return e, nil
}

// opens reports an entry that starts an epoch.
func (e *Entry) opens() bool { return len(e.Changes) > 0 && e.Changes[0].Op == OpOpen }

// Apply changes s as cmd asks. It is deterministic: it depends on s and cmd
// alone. A command takes effect as a whole, or the Outcome's Err is a
// *StructureError (or controlplane.ErrUnknownEntry) and s is as it was, except
// that a staged snapshot which cannot be adopted is dropped.
func (s *State) Apply(cmd *Command) Outcome {
	if err := cmd.wellFormed(); err != nil {
		return Outcome{Err: err}
	}
	if cmd.Type == CmdVersion {
		return s.applyVersion(cmd.Version)
	}
	if need := uint64(cmd.version()); need > s.Version() {
		return Outcome{Err: &StructureError{Reason: fmt.Sprintf("the command needs cluster version %d, and the region is at %d", need, s.Version())}}
	}
	switch cmd.Type {
	case CmdStage:
		return s.applyStage(cmd.Stage)
	case CmdAdopt:
		return s.applyAdopt(cmd.Sender, cmd.Adopt, cmd.Confirmed)
	case CmdSeal:
		return s.applySeal(cmd.Seal)
	case CmdTake:
		return s.applyTake(cmd.Take)
	case CmdConfirm:
		return s.applyConfirm(cmd.Confirm)
	case CmdResolve:
		return s.applyResolve(cmd.Resolve)
	default:
		return s.applyEntries(cmd)
	}
}

func (s *State) applyEntries(cmd *Command) Outcome {
	out := Outcome{Points: make(map[controlplane.Shard]controlplane.Point, 1)}
	next := s.Clone()
	for i, b := range cmd.Entries {
		e, err := DecodeEntry(b)
		if err != nil {
			return Outcome{Err: err}
		}
		h := &Held{Entry: e, bytes: uint64(len(b))}
		if len(cmd.Levels) > 0 {
			h.Level = cmd.Levels[i]
		}
		switch alone := len(cmd.Entries) == 1; {
		case cmd.Type == CmdEntry && s.Version() < 2:
			err = next.proposeFirst(h, &out, alone)
		case cmd.Type == CmdEntry:
			err = next.propose(h, &out, alone)
		case s.Version() < 2:
			err = next.acceptFirst(h, &out, cmd.Sender)
		default:
			err = next.accept(h, &out, cmd.Sender, cmd.Confirmed)
		}
		if err != nil {
			return Outcome{Err: err}
		}
	}
	*s = *next
	return out
}

// propose applies an entry of this region, the home: its rules are checked
// again, because entries that were in flight when it was proposed may have
// changed the answer. A refused entry keeps its place in the history and has no
// effect there; but one that opens an epoch either takes effect or never was.
func (s *State) propose(h *Held, out *Outcome, alone bool) error {
	e := h.Entry
	sh := s.orNew(e.Shard)
	info := &sh.info
	switch opens := e.opens(); {
	case opens && !alone:
		return sh.misfit(nil, "an entry that opens an epoch must be the only one of its command")
	case opens && !sh.opensAlone(e):
		return sh.misfit(controlplane.ErrNotHome, "epoch %s cannot be opened above %s without a word of the other members", e.Epoch, info.Epoch)
	case !opens && e.Epoch == info.Last.Epoch && e.Epoch != info.Epoch:
		return sh.misfit(controlplane.ErrNoHome, "epoch %s is sealed for %s", e.Epoch, info.Epoch)
	case !opens && (e.Epoch != info.Epoch || e.Epoch != info.Last.Epoch):
		return sh.misfit(controlplane.ErrNotHome, "epoch %s is not the open one", e.Epoch)
	case e.Seq != info.Last.Seq+1 || e.Prev != info.Last.Epoch:
		return sh.misfit(nil, "entry %d after epoch %s does not follow", e.Seq, e.Prev)
	}
	step, err := info.Copy().Accept(e.Epoch, e.Header())
	if err != nil {
		return sh.refused(err)
	}
	tx, refusal := s.try(sh, h, true)
	if refusal != nil {
		if e.opens() {
			return refusal
		}
		if out.Err == nil {
			out.Err = refusal
		}
		e.Changes, h.before = nil, nil
		same := *sh
		tx = &same
	}
	s.commit(tx, h, step.Copy, out, refusal)
	return nil
}

// opensAlone reports whether the region that the entry's epoch names may open
// it without asking anybody: it founds the shard, or is a majority by itself.
func (sh *shard) opensAlone(e *Entry) bool {
	c := sh.info.Copy()
	if e.Epoch.Region != e.Changes[0].Home || e.Epoch.Compare(c.Promised) <= 0 {
		return false
	}
	if c.Promised == (controlplane.Epoch{}) {
		return true
	}
	i := slices.IndexFunc(c.Members(), func(m ownership.Member) bool { return m.Region == e.Epoch.Region })
	sealed, err := c.Seal(e.Epoch)
	if i < 0 || err != nil {
		return false
	}
	self := c.Members()[i]
	campaign := ownership.Campaign{Self: self, Epoch: e.Epoch, Reports: []ownership.Report{{From: self, Copy: sealed}}}
	return campaign.Next().Move == ownership.Take
}

// accept applies an entry that another home sent, if it continues this copy's
// history. What is in its place or after it, and not confirmed, is cut.
func (s *State) accept(h *Held, out *Outcome, sender controlplane.Epoch, confirmed uint64) error {
	e := h.Entry
	sh := s.orNew(e.Shard)
	step, err := sh.info.Copy().Accept(sender, e.Header())
	if err != nil {
		return sh.refused(err)
	}
	if e.opens() && e.Epoch.Region != e.Changes[0].Home {
		return sh.misfit(nil, "epoch %s opened for %s", e.Epoch, e.Changes[0].Home)
	}
	tx := *sh
	if step.Cut > 0 {
		if step.Cut <= tx.base() {
			return sh.beyondTail(step.Cut)
		}
		tx.cut(step.Cut, sender, out)
	}
	if step.Append {
		applied, refusal := s.try(&tx, h, false)
		if refusal != nil {
			return sh.misfit(nil, "entry %d: %v", e.Seq, refusal)
		}
		tx = *applied
		s.commit(&tx, h, step.Copy, out, nil)
	} else {
		tx.info.follow(step.Copy)
	}
	out.Points[e.Shard] = tx.info.Last
	// What the home holds confirmed, this copy knows of as far as they agree.
	if c, news := tx.confirmThrough(min(confirmed, e.Seq)); news {
		tx.info.follow(c)
	}
	tx.settle()
	s.set(&tx)
	if now := tx.report(); now != sh.report() || step.Append {
		out.report(now)
	}
	return nil
}

// confirmThrough takes the entry at seq, which the home holds too, as confirmed.
func (sh *shard) confirmThrough(seq uint64) (ownership.Copy, bool) {
	c := sh.info.Copy()
	epoch, exact := c.EpochAt(seq)
	if !exact {
		return c, false
	}
	return c.Confirm(controlplane.Point{Epoch: epoch, Seq: seq})
}

// commit makes tx, to which the entry of h was applied, the shard, with the
// place in the world that the rules of ownership gave it.
func (s *State) commit(tx *shard, h *Held, c ownership.Copy, out *Outcome, refusal *controlplane.RuleError) {
	tx.info.follow(c)
	tx.hold(h)
	tx.release(h.Entry.Point())
	tx.settle()
	s.set(tx)
	out.took(h.Entry, refusal)
	out.report(tx.report())
}

// took notes that the entry was applied.
func (o *Outcome) took(e *Entry, refusal *controlplane.RuleError) {
	o.Points[e.Shard] = e.Point()
	o.Effective = append(o.Effective, e)
	o.Refused = append(o.Refused, refusal)
	o.touch(e)
}

// report notes where a shard stands; the last word about it counts.
func (o *Outcome) report(r Report) {
	for i := range o.Reports {
		if o.Reports[i].Shard == r.Shard {
			o.Reports[i] = r
			return
		}
	}
	o.Reports = append(o.Reports, r)
}

func (sh *shard) report() Report {
	i := &sh.info
	return Report{Shard: i.Shard, Promised: i.Epoch, Last: i.Last, Confirmed: i.Confirmed}
}

// try makes the changes of h's entry, in order, on a copy of sh, and returns
// the copy. Each is checked before it is made: its structure always, the home's
// rules if rules is set. What was stored replaces the entry's changes.
func (s *State) try(sh *shard, h *Held, rules bool) (*shard, *controlplane.RuleError) {
	tx, e := *sh, h.Entry
	h.before = make([]*Record, len(e.Changes))
	for i := range e.Changes {
		c := &e.Changes[i]
		err := c.wellFormed(e.Shard, i)
		if err == nil && rules {
			err = (&checker{state: s, shard: &tx}).change(c)
		}
		if err != nil {
			return nil, inChange(err, i, len(e.Changes))
		}
		*c, h.before[i] = tx.apply(*c, e.Epoch, e.Seq, s.Version())
	}
	return &tx, nil
}

func inChange(err *controlplane.RuleError, i, n int) *controlplane.RuleError {
	if n == 1 {
		return err
	}
	field := fmt.Sprintf("changes[%d]", i)
	if err.Field != "" {
		field += "." + err.Field
	}
	return &controlplane.RuleError{Code: err.Code, Field: field, Message: err.Message}
}

func (sh *shard) misfit(cause error, format string, args ...any) *StructureError {
	return &StructureError{Shard: sh.info.Shard, Promised: sh.info.Epoch, Last: sh.info.Last,
		Reason: fmt.Sprintf(format, args...), cause: cause}
}

// refused is a refusal by the rules of ownership.
func (sh *shard) refused(err error) *StructureError {
	e := sh.misfit(err, "%v", err)
	var r *ownership.Refused
	if errors.As(err, &r) {
		e.Have = r.Have
	}
	return e
}

// beyondTail refuses to cut what cannot be undone here.
func (sh *shard) beyondTail(seq uint64) *StructureError {
	e := sh.misfit(nil, "entry %d cannot be undone here any more: send a snapshot", seq)
	e.Snapshot = true
	return e
}
