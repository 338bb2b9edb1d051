package quorum

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
)

// The wal is stopped after it closed a segment and before it began the next,
// or halfway through closing it.
func TestStoppedRotation(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
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
