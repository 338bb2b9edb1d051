package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ringmain/internal/clusterfile"
	"ringmain/internal/testkit/logkit"
)

var (
	binary     string // bin/ringmain, built once
	scratch    string // removed at the end
	sharedRing struct {
		once sync.Once
		ring *devCluster
		err  error
	}
)

// shared is three regions, for every test that breaks nothing. It runs from
// its first use to the end.
func shared(t testing.TB) *devCluster {
	t.Helper()
	sharedRing.once.Do(func() { sharedRing.ring, sharedRing.err = startDev(scratch, 19440) })
	if sharedRing.err != nil {
		t.Fatal(sharedRing.err)
	}
	return sharedRing.ring
}

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if raceEnabled {
			fmt.Println("e2e: the race detector sees nothing of child processes; `make test` runs these tests")
			return 0
		}
		dir, err := os.MkdirTemp("", "ringmain-e2e-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		scratch, binary = dir, filepath.Join(dir, "ringmain")
		if out, err := exec.Command("go", "build", "-o", binary, "ringmain/cmd/ringmain").CombinedOutput(); err != nil {
			panic(fmt.Sprintf("build: %v\n%s", err, out))
		}
		code := m.Run()
		if sharedRing.ring != nil {
			if code != 0 {
				fmt.Println("what the nodes of the shared cluster warned of:\n" + sharedRing.ring.warnings())
			}
			if err := sharedRing.ring.stop(); err != nil {
				fmt.Fprintln(os.Stderr, "e2e: stop:", err)
				return 1
			}
		}
		return code
	}())
}

// devCluster is a running `ringmain dev`.
type devCluster struct {
	*clusterfile.Cluster
	dir   string
	cmd   *exec.Cmd
	pid   int // of ringmain itself, where cmd is a tracer
	ended chan struct{}
	out   *logkit.Buffer
	roots *x509.CertPool
}

// startDev runs `ringmain dev` in dir and waits until it is ready.
func startDev(dir string, port int, args ...string) (*devCluster, error) {
	return startDevAs([]string{binary}, dir, port, args...)
}

// startDevAs runs it as command says, whose last word is the binary.
func startDevAs(command []string, dir string, port int, args ...string) (*devCluster, error) {
	d := &devCluster{dir: filepath.Join(dir, "ring"), ended: make(chan struct{}), out: new(logkit.Buffer)}
	command = append(slices.Clip(command), "dev", "--dir", d.dir, "--port", strconv.Itoa(port))
	d.cmd = exec.Command(command[0], append(command[1:], args...)...)
	d.cmd.Stdout, d.cmd.Stderr = d.out, d.out
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	d.pid = d.cmd.Process.Pid
	go func() {
		defer close(d.ended)
		_ = d.cmd.Wait()
	}()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		select {
		case <-d.ended:
			return nil, fmt.Errorf("ringmain dev ended: %s\n%s", d.cmd.ProcessState, d.out)
		default:
		}
		if c, err := clusterfile.Read(filepath.Join(d.dir, "cluster.json")); err == nil && c.Ready {
			d.Cluster = c
			break
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("not ready in 90 s\n%s", d.out), d.stop())
		}
	}
	pem, err := os.ReadFile(d.CAFile)
	if err != nil {
		return nil, err
	}
	d.roots = x509.NewCertPool()
	d.roots.AppendCertsFromPEM(pem)
	if len(command) > 1 && command[1] != "dev" { // a tracer passes no signals on
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", d.pid, d.pid))
		if err != nil {
			return nil, errors.Join(err, d.stop())
		}
		if d.pid, err = strconv.Atoi(strings.TrimSpace(string(children))); err != nil {
			return nil, errors.Join(err, d.stop())
		}
	}
	return d, nil
}

// stop is Ctrl-C, then a check that nothing is left.
func (d *devCluster) stop() error {
	if err := syscall.Kill(d.pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	select {
	case <-d.ended:
	case <-time.After(40 * time.Second):
		_ = d.cmd.Process.Kill()
		return fmt.Errorf("not stopped in 40 s\n%s", d.out)
	}
	if left := processesUnder(d.dir); len(left) > 0 {
		var what []string
		for _, pid := range left {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			what = append(what, fmt.Sprintf("%d: %s", pid, strings.ReplaceAll(string(cmdline), "\x00", " ")))
			_ = syscall.Kill(pid, syscall.SIGKILL) // ours: its command line or environment names our directory
		}
		return fmt.Errorf("processes left behind:\n%s\n%s", strings.Join(what, "\n"), d.out)
	}
	if !d.cmd.ProcessState.Success() {
		return fmt.Errorf("exit: %s\n%s", d.cmd.ProcessState, d.out)
	}
	return nil
}

// tells has a failure of t show what the nodes warned of.
func (d *devCluster) tells(t testing.TB) {
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("what the nodes warned of:\n" + d.warnings())
		}
	})
}

// warnings are the last warnings and errors in each node's log.
func (d *devCluster) warnings() string {
	var all strings.Builder
	logs, _ := filepath.Glob(filepath.Join(d.dir, "*", "*", "node.log"))
	for _, path := range logs {
		text, _ := os.ReadFile(path)
		var found []string
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"level":"WARN"`) || strings.Contains(line, `"level":"ERROR"`) {
				found = append(found, line)
			}
		}
		all.WriteString(strings.Join(found[max(0, len(found)-20):], ""))
	}
	return all.String()
}

// processesUnder finds live processes of our binary that work on dir, by their
// command line, working directory or environment.
func processesUnder(dir string) []int {
	var found []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if exe, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil || exe != binary {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if strings.Contains(string(cmdline)+cwd+string(environ), dir+"/") {
			found = append(found, pid)
		}
	}
	return found
}

func (d *devCluster) client(h2 bool) *http.Client {
	t := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: d.roots}, Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!h2)
	t.Protocols.SetHTTP2(h2)
	return &http.Client{Transport: t, Timeout: 30 * time.Second}
}

// answer is an HTTP answer, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

func (d *devCluster) ask(t testing.TB, method, url, body string, header ...string) answer {
	t.Helper()
	a, err := d.tryAsk(t.Context(), d.client(false), method, url, body, header...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	return a
}

func (d *devCluster) tryAsk(ctx context.Context, c *http.Client, method, url, body string, header ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if body != "" {
		req.Header.Set("content-type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	c.CloseIdleConnections()
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}

func (d *devCluster) bearer() []string { return []string{"authorization", "Bearer " + d.APIKey} }

// cli runs the binary as a person would and returns what it printed.
func (d *devCluster) cli(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1")
	cmd.Args = append(cmd.Args, "--cluster", filepath.Join(d.dir, "cluster.json"))
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// eventually polls f until it is nil or the time is over.
func eventually(t testing.TB, within time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// alive reports whether a process runs: one that merely waits to be reaped does not.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, ok := strings.Cut(string(b), ") ") // the name may hold anything
	return err == nil && ok && !strings.HasPrefix(rest, "Z")
}
