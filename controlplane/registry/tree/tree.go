// Package tree holds a persistent ordered set: every version of it stays as it
// was, and shares what it can with the next. It knows nothing of what it holds.
package tree

import (
	"iter"
	"slices"
)

// fan is the largest number of items or kids in a node. Measured: 16, 32 and 64
// take the same time; 64 allocates a fifth more per change.
const fan = 32

// Tree is a persistent ordered set, a B+tree whose nodes never change once
// built: With and Without return a new tree and copy one path. So a copy of the
// tree is a consistent snapshot that costs nothing and needs no lock.
//
// A node that falls below half is not merged with its neighbours, only removed
// once it is empty.
type Tree[T any] struct {
	root    *node[T]
	size    int
	compare func(a, b T) int
}

type node[T any] struct {
	items []T        // leaf: the items; inner: a lower bound of each kid (that of kid 0 is not used)
	kids  []*node[T] // nil in a leaf
}

// New builds a tree from items that ascend strictly.
func New[T any](compare func(a, b T) int, sorted ...T) Tree[T] {
	t := Tree[T]{size: len(sorted), compare: compare}
	var level []*node[T]
	for leaf := range slices.Chunk(sorted, fan) {
		level = append(level, &node[T]{items: slices.Clone(leaf)})
	}
	for len(level) > 1 {
		var above []*node[T]
		for kids := range slices.Chunk(level, fan) {
			n := &node[T]{items: make([]T, len(kids)), kids: slices.Clone(kids)}
			for i, kid := range kids {
				n.items[i] = kid.items[0]
			}
			above = append(above, n)
		}
		level = above
	}
	if len(level) == 1 {
		t.root = level[0]
	}
	return t
}

// Build sorts the items, in place, and builds a tree from them. Where two of
// them are equal it returns one of those, and no tree.
func Build[T any](compare func(a, b T) int, items []T) (t Tree[T], twice *T) {
	if !slices.IsSortedFunc(items, compare) {
		slices.SortFunc(items, compare)
	}
	for i := 1; i < len(items); i++ {
		if compare(items[i-1], items[i]) == 0 {
			return t, &items[i]
		}
	}
	return New(compare, items...), nil
}

// search returns the index of the first item for which probe is not negative,
// and whether it is zero there. probe compares an item with what is sought.
func search[T any](items []T, probe func(T) int) (int, bool) {
	lo, hi := 0, len(items)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); probe(items[mid]) < 0 {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(items) && probe(items[lo]) == 0
}

// kid returns the index of the kid that may hold what probe seeks.
func (n *node[T]) kid(probe func(T) int) int {
	i, found := search(n.items[1:], probe)
	if found {
		i++
	}
	return i
}

// Len is the number of items.
func (t Tree[T]) Len() int { return t.size }

// Get returns the item for which probe is zero.
func (t Tree[T]) Get(probe func(T) int) (item T, found bool) {
	n := t.root
	if n == nil {
		return item, false
	}
	for n.kids != nil {
		n = n.kids[n.kid(probe)]
	}
	if i, ok := search(n.items, probe); ok {
		return n.items[i], true
	}
	return item, false
}

// From yields, in order, the items for which probe is not negative. Probe must
// ascend with the items, and be zero for one of them at most.
func (t Tree[T]) From(probe func(T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.root != nil {
			t.root.from(probe, yield)
		}
	}
}

func (n *node[T]) from(probe func(T) int, yield func(T) bool) bool {
	if n.kids == nil {
		i, _ := search(n.items, probe)
		for _, item := range n.items[i:] {
			if !yield(item) {
				return false
			}
		}
		return true
	}
	i := n.kid(probe)
	if !n.kids[i].from(probe, yield) {
		return false
	}
	for _, kid := range n.kids[i+1:] {
		if !kid.all(yield) {
			return false
		}
	}
	return true
}

