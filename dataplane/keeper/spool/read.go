package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ringmain/controlplane/seal"
)

type segmentInfo struct {
	name    string
	number  int64 // nanoseconds since 1970 when it was begun
	size    int64
	changed time.Time
}

// list returns the segments of a spool, oldest first. No directory is no segments.
func list(dir string) ([]segmentInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	var segments []segmentInfo
	for _, e := range entries {
		number, ok := parseSegment(e.Name())
		if !ok {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue // shipped meanwhile
		}
		if err != nil {
			return nil, err
		}
		segments = append(segments, segmentInfo{e.Name(), number, info.Size(), info.ModTime()})
	}
	slices.SortFunc(segments, func(a, b segmentInfo) int { return int(min(max(a.number-b.number, -1), 1)) })
	return segments, nil
}

// Read calls each for every record in the spool of the data directory dir, in
// the order written, once: a record that two segments hold is given once. A
// segment may end early, where its writer died. What else does not open is
// named in the error, after the segments behind it were read; an error of each
// ends it at once. The body is only valid during the call.
func Read(sealer *seal.Sealer, dir, name string, each func(body []byte) error) error {
	dir = filepath.Join(dir, "spool")
	segments, err := list(dir)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	last := make(map[uint64]uint64)
	var damage, refused error
	for _, g := range segments {
		err := readSegment(sealer, dir, name, g.name, func(run, seq uint64, body []byte) error {
			if seq <= last[run] {
				return nil
			}
			last[run] = seq
			refused = each(body)
			return refused
		})
		if refused != nil {
			return refused
		}
		if err != nil {
			damage = errors.Join(damage, fmt.Errorf("spool: segment %s: %w", filepath.Join(dir, g.name), err))
		}
	}
	return damage
}

// lastOf returns the number of the last record of a run that is on disk; 0 if none is.
func lastOf(sealer *seal.Sealer, dir, name string, number uint64) (uint64, error) {
	segments, err := list(dir)
	if err != nil {
		return 0, fmt.Errorf("spool: %w", err)
	}
	for _, g := range slices.Backward(segments) {
		last := uint64(0)
		err := readSegment(sealer, dir, name, g.name, func(run, seq uint64, _ []byte) error {
			if run == number {
				last = max(last, seq)
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("spool: segment %s: %w", filepath.Join(dir, g.name), err)
		}
		if last > 0 {
			return last, nil
		}
	}
	return 0, nil
}

var errFrame = errors.New("a frame of records is malformed")

func readSegment(sealer *seal.Sealer, dir, name, segment string, each func(run, seq uint64, body []byte) error) error {
	f, err := os.Open(filepath.Join(dir, segment))
	if errors.Is(err, os.ErrNotExist) {
		return nil // shipped, or too old, meanwhile
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // opened for reading
	r, err := sealer.NewReader(f, sealContext(name, segment))
	for err == nil {
		var b []byte
		if b, err = r.Next(); err != nil {
			break
		}
		if len(b) < 16 {
			return errFrame
		}
		run, seq := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
		for b = b[16:]; len(b) > 0; seq++ {
			if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
				return errFrame
			}
			n := 4 + binary.BigEndian.Uint32(b)
			if err := each(run, seq, b[4:n:n]); err != nil {
				return err
			}
			b = b[n:]
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, seal.ErrTruncated) {
		return nil
	}
	return err
}
