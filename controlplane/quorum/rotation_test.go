package quorum

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
)

// The wal is stopped after it closed a segment and before it began the next,
// or halfway through closing it.
func TestStoppedRotation(t *testing.T) {
	dir := fastDir(t)
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir, 1, newMemNet())
		nd := c.nodes[0]
		for round, spoil := range []func(data []byte, index int64){
			func([]byte, int64) {},
			func(data []byte, index int64) { data[index] ^= 0xFF },   // a torn index
			func(data []byte, index int64) { data[index-4] ^= 0xFF }, // a torn length
			func([]byte, int64) {},
		} {
			c.start(nd)
			c.leader()
			for i := range 20 {
				c.mustPropose(nd, put(orgID(round*100+i), "x"))
			}
			want := digests(nd.q)
			c.stop(nd)
			path, index := closeSegment(t, filepath.Join(nd.dir, nameLog))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			spoil(data, index)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(nd.dir, nameImage)); err != nil { // needs every entry
				t.Fatal(err)
			}
			c.start(nd)
			c.leader()
			if got := digests(nd.q); got != want {
				t.Fatalf("round %d:\n%s\nwant\n%s", round, got, want)
			}
			c.mustPropose(nd, put(orgID(1), "y"))
			c.stop(nd)
		}
	})
}

// closeSegment does what the wal does last with a full segment.
func closeSegment(t *testing.T, dir string) (path string, index int64) {
	t.Helper()
	var meta metadb.BoltMetaDB
	state, err := meta.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	tail := state.Segments[len(state.Segments)-1]
	w, err := segment.NewFiler(dir, walfs.New()).RecoverTail(tail)
	if err != nil {
		t.Fatal(err)
	}
	start, err := w.ForceSeal()
	if err := errors.Join(err, w.Close(), meta.Close()); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, segment.FileName(tail)), int64(start)
}

// Many small segments, closed and opened at every point.
func TestRotationAtEveryPoint(t *testing.T) {
	c := newCluster(t, fastDir(t), 1, newMemNet())
	cfg := c.config(c.nodes[0])
	cfg.Tunables.SegmentBytes = 2 << 10
	if err := errors.Join(cfg.check(), os.MkdirAll(cfg.Dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	open := func() *sealedLog {
		t.Helper()
		l, err := openLog(&cfg, nil, func(err error) { t.Errorf("fatal: %v", err) })
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	payload := func(i uint64) []byte { return []byte(strings.Repeat("p", int(i*37%400))) }
	for i := uint64(1); i <= 120; i++ {
		l := open()
		if err := l.StoreLog(&raft.Log{Index: i, Term: 1, Data: payload(i)}); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l := open()
	var e raft.Log
	for i := uint64(1); i <= 120; i++ {
		if err := l.GetLog(i, &e); err != nil || string(e.Data) != string(payload(i)) {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	if err := errors.Join(l.Close(), cfg.Listener.Close()); err != nil {
		t.Fatal(err)
	}
}
