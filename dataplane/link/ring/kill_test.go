//go:build linux

package ring

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"
)

// record is what number seq says; its length and content follow from it.
func record(seq uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, seq)
	for i := range seq * 31 % 400 {
		b = append(b, byte(seq+i))
	}
	return b
}

// playProducer puts records in as fast as it can, and writes the number of
// each that was taken to standard output, until it is killed.
func playProducer() {
	p, err := OpenProducer(os.NewFile(3, "ring"))
	for seq := uint64(1); err == nil; {
		if _, err = p.Put(record(seq)); errors.Is(err, ErrFull) {
			err = nil
			time.Sleep(50 * time.Microsecond)
			continue
		}
		if err == nil {
			err = binary.Write(os.Stdout, binary.LittleEndian, seq)
			seq++
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// playConsumer appends the numbers of groups of records to a file, and commits
// after, until it is killed. Like a keeper it begins after the last number
// that the file holds.
func playConsumer() {
	c, err := OpenConsumer(os.NewFile(3, "ring"))
	if err == nil {
		err = consume(c, os.NewFile(4, "kept"))
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func consume(c *Consumer, kept *os.File) error {
	size, err := kept.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	last := uint64(0)
	if size >= 8 {
		var b [8]byte
		if _, err := kept.ReadAt(b[:], size&^7-8); err != nil {
			return err
		}
		last = binary.LittleEndian.Uint64(b[:])
	}
	var group []byte
	for {
		seq, b, err := c.Next()
		switch {
		case err == nil && string(b) != string(record(seq)):
			return fmt.Errorf("number %d is not what was put in", seq)
		case err == nil && seq > last:
			last, group = seq, binary.LittleEndian.AppendUint64(group, seq)
		case err != nil && !errors.Is(err, io.EOF):
			return err
		}
		if err != nil || len(group) > 800 {
			if _, err := kept.Write(group); err != nil {
				return err
			}
			if err := c.Commit(); err != nil {
				return err
			}
			group = group[:0]
		}
		if err != nil {
			time.Sleep(20 * time.Microsecond)
		}
	}
}

func child(t *testing.T, role string, files ...*os.File) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RING_TEST_ROLE="+role)
	cmd.ExtraFiles, cmd.Stderr = files, os.Stderr
	return cmd
}

// TestProducerKilled: all that a killed producer was told is published is
// there, whole and in order, and at most the one it was at beyond that.
func TestProducerKilled(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	total := uint64(0)
	for round := range 40 {
		f, err := Create(16<<10, random.Uint64())
		check(t, err)
		c, err := OpenConsumer(again(t, f))
		check(t, err)
		cmd := child(t, "producer", f)
		out, err := cmd.StdoutPipe()
		check(t, err)
		check(t, cmd.Start())
		told, taken := make(chan uint64, 1), uint64(0)
		go func() {
			last, r := uint64(0), bufio.NewReader(out)
			for binary.Read(r, binary.LittleEndian, &last) == nil {
			}
			told <- last
		}()
		take := func() {
			for {
				seq, b, err := c.Next()
				if errors.Is(err, io.EOF) {
					break
				}
				check(t, err)
				if seq != taken+1 || string(b) != string(record(seq)) {
					t.Fatalf("record %d came as %d", taken+1, seq)
				}
				taken = seq
			}
			check(t, c.Commit())
		}
		// Half of them may be killed while they start, or before, the others only at
		// work; how long it takes to get there is the machine's to say.
		for end := time.Now().Add(20 * time.Second); round%2 == 0 && taken < 100 && time.Now().Before(end); {
			take()
		}
		for end := time.Now().Add(time.Duration(random.IntN(40_000)) * time.Microsecond); time.Now().Before(end); {
			take()
		}
		_ = cmd.Process.Kill()
		last := <-told
		_ = cmd.Wait() // it was killed
		take()
		if taken != last && taken != last+1 {
			t.Fatalf("the producer was told of %d, %d are there", last, taken)
		}
		total += taken
		check(t, errors.Join(c.Close(), f.Close()))
	}
	if total < 1000 {
		t.Errorf("only %d records", total)
	}
}

// TestConsumerKilled: over any number of killed consumers every record is kept once.
func TestConsumerKilled(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	f, err := Create(16<<20, 5) // large enough to give memory back
	check(t, err)
	defer f.Close()
	p, err := OpenProducer(f)
	check(t, err)
	defer p.Close()
	kept, err := os.CreateTemp(t.TempDir(), "")
	check(t, err)
	defer kept.Close()
	stop, put := make(chan struct{}), make(chan uint64)
	go func() {
		seq := uint64(1)
		defer func() { put <- seq - 1 }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := p.Put(record(seq)); err != nil {
				time.Sleep(20 * time.Microsecond)
				continue
			}
			seq++
		}
	}()
	for range 40 {
		cmd := child(t, "consumer", f, kept)
		check(t, cmd.Start())
		time.Sleep(time.Duration(random.IntN(50_000)) * time.Microsecond)
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() == 1 {
			t.Fatalf("the consumer failed by itself: %v", err)
		}
	}
	close(stop)
	n := <-put
	cmd := child(t, "consumer", f, kept)
	check(t, cmd.Start())
	for end := time.Now().Add(10 * time.Second); p.Waiting() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed
	b, err := os.ReadFile(kept.Name())
	check(t, err)
	if n < 1000 || len(b) != int(n)*8 {
		t.Fatalf("%d records were put in, %d kept", n, len(b)/8)
	}
	for seq := uint64(1); seq <= n; seq++ {
		if got := binary.LittleEndian.Uint64(b[(seq-1)*8:]); got != seq {
			t.Fatalf("record %d is kept at the place of %d", got, seq)
		}
	}
}
