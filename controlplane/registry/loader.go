package registry

import (
	"fmt"
	"slices"

	"ringmain/controlplane"
)

// Loader builds a State from its pieces, in any order: Restore and durable
// images use it. It takes ownership of what it is given.
type Loader struct {
	shards map[controlplane.Shard]*loading
}

type loading struct {
	info    ShardInfo
	records []*Record
	revoked []*Revocation
}

// NewLoader returns a Loader of an empty State.
func NewLoader() *Loader { return &Loader{shards: make(map[controlplane.Shard]*loading)} }

func (l *Loader) of(name controlplane.Shard) *loading {
	sh := l.shards[name]
	if sh == nil {
		sh = &loading{info: ShardInfo{Shard: name}}
		l.shards[name] = sh
	}
	return sh
}

// Shard adds a shard's info. Every shard needs one.
func (l *Loader) Shard(info ShardInfo) error {
	sh := l.of(info.Shard)
	switch {
	case !isShard(info.Shard):
		return fmt.Errorf("load: %q is not a shard", info.Shard)
	case sh.info.Last != controlplane.Point{}:
		return fmt.Errorf("load: shard %s appears twice", info.Shard)
	case info.Last.Seq == 0 || info.Last.Epoch == controlplane.Epoch{} || info.Epoch.Compare(info.Last.Epoch) < 0:
		return fmt.Errorf("load: shard %s at %s.%d, promised to %s", info.Shard, info.Last.Epoch, info.Last.Seq, info.Epoch)
	case len(info.Spans) == 0 || !slices.IsSortedFunc(info.Spans, func(a, b Span) int { return a.Epoch.Compare(b.Epoch) }):
		return fmt.Errorf("load: shard %s does not know its epochs", info.Shard)
	}
	if err := wellFormedMembers(info.Members, info.Home); err != nil {
		return fmt.Errorf("load: shard %s: %w", info.Shard, err)
	}
	sh.info = info
	return nil
}

// Record adds a record.
func (l *Loader) Record(r *Record) error {
	if err := r.wellFormed(r.Meta.Shard); err != nil {
		return fmt.Errorf("load: record %.100q: %w", r.Meta.ID, err)
	}
	sh := l.of(r.Meta.Shard)
	sh.records = append(sh.records, r)
	return nil
}

// Revocation adds a member of the safety set.
func (l *Loader) Revocation(v Revocation) error {
	if err := v.wellFormed(v.Shard); err != nil {
		return fmt.Errorf("load: revocation of %.100q: %w", v.ID, err)
	}
	sh := l.of(v.Shard)
	sh.revoked = append(sh.revoked, &v)
	return nil
}

// State returns the State of all that was added. The Loader is spent.
func (l *Loader) State() (*State, error) {
	s := New()
	for name, in := range l.shards {
		if (in.info.Last == controlplane.Point{}) {
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
	if twice := sortStrictly(in.records, compareIDs); twice != nil {
		return nil, fmt.Errorf("load: shard %s: record %s appears twice", in.info.Shard, twice.Meta.ID)
	}
	if twice := sortStrictly(in.revoked, compareRevocations); twice != nil {
		return nil, fmt.Errorf("load: shard %s: revocation of %s appears twice", in.info.Shard, twice.ID)
	}
	var links, names []*Record
	for _, r := range in.records {
		if parent(r) != "" {
			links = append(links, r)
		}
		if _, n := name(r); n != "" {
			names = append(names, r)
		}
	}
	slices.SortFunc(links, compareLinks)
	slices.SortFunc(names, compareNames)
	project := ""
	for _, r := range links {
		if r.Key != nil && r.Key.Project != project {
			project = r.Key.Project
		}
		sh.intern(r, project)
	}
	sh.records = newTree(compareIDs, in.records...)
	sh.links = newTree(compareLinks, links...)
	sh.names = newTree(compareNames, names...)
	sh.revoked = newTree(compareRevocations, in.revoked...)
	for _, v := range in.revoked {
		sh.mark(v)
	}
	return sh, nil
}

// sortStrictly sorts, and returns an item that equals another, or nil.
func sortStrictly[T any](items []*T, compare func(a, b *T) int) *T {
	if !slices.IsSortedFunc(items, compare) {
		slices.SortFunc(items, compare)
	}
	for i := 1; i < len(items); i++ {
		if compare(items[i-1], items[i]) == 0 {
			return items[i]
		}
	}
	return nil
}
