package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Killed says what Kill did.
type Killed struct {
	At    time.Time // just before the first signal
	Names []string  // nodes, as the supervisor names them
	PIDs  []int     // every process that got a SIGKILL
	Alive []int     // those still there when Kill gave up; empty = proven dead
}

// dieWithin is how long a killed process may take to be gone.
const dieWithin = 3 * time.Second

// Kill sends SIGKILL to every process of region: nodes, workers, and whatever
// they started. Restarts must be held. It returns once all of them are gone,
// or says which are not.
func Kill(ctx context.Context, s *Supervisor, region string) (Killed, error) {
	if startTime(os.Getpid()) == "" {
		return Killed{}, errors.New("without /proc nothing can prove that a process is dead: run drills on Linux")
	}
	all, err := s.Status(ctx)
	if err != nil {
		return Killed{}, err
	}
	var k Killed
	var parents, workers []int
	for _, p := range all {
		if p.Region != region {
			continue
		}
		if p.State != StateRunning || p.PID <= 1 {
			return k, fmt.Errorf("%s of %s is %s: a drill starts from a region that runs", p.Name, region, p.State)
		}
		k.Names = append(k.Names, p.Name)
		parents = append(parents, p.PID)
		if p.WorkerPID > 1 {
			workers = append(workers, p.WorkerPID)
		}
	}
	if len(parents) == 0 {
		return k, fmt.Errorf("the supervisor knows no process of %s", region)
	}
	// Parents first: a keeper that lives would replace its worker.
	for _, pid := range append(append(parents, workers...), descendants(parents)...) {
		if !slices.Contains(k.PIDs, pid) {
			k.PIDs = append(k.PIDs, pid)
		}
	}
	if slices.Contains(k.PIDs, os.Getpid()) {
		return k, errors.New("this tool is itself a process of the region: run it elsewhere")
	}
	born := make(map[int]string, len(k.PIDs))
	for _, pid := range k.PIDs {
		born[pid] = startTime(pid)
	}
	k.At = time.Now()
	for _, pid := range k.PIDs {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return k, fmt.Errorf("kill %d: %w", pid, err)
		}
	}
	for deadline := time.Now().Add(dieWithin); ; time.Sleep(5 * time.Millisecond) {
		k.Alive = k.Alive[:0]
		for _, pid := range k.PIDs {
			// Another start time is another process under the same number.
			if now := startTime(pid); now != "" && now == born[pid] {
				k.Alive = append(k.Alive, pid)
			}
		}
		if len(k.Alive) == 0 || time.Now().After(deadline) {
			return k, nil
		}
	}
}

// KillEach sends SIGKILL to the processes, and proves that each is gone.
func KillEach(ps []Process) (proof string, err error) {
	var all []string
	for _, p := range ps {
		born := startTime(p.PID)
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			return "", fmt.Errorf("kill %s (%d): %w", p.Name, p.PID, err)
		}
		for deadline := time.Now().Add(obeyWithin); startTime(p.PID) == born; time.Sleep(2 * time.Millisecond) {
			if time.Now().After(deadline) {
				return "", fmt.Errorf("%s (%d) does not die", p.Name, p.PID)
			}
		}
		all = append(all, fmt.Sprintf("%s: pid %d, begun at tick %s, is gone", p.Name, p.PID, born))
	}
	return strings.Join(all, "; "), nil
}

// descendants lists what the processes in roots started, children of children
// included.
func descendants(roots []int) []int {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		if f := statFields(pid); f != nil {
			if parent, err := strconv.Atoi(f[1]); err == nil {
				children[parent] = append(children[parent], pid)
			}
		}
	}
	var out []int
	for queue := slices.Clone(roots); len(queue) > 0; queue = queue[1:] {
		out = append(out, children[queue[0]]...)
		queue = append(queue, children[queue[0]]...)
	}
	return out
}

// startTime tells one life of a pid from the next. It is "" for a process that
// is gone or only waits to be reaped.
func startTime(pid int) string {
	f := statFields(pid)
	if f == nil || f[0] == "Z" || f[0] == "X" {
		return ""
	}
	return f[19]
}

// statFields are the fields of /proc/<pid>/stat from the state (the third) on;
// nil if there is no such process.
func statFields(pid int) []string {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil
	}
	end := strings.LastIndex(string(b), ") ") // of the name, which may hold anything
	if f := strings.Fields(string(b[end+1:])); end > 0 && len(f) > 19 {
		return f
	}
	return nil
}
