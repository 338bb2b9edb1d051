package registry

import (
	"fmt"

	"ringmain/controlplane"
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
	switch cmd.Type {
	case CmdStage:
		return s.applyStage(cmd.Stage)
	case CmdAdopt:
		return s.applyAdopt(cmd.Sender, cmd.Adopt)
	default:
		return s.applyEntries(cmd)
	}
}

func (s *State) applyEntries(cmd *Command) Outcome {
	out := Outcome{Points: make(map[controlplane.Shard]controlplane.Point, 1)}
	next := s.Clone()
	for _, b := range cmd.Entries {
		e, err := DecodeEntry(b)
		if err != nil {
			return Outcome{Err: err}
		}
		if cmd.Type == CmdEntry {
			err = next.propose(e, &out, len(cmd.Entries) == 1)
		} else {
			err = next.accept(e, &out, cmd.Sender)
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
func (s *State) propose(e *Entry, out *Outcome, alone bool) error {
	sh := s.orNew(e.Shard)
	switch opens := e.opens(); {
	case opens && !alone:
		return sh.misfit(nil, "an entry that opens an epoch must be the only one of its command")
	case opens && (e.Epoch.Compare(sh.info.Epoch) <= 0 || e.Epoch.Region != e.Changes[0].Home):
		return sh.misfit(controlplane.ErrNotHome, "epoch %s cannot be opened above %s", e.Epoch, sh.info.Epoch)
	case !opens && (e.Epoch != sh.info.Epoch || e.Epoch != sh.info.Last.Epoch || !sh.known()):
		return sh.misfit(controlplane.ErrNotHome, "epoch %s is not the open one", e.Epoch)
	case e.Seq != sh.info.Last.Seq+1 || e.Prev != sh.info.Last.Epoch:
		return sh.misfit(nil, "entry %d after epoch %s does not follow", e.Seq, e.Prev)
	}
	tx, touched, refusal := s.try(sh, e, true)
	if refusal != nil {
		if e.opens() {
			return refusal
		}
		if out.Err == nil {
			out.Err = refusal
		}
		e.Changes = nil
		same := *sh
		tx, touched = &same, nil
	}
	s.commit(tx, e, out, touched, refusal)
	return nil
}

// accept applies an entry of another home if it continues this copy's history.
func (s *State) accept(e *Entry, out *Outcome, sender controlplane.Epoch) error {
	sh := s.orNew(e.Shard)
	switch info := &sh.info; {
	case sender.Compare(info.Epoch) < 0:
		return sh.misfit(controlplane.ErrNotHome, "sender %s was deposed by %s", sender, info.Epoch)
	case e.Epoch.Compare(sender) > 0:
		return sh.misfit(nil, "entry of epoch %s from sender %s", e.Epoch, sender)
	case e.Seq == 0 || e.Epoch == controlplane.Epoch{}:
		return sh.misfit(nil, "sequences start at 1, and epochs above zero")
	case e.Seq <= info.Last.Seq:
		if epoch, exact := sh.epochAt(e.Seq); exact && e.Epoch != epoch || e.Epoch.Compare(epoch) > 0 {
			return sh.misfit(nil, "entry %d is of epoch %s here, not %s", e.Seq, epoch, e.Epoch)
		}
		tx := *sh
		tx.info.Epoch = sender
		s.set(&tx)
		out.Points[e.Shard] = tx.info.Last
		return nil
	case e.Seq != info.Last.Seq+1 || e.Prev != info.Last.Epoch:
		return sh.misfit(nil, "entry %d after epoch %s does not follow", e.Seq, e.Prev)
	case e.opens() != (e.Epoch != e.Prev) || e.Epoch.Compare(e.Prev) < 0:
		return sh.misfit(nil, "entry %d of epoch %s after %s: an epoch begins with its opening", e.Seq, e.Epoch, e.Prev)
	case e.opens() && e.Epoch.Region != e.Changes[0].Home:
		return sh.misfit(nil, "epoch %s opened for %s", e.Epoch, e.Changes[0].Home)
	}
	tx, touched, refusal := s.try(sh, e, false)
	if refusal != nil {
		return sh.misfit(nil, "entry %d: %v", e.Seq, refusal)
	}
	tx.info.Epoch = sender
	s.commit(tx, e, out, touched, nil)
	return nil
}

func (s *State) commit(tx *shard, e *Entry, out *Outcome, touched []Ref, refusal *controlplane.RuleError) {
	tx.info.Last = e.Point()
	s.set(tx)
	out.Points[e.Shard] = e.Point()
	out.Effective = append(out.Effective, e)
	out.Refused = append(out.Refused, refusal)
	out.Touched = append(out.Touched, touched...)
}

// try makes e's changes, in order, on a copy of sh, and returns the copy. Each
// is checked before it is made: its structure always, the home's rules if rules
// is set. What was stored replaces e's changes.
func (s *State) try(sh *shard, e *Entry, rules bool) (*shard, []Ref, *controlplane.RuleError) {
	tx := *sh
	touched := make([]Ref, 0, len(e.Changes))
	for i := range e.Changes {
		c := &e.Changes[i]
		err := c.wellFormed(e.Shard, i)
		if err == nil && rules {
			err = (&checker{state: s, shard: &tx}).change(c)
		}
		if err != nil {
			return nil, nil, inChange(err, i, len(e.Changes))
		}
		var ref Ref
		if *c, ref = tx.apply(*c, e.Epoch, e.Seq); ref != (Ref{}) {
			touched = append(touched, ref)
		}
	}
	return &tx, touched, nil
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
