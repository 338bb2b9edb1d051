package receipts

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"ringmain/dataplane/receipt/proof"
)

// What a search of the pages gives is what a search of all entries gives.
func TestIndexFindsWhatIsThere(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		spread := uint32(1 + rng.IntN(3000)) // few fingers: runs over several pages
		entries := make([]entry, rng.IntN(4*pageEntries))
		for i := range entries {
			entries[i] = entry{rng.Uint32N(spread), rng.Uint32N(50)}
		}
		naive := map[uint32][]uint32{}
		for _, e := range entries {
			naive[e.finger] = append(naive[e.finger], e.offset)
		}
		head, pages := encodeIndex(fence{bytes: 7, batches: min(3, len(entries)), first: 1, last: 2, signed: 3}, []uint32{4, 9}, entries)
		o, err := decodeOutline(head)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if at, ok := keyOf(o.keys, 9); len(o.keys) != 2 || at != 4 || !ok {
			t.Fatalf("keys %v: %d before 9", o.keys, at)
		}
		for want := range spread + 1 {
			var got []uint32
			first, end := o.pagesOf(want)
			for i := first; i < end; i++ {
				if len(pages[i]) != o.pageBytes(i) {
					t.Fatalf("seed %d: page %d of %d has %d bytes, %d by the outline", seed, i, len(pages), len(pages[i]), o.pageBytes(i))
				}
				if got, err = searchPage(got, pages[i], want); err != nil {
					t.Fatal(err)
				}
			}
			slices.Sort(naive[want])
			if !slices.Equal(got, naive[want]) {
				t.Fatalf("seed %d: %d is at %v, want %v", seed, want, got, naive[want])
			}
			if len(got) == 0 && end-first > 1 {
				t.Fatalf("seed %d: %d pages are read for nothing", seed, end-first)
			}
		}
	}
}

// Whatever an outline says, what can be read of it is within it.
func FuzzDecodeOutline(f *testing.F) {
	entries := make([]entry, 3*pageEntries)
	for i := range entries {
		entries[i] = entry{uint32(i) * 77, uint32(i)}
	}
	head, _ := encodeIndex(fence{bytes: 1 << 24, batches: 20, first: 1, last: 2, signed: 3}, []uint32{120, 5000}, entries)
	f.Add(head, uint32(77))
	empty, _ := encodeIndex(fence{}, nil, nil)
	f.Add(empty, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, want uint32) {
		o, err := decodeOutline(b)
		if err != nil {
			if !errors.Is(err, errIndex) {
				t.Error(err)
			}
			return
		}
		first, end := o.pagesOf(want)
		if first < 0 || end > len(o.pages) || first > max(end, 0) && end > 0 {
			t.Errorf("pages %d to %d of %d", first, end, len(o.pages))
		}
		for i := first; i < end; i++ {
			if n := o.pageBytes(i); n <= 0 || n > pageSize {
				t.Errorf("page %d of %d has %d bytes", i, len(o.pages), n)
			}
		}
		if at, ok := keyOf(o.keys, want); ok && at >= want {
			t.Errorf("the key at %d stands before %d", at, want)
		}
	})
}

// An index that was torn or changed is noticed and made again, at the start or
// when it is looked into; the receipts are found all the same.
func TestTornIndex(t *testing.T) {
	r := newRig(t)
	s := r.open()
	ids := append(r.put(s, 700), r.put(s, 3)...)
	r.close(s)
	path := r.glob("*" + indexSuffix)[0]
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, index []byte) {
		t.Helper()
		if err := os.WriteFile(path, index, 0o600); err != nil {
			t.Fatal(err)
		}
		s := r.open()
		r.found(s, ids[0], ids[350], ids[699], ids[702])
		if d := s.Stats().Damaged; d != 0 {
			t.Errorf("%s: %d damaged", what, d)
		}
		for _, id := range ids { // every page is read
			want := finger(proof.RequestKey(id))
			for _, p := range s.places(func(*fence) bool { return true }, want) {
				if err := s.look(&p, want); err != nil || len(p.offsets) == 0 {
					t.Fatalf("%s: %s: at %v, %v", what, id, p.offsets, err)
				}
			}
		}
		r.close(s)
		again, err := os.ReadFile(path)
		if err != nil || bytes.Equal(again, index) || len(again) != len(whole) {
			t.Errorf("%s: it was not made again: %d bytes, %v", what, len(again), err)
		}
	}
	for _, n := range []int{0, 3, 50, 130, 200, len(whole) / 2, len(whole) - 1} {
		check(fmt.Sprintf("cut at %d of %d", n, len(whole)), whole[:n])
	}
	for _, at := range []int{0, 4, 9, 60, 120, 160, 250, 1000, 5000, len(whole) - 1} {
		changed := bytes.Clone(whole)
		changed[at] ^= 4
		check(fmt.Sprintf("byte %d of %d", at, len(whole)), changed)
	}
	check("zeros", append(bytes.Clone(whole[:300]), make([]byte, len(whole)-300)...))
	check("longer", append(bytes.Clone(whole), 0))
}

