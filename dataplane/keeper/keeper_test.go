package keeper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane"
)

func TestNodeComesUpConfined(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	s := n.state("loaded", func(s workerState) bool { return s.Loaded && s.Seq == 1 })
	if s.Keys != 1 || s.Unknown || s.Peers != 1 {
		t.Errorf("%+v", s)
	}
	if !s.Confinement.NoFileWrite || !s.Confinement.NoDump {
		t.Errorf("confinement %+v", s.Confinement)
	}
	path := filepath.Join(t.TempDir(), "spill")
	_, answer, err := n.get("/write?path=" + path)
	if err != nil || answer == "<nil>" {
		t.Errorf("writing a file: %q, %v", answer, err)
	}
	if _, err := os.Stat(path); s.Confinement.Landlock > 0 && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the worker made a file: %v", err)
	}
	c.revokeKey("a")
	within(t, "the key is revoked", func() bool { _, got, err := n.get("/key?id=a"); return err == nil && got == "true true" })
	if err := n.stopKeeper(); err != nil {
		t.Errorf("a planned stop: %v", err)
	}
	if _, err := n.ask(); err == nil {
		t.Error("the worker outlived a planned stop")
	}
}

// TestKeeperKilled: the worker serves on, keeps its records, and the next
// keeper adopts it without a gap in either.
func TestKeeperKilled(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	before := n.state("loaded", func(s workerState) bool { return s.Loaded })
	var emitted atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := n.emit(fmt.Sprintf("r%d-%d", g, i)); err != nil {
					t.Errorf("the worker did not serve: %v", err)
					return
				}
				emitted.Add(1)
			}
		})
	}
	for round := range 3 {
		time.Sleep(100 * time.Millisecond)
		n.killKeeper()
		seq := c.addKey(fmt.Sprint("while away ", round)) // the feed has moved on meanwhile
		time.Sleep(50 * time.Millisecond)
		n.startKeeper()
		s := n.state("adopted and current", func(s workerState) bool { return s.Seq == seq })
		if s.PID != before.PID {
			t.Fatalf("round %d: another worker serves", round)
		}
	}
	close(stop)
	wg.Wait()
	n.state("no record waits", func(s workerState) bool { return s.Waiting == 0 })
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
	found := n.records()
	if int64(len(found)) != emitted.Load() {
		t.Errorf("%d of %d records are in the spool", len(found), emitted.Load())
	}
	for name, times := range found {
		if times != 1 {
			t.Errorf("%s is there %d times", name, times)
		}
	}
	t.Logf("%d records over 4 keepers", emitted.Load())
}

// TestAdoptedWorkerKilled: the keeper that adopted it holds its listeners, so
// that no client is refused while the next one starts.
func TestAdoptedWorkerKilled(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	n.killKeeper()
	n.startKeeper()
	within(t, "adopted", func() bool { return strings.Contains(n.log.text(), "adopted the worker") })
	s := n.state("serving", func(workerState) bool { return true })
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		if _, err := n.ask(); errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatal("a client was refused")
		}
	}
	n.state("replaced", func(now workerState) bool { return now.PID != s.PID && now.Loaded })
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
}

// TestWorkerKilled: it is replaced at once, with the state from disk although
// no control node answers, and every record it had acknowledged is kept.
func TestWorkerKilled(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	c.addKey("b")
	n := newNode(t, c)
	n.startKeeper()
	s := n.state("loaded", func(s workerState) bool { return s.Loaded })
	c.revokeKey("b")
	n.state("current", func(s workerState) bool { return s.Seq == 3 })
	c.setDown(true)
	emitted := map[string]bool{}
	for round := range 3 {
		for i := range 50 {
			name := fmt.Sprintf("r%d-%d", round, i)
			if err := n.emit(name); err != nil {
				t.Fatal(err)
			}
			emitted[name] = true
		}
		killed := time.Now()
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		old := s.PID
		s = n.state("replaced", func(s workerState) bool { return s.PID != old && s.Loaded })
		t.Logf("round %d: ready again after %v", round, time.Since(killed).Round(time.Millisecond))
		if s.Keys != 2 || s.Seq != 3 {
			t.Errorf("round %d: state %+v", round, s)
		}
		if _, got, err := n.get("/key?id=b"); err != nil || got != "true true" {
			t.Errorf("round %d: a revoked key is %q, %v", round, got, err)
		}
	}
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
	found := n.records()
	for name := range emitted {
		if found[name] != 1 {
			t.Errorf("%s is there %d times", name, found[name])
		}
	}
}

