package ledger

import (
	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// applySeal promises to refuse lower epochs. The report is the answer.
func (s *State) applySeal(x *registry.Seal) Outcome {
	sh := s.orNew(x.Shard)
	if !registry.IsShard(x.Shard) {
		return Outcome{Err: sh.misfit(nil, "%.100q is not a shard", x.Shard)}
	}
	c, err := sh.info.Copy().Seal(x.Epoch)
	if err != nil {
		return Outcome{Err: sh.refused(err)}
	}
	tx := *sh
	tx.info.Follow(c)
	s.set(&tx)
	return Outcome{Reports: []Report{tx.report()}}
}

// applyConfirm takes note that a majority holds the shard.
func (s *State) applyConfirm(x *registry.Confirm) Outcome {
	sh := s.orNew(x.Shard)
	if x.Seq <= sh.info.Confirmed {
		return Outcome{}
	}
	c, news := sh.info.Copy().Confirm(controlplane.Point{Epoch: x.Epoch, Seq: x.Seq})
	if !news {
		return Outcome{Err: sh.misfit(nil, "entry %d of epoch %s is not held here, so nothing is confirmed by it", x.Seq, x.Epoch)}
	}
	tx := *sh
	tx.info.Follow(c)
	tx.settle()
	s.set(&tx)
	return Outcome{Reports: []Report{tx.report()}}
}

// applyTake makes this region home: the copy comes to end in exactly the base,
// and the opening of the epoch follows, or nothing changes at all.
func (s *State) applyTake(t *registry.Take) Outcome {
	out := Outcome{Points: make(map[controlplane.Shard]controlplane.Point, 1)}
	next := s.Clone()
	if err := next.take(t, &out); err != nil {
		return Outcome{Err: err}
	}
	*s = *next
	return out
}

func (s *State) take(t *registry.Take, out *Outcome) error {
	if sh := s.orNew(t.Shard); sh.info.Epoch != t.Epoch || sh.info.Last.Epoch == t.Epoch {
		return sh.misfit(controlplane.ErrNotHome, "epoch %s is not the one sealed here for it to open", t.Epoch)
	}
	if t.Snapshot != nil {
		if err := s.inherit(t, out); err != nil {
			return err
		}
	}
	for _, b := range t.Entries {
		e, err := registry.DecodeEntry(b)
		if err != nil {
			return err
		}
		if e.Shard != t.Shard || e.Seq > t.Base.Seq {
			return s.orNew(t.Shard).misfit(nil, "entry %d of %s is not of what leads to the base", e.Seq, e.Shard)
		}
		if err := s.accept(&Held{Entry: e, bytes: uint64(len(b))}, out, t.Epoch, 0); err != nil {
			return err
		}
	}
	return s.open(t, out)
}

// inherit makes a staged snapshot that ends in the base the shard.
func (s *State) inherit(t *registry.Take, out *Outcome) error {
	sh := s.orNew(t.Shard)
	if t.Snapshot.Shard != t.Shard || t.Snapshot.Point != t.Base {
		return sh.misfit(nil, "snapshot %.100q does not end in the base", t.Snapshot.Snapshot)
	}
	step, err := sh.info.Copy().Inherit(t.Epoch, snapshotOf(t.Snapshot, 0))
	if err != nil {
		return sh.refused(err)
	}
	g, err := sh.staged(t.Snapshot)
	if err != nil {
		return err
	}
	s.replace(sh, g, step, t.Epoch, t.Snapshot.Now, out)
	return nil
}

// open appends the opening of the epoch to a copy that ends in the base.
func (s *State) open(t *registry.Take, out *Outcome) error {
	sh := s.orNew(t.Shard)
	known, _ := sh.info.Copy().Confirm(t.Known)
	c, err := known.Open(t.Epoch, t.Base, t.Members, t.Forced)
	if err != nil {
		return sh.refused(err)
	}
	e := &registry.Entry{Shard: t.Shard, Epoch: t.Epoch, Seq: t.Base.Seq + 1, Prev: t.Base.Epoch,
		Changes: []registry.Change{registry.Opening(t.Epoch.Region, t.Members, t.Forced)}}
	b, err := registry.EncodeEntry(e)
	if err != nil {
		return sh.misfit(err, "the opening cannot be encoded: %v", err)
	}
	h := &Held{Entry: e, bytes: uint64(len(b))}
	tx, refusal := s.try(sh, h, true)
	if refusal != nil {
		return refusal
	}
	s.commit(tx, h, c, out, nil)
	return nil
}
