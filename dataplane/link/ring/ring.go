// Package ring is a bounded queue of records in memory that two processes
// share: one puts records in, the other takes them out, and either may be
// killed at any instruction.
//
// What was put in is there for the reader from one atomic store on, however
// the writer ends. The reader moves the tail only after it has kept what it
// read; one that dies before reads the same records again, with the same
// numbers. A record that is torn, changed, or left over from an earlier lap is
// recognised and never given out.
package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Errors that callers tell apart.
var (
	// ErrFull means that the reader has not made room: refuse what cannot be recorded.
	ErrFull = errors.New("the ring of records is full, or closed: refuse what cannot be recorded")
	// ErrDamaged means that the shared memory holds no sound record where one
	// was published: stop reading, and replace the writer and its ring.
	ErrDamaged = errors.New("the ring of records is damaged: replace its writer")
	// ErrLayout means that the other process is of a build with another layout.
	ErrLayout = errors.New("the memory is no ring of this version: end the process that made it")
)

// magic names the layout: 8 bytes at the start, changed with every change of it.
const magic = "rmRing01"

// Layout of the memory, in bytes. Each word that a process writes has a cache
// line of its own. Positions count bytes from 0 and never wrap; the byte at
// position p lies at offset headerLen + p mod size.
const (
	headerLen = 4096 // one page

	atMagic  = 0
	atSize   = 8   // u64: bytes for records
	atRun    = 16  // u64: number of this ring
	atHead   = 64  // u64: what is before it is published; the writer's
	atTail   = 128 // u64: what is before it was kept; the reader's
	atFree   = 192 // u64: what is before it may be overwritten; the reader's
	atAsleep = 256 // u32: the reader waits to be woken
	atBegun  = 320 // u64: Progress; the writer's
	atDone   = 384 // u64: likewise
)

// A record is: length u32 | CRC-32C u32 | number u64, in the machine's byte
// order, the record, and zeros up to a multiple of 8. The checksum covers
// position, number, length and record (Castagnoli's polynomial, RFC 3720).
const (
	frameLen = 16
	align    = 8
)

// MaxRecord is the most bytes that one record may have.
const MaxRecord = 64 << 10

// DefaultSize is how many bytes of records a ring should hold where nothing
// else is asked for.
const DefaultSize = 32 << 20

// MinSize is the least a ring may be asked to hold, in bytes.
const MinSize = 4096

// holeStep is how much memory is given back to the kernel at once; rings
// smaller than holeFrom keep theirs.
const (
	holeStep = 1 << 20
	holeFrom = 16 * holeStep
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// memory is a mapped ring.
type memory struct {
	data []byte // the records
	size uint64
	run  uint64

	head, tail, free *atomic.Uint64
	begun, done      *atomic.Uint64
	asleep           *atomic.Uint32
}

// format writes a new ring's header.
func format(mem []byte, run uint64) {
	binary.NativeEndian.PutUint64(mem[atSize:], uint64(len(mem)-headerLen))
	binary.NativeEndian.PutUint64(mem[atRun:], run)
	copy(mem[atMagic:], magic)
}

// view checks a header. Mem must be aligned to 8 bytes.
func view(mem []byte) (memory, error) {
	if len(mem) < headerLen+MinSize || string(mem[atMagic:atMagic+len(magic)]) != magic {
		return memory{}, ErrLayout
	}
	size := binary.NativeEndian.Uint64(mem[atSize:])
	if size != uint64(len(mem)-headerLen) || size%align != 0 {
		return memory{}, fmt.Errorf("%w: it has %d bytes and says %d", ErrLayout, len(mem)-headerLen, size)
	}
	return memory{
		data: mem[headerLen:], size: size, run: binary.NativeEndian.Uint64(mem[atRun:]),
		head: word(mem, atHead), tail: word(mem, atTail), free: word(mem, atFree),
		begun: word(mem, atBegun), done: word(mem, atDone),
		asleep: (*atomic.Uint32)(unsafe.Pointer(&mem[atAsleep])), //nolint:gosec // aligned, and within mem
	}, nil
}

func word(mem []byte, at int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&mem[at])) //nolint:gosec // aligned, and within mem
}

