package rig

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Counter counts the instructions of processes by the processor's own counters
// (perf_event_open(2)), one for each mode and thread; threads started later are
// counted with the one that started them.
type Counter struct{ user, kernel []int } // file descriptors

// CountInstructions starts counting all threads of pids; Close ends it. It fails
// where the processor, or the machine it is made of, does not count, and without
// root or CAP_PERFMON.
func CountInstructions(pids ...int) (*Counter, error) {
	for {
		c, before := new(Counter), threads(pids)
		for _, tid := range before {
			if err := c.attach(tid); err != nil {
				return nil, errors.Join(err, c.Close())
			}
		}
		// One that started meanwhile is counted or not, as its parent was.
		if slices.Equal(threads(pids), before) {
			return c, nil
		}
		if err := c.Close(); err != nil {
			return nil, err
		}
	}
}

// threads lists those of pids.
func threads(pids []int) (tids []int) {
	for _, pid := range pids {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // a process that ended has none
		for _, t := range tasks {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				tids = append(tids, tid)
			}
		}
	}
	return tids
}

// attach counts one thread and those it will start.
func (c *Counter) attach(tid int) error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_HARDWARE, Config: unix.PERF_COUNT_HW_INSTRUCTIONS,
		Read_format: unix.PERF_FORMAT_TOTAL_TIME_ENABLED | unix.PERF_FORMAT_TOTAL_TIME_RUNNING}
	attr.Size = uint32(unsafe.Sizeof(attr))
	for _, half := range []struct {
		fds     *[]int
		without uint64
	}{{&c.user, unix.PerfBitExcludeKernel}, {&c.kernel, unix.PerfBitExcludeUser}} {
		attr.Bits = unix.PerfBitInherit | unix.PerfBitExcludeHv | half.without
		fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		switch {
		case errors.Is(err, unix.ESRCH):
			return nil // it ended
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
			return errors.New("this processor shows no counter of instructions")
		case err != nil:
			return fmt.Errorf("counting the instructions of thread %d: %w", tid, err)
		}
		*half.fds = append(*half.fds, fd)
	}
	return nil
}

// Read gives what was executed since the start.
func (c *Counter) Read() (n Instructions, err error) {
	if n.User, err = total(c.user); err != nil {
		return n, err
	}
	n.Kernel, err = total(c.kernel)
	return n, err
}

func total(fds []int) (sum uint64, err error) {
	var b [24]byte // count, nanoseconds it was wanted, nanoseconds it ran
	for _, fd := range fds {
		if n, err := unix.Read(fd, b[:]); err != nil || n != len(b) {
			return 0, fmt.Errorf("a counter gave %d bytes: %w", n, err)
		}
		// A counter that had to share the hardware with others is an estimate.
		if wanted, ran := binary.NativeEndian.Uint64(b[8:]), binary.NativeEndian.Uint64(b[16:]); ran < wanted {
			return 0, fmt.Errorf("a counter ran %d of %d ns: something else uses this processor's counters", ran, wanted)
		}
		sum += binary.NativeEndian.Uint64(b[:])
	}
	return sum, nil
}

// Close ends the counting.
func (c *Counter) Close() (err error) {
	for _, fd := range slices.Concat(c.user, c.kernel) {
		err = errors.Join(err, unix.Close(fd))
	}
	return err
}
