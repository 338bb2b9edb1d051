package image

import (
	"fmt"
	"iter"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/controlplane/strict"
)

// Dirty is what the image does not hold yet. It belongs to one goroutine at a
// time.
type Dirty struct {
	refs   map[registry.Ref]struct{}
	resets map[controlplane.Shard]struct{}
	staged map[controlplane.Shard]*stagedChunks
}

type stagedChunks struct {
	clear  bool              // what the image holds of the shard's staging is void
	chunks map[uint64][]byte // encoded commands
}

// NewDirty returns an empty Dirty.
func NewDirty() *Dirty {
	return &Dirty{
		refs:   make(map[registry.Ref]struct{}),
		resets: make(map[controlplane.Shard]struct{}),
		staged: make(map[controlplane.Shard]*stagedChunks),
	}
}

// Merge adds what a Flush that failed had taken before d.
func (d *Dirty) Merge(older *Dirty) {
	for ref := range older.refs {
		d.refs[ref] = struct{}{}
	}
	for s := range older.resets {
		d.resets[s] = struct{}{}
	}
	for s, old := range older.staged {
		now := d.staged[s]
		if now == nil {
			d.staged[s] = old
			continue
		}
		if now.clear {
			continue
		}
		now.clear = old.clear
		for n, chunk := range old.chunks {
			now.chunks[n] = chunk
		}
	}
}

// Note adds what the command changed. State is as it is after the command,
// encoded is registry.EncodeCommand of it.
func (d *Dirty) Note(state *ledger.State, cmd *registry.Command, encoded []byte, out *ledger.Outcome) {
	for _, ref := range out.Touched {
		d.refs[ref] = struct{}{}
	}
	for _, s := range out.Replaced {
		d.resets[s] = struct{}{}
	}
	for _, s := range out.Staged {
		info, ok := state.Staged(s)
		st := d.staged[s]
		if first := !ok || info.Chunks == 1; first || st == nil {
			st = &stagedChunks{clear: first, chunks: make(map[uint64][]byte)}
			d.staged[s] = st
		}
		if ok && cmd.Type == registry.CmdStage && cmd.Stage.Shard == s {
			st.chunks[cmd.Stage.Chunk] = encoded
		}
	}
}

// Flush makes the image hold state, which differs from it by d, and stands at
// the mark. All of it becomes durable, or an error says that nothing did; then
// Merge d into what comes after.
func (m *Image) Flush(d *Dirty, state *ledger.State, at Mark) error {
	b := &batch{rows: make(map[row][]byte), at: at, format: state.Version()}
	infos, err := d.fill(b, state, m.infos)
	if err != nil {
		return err
	}
	if err := b.beside(m.kept, state); err != nil {
		return err
	}
	if err := m.write(b); err != nil {
		return err
	}
	m.infos, m.kept = infos, state.Clone()
	return nil
}

// beside puts into b how the tails and quarantines of after differ from those
// of before.
func (b *batch) beside(before, after *ledger.State) error {
	shards := make(map[controlplane.Shard]struct{})
	for _, info := range slices.Concat(before.Copies(), after.Copies()) {
		shards[info.Shard] = struct{}{}
	}
	for s := range shards {
		if err := differ(b, tailRow, before.TailRows(s), after.TailRows(s)); err != nil {
			return err
		}
		if err := differ(b, quarantineRow, before.Quarantine(s), after.Quarantine(s)); err != nil {
			return err
		}
	}
	return nil
}

// differ puts into b the rows in which after differs from before. Both share
// the rows that are the same.
func differ[R interface {
	comparable
	Encode() ([]byte, error)
}](b *batch, key func(R) row, before, after iter.Seq[R]) error {
	gone := make(map[R]struct{})
	for r := range before {
		gone[r] = struct{}{}
	}
	var err error
	for r := range after {
		if _, there := gone[r]; there {
			delete(gone, r)
			continue
		}
		at := key(r)
		if b.rows[at], err = r.Encode(); err != nil {
			return fmt.Errorf("encode %q: %w", at.key, err)
		}
	}
	for r := range gone {
		if at := key(r); b.rows[at] == nil {
			b.rows[at] = nil
		}
	}
	return nil
}

