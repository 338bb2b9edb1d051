package hub

import (
	"math/rand/v2"
	"slices"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
)

// TestRing compares a ring with the whole history, rescanned at each question.
func TestRing(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		limit := 1 + rng.IntN(20)
		var r ring
		var all []controlplane.Point // everything since the last jump
		var base controlplane.Point  // before all[0]
		epoch := controlplane.Epoch{Counter: 1, Region: "a"}
		seq := uint64(rng.IntN(3))
		base = controlplane.Point{Epoch: epoch, Seq: seq}
		prev := epoch
		add := func() {
			seq++
			e := &registry.Entry{Shard: "s", Epoch: epoch, Seq: seq, Prev: prev}
			r.add(e, item{point: e.Point(), frame: make([]byte, 10)}, limit, 150)
			prev = epoch
			all = append(all, e.Point())
		}
		for range 200 {
			switch rng.IntN(12) {
			case 0: // the next epoch begins
				epoch = controlplane.Epoch{Counter: epoch.Counter + 1, Region: "b"}
				add()
			case 1: // told again
				if n := len(all); n > 0 {
					p := all[rng.IntN(n)]
					r.add(&registry.Entry{Epoch: p.Epoch, Seq: p.Seq, Prev: p.Epoch}, item{point: p, frame: make([]byte, 10)}, limit, 150)
				}
			case 2: // a gap
				base = controlplane.Point{Epoch: epoch, Seq: seq + 2}
				seq, all = seq+2, nil
				prev = epoch
				add()
			default:
				add()
			}
			if !r.known {
				continue
			}
			if got := r.last(); len(all) > 0 && got != all[len(all)-1] {
				t.Fatalf("seed %d: last %v, want %v", seed, got, all[len(all)-1])
			}
			if n := len(r.live()); n > limit || r.bytes > 150 || r.bytes != 10*n {
				t.Fatalf("seed %d: %d items, %d bytes", seed, n, r.bytes)
			}
			ask := controlplane.Point{Epoch: controlplane.Epoch{Counter: uint64(rng.IntN(int(epoch.Counter + 2))), Region: "b"}, Seq: uint64(rng.IntN(int(seq + 3)))}
			if n := len(all); n > 0 && rng.IntN(2) == 0 {
				ask = all[rng.IntN(n)]
			}
			// The oracle: ask is base or in all, and near enough to the end.
			at := slices.Index(all, ask)
			known := at >= 0 || ask == base
			held := min(limit, 15, len(all))
			want := len(all) - 1 - at
			items, ok := r.after(ask)
			if ok != (known && want <= held) {
				t.Fatalf("seed %d: after(%v) = %v; all %v base %v held %d", seed, ask, ok, all, base, held)
			}
			if ok && (len(items) != want || (want > 0 && items[0].point != all[at+1])) {
				t.Fatalf("seed %d: after(%v) gives %d items, want %d", seed, ask, len(items), want)
			}
		}
	}
}

// TestBranch: where a copy whose end conflicts with the ring's history leaves it.
func TestBranch(t *testing.T) {
	e := func(counter uint64, region string) controlplane.Epoch {
		return controlplane.Epoch{Counter: counter, Region: region}
	}
	at := func(e controlplane.Epoch, seq uint64) controlplane.Point {
		return controlplane.Point{Epoch: e, Seq: seq}
	}
	one, two, three := e(1, "us"), e(2, "eu"), e(3, "ap")
	// 5 of the first epoch, then 2 of the second: a branch of the first's 6 and 7 lost.
	build := func(base controlplane.Point, points ...controlplane.Point) *ring {
		r := &ring{known: true, base: base}
		for _, p := range points {
			r.items = append(r.items, item{point: p})
		}
		return r
	}
	r := build(at(one, 3), at(one, 4), at(one, 5), at(two, 6), at(two, 7))
	for _, c := range []struct {
		from controlplane.Point
		ok   bool
		next uint64 // first entry sent
	}{
		{at(one, 7), true, 6},
		{at(one, 6), true, 6},
		{at(three, 8), false, 0},         // ahead: held, not cut
		{at(e(1, "ap"), 7), false, 0},    // of an epoch that is not this history's
		{at(one, 2), false, 0},           // too old for the ring
		{controlplane.Point{}, false, 0}, // holds nothing
		{at(e(2, "ap"), 9), false, 0},    // a rival's opening that lost
	} {
		items, ok := r.branch(c.from)
		if ok != c.ok || ok && items[0].point.Seq != c.next {
			t.Errorf("from %v: %v %v, want %v from %d", c.from, items, ok, c.ok, c.next)
		}
	}
	if items, ok := build(at(one, 5), at(two, 6)).branch(at(one, 9)); !ok || len(items) != 1 {
		t.Errorf("a branch at the ring's base: %v %v", items, ok)
	}
}
