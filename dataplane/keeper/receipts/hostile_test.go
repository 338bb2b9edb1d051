package receipts

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane"
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
	time.Sleep(500 * time.Millisecond) // and it is tried again
	if files := r.files(); len(files) > 1 {
		t.Errorf("%d files hold nothing", len(files))
	}
	filler := filepath.Join(r.cfg.Dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 200<<10), 0o600); err != nil {
		t.Errorf("no room for others: %v", err)
	}
	if err := errors.Join(os.Remove(filler), syscall.Mount("", r.cfg.Dir, "", syscall.MS_REMOUNT, "size=2m")); err != nil {
		t.Fatal(err)
	}
	r.until("recovery", func() bool { return s.Stats().Waiting == 0 })
	r.found(s, ids[0], ids[1499])
	r.close(s)
}
