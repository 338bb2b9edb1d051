package keeper

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/keeper/trial"
)

// deaths is how many workers of the node ended, by its keepers' logs.
func (n *node) deaths() int { return strings.Count(n.log.text(), "the worker ended") }

// proven waits until the node has noted that a worker lives with the
// configuration through seq.
func (n *node) proven(seq uint64) {
	n.t.Helper()
	sealer, err := n.args.sealer()
	if err != nil {
		n.t.Fatal(err)
	}
	within(n.t, "the state is proven", func() bool {
		l, err := trial.File{Dir: n.args.Dir, Name: "test/" + n.args.Node, Sealer: sealer}.Load()
		return err == nil && l.Proven[controlplane.ShardGlobal].Seq >= seq
	})
}

// A worker that dies twice on a change of the state gets it without that; all
// else goes on, and a newer version of the record is tried.
func TestCrashTwice(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	c.addKey("b")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded && s.Keys == 2 })
	c.putKey("b", "prj_panics")
	c.putKey("c", "prj_panics")
	last := c.addKey("d")
	s := n.state("the state goes on without the bad ones", func(s workerState) bool { return s.Loaded && s.Seq == last })
	if s.Keys != 3 { // a, the former b, d
		t.Errorf("%+v", s)
	}
	if d := n.deaths(); d != 4 {
		t.Errorf("%d workers died on two bad changes, want two on each", d)
	}
	c.revokeKey("a")
	within(t, "the key is revoked", func() bool { _, got, err := n.get("/key?id=a"); return err == nil && got == "true true" })

	// So it stays with a new keeper and a new worker, and with the state received anew.
	n.killKeeper()
	n.startKeeper()
	last = c.addKey("e")
	n.state("adopted", func(s workerState) bool { return s.Seq == last })
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
	died := n.deaths()
	n.startKeeper()
	n.state("loaded from disk", func(s workerState) bool { return s.Loaded && s.Keys == 4 })
	if err := n.stopKeeper(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Join(n.args.Dir, "lkg")); err != nil {
		t.Fatal(err)
	}
	n.startKeeper()
	n.state("loaded as a whole", func(s workerState) bool { return s.Loaded && s.Keys == 4 })
	if d := n.deaths() - died; d != 1 { // the one that was stopped
		t.Errorf("%d more workers died", d)
	}
	last = c.putKey("c", "prj")
	n.state("the mended one arrives", func(s workerState) bool { return s.Seq == last && s.Keys == 5 })
}

