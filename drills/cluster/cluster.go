// Package cluster runs a `ringmain dev` of one's own, for as long as a drill or a
// measurement needs one, and leaves no process behind.
package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ringmain/drills/fault"
	"ringmain/internal/clusterfile"
)

// Cluster is a `ringmain dev` of our own.
type Cluster struct {
	*clusterfile.Cluster
	Supervisor *fault.Supervisor
	Binary     string // of every process
	Dir        string // holds everything
	Port       int    // the first one
	Token      string // of the management API

	cmd   *exec.Cmd
	ended chan struct{}
	out   *output
	roots *x509.CertPool
	after []func() error
}

// output is what the cluster says, the beginning of it.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const outputMax = 1 << 20

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b.Len() < outputMax {
		o.b.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

const (
	startIn = 90 * time.Second
	stopIn  = 40 * time.Second
)

// Start runs three regions, or those that flags of `ringmain dev` say, of three
// control nodes, and data data nodes each, in a new directory of dir, on ports
// from port up.
func Start(ctx context.Context, binary, dir string, port, data int, flags ...string) (*Cluster, error) {
	binary, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Binary: binary, Dir: filepath.Join(dir, "ring"), Port: port, ended: make(chan struct{}), out: new(output)}
	args := append([]string{"dev", "--dir", c.Dir, "--port", strconv.Itoa(port), "--control", "3", "--data", strconv.Itoa(data)}, flags...)
	c.cmd = exec.Command(binary, args...) //nolint:noctx // Stop ends it in order
	c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
	c.cmd.SysProcAttr = endsWithUs() // even where nobody gets to call Stop
	started := make(chan error)
	go func() { // ends with the process, which Stop sees to
		defer close(c.ended)
		runtime.LockOSThread() // endsWithUs is about the thread
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	if err := c.ready(ctx); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

// Open finds a cluster that somebody else runs: Supervisor is to be closed, and
// Stop not to be called.
func Open(ctx context.Context, file string) (*Cluster, error) {
	found, err := clusterfile.Read(file)
	if err != nil {
		return nil, err
	}
	if !found.Ready {
		return nil, fmt.Errorf("%s: the cluster is not running", file)
	}
	c := &Cluster{Cluster: found}
	return c, c.connect(ctx)
}

func (c *Cluster) ready(ctx context.Context) error {
	for deadline := time.Now().Add(startIn); ; {
		if file, err := clusterfile.Read(filepath.Join(c.Dir, "cluster.json")); err == nil && file.Ready {
			c.Cluster = file
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not ready in %v\n%s", startIn, c.out)
		}
		select {
		case <-c.ended:
			return fmt.Errorf("ringmain dev ended: %s\n%s", c.cmd.ProcessState, c.out)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return c.connect(ctx)
}

func (c *Cluster) connect(ctx context.Context) error {
	token, err := os.ReadFile(c.AdminTokenFile)
	if err != nil {
		return err
	}
	pem, err := os.ReadFile(c.CAFile)
	if err != nil {
		return err
	}
	c.Token, c.roots = strings.TrimSpace(string(token)), x509.NewCertPool()
	c.roots.AppendCertsFromPEM(pem)
	c.Supervisor, err = fault.Dial(ctx, c.Cluster.Supervisor)
	return err
}

// After has Stop do something once no process is left.
func (c *Cluster) After(do func() error) { c.after = append(c.after, do) }

// Stop ends the cluster in order, then by force whatever is left of it.
func (c *Cluster) Stop() error {
	if c.Supervisor != nil {
		_ = c.Supervisor.Close() // and with it every hold
	}
	for _, pid := range c.processes() {
		_ = syscall.Kill(pid, syscall.SIGCONT) // one that is stopped cannot end
	}
	var err error
	if kill := syscall.Kill(c.cmd.Process.Pid, syscall.SIGINT); kill != nil && !errors.Is(kill, syscall.ESRCH) {
		err = kill
	}
	select {
	case <-c.ended:
	case <-time.After(stopIn):
		err = fmt.Errorf("not stopped in %v\n%s", stopIn, c.out)
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
	for _, pid := range c.processes() {
		err = errors.Join(err, fmt.Errorf("process %d was left behind", pid))
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, do := range c.after {
		err = errors.Join(err, do())
	}
	return err
}

// processes finds live processes of our binary that work in our directory.
func (c *Cluster) processes() []int {
	var found []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == c.cmd.Process.Pid {
			continue
		}
		if exe, err := os.Readlink("/proc/" + e.Name() + "/exe"); err != nil || exe != c.Binary {
			continue
		}
		cmdline, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		cwd, _ := os.Readlink("/proc/" + e.Name() + "/cwd")
		environ, _ := os.ReadFile("/proc/" + e.Name() + "/environ")
		if strings.Contains(string(cmdline)+cwd+string(environ), c.Dir+"/") {
			found = append(found, pid)
		}
	}
	return found
}

// HTTP is a client that trusts the cluster. Close its idle connections.
func (c *Cluster) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.roots}, MaxIdleConnsPerHost: 64, IdleConnTimeout: 10 * time.Second,
	}}
}
