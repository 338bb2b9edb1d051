//go:build linux

package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	switch os.Getenv("RING_TEST_ROLE") {
	case "producer":
		playProducer()
	case "consumer":
		playConsumer()
	}
	goleak.VerifyTestMain(m)
}

type failer interface {
	Helper()
	Fatal(...any)
}

func check(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// again is another descriptor of the same memory, as a process gets that
// adopts it.
func again(t failer, f *os.File) *os.File {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	check(t, err)
	return os.NewFile(uintptr(fd), f.Name())
}

// ends opens both ends of a new ring.
func ends(t testing.TB, size int) (*Producer, *Consumer, *os.File) {
	t.Helper()
	f, err := Create(size, 77)
	check(t, err)
	p, err := OpenProducer(f)
	check(t, err)
	c, err := OpenConsumer(again(t, f))
	check(t, err)
	t.Cleanup(func() {
		if err := errors.Join(p.Close(), c.Close(), f.Close()); err != nil {
			t.Error(err)
		}
	})
	return p, c, f
}

func TestOrderAndBounds(t *testing.T) {
	p, c, _ := ends(t, 1)
	if p.Run() != 77 || c.Run() != 77 {
		t.Errorf("runs %d and %d", p.Run(), c.Run())
	}
	put, took := 0, 0
	room := true
	for lap := range 50 {
		for {
			room = room && p.Room(0)
			record := bytes.Repeat([]byte{byte(put)}, put*7%300)
			if _, err := p.Put(record); errors.Is(err, ErrFull) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			put++
		}
		if room = p.Room(0); room {
			t.Fatal("there is room in a full ring")
		}
		if p.Waiting() != c.Waiting() || p.Waiting() < MinSize*9/10 {
			t.Errorf("%d and %d bytes wait", p.Waiting(), c.Waiting())
		}
		for n := 0; ; n++ {
			seq, record, err := c.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || seq != uint64(took+1) || !bytes.Equal(record, bytes.Repeat([]byte{byte(took)}, took*7%300)) {
				t.Fatalf("lap %d: record %d came as %d (%d bytes), %v", lap, took+1, seq, len(record), err)
			}
			took++
			if n == 3 {
				check(t, c.Commit())
			}
		}
		check(t, c.Commit())
		room = p.Room(0)
		if !room || p.Waiting() != 0 {
			t.Fatalf("an empty ring has no room; %d bytes wait", p.Waiting())
		}
	}
	if took != put || put < 500 {
		t.Errorf("%d of %d records", took, put)
	}
	if _, err := p.Put(make([]byte, MaxRecord+1)); err == nil || errors.Is(err, ErrFull) {
		t.Errorf("too large a record: %v", err)
	}
	p.Refuse()
	if _, err := p.Put(nil); !errors.Is(err, ErrFull) {
		t.Errorf("after Refuse: %v", err)
	}
}

// TestWake: exactly the first record that a sleeping reader may have missed
// says so.
func TestWake(t *testing.T) {
	p, c, _ := ends(t, 1)
	put := func() bool {
		t.Helper()
		wake, err := p.Put([]byte("x"))
		check(t, err)
		return wake
	}
	if put() {
		t.Error("a reader that is awake was to be woken")
	}
	if c.Sleep() {
		t.Error("it sleeps with a record waiting")
	}
	_, _, err := c.Next()
	check(t, err)
	check(t, c.Commit())
	if !c.Sleep() || p.Nudge() {
		t.Error("it does not sleep, or is nudged for nothing")
	}
	if !put() || put() {
		t.Error("the first record must wake, the second not")
	}
	p.NotWoken()
	if !p.Nudge() || p.Nudge() {
		t.Error("a nudge is said once")
	}
	p.NotWoken()
	c.Wake()
	if put() {
		t.Error("a reader that woke by itself was to be woken")
	}
}

// TestDamage: whatever is changed in the memory, no record comes out that was
// not put in.
func TestDamage(t *testing.T) {
	const records = 5
	f, err := Create(1, 1)
	check(t, err)
	defer f.Close()
	p, err := OpenProducer(f)
	check(t, err)
	defer p.Close()
	for i := range records {
		_, err := p.Put(fmt.Appendf(nil, "record %d", i+1))
		check(t, err)
	}
	mem := p.m.data[:p.m.head.Load()]
	fresh := func() *Consumer {
		c, err := OpenConsumer(again(t, f))
		check(t, err)
		return c
	}
	for bit := range len(mem) * 8 {
		mem[bit/8] ^= 1 << (bit % 8)
		c := fresh()
		sound := 0
		for {
			seq, record, err := c.Next()
			if err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, io.EOF) {
					t.Fatalf("bit %d: %v", bit, err)
				}
				break
			}
			sound++
			if want := fmt.Sprintf("record %d", seq); string(record) != want {
				t.Fatalf("bit %d: number %d is %q", bit, seq, record)
			}
		}
		// Only padding may change unnoticed.
		if at := bit / 8 % 32; sound == records && at < frameLen+len("record 1") {
			t.Errorf("bit %d: not noticed", bit)
		}
		check(t, c.Close())
		mem[bit/8] ^= 1 << (bit % 8)
	}
	// A published length that no record fills: torn.
	p.m.head.Store(p.m.head.Load() + 32)
	c := fresh()
	for range records {
		_, _, err := c.Next()
		check(t, err)
	}
	if _, _, err := c.Next(); !errors.Is(err, ErrDamaged) {
		t.Errorf("a torn record: %v", err)
	}
	check(t, c.Close())
	p.m.head.Store(1 << 60)
	c = fresh()
	if _, _, err := c.Next(); !errors.Is(err, ErrDamaged) {
		t.Errorf("a head beyond the memory: %v", err)
	}
	check(t, c.Close())
}

