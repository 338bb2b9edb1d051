package spool

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/link/ring"
	"ringmain/internal/testkit/diskkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type rig struct {
	t   *testing.T
	cfg Config
	log *bytes.Buffer

	rings   map[uint64]*worker
	mu      sync.Mutex
	damaged []uint64
}

// worker is one worker's end of a ring.
type worker struct {
	*ring.Producer
	f *os.File
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, log: new(bytes.Buffer), rings: map[uint64]*worker{}}
	r.cfg = Config{
		Dir: t.TempDir(), Name: "c/n", Sealer: diskkit.Sealer(t), Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		Damaged: func(run uint64) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.damaged = append(r.damaged, run)
		},
	}
	return r
}

func (r *rig) open() *Spool {
	r.t.Helper()
	s, err := Open(r.t.Context(), r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) close(s *Spool) {
	r.t.Helper()
	if err := s.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// died stops a spool as a kill does: no end mark, and the rings as they are.
func died(s *Spool) {
	s.cancel()
	_ = s.group.Wait()
	for _, src := range s.sources {
		_ = src.ring.Close()
	}
	if s.seg != nil {
		_ = s.seg.f.Close()
	}
}

// start makes the ring of a worker run.
func (r *rig) start(run uint64, size int) *worker {
	r.t.Helper()
	f, err := ring.Create(size, run)
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := ring.OpenProducer(f)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = errors.Join(p.Close(), f.Close()) })
	r.rings[run] = &worker{p, f}
	return r.rings[run]
}

