package push

import "slices"

// shelf is a bounded table that can be followed: the newest value of each key,
// in the order the values came. A reader keeps a cursor; starting at zero it
// sees the whole table first and then what arrives. Full, it loses its oldest.
type shelf[K comparable, V any] struct {
	limit int
	next  uint64 // index that the next value gets; indexes are never reused
	at    map[K]uint64
	slots []slot[K, V] // by index; some are dead (at[key] != index)
}

type slot[K comparable, V any] struct {
	index uint64
	key   K
	value V
}

func newShelf[K comparable, V any](limit int) *shelf[K, V] {
	return &shelf[K, V]{limit: limit, next: 1, at: make(map[K]uint64)}
}

func (s *shelf[K, V]) find(index uint64) int {
	i, _ := slices.BinarySearchFunc(s.slots, index, func(sl slot[K, V], want uint64) int {
		switch {
		case sl.index < want:
			return -1
		case sl.index > want:
			return 1
		}
		return 0
	})
	return i
}

func (s *shelf[K, V]) get(key K) (value V, ok bool) {
	index, ok := s.at[key]
	if !ok {
		return value, false
	}
	return s.slots[s.find(index)].value, true
}

func (s *shelf[K, V]) put(key K, value V) {
	s.at[key] = s.next
	s.slots = append(s.slots, slot[K, V]{s.next, key, value})
	s.next++
	for len(s.at) > s.limit {
		if oldest := &s.slots[0]; s.at[oldest.key] == oldest.index {
			delete(s.at, oldest.key)
		}
		s.slots = s.slots[1:]
	}
	s.sweep()
}

func (s *shelf[K, V]) drop(key K) {
	if _, ok := s.at[key]; ok {
		delete(s.at, key)
		s.sweep()
	}
}

// sweep forgets dead slots once they are the majority.
func (s *shelf[K, V]) sweep() {
	if len(s.slots) < 2*len(s.at)+64 {
		return
	}
	kept := make([]slot[K, V], 0, len(s.at)+64)
	for _, sl := range s.slots {
		if s.at[sl.key] == sl.index {
			kept = append(kept, sl)
		}
	}
	s.slots = kept
}

// after returns up to limit values from cursor on, and the cursor to continue
// from. It looks at no more than 8×limit slots at a time, so that a reader holds
// the lock briefly; more says whether some are left.
func (s *shelf[K, V]) after(cursor uint64, limit int) (values []V, next uint64, more bool) {
	i := s.find(cursor)
	for looked := 0; i < len(s.slots); i, looked = i+1, looked+1 {
		sl := &s.slots[i]
		if len(values) == limit || looked == 8*limit {
			return values, sl.index, true
		}
		if s.at[sl.key] == sl.index {
			values = append(values, sl.value)
		}
	}
	return values, s.next, false
}

func (s *shelf[K, V]) len() int { return len(s.at) }
