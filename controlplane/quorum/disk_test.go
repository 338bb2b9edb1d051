package quorum

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/store"
)

func TestWrongOwner(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		c.startAll()
		c.mustPropose(c.leader(), create(orgID(1), "a"))
		c.stopAll()
		for name, adjust := range map[string]func(*Config){
			"cluster": func(cfg *Config) { cfg.Cluster = "other" },
			"region":  func(cfg *Config) { cfg.Region = "eu-fra" },
			"node":    func(cfg *Config) { cfg.Node = "c9"; cfg.Peers = []Peer{{"c9", c.nodes[0].addr}} },
		} {
			c.adjust = adjust
			err := c.tryStart(c.nodes[0])
			if !errors.Is(err, controlplane.ErrWrongCluster) {
				t.Errorf("%s: %v", name, err)
				continue
			}
			cfg := c.config(c.nodes[0])
			wrong := store.Owner{Cluster: cfg.Cluster, Region: cfg.Region, Node: cfg.Node}
			for _, o := range []store.Owner{{Cluster: "test", Region: testRegion, Node: "c1"}, wrong} {
				if !strings.Contains(err.Error(), o.String()) {
					t.Errorf("%s: the error does not name %s: %v", name, o, err)
				}
			}
		}
		c.adjust = nil
		c.start(c.nodes[0])
		if err := c.tryStart(&node{name: "c1", addr: "10.0.0.9:1", dir: c.nodes[0].dir}); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("a directory in use was opened: %v", err)
		}
		c.stopAll()
		if err := os.Remove(filepath.Join(c.nodes[0].dir, nameOwner)); err != nil {
			t.Fatal(err)
		}
		if err := c.tryStart(c.nodes[0]); err == nil {
			t.Error("a directory without an owner was taken over")
			c.stopAll()
		}
	})
}

// oneNode makes a node with some history and returns its directory, closed,
// and what it held.
func oneNode(t *testing.T, c *cluster) (nd *node, want string) {
	t.Helper()
	nd = c.nodes[0]
	c.start(nd)
	c.leader()
	for i := range 25 {
		c.mustPropose(nd, create(orgID(i), "secret-name"))
	}
	want = digests(nd.q)
	c.stop(nd)
	return nd, want
}

// Whatever byte of the log is altered or lost, it is named, or of no account.
func TestLogDamage(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		nd, want := oneNode(t, c)
		// Without its image the node needs every entry of the log.
		if err := os.Remove(filepath.Join(nd.dir, nameImage)); err != nil {
			t.Fatal(err)
		}
		saved := filepath.Join(c.dir, "saved")
		if err := os.CopyFS(saved, os.DirFS(nd.dir)); err != nil {
			t.Fatal(err)
		}
		segments, err := filepath.Glob(filepath.Join(saved, nameLog, "*.wal"))
		if err != nil || len(segments) != 1 {
			t.Fatalf("segments %v, %v", segments, err)
		}
		segment, err := filepath.Rel(saved, segments[0])
		if err != nil {
			t.Fatal(err)
		}
		r := seeded(3)
		for _, file := range []struct {
			name  string
			tries int
		}{{segment, 150}, {filepath.Join(nameLog, "wal-meta.db"), 60}, {nameTail, 12}, {nameOwner, 20}} {
			good, err := os.ReadFile(filepath.Join(saved, file.name))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(good, []byte("secret-name")) {
				t.Errorf("%s holds content in the clear", file.name)
			}
			used := len(bytes.TrimRight(good, "\x00"))
			named := 0
			for range file.tries {
				if err := os.RemoveAll(nd.dir); err != nil {
					t.Fatal(err)
				}
				if err := os.CopyFS(nd.dir, os.DirFS(saved)); err != nil {
					t.Fatal(err)
				}
				bad, at := bytes.Clone(good), r.IntN(used)
				bad[at] ^= 1 << r.IntN(8)
				if err := os.WriteFile(filepath.Join(nd.dir, file.name), bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := c.tryStart(nd); err != nil {
					named++
					if !strings.Contains(err.Error(), nd.dir) {
						t.Fatalf("%s byte %d: the error does not say where: %v", file.name, at, err)
					}
					continue
				}
				c.leader()
				if got := digests(nd.q); got != want {
					t.Fatalf("%s byte %d of %d: served\n%s\nwant\n%s", file.name, at, used, got, want)
				}
				c.stop(nd)
			}
			t.Logf("%s: %d of %d flipped bits named, the others harmless", file.name, named, file.tries)
		}
	})
}

