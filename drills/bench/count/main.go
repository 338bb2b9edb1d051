//go:build linux

// Command count counts the instructions that the contenders of drills/bench
// execute for a request or an event, on any machine: it makes an emulated
// AArch64 machine of Debian's packages (a kernel, nginx, HAProxy) and this tree's
// binaries, and runs the bench in it. The emulated processor counts exactly,
// user mode and kernel apart, and its clock moves by instructions, so that
// nothing else on the host shows in the figures. They say nothing of cycles,
// caches or other architectures. See BENCHMARKS.md for the method.
//
//	count [flags] -- [flags of drills/bench]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
)

// options are the flags.
type options struct {
	dir      string
	ringmain string
	before   string
	bench    string
	procs    int
	speed    int
	cpu      string
	check    bool
	args     []string // of the bench
}

func main() {
	if os.Getpid() == 1 {
		guest()
		return
	}
	var o options
	flag.StringVar(&o.dir, "dir", "bin/count", "where packages are kept and the machine is made")
	flag.StringVar(&o.ringmain, "ringmain", "", "a ringmain built for linux/arm64 with CGO_ENABLED=0; empty = of this tree")
	flag.StringVar(&o.before, "before", "", "another such build, in turn with it; empty = none")
	flag.StringVar(&o.bench, "bench", "", "a drills/bench built so; empty = of this tree")
	flag.IntVar(&o.procs, "procs", 2, "GOMAXPROCS; the machine has one processor, which threads share")
	flag.IntVar(&o.speed, "speed", 4, "instructions in a nanosecond of the machine's time")
	flag.StringVar(&o.cpu, "cpu", "neoverse-n1", "processor, as QEMU names it; it must have the PMU")
	flag.BoolVar(&o.check, "check", false, "instead: check that the machine counts, by a loop whose length is known")
	flag.Parse()
	o.args = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := count(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
		os.Exit(1)
	}
}

func count(ctx context.Context, o options) error {
	emulator, err := exec.LookPath("qemu-system-aarch64")
	if err != nil {
		return fmt.Errorf("%w: apt-get install qemu-system-arm", err)
	}
	if err := os.MkdirAll(o.dir, 0o750); err != nil {
		return err
	}
	root, err := packages(ctx, o.dir)
	if err != nil {
		return err
	}
	command := append([]string{"/bench", "-ringmain", "/ringmain"}, o.args...)
	files := map[string]string{}
	build := func(at, given, source string, how ...string) error {
		if files[at] = given; given != "" {
			return nil
		}
		files[at] = filepath.Join(o.dir, filepath.Base(at))
		args := append(append([]string{}, how...), "-trimpath", "-ldflags=-w", "-o", files[at], source)
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
		cmd.Stderr = os.Stderr
		return cmd.Run()
	}
	if err := build("/init", "", "ringmain/drills/bench/count", "build"); err != nil {
		return err
	}
	if o.check {
		if err := build("/check", "", "ringmain/drills/bench/rig", "test", "-c"); err != nil {
			return err
		}
		command = []string{"/check", "-test.run=Counter", "-test.v", "-test.count=2"}
	} else {
		if err := build("/bench", o.bench, "ringmain/drills/bench", "build"); err != nil {
			return err
		}
		if err := build("/ringmain", o.ringmain, "ringmain/cmd/ringmain", "build"); err != nil {
			return err
		}
		if o.before != "" {
			files["/before"] = o.before
			command = append(command, "-before", "/before")
		}
		for _, program := range []string{"/usr/sbin/nginx", "/usr/sbin/haproxy", "/usr/bin/perf"} {
			if err := closure(root, program, files); err != nil {
				return err
			}
		}
	}
	image := filepath.Join(o.dir, "image.cpio")
	if err := writeImage(image, files); err != nil {
		return err
	}
	kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return err
	}
	if len(kernels) == 0 {
		return fmt.Errorf("no kernel in %s: remove it to have the packages fetched again", root)
	}
	m := machine{emulator: emulator, kernel: kernels[len(kernels)-1], image: image, dir: o.dir, cpu: o.cpu, speed: o.speed, procs: o.procs}
	return m.run(ctx, command, os.Stdout, os.Stderr)
}
