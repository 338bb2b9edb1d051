package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// KeyRef is what the request path needs of a key record. Hash and PrevHash
// belong to the view and must not be changed.
type KeyRef struct {
	ID        string
	Project   string
	Class     string // live, test; empty (which matches nothing) when the record says something else
	Hash      []byte // bcrypt
	PrevHash  []byte // valid until PrevUntil; nil when the key was not rotated
	PrevUntil int64  // Unix milliseconds
	Expires   int64  // Unix milliseconds; 0 = never
	Revoked   int64  // Unix milliseconds; 0 = in force
	Revision  uint64 // to compare with a verdict's
	Shard     controlplane.Shard
}

// keyTable is one piece of the key table: packed entries in one arena without
// pointers, and an open-addressed index of offsets into it.
//
// The arena only grows, and versions of a table share it: a reader of an older
// version never looks past that version's length. The index is copied on the
// first change of each publication.
type keyTable struct {
	edit  uint64
	index []uint32 // offset + 1; 0 = free; length is a power of two
	arena []byte
	count int
	waste int // bytes of the arena that no index entry points to
}

const (
	keyLive = 1
	keyTest = 2
)

var errKeyRecord = errors.New("key record that cannot be held")

// packKey appends the packed form of a key record to dst: a length-prefixed
// id first, so that a probe compares nothing else.
func packKey(dst []byte, shard uint16, m registry.Meta, k *registry.Key) ([]byte, error) {
	if len(m.ID) > 255 || len(k.Project) > 255 || len(k.Hash) > 255 || len(k.PrevHash) > 255 {
		return dst, fmt.Errorf("%w: %.40q: a field is longer than 255 bytes", errKeyRecord, m.ID)
	}
	if k.PrevUntil < 0 || k.Expires < 0 || k.Revoked < 0 {
		return dst, fmt.Errorf("%w: %q: a time is negative", errKeyRecord, m.ID)
	}
	start := len(dst)
	dst = append(dst, byte(len(m.ID)))
	dst = append(dst, m.ID...)
	dst = append(dst, 0, 0, class(k.Class)) // size, filled in below
	dst = binary.LittleEndian.AppendUint16(dst, shard)
	dst = append(dst, byte(len(k.Project)))
	dst = append(dst, k.Project...)
	dst = append(dst, byte(len(k.Hash)))
	dst = append(dst, k.Hash...)
	dst = append(dst, byte(len(k.PrevHash)))
	dst = append(dst, k.PrevHash...)
	dst = binary.AppendUvarint(dst, m.Revision)
	dst = binary.AppendUvarint(dst, uint64(k.PrevUntil))
	dst = binary.AppendUvarint(dst, uint64(k.Expires))
	dst = binary.AppendUvarint(dst, uint64(k.Revoked))
	binary.LittleEndian.PutUint16(dst[start+1+len(m.ID):], uint16(len(dst)-start))
	return dst, nil
}

func class(name string) byte {
	switch name {
	case "live":
		return keyLive
	case "test":
		return keyTest
	}
	return 0
}

// packed is one entry of an arena.
type packed []byte

func (p packed) id() []byte { return p[1 : 1+int(p[0])] }
func (p packed) size() int  { return int(binary.LittleEndian.Uint16(p[1+int(p[0]):])) }
func (p packed) shard() uint16 {
	return binary.LittleEndian.Uint16(p[1+int(p[0])+3:])
}

func (p packed) setShard(n uint16) { binary.LittleEndian.PutUint16(p[1+int(p[0])+3:], n) }

// take returns the next length-prefixed bytes and moves past them.
func (p *packed) take() []byte {
	n := int((*p)[0])
	b := (*p)[1 : 1+n : 1+n]
	*p = (*p)[1+n:]
	return b
}

func (p *packed) number() uint64 {
	v, n := binary.Uvarint(*p)
	*p = (*p)[n:]
	return v
}

// unpack fills k but for ID, Project and Shard, and returns those two raw.
func (p packed) unpack(k *KeyRef) (project []byte, shard uint16) {
	p.take()
	switch p[2] {
	case keyLive:
		k.Class = "live"
	case keyTest:
		k.Class = "test"
	}
	shard = binary.LittleEndian.Uint16(p[3:])
	p = p[5:]
	project = p.take()
	k.Hash = p.take()
	if prev := p.take(); len(prev) > 0 {
		k.PrevHash = prev
	}
	k.Revision = p.number()
	k.PrevUntil = int64(p.number())
	k.Expires = int64(p.number())
	k.Revoked = int64(p.number())
	return project, shard
}

