package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
)

func (s *State) applyStage(st *registry.Stage) Outcome {
	if !registry.IsShard(st.Shard) || st.Snapshot == "" || len(st.Snapshot) > 100 {
		return Outcome{Err: newShard(st.Shard).misfit(nil, "malformed chunk of snapshot %.100q", st.Snapshot)}
	}
	sh := s.orNew(st.Shard)
	g := sh.stage
	switch {
	case g != nil && g.snapshot == st.Snapshot && st.Chunk < g.chunks:
		return Outcome{} // held already
	case st.Chunk == 0:
		g = newStage(st.Shard, st.Snapshot)
	case g == nil || g.snapshot != st.Snapshot || st.Chunk != g.chunks:
		return Outcome{Err: sh.misfit(nil, "chunk %d of snapshot %s does not follow", st.Chunk, st.Snapshot)}
	default:
		var err error
		if g, err = g.copy(); err != nil {
			return Outcome{Err: fmt.Errorf("stage: %w", err)}
		}
	}
	if err := g.chunk(st); err != nil {
		return Outcome{Err: sh.misfit(err, "chunk %d of snapshot %s: %v", st.Chunk, st.Snapshot, err)}
	}
	s.stage(sh, g)
	return Outcome{Staged: []controlplane.Shard{st.Shard}}
}

// stage is an unfinished snapshot of a shard. One that a State holds is never
// changed.
type stage struct {
	snapshot string
	chunks   uint64
	*content.Staging
}

func newStage(name controlplane.Shard, snapshot string) *stage {
	return &stage{snapshot: snapshot, Staging: content.NewStaging(name)}
}

func (g *stage) copy() (*stage, error) {
	s, err := g.Clone()
	return &stage{snapshot: g.snapshot, chunks: g.chunks, Staging: s}, err
}

func (g *stage) chunk(st *registry.Stage) error {
	for _, encoded := range st.Records {
		if err := g.Record(encoded); err != nil {
			return err
		}
	}
	for _, v := range st.Revocations {
		if err := g.Revocation(v); err != nil {
			return err
		}
	}
	g.chunks++
	return nil
}

// stage makes g (nil = nothing) what is staged for the shard.
func (s *State) stage(sh *shard, g *stage) {
	tx := *sh
	tx.stage = g
	if !tx.present() && g == nil {
		if i, ok := s.index(tx.info.Shard); ok {
			s.shards = append(s.shards[:i:i], s.shards[i+1:]...)
		}
		return
	}
	s.set(&tx)
}

// over returns what is staged in the place of sh's records, with both their
// safety sets, but for what is spent at the time now, and sh's quarantine.
func (g *stage) over(sh *shard, now int64) shard {
	tx := newShard(sh.info.Shard)
	tx.content, tx.lost = g.Content(), sh.lost
	tx.content.Merge(func(yield func(*registry.Revocation) bool) {
		for v := range sh.content.Revocations() {
			gone := tx.content.Spent(v, now) && sh.surelyGone(v.ID) // and the home has forgotten it
			if !gone && !yield(v) {
				return
			}
		}
	})
	return *tx
}

// snapshotOf is what the rules of ownership need of a. A sender of cluster
// version 1 names no spans: its shard never had another home.
func snapshotOf(a *registry.Adopt, confirmed uint64) ownership.Snapshot {
	spans := a.Spans
	if len(spans) == 0 {
		spans = []registry.Span{{Epoch: a.Point.Epoch, Start: a.Point.Seq, Members: firstLives(a.Members)}}
	}
	return ownership.Snapshot{Last: a.Point, Spans: spans, Confirmed: confirmed}
}

// staged returns what is staged as a names it, if it has the digest that a gives
// and may become the shard.
func (sh *shard) staged(a *registry.Adopt) (*stage, error) {
	g := sh.stage
	if g == nil || g.snapshot != a.Snapshot {
		return nil, sh.misfit(nil, "snapshot %.100q is not staged", a.Snapshot)
	}
	if sum := g.Sum(); !bytes.Equal(sum[:], a.Digest) {
		return g, sh.misfit(nil, "snapshot %s does not have the digest its sender gave", a.Snapshot)
	}
	if err := registry.CheckMembers(a.Members, a.Home); err != nil {
		return g, sh.misfit(nil, "snapshot %s: %v", a.Snapshot, err)
	}
	return g, nil
}

// applyAdopt replaces the shard's records by the staged ones, and keeps the
// union of the safety sets. Entries of this copy that are not in the history of
// the snapshot are quarantined, as far as the tail has them. A staged snapshot
// that can never be adopted is dropped.
func (s *State) applyAdopt(sender controlplane.Epoch, a *registry.Adopt, confirmed uint64) Outcome {
	if s.Version() < 2 {
		return s.adoptFirst(sender, a)
	}
	sh := s.orNew(a.Shard)
	c := sh.info.Copy()
	step, err := c.Adopt(sender, snapshotOf(a, confirmed))
	var refused *ownership.Refused
	switch {
	case errors.As(err, &refused) && refused.Reason == ownership.Behind && sh.stage != nil && sh.stage.snapshot == a.Snapshot:
		s.stage(sh, nil)
		return Outcome{Err: sh.refused(err), Staged: []controlplane.Shard{a.Shard}}
	case err != nil:
		return Outcome{Err: sh.refused(err)}
	case a.Home != sender.Region || !registry.IsShard(a.Shard):
		return Outcome{Err: sh.misfit(nil, "a snapshot of %s's shard from sender %s", a.Home, sender)}
	}
	out := Outcome{Points: map[controlplane.Shard]controlplane.Point{a.Shard: a.Point}}
	if c.Last == a.Point && !a.Repair {
		return s.caughtUp(sh, a, step, out)
	}
	g, err := sh.staged(a)
	if err != nil {
		if g != nil {
			s.stage(sh, nil)
			return Outcome{Err: err, Staged: []controlplane.Shard{a.Shard}}
		}
		return Outcome{Err: err}
	}
	s.replace(sh, g, step, sender, a.Now, &out)
	return out
}

// caughtUp drops a snapshot that entries overtook.
func (s *State) caughtUp(sh *shard, a *registry.Adopt, step ownership.Step, out Outcome) Outcome {
	tx := *sh
	tx.info.Follow(step.Copy)
	tx.settle()
	if now := tx.report(); now != sh.report() {
		out.report(now)
	}
	if tx.stage != nil && tx.stage.snapshot == a.Snapshot {
		tx.stage = nil
		out.Staged = []controlplane.Shard{a.Shard}
	}
	s.set(&tx)
	return out
}

// replace makes what is staged the shard, where step says.
func (s *State) replace(sh *shard, g *stage, step ownership.Step, by controlplane.Epoch, now int64, out *Outcome) {
	tx := g.over(sh, now)
	tx.info.Follow(step.Copy)
	if step.Cut > 0 {
		branch := controlplane.Point{Seq: step.Cut - 1}
		branch.Epoch, _ = sh.info.Copy().EpochAt(branch.Seq)
		tx.quarantine(slices.Collect(sh.after(branch.Seq)), branch, by, out)
	}
	tx.releaseHistory()
	tx.settle()
	s.set(&tx)
	name := sh.info.Shard
	out.Reset, out.Replaced = append(out.Reset, name), append(out.Replaced, name)
	out.Staged = append(out.Staged, name)
	out.report(tx.report())
}
