package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ringmain/drills/bench/rig"
)

// samplePeriod is the processor time between two samples of a profile: a prime
// number of nanoseconds, so that no loop keeps step with it.
const samplePeriod = 12_503

// profiled samples, while measure runs, where c spends processor time, in user
// mode and in the kernel, and shows the share of each symbol.
func (r *run) profiled(ctx context.Context, c *rig.Contender, measure func() (window, error)) (w window, err error) {
	dir, err := os.MkdirTemp(r.Dir, "profile-")
	if err != nil {
		return w, err
	}
	file := filepath.Join(dir, "perf.data")
	pids := strings.Trim(strings.ReplaceAll(fmt.Sprint(c.PIDs), " ", ","), "[]")
	cmd := exec.CommandContext(ctx, "perf", "record", "-q", "-e", "cpu-clock", "-c", strconv.Itoa(samplePeriod), "-m", "1024", "-p", pids, "-o", file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return w, fmt.Errorf("a profile needs perf: %w", err)
	}
	for deadline := time.Now().Add(10 * time.Second); err == nil; time.Sleep(10 * time.Millisecond) {
		if i, err := os.Stat(file); err == nil && i.Size() > 0 { // it has attached
			break
		}
		if time.Now().After(deadline) {
			err = fmt.Errorf("perf did not attach to %s in 10 s", c.Name)
		}
	}
	if err == nil {
		w, err = measure()
	}
	err = errors.Join(err, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait() // ends by the signal
	if err != nil {
		return w, err
	}
	text, err := exec.CommandContext(ctx, "perf", "report", "-i", file, "--stdio", "--no-children", "-q", "-n", "-s", "dso,sym", "--percent-limit", "0.3").Output()
	if err == nil && strings.TrimSpace(string(text)) == "" {
		err = errors.New("perf took no sample: give it a longer window")
	}
	progress("%s: n %d, a sample each %d ns\n%s", c.Name, w.n, samplePeriod, text)
	return w, err
}
