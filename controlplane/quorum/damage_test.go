package quorum

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A node whose image is gone rests on its newest snapshot and what the log has
// beyond it. Whatever is altered in either, or torn off them, is named, or of
// no account.
func TestSnapshotDamage(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery, c.tune.SegmentBytes = 2, 10, time.Second, 4<<10
		nd := c.nodes[0]
		c.start(nd)
		c.leader()
		for i := range 30 {
			c.mustPropose(nd, create(orgID(i), "secret-name"))
		}
		time.Sleep(5 * time.Second) // a snapshot is taken, the log cut
		for i := range 5 {
			c.mustPropose(nd, put(orgID(i), "in the log"))
		}
		want := digests(nd.q)
		c.kill(nd)
		if err := os.Remove(filepath.Join(nd.dir, nameImage)); err != nil {
			t.Fatal(err)
		}
		saved := filepath.Join(c.dir, "saved")
		if err := os.CopyFS(saved, os.DirFS(nd.dir)); err != nil {
			t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(saved, "snapshots", "*", "*"))
		segments, err2 := filepath.Glob(filepath.Join(saved, nameLog, "*.wal"))
		if err := errors.Join(err, err2); err != nil || len(files) < 2 || len(segments) == 0 {
			t.Fatalf("%v, %v, %v", files, segments, err)
		}
		r := seeded(5)
		for _, path := range append(files, segments...) {
			name, err := filepath.Rel(saved, path)
			if err != nil {
				t.Fatal(err)
			}
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(good, []byte("secret-name")) {
				t.Errorf("%s holds content in the clear", name)
			}
			used := len(bytes.TrimRight(good, "\x00"))
			named := 0
			const tries = 60
			for try := range tries {
				if err := errors.Join(os.RemoveAll(nd.dir), os.CopyFS(nd.dir, os.DirFS(saved))); err != nil {
					t.Fatal(err)
				}
				bad, at := bytes.Clone(good), r.IntN(used)
				if try%2 == 0 {
					bad[at] ^= 1 << r.IntN(8)
				} else {
					bad = bad[:at]
				}
				if err := os.WriteFile(filepath.Join(nd.dir, name), bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := c.tryStart(nd); err != nil {
					named++
					if !strings.Contains(err.Error(), nd.dir) {
						t.Fatalf("%s at %d: the error does not say where: %v", name, at, err)
					}
					continue
				}
				c.leader()
				if got := digests(nd.q); got != want {
					t.Fatalf("%s at %d of %d: served\n%s\nwant\n%s", name, at, used, got, want)
				}
				c.stop(nd)
			}
			t.Logf("%s: %d of %d named, the others of no account", name, named, tries)
		}
	})
}

// An image that ends too early is named, wherever it ends.
func TestTornImage(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		nd, want := oneNode(t, c)
		path := filepath.Join(nd.dir, nameImage)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r := seeded(6)
		used := len(bytes.TrimRight(good, "\x00"))
		for range 40 {
			at := r.IntN(used)
			if err := os.WriteFile(path, good[:at], 0o600); err != nil {
				t.Fatal(err)
			}
			err := c.tryStart(nd)
			if err == nil {
				c.leader()
				if got := digests(nd.q); got != want {
					t.Fatalf("an image of %d bytes of %d: served\n%s\nwant\n%s", at, used, got, want)
				}
				c.stop(nd)
				continue
			}
			if !strings.Contains(err.Error(), path) {
				t.Fatalf("an image of %d bytes: the error does not say where: %v", at, err)
			}
		}
	})
}