func TestImageDamageIsRebuilt(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		nd, want := oneNode(t, c)
		path := filepath.Join(nd.dir, nameImage)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range content {
			content[i] ^= 0xFF
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		err = c.tryStart(nd)
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "move that one file away") {
			t.Fatalf("a damaged image: %v", err)
		}
		if err := os.Rename(path, path+".bad"); err != nil {
			t.Fatal(err)
		}
		c.start(nd)
		c.leader()
		if got := digests(nd.q); got != want {
			t.Errorf("rebuilt\n%s\nwant\n%s", got, want)
		}
		c.stop(nd)
	})
}

// The moments in which a crash can part image, snapshot and log.
func TestCrashWindows(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		c.tune.TrailingLogs, c.tune.SnapshotEntries, c.tune.SnapshotEvery, c.tune.SegmentBytes = 2, 10, time.Second, 4<<10
		nd, want := oneNode(t, c)
		c.start(nd)
		c.leader()
		time.Sleep(5 * time.Second) // a snapshot is taken, the log cut
		c.stop(nd)
		restart := func(what string) {
			t.Helper()
			c.start(nd)
			c.leader()
			if got := digests(nd.q); got != want {
				t.Errorf("%s:\n%s\nwant\n%s", what, got, want)
			}
			c.stop(nd)
		}
		// A snapshot arrived, the image was not replaced yet.
		if err := os.Remove(filepath.Join(nd.dir, nameImage)); err != nil {
			t.Fatal(err)
		}
		restart("without the image")
		if err := os.WriteFile(filepath.Join(nd.dir, nameImage+".new"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		restart("with half a new image")
		// The same, and the log still holds entries from before the snapshot.
		if err := errors.Join(os.Remove(filepath.Join(nd.dir, nameImage)), os.RemoveAll(filepath.Join(nd.dir, nameLog)), os.Remove(filepath.Join(nd.dir, nameTail))); err != nil {
			t.Fatal(err)
		}
		cfg := c.config(nd)
		if err := cfg.check(); err != nil {
			t.Fatal(err)
		}
		old, err := store.OpenLog(cfg.store(func(err error) { t.Error(err) }))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(old.StoreLog(&raft.Log{Index: 3, Term: 1}), old.SetUint64([]byte("CurrentTerm"), 9), old.Close(), cfg.Listener.Close()); err != nil {
			t.Fatal(err)
		}
		restart("with an older log")
		// What no crash explains is refused.
		if err := os.RemoveAll(filepath.Join(nd.dir, "snapshots")); err != nil {
			t.Fatal(err)
		}
		if err := c.tryStart(nd); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("without the snapshot that the log follows: %v", err)
		}
	})
}

// fullDisk is the disk under the log, on which no new file finds room while full.
type fullDisk struct {
	types.VFS
	full atomic.Bool
}

func (d *fullDisk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	if d.full.Load() {
		return nil, fmt.Errorf("create %s: %w", name, syscall.ENOSPC)
	}
	return d.VFS.Create(dir, name, size)
}

