package registry

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"hash"

	"ringmain/controlplane"
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
	if g == nil && !tx.known() {
		if i, ok := s.index(tx.info.Shard); ok {
			s.shards = append(s.shards[:i:i], s.shards[i+1:]...)
		}
		return
	}
	s.set(&tx)
}

// applyAdopt replaces the shard's records by the staged ones, and keeps the
// union of the revocations. A staged snapshot that can never be adopted is
// dropped.
func (s *State) applyAdopt(sender controlplane.Epoch, a *Adopt) Outcome {
	sh := s.orNew(a.Shard)
	g := sh.stage
	held := g != nil && g.snapshot == a.Snapshot
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
		if held { // caught up by entries meanwhile
			s.stage(sh, nil)
			out.Staged = []controlplane.Shard{a.Shard}
		}
		return out
	case !held:
		return Outcome{Err: sh.misfit(nil, "snapshot %.100q is not staged", a.Snapshot)}
	case a.Point.Compare(info.Last) < 0:
		return drop(sh.misfit(nil, "a snapshot at %s.%d is older than this copy", a.Point.Epoch, a.Point.Seq))
	}
	if sum := g.digest.Sum(); !bytes.Equal(sum[:], a.Digest) {
		return drop(sh.misfit(nil, "snapshot %s does not have the digest its sender gave", a.Snapshot))
	}
	if err := wellFormedMembers(a.Members, a.Home); err != nil {
		return drop(sh.misfit(nil, "snapshot %s: %v", a.Snapshot, err))
	}
	tx := *g.content
	for v := range sh.revoked.all() {
		tx.revoke(*v)
	}
	for v := range tx.revoked.all() {
		tx.mark(v)
	}
	tx.info = ShardInfo{
		Shard: a.Shard, Members: sorted(a.Members), Home: a.Home,
		Epoch: sender, Last: a.Point, Spans: []Span{{Epoch: a.Point.Epoch, Start: a.Point.Seq}},
	}
	s.set(&tx)
	return Outcome{
		Points: map[controlplane.Shard]controlplane.Point{a.Shard: a.Point},
		Reset:  []controlplane.Shard{a.Shard},
		Staged: []controlplane.Shard{a.Shard},
	}
}
