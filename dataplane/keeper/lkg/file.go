package lkg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/seal"
)

// header is the first sealed frame of every snapshot and delta file.
type header struct {
	Format      int    `cbor:"1,keyasint"` // 1
	Generation  uint64 `cbor:"2,keyasint"`
	Part        int    `cbor:"3,keyasint"` // 0 = the snapshot; deltas count from 1
	Revocations int    `cbor:"4,keyasint"` // that the safety file held when this file was begun

	Alone bool `cbor:"5,keyasint,omitempty"` // older generations hold what was erased since, and go
}

// fileName is "<generation>.snap" or "<generation>.<part>.delta".
func fileName(generation uint64, part int) string {
	if part == 0 {
		return fmt.Sprintf("%012d.snap", generation)
	}
	return fmt.Sprintf("%012d.%04d.delta", generation, part)
}

func parseName(name string) (generation uint64, part int, ok bool) {
	if base, is := strings.CutSuffix(name, ".snap"); is {
		generation, err := strconv.ParseUint(base, 10, 64)
		return generation, 0, err == nil && name == fileName(generation, 0)
	}
	base, is := strings.CutSuffix(name, ".delta")
	first, second, dot := strings.Cut(base, ".")
	generation, err := strconv.ParseUint(first, 10, 64)
	part, err2 := strconv.Atoi(second)
	return generation, part, is && dot && err == nil && err2 == nil && name == fileName(generation, part)
}

// sealedFile writes one snapshot or delta.
type sealedFile struct {
	f     *os.File
	w     *seal.Writer
	size  int64
	dirty bool
}

func (s *Store) create(path string, h header) (*sealedFile, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, diskError(err)
	}
	sf := &sealedFile{f: f}
	sf.w, err = s.cfg.Sealer.NewWriter(sf, s.context(filepath.Base(fileName(h.Generation, h.Part))))
	if err == nil {
		var b []byte
		if b, err = cbor.Marshal(h); err == nil {
			err = sf.w.Frame(b)
		}
	}
	if err != nil {
		return nil, errors.Join(diskError(err), f.Close(), os.Remove(path))
	}
	return sf, nil
}

// Write counts what goes to disk. Only seal.Writer calls it.
func (sf *sealedFile) Write(b []byte) (int, error) {
	n, err := sf.f.Write(b)
	sf.size += int64(n)
	sf.dirty = true
	return n, err
}

func (sf *sealedFile) frame(b []byte) error { return diskError(sf.w.Frame(b)) }

func (sf *sealedFile) sync() error {
	if !sf.dirty {
		return nil
	}
	sf.dirty = false
	return diskError(sf.f.Sync())
}

// finish writes the end mark, syncs and closes.
func (sf *sealedFile) finish() error {
	err := sf.w.Close()
	sf.dirty = true
	return diskError(errors.Join(err, sf.sync(), sf.f.Close()))
}

// diskError adds what to do to the errors of a full disk.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", controlplane.ErrDiskFull, err)
	}
	return err
}

// reader reads the chunks of one file.
type reader struct {
	f      *os.File
	r      *seal.Reader
	header header
	path   string
}

func (s *Store) open(generation uint64, part int) (*reader, error) {
	path := filepath.Join(s.dir, fileName(generation, part))
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	rd := &reader{f: f, path: path}
	rd.r, err = s.cfg.Sealer.NewReader(f, s.context(fileName(generation, part)))
	var b []byte
	if err == nil {
		b, err = rd.r.Next()
	}
	if errors.Is(err, io.EOF) {
		err = seal.ErrTruncated
	}
	if err == nil {
		err = cbor.Unmarshal(b, &rd.header)
	}
	if err == nil && (rd.header.Format != 1 || rd.header.Generation != generation || rd.header.Part != part) {
		err = fmt.Errorf("it is part %d of generation %d in format %d", rd.header.Part, rd.header.Generation, rd.header.Format)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return rd, nil
}

// next returns the frames of the next chunk, valid until the next call.
func (rd *reader) next() (types []feed.FrameType, frames [][]byte, err error) {
	b, err := rd.r.Next()
	if err != nil {
		return nil, nil, err
	}
	return split(b)
}

func (rd *reader) close() { _ = rd.f.Close() } // opened for reading: nothing is lost

// syncDir makes renames and removals in dir last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