// Nobody else's index is taken, and what a crash left of one goes.
func TestStrayIndexes(t *testing.T) {
	r := newRig(t)
	s := r.open()
	one := r.put(s, 2)
	r.close(s)
	s = r.open()
	two := r.put(s, 2)
	r.close(s)
	indexes := r.glob("*" + indexSuffix)
	other, err := os.ReadFile(indexes[0])
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(indexes[0])
	for _, name := range []string{indexes[1], filepath.Join(dir, "0000000000000000001.idx"), indexes[0] + ".tmp"} {
		if err := os.WriteFile(name, other, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = r.open()
	r.found(s, append(one, two...)...)
	r.close(s)
	if left := r.glob("*"); len(left) != 4 {
		t.Errorf("left: %v", left)
	}
}

// No file is opened for a request that arrived when nothing was kept.
func TestFenceKeepsFromLooking(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment, r.cfg.Total = 4<<10, 1<<30
	s := r.open()
	start := r.clock()
	var ids []string
	for range 20 {
		ids = append(ids, r.put(s, 3)...)
		r.pass(10 * time.Minute)
	}
	dir := filepath.Join(r.cfg.Dir, "receipts")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for after := -5 * time.Minute; after < 4*time.Hour; after += 10 * time.Minute {
		if n := len(s.places(func(f *fence) bool { return f.admits(start.Add(after).UnixMilli()) }, 0)); n > 1 {
			t.Errorf("%d segments are looked into for a request that arrived after %v", n, after)
		}
	}
	if b, err := s.Find(ids[0]); b != nil || err != nil {
		t.Errorf("of what is gone: %d bytes, %v", len(b), err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.close(s)
}

// Memory does not grow with what is kept.
func TestMemoryIsBounded(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment = 64 << 10
	r.cfg.Total = 1 << 30
	fill(t, r, 300, 250)
	heap := func() int64 {
		runtime.GC()
		runtime.GC() // what pools held
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	s := r.open()
	grown := heap() - before
	st := s.Stats()
	t.Logf("%d batches, %d bytes in %d segments: %d bytes of memory", st.Batches, st.Bytes, len(s.old), grown)
	if st.Batches != 300 || len(s.old) < 100 || grown > int64(len(s.old)*256)+32<<10 {
		t.Errorf("%d bytes of memory for %d batches in %d segments", grown, st.Batches, len(s.old))
	}
	r.close(s)
}

// fill puts batches of n receipts into a store, with no leave to wait for the medium.
func fill(t testing.TB, r *rig, batches, n int) (some string) {
	t.Helper()
	s := r.open()
	for range batches {
		raw, ids := r.batch(n)
		b, err := proof.ParseBatch(raw)
		if err == nil {
			err = s.append(b)
		}
		if err != nil {
			t.Fatal(err)
		}
		r.pass(time.Second)
		some = ids[n/2]
	}
	r.close(s)
	return some
}

// kill stops a store as the death of its process does: no index is written.
func kill(s *Store) {
	s.cancel()
	_ = s.group.Wait()
	if s.current != nil {
		_ = s.current.f.Close()
	}
}

// twin knows in which file each receipt went, and that it is found exactly as
// long as that file is there.
type twin struct {
	*rig
	rng  *rand.Rand
	in   map[string]string // id -> path of its segment
	age  map[string]time.Time
	size map[string]int64
}

// step checks what a step removed, and finds everything else.
func (w *twin) step(s *Store, what string) {
	w.t.Helper()
	sizes, total := map[string]int64{}, int64(0)
	for _, path := range w.glob("*") {
		info, err := os.Stat(path)
		if err != nil {
			w.t.Fatal(err)
		}
		total += info.Size()
		sizes[strings.TrimSuffix(strings.TrimSuffix(path, batchSuffix), indexSuffix)] += info.Size()
	}
	if total > w.cfg.Total {
		w.t.Fatalf("%s: %d bytes on disk of %d", what, total, w.cfg.Total)
	}
	if st := s.Stats(); st.Bytes != total || st.Damaged != 0 {
		w.t.Fatalf("%s: %d bytes on disk, %+v", what, total, st)
	}
	for path, size := range w.size {
		if _, kept := sizes[path]; kept {
			continue
		}
		old := w.clock().Sub(w.age[path]) > w.cfg.Age
		if full := total+size > w.cfg.Total-8<<10; !old && !full {
			w.t.Fatalf("%s: %s is gone, of %v, with %d bytes of %d in use", what, path, w.age[path], total, w.cfg.Total)
		}
	}
	w.size = sizes
	for id, path := range w.in {
		b, err := s.Find(id)
		if err != nil {
			w.t.Fatalf("%s: %s: %v\n%s", what, id, err, w.log)
		}
		if _, kept := sizes[path]; kept != (b != nil) {
			w.t.Fatalf("%s: %s of %s: %d bytes, the file is there: %v", what, id, path, len(b), kept)
		}
		if b == nil {
			delete(w.in, id)
			continue
		}
		e, err := proof.DecodeEntry(b)
		if err != nil || e.Facts().RequestID != id {
			w.t.Fatalf("%s: %s: %v", what, id, err)
		}
	}
	for range 3 { // and nothing else
		at := w.clock().Add(-time.Duration(w.rng.Int64N(int64(30 * time.Hour))))
		if b, err := s.Find(requestID(at, 1_000_000_000+w.rng.IntN(1000))); b != nil || err != nil {
			w.t.Fatalf("%s: an absent one: %d bytes, %v", what, len(b), err)
		}
	}
}

func TestTwin(t *testing.T) {
	for seed := range uint64(5) {
		rng := rand.New(rand.NewPCG(seed, 9))
		r := newRig(t)
		r.cfg.Total, r.cfg.Segment, r.cfg.Span, r.cfg.Age = 96<<10, 8<<10, 2*time.Hour, 9*time.Hour
		w := &twin{rig: r, rng: rng, in: map[string]string{}, age: map[string]time.Time{}, size: map[string]int64{}}
		s := r.open()
		for n := range 70 {
			var what string
			switch rng.IntN(12) {
			default:
				what = "a batch"
				for _, id := range r.put(s, 1+rng.IntN(6)) {
					path := strings.TrimSuffix(s.path(s.current.number, batchSuffix), batchSuffix)
					w.in[id], w.age[path] = path, r.clock()
				}
			case 6, 7:
				what = "time passes"
				r.pass(time.Duration(rng.Int64N(int64(90*time.Minute)) - int64(10*time.Minute)))
			case 8:
				what = "another keeper"
				r.close(s)
				s = r.open()
			case 9, 10:
				what = "it was killed"
				kill(s)
				s = r.open()
			case 11:
				what = "an index was torn"
				if indexes := r.glob("*" + indexSuffix); len(indexes) > 0 {
					w.tear(indexes[rng.IntN(len(indexes))])
				}
				if rng.IntN(2) == 0 {
					kill(s)
					s = r.open()
				} else { // what is torn counts until it is made again
					for id := range w.in {
						_, _ = s.Find(id)
					}
					continue
				}
			}
			w.step(s, fmt.Sprintf("seed %d, step %d: %s", seed, n, what))
		}
		r.close(s)
	}
}

// tear cuts, changes or removes a file.
func (w *twin) tear(path string) {
	w.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		w.t.Fatal(err)
	}
	switch w.rng.IntN(3) {
	case 0:
		err = os.Remove(path)
	case 1:
		err = os.WriteFile(path, b[:w.rng.IntN(len(b))], 0o600)
	case 2:
		b[w.rng.IntN(len(b))] ^= 1 << w.rng.IntN(8)
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// full is a store of 64 segments, and a request of one of them.
func full(b *testing.B) (*rig, string) {
	r := newRig(b)
	r.cfg.Segment = 1 << 20
	id := fill(b, r, 64*5, 400)
	b.Logf("%d segments, %d bytes", len(r.segments()), func() (n int64) {
		for _, path := range r.glob("*") {
			if info, err := os.Stat(path); err == nil {
				n += info.Size()
			}
		}
		return n
	}())
	return r, id
}

func BenchmarkOpen(b *testing.B) {
	r, _ := full(b)
	for b.Loop() {
		r.close(r.open())
	}
}

// BenchmarkRebuild makes the index of one segment again.
func BenchmarkRebuild(b *testing.B) {
	r, _ := full(b)
	s := r.open()
	defer r.close(s)
	b.SetBytes(s.old[0].bytes)
	for b.Loop() {
		c, err := s.scan(s.old[0].number)
		if err != nil {
			b.Fatal(err)
		}
		s.keepIndex(s.old[0], c)
	}
}

func BenchmarkFind(b *testing.B) {
	r, id := full(b)
	s := r.open()
	defer r.close(s)
	for b.Loop() {
		if e, err := s.Find(id); err != nil || e == nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFindAbsent asks for what no segment has, though its fence admits it:
// one segment, as a rule, and all of them if all hold an answer that took long.
func BenchmarkFindAbsent(b *testing.B) {
	r, id := full(b)
	absent := id[:20] + "9999999999"
	s := r.open()
	defer r.close(s)
	for _, all := range []bool{false, true} {
		b.Run(fmt.Sprintf("all=%v", all), func(b *testing.B) {
			for _, g := range s.old {
				if all {
					g.first = 1
					g.last = 1 << 50
				}
			}
			for b.Loop() {
				if e, err := s.Find(absent); err != nil || e != nil {
					b.Fatal(err, len(e))
				}
			}
		})
	}
}
