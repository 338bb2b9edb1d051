package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/synckit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	return Config{Dir: dir, Cluster: "test", Region: "us-east", Sealer: diskkit.Sealer(t), Logger: hclog.NewNullLogger(),
		SegmentBytes: 2 << 10, Fatal: func(err error) { t.Errorf("fatal: %v", err) }}
}

func open(t *testing.T, cfg Config) *Log {
	t.Helper()
	l, err := OpenLog(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// TestRotationAtEveryPoint: many small segments, closed and opened at every point.
func TestRotationAtEveryPoint(t *testing.T) {
	cfg := config(t)
	payload := func(i uint64) []byte { return []byte(strings.Repeat("p", int(i*37%400))) }
	for i := uint64(1); i <= 120; i++ {
		l := open(t, cfg)
		if err := l.StoreLog(&raft.Log{Index: i, Term: 1, Data: payload(i)}); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := open(t, cfg)
	var e raft.Log
	for i := uint64(1); i <= 120; i++ {
		if err := l.GetLog(i, &e); err != nil || string(e.Data) != string(payload(i)) {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLostEndIsNamed: a log that ends before where it had been written is
// damaged, and says so; raft-wal alone would take it for a torn write.
func TestLostEndIsNamed(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	for i := uint64(1); i <= 3; i++ {
		if err := l.StoreLog(&raft.Log{Index: i, Term: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.wal.DeleteRange(3, 3), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLog(cfg); err == nil || !strings.Contains(err.Error(), "ends at entry 2, but had been written up to 3") {
		t.Errorf("%v", err)
	}
}

// TestVotesAreBoundToTheirKey: a value moved to another key is refused.
func TestVotesAreBoundToTheirKey(t *testing.T) {
	cfg := config(t)
	l := open(t, cfg)
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := l.SetUint64([]byte("CurrentTerm"), 7); err != nil {
		t.Fatal(err)
	}
	if v, err := l.GetUint64([]byte("CurrentTerm")); v != 7 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	raw, err := l.wal.Get([]byte("CurrentTerm"))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.wal.Set([]byte("LastVoteTerm"), raw); err != nil {
		t.Fatal(err)
	}
	if v, err := l.GetUint64([]byte("LastVoteTerm")); err == nil {
		t.Errorf("it reads %d", v)
	}
}

// TestOneOwnerOneProcess: a directory belongs to one node, which is written
// down, and to one process at a time.
func TestOneOwnerOneProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node")
	if _, err := ReadOwner(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of no directory: %v", err)
	}
	own := Owner{Format: 1, Cluster: "test", Region: "us-east", Node: "c1"}
	lock, err := Claim(dir, own)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir, own); err == nil || !strings.Contains(err.Error(), "another process uses") {
		t.Errorf("while it is in use: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadOwner(dir); got != own || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	if err := errors.Join(os.Remove(filepath.Join(dir, nameOwner)), os.WriteFile(filepath.Join(dir, "state"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := Claim(dir, own, "state"); err == nil || !strings.Contains(err.Error(), "restore that file") {
		t.Errorf("without its owner's file: %v", err)
	}
}

// TestWatchdog: a disk that is slow is left alone, one that has stopped is named.
func TestWatchdog(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		dog := NewWatchdog("/data", 2*time.Second)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- dog.Watch(ctx, 5*time.Second) }()
		for range 10 { // slow, but alive
			dog.since.Store(time.Now().UnixNano())
			time.Sleep(4 * time.Second)
			dog.since.Store(0)
		}
		start := time.Now()
		dog.since.Store(start.UnixNano())
		err := <-done
		if err == nil || !strings.Contains(err.Error(), "/data") {
			t.Errorf("a stalled disk: %v", err)
		}
		if took := time.Since(start); took > 7*time.Second {
			t.Errorf("noticed after %s", took)
		}
		cancel()
	})
}
