package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// order is one line from the parent to a part, answer the line back.
type order struct {
	Do     string // lead, fill, load, state; watch, cut, leave
	N      int
	Window time.Duration
	Pace   time.Duration
}

type answer struct {
	Error         string
	Leads         bool
	P50, P99, Max float64 // ms
	Seconds       float64
	CPU           float64 // seconds of this process so far
	Resident      int64   // bytes
	Heap          int64   // live, after a collection
	Sent, Encoded uint64  // snapshots
	Files         int
}

// obeyAll answers orders until stdin ends.
func obeyAll(obey func(order) (answer, error)) error {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := obey(o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// part is the parent's end of a process.
type part struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	enc *json.Encoder
	dec *json.Decoder
}

func begin(o options, name string) (*part, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"-part", name, "-dir", o.dir, "-port", strconv.Itoa(o.port)}
	if name == "watch" { // on other machines in real life: they must not keep nodes from running
		args, self = append([]string{"-n", "15", self}, args...), "nice"
	}
	cmd := exec.Command(self, args...) //nolint:noctx // itself; it ends with its stdin
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &part{cmd, in, json.NewEncoder(in), json.NewDecoder(bufio.NewReader(out))}, nil
}

func (p *part) ask(o order) (a answer, err error) {
	if err := p.enc.Encode(o); err != nil {
		return a, err
	}
	if err := p.dec.Decode(&a); err != nil {
		return a, err
	}
	if a.Error != "" {
		return a, fmt.Errorf("%s: %s", o.Do, a.Error)
	}
	return a, nil
}

func (p *part) close() error { return errors.Join(p.in.Close(), p.cmd.Wait()) }

func leader(ctx context.Context, nodes []*part) (*part, error) {
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(50 * time.Millisecond) {
		for _, n := range nodes {
			if a, err := n.ask(order{Do: "lead"}); err != nil {
				return nil, err
			} else if a.Leads {
				return n, nil
			}
		}
	}
	return nil, errors.New("no node leads")
}

// used is what all nodes use together.
type used struct {
	resident, heap int64
	cpu            float64
}

func usage(nodes []*part) (u used, err error) {
	for _, n := range nodes {
		a, err := n.ask(order{Do: "state"})
		if err != nil {
			return u, err
		}
		u.resident, u.heap, u.cpu = u.resident+a.Resident, u.heap+a.Heap, u.cpu+a.CPU
	}
	return u, nil
}

// own fills in what this process uses.
func own(a *answer) error {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return err
	}
	a.CPU = time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	a.Heap = int64(m.HeapAlloc + m.StackInuse)
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				return err
			}
			a.Resident = kib << 10
		}
	}
	files, err := os.ReadDir("/proc/self/fd")
	a.Files = len(files)
	return err
}
