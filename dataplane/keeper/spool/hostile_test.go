package spool

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/seal"
)

// A spool that closed while the disk took nothing has unmapped its rings: a
// late look at it must not touch them.
func TestLooksAfterClose(t *testing.T) {
	r := newRig(t)
	r.cfg.Total = 1
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	r.put(s, 1, 1, 1)
	r.within("the disk takes nothing", func() bool { return s.Stats().Failing != nil })
	if err := s.Close(); !errors.Is(err, ErrFull) {
		t.Fatalf("closed with %v", err)
	}
	if st := s.Stats(); st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
	if n := s.End(); n != 0 {
		t.Errorf("%d rings wait", n)
	}
}

// A clock that was ahead for a moment gives segments numbers of that time. They
// end after their day nevertheless.
func TestClockWasAhead(t *testing.T) {
	r := newRig(t)
	r.cfg.Keep = 30 * time.Hour
	dir := filepath.Join(r.cfg.Dir, "spool")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := r.open()
	s.lastSeg = time.Now().Add(365 * 24 * time.Hour).UnixNano() // as list found them
	r.start(1, 1)
	r.attach(s, 1, false)
	r.put(s, 1, 1, 1)
	r.awaitKept(1)
	if err := s.Expire(time.Now().Add(2 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	r.put(s, 1, 2, 2)
	r.awaitKept(1)
	segments, err := list(dir)
	if err != nil || len(segments) != 2 {
		t.Fatalf("a segment of two hours was not ended: %v, %v", segments, err)
	}
	r.close(s)
}

// Segments go while they are read: by age, or shipped.
func TestReadWhileSegmentsGo(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment = 200
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	for n := 1; n <= 5; n++ {
		r.put(s, 1, n, n)
		r.awaitKept(1)
	}
	r.close(s)
	dir := filepath.Join(r.cfg.Dir, "spool")
	segments, err := list(dir)
	if err != nil || len(segments) < 3 {
		t.Fatalf("%v, %v", segments, err)
	}
	n := 0
	err = Read(r.cfg.Sealer, r.cfg.Dir, r.cfg.Name, func([]byte) error {
		if n++; n == 1 {
			return os.Remove(filepath.Join(dir, segments[1].name))
		}
		return nil
	})
	if err != nil || n < 3 {
		t.Errorf("%d records, %v", n, err)
	}
}

// A segment that is damaged is named, and hides none after it. Nor does one
// that a reader stops in.
func TestDamageHidesNothing(t *testing.T) {
	r := newRig(t)
	r.cfg.Segment = 200
	s := r.open()
	r.start(1, 1)
	r.attach(s, 1, false)
	for n := 1; n <= 6; n++ {
		r.put(s, 1, n, n)
		r.awaitKept(1)
	}
	r.close(s)
	dir := filepath.Join(r.cfg.Dir, "spool")
	segments, err := list(dir)
	if err != nil || len(segments) < 3 {
		t.Fatalf("%v, %v", segments, err)
	}
	path := filepath.Join(dir, segments[1].name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	last := ""
	err = Read(r.cfg.Sealer, r.cfg.Dir, r.cfg.Name, func(b []byte) error { last = string(b); return nil })
	if !errors.Is(err, seal.ErrTampered) || !strings.Contains(err.Error(), segments[1].name) || last != "1.6" {
		t.Errorf("the last record read is %q, %v", last, err)
	}
	n := 0
	if err := Read(r.cfg.Sealer, r.cfg.Dir, r.cfg.Name, func([]byte) error { n++; return io.ErrClosedPipe }); !errors.Is(err, io.ErrClosedPipe) || n != 1 {
		t.Errorf("asked %d times after it refused, %v", n-1, err)
	}
}

// What a full disk took of a frame is given back: others need the room.
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
	r.cfg.Gather = 50 * time.Millisecond
	s := r.open()
	w := r.start(1, 2<<20)
	for range 400 { // in one frame, larger than the disk
		if _, err := w.Put(bytes.Repeat([]byte("r"), 1000)); err != nil {
			t.Fatal(err)
		}
	}
	r.attach(s, 1, false)
	begun := func() int64 { s.segMu.Lock(); defer s.segMu.Unlock(); return s.lastSeg }
	r.within("the disk is full", func() bool { return errors.Is(s.Stats().Failing, controlplane.ErrDiskFull) })
	first := begun()
	r.within("it is tried again", func() bool { return begun() > first })
	s.segMu.Lock()
	segments, err := list(s.dir)
	used := int64(0)
	for _, g := range segments {
		used += g.size
	}
	s.segMu.Unlock()
	if err != nil || used > 8<<10 {
		t.Errorf("%d segments of %d bytes hold no record, %v", len(segments), used, err)
	}
	_ = s.Close() // says that the disk is full
}
