package ledger

import (
	"errors"
	"fmt"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
	"ringmain/controlplane/registry/rules"
)

// Next returns the entry that the shard's home proposes next. Changes that
// begin with OpOpen start a new epoch, above every epoch promised. The rules
// are not checked: that is Check. The error is ErrNotHome if the home that s
// knows of has not opened its epoch here, so that nobody may propose.
func (s *State) Next(shard controlplane.Shard, changes []registry.Change) (*registry.Entry, error) {
	sh := s.orNew(shard)
	info := &sh.info
	e := registry.NextAfter(shard, info.Last, changes)
	if e.Opens() {
		e.Epoch.Counter = info.Epoch.Counter + 1
		return e, nil
	}
	if info.Last.Epoch != info.Epoch || info.Epoch == (controlplane.Epoch{}) {
		return nil, sh.misfit(controlplane.ErrNotHome, "its home has not opened it here")
	}
	return e, nil
}

// Check applies the home's rules to the changes, in order: each may refer to
// what those before it made. It returns nil or a *controlplane.RuleError, whose
// Field is the path inside the record, after "changes[i]." if there are several.
func (s *State) Check(name controlplane.Shard, changes []registry.Change) error {
	switch n := len(changes); {
	case n == 0:
		return controlplane.Refuse(controlplane.RuleInvalid, "changes", "is empty: send at least one change")
	case n > registry.MaxChanges:
		return controlplane.Refuse(controlplane.RuleInvalid, "changes", "holds %d changes: send at most %d at once", n, registry.MaxChanges)
	}
	sh := s.orNew(name)
	if !sh.known() && changes[0].Op != registry.OpOpen {
		return controlplane.Refuse(controlplane.RuleNotFound, "shard", "shard %q does not exist", name)
	}
	if _, err := s.try(sh, &Held{Entry: registry.NextAfter(name, sh.info.Last, slices.Clone(changes))}, true); err != nil {
		return err
	}
	return nil
}

// Apply changes s as cmd asks. It is deterministic: it depends on s and cmd
// alone. A command takes effect as a whole, or the Outcome's Err is a
// *StructureError (or controlplane.ErrUnknownEntry) and s is as it was, except
// that a staged snapshot which cannot be adopted is dropped.
func (s *State) Apply(cmd *registry.Command) Outcome {
	if err := cmd.WellFormed(); err != nil {
		return Outcome{Err: err}
	}
	if cmd.Type == registry.CmdVersion {
		return s.applyVersion(cmd.Version)
	}
	if need := cmd.Needs(); need > s.Version() {
		return Outcome{Err: &StructureError{Reason: fmt.Sprintf("the command needs cluster version %d, and the region is at %d", need, s.Version())}}
	}
	switch cmd.Type {
	case registry.CmdStage:
		return s.applyStage(cmd.Stage)
	case registry.CmdAdopt:
		return s.applyAdopt(cmd.Sender, cmd.Adopt, cmd.Confirmed)
	case registry.CmdSeal:
		return s.applySeal(cmd.Seal)
	case registry.CmdTake:
		return s.applyTake(cmd.Take)
	case registry.CmdConfirm:
		return s.applyConfirm(cmd.Confirm)
	case registry.CmdResolve:
		return s.applyResolve(cmd.Resolve)
	default:
		return s.applyEntries(cmd)
	}
}

func (s *State) applyEntries(cmd *registry.Command) Outcome {
	out := Outcome{Points: make(map[controlplane.Shard]controlplane.Point, 1)}
	next := s.Clone()
	for i, b := range cmd.Entries {
		e, err := registry.DecodeEntry(b)
		if err != nil {
			return Outcome{Err: err}
		}
		h := &Held{Entry: e, bytes: uint64(len(b))}
		if len(cmd.Levels) > 0 {
			h.Level = cmd.Levels[i]
		}
		switch alone := len(cmd.Entries) == 1; {
		case cmd.Type == registry.CmdEntry && s.Version() < 2:
			err = next.proposeFirst(h, &out, alone)
		case cmd.Type == registry.CmdEntry:
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
	switch opens := e.Opens(); {
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
	tx, refusal, err := s.tryOwn(sh, h, out)
	if err != nil {
		return err
	}
	s.commit(tx, h, step.Copy, out, refusal)
	return nil
}

// tryOwn tries an entry of this region. One that its rules refuse has no
// effect, or, if it opens an epoch, is an error.
func (s *State) tryOwn(sh *shard, h *Held, out *Outcome) (tx *shard, refusal *controlplane.RuleError, err error) {
	tx, refusal = s.try(sh, h, true)
	switch {
	case refusal == nil:
		return tx, nil, nil
	case h.Entry.Opens():
		return nil, nil, refusal
	case out.Err == nil:
		out.Err = refusal
	}
	h.Entry.Changes, h.before = nil, nil
	same := *sh
	return &same, refusal, nil
}

// opensAlone reports whether the region that the entry's epoch names may open
// it without asking anybody: it founds the shard, or is a majority by itself.
func (sh *shard) opensAlone(e *registry.Entry) bool {
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
	if e.Opens() && e.Epoch.Region != e.Changes[0].Home {
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
		tx.info.Follow(step.Copy)
	}
	out.Points[e.Shard] = tx.info.Last
	// What the home holds confirmed, this copy knows of as far as they agree.
	if c, news := tx.confirmThrough(min(confirmed, e.Seq)); news {
		tx.info.Follow(c)
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
	tx.info.Follow(c)
	tx.hold(h)
	tx.release(h.Entry.Point())
	tx.settle()
	s.set(tx)
	out.took(h.Entry, refusal)
	out.report(tx.report())
}

// took notes that the entry was applied.
func (o *Outcome) took(e *registry.Entry, refusal *controlplane.RuleError) {
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
// rules if this is the home. What was stored replaces the entry's changes.
func (s *State) try(sh *shard, h *Held, home bool) (*shard, *controlplane.RuleError) {
	tx, e := *sh, h.Entry
	h.before = make([]*registry.Record, len(e.Changes))
	check := s.checker(&tx.content)
	for i := range e.Changes {
		c := &e.Changes[i]
		err := c.WellFormed(e.Shard, i)
		if err == nil && home {
			err = check.Check(c)
		}
		if err != nil {
			return nil, inChange(err, i, len(e.Changes))
		}
		*c, h.before[i] = tx.apply(*c, e.Epoch, e.Seq, s.Version())
	}
	return &tx, nil
}

// checker holds the home's rules against changes of what sh holds.
func (s *State) checker(sh *content.Shard) *rules.Checker {
	k := &rules.Checker{Version: s.Version(), Shard: sh, Global: sh, Held: s.held}
	if sh.Name() != controlplane.ShardGlobal {
		k.Global = &s.orNew(controlplane.ShardGlobal).content
	}
	return k
}

// held yields the shards' content, and who are their members.
func (s *State) held(yield func(*content.Shard, []string) bool) {
	for _, sh := range s.shards {
		if !yield(&sh.content, sh.info.Members) {
			return
		}
	}
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
