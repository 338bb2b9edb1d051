package rig

import (
	"io"
	"os"
	"os/exec"
	"testing"
)

// TestMain is also the process that TestCounter counts: for each byte it reads it
// goes round a loop and answers.
func TestMain(m *testing.M) {
	if os.Getenv("RIG_LOOP") == "" {
		os.Exit(m.Run())
	}
	for b := make([]byte, 1); ; {
		if _, err := os.Stdin.Read(b); err != nil {
			return
		}
		b[0] = byte(spin(int(b[0]) * turns))
		if _, err := os.Stdout.Write(b); err != nil {
			return
		}
	}
}

const turns = 1_000_000

//go:noinline
func spin(n int) (x uint64) {
	for i := range n {
		x = x*3 + uint64(i)
	}
	return x
}

func TestCounter(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RIG_LOOP=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}()
	spend := func(n byte) Instructions {
		t.Helper()
		c, err := CountInstructions(cmd.Process.Pid)
		if err != nil {
			t.Skipf("this machine does not count: %v", err)
		}
		defer c.Close()
		if _, err := in.Write([]byte{n}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		got, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	spend(10) // the first round pages its code in
	for range 3 {
		one, two := spend(10), spend(20)
		t.Logf("%d turns: %+v; %d turns: %+v", 10*turns, one, 20*turns, two)
		each := float64(two.User-one.User) / (10 * turns)
		// A turn is a whole number of instructions, the rest of a round is the same but for the scheduler's whims.
		if whole := float64(int(each + .5)); whole < 2 || whole > 8 || each < whole*.999 || each > whole*1.001 {
			t.Errorf("a turn took %.5f instructions, want a whole number", each)
		}
		if two.Kernel == 0 || two.Kernel > 2_000_000 {
			t.Errorf("%d instructions in the kernel for a read and a write", two.Kernel)
		}
	}
}