// All yields the items in order.
func (t Tree[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		if t.root != nil {
			t.root.all(yield)
		}
	}
}

func (n *node[T]) all(yield func(T) bool) bool {
	if n.kids == nil {
		for _, item := range n.items {
			if !yield(item) {
				return false
			}
		}
		return true
	}
	for _, kid := range n.kids {
		if !kid.all(yield) {
			return false
		}
	}
	return true
}

// With returns the tree with item added, or put in the place of its equal.
func (t Tree[T]) With(item T) Tree[T] {
	if t.root == nil {
		t.root, t.size = &node[T]{items: []T{item}}, 1
		return t
	}
	left, right, replaced := t.root.with(item, func(e T) int { return t.compare(e, item) })
	if right != nil {
		left = &node[T]{items: []T{left.items[0], right.items[0]}, kids: []*node[T]{left, right}}
	}
	t.root = left
	if !replaced {
		t.size++
	}
	return t
}

func (n *node[T]) with(item T, probe func(T) int) (left, right *node[T], replaced bool) {
	if n.kids == nil {
		i, found := search(n.items, probe)
		if found {
			items := slices.Clone(n.items)
			items[i] = item
			return &node[T]{items: items}, nil, true
		}
		left, right = split(inserted(n.items, i, item), nil, i)
		return left, right, false
	}
	i := n.kid(probe)
	kid, next, replaced := n.kids[i].with(item, probe)
	if next == nil {
		kids := slices.Clone(n.kids)
		kids[i] = kid
		return &node[T]{items: n.items, kids: kids}, nil, replaced
	}
	kids := inserted(n.kids, i+1, next)
	kids[i] = kid
	left, right = split(inserted(n.items, i+1, next.items[0]), kids, i+1)
	return left, right, replaced
}

// split makes one or two nodes. After an insertion at the end the first stays
// full, because ids mostly ascend with time.
func split[T any](items []T, kids []*node[T], at int) (left, right *node[T]) {
	if len(items) <= fan {
		return &node[T]{items: items, kids: kids}, nil
	}
	mid := len(items) / 2
	if at == len(items)-1 {
		mid = at
	}
	left = &node[T]{items: slices.Clone(items[:mid])}
	right = &node[T]{items: slices.Clone(items[mid:])}
	if kids != nil {
		left.kids, right.kids = slices.Clone(kids[:mid]), slices.Clone(kids[mid:])
	}
	return left, right
}

// Without returns the tree without the item that compares equal.
func (t Tree[T]) Without(item T) Tree[T] {
	if t.root == nil {
		return t
	}
	root, found := t.root.without(func(e T) int { return t.compare(e, item) })
	if !found {
		return t
	}
	for root != nil && len(root.kids) == 1 {
		root = root.kids[0]
	}
	t.root = root
	t.size--
	return t
}

func (n *node[T]) without(probe func(T) int) (*node[T], bool) {
	if n.kids == nil {
		i, found := search(n.items, probe)
		if !found {
			return n, false
		}
		if len(n.items) == 1 {
			return nil, true
		}
		return &node[T]{items: removed(n.items, i)}, true
	}
	i := n.kid(probe)
	kid, found := n.kids[i].without(probe)
	switch {
	case !found:
		return n, false
	case kid != nil:
		kids := slices.Clone(n.kids)
		kids[i] = kid
		return &node[T]{items: n.items, kids: kids}, true
	case len(n.kids) == 1:
		return nil, true
	}
	return &node[T]{items: removed(n.items, i), kids: removed(n.kids, i)}, true
}

func inserted[E any](s []E, i int, e E) []E {
	out := make([]E, len(s)+1)
	copy(out, s[:i])
	out[i] = e
	copy(out[i+1:], s[i:])
	return out
}

func removed[E any](s []E, i int) []E {
	out := make([]E, len(s)-1)
	copy(out, s[:i])
	copy(out[i:], s[i+1:])
	return out
}