func TestDiskFull(t *testing.T) {
	inFakeTime(t, 1, func(t *testing.T, c *cluster) {
		c.tune.SegmentBytes = 8 << 10
		disk := &fullDisk{VFS: walfs.New()}
		c.adjust = func(cfg *Config) { cfg.logFiles = disk }
		nd := c.nodes[0]
		c.start(nd)
		c.leader()
		disk.full.Store(true)
		written := 0
		for ; written < 200; written++ {
			_, err := nd.q.Propose(context.Background(), testShard, create(orgID(written), "x"))
			if err == nil {
				continue
			}
			if !errors.Is(err, controlplane.ErrDiskFull) {
				t.Fatalf("when the disk is full: %v", err)
			}
			break
		}
		if written == 0 || written == 200 {
			t.Fatalf("%d writes went through", written)
		}
		for range 20 {
			time.Sleep(300 * time.Millisecond)
			if nd.q.Err() != nil {
				break // it may give up: the supervisor restarts it
			}
			if _, err := nd.q.Propose(context.Background(), testShard, create(orgID(900), "x")); !errors.Is(err, controlplane.ErrDiskFull) {
				t.Fatalf("while the disk is full: %v", err)
			}
			if nd.q.Stats().Problem == "" {
				t.Error("the node does not say what ails it")
			}
		}
		disk.full.Store(false)
		if nd.q.Err() != nil {
			_ = nd.q.Close(context.Background())
			nd.cancel()
			c.start(nd)
		}
		c.eventually(20*time.Second, "writes when there is room again", func() bool {
			_, err := nd.q.Propose(context.Background(), testShard, put(orgID(901), "x"))
			return err == nil
		})
		if nd.q.Stats().Problem != "" {
			t.Errorf("it still complains: %s", nd.q.Stats().Problem)
		}
		for i := range written {
			if nameOf(nd.q, orgID(i)) == "" {
				t.Fatalf("acknowledged write %d is lost", i)
			}
		}
		want := digests(nd.q)
		c.kill(nd)
		c.start(nd)
		c.leader()
		if got := digests(nd.q); got != want {
			t.Errorf("after a restart\n%s\nwant\n%s", got, want)
		}
		c.stop(nd)
	})
}

// brokenDisk fails the next sync for good.
type brokenDisk struct {
	types.VFS
	broken *atomic.Bool
}

type brokenFile struct {
	types.WritableFile
	broken *atomic.Bool
}

func (f brokenFile) Sync() error {
	if f.broken.Load() {
		return syscall.EIO
	}
	return f.WritableFile.Sync()
}

func (d brokenDisk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := d.VFS.Create(dir, name, size)
	return brokenFile{f, d.broken}, err
}

func TestDiskErrorStopsNode(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		broken := make(map[string]*atomic.Bool)
		c.adjust = func(cfg *Config) {
			broken[cfg.Node] = new(atomic.Bool)
			cfg.logFiles = brokenDisk{walfs.New(), broken[cfg.Node]}
		}
		c.startAll()
		lead := c.leader()
		c.mustPropose(lead, create(orgID(1), "a"))
		broken[lead.name].Store(true)
		if _, err := lead.q.Propose(context.Background(), testShard, put(orgID(1), "b")); !errors.Is(err, controlplane.ErrUncertain) {
			t.Errorf("after a failed sync: %v", err)
		}
		<-lead.q.Done()
		if err := lead.q.Close(context.Background()); !errors.Is(err, syscall.EIO) {
			t.Errorf("the node stopped with %v", err)
		}
		lead.cancel()
		lead.q = nil
		c.mustPropose(c.leader(), put(orgID(1), "c"))
		c.start(lead)
		c.converged()
		c.stopAll()
	})
}

func TestConfigCheck(t *testing.T) {
	c := newCluster(t, t.TempDir(), 3)
	for name, spoil := range map[string]func(*Config){
		"no cluster":    func(cfg *Config) { cfg.Cluster = "" },
		"not a peer":    func(cfg *Config) { cfg.Node = "c9" },
		"two of a name": func(cfg *Config) { cfg.Peers = append(slices.Clone(cfg.Peers), Peer{"c1", "x:1"}); cfg.Expect = 4 },
		"two of an addr": func(cfg *Config) {
			cfg.Peers = append(slices.Clone(cfg.Peers), Peer{"c4", cfg.Peers[0].Addr})
			cfg.Expect = 4
		},
		"too many peers": func(cfg *Config) { cfg.Expect = 2 },
		"no dial":        func(cfg *Config) { cfg.Dial = nil },
	} {
		cfg := c.config(c.nodes[0])
		spoil(&cfg)
		if _, err := Open(context.Background(), cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
