package nemesis_test

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/admin/api"
	"ringmain/drills/cluster"
	"ringmain/drills/fault"
	"ringmain/drills/history"
	"ringmain/drills/history/nemesis"
)

var (
	lasts = flag.Duration("for", time.Minute, "how long the clients work")
	seed  = flag.Uint64("seed", 1, "of the nemesis and the clients")
	keep  = flag.String("keep", "", "directory for history and verdict (default: one of the test's own, kept if it fails)")
	filed = flag.String("history", "", "a history.jsonl for TestFiled")
	inner = flag.Bool("inside", false, "set by TestCluster itself: this process has a network namespace to itself")
	port  = flag.Int("port", 16440, "first of the cluster's ports")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestFiled judges a history that was kept.
func TestFiled(t *testing.T) {
	if *filed == "" {
		t.Skip("no -history")
	}
	f, err := os.Open(*filed)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h, err := history.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	for _, violation := range history.Check(h, filepath.Dir(*filed)).Violations {
		t.Error(violation)
	}
}

// One history explains what clients saw while the cluster was killed, stopped
// and moved under them.
func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a whole cluster for a minute")
	}
	if raceEnabled {
		t.Skip("the race detector sees nothing of child processes")
	}
	dir := *keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "ringmain-history-"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if !t.Failed() {
				_ = os.RemoveAll(dir)
			}
		})
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !*inner && os.Geteuid() == 0 {
		if _, err := exec.LookPath("nft"); err == nil {
			inside(t, dir)
			return
		}
	}
	var net *fault.Network
	if *inner {
		groups := t.TempDir()
		var err error
		if net, err = fault.OpenNetwork(t.Context(), groups, *port); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := net.Close(); err != nil {
				t.Error(err)
			}
		})
	} else {
		t.Log("without root and nft nothing is cut off")
	}
	work, err := os.MkdirTemp(dir, "cluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !t.Failed() { // the nodes' logs say more
			_ = os.RemoveAll(work)
		}
	})
	binary := filepath.Join(work, "ringmain")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "ringmain/cmd/ringmain").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c, err := cluster.Start(t.Context(), binary, work, *port, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	stalls := *inner && disks(t)
	enough := int(200 * lasts.Seconds())
	h, err := nemesis.Run(t.Context(), c, net, stalls, nemesis.Load{Registers: 12, Clients: 40, Pause: 80 * time.Millisecond, Answered: enough, Seed: *seed}, *lasts)
	if err != nil {
		t.Errorf("%v\nthe cluster's directory: %s", err, work)
	}
	if h == nil {
		return
	}
	if err := h.Save(filepath.Join(dir, "history.jsonl")); err != nil {
		t.Fatal(err)
	}
	v := history.Check(h, dir)
	verdict, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "verdict.json"), verdict, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range h.Faults {
		t.Logf("%7.3f s, took %6.3f s: %s: %s", f.At.Seconds(), f.Took.Seconds(), f.Fault, f.Proof)
	}
	t.Logf("%s\n%s", dir, verdict)
	for _, violation := range v.Violations {
		t.Error(violation)
	}
	if v.Answered < enough {
		t.Errorf("%d operations answered in %s: want %d, or this proves less than it says", v.Answered, h.Ended, enough)
	}
	if len(v.Violations) == 0 {
		planted(t, h)
	}
	if want := int(lasts.Minutes() * 10); v.Faults < want {
		t.Errorf("%d faults proven, want %d", v.Faults, want)
	}
	kinds := []string{"kill leader", "hand over", "stop node", "stop region", "takeover", "zombie returns", "move", "kill region", "region returns", "rival takeovers", "replace node", "lost disk"}
	if *inner {
		kinds = append(kinds, "one-way partition", "isolated home")
	}
	if stalls {
		kinds = append(kinds, "stalled disk")
	}
	for _, kind := range kinds {
		if !slices.ContainsFunc(h.Faults, func(f history.Fault) bool { return f.Fault == kind }) {
			t.Errorf("nothing proves that there was a fault %q", kind)
		}
	}
}

// disks says whether one can be made here that stalls.
func disks(t *testing.T) bool {
	t.Helper()
	disk, err := fault.OpenDisk(t.Context(), t.TempDir(), filepath.Join(t.TempDir(), "image"), 16<<20)
	if err == nil {
		err = disk.Close()
	}
	if err != nil {
		t.Logf("no disk is stalled: %v", err)
	}
	return err == nil
}

// inside runs the test again where it may cut the network.
func inside(t *testing.T, dir string) {
	t.Helper()
	args := []string{"-test.run", "^TestCluster$", "-test.v", "-inside", "-keep", dir, "-for", lasts.String(), "-seed", strconv.FormatUint(*seed, 10), "-port", strconv.Itoa(*port)}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	t.Logf("in a network namespace of its own:\n%s", out)
	if err != nil {
		t.Error(err)
	}
}

// planted makes sure that the checker would have found lies in this very history.
func planted(t *testing.T, h *history.History) {
	t.Helper()
	last, first := map[string]int{}, map[string]string{}
	confirmed := history.Op{}
	for i, op := range h.Ops {
		switch {
		case op.Outcome != history.Done:
		case op.Kind == history.Read:
			last[op.Object] = i
		case op.Kind == history.Write && first[op.Object] == "":
			first[op.Object] = op.Value
		case op.Kind == history.Write && op.Reached == api.AcknowledgedMultiRegion:
			confirmed = op
		}
	}
	stale := *h
	stale.Ops = slices.Clone(h.Ops)
	for object, i := range last {
		stale.Ops[i].Value = first[object]
	}
	if got := len(history.Check(&stale, "").Violations); got != len(last) {
		t.Errorf("the last read of each of %d registers was made stale: %d violations", len(last), got)
	}
	lost := *h
	lost.Cuts = append(slices.Clone(h.Cuts), history.Cut{Position: confirmed.Position, Op: "put", Record: confirmed.Object, Name: confirmed.Value})
	if len(history.Check(&lost, "").Violations) == 0 {
		t.Errorf("a write acknowledged multi-region was lost into quarantine, and nobody minds: %+v", confirmed)
	}
}