// TestRingDamaged: a worker whose memory for records makes no sense is
// replaced by one with a ring of its own.
func TestRingDamaged(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	s := n.state("loaded", func(s workerState) bool { return s.Loaded })
	if err := n.emit("before"); err != nil {
		t.Fatal(err)
	}
	n.state("the record is kept", func(s workerState) bool { return s.Waiting == 0 })
	if _, answer, err := n.get("/scribble"); err != nil || answer != "<nil>" {
		t.Fatalf("%q, %v", answer, err)
	}
	_ = n.emit("after it") // wakes the keeper; the worker may die before it answers
	n.state("replaced", func(now workerState) bool { return now.PID != s.PID && now.Loaded })
	if err := n.emit("after"); err != nil {
		t.Fatal(err)
	}
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
	if found := n.records(); found["before"] != 1 || found["after"] != 1 || !strings.Contains(n.log.text(), "is damaged") {
		t.Errorf("records %v", found)
	}
}

// TestRecordsWithoutKeeper: what a worker records while no keeper lives is
// kept by the next, and so is what lies in the ring when the worker dies.
func TestRecordsWithoutKeeper(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	n.killKeeper()
	for i := range 50 {
		if err := n.emit(fmt.Sprint("alone", i)); err != nil {
			t.Fatal(err)
		}
	}
	n.state("they wait", func(s workerState) bool { return s.Waiting > 0 })
	n.startKeeper()
	s := n.state("they are kept", func(s workerState) bool { return s.Waiting == 0 })
	for i := range 50 { // the last of them are in the ring when the worker dies
		if err := n.emit(fmt.Sprint("last", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.state("replaced", func(now workerState) bool { return now.PID != s.PID && now.Loaded })
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
	found := n.records()
	for i := range 50 {
		if found[fmt.Sprint("alone", i)] != 1 || found[fmt.Sprint("last", i)] != 1 {
			t.Errorf("record %d is there %d and %d times", i, found[fmt.Sprint("alone", i)], found[fmt.Sprint("last", i)])
		}
	}
}

func TestWorkerPanics(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	s := n.state("loaded", func(s workerState) bool { return s.Loaded })
	_, _, _ = n.get("/panic")
	n.state("replaced", func(now workerState) bool { return now.PID != s.PID && now.Loaded })
	within(t, "the panic is in the log", func() bool { return strings.Contains(n.log.text(), "the worker breaks") })
}

// TestStartWithoutControlPlane: the whole node comes back from disk alone.
func TestStartWithoutControlPlane(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	c.addKey("b")
	c.revokeKey("a")
	n.state("current", func(s workerState) bool { return s.Seq == 3 })
	if err := n.stopKeeper(); err != nil {
		t.Fatal(err)
	}
	c.setDown(true)
	n.startKeeper()
	s := n.state("loaded from disk", func(s workerState) bool { return s.Loaded })
	if _, got, _ := n.get("/key?id=a"); s.Keys != 2 || got != "true true" || s.Unknown {
		t.Errorf("%+v; the revoked key is %q", s, got)
	}
	c.setDown(false)
	seq := c.addKey("c")
	n.state("caught up", func(s workerState) bool { return s.Seq == seq && s.Keys == 3 })
	c.mu.Lock()
	last := c.watches[len(c.watches)-1]
	c.mu.Unlock()
	if last[testShard].Seq != 3 {
		t.Errorf("the feed was asked from %v, not from where the disk is", last)
	}
}

// TestSafetyFileDamaged: keys fail closed until a control node has sent all.
func TestSafetyFileDamaged(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	c.revokeKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	if err := n.stopKeeper(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(n.args.Dir, "safety.log")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	c.setDown(true)
	n.startKeeper()
	n.state("loaded, revocations unknown", func(s workerState) bool { return s.Loaded && s.Unknown })
	if !strings.Contains(n.log.text(), path) {
		t.Error("the log does not name the file")
	}
	n.killKeeper()
	n.startKeeper() // adopts a worker that must stay closed
	time.Sleep(200 * time.Millisecond)
	n.state("still unknown", func(s workerState) bool { return s.Unknown })
	c.setDown(false)
	n.state("known again", func(s workerState) bool { return s.Loaded && !s.Unknown })
	if _, got, _ := n.get("/key?id=a"); got != "true true" {
		t.Errorf("the revoked key is %q", got)
	}
	c.setDown(true)
	if err := n.stopKeeper(); err != nil {
		t.Fatal(err)
	}
	n.startKeeper()
	n.state("known after a start", func(s workerState) bool { return s.Loaded && !s.Unknown })
}

// TestAdoptedWorkerKnowsItsRevocations: a file damaged while the worker lives
// costs nothing, since the worker holds them all.
func TestAdoptedWorkerKnowsItsRevocations(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	c.revokeKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	n.killKeeper()
	if err := os.Truncate(filepath.Join(n.args.Dir, "safety.log"), 10); err != nil {
		t.Fatal(err)
	}
	c.setDown(true)
	n.startKeeper()
	within(t, "adopted", func() bool { return strings.Contains(n.log.text(), "adopted the worker") })
	for range 20 {
		if s := n.state("serving", func(workerState) bool { return true }); s.Unknown {
			t.Fatal("a worker that knows all was closed")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestNothingOnDisk: a worker that replaces one whose state never reached the
// disk is not loaded with nothing.
func TestNothingOnDisk(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	if err := syscall.Mount("tmpfs", n.args.Dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a small tmpfs was refused: %v", err)
	}
	t.Cleanup(func() {
		n.cleanup()
		if err := syscall.Unmount(n.args.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n.startKeeper()
	s := n.state("loaded from the feed", func(s workerState) bool { return s.Loaded && s.Keys == 1 })
	c.setDown(true)
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	now := n.state("replaced", func(now workerState) bool { return now.PID != s.PID })
	for range 20 {
		if now, err := n.ask(); err != nil || now.Loaded {
			t.Fatalf("with no state at all: %+v, %v", now, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.setDown(false)
	n.state("loaded from the feed", func(again workerState) bool { return again.PID == now.PID && again.Loaded && again.Keys == 1 })
}

func TestDamagedGeneration(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	if err := n.stopKeeper(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(n.args.Dir, "lkg", "*.snap"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, f := range files {
		if err := os.Truncate(f, 100); err != nil {
			t.Fatal(err)
		}
	}
	c.setDown(true)
	n.startKeeper()
	n.state("a worker serves", func(workerState) bool { return true })
	for range 20 {
		if s, err := n.ask(); err != nil || s.Loaded {
			t.Fatalf("with nothing to load: %+v, %v", s, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	c.setDown(false)
	n.state("loaded from the feed", func(s workerState) bool { return s.Loaded && s.Keys == 1 })
}

// TestFullDisk: state flows on from memory, records are refused once memory is
// full, and both come back with the disk.
func TestFullDisk(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	if err := syscall.Mount("tmpfs", n.args.Dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mounting a small tmpfs was refused: %v", err)
	}
	t.Cleanup(func() {
		n.cleanup()
		if err := syscall.Unmount(n.args.Dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	filler := filepath.Join(n.args.Dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			break
		}
	}
	_ = f.Close()
	var seq uint64
	for i := range 200 {
		seq = c.addKey(fmt.Sprint("while full ", i))
	}
	seq = c.revokeKey("a")
	s := n.state("current in memory", func(s workerState) bool { return s.Seq == seq && s.Keys == 201 })
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.state("the next worker gets from the feed what the disk lacks", func(now workerState) bool {
		return now.PID != s.PID && now.Loaded && now.Seq == seq && now.Keys == 201
	})
	within(t, "the full disk is named", func() bool {
		_ = n.emit("x")
		return strings.Contains(n.log.text(), controlplane.ErrDiskFull.Error())
	})
	name := strings.Repeat("long", 2000)
	refused := false
	for i := 0; i < 1000 && !refused; i++ {
		err := n.emit(name)
		refused = err != nil && strings.Contains(err.Error(), "metering_unavailable")
	}
	if !refused {
		t.Error("records were taken without end")
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	n.state("records flow again", func(s workerState) bool { return s.Waiting == 0 })
	within(t, "a new generation", func() bool { return strings.Contains(n.log.text(), "generation=2") })
	if err := n.stopKeeper(); err != nil {
		t.Fatal(err)
	}
	c.setDown(true)
	n.startKeeper()
	s = n.state("loaded from disk", func(s workerState) bool { return s.Loaded })
	if _, got, _ := n.get("/key?id=a"); s.Keys != 201 || s.Seq != seq || got != "true true" {
		t.Errorf("%+v, the revoked key is %q", s, got)
	}
}
