package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/cmd/ringmain/internal/config"
)

// restartDelay keeps a node that cannot start from spinning.
const restartDelay = 500 * time.Millisecond

// supervisor starts the nodes' processes, restarts those that end, and leaves
// none behind. A hold withholds restarts of one region.
type supervisor struct {
	exe      string
	lifeline *os.File // read end; children see EOF when this process is gone
	region   func(*node) string
	log      func(format string, args ...any)

	mu       sync.Mutex
	holds    map[string]int // by region: how many connections hold it
	released chan struct{}  // closed and replaced when a hold ends
	procs    map[string]*process
}

// process is one node as it runs now.
type process struct {
	node   *node
	pid    int    // 0 = not running
	start  string // start time of pid in clock ticks since boot, so that a reused pid is never signalled
	worker proc   // data: the last worker seen
	logEnd string // how it ended last
}

type proc struct {
	pid   int
	start string
}

// alive is the pid, or 0 if the process is gone.
func (p proc) alive() int {
	if p.start == "" || startTime(p.pid) != p.start {
		return 0
	}
	return p.pid
}

func newSupervisor(exe string, lifeline *os.File, region func(*node) string, logf func(string, ...any)) *supervisor {
	return &supervisor{exe: exe, lifeline: lifeline, region: region, log: logf,
		holds: map[string]int{}, released: make(chan struct{}), procs: map[string]*process{}}
}

// run supervises n until ctx ends, then stops it.
func (s *supervisor) run(ctx context.Context, n *node) error {
	p := &process{node: n}
	s.mu.Lock()
	s.procs[n.name] = p
	s.mu.Unlock()
	for {
		if err := s.waitWhileHeld(ctx, n); err != nil {
			return nil
		}
		began := time.Now()
		end, err := s.once(ctx, p)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", n.name, err)
		}
		s.mu.Lock()
		p.logEnd = end
		held := s.holds[s.region(n)] > 0
		s.mu.Unlock()
		s.log("%s ended (%s)%s", n.name, end, map[bool]string{true: "; restart withheld", false: "; restarting"}[held])
		if time.Since(began) < 5*restartDelay {
			s.log("%s ended right after its start; its log: %s/node.log", n.name, n.dir)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(restartDelay):
		}
	}
}

func (s *supervisor) waitWhileHeld(ctx context.Context, n *node) error {
	for {
		s.mu.Lock()
		held, released := s.holds[s.region(n)] > 0, s.released
		s.mu.Unlock()
		if !held {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-released:
		}
	}
}

// once runs the node's process to its end and says how it ended.
func (s *supervisor) once(ctx context.Context, p *process) (string, error) {
	logFile, err := os.OpenFile(p.node.dir+"/node.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer logFile.Close()
	//nolint:noctx // ended below, by SIGTERM first: a context would kill it at once
	cmd := exec.Command(s.exe, string(p.node.role), "--config", p.node.configFile())
	cmd.Dir = p.node.dir // names the node in a process list
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.ExtraFiles = []*os.File{s.lifeline}
	cmd.Env = append(os.Environ(), "RINGMAIN_LIFELINE=3")
	// A group of its own: the terminal's Ctrl-C must reach us alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	s.mu.Lock()
	p.pid, p.start = cmd.Process.Pid, startTime(cmd.Process.Pid)
	s.mu.Unlock()

	ended := make(chan struct{})
	go func() { // ends with the process, which this function always outlives
		defer close(ended)
		_ = cmd.Wait() // how it ended is read from ProcessState
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			s.log("%s did not stop in 15 s: killed", p.node.name)
			_ = cmd.Process.Kill() // as above
			<-ended
		}
	}
	s.mu.Lock()
	p.pid = 0
	s.mu.Unlock()
	return cmd.ProcessState.String(), nil
}

// learnWorkers asks each keeper for its worker's pid.
func (s *supervisor) learnWorkers(ctx context.Context) {
	var g errgroup.Group
	for _, p := range s.list() {
		if p.node.role != config.Data || p.pid == 0 {
			continue
		}
		g.Go(func() error {
			pid, err := workerPID(ctx, p.node.metrics)
			if err == nil && pid > 0 {
				s.mu.Lock()
				s.procs[p.node.name].worker = proc{pid: pid, start: startTime(pid)}
				s.mu.Unlock()
			}
			return nil // a keeper that does not answer keeps the worker last seen
		})
	}
	_ = g.Wait() // its functions return nil
}

func workerPID(ctx context.Context, metrics string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/status", nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var st struct {
		WorkerPID int `json:"worker_pid"`
	}
	return st.WorkerPID, json.NewDecoder(resp.Body).Decode(&st)
}

// list returns copies in no particular order.
func (s *supervisor) list() []process {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]process, 0, len(s.procs))
	for _, p := range s.procs {
		out = append(out, *p)
	}
	return out
}

func (s *supervisor) hold(region string) {
	s.mu.Lock()
	s.holds[region]++
	s.mu.Unlock()
}

func (s *supervisor) release(region string) {
	s.mu.Lock()
	s.holds[region]--
	close(s.released)
	s.released = make(chan struct{})
	s.mu.Unlock()
}

// startTime is field 22 of /proc/<pid>/stat, or "" when there is no such process.
func startTime(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	_, rest, ok := strings.Cut(string(b), ") ") // the name may hold anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return fields[19]
}

var errUnknownRegion = errors.New("no such region: see `regions` in cluster.json")
