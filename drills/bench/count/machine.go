//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// machine is one emulated computer.
type machine struct {
	emulator, kernel, image string
	dir                     string
	cpu                     string
	speed                   int // instructions in a nanosecond of its own time
	procs                   int // GOMAXPROCS
}

// Marks on the console around the standard output of what runs in the machine,
// and its end.
const (
	resultMark  = "==result=="
	successMark = "==success=="
	failureMark = "==failure=="
)

// commandMark divides the arguments of the machine's first process: the kernel adds
// words of its own before the command.
const commandMark = "--run"

// ticks is the frequency of the emulated counter (Hz), and so how many units of
// time QEMU counts in a second of 1e9 instructions.
const ticks = 62_500_000

// run boots the machine, which runs command, and copies its standard output to
// out and the rest of the console to log.
func (m machine) run(ctx context.Context, command []string, out, log io.Writer) error {
	// Every instruction takes a nanosecond (shift=0), waiting takes none (sleep=off).
	args := []string{"-machine", "virt,gic-version=3,dtb-randomness=off", "-cpu", m.cpu, "-smp", "1", "-m", "4G", "-icount", "shift=0,sleep=off",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"}
	tree := filepath.Join(m.dir, "machine.dtb")
	dump := append([]string{}, args...)
	dump[1] += ",dumpdtb=" + tree
	if err := quietly(exec.CommandContext(ctx, m.emulator, dump...)); err != nil {
		return err
	}
	if err := setClock(tree, uint32(ticks*m.speed)); err != nil {
		return err
	}
	args = append(args, "-dtb", tree, "-kernel", m.kernel, "-initrd", m.image, "-append",
		fmt.Sprintf("console=ttyAMA0 quiet panic=-1 GOMAXPROCS=%d -- %s %s", m.procs, commandMark, strings.Join(command, " ")))
	cmd := exec.CommandContext(ctx, m.emulator, args...)
	cmd.Stderr = log
	console, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	succeeded, err := follow(console, out, log)
	if err = errors.Join(err, cmd.Wait()); err == nil && !succeeded {
		err = errors.New("the machine or what ran in it failed: its console says why")
	}
	return err
}

// follow reads a console to its end.
func follow(console io.Reader, out, log io.Writer) (succeeded bool, err error) {
	to, lines := log, bufio.NewScanner(console)
	for lines.Scan() {
		switch line := strings.TrimRight(lines.Text(), "\r"); line {
		case resultMark:
			to = out
		case successMark, failureMark:
			succeeded, to = line == successMark, log
		default:
			if _, err := fmt.Fprintln(to, line); err != nil {
				return false, err
			}
		}
	}
	return succeeded, lines.Err()
}

// setClock tells the kernel, in a flattened device tree, that the processor's
// counter has another frequency than it has: so a second of the machine's time is
// as many instructions as a real processor executes in one, though QEMU's own
// clock gives an instruction a nanosecond at least.
func setClock(file string, hz uint32) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// The header's words: see the Devicetree Specification, 5.2.
	const totalSize, offStruct, offStrings, sizeStrings, sizeStruct = 4, 8, 12, 32, 36
	word := func(at uint32) uint32 { return binary.BigEndian.Uint32(b[at:]) }
	strings := b[word(offStrings):]
	name := bytes.Index(strings, []byte("clock-frequency\x00"))
	node := bytes.Index(b[word(offStruct):], []byte("\x00\x00\x00\x01timer\x00\x00\x00"))
	if name < 0 || node < 0 || word(offStrings) < word(offStruct) {
		return fmt.Errorf("%s: no timer, or a shape that is not QEMU's", file)
	}
	at := int(word(offStruct)) + node + 12
	property := binary.BigEndian.AppendUint32(nil, 3) // a property: length, name, value
	for _, v := range []uint32{4, uint32(name), hz} {
		property = binary.BigEndian.AppendUint32(property, v)
	}
	// QEMU leaves room at the end, and would double it beyond what the kernel maps.
	b = b[:word(offStrings)+word(sizeStrings)]
	binary.BigEndian.PutUint32(b[totalSize:], uint32(len(b)))
	for _, field := range []uint32{totalSize, offStrings, sizeStruct} {
		binary.BigEndian.PutUint32(b[field:], word(field)+uint32(len(property)))
	}
	return os.WriteFile(file, append(b[:at:at], append(property, b[at:]...)...), 0o600) //nolint:gosec // a file in -dir, which whoever runs this names
}
