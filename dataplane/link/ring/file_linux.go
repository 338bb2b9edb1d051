package ring

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Create makes the memory of a new ring for at least size bytes of records,
// sealed so that neither process can shrink it under the other. Run is its
// number, which no other ring of the node should have.
func Create(size int, run uint64) (f *os.File, err error) {
	step := MinSize
	if size >= holeFrom {
		step = holeStep
	}
	size = max(size+step-1, step) / step * step
	fd, err := unix.MemfdCreate("ringmain-records", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for records: %w", err)
	}
	f = os.NewFile(uintptr(fd), "ring of records")
	defer func() {
		if err != nil {
			_ = f.Close() // nothing is in it
		}
	}()
	if err := unix.Ftruncate(fd, int64(headerLen+size)); err != nil {
		return nil, fmt.Errorf("memory for records: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("memory for records: %w", err)
	}
	mem, unmap, err := attach(f)
	if err != nil {
		return nil, err
	}
	format(mem, run)
	return f, unmap()
}

const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW

// attach maps the memory of f.
func attach(f *os.File) (mem []byte, unmap func() error, err error) {
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("memory for records: %w", err)
	}
	// Without the seals another process could cut the memory off under a reader.
	if got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || got&seals != seals || info.Size() < headerLen+MinSize || info.Size() > 1<<33 {
		return nil, nil, errors.Join(fmt.Errorf("%w: %d bytes, seals %#x", ErrLayout, info.Size(), got), err)
	}
	mem, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("map the memory for records: %w", err)
	}
	return mem, func() error { return unix.Munmap(mem) }, nil
}

// OpenProducer maps f, which stays the caller's. A ring has one producer in
// its life.
func OpenProducer(f *os.File) (*Producer, error) {
	mem, unmap, err := attach(f)
	if err != nil {
		return nil, err
	}
	p, err := newProducer(mem)
	if err != nil {
		return nil, errors.Join(err, unmap())
	}
	p.unmap = unmap
	return p, nil
}

// OpenConsumer maps f, which it takes over, and begins at the last Commit of
// the consumer before it. At any time a ring has one.
func OpenConsumer(f *os.File) (*Consumer, error) {
	mem, unmap, err := attach(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	c, err := newConsumer(mem)
	if err != nil {
		return nil, errors.Join(err, unmap(), f.Close())
	}
	c.unmap = func() error { return errors.Join(unmap(), f.Close()) }
	if c.m.size >= holeFrom && c.m.size%holeStep == 0 {
		c.hole = func(at, n uint64) error {
			return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, headerLen+int64(at), int64(n))
		}
	}
	return c, nil
}

// OpenProgress maps the head of f, which stays the caller's.
func OpenProgress(f *os.File) (*Progress, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, headerLen, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the head of the memory for records: %w", err)
	}
	return &Progress{begun: word(mem, atBegun), done: word(mem, atDone), unmap: func() error { return unix.Munmap(mem) }}, nil
}
