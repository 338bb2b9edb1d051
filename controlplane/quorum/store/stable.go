package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"ringmain/controlplane/quorum/image"
)

// Set implements raft.StableStore.
func (l *Log) Set(key, value []byte) error {
	box, header, err := l.sealer.NewBox(l.context)
	if err != nil {
		return err
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return image.DiskError(l.wal.Set(key, box.Seal(header, value, key)))
}

// Get implements raft.StableStore; nil for a key never set.
func (l *Log) Get(key []byte) ([]byte, error) {
	l.mu.RLock()
	sealed, err := l.wal.Get(key)
	l.mu.RUnlock()
	if err != nil || len(sealed) == 0 {
		return nil, err
	}
	value, err := l.sealer.OpenBlob(l.context, bytes.Clone(sealed), key)
	if err != nil {
		return nil, l.Damage("%s: %w", key, err)
	}
	return value, nil
}

// SetUint64 implements raft.StableStore.
func (l *Log) SetUint64(key []byte, value uint64) error {
	return l.Set(key, binary.BigEndian.AppendUint64(nil, value))
}

// GetUint64 implements raft.StableStore; 0 for a key never set.
func (l *Log) GetUint64(key []byte) (uint64, error) {
	value, err := l.Get(key)
	switch {
	case err != nil:
		return 0, err
	case len(value) == 0:
		return 0, nil
	case len(value) != 8:
		return 0, l.Damage("%s has %d bytes", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

// The witness file is the index and its CRC-32. It is written after each
// append, without a sync of its own: after a crash of the host it may lag, it
// can never lead.
const tailSize = 12

func readTail(f *os.File) (uint64, error) {
	var b [tailSize]byte
	switch n, err := f.ReadAt(b[:], 0); {
	case n == 0 && errors.Is(err, io.EOF):
		return 0, nil
	case n < tailSize:
		return 0, errors.Join(errors.New("too short"), err)
	case crc32.ChecksumIEEE(b[:8]) != binary.BigEndian.Uint32(b[8:]):
		return 0, errors.New("checksum does not fit")
	}
	return binary.BigEndian.Uint64(b[:8]), nil
}

func writeTail(f *os.File, index uint64) error {
	var b [tailSize]byte
	binary.BigEndian.PutUint64(b[:8], index)
	binary.BigEndian.PutUint32(b[8:], crc32.ChecksumIEEE(b[:8]))
	if _, err := f.WriteAt(b[:], 0); err != nil {
		return fmt.Errorf("witness of the log's end: %w", err)
	}
	return nil
}
