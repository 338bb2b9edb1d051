package quorum

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft-wal/metadb"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/store"
	"ringmain/internal/testkit/diskkit"
	"ringmain/internal/testkit/logkit"
	"ringmain/internal/testkit/synckit"
)

// tree sums up all files below dir but those that every start touches.
func tree(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	sums := make(map[string][32]byte)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == nameProbe || d.Name() == nameLock || d.Name() == metadb.FileName {
			return err
		}
		data, err := os.ReadFile(path)
		sums[path] = sha256.Sum256(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// bereft is a region of three that lost two for good; c1 is left, stopped.
func bereft(t *testing.T, dir string, tune func(*Tunables)) (c *cluster, left *node, want string) {
	t.Helper()
	c = newCluster(t, dir, 3)
	if tune != nil {
		tune(&c.tune)
	}
	c.startAll()
	for i := range 40 {
		c.writeAgain(create(orgID(i), "kept"))
	}
	time.Sleep(3 * time.Second)
	c.writeAgain(put(orgID(1), "in the log"))
	c.converged()
	left = c.nodes[0]
	want = digests(left.q)
	for _, nd := range c.nodes {
		c.kill(nd)
	}
	c.nodes = c.nodes[:1]
	return c, left, want
}

func TestRecover(t *testing.T) {
	for name, tune := range map[string]func(*Tunables){
		"all in the log": nil,
		"with snapshots": func(t *Tunables) { t.TrailingLogs, t.SnapshotEntries, t.SnapshotEvery = 5, 10, time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			dir := diskkit.Fast(t)
			synckit.Test(t, func(t *testing.T) {
				c, left, want := bereft(t, dir, tune)
				said := new(logkit.Buffer)
				c.adjust = func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(said, nil)) }
				if err := RecoverWith(left.dir, "test", testRegion, []Peer{{"c1", left.addr}}); err != nil {
					t.Fatal(err)
				}
				c.start(left)
				if c.leader() != left || digests(left.q) != want {
					t.Fatalf("it holds\n%s\nand held\n%s", digests(left.q), want)
				}
				life, lost := left.q.MayHaveLost()
				if !lost || left.q.Since() == 0 || time.Since(life) > time.Minute {
					t.Errorf("it does not say that it may have lost commits: %v, %v", life, lost)
				}
				if log := said.String(); !strings.Contains(log, "log=audit") || !strings.Contains(log, "region.recovered") {
					t.Errorf("no audit fact:\n%s", log)
				}
				c.mustPropose(left, put(orgID(2), "after"))
				// A start later all is as it was, and nothing is obeyed twice.
				c.stop(left)
				c.start(left)
				c.leader()
				if again, _ := left.q.MayHaveLost(); !again.Equal(life) {
					t.Errorf("its life began at %s, and now at %s", life, again)
				}
				if n := len(left.q.Members()); n != 1 {
					t.Errorf("%d members", n)
				}
				// Whoever comes later knows too.
				c4 := c.newcomer("c4")
				c.start(c4)
				if err := left.q.Add(t.Context(), Peer{"c4", c4.addr}, false); err != nil {
					t.Fatal(err)
				}
				c.converged()
				if c4.q.Since() != left.q.Since() {
					t.Errorf("the newcomer is of life %d, not %d", c4.q.Since(), left.q.Since())
				}
				c.stopAll()
			})
		})
	}
}

func TestRecoverTwoOfFive(t *testing.T) {
	inFakeTime(t, 5, func(t *testing.T, c *cluster) {
		c.startAll()
		for i := range 10 {
			c.writeAgain(create(orgID(i), "x"))
		}
		c.converged()
		want := digests(c.nodes[0].q)
		for _, nd := range c.nodes {
			c.kill(nd)
		}
		c.nodes = c.nodes[1:3]
		for _, nd := range c.nodes {
			if err := RecoverWith(nd.dir, "test", testRegion, []Peer{{"c2", c.nodes[0].addr}, {"c3", c.nodes[1].addr}}); err != nil {
				t.Fatal(err)
			}
		}
		c.startAll()
		defer c.stopAll()
		c.leader()
		c.converged()
		if got := digests(c.nodes[0].q); got != want {
			t.Errorf("they hold\n%s\nand held\n%s", got, want)
		}
		c.writeAgain(create(orgID(99), "after"))
	})
}

