package ledger

import (
	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// The rules of cluster version 1, which a region keeps until all of its nodes
// read the next: one home for ever, so nothing is confirmed, cut or undone.
// Nodes of the first release apply the same commands beside these.

// proposeFirst is propose at cluster version 1.
func (s *State) proposeFirst(h *Held, out *Outcome, alone bool) error {
	e := h.Entry
	sh := s.orNew(e.Shard)
	switch opens := e.Opens(); {
	case opens && !alone:
		return sh.misfit(nil, "an entry that opens an epoch must be the only one of its command")
	case opens && (e.Epoch.Compare(sh.info.Epoch) <= 0 || e.Epoch.Region != e.Changes[0].Home):
		return sh.misfit(controlplane.ErrNotHome, "epoch %s cannot be opened above %s", e.Epoch, sh.info.Epoch)
	case !opens && (e.Epoch != sh.info.Epoch || e.Epoch != sh.info.Last.Epoch || !sh.known()):
		return sh.misfit(controlplane.ErrNotHome, "epoch %s is not the open one", e.Epoch)
	case e.Seq != sh.info.Last.Seq+1 || e.Prev != sh.info.Last.Epoch:
		return sh.misfit(nil, "entry %d after epoch %s does not follow", e.Seq, e.Prev)
	}
	tx, refusal, err := s.tryOwn(sh, h, out)
	if err != nil {
		return err
	}
	tx.info.Last = e.Point()
	s.set(tx)
	out.took(e, refusal)
	return nil
}

// acceptFirst is accept at cluster version 1.
func (s *State) acceptFirst(h *Held, out *Outcome, sender controlplane.Epoch) error {
	e := h.Entry
	sh := s.orNew(e.Shard)
	switch info := &sh.info; {
	case sender.Compare(info.Epoch) < 0:
		return sh.misfit(controlplane.ErrNotHome, "sender %s was deposed by %s", sender, info.Epoch)
	case e.Epoch.Compare(sender) > 0:
		return sh.misfit(nil, "entry of epoch %s from sender %s", e.Epoch, sender)
	case e.Seq == 0 || e.Epoch == controlplane.Epoch{}:
		return sh.misfit(nil, "sequences start at 1, and epochs above zero")
	case e.Seq <= info.Last.Seq:
		if epoch, exact := info.Copy().EpochAt(e.Seq); exact && e.Epoch != epoch || e.Epoch.Compare(epoch) > 0 {
			return sh.misfit(nil, "entry %d is of epoch %s here, not %s", e.Seq, epoch, e.Epoch)
		}
		tx := *sh
		tx.info.Epoch = sender
		s.set(&tx)
		out.Points[e.Shard] = tx.info.Last
		return nil
	case e.Seq != info.Last.Seq+1 || e.Prev != info.Last.Epoch:
		return sh.misfit(nil, "entry %d after epoch %s does not follow", e.Seq, e.Prev)
	case e.Opens() != (e.Epoch != e.Prev) || e.Epoch.Compare(e.Prev) < 0:
		return sh.misfit(nil, "entry %d of epoch %s after %s: an epoch begins with its opening", e.Seq, e.Epoch, e.Prev)
	case e.Opens() && e.Epoch.Region != e.Changes[0].Home:
		return sh.misfit(nil, "epoch %s opened for %s", e.Epoch, e.Changes[0].Home)
	}
	tx, refusal := s.try(sh, h, false)
	if refusal != nil {
		return sh.misfit(nil, "entry %d: %v", e.Seq, refusal)
	}
	tx.info.Epoch = sender
	tx.info.Last = e.Point()
	s.set(tx)
	out.took(e, nil)
	return nil
}

// adoptFirst is applyAdopt at cluster version 1.
func (s *State) adoptFirst(sender controlplane.Epoch, a *registry.Adopt) Outcome {
	sh := s.orNew(a.Shard)
	g, unfit := sh.staged(a)
	drop := func(err error) Outcome {
		s.stage(sh, nil)
		return Outcome{Err: err, Staged: []controlplane.Shard{a.Shard}}
	}
	switch info := &sh.info; {
	case sender.Compare(info.Epoch) < 0:
		return Outcome{Err: sh.misfit(controlplane.ErrNotHome, "sender %s was deposed by %s", sender, info.Epoch)}
	case sender == controlplane.Epoch{} || a.Point.Epoch != sender || a.Home != sender.Region || a.Point.Seq == 0:
		return Outcome{Err: sh.misfit(nil, "a snapshot at %s.%d from sender %s does not hold its opening", a.Point.Epoch, a.Point.Seq, sender)}
	case a.Point == info.Last:
		out := Outcome{Points: map[controlplane.Shard]controlplane.Point{a.Shard: info.Last}}
		if g != nil { // caught up by entries meanwhile
			s.stage(sh, nil)
			out.Staged = []controlplane.Shard{a.Shard}
		}
		return out
	case g == nil:
		return Outcome{Err: unfit}
	case a.Point.Compare(info.Last) < 0:
		return drop(sh.misfit(nil, "a snapshot at %s.%d is older than this copy", a.Point.Epoch, a.Point.Seq))
	case unfit != nil:
		return drop(unfit)
	}
	tx := g.over(sh, 0)
	tx.info = registry.ShardInfo{
		Shard: a.Shard, Members: sorted(a.Members), Home: a.Home,
		Epoch: sender, Last: a.Point, Spans: []registry.Span{{Epoch: a.Point.Epoch, Start: a.Point.Seq}},
	}
	s.set(&tx)
	return Outcome{
		Points:   map[controlplane.Shard]controlplane.Point{a.Shard: a.Point},
		Reset:    []controlplane.Shard{a.Shard},
		Replaced: []controlplane.Shard{a.Shard},
		Staged:   []controlplane.Shard{a.Shard},
	}
}
