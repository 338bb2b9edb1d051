package ledger

import (
	"iter"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// Quarantined is an entry that was applied here once, and lost its place to
// another home's history. It stays until it turns out to be history after all,
// or somebody replays or discards it. It is never changed.
type Quarantined struct {
	Entry  *registry.Entry
	Level  registry.Level     // asked for by the writer; 0 in a region that was not told
	Branch controlplane.Point // last entry that it shared with the history that won
	By     controlplane.Epoch // the home whose history that is
}

func compareQuarantined(a, b *Quarantined) int { return a.Entry.Point().Compare(b.Entry.Point()) }

// quarantine keeps what left the tail: after branch the history of by goes on.
func (sh *shard) quarantine(lost []*Held, branch controlplane.Point, by controlplane.Epoch, out *Outcome) {
	for _, h := range lost {
		sh.lost = sh.lost.With(&Quarantined{Entry: h.Entry, Level: h.Level, Branch: branch, By: by})
	}
	out.Cut = append(out.Cut, Cut{Shard: sh.info.Shard, Branch: branch, By: by, Count: len(lost)})
}

// release takes the entry at p out of the quarantine.
func (sh *shard) release(p controlplane.Point) bool {
	q, ok := sh.lost.Get(func(q *Quarantined) int { return q.Entry.Point().Compare(p) })
	if ok {
		sh.lost = sh.lost.Without(q)
	}
	return ok
}

// releaseHistory takes out of the quarantine what the shard's history holds.
func (sh *shard) releaseHistory() {
	c := sh.info.Copy()
	for q := range sh.lost.All() {
		if p := q.Entry.Point(); c.Holds(p) {
			sh.release(p)
		}
	}
}

// Quarantine returns the shard's quarantined entries by (epoch, sequence).
func (s *State) Quarantine(name controlplane.Shard) iter.Seq[*Quarantined] {
	return s.orNew(name).lost.All()
}

// applyResolve takes entries out of the quarantine.
func (s *State) applyResolve(r *registry.Resolve) Outcome {
	sh, ok := s.shard(r.Shard)
	if !ok {
		return Outcome{Err: newShard(r.Shard).misfit(nil, "this region holds nothing of it")}
	}
	tx, changed := *sh, false
	for _, p := range r.Entries {
		changed = tx.release(p) || changed
	}
	if !changed {
		return Outcome{}
	}
	s.set(&tx)
	return Outcome{Reports: []Report{tx.report()}}
}

type quarantinedRow struct {
	_      struct{} `cbor:",toarray"`
	Entry  []byte
	Level  registry.Level
	Branch controlplane.Point
	By     controlplane.Epoch
}

// Encode returns q as snapshots and images hold it.
func (q *Quarantined) Encode() ([]byte, error) {
	e, err := registry.EncodeEntry(q.Entry)
	if err != nil {
		return nil, err
	}
	return registry.Encode(quarantinedRow{Entry: e, Level: q.Level, Branch: q.Branch, By: q.By})
}

// decodeQuarantined reads what Quarantined.Encode wrote, for the shard.
func decodeQuarantined(shard controlplane.Shard, b []byte) (*Quarantined, error) {
	var row quarantinedRow
	if err := registry.Decode(b, &row); err != nil {
		return nil, err
	}
	e, err := decodeEntryOf(shard, row.Entry)
	if err != nil {
		return nil, err
	}
	return &Quarantined{Entry: e, Level: row.Level, Branch: row.Branch, By: row.By}, nil
}
