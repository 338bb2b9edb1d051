package registry

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/ownership"
)

// Digester computes what State.Digest computes from pieces that are encoded
// already. Records go in by id, revocations by (kind, id).
type Digester struct{ records, revocations hash.Hash }

// NewDigester returns the Digester of an empty shard.
func NewDigester() *Digester { return &Digester{sha256.New(), sha256.New()} }

// Record adds an encoded record.
func (d *Digester) Record(encoded []byte) { writeCounted(d.records, encoded) }

// Revocation adds a revocation.
func (d *Digester) Revocation(v Revocation) {
	writeCounted(d.revocations, must(encMode.Marshal(v))) // strings and integers always encode
}

func writeCounted(h hash.Hash, b []byte) {
	n := len(b)
	_, _ = h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) // a hash never fails
	_, _ = h.Write(b)
}

// Sum returns the digest of what was added so far.
func (d *Digester) Sum() [32]byte {
	h := sha256.New()
	_, _ = h.Write([]byte("ringmain shard digest 1\n"))
	_, _ = h.Write(d.records.Sum(nil))
	_, _ = h.Write(d.revocations.Sum(nil))
	return [32]byte(h.Sum(nil))
}

func (d *Digester) clone() (*Digester, error) {
	records, err := cloneHash(d.records)
	if err != nil {
		return nil, err
	}
	revocations, err := cloneHash(d.revocations)
	if err != nil {
		return nil, err
	}
	return &Digester{records, revocations}, nil
}

func cloneHash(h hash.Hash) (hash.Hash, error) {
	c, ok := h.(hash.Cloner)
	if !ok {
		return nil, fmt.Errorf("hash %T cannot be cloned", h)
	}
	return c.Clone()
}

// stage is an unfinished snapshot of a shard, built and digested as its chunks
// arrive, so that adopting it is quick. Like a shard, one that a State holds is
// never changed.
type stage struct {
	snapshot string
	chunks   uint64
	content  *shard
	digest   *Digester
	lastID   string
	lastRev  Revocation
}

func newStage(name controlplane.Shard, snapshot string) *stage {
	return &stage{snapshot: snapshot, content: newShard(name), digest: NewDigester()}
}

func (g *stage) copy() (*stage, error) {
	digest, err := g.digest.clone()
	if err != nil {
		return nil, err
	}
	c, content := *g, *g.content
	c.digest, c.content = digest, &content
	return &c, nil
}

// record adds one record. It must be encoded as EncodeRecord does, since the
// digest is over those bytes.
func (g *stage) record(encoded []byte) error {
	r, err := DecodeRecord(encoded)
	if err != nil {
		return err
	}
	if again, err := EncodeRecord(r); err != nil || !bytes.Equal(again, encoded) {
		return fmt.Errorf("record %s is not in deterministic encoding", r.Meta.ID)
	}
	if err := r.wellFormed(g.content.info.Shard); err != nil {
		return err
	}
	if r.Meta.ID <= g.lastID {
		return fmt.Errorf("record %s after %s: ids must ascend", r.Meta.ID, g.lastID)
	}
	g.lastID = r.Meta.ID
	g.digest.Record(encoded)
	g.content.put(r)
	return nil
}

func (g *stage) revocation(v Revocation) error {
	if err := v.wellFormed(g.content.info.Shard); err != nil {
		return err
	}
	if compareRevocations(&v, &g.lastRev) <= 0 {
		return fmt.Errorf("revocation of %s after %s: they must ascend", v.ID, g.lastRev.ID)
	}
	g.lastRev = v
	g.digest.Revocation(v)
	g.content.revoke(v)
	return nil
}

func (v *Revocation) wellFormed(shard controlplane.Shard) error {
	if v.Shard != shard {
		return invalid("shard", "revocation of shard %q in %q", v.Shard, shard)
	}
	c := Change{Op: OpRevoke, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires}
	if err := c.wellFormed(shard, 0); err != nil {
		return err
	}
	return nil
}

func (s *State) applyStage(st *Stage) Outcome {
	if !isShard(st.Shard) || st.Snapshot == "" || len(st.Snapshot) > 100 {
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
		return Outcome{Err: &StructureError{Shard: st.Shard, Promised: sh.info.Epoch, Last: sh.info.Last,
			Reason: fmt.Sprintf("chunk %d of snapshot %s: %v", st.Chunk, st.Snapshot, err), cause: err}}
	}
	s.stage(sh, g)
	return Outcome{Staged: []controlplane.Shard{st.Shard}}
}

func (g *stage) chunk(st *Stage) error {
	for _, encoded := range st.Records {
		if err := g.record(encoded); err != nil {
			return err
		}
	}
	for _, v := range st.Revocations {
		if err := g.revocation(v); err != nil {
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
	tx := *g.content
	for v := range sh.revoked.All() {
		if !tx.spent(v, now) || !sh.surelyGone(v.ID) { // or the home has forgotten it
			tx.revoke(*v)
		}
	}
	for v := range tx.revoked.All() {
		tx.mark(v)
	}
	tx.lost = sh.lost
	return tx
}

// snapshot is what the rules of ownership need of a. A sender of cluster
// version 1 names no spans: its shard never had another home.
func (a *Adopt) snapshot(confirmed uint64) ownership.Snapshot {
	spans := a.Spans
	if len(spans) == 0 {
		c := Change{Members: a.Members}
		spans = []Span{{Epoch: a.Point.Epoch, Start: a.Point.Seq, Members: c.members()}}
	}
	return ownership.Snapshot{Last: a.Point, Spans: spans, Confirmed: confirmed}
}

// staged returns what is staged as a names it, if it has the digest that a gives
// and may become the shard.
func (sh *shard) staged(a *Adopt) (*stage, error) {
	g := sh.stage
	if g == nil || g.snapshot != a.Snapshot {
		return nil, sh.misfit(nil, "snapshot %.100q is not staged", a.Snapshot)
	}
	if sum := g.digest.Sum(); !bytes.Equal(sum[:], a.Digest) {
		return g, sh.misfit(nil, "snapshot %s does not have the digest its sender gave", a.Snapshot)
	}
	if err := wellFormedMembers(a.Members, a.Home); err != nil {
		return g, sh.misfit(nil, "snapshot %s: %v", a.Snapshot, err)
	}
	return g, nil
}

// applyAdopt replaces the shard's records by the staged ones, and keeps the
// union of the safety sets. Entries of this copy that are not in the history of
// the snapshot are quarantined, as far as the tail has them. A staged snapshot
// that can never be adopted is dropped.
func (s *State) applyAdopt(sender controlplane.Epoch, a *Adopt, confirmed uint64) Outcome {
	if s.Version() < 2 {
		return s.adoptFirst(sender, a)
	}
	sh := s.orNew(a.Shard)
	c := sh.info.Copy()
	step, err := c.Adopt(sender, a.snapshot(confirmed))
	var refused *ownership.Refused
	switch {
	case errors.As(err, &refused) && refused.Reason == ownership.Behind && sh.stage != nil && sh.stage.snapshot == a.Snapshot:
		s.stage(sh, nil)
		return Outcome{Err: sh.refused(err), Staged: []controlplane.Shard{a.Shard}}
	case err != nil:
		return Outcome{Err: sh.refused(err)}
	case a.Home != sender.Region || !isShard(a.Shard):
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
func (s *State) caughtUp(sh *shard, a *Adopt, step ownership.Step, out Outcome) Outcome {
	tx := *sh
	tx.info.follow(step.Copy)
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
	tx.info.follow(step.Copy)
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
