package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"ringmain/internal/clusterfile"
	"ringmain/internal/testkit/logkit"
)

// small starts a cluster of one control and one data node per region, which
// ends with the test.
func small(t *testing.T, port int, regions string, args ...string) *devCluster {
	t.Helper()
	d, err := startDev(t.TempDir(), port, append([]string{"--regions", regions, "--control", "1", "--data", "1"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	d.tells(t)
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// node is the first of role in region i.
func (d *devCluster) node(t testing.TB, region int, role string) clusterfile.Node {
	t.Helper()
	for _, n := range d.Regions[region].Nodes {
		if n.Role == role {
			return n
		}
	}
	t.Fatalf("region %d has no %s node", region, role)
	return clusterfile.Node{}
}

// supervisor is one connection to the supervisor; what it holds is released
// when it closes.
func (d *devCluster) supervisor(t testing.TB) (ask func(request string) []running, closeIt func()) {
	t.Helper()
	conn, err := net.Dial("unix", d.Supervisor)
	if err != nil {
		t.Fatal(err)
	}
	answers := json.NewDecoder(conn)
	return func(request string) []running {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintln(conn, request)
		var a struct {
			OK        bool
			Error     string
			Processes []running
		}
		if err := answers.Decode(&a); err != nil || !a.OK {
			t.Fatalf("supervisor: %s: %v %s", request, err, a.Error)
		}
		return a.Processes
	}, func() { _ = conn.Close() }
}

// running is a process as the supervisor sees it.
type running struct {
	Name      string
	State     string
	PID       int
	WorkerPID int `json:"worker_pid"`
}

// hold withholds restarts of region i until release, or the end of the test.
func (d *devCluster) hold(t testing.TB, i int) (release func()) {
	t.Helper()
	ask, closeIt := d.supervisor(t)
	ask(fmt.Sprintf(`{"op":"hold","region":%q}`, d.Regions[i].Name))
	t.Cleanup(closeIt)
	return closeIt
}

// now is the node as it runs now.
func (d *devCluster) now(t testing.TB, name string) running {
	t.Helper()
	ask, closeIt := d.supervisor(t)
	defer closeIt()
	for _, p := range ask(`{"op":"status"}`) {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("the supervisor knows no %s", name)
	return running{}
}

// end signals the processes of a node and waits until they are gone.
func end(t testing.TB, sig syscall.Signal, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if pid <= 1 {
			t.Fatalf("no process to end: %v", pids)
		}
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
	eventually(t, 15*time.Second, func() error {
		for _, pid := range pids {
			if alive(pid) {
				return fmt.Errorf("process %d is still there", pid)
			}
		}
		return nil
	})
}

// nodeDir holds a node's configuration, log and data.
func nodeDir(n clusterfile.Node) string { return filepath.Dir(n.DataDir) }

func nodeFile(n clusterfile.Node) string { return filepath.Join(nodeDir(n), "node.yaml") }

// nodeYAML is what tests want from a node's configuration.
type nodeYAML struct {
	Cluster, Node string
	SealKeyFile   string `yaml:"seal_key_file"`
}

func readNodeYAML(t testing.TB, n clusterfile.Node) (c nodeYAML) {
	t.Helper()
	b, err := os.ReadFile(nodeFile(n))
	if err == nil {
		err = yaml.Unmarshal(b, &c)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// variant is a copy of a node's configuration with parts replaced: pairs of
// old and new text. Each old text must be there.
func variant(t testing.TB, n clusterfile.Node, pairs ...string) string {
	t.Helper()
	b, err := os.ReadFile(nodeFile(n))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("%q is not in %s:\n%s", pairs[i], nodeFile(n), text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// process is a node that a test started itself.
type process struct {
	cmd   *exec.Cmd
	out   *logkit.Buffer
	ended chan struct{}
}

// startNode runs `ringmain role --config file`. The process, and a worker it
// starts, end with the test at the latest.
func startNode(t testing.TB, role, file string, args ...string) *process {
	t.Helper()
	lifeline, keepOpen, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{out: new(logkit.Buffer), ended: make(chan struct{})}
	p.cmd = exec.Command(binary, append([]string{role, "--config", file}, args...)...)
	p.cmd.Dir = filepath.Dir(file)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.ExtraFiles = []*os.File{lifeline}
	p.cmd.Env = append(os.Environ(), "RINGMAIN_LIFELINE=3")
	err = p.cmd.Start()
	_ = lifeline.Close()
	if err != nil {
		_ = keepOpen.Close()
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = keepOpen.Close()
		select {
		case <-p.ended:
		case <-time.After(15 * time.Second):
			_ = p.cmd.Process.Kill()
			t.Errorf("%s did not stop when its parent was gone\n%s", role, p.out)
		}
	})
	return p
}

// stop is SIGTERM and a wait.
func (p *process) stop(t testing.TB) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	p.exit(t, 15*time.Second)
}

// kill ends a data node's keeper and worker at once.
func (p *process) kill(t testing.TB, n clusterfile.Node) {
	t.Helper()
	resp, err := http.Get(strings.TrimSuffix(n.Metrics, "/metrics") + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var st struct {
		WorkerPID int `json:"worker_pid"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	end(t, syscall.SIGKILL, p.cmd.Process.Pid)
	end(t, syscall.SIGKILL, st.WorkerPID)
	p.exit(t, 15*time.Second) // what they said is read
}

// exit waits for the end and gives its code.
func (p *process) exit(t testing.TB, within time.Duration) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(within):
		t.Fatalf("still running after %v\n%s", within, p.out)
	}
	return p.cmd.ProcessState.ExitCode()
}

// lastLine is what the process said last: its one error, for a person to read.
func (p *process) lastLine() string {
	lines := strings.Split(strings.TrimSpace(p.out.String()), "\n")
	return lines[len(lines)-1]
}

// badInput adds a line to the transcript: `go test -v ./e2e | grep BADINPUT`.
func badInput(t testing.TB, what, outcome, text string) {
	t.Helper()
	t.Logf("BADINPUT %s -> %s: %s", what, outcome, strings.Join(strings.Fields(text), " "))
}

// ready waits until the data node at api answers its readiness.
func (d *devCluster) ready(t testing.TB, api string, within time.Duration) {
	t.Helper()
	eventually(t, within, func() error {
		a, err := d.tryAsk(t.Context(), d.client(false), "GET", api+"/readyz", "")
		if err != nil || a.status != 200 {
			return fmt.Errorf("readyz: %w %d %s", err, a.status, a.body)
		}
		return nil
	})
}
