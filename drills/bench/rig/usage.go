package rig

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// Usage is what a set of processes has used so far.
type Usage struct {
	CPU time.Duration
	RSS int64 // bytes
}

// UsageOf adds up the processes.
func UsageOf(pids ...int) (Usage, error) {
	var u Usage
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return u, err
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest)
		if len(f) < 22 {
			return u, fmt.Errorf("/proc/%d/stat is too short", pid)
		}
		for _, i := range []int{11, 12} { // utime, stime
			ticks, err := strconv.ParseInt(f[i], 10, 64)
			if err != nil {
				return u, err
			}
			u.CPU += time.Duration(ticks) * time.Second / 100 // USER_HZ is 100 on Linux
		}
		pages, err := strconv.ParseInt(f[21], 10, 64)
		if err != nil {
			return u, err
		}
		u.RSS += pages * int64(os.Getpagesize())
	}
	return u, nil
}

// tree is a process and all below it.
func tree(root int) []int {
	all := []int{root}
	for i := 0; i < len(all); i++ {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", all[i])) // a process that ended has none
		for _, t := range tasks {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", all[i], t.Name()))
			for _, f := range strings.Fields(string(b)) {
				if pid, err := strconv.Atoi(f); err == nil {
					all = append(all, pid)
				}
			}
		}
	}
	return all
}

// Peak reads the largest resident memory of the processes since ResetPeak, in bytes.
func Peak(pids ...int) (sum int64, err error) {
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return 0, err
		}
		_, rest, _ := strings.Cut(string(b), "VmHWM:")
		f := strings.Fields(rest)
		if len(f) == 0 {
			return 0, fmt.Errorf("/proc/%d/status names no VmHWM", pid)
		}
		kib, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += kib << 10
	}
	return sum, nil
}

// ResetPeak starts Peak anew.
func ResetPeak(pids ...int) (err error) {
	for _, pid := range pids {
		err = errors.Join(err, os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0))
	}
	return err
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
