package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// pin has the processes run on processors alone, all their threads and those to come.
func pin(processors []int, pids ...int) error {
	var set unix.CPUSet
	for _, i := range processors {
		set.Set(i)
	}
	for _, pid := range pids {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err == nil {
				err = unix.SchedSetaffinity(tid, &set)
			}
			if err != nil && !errors.Is(err, unix.ESRCH) { // it ended meanwhile
				return fmt.Errorf("pin thread %s of process %d: %w", t.Name(), pid, err)
			}
		}
	}
	return nil
}