// TestStaleLap: what an earlier lap left behind is no record, even at its place.
func TestStaleLap(t *testing.T) {
	p, c, _ := ends(t, 1)
	record := make([]byte, MinSize/4-frameLen)
	for range 4 {
		_, err := p.Put(record)
		check(t, err)
		_, _, err = c.Next()
		check(t, err)
	}
	check(t, c.Commit())
	p.m.head.Store(p.m.head.Load() + MinSize/4) // published, and never written
	if _, _, err := c.Next(); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}

func TestLayout(t *testing.T) {
	f, err := Create(1, 1)
	check(t, err)
	defer f.Close()
	p, err := OpenProducer(f)
	check(t, err)
	defer p.Close()
	_, err = p.Put([]byte("x"))
	check(t, err)
	if _, err := OpenProducer(f); err == nil {
		t.Error("a used ring was given to a second producer")
	}
	mem, unmap, err := attach(f)
	check(t, err)
	defer unmap()
	mem[7]++
	if _, err := OpenConsumer(again(t, f)); !errors.Is(err, ErrLayout) {
		t.Errorf("another version: %v", err)
	}
	mem[7]--
	binary.NativeEndian.PutUint64(mem[atSize:], MinSize*2)
	if _, err := OpenConsumer(again(t, f)); !errors.Is(err, ErrLayout) {
		t.Errorf("another size: %v", err)
	}
	if err := f.Truncate(0); err == nil {
		t.Error("the memory can be cut off under a reader")
	}
	plain, err := os.CreateTemp(t.TempDir(), "")
	check(t, err)
	check(t, plain.Truncate(headerLen+MinSize))
	if _, err := OpenConsumer(plain); !errors.Is(err, ErrLayout) {
		t.Errorf("a plain file: %v", err)
	}
}

// TestMemoryIsGivenBack: a ring that has been filled many times holds no more
// memory than its last steps.
func TestMemoryIsGivenBack(t *testing.T) {
	p, c, f := ends(t, DefaultSize)
	record := make([]byte, 60<<10)
	for range 3 * DefaultSize / len(record) {
		_, err := p.Put(record)
		check(t, err)
		_, _, err = c.Next()
		check(t, err)
		check(t, c.Commit())
	}
	var st syscall.Stat_t
	check(t, syscall.Fstat(int(f.Fd()), &st))
	if held := st.Blocks * 512; held > 3*holeStep {
		t.Errorf("%d KiB are held", held>>10)
	}
}

