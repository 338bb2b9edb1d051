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
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type rig struct {
	t   *testing.T
	cfg Config
	log *bytes.Buffer

	mu    sync.Mutex
	acked map[uint64]uint64
	again map[uint64]uint64 // run -> asked for what follows
}

func newRig(t *testing.T) *rig {
	t.Helper()
	key := filepath.Join(t.TempDir(), "kek")
	if err := seal.CreateKeyFile(key); err != nil {
		t.Fatal(err)
	}
	h, err := seal.OpenFileHolder(key)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, log: new(bytes.Buffer), acked: map[uint64]uint64{}, again: map[uint64]uint64{}}
	r.cfg = Config{
		Dir: t.TempDir(), Name: "c/n", Sealer: seal.New(h), Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		Acked: func(run, upto uint64, resend bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.acked[run] = max(r.acked[run], upto)
			if resend {
				r.again[run] = upto
			}
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

// died stops a spool as a kill does: nothing pending is written, no end mark.
func died(s *Spool) {
	s.mu.Lock()
	s.pending = nil
	s.mu.Unlock()
	s.cancel()
	_ = s.group.Wait()
	if s.seg != nil {
		_ = s.seg.f.Close()
	}
}

func (r *rig) put(s *Spool, run uint64, from, to int) {
	for n := from; n <= to; n++ {
		s.Put(run, uint64(n), fmt.Appendf(nil, "%d.%d", run, n))
	}
}

func (r *rig) awaitAck(run, upto uint64) {
	r.t.Helper()
	r.within(fmt.Sprintf("record %d of run %d is acknowledged", upto, run), func() bool { return r.acked[run] == upto })
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
	r.put(s, 7, 1, 100)
	r.put(s, 7, 90, 120) // sent again
	r.awaitAck(7, 120)
	died(s)
	if got := r.read(); got != want(7, 1, 120) {
		t.Fatalf("read %q", got)
	}
	// The next keeper adopts the worker, which did not hear of the last acknowledgements.
	s = r.open()
	if err := s.Expect(7); err != nil {
		t.Fatal(err)
	}
	r.put(s, 7, 110, 130)
	r.awaitAck(7, 130)
	r.put(s, 8, 1, 5) // another worker
	r.awaitAck(8, 5)
	r.close(s)
	if got := r.read(); got != want(7, 1, 130)+" "+want(8, 1, 5) {
		t.Errorf("read %q", got)
	}
	// Even a keeper that could not search its spool does no harm to readers.
	s = r.open()
	r.put(s, 7, 125, 140)
	r.close(s)
	if got := r.read(); got != want(7, 1, 130)+" "+want(8, 1, 5)+" "+want(7, 131, 140) {
		t.Errorf("read %q", got)
	}
}

func TestSegments(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment = 2000
	s := r.open()
	for n := 1; n <= 60; n++ {
		r.put(s, 1, n, n)
		r.awaitAck(1, uint64(n))
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
	if s.Stats().Bytes != total {
		t.Errorf("counted %d bytes, there are %d", s.Stats().Bytes, total)
	}
	r.close(s)
}

func TestDamage(t *testing.T) {
	r := newRig(t)
	s := r.open()
	r.put(s, 1, 1, 10)
	r.awaitAck(1, 10)
	r.put(s, 1, 11, 20)
	r.awaitAck(1, 20)
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
	if got := r.read(); got == "" || !strings.HasPrefix(want(1, 1, 20), got) {
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
}

// TestBound: beyond the total nothing is acknowledged; after somebody shipped
// a segment all of it is, in order, what was refused being asked for again.
func TestBound(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment, r.cfg.Total, r.cfg.Pending = 1000, 4000, 200
	s := r.open()
	sent := 0
	r.within("the bound is reached", func() bool {
		sent = int(r.acked[1]) + 3
		go r.put(s, 1, int(r.acked[1])+1, sent) // Acked takes r.mu, which is held here
		return errors.Is(s.Stats().Failing, ErrFull)
	})
	r.put(s, 1, sent+1, sent+100)
	if st := s.Stats(); st.Waiting > 200 {
		t.Errorf("%d bytes wait in memory", st.Waiting)
	}
	r.mu.Lock()
	before := r.acked[1]
	r.mu.Unlock()
	segments, err := list(filepath.Join(r.cfg.Dir, "spool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range segments[:2] {
		if err := os.Remove(filepath.Join(r.cfg.Dir, "spool", g.name)); err != nil {
			t.Fatal(err)
		}
	}
	r.within("what was refused is asked for again", func() bool { return r.again[1] > before })
	last := sent + 100
	r.within("all of them are acknowledged", func() bool {
		go r.put(s, 1, int(r.acked[1])+1, last) // Acked takes r.mu, which is held here
		return r.acked[1] == uint64(last)
	})
	r.close(s)
	if got := r.read(); !strings.HasSuffix(got, want(1, int(before), last)) {
		t.Errorf("read %q", got)
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
	filler := filepath.Join(r.cfg.Dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	sent := uint64(0)
	for ; s.Stats().Failing == nil && sent < 1000; sent++ {
		s.Put(1, sent+1, bytes.Repeat([]byte("r"), 1000))
		time.Sleep(100 * time.Microsecond)
	}
	if !errors.Is(s.Stats().Failing, controlplane.ErrDiskFull) {
		t.Fatalf("after %d records: %v", sent, s.Stats().Failing)
	}
	r.mu.Lock()
	acked := r.acked[1]
	r.mu.Unlock()
	if acked >= sent {
		t.Error("a record that is not written was acknowledged")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.awaitAck(1, sent)
	r.close(s)
	if got := len(strings.Fields(r.read())); got != int(sent) {
		t.Errorf("read %d records, want %d", got, sent)
	}
}
