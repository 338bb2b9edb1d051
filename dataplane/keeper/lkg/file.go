package lkg

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
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

func (s *Store) create(path string, h header) (*disk.File, error) {
	file, err := disk.Create(path, s.cfg.Sealer, s.context(filepath.Base(fileName(h.Generation, h.Part))))
	if err != nil {
		return nil, err
	}
	b, err := cbor.Marshal(h)
	if err == nil {
		err = file.Frame(b)
	}
	if err != nil {
		return nil, errors.Join(err, file.Abandon(), os.Remove(path))
	}
	return file, nil
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
