package quorum

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/types"

	"ringmain/controlplane"
)

// stalledDisk is a disk under the log whose syncs hang for as long as they
// must, as those of a disk that went away do.
type stalledDisk struct {
	types.VFS
	hang *atomic.Pointer[chan struct{}]
}

type stalledFile struct {
	types.WritableFile
	hang *atomic.Pointer[chan struct{}]
}

func (f stalledFile) Sync() error {
	if c := f.hang.Load(); c != nil {
		<-*c
	}
	return f.WritableFile.Sync()
}

func (d stalledDisk) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := d.VFS.Create(dir, name, size)
	return stalledFile{f, d.hang}, err
}

// A leader whose disk hangs goes on beating, and would lead for ever: it gives
// up within the bound, and another writes.
func TestStalledDiskGivesLeadershipUp(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		hangs := make(map[string]*atomic.Pointer[chan struct{}])
		c.adjust = func(cfg *Config) {
			hangs[cfg.Node] = new(atomic.Pointer[chan struct{}])
			cfg.logFiles = stalledDisk{walfs.New(), hangs[cfg.Node]}
		}
		c.startAll()
		old := c.leader()
		c.mustPropose(old, create(orgID(1), "a"))
		release := make(chan struct{})
		hangs[old.name].Store(&release)
		start := time.Now()
		fate := make(chan error, 1)
		go func() {
			_, err := old.q.Propose(context.Background(), testShard, put(orgID(1), "b"))
			fate <- err
		}()
		c.eventually(20*time.Second, "a leader whose disk works", func() bool {
			return slices.ContainsFunc(c.nodes, func(nd *node) bool { return nd != old && nd.q.IsLeader() })
		})
		stall := old.q.cfg.Tunables.Stall
		if took := time.Since(start); took < stall || took > stall+probeEvery/2+2*time.Second {
			t.Errorf("another leads after %s, the bound is %s", took, stall)
		}
		if err := old.q.Err(); err == nil || !strings.Contains(err.Error(), "has not finished a write") || !strings.Contains(err.Error(), old.dir) {
			t.Errorf("the node says %v", err)
		}
		if err := old.q.Read(t.Context()); err == nil {
			t.Error("it answers reads")
		}
		if _, err := old.q.Propose(context.Background(), testShard, put(orgID(2), "x")); err == nil {
			t.Error("it takes writes")
		}
		for _, nd := range c.nodes {
			if nd != old && nd.q.IsLeader() {
				c.mustPropose(nd, put(orgID(1), "c"))
			}
		}
		close(release) // the disk comes back, and with it the process's end
		hangs[old.name].Store(nil)
		if err := <-fate; !errors.Is(err, controlplane.ErrUncertain) {
			t.Errorf("the write that hung: %v", err)
		}
		<-old.q.stopped
		old.cancel()
		c.start(old)
		c.converged()
		if got := nameOf(old.q, orgID(1)); got != "c" {
			t.Errorf("it has %q", got)
		}
		c.stopAll()
	})
}

// A follower whose disk hangs holds nobody up.
func TestStalledFollowerIsDoneWithout(t *testing.T) {
	inFakeTime(t, 3, func(t *testing.T, c *cluster) {
		hangs := make(map[string]*atomic.Pointer[chan struct{}])
		c.adjust = func(cfg *Config) {
			hangs[cfg.Node] = new(atomic.Pointer[chan struct{}])
			cfg.logFiles = stalledDisk{walfs.New(), hangs[cfg.Node]}
		}
		c.startAll()
		lead := c.leader()
		victim := c.nodes[(slices.Index(c.nodes, lead)+1)%3]
		release := make(chan struct{})
		hangs[victim.name].Store(&release)
		for i := range 100 {
			start := time.Now()
			c.mustPropose(lead, create(orgID(i), "x"))
			if took := time.Since(start); took > 100*time.Millisecond {
				t.Fatalf("write %d took %s", i, took)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if victim.q.Err() == nil {
			t.Error("the follower goes on")
		}
		close(release)
		hangs[victim.name].Store(nil)
		<-victim.q.stopped
		victim.cancel()
		c.start(victim)
		c.converged()
		c.stopAll()
	})
}
