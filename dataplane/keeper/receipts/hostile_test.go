package receipts

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/dataplane/receipt/proof"
)

// A clock that was far ahead for a moment does not keep what was written
// since beyond its age.
func TestClockWasAhead(t *testing.T) {
	r := newRig(t)
	r.cfg.Span = time.Minute
	s := r.open()
	r.pass(200 * 24 * time.Hour)
	ahead := r.put(s, 1)
	r.pass(-200 * 24 * time.Hour)
	old := r.put(s, 1)
	r.pass(time.Hour)
	r.put(s, 1) // another segment
	r.found(s, ahead...)
	r.pass(25 * time.Hour)
	r.put(s, 1)
	r.lost(s, old...)
	r.close(s)
}

// A worker offers again what is not on disk yet: it takes no room twice.
func TestOfferedAgainWhileItWaits(t *testing.T) {
	r := newRig(t)
	s := r.open()
	dir := filepath.Join(r.cfg.Dir, "receipts")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	raw, ids := r.batch(1)
	for range 5 {
		s.Put(7, r.number, raw)
	}
	r.until("the failure", func() bool { return s.Stats().Failing != nil })
	if w := s.Stats().Waiting; w != len(raw) {
		t.Errorf("%d bytes wait, the batch has %d", w, len(raw))
	}
	s.Put(8, r.number, raw) // another worker's has the same number
	if w := s.Stats().Waiting; w != 2*len(raw) {
		t.Errorf("%d bytes wait, two batches have %d", w, 2*len(raw))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r.until("recovery", func() bool { return s.Stats().Waiting == 0 })
	r.found(s, ids...)
	r.close(s)
}

// What the store has taken over is found from then on: while it waits for the
// disk, while it moves there, and while segments end.
func TestWhatWasTakenIsFoundAtOnce(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment = 2 << 10 // a few batches
	acked := make(chan uint64, 1)
	r.cfg.Acked = func(_, number uint64) { acked <- number }
	s := r.open()
	take := func() []string {
		raw, ids := r.batch(3)
		s.Put(7, r.number, raw)
		return ids
	}
	s.files.Lock() // as a disk that stalls
	ids := take()
	r.found(s, ids...)
	s.files.Unlock()
	<-acked
	for range 50 {
		ids := take()
		done := make(chan struct{})
		var asking sync.WaitGroup
		for range 2 {
			asking.Go(func() {
				for {
					if entry, err := s.Find(ids[1]); entry == nil || err != nil {
						t.Errorf("it was taken, and is not found: %v", err)
						return
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		<-acked
		r.found(s, ids...)
		close(done)
		asking.Wait()
	}
	if n := len(r.segments()); n < 10 {
		t.Errorf("%d segments: none ended meanwhile", n)
	}
	r.close(s)
}

// What a full disk took of a batch is given back: metadata records need the room.
func TestFullDiskLeavesNoTornFrames(t *testing.T) {
	r := newRig(t)
	if err := syscall.Mount("tmpfs", r.cfg.Dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("mounting a small tmpfs was refused: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(r.cfg.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s := r.open()
	raw, ids := r.batch(1500) // larger than the disk
	s.Put(7, r.number, raw)
	r.until("the failure", func() bool { return errors.Is(s.Stats().Failing, controlplane.ErrDiskFull) })
	s.cancel() // no try holds a part of the disk meanwhile
	_ = s.group.Wait()
	if err := s.drain(); !errors.Is(err, controlplane.ErrDiskFull) {
		t.Errorf("tried again: %v", err)
	}
	if files := r.glob("*"); len(files) > 1 {
		t.Errorf("%d files hold nothing", len(files))
	}
	filler := filepath.Join(r.cfg.Dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<10), 0o600); err != nil {
		t.Errorf("no room for others: %v", err)
	}
	if err := errors.Join(os.Remove(filler), syscall.Mount("", r.cfg.Dir, "", syscall.MS_REMOUNT, "size=2m")); err != nil {
		t.Fatal(err)
	}
	r.close(s) // writes what is pending
	s = r.open()
	r.found(s, ids[0], ids[1499])
	r.close(s)
}

// What a former version wrote, with an index in front of each batch, is found.
func TestSegmentsOfAFormerVersion(t *testing.T) {
	r := newRig(t)
	s := r.open()
	if err := s.begin(); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for i := range 3 {
		raw, more := r.batch(4)
		ids = append(ids, more...)
		b, err := proof.ParseBatch(raw)
		if err != nil {
			t.Fatal(err)
		}
		bare, err := b.Bare()
		if err != nil {
			t.Fatal(err)
		}
		var out []byte
		if i == 0 {
			out = s.current.frame(out, kindKey, []byte(b.Delegation))
		}
		out = s.current.frame(out, kindSkipped, make([]byte, 16+4*b.Len()))
		out = s.current.frame(out, kindBatch, bare)
		if _, err := s.current.f.Write(out); err != nil {
			t.Fatal(err)
		}
		s.current.bytes += int64(len(out))
	}
	kill(s)
	s = r.open()
	r.found(s, ids...)
	if st := s.Stats(); st.Batches != 3 || st.Damaged != 0 {
		t.Errorf("%+v", st)
	}
	r.close(s)
}

// While segments come, end and go, and indexes vanish, whoever asks is given
// what is kept, and never an error.
func TestFindBesideExpiry(t *testing.T) {
	r := newRig(t)
	r.cfg.Total, r.cfg.Segment, r.cfg.Age = 200<<10, 12<<10, 30*time.Minute
	s := r.open()
	var mu sync.Mutex
	var ids []string
	stop := make(chan struct{})
	var all sync.WaitGroup
	var seed uint64
	each := func(pause time.Duration, do func(*rand.Rand)) {
		seed++
		random := rand.New(rand.NewPCG(seed, 0))
		all.Go(func() {
			for ; ; time.Sleep(pause) {
				select {
				case <-stop:
					return
				default:
					do(random)
				}
			}
		})
	}
	for range 3 {
		each(50*time.Microsecond, func(random *rand.Rand) {
			mu.Lock()
			if len(ids) == 0 {
				mu.Unlock()
				return
			}
			at := len(ids) - 1 - random.IntN(min(len(ids), 1200)) // half of them are gone
			id := ids[at]
			mu.Unlock()
			b, err := s.Find(id)
			mu.Lock()
			back := len(ids) - at // since it was asked for more have come, maybe
			mu.Unlock()
			if err != nil || b == nil && back < 60 {
				t.Errorf("%s, %d ago: %d bytes, %v", id, back, len(b), err)
			}
			if b == nil {
				return
			}
			if e, err := proof.DecodeEntry(b); err != nil || e.Facts().RequestID != id {
				t.Errorf("%s: another's entry, %v", id, err)
			}
		})
	}
	each(time.Millisecond, func(*rand.Rand) { _, _ = s.Delegations(), s.Stats() })
	each(time.Millisecond, func(random *rand.Rand) {
		if paths := r.glob("*" + indexSuffix); len(paths) > 0 {
			_ = os.Remove(paths[random.IntN(len(paths))])
		}
	})
	random := rand.New(rand.NewPCG(0, 0))
	for range 300 {
		more := r.put(s, 1+random.IntN(20))
		mu.Lock()
		ids = append(ids, more...)
		mu.Unlock()
		r.pass(3 * time.Second)
	}
	close(stop)
	all.Wait()
	if st := s.Stats(); st.Damaged != 0 || st.Bytes > r.cfg.Total {
		t.Errorf("%+v\n%s", st, r.log)
	}
	r.close(s)
}