// write copies b to a position, around the end if need be.
func (m *memory) write(at uint64, b []byte) {
	n := copy(m.data[at%m.size:], b)
	copy(m.data, b[n:])
}

// read fills b from a position.
func (m *memory) read(at uint64, b []byte) {
	n := copy(b, m.data[at%m.size:])
	copy(b[n:], m.data)
}

// since is how many bytes are published after a mark, both at one moment: a
// mark that moved meanwhile is looked at again, but not for ever, since the
// other process may write there.
func (m *memory) since(mark *atomic.Uint64) (n uint64) {
	for range 8 {
		from := mark.Load()
		n = m.head.Load() - from
		if mark.Load() == from {
			break
		}
	}
	return n
}

// span is how much room a record of n bytes takes.
func span(n int) uint64 { return uint64(frameLen+n+align-1) &^ (align - 1) }

// frame is a record's head with room for what else the checksum covers:
// length | CRC | number | position.
type frame [frameLen + 8]byte

func (f *frame) checksum(at, seq uint64, record []byte) uint32 {
	binary.NativeEndian.PutUint32(f[0:], uint32(len(record)))
	binary.NativeEndian.PutUint64(f[8:], seq)
	binary.NativeEndian.PutUint64(f[16:], at)
	sum := crc32.Update(0, castagnoli, f[8:])
	sum = crc32.Update(sum, castagnoli, f[:4])
	return crc32.Update(sum, castagnoli, record)
}

// Producer is the writer's end. It is safe for concurrent use.
type Producer struct {
	m     memory
	unmap func() error

	mu     sync.Mutex
	at     uint64 // head, as this process knows it
	seq    uint64 // of the last record
	f      frame
	closed bool
}

func newProducer(mem []byte) (*Producer, error) {
	m, err := view(mem)
	if err != nil {
		return nil, err
	}
	if m.head.Load() != 0 {
		return nil, errors.New("the ring of records was used by another process: a worker needs one of its own")
	}
	return &Producer{m: m}, nil
}

// Run is the ring's number.
func (p *Producer) Run() uint64 { return p.m.run }

// Put publishes one record; when it returns nil the record survives this
// process. If wake is true the reader sleeps and has to be told. Otherwise
// ErrFull.
func (p *Producer) Put(record []byte) (wake bool, err error) {
	if len(record) > MaxRecord {
		return false, fmt.Errorf("a record of %d bytes: at most %d fit", len(record), MaxRecord)
	}
	p.mu.Lock()
	need := span(len(record))
	// A free mark that makes no sense leaves no room either.
	if used := p.at - p.m.free.Load(); p.closed || used > p.m.size || need > p.m.size-used {
		p.mu.Unlock()
		return false, ErrFull
	}
	p.seq++
	sum := p.f.checksum(p.at, p.seq, record)
	binary.NativeEndian.PutUint32(p.f[4:], sum)
	p.m.write(p.at, p.f[:frameLen])
	p.m.write(p.at+frameLen, record)
	p.at += need
	p.m.head.Store(p.at)
	p.mu.Unlock()
	return p.m.asleep.Load() != 0 && p.m.asleep.CompareAndSwap(1, 0), nil
}

// Room is false when less than a tenth is left, or than the owed bytes that
// what was begun will take, up to a half: begin nothing that will have to be
// recorded.
func (p *Producer) Room(owed int) bool {
	keep := min(uint64(max(0, owed)), p.m.size/2)
	return p.m.since(p.m.free) <= min(p.m.size/10*9, p.m.size-keep)
}

// Waiting is how many bytes the reader has not kept yet.
func (p *Producer) Waiting() int {
	return int(min(p.m.since(p.m.tail), p.m.size))
}

// Nudge is Put's wake for records that are there already.
func (p *Producer) Nudge() bool {
	return p.Waiting() > 0 && p.m.asleep.CompareAndSwap(1, 0)
}

// Asleep says that the reader waits to be woken.
func (p *Producer) Asleep() bool { return p.m.asleep.Load() != 0 }

// NotWoken takes wake back: the reader could not be told, so the next Put says
// it again.
func (p *Producer) NotWoken() { p.m.asleep.Store(1) }

// Begin notes, for Progress, that this process turns to item n of what it was
// given, and Done that it is through with it.
func (p *Producer) Begin(n uint64) { p.m.begun.Store(n) }