// A keeper that dies twice while it reads a generation uses the one before.
func TestKeeperCrashesOnGeneration(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	var newest string
	for range 2 {
		if newest != "" { // deltas that are damaged have a new generation written
			if err := os.WriteFile(filepath.Join(n.args.Dir, "safety.log"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		n.startKeeper()
		n.state("loaded", func(s workerState) bool { return s.Loaded && !s.Unknown && s.Keys == 1 })
		within(t, "a new generation", func() bool {
			files, _ := filepath.Glob(filepath.Join(n.args.Dir, "lkg", "*.snap"))
			if len(files) == 0 || files[len(files)-1] == newest {
				return false
			}
			newest = files[len(files)-1]
			return true
		})
		if err := n.stopKeeper(); err != nil {
			t.Fatal(err)
		}
	}
	n.args.Breaks = filepath.Base(newest)
	for i := range 2 {
		n.startKeeper()
		if err := n.cmd.Wait(); err == nil {
			t.Fatalf("keeper %d did not die", i)
		}
		n.cmd = nil
	}
	last := c.addKey("b")
	c.setDown(true)
	n.startKeeper()
	n.state("loaded from what was before", func(s workerState) bool { return s.Loaded && s.Keys == 1 })
	c.setDown(false)
	n.state("and current", func(s workerState) bool { return s.Seq == last && s.Keys == 2 })
	if !strings.Contains(n.log.text(), "the one before it is used") {
		t.Error("the log does not say so")
	}
}

// An upstream that is disabled is not called by nodes either that wait with that
// change for others.
func TestWhatWaitsForbids(t *testing.T) {
	c := newControl(t)
	c.shard = controlplane.ShardGlobal
	upstream := func(disabled bool) uint64 {
		return c.commit(registry.Change{Op: registry.OpPut, Record: &registry.Record{Kind: registry.KindUpstream, Meta: registry.Meta{ID: "ups_1", Shard: c.shard},
			Upstream: &registry.Upstream{Name: "a", Region: "us-east", Auth: "none", Disabled: disabled}}})
	}
	first := upstream(false)
	n := newNode(t, c)
	n.args.Node, n.args.Gossip = "us-d2", t.TempDir()
	_, tell := keeperArgs{Node: "us-d1", Gossip: n.args.Gossip}.gossip()
	died := trial.Report{Proven: controlplane.Point{Epoch: testEpoch, Seq: first},
		Suspects: []trial.Span{trial.One(c.shard, controlplane.Point{Epoch: testEpoch, Seq: first + 1})}}
	tell(died)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded && s.Seq == first })
	last := upstream(true)
	within(t, "it is not called", func() bool { _, got, err := n.get("/upstream?name=a"); return err == nil && got == "true true" })
	n.state("and the change waits", func(s workerState) bool { return s.Seq == first })
	tell(trial.Report{Proven: controlplane.Point{Epoch: testEpoch, Seq: last}})
	n.state("no more", func(s workerState) bool { return s.Seq == last })
}

// A node that hears nobody, and knew others when it last did, takes the
// configuration in its turn; once it hears that another lives with a change it
// takes that at once.
func TestWhoHearsNobodyWaits(t *testing.T) {
	c := newControl(t)
	c.shard = controlplane.ShardGlobal
	first := c.addKey("a")
	n := newNode(t, c)
	n.args.Node, n.args.Gossip = "us-d4", t.TempDir() // its turn is a while after that of the third
	var tell func(trial.Report)
	for _, before := range []string{"us-d1", "us-d2", "us-d3"} {
		_, tell = keeperArgs{Node: before, Gossip: n.args.Gossip}.gossip()
		tell(trial.Report{Proven: controlplane.Point{Epoch: testEpoch, Seq: first}})
	}
	n.startKeeper()
	n.proven(first)
	sealer, err := n.args.sealer()
	if err != nil {
		t.Fatal(err)
	}
	within(t, "the others are remembered", func() bool {
		l, err := trial.File{Dir: n.args.Dir, Name: "test/us-d4", Sealer: sealer}.Load()
		return err == nil && len(l.Peers) == 3
	})
	if err := n.stopKeeper(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(n.args.Gossip); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(n.args.Gossip, 0o700); err != nil {
		t.Fatal(err)
	}
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	began := time.Now()
	last := c.addKey("b")
	c.revokeKey("a")
	within(t, "a revocation waits for nobody", func() bool { _, got, err := n.get("/key?id=a"); return err == nil && got == "true true" })
	for time.Since(began) < time.Second {
		if s, err := n.ask(); err == nil && s.Seq != first {
			t.Fatalf("it took the change after %v", time.Since(began))
		}
		time.Sleep(50 * time.Millisecond)
	}
	tell(trial.Report{Proven: controlplane.Point{Epoch: testEpoch, Seq: last + 1}})
	n.state("it is taken", func(s workerState) bool { return s.Seq == last+1 })
	if d := time.Since(began); d > 3*trial.Patience {
		t.Errorf("only after %v, which was its turn", d)
	}
}

// What kills later than while it is applied is found by what is new in the
// configuration: here there is nothing else in it to suspect.
func TestCrashLater(t *testing.T) {
	c := newControl(t)
	c.shard = controlplane.ShardGlobal
	c.addKey("a")
	n := newNode(t, c)
	n.args.Lives = 3 * time.Second // the bad one dies sooner, however busy the machine is
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	n.proven(1)
	c.putKey("b", "prj_lingers")
	within(t, "the bad one is left out", func() bool { return strings.Contains(n.log.text(), "a change of the state is left out") })
	last := c.addKey("c")
	s := n.state("the state goes on", func(s workerState) bool { return s.Loaded && s.Seq == last })
	if s.Keys != 2 || n.deaths() != 2 {
		t.Errorf("%+v after %d deaths", s, n.deaths())
	}
}

// A node that is killed from outside, however often, leaves nothing out.
func TestKilledIsNotCrashed(t *testing.T) {
	c := newControl(t)
	c.shard = controlplane.ShardGlobal
	n := newNode(t, c)
	n.startKeeper()
	c.addKey("a")
	n.proven(1)
	last := c.addKey("b")
	for range 3 {
		s := n.state("loaded", func(s workerState) bool { return s.Loaded && s.Seq == last })
		if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.state("another one", func(now workerState) bool { return now.PID != s.PID })
	}
	n.state("all is there", func(s workerState) bool { return s.Loaded && s.Keys == 2 })
	if strings.Contains(n.log.text(), "left out") {
		t.Error("a change was left out")
	}
}

// One node tries a change of the configuration, then its region, then the
// others. What kills the first stops there.
func TestRollOut(t *testing.T) {
	c := newControl(t)
	c.shard = controlplane.ShardGlobal
	c.addKey("a")
	gossip := t.TempDir()
	var all []*node
	for _, name := range []string{"us-d1", "us-d2", "eu-d1", "eu-d2"} {
		n := newNode(t, c)
		n.args.Node, n.args.Gossip = name, gossip
		if n.args.Region = "us-east"; name[:2] == "eu" {
			n.args.Region = "eu-fra"
		}
		n.startKeeper()
		all = append(all, n)
	}
	t.Cleanup(func() { // before any of them reaps what it finds
		for _, n := range all {
			if err := n.stopKeeper(); err != nil {
				t.Error(err)
			}
		}
	})
	each := func(what string, cond func(workerState) bool) {
		t.Helper()
		for _, n := range all {
			n.state(n.args.Node+": "+what, cond)
		}
	}
	each("loaded", func(s workerState) bool { return s.Loaded && s.Keys == 1 })
	within(t, "all have shown that they live with it", func() bool {
		reports, _ := all[0].args.gossip()
		known := 0
		for _, r := range reports() {
			if r.Proven.Seq == 1 {
				known++
			}
		}
		return known == len(all)
	})
	began := time.Now()
	last := c.addKey("b")
	each("a good change", func(s workerState) bool { return s.Seq == last && s.Keys == 2 })
	t.Logf("a change of the configuration was everywhere after %v", time.Since(began).Round(time.Millisecond))

	c.putKey("b", "prj_panics")
	c.revokeKey("a")
	revoked := time.Now()
	for _, n := range all {
		within(t, n.args.Node+": the key is revoked", func() bool { _, got, err := n.get("/key?id=a"); return err == nil && got == "true true" })
	}
	t.Logf("a revocation behind a bad change was everywhere after %v", time.Since(revoked).Round(time.Millisecond))
	last = c.addKey("c")
	each("what follows the bad change", func(s workerState) bool { return s.Seq == last && s.Keys == 3 })
	for i, n := range all {
		want := 0
		if i == 0 {
			want = 2
		}
		if d := n.deaths(); d != want {
			t.Errorf("%s: %d workers died, want %d", n.args.Node, d, want)
		}
	}
	for _, n := range all {
		if strings.Contains(n.log.text(), "records_before=0") {
			t.Errorf("%s does not know what the record was before", n.args.Node)
		}
	}
	last = c.putKey("b", "prj")
	each("the mended record", func(s workerState) bool { return s.Seq == last })
}

// However often a node is started without a control plane, it has its state.
func TestStartedOften(t *testing.T) {
	c := newControl(t)
	c.addKey("a")
	n := newNode(t, c)
	n.startKeeper()
	n.state("loaded", func(s workerState) bool { return s.Loaded })
	c.setDown(true)
	for range 2 * trial.MaxDeaths {
		if err := n.stopKeeper(); err != nil {
			t.Fatal(err)
		}
		n.startKeeper()
		n.state("loaded from disk", func(s workerState) bool { return s.Loaded && s.Keys == 1 })
	}
}
