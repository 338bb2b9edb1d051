package tree

import (
	"cmp"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func probeInt(n int) func(int) int { return func(e int) int { return cmp.Compare(e, n) } }

// The tree against a sorted slice; and every earlier version of the tree must
// still hold what it held.
func TestAgainstSlice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.IntRange(0, rapid.SampledFrom([]int{5, 200, 5000}).Draw(t, "range"))
		start := slices.Compact(slices.Sorted(slices.Values(rapid.SliceOfN(values, 0, 300).Draw(t, "start"))))
		tr, twin := New(cmp.Compare[int], start...), slices.Clone(start)
		type version struct {
			tree Tree[int]
			twin []int
		}
		var versions []version
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			v := values.Draw(t, "v")
			i, found := slices.BinarySearch(twin, v)
			switch rapid.IntRange(0, 9).Draw(t, "op") {
			case 0, 1, 2, 3:
				if tr = tr.With(v); !found {
					twin = slices.Insert(slices.Clone(twin), i, v)
				}
			case 4, 5, 6:
				if tr = tr.Without(v); found {
					twin = slices.Delete(slices.Clone(twin), i, i+1)
				}
			case 7:
				if _, got := tr.Get(probeInt(v)); got != found {
					t.Fatalf("get %d: %v", v, got)
				}
			case 8:
				if got := slices.Collect(tr.From(probeInt(v))); !slices.Equal(got, twin[i:]) {
					t.Fatalf("from %d: %v, not %v", v, got, twin[i:])
				}
			case 9:
				versions = append(versions, version{tr, twin})
			}
		}
		for _, v := range append(versions, version{tr, twin}) {
			if got := slices.Collect(v.tree.All()); !slices.Equal(got, v.twin) || v.tree.size != len(v.twin) {
				t.Fatalf("all: %v (size %d), not %v", got, v.tree.size, v.twin)
			}
		}
	})
}

func TestEmptiesAndFillsDensely(t *testing.T) {
	tr := New(cmp.Compare[int])
	for i := range 10_000 {
		tr = tr.With(i)
	}
	leaves := 0
	var count func(n *node[int])
	count = func(n *node[int]) {
		if n.kids == nil {
			leaves++
		}
		for _, k := range n.kids {
			count(k)
		}
	}
	count(tr.root)
	if most := 10_000/fan + 1; leaves > most {
		t.Errorf("ascending insertions left %d leaves, at most %d expected", leaves, most)
	}
	for i := range 10_000 {
		tr = tr.Without((i * 7919) % 10_000)
	}
	if tr.root != nil || tr.size != 0 {
		t.Errorf("an emptied tree keeps a root (size %d)", tr.size)
	}
}
