package push

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestShelf compares a shelf with a list, and a reader's view of it with the list's.
func TestShelf(t *testing.T) {
	type pair struct{ k, v int }
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 2))
		limit := 1 + rng.IntN(12)
		s := newShelf[int, int](limit)
		var list []pair // oldest first
		seen := map[int]int{}
		var cursor uint64
		for i := range 400 {
			k := rng.IntN(20)
			switch rng.IntN(5) {
			case 0:
				s.drop(k)
				list = slices.DeleteFunc(list, func(p pair) bool { return p.k == k })
			case 1:
				values, next, more := s.after(cursor, 1+rng.IntN(5))
				cursor = next
				for _, v := range values {
					seen[v%20] = v
				}
				if more {
					continue
				}
				for _, p := range list {
					if seen[p.k] != p.v {
						t.Fatalf("seed %d: the reader has %d of %d, want %d", seed, seen[p.k], p.k, p.v)
					}
				}
			default:
				v := 20*(i+1) + k
				s.put(k, v)
				list = append(slices.DeleteFunc(list, func(p pair) bool { return p.k == k }), pair{k, v})
				list = list[max(0, len(list)-limit):]
			}
			if s.len() != len(list) || len(s.slots) > 2*limit+70 {
				t.Fatalf("seed %d: %d held in %d slots, want %d", seed, s.len(), len(s.slots), len(list))
			}
			for _, p := range list {
				if v, ok := s.get(p.k); !ok || v != p.v {
					t.Fatalf("seed %d: get(%d) = %d, %v, want %d", seed, p.k, v, ok, p.v)
				}
			}
		}
	}
}