// find returns the entry of id, or nil.
func (t *keyTable) find(hash uint64, id string) packed {
	if t == nil || t.count == 0 {
		return nil
	}
	mask := len(t.index) - 1
	for i := int(hash) & mask; t.index[i] != 0; i = (i + 1) & mask {
		if p := packed(t.arena[t.index[i]-1:]); string(p.id()) == id {
			return p
		}
	}
	return nil
}

// grown returns a table that edit may change and that has room for more
// entries beyond the present ones.
func (t *keyTable) grown(edit uint64, seed maphash.Seed, more int) *keyTable {
	if t == nil {
		t = &keyTable{edit: edit}
	}
	size := max(8, len(t.index))
	for (t.count+more)*4 > size*3 {
		size *= 2
	}
	fits := size == len(t.index)
	if fits && t.edit == edit {
		return t
	}
	fresh := &keyTable{edit: edit, index: make([]uint32, size), arena: t.arena, count: t.count, waste: t.waste}
	if fits {
		copy(fresh.index, t.index)
		return fresh
	}
	for _, at := range t.index {
		if at != 0 {
			fresh.place(seed, at)
		}
	}
	return fresh
}

// place writes offset at (which is +1) of an entry whose id the index lacks.
func (t *keyTable) place(seed maphash.Seed, at uint32) {
	mask := len(t.index) - 1
	i := int(maphash.Bytes(seed, packed(t.arena[at-1:]).id())) & mask
	for t.index[i] != 0 {
		i = (i + 1) & mask
	}
	t.index[i] = at
}

// put adds or replaces the entry whose packed form is p, and returns the table to use.
func (t *keyTable) put(edit uint64, seed maphash.Seed, p packed) (*keyTable, error) {
	t = t.grown(edit, seed, 1)
	if len(t.arena)+len(p) > math.MaxUint32-1 {
		return t, fmt.Errorf("%w: a piece of the key table is full", errKeyRecord)
	}
	mask := len(t.index) - 1
	i := int(maphash.Bytes(seed, p.id())) & mask
	for t.index[i] != 0 {
		old := packed(t.arena[t.index[i]-1:])
		if string(old.id()) == string(p.id()) {
			t.waste += old.size()
			t.count--
			break
		}
		i = (i + 1) & mask
	}
	t.index[i] = uint32(len(t.arena)) + 1
	t.arena = append(t.arena, p...)
	t.count++
	return t.compacted(edit, seed), nil
}

// remove takes id out, and returns the table to use.
func (t *keyTable) remove(edit uint64, seed maphash.Seed, id string) *keyTable {
	hash := maphash.String(seed, id)
	p := t.find(hash, id)
	if p == nil {
		return t
	}
	t = t.grown(edit, seed, 0)
	mask := len(t.index) - 1
	i := int(hash) & mask
	for string(packed(t.arena[t.index[i]-1:]).id()) != id {
		i = (i + 1) & mask
	}
	t.index[i] = 0
	t.waste += p.size()
	t.count--
	// Move up what had probed past the freed slot.
	for j := (i + 1) & mask; t.index[j] != 0; j = (j + 1) & mask {
		at := t.index[j]
		t.index[j] = 0
		t.place(seed, at)
	}
	return t.compacted(edit, seed)
}

// compacted rewrites the arena once a quarter of it is waste.
func (t *keyTable) compacted(edit uint64, seed maphash.Seed) *keyTable {
	if t.waste < 4096 || t.waste*4 < len(t.arena) {
		return t
	}
	return rebuild(edit, seed, t, func(packed) bool { return true }, nil)
}

// rebuild returns a table of exactly the entries of old that keep accepts and
// all of add, which must share no id with them.
func rebuild(edit uint64, seed maphash.Seed, old *keyTable, keep func(packed) bool, add *keyTable) *keyTable {
	count, size := 0, 0
	measure := func(p packed) { count++; size += p.size() }
	old.each(func(p packed) {
		if keep(p) {
			measure(p)
		}
	})
	add.each(measure)
	slots := 8
	for count*4 > slots*3 {
		slots *= 2
	}
	t := &keyTable{edit: edit, index: make([]uint32, slots), arena: make([]byte, 0, size), count: count}
	move := func(p packed) {
		t.arena = append(t.arena, p[:p.size()]...)
		t.place(seed, uint32(len(t.arena)-p.size())+1)
	}
	old.each(func(p packed) {
		if keep(p) {
			move(p)
		}
	})
	add.each(move)
	return t
}

// each visits the entries in no order.
func (t *keyTable) each(visit func(packed)) {
	if t == nil {
		return
	}
	for _, at := range t.index {
		if at != 0 {
			visit(packed(t.arena[at-1:]))
		}
	}
}