// TestModel compares a ring with a slice, its reader dying and its memory
// wrapping in between.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f, err := Create(1, 9)
		check(t, err)
		defer f.Close()
		p, err := OpenProducer(f)
		check(t, err)
		defer p.Close()
		open := func() *Consumer {
			c, err := OpenConsumer(again(t, f))
			check(t, err)
			return c
		}
		c := open()
		defer func() { check(t, c.Close()) }()
		var queue [][]byte // put and not committed
		read, kept := 0, uint64(0)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				b := rapid.SliceOfN(rapid.Byte(), 0, 1200).Draw(t, "record")
				used := uint64(0)
				for _, r := range queue {
					used += span(len(r))
				}
				_, err := p.Put(b)
				if full := used+span(len(b)) > MinSize; full != errors.Is(err, ErrFull) {
					t.Fatalf("%d bytes used, %d more: %v", used, span(len(b)), err)
				}
				if err == nil {
					queue = append(queue, b)
				}
			},
			"next": func(t *rapid.T) {
				seq, record, err := c.Next()
				if read == len(queue) {
					if !errors.Is(err, io.EOF) {
						t.Fatalf("at the end: %d %v", seq, err)
					}
					return
				}
				if err != nil || seq != kept+uint64(read)+1 || !bytes.Equal(record, queue[read]) {
					t.Fatalf("record %d: %d %x %v, want %x", kept+uint64(read)+1, seq, record, err, queue[read])
				}
				read++
			},
			"commit": func(t *rapid.T) {
				check(t, c.Commit())
				queue, kept, read = queue[read:], kept+uint64(read), 0
			},
			"rewind": func(*rapid.T) { c.Rewind(); read = 0 },
			"reader dies": func(t *rapid.T) {
				check(t, c.Close())
				c, read = open(), 0
			},
			"": func(t *rapid.T) {
				want := uint64(0)
				for _, r := range queue {
					want += span(len(r))
				}
				if p.Waiting() != int(want) || c.Waiting() != int(want) || p.Room(0) != (want <= MinSize/10*9) {
					t.Fatalf("%d and %d wait of %d, room %v", p.Waiting(), c.Waiting(), want, p.Room(0))
				}
			},
		})
	})
}

// FuzzConsumer reads memory that anything may have written.
func FuzzConsumer(f *testing.F) {
	words := make([]uint64, (headerLen+MinSize)/8)
	mem := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	format(mem, 1)
	p, err := newProducer(mem)
	if err != nil {
		f.Fatal(err)
	}
	for i := range 10 {
		if _, err := p.Put([]byte(strings.Repeat("r", i*50))); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(bytes.Clone(mem[headerLen:]), p.at, uint64(0), uint64(0))
	f.Add([]byte{}, uint64(MinSize), uint64(0), uint64(0))
	f.Add([]byte{0, 0, 1}, uint64(1<<63), uint64(1<<63-40), uint64(7))
	f.Fuzz(func(t *testing.T, data []byte, head, tail, free uint64) {
		words := make([]uint64, (headerLen+MinSize)/8)
		mem := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
		format(mem, 1)
		copy(mem[headerLen:], data)
		for at, v := range map[int]uint64{atHead: head, atTail: tail, atFree: free} {
			binary.NativeEndian.PutUint64(mem[at:], v)
		}
		c, err := newConsumer(mem)
		if err != nil {
			t.Fatal(err)
		}
		holes := 0
		c.hole = func(uint64, uint64) error { holes++; return nil }
		for n := 0; ; n++ {
			if _, _, err := c.Next(); err != nil {
				if !errors.Is(err, ErrDamaged) && !errors.Is(err, io.EOF) {
					t.Fatal(err)
				}
				break
			}
			if n > MinSize/frameLen {
				t.Fatal("more records than fit")
			}
		}
		if c.Waiting() > MinSize {
			t.Fatalf("%d bytes wait", c.Waiting())
		}
		if err := c.Commit(); err != nil || holes > MinSize/holeStep+1 {
			t.Fatalf("%d holes, %v", holes, err)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	p, c, _ := ends(b, DefaultSize)
	record := make([]byte, 350)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if _, err := p.Put(record); err != nil {
			b.Fatal(err)
		}
		if n++; n%100 != 0 {
			continue
		}
		for {
			if _, _, err := c.Next(); err != nil {
				break
			}
		}
		check(b, c.Commit())
	}
}
