package view

import (
	"hash/maphash"
	"maps"
)

// fan is how many pieces each table is cut into: a change copies one piece.
const fan = 256

// cow is a map in fan pieces that are copied on their first change after a
// publication. Whoever holds an older cow keeps reading what it held.
// The zero cow is empty; only the store changes one.
type cow[V any] struct {
	edit    uint64 // publication that owns pieces
	pieces  *[fan]piece[V]
	entries int
}

type piece[V any] struct {
	edit uint64
	m    map[string]V
}

func (c *cow[V]) get(seed maphash.Seed, id string) (V, bool) {
	if c.pieces == nil {
		var zero V
		return zero, false
	}
	v, ok := c.pieces[maphash.String(seed, id)>>56].m[id]
	return v, ok
}

// own makes the piece of id safe to change within edit, and returns it.
func (c *cow[V]) own(edit uint64, seed maphash.Seed, id string) *piece[V] {
	if c.pieces == nil {
		c.pieces, c.edit = new([fan]piece[V]), edit
	} else if c.edit != edit {
		fresh := *c.pieces
		c.pieces, c.edit = &fresh, edit
	}
	p := &c.pieces[maphash.String(seed, id)>>56]
	if p.m == nil {
		p.m, p.edit = make(map[string]V), edit
	} else if p.edit != edit {
		p.m, p.edit = maps.Clone(p.m), edit
	}
	return p
}

func (c *cow[V]) set(edit uint64, seed maphash.Seed, id string, v V) {
	p := c.own(edit, seed, id)
	if _, had := p.m[id]; !had {
		c.entries++
	}
	p.m[id] = v
}

func (c *cow[V]) remove(edit uint64, seed maphash.Seed, id string) {
	if _, had := c.get(seed, id); !had {
		return
	}
	delete(c.own(edit, seed, id).m, id)
	c.entries--
}

// all calls yield for each entry, in no order, until it returns false.
func (c *cow[V]) all(yield func(string, V) bool) {
	if c.pieces == nil {
		return
	}
	for i := range c.pieces {
		for id, v := range c.pieces[i].m {
			if !yield(id, v) {
				return
			}
		}
	}
}