// consumer is a keeper's end of a run's ring.
func (r *rig) consumer(run uint64) *ring.Consumer {
	r.t.Helper()
	fd, err := syscall.Dup(int(r.rings[run].f.Fd()))
	if err != nil {
		r.t.Fatal(err)
	}
	c, err := ring.OpenConsumer(os.NewFile(uintptr(fd), "ring"))
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (r *rig) attach(s *Spool, run uint64, adopted bool) {
	r.t.Helper()
	if err := s.Attach(r.consumer(run), adopted); err != nil {
		r.t.Fatal(err)
	}
}

// put is what a worker does for each record.
func (r *rig) put(s *Spool, run uint64, from, to int) {
	r.t.Helper()
	for n := from; n <= to; n++ {
		wake, err := r.rings[run].Put(fmt.Appendf(nil, "%d.%d", run, n))
		if err != nil {
			r.t.Fatal(err)
		}
		if wake {
			s.Wake()
		}
	}
}

func (r *rig) awaitKept(run uint64) {
	r.t.Helper()
	r.within(fmt.Sprintf("the records of run %d are kept", run), func() bool { return r.rings[run].Waiting() == 0 })
}

func (r *rig) within(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		r.mu.Lock()
		ok := cond()
		r.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func (r *rig) read() string {
	r.t.Helper()
	var all []string
	if err := Read(r.cfg.Sealer, r.cfg.Dir, r.cfg.Name, func(b []byte) error {
		all = append(all, string(b))
		return nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return strings.Join(all, " ")
}

func want(run, from, to int) string {
	var all []string
	for n := from; n <= to; n++ {
		all = append(all, fmt.Sprintf("%d.%d", run, n))
	}
	return strings.Join(all, " ")
}

func TestEachRecordOnce(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.start(7, 1)
	r.attach(s, 7, false)
	r.put(s, 7, 1, 100)
	r.awaitKept(7)
	died(s)
	if got := r.read(); got != want(7, 1, 100) {
		t.Fatalf("read %q", got)
	}
	// No keeper lives, and the worker goes on.
	r.put(s, 7, 101, 110)
	s = r.open()
	r.attach(s, 7, true)
	r.put(s, 7, 111, 120)
	r.awaitKept(7)
	r.start(8, 1) // another worker, in place of the first
	if n := s.End(); n != 0 {
		t.Errorf("%d rings wait for a disk that works", n)
	}
	r.attach(s, 8, false)
	r.put(s, 8, 1, 5)
	r.awaitKept(8)
	r.within("the dead worker's ring is closed", func() bool { return len(s.attached()) == 1 })
	r.close(s)
	if got := r.read(); got != want(7, 1, 120)+" "+want(8, 1, 5) {
		t.Errorf("read %q", got)
	}
}

// TestDiedBeforeTheTailMoved: what a keeper had written but not taken out of
// the ring is not kept a second time, also when its spool cannot be searched.
func TestDiedBeforeTheTailMoved(t *testing.T) {
	for name, adopted := range map[string]bool{"searched": true, "not searched": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.start(3, 1)
			r.put(nil, 3, 1, 30)
			s := r.open()
			src := &source{ring: r.consumer(3)}
			frame, last, _ := s.collect(src)
			if last != 30 {
				t.Fatalf("collected up to %d", last)
			}
			if err := s.writeFrame(frame); err != nil {
				t.Fatal(err)
			}
			died(s) // right after the write
			_ = src.ring.Close()
			size := s.Stats().Bytes
			r.put(nil, 3, 31, 40)
			s = r.open()
			r.attach(s, 3, adopted)
			r.awaitKept(3)
			r.close(s)
			if got := r.read(); got != want(3, 1, 40) {
				t.Errorf("read %q", got)
			}
			if grown := s.Stats().Bytes - size; adopted && grown > size {
				t.Errorf("written twice: %d bytes, then %d more", size, grown)
			}
		})
	}
}

// TestConnectionBroke: a worker whose ring is attached already is not read twice.
func TestConnectionBroke(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	r.put(s, 1, 1, 10)
	r.awaitKept(1)
	r.within("it sleeps", r.rings[1].Asleep)
	// The wake that this one asks for goes down with the connection.
	if wake, err := r.rings[1].Put([]byte("1.11")); err != nil || !wake {
		t.Errorf("wake %v, %v", wake, err)
	}
	r.attach(s, 1, true)
	r.awaitKept(1)
	r.put(s, 1, 12, 20)
	r.awaitKept(1)
	if n := len(s.attached()); n != 1 {
		t.Errorf("%d rings are read", n)
	}
	r.close(s)
	if got := r.read(); got != want(1, 1, 20) {
		t.Errorf("read %q", got)
	}
}

// TestCalledBeforeItSleeps: a call that came in time is answered awake. Left for
// the sleeper it would wake it at once, and Asleep say what is over already.
func TestCalledBeforeItSleeps(t *testing.T) {
	s := &Spool{wake: make(chan struct{}, 1)}
	s.Wake()
	if s.sleep() {
		t.Error("it sleeps although it was called")
	}
	if !s.sleep() {
		t.Error("one call keeps it awake for ever")
	}
}

// TestGroups: under load the worker is never asked to wake the spool and many
// records share a frame; a single one is on disk soon.
func TestGroups(t *testing.T) {
	r := newRig(t)
	s := r.open()
	w := r.start(1, 1<<20)
	r.attach(s, 1, false)
	wakes, begun := 0, time.Now()
	for n := 1; n <= 2000; n++ {
		wake, err := w.Put(make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		if wake {
			wakes++
			s.Wake()
		}
		if n%10 == 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	r.awaitKept(1)
	// A frame is written each Gather, and the writer sleeps after quietRounds more;
	// the first record may find it asleep, and the head of the segment is as large
	// as some frames. 16 bytes of tag and 4 of length a frame, 4 of length a record.
	looks := int64(time.Since(begun) / s.cfg.Gather)
	if frames := (s.Stats().Bytes - 2000*104) / 36; int64(wakes) > 1+looks/quietRounds || frames > 10+looks {
		t.Errorf("%d wakes, about %d frames for 2000 records in the time of %d looks", wakes, frames, looks)
	}
	for range 5 {
		r.within("it sleeps", w.Asleep)
		began := time.Now()
		r.put(s, 1, 1, 1)
		r.awaitKept(1)
		if took := time.Since(began); took > time.Second {
			t.Errorf("a single record took %v", took)
		}
	}
	r.close(s)
}

// TestDamagedRing: what is sound is kept, and whoever can replace the worker is told.
func TestDamagedRing(t *testing.T) {
	r := newRig(t)
	w := r.start(5, 1)
	r.put(nil, 5, 1, 10)
	mem, err := syscall.Mmap(int(w.f.Fd()), 0, 8192, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	mem[4096+6*24+17] ^= 1 // in the seventh record: each is 16 + 3 bytes and padding
	if err := syscall.Munmap(mem); err != nil {
		t.Fatal(err)
	}
	s := r.open()
	r.attach(s, 5, true)
	r.within("the damage is told", func() bool { return len(r.damaged) == 1 && r.damaged[0] == 5 })
	r.close(s)
	if got := r.read(); got != want(5, 1, 6) {
		t.Errorf("read %q", got)
	}
	if log := r.log.String(); !strings.Contains(log, "is damaged") {
		t.Errorf("log %s", log)
	}
}

func TestSegments(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment = 2000
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	for n := 1; n <= 60; n++ {
		r.put(s, 1, n, n)
		r.awaitKept(1)
	}
	r.close(s)
	segments, err := list(filepath.Join(r.cfg.Dir, "spool"))
	if err != nil || len(segments) < 2 {
		t.Fatalf("%v, %v", segments, err)
	}
	total := int64(0)
	for _, g := range segments {
		total += g.size
		if g.size > 2000 {
			t.Errorf("segment %+v is beyond the bound", g)
		}
	}
	if got := r.read(); got != want(1, 1, 60) {
		t.Errorf("read %q", got)
	}
	s = r.open()
	if st := s.Stats(); st.Bytes != total || st.Oldest.UnixNano() != segments[0].number {
		t.Errorf("counted %d bytes since %v, there are %d since %d", st.Bytes, st.Oldest, total, segments[0].number)
	}
	r.close(s)
}

// TestExpiry: whole segments go when their last record is too old, and none
// of the present one's while it is written to.
func TestExpiry(t *testing.T) {
	r := newRig(t)
	r.cfg.Keep = 30 * time.Hour
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	r.put(s, 1, 1, 10)
	r.awaitKept(1)
	now := time.Now()
	expire := func(in time.Duration, want string) {
		t.Helper()
		if err := s.Expire(now.Add(in)); err != nil {
			t.Fatal(err)
		}
		if got := r.read(); got != want {
			t.Errorf("after %v: read %q, want %q", in, got, want)
		}
	}
	writing := func() bool {
		s.segMu.Lock()
		defer s.segMu.Unlock()
		return s.seg != nil
	}
	expire(30*time.Minute, want(1, 1, 10))
	if !writing() {
		t.Error("a young segment was ended")
	}
	expire(2*time.Hour, want(1, 1, 10))
	if writing() {
		t.Error("a segment of two hours was not ended")
	}
	r.put(s, 1, 11, 20)
	r.awaitKept(1)
	segments, err := list(filepath.Join(r.cfg.Dir, "spool"))
	if err != nil || len(segments) != 2 {
		t.Fatalf("%v, %v", segments, err)
	}
	old := now.Add(-20 * time.Hour)
	if err := os.Chtimes(filepath.Join(r.cfg.Dir, "spool", segments[0].name), old, old); err != nil {
		t.Fatal(err)
	}
	expire(5*time.Hour, want(1, 1, 20))
	expire(11*time.Hour, want(1, 11, 20))
	segments, err = list(filepath.Join(r.cfg.Dir, "spool"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("%v, %v", segments, err)
	}
	if st := s.Stats(); st.Bytes != segments[0].size || st.Oldest.UnixNano() != segments[0].number {
		t.Errorf("%+v, there is %+v", st, segments[0])
	}
	if !strings.Contains(r.log.String(), "removed metadata records") {
		t.Error("nothing tells that records were removed")
	}
	r.close(s)
}

func TestDamage(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	r.put(s, 1, 1, 10)
	r.awaitKept(1)
	r.put(s, 1, 11, 20)
	r.awaitKept(1)
	died(s)
	segments, err := list(filepath.Join(r.cfg.Dir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.cfg.Dir, "spool", segments[0].name)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(whole[:len(whole)-1]) // the host died: the last group may be torn
	if got := r.read(); got == "" || got == want(1, 1, 20) || !strings.HasPrefix(want(1, 1, 20), got) {
		t.Errorf("a torn tail: read %q", got)
	}
	bad := bytes.Clone(whole)
	bad[len(bad)-1] ^= 1
	write(bad)
	err = Read(r.cfg.Sealer, r.cfg.Dir, r.cfg.Name, func([]byte) error { return nil })
	if !errors.Is(err, seal.ErrTampered) || !strings.Contains(err.Error(), segments[0].name) {
		t.Errorf("a changed byte: %v", err)
	}
	if err := Read(r.cfg.Sealer, r.cfg.Dir, "c/other", func([]byte) error { return nil }); err == nil {
		t.Error("another node's name opened the spool")
	}
	// A spool that cannot be searched is told, and takes the ring nevertheless.
	s = r.open()
	if err := s.Attach(r.consumer(1), true); !errors.Is(err, seal.ErrTampered) {
		t.Errorf("searching: %v", err)
	}
	r.put(s, 1, 21, 21)
	r.awaitKept(1)
	r.close(s)
}

// TestBound: beyond the total nothing is taken out of the ring; after somebody
// shipped a segment all of it is, in order.
func TestBound(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment, r.cfg.Total = 1000, 4000
	s := r.open()
	w := r.start(1, 1)
	r.attach(s, 1, false)
	sent := 0
	full := func() bool { return errors.Is(s.Stats().Failing, ErrFull) }
	for !full() { // each group waits for the one before, so that only the bound fills the ring
		r.put(s, 1, sent+1, sent+30)
		sent += 30
		r.within("a group is kept, or the bound is reached", func() bool { return w.Waiting() == 0 || full() })
	}
	for {
		if _, err := w.Put(fmt.Appendf(nil, "1.%d", sent+1)); errors.Is(err, ring.ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		sent++
	}
	if w.Room(0) || s.Stats().Waiting != w.Waiting() {
		t.Errorf("%d bytes wait, %d by the spool; room %v", w.Waiting(), s.Stats().Waiting, w.Room(0))
	}
	if n := s.End(); n != 1 {
		t.Errorf("%d rings wait for the disk", n)
	}
	before := len(strings.Fields(r.read()))
	segments, err := list(filepath.Join(r.cfg.Dir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range segments[:len(segments)-1] {
		if err := os.Remove(filepath.Join(r.cfg.Dir, "spool", g.name)); err != nil {
			t.Fatal(err)
		}
	}
	r.awaitKept(1)
	r.close(s)
	got := r.read()
	if first := sent - len(strings.Fields(got)) + 1; got != want(1, first, sent) || first > before+1 || len(segments) < 3 {
		t.Errorf("read from %d of %d, %d were there before: %q", first, sent, before, got)
	}
	if log := r.log.String(); strings.Count(log, "cannot be written") != 1 || !strings.Contains(log, "written again") {
		t.Errorf("log %s", log)
	}
}

func TestFullDisk(t *testing.T) {
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
	w := r.start(1, 2<<20)
	r.attach(s, 1, false)
	filler := filepath.Join(r.cfg.Dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	const sent = 150 // more than fits beside the filler, and less than without it
	for range sent {
		wake, err := w.Put(bytes.Repeat([]byte("r"), 1000))
		if err != nil {
			t.Fatal(err)
		}
		if wake {
			s.Wake()
		}
	}
	r.within("the full disk is noticed", func() bool { return errors.Is(s.Stats().Failing, controlplane.ErrDiskFull) })
	if w.Waiting() == 0 {
		t.Error("a record that is not written was taken out of the ring")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.awaitKept(1)
	r.close(s)
	if got := len(strings.Fields(r.read())); got != sent {
		t.Errorf("read %d records, want %d", got, sent)
	}
}

// BenchmarkSpool is what a record costs from the ring to the file, in groups.
func BenchmarkSpool(b *testing.B) {
	s, err := Open(b.Context(), Config{Dir: b.TempDir(), Name: "c/n", Sealer: diskkit.Sealer(b)})
	if err != nil {
		b.Fatal(err)
	}
	f, err := ring.Create(ring.DefaultSize, 1)
	if err != nil {
		b.Fatal(err)
	}
	p, err := ring.OpenProducer(f)
	if err != nil {
		b.Fatal(err)
	}
	c, err := ring.OpenConsumer(f)
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Attach(c, false); err != nil {
		b.Fatal(err)
	}
	record := make([]byte, 350)
	b.ReportAllocs()
	for b.Loop() {
		for {
			wake, err := p.Put(record)
			if wake {
				s.Wake()
			}
			if err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	for p.Waiting() > 0 {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	if err := errors.Join(s.Close(), p.Close()); err != nil {
		b.Fatal(err)
	}
}