// Done is Begin's end.
func (p *Producer) Done(n uint64) { p.m.done.Store(n) }

// Refuse makes every later Put fail with ErrFull.
func (p *Producer) Refuse() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
}

// Close unmaps the ring. Nothing may be called during or after it.
func (p *Producer) Close() error { return p.unmap() }

// Consumer is the reader's end. It belongs to one goroutine, but for Waiting.
type Consumer struct {
	m     memory
	unmap func() error
	hole  func(at, n uint64) error // gives memory back to the kernel; nil = not for this size

	at   uint64 // read up to here
	last uint64 // number of the record before at; 0 = not known
	tail uint64 // kept up to here
	kept uint64 // number of the record before the tail
	f    frame
	buf  []byte
}

func newConsumer(mem []byte) (*Consumer, error) {
	m, err := view(mem)
	if err != nil {
		return nil, err
	}
	m.asleep.Store(0)
	tail := m.tail.Load()
	return &Consumer{m: m, at: tail, tail: tail}, nil
}

// Run is the ring's number.
func (c *Consumer) Run() uint64 { return c.m.run }

// Next returns the next published record, valid until the next call, and its
// number: numbers count from 1. With none left it returns io.EOF. The memory
// is the other process's too: everything is checked after it was copied.
func (c *Consumer) Next() (seq uint64, record []byte, err error) {
	published := c.m.head.Load() - c.at
	switch {
	case published == 0:
		return 0, nil, io.EOF
	case published > c.m.size || published < frameLen:
		return 0, nil, fmt.Errorf("%w: %d bytes are published where %d fit", ErrDamaged, published, c.m.size)
	}
	c.m.read(c.at, c.f[:frameLen])
	n := binary.NativeEndian.Uint32(c.f[0:])
	sum := binary.NativeEndian.Uint32(c.f[4:])
	seq = binary.NativeEndian.Uint64(c.f[8:])
	if n > MaxRecord || span(int(n)) > published {
		return 0, nil, fmt.Errorf("%w: a record of %d bytes at %d, of %d published", ErrDamaged, n, c.at, published)
	}
	if cap(c.buf) < int(n) {
		c.buf = make([]byte, n, max(int(n), 1024))
	}
	record = c.buf[:n]
	c.m.read(c.at+frameLen, record)
	if c.f.checksum(c.at, seq, record) != sum || seq == 0 || c.last != 0 && seq != c.last+1 {
		return 0, nil, fmt.Errorf("%w: what is at %d is not the record after number %d", ErrDamaged, c.at, c.last)
	}
	c.at += span(int(n))
	c.last = seq
	return seq, record, nil
}

// Commit gives back the room of what Next returned: call it when those records
// are kept.
func (c *Consumer) Commit() error {
	c.m.tail.Store(c.at)
	c.tail, c.kept = c.at, c.last
	free := c.m.free.Load()
	if c.hole == nil {
		c.m.free.Store(c.at)
		return nil
	}
	// The writer may not have the room before the hole is made: what it puts
	// there would go with it.
	upto := c.at &^ (holeStep - 1)
	var err error
	for ; free < upto && upto-free <= c.m.size && err == nil; free += holeStep {
		err = c.hole(free%c.m.size, holeStep)
	}
	c.m.free.Store(upto)
	return err
}

// Rewind goes back to the last Commit: Next returns the same records again.
func (c *Consumer) Rewind() { c.at, c.last = c.tail, c.kept }

// Sleep marks the reader as waiting to be woken. It is false, and the reader
// awake, if records came in meanwhile.
func (c *Consumer) Sleep() bool {
	c.m.asleep.Store(1)
	if c.m.head.Load() == c.at {
		return true
	}
	c.m.asleep.Store(0)
	return false
}

// Wake takes Sleep back.
func (c *Consumer) Wake() { c.m.asleep.Store(0) }

// Waiting is how many bytes are published and not committed. It is safe for
// concurrent use with everything but Close.
func (c *Consumer) Waiting() int {
	return int(min(c.m.since(c.m.tail), c.m.size))
}

// Close unmaps the ring. What is in it stays there for another reader.
func (c *Consumer) Close() error { return c.unmap() }
