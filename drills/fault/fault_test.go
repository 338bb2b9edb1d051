package fault_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/drills/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// supervisor is a fake that keeps the protocol: holds end with their connection.
type supervisor struct {
	mu        sync.Mutex
	holds     map[string]int
	processes []fault.Process
	wg        sync.WaitGroup
}

func (s *supervisor) held(region string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holds[region]
}

func (s *supervisor) serve(t *testing.T) (socket string) {
	t.Helper()
	s.holds = map[string]int{}
	socket = filepath.Join(t.TempDir(), "s.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.attend(conn) })
		}
	})
	t.Cleanup(func() { _ = l.Close(); s.wg.Wait() })
	return socket
}

func (s *supervisor) attend(conn net.Conn) {
	held := map[string]bool{}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for r := range held {
			s.holds[r]--
		}
		_ = conn.Close()
	}()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		var req struct{ Op, Region string }
		if json.Unmarshal(lines.Bytes(), &req) != nil {
			return
		}
		s.mu.Lock()
		answer := map[string]any{"ok": true}
		switch {
		case req.Op == "status":
			answer["processes"] = s.processes
		case req.Region != "eu-fra":
			answer = map[string]any{"ok": false, "error": "no such region"}
		case req.Op == "hold":
			held[req.Region] = true
			s.holds[req.Region]++
		case req.Op == "release":
			delete(held, req.Region)
			s.holds[req.Region]--
		}
		s.mu.Unlock()
		if json.NewEncoder(conn).Encode(answer) != nil {
			return
		}
	}
}

func dial(t *testing.T, socket string) *fault.Supervisor {
	t.Helper()
	s, err := fault.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestHoldsEndWithTheConnection(t *testing.T) {
	fake := &supervisor{}
	socket := fake.serve(t)
	s := dial(t, socket)
	if err := s.Hold(t.Context(), "eu-fra"); err != nil || fake.held("eu-fra") != 1 {
		t.Fatalf("hold: %v, held %d", err, fake.held("eu-fra"))
	}
	if err := s.Release(t.Context(), "eu-fra"); err != nil || fake.held("eu-fra") != 0 {
		t.Fatalf("release: %v, held %d", err, fake.held("eu-fra"))
	}
	if err := s.Hold(t.Context(), "mars"); err == nil || !strings.Contains(err.Error(), "no such region") {
		t.Errorf("an unknown region was held: %v", err)
	}
	if err := s.Hold(t.Context(), "eu-fra"); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	for deadline := time.Now().Add(5 * time.Second); fake.held("eu-fra") != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hold outlived its connection")
		}
	}
	if _, err := fault.Dial(t.Context(), socket+".none"); err == nil {
		t.Error("dialled a socket that is not there")
	}
}

// A silent supervisor costs a bounded time.
func TestASilentSupervisor(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	s := dial(t, l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := s.Status(ctx); err == nil {
		t.Error("a status from nobody")
	}
}

// start runs a shell that starts a child of its own, and gives both pids.
func start(t *testing.T) (pid, child int, wait func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", "sleep 60 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, child, func() { _ = cmd.Wait() }
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

func TestKillTakesTheWholeRegionAndNothingElse(t *testing.T) {
	pid, child, wait := start(t)
	otherPID, otherChild, otherWait := start(t)
	fake := &supervisor{processes: []fault.Process{
		{Name: "eu-fra-d1", Region: "eu-fra", Role: "data", PID: pid, State: fault.StateRunning},
		{Name: "us-east-d1", Region: "us-east", Role: "data", PID: otherPID, WorkerPID: otherChild, State: fault.StateRunning},
	}}
	s := dial(t, fake.serve(t))
	got, err := fault.Kill(t.Context(), s, "eu-fra")
	if err != nil || len(got.Alive) != 0 || len(got.PIDs) != 2 || len(got.Names) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if alive(pid) || alive(child) || !alive(otherPID) || !alive(otherChild) {
		t.Errorf("alive: %t %t, the other region: %t %t", alive(pid), alive(child), alive(otherPID), alive(otherChild))
	}
	wait()
	if _, err := fault.Kill(t.Context(), s, "us-east"); err != nil {
		t.Error(err)
	}
	otherWait()
}

func TestKillRefuses(t *testing.T) {
	for _, c := range []struct {
		process fault.Process
		want    string
	}{
		{fault.Process{Name: "eu-fra-d1", Region: "eu-fra", PID: 0, State: fault.StateHeld}, "is held"},
		{fault.Process{Name: "eu-fra-d1", Region: "eu-fra", PID: 1, State: fault.StateRunning}, "is running"},
		{fault.Process{Name: "eu-fra-d1", Region: "eu-fra", PID: os.Getpid(), State: fault.StateRunning}, "itself"},
		{fault.Process{Name: "us-east-d1", Region: "us-east", PID: 1 << 22, State: fault.StateRunning}, "no process of eu-fra"},
	} {
		fake := &supervisor{processes: []fault.Process{c.process}}
		s := dial(t, fake.serve(t))
		if _, err := fault.Kill(t.Context(), s, "eu-fra"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.process, err, c.want)
		}
	}
}

// A stalled disk holds writers up, in a way that shows, for as long as it is
// asked to, and loses nothing.
func TestStall(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a file system takes root")
	}
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "log")
	if err := os.WriteFile(file, []byte("kept\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := fault.OpenDisk(t.Context(), dir, filepath.Join(t.TempDir(), "image"), 16<<20)
	if err != nil {
		t.Skipf("no disk can be made here: %v", err)
	}
	defer func() {
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
	}()
	writer := exec.CommandContext(t.Context(), "sh", "-c", "read _; echo written >>"+file+"; echo done")
	in, err := writer.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := writer.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	const a = 50 * time.Millisecond
	if thread := fault.Hangs(t.Context(), writer.Process.Pid, a, 2*a); thread != "" {
		t.Error("a process that waits for us is said to hang: ", thread)
	}
	release, err := disk.Stall()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(in); err != nil {
		t.Error(err)
	}
	if thread := fault.Hangs(t.Context(), writer.Process.Pid, a, 10*time.Second); thread == "" {
		t.Error("a writer to a stalled disk does not hang")
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "done\n" {
		t.Errorf("the writer says %q, %v", line, err)
	}
	if err := writer.Wait(); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(file); string(b) != "kept\nwritten\n" {
		t.Errorf("%q, %v", b, err)
	}
}
