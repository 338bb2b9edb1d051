package ledger

import (
	"fmt"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/content"
	"ringmain/controlplane/registry/tree"
)

// Loader builds a State from its pieces, in any order: Restore and durable
// images use it. It takes ownership of what it is given.
type Loader struct {
	version uint64
	shards  map[controlplane.Shard]*loading
}

type loading struct {
	info    registry.ShardInfo
	records []*registry.Record
	revoked []*registry.Revocation
	tail    []*Held
	lost    []*Quarantined
}

// NewLoader returns a Loader of an empty State of cluster version 1.
func NewLoader() *Loader { return &Loader{version: 1, shards: make(map[controlplane.Shard]*loading)} }

// Version sets the cluster version of the State, before anything is added.
func (l *Loader) Version(v uint64) error {
	if v < 1 || v > registry.Version {
		return fmt.Errorf("%w: cluster version %d", controlplane.ErrUnknownEntry, v)
	}
	l.version = v
	return nil
}

func (l *Loader) of(name controlplane.Shard) *loading {
	sh := l.shards[name]
	if sh == nil {
		sh = &loading{info: registry.ShardInfo{Shard: name}}
		l.shards[name] = sh
	}
	return sh
}

// Shard adds a shard's info. Every shard needs one.
func (l *Loader) Shard(info registry.ShardInfo) error {
	sh := l.of(info.Shard)
	if !registry.IsShard(info.Shard) {
		return fmt.Errorf("load: %q is not a shard", info.Shard)
	}
	if sh.loaded() {
		return fmt.Errorf("load: shard %s appears twice", info.Shard)
	}
	if (info.Last == controlplane.Point{}) && l.version > 1 { // promised, and no more
		if len(info.Spans) != 0 || info.Confirmed != 0 || info.Epoch == (controlplane.Epoch{}) {
			return fmt.Errorf("load: shard %s holds nothing, and yet something", info.Shard)
		}
		sh.info = info
		return nil
	}
	switch {
	case info.Last.Seq == 0 || info.Last.Epoch == controlplane.Epoch{} || info.Epoch.Compare(info.Last.Epoch) < 0 || info.Confirmed > info.Last.Seq:
		return fmt.Errorf("load: shard %s at %s.%d, promised to %s", info.Shard, info.Last.Epoch, info.Last.Seq, info.Epoch)
	case len(info.Spans) == 0 || !slices.IsSortedFunc(info.Spans, func(a, b registry.Span) int { return a.Epoch.Compare(b.Epoch) }):
		return fmt.Errorf("load: shard %s does not know its epochs", info.Shard)
	}
	if err := registry.CheckMembers(info.Members, info.Home); err != nil {
		return fmt.Errorf("load: shard %s: %w", info.Shard, err)
	}
	sh.info = info
	return nil
}

func (in *loading) loaded() bool {
	return in.info.Last != controlplane.Point{} || in.info.Epoch != controlplane.Epoch{}
}

// Held adds an entry of a shard's tail, as Held.Encode wrote it.
func (l *Loader) Held(shard controlplane.Shard, row []byte) error {
	h, err := decodeHeld(shard, row)
	if err != nil {
		return fmt.Errorf("load: tail of %s: %w", shard, err)
	}
	sh := l.of(shard)
	sh.tail = append(sh.tail, h)
	return nil
}

// Quarantined adds an entry of a shard's quarantine, as Quarantined.Encode wrote it.
func (l *Loader) Quarantined(shard controlplane.Shard, row []byte) error {
	q, err := decodeQuarantined(shard, row)
	if err != nil {
		return fmt.Errorf("load: quarantine of %s: %w", shard, err)
	}
	sh := l.of(shard)
	sh.lost = append(sh.lost, q)
	return nil
}

// Record adds a record.
func (l *Loader) Record(r *registry.Record) error {
	if err := r.WellFormed(r.Meta.Shard); err != nil {
		return fmt.Errorf("load: record %.100q: %w", r.Meta.ID, err)
	}
	sh := l.of(r.Meta.Shard)
	sh.records = append(sh.records, r)
	return nil
}

// Revocation adds a member of the safety set.
func (l *Loader) Revocation(v registry.Revocation) error {
	if err := v.WellFormed(v.Shard); err != nil {
		return fmt.Errorf("load: revocation of %.100q: %w", v.ID, err)
	}
	sh := l.of(v.Shard)
	sh.revoked = append(sh.revoked, &v)
	return nil
}

// State returns the State of all that was added. The Loader is spent.
func (l *Loader) State() (*State, error) {
	s := &State{version: l.version}
	for name, in := range l.shards {
		if !in.loaded() {
			return nil, fmt.Errorf("load: shard %s has content, but no info", name)
		}
		sh, err := in.build()
		if err != nil {
			return nil, err
		}
		s.set(sh)
	}
	l.shards = nil
	return s, nil
}

func (in *loading) build() (*shard, error) {
	sh := newShard(in.info.Shard)
	sh.info = in.info
	var err error
	if sh.content, err = content.Load(in.info.Shard, in.records, in.revoked); err != nil {
		return nil, fmt.Errorf("load: shard %s: %w", in.info.Shard, err)
	}
	if err := in.beside(sh); err != nil {
		return nil, err
	}
	return sh, nil
}

// beside builds what sh has beside its content.
func (in *loading) beside(sh *shard) error {
	var twice **Held
	var again **Quarantined
	sh.tail, twice = tree.Build(compareHeld, in.tail)
	sh.lost, again = tree.Build(compareQuarantined, in.lost)
	if twice != nil || again != nil {
		return fmt.Errorf("load: shard %s: an entry of its tail or quarantine appears twice", in.info.Shard)
	}
	before := controlplane.Point{}
	for i, h := range in.tail {
		e := h.Entry
		if i > 0 && (e.Seq != before.Seq+1 || e.Prev != before.Epoch) {
			return fmt.Errorf("load: shard %s: entry %d of its tail does not follow", in.info.Shard, e.Seq)
		}
		before = e.Point()
		sh.tailBytes += h.bytes
	}
	if len(in.tail) > 0 && before != in.info.Last {
		return fmt.Errorf("load: shard %s: its tail ends before it does", in.info.Shard)
	}
	return nil
}
