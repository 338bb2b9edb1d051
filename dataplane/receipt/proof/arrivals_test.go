package proof

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// The short reading of a leaf gives the id that the whole one gives.
func TestRequestOf(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	word := func(most int) string { return strings.Repeat("x", rng.IntN(most)) }
	for range 2000 {
		f := &Facts{Leaf: word(400), RequestID: word(40), Org: word(3), Model: word(3), Streamed: rng.IntN(2) == 0, Served: word(3), Ended: word(3)}
		if rng.IntN(2) == 0 {
			f.Key, f.Project, f.Endpoint, f.EntryRegion, f.EntryNode = "k", "p", "e", "r", "n"
			f.Region, f.Node, f.Pool, f.Retention, f.Residency = "r", "n", "p", "r", "r"
		}
		leaf := AppendLeaf(nil, f)
		if whole, err := decodeLeaf(leaf); err != nil || whole.RequestID != string(requestOf(leaf)) {
			t.Fatalf("%q, %v, of %+v", requestOf(leaf), err, f)
		}
		cut := leaf[:rng.IntN(len(leaf))]
		if id := string(requestOf(cut)); id != "" && id != f.RequestID {
			t.Fatalf("%q of a leaf that was cut", id)
		}
	}
}

func TestArrivals(t *testing.T) {
	begin := time.UnixMilli(1_800_000_000_000)
	b := new(Batch)
	add := func(id string) {
		b.leaves = AppendLeaf(b.leaves, &Facts{Leaf: "leaf_1", RequestID: id})
		b.ends = append(b.ends, uint32(len(b.leaves)))
	}
	if first, last := b.Arrivals(); !first.IsZero() || !last.IsZero() {
		t.Errorf("of nothing: %v, %v", first, last)
	}
	for _, after := range []time.Duration{5 * time.Second, 2 * time.Second, 9 * time.Second, 7 * time.Second} {
		add(idAt(begin.Add(after)))
		add("none of ours")
	}
	if first, last := b.Arrivals(); !first.Equal(begin.Add(2*time.Second)) || !last.Equal(begin.Add(9*time.Second)) {
		t.Errorf("%v, %v", first, last)
	}
}

func idAt(at time.Time) string {
	var b [10]byte
	ms := uint64(at.UnixMilli())
	for i := 9; i >= 0; i-- {
		b[i] = crockford[ms&31]
		ms >>= 5
	}
	return "req_" + string(b[:]) + "0000" + "000000000000"
}

func FuzzRequestOf(f *testing.F) {
	f.Add(AppendLeaf(nil, &Facts{Leaf: "leaf_12345678.1", RequestID: idAt(time.UnixMilli(1))}))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		got := string(requestOf(leaf))
		if whole, err := decodeLeaf(leaf); err == nil && whole.RequestID != got {
			t.Errorf("%q, the whole leaf says %q", got, whole.RequestID)
		}
	})
}
