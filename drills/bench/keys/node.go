package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"ringmain/internal/clusterfile"
)

// node is one node of the cluster that `ringmain dev` has left, as a process of ours.
type node struct {
	clusterfile.Node
	dir     string // its configuration and log
	program string

	cmd   *exec.Cmd // nil = not running
	ended chan struct{}
}

func (n *node) config() string { return filepath.Join(n.dir, "node.yaml") }

func (n *node) start() error {
	log, err := os.OpenFile(filepath.Join(n.dir, "node.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()                                              // the child has its own
	cmd := exec.Command(n.program, n.Role, "--config", n.config()) //nolint:noctx // stop ends it in order
	cmd.Dir, cmd.Stdout, cmd.Stderr = n.dir, log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	n.cmd, n.ended = cmd, make(chan struct{})
	go func(ended chan struct{}) { // ends with the process, which stop sees to
		_ = cmd.Wait() // how it ended shows in its log
		close(ended)
	}(n.ended)
	return nil
}

// stop ends the node in order. It may be called again.
func (n *node) stop() error {
	if n.cmd == nil {
		return nil
	}
	_ = n.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	defer func() { n.cmd = nil }()
	select {
	case <-n.ended:
		return nil
	case <-time.After(60 * time.Second):
		err := fmt.Errorf("%s did not stop in 60 s", n.Name)
		return errors.Join(err, n.cmd.Process.Kill())
	}
}

// base is where the node answers operators, or customers.
func (n *node) base() string {
	if n.Role == "control" {
		return n.Admin
	}
	return n.API
}

// ready waits until the node says so.
func (n *node) ready(ctx context.Context, c *http.Client) error {
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		status, err := get(ctx, c, n.base()+"/readyz", "")
		if err == nil && status == http.StatusOK {
			return nil
		}
		select {
		case <-n.ended:
			return fmt.Errorf("%s ended: see %s/node.log", n.Name, n.dir)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after two minutes: %d, %w", n.Name, status, err)
		}
	}
}

// get asks without a body, with a key or token if there is one.
func get(ctx context.Context, c *http.Client, url, bearer string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// worker is the process id of a data node's worker.
func (n *node) worker(ctx context.Context) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(n.Metrics, "metrics")+"status", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var st struct {
		PID int `json:"worker_pid"`
	}
	err = json.NewDecoder(resp.Body).Decode(&st)
	if err == nil && st.PID < 2 {
		err = fmt.Errorf("%s has no worker", n.Name)
	}
	return st.PID, err
}

// onDisk is what the files below dir take, in bytes; a file of holes takes less
// than it is long.
func onDisk(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			return err
		}
		sum += st.Blocks * 512 // the unit of st_blocks on Linux
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return sum, err
}