// batch is what one flush writes. Clear comes before rows; a nil row is deleted.
type batch struct {
	clear  []row // every row of the bucket whose key begins so
	rows   map[row][]byte
	at     Mark
	format uint64
}

// fill puts into b what d names, as state has it. It returns the encoded shard
// infos, of which b gets those that known does not have.
func (d *Dirty) fill(b *batch, state *ledger.State, known map[controlplane.Shard]string) (map[controlplane.Shard]string, error) {
	for s := range d.resets {
		b.clear = append(b.clear, row{bucketRecords, rowPrefix(s)}, row{bucketRevocations, rowPrefix(s)})
		snap, ok := state.ShardSnapshot(s)
		if !ok {
			continue
		}
		for r := range snap.Records {
			if err := b.putRecord(registry.Ref{Shard: s, Kind: r.Kind, ID: r.Meta.ID}, r); err != nil {
				return nil, err
			}
		}
		for v := range snap.Revocations {
			if err := b.put(row{bucketRevocations, recordKey(registry.Ref{Shard: s, Kind: v.Kind, ID: v.ID})}, v); err != nil {
				return nil, err
			}
		}
	}
	for ref := range d.refs {
		if _, whole := d.resets[ref.Shard]; whole {
			continue
		}
		if err := b.putRef(ref, state); err != nil {
			return nil, err
		}
	}
	for s, st := range d.staged {
		if st.clear {
			b.clear = append(b.clear, row{bucketStaged, rowPrefix(s)})
		}
		for n, chunk := range st.chunks {
			b.rows[row{bucketStaged, stagedKey(s, n)}] = chunk
		}
	}
	infos := make(map[controlplane.Shard]string)
	for _, info := range state.Copies() {
		enc, err := registry.EncodeShard(info, state.Version())
		if err != nil {
			return nil, fmt.Errorf("encode shard %s: %w", info.Shard, err)
		}
		infos[info.Shard] = string(enc)
		if known[info.Shard] != string(enc) {
			b.rows[row{bucketShards, string(info.Shard)}] = enc
		}
	}
	return infos, nil
}

func (b *batch) putRef(ref registry.Ref, state *ledger.State) error {
	r, ok := state.GetIn(ref.Shard, ref.ID)
	if !ok || r.Kind != ref.Kind {
		r = nil
	}
	if err := b.putRecord(ref, r); err != nil {
		return err
	}
	v, ok := revocationIn(state, ref)
	if !ok {
		return nil
	}
	return b.put(row{bucketRevocations, recordKey(ref)}, v)
}

func revocationIn(state *ledger.State, ref registry.Ref) (registry.Revocation, bool) {
	v, ok := state.Revoked(ref.Kind, ref.ID)
	if !ok || v.Shard == ref.Shard {
		return v, ok
	}
	// Another shard revoked the same id; this one may have too.
	for _, v := range state.Revocations(ref.Shard) {
		if v.Kind == ref.Kind && v.ID == ref.ID {
			return v, true
		}
	}
	return registry.Revocation{}, false
}

func (b *batch) putRecord(ref registry.Ref, r *registry.Record) error {
	key := row{bucketRecords, recordKey(ref)}
	if r == nil {
		b.rows[key] = nil
		return nil
	}
	enc, err := registry.EncodeRecord(r)
	if err != nil {
		return fmt.Errorf("encode record %s: %w", ref.ID, err)
	}
	b.rows[key] = enc
	return nil
}

func (b *batch) put(key row, value any) error {
	enc, err := strict.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %q: %w", key.key, err)
	}
	b.rows[key] = enc
	return nil
}