func TestRecoverRefuses(t *testing.T) {
	dir := diskkit.Fast(t)
	synckit.Test(t, func(t *testing.T) {
		c, left, want := bereft(t, dir, nil)
		self := Peer{"c1", left.addr}
		before := tree(t, left.dir)
		for what, ask := range map[string]func() error{
			"cluster": func() error { return RecoverWith(left.dir, "other", testRegion, []Peer{self}) },
			"region":  func() error { return RecoverWith(left.dir, "test", "eu-fra", []Peer{self}) },
		} {
			if err := ask(); !errors.Is(err, controlplane.ErrWrongCluster) || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("wrong %s: %v", what, err)
			}
		}
		for what, peers := range map[string][]Peer{
			"c1 itself":     {{"c2", "10.0.0.2:7000"}},
			"twice":         {self, {"c2", left.addr}},
			"is no node":    {self, {"c2", "nowhere"}},
			`"" at`:         {self, {"", "10.0.0.2:7000"}},
			"itself is not": nil,
		} {
			if err := RecoverWith(left.dir, "test", testRegion, peers); err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%v: %v", peers, err)
			}
		}
		if err := RecoverWith(filepath.Join(dir, "nothing"), "test", testRegion, []Peer{self}); err == nil {
			t.Error("a directory that is none was accepted")
		}
		// What the file cannot know is found by the node.
		refuse := func(what, text, word string) {
			t.Helper()
			path := filepath.Join(left.dir, nameRecover)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := c.tryStart(left); err == nil || !strings.Contains(err.Error(), word) || !strings.Contains(err.Error(), "nothing was changed") {
				t.Errorf("%s: %v", what, err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			for path, sum := range tree(t, left.dir) {
				if before[path] != sum {
					t.Errorf("%s: %s was changed", what, path)
				}
			}
		}
		file := func(cluster string, peers ...Peer) string {
			text, err := json.Marshal(recovery{1, cluster, testRegion, peers})
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		refuse("a stranger", file("test", self, Peer{"c9", "10.0.0.9:7000"}), "c9")
		refuse("another cluster's", file("other", self), "other")
		refuse("not among its own", file("test", Peer{"c2", "10.0.0.2:7000"}), "c1")
		refuse("half a file", file("test", self)[:30], nameRecover)
		refuse("an unknown field", `{"format":1,"cluster":"test","region":"us-east","peers":[],"force":true}`, "force")
		refuse("another format", `{"format":2,"cluster":"test","region":"us-east","peers":[]}`, "format 2")
		c.start(left)
		time.Sleep(2 * time.Second)
		if err := RecoverWith(left.dir, "test", testRegion, []Peer{self}); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("while it runs: %v", err)
		}
		c.kill(left)
		// An empty directory has nothing to begin from.
		empty := c.newcomer("c7")
		if err := errors.Join(os.MkdirAll(empty.dir, 0o700), os.WriteFile(filepath.Join(empty.dir, nameRecover), []byte(file("test", Peer{"c7", empty.addr})), 0o600)); err != nil {
			t.Fatal(err)
		}
		empty.peers = []Peer{{"c7", empty.addr}}
		if err := c.tryStart(empty); err == nil || !strings.Contains(err.Error(), "nothing to recover") {
			t.Errorf("in an empty directory: %v", err)
		}
		c.nodes = c.nodes[:1]
		if err := RecoverWith(left.dir, "test", testRegion, []Peer{self}); err != nil {
			t.Fatal(err)
		}
		c.start(left)
		c.leader()
		if got := digests(left.q); got != want {
			t.Errorf("in the end it holds\n%s\nand held\n%s", got, want)
		}
		c.stop(left)
	})
}

// The moments in which a crash can part the steps of a recovery.
func TestRecoverCrashWindows(t *testing.T) {
	dir := diskkit.Fast(t)
	synckit.Test(t, func(t *testing.T) {
		c, left, want := bereft(t, dir, func(t *Tunables) { t.TrailingLogs, t.SnapshotEntries, t.SnapshotEvery = 5, 10, time.Second })
		ask := func() {
			t.Helper()
			if err := RecoverWith(left.dir, "test", testRegion, []Peer{{"c1", left.addr}}); err != nil {
				t.Fatal(err)
			}
		}
		ask()
		for range 3 { // obeyed, and the file was not put aside: obeyed again
			c.start(left)
			c.leader()
			if got := digests(left.q); got != want {
				t.Fatalf("it holds\n%s\nand held\n%s", got, want)
			}
			c.kill(left)
			ask()
		}
		// The new life was noted, and no more.
		if err := os.Remove(filepath.Join(left.dir, nameRecover)); err != nil {
			t.Fatal(err)
		}
		c.start(left)
		if err := left.q.machine.Begin(77); err != nil {
			t.Fatal(err)
		}
		c.kill(left)
		ask()
		c.start(left)
		c.leader()
		if got := digests(left.q); got != want || left.q.Since() <= 77 {
			t.Errorf("life %d, it holds\n%s\nand held\n%s", left.q.Since(), got, want)
		}
		if _, err := left.q.Propose(context.Background(), testShard, put(orgID(1), "on")); err != nil {
			t.Error(err)
		}
		c.stop(left)
	})
}

func FuzzRecovery(f *testing.F) {
	f.Add([]byte(`{"format":1,"cluster":"test","region":"us-east","peers":[{"node":"c1","addr":"10.0.0.1:7000"}]}`))
	f.Add([]byte(`{"format":1,"cluster":"test","region":"us-east","peers":[{"node":"c1","addr":"a:1"},{"node":"c1","addr":"a:1"}]}`))
	f.Add([]byte(`{"format":2}`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRecovery(text)
		if err != nil {
			return
		}
		own := store.Owner{Format: 1, Cluster: "test", Region: "us-east", Node: "c1"}
		if r.check("dir", own) != nil {
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		same, err := parseRecovery(again)
		if err != nil || same.check("dir", own) != nil || len(same.Peers) != len(r.Peers) {
			t.Errorf("%s becomes %s: %v", text, again, err)
		}
	})
}
