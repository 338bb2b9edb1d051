//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// guest is the first process of the machine: it runs the command in its
// arguments, shows what it printed between marks, and turns the machine off.
func guest() {
	err := serve()
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
	}
	_, _ = fmt.Fprintln(os.Stdout, map[bool]string{true: successMark, false: failureMark}[err == nil])
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // nothing is left to be told
}

func serve() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	// A profile takes as many samples as it asks for, however long that takes.
	if err := os.WriteFile("/proc/sys/kernel/perf_cpu_time_max_percent", []byte("0"), 0); err != nil {
		return err
	}
	result, err := os.Create("/result")
	if err != nil {
		return err
	}
	command := os.Args[slices.Index(os.Args, commandMark)+1:]
	cmd := exec.Command(command[0], command[1:]...) //nolint:noctx,gosec // the machine ends with it; its host says what it runs
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin", "HOME=/root")
	cmd.Stdout, cmd.Stderr = result, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	failed := cmd.Run()
	text, err := os.ReadFile(result.Name())
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(os.Stdout, "%s\n%s", resultMark, text)
	return failed
}

// loopback brings up the one network interface.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
