package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"
)

// raft-wal closes a full segment with an index in its last append, and begins
// the next one afterwards. If it is stopped in between, version 0.4.2 finds the
// closed segment at the end of its log and refuses every append from then on.
// It also takes the index of an append that was torn for good. finishRotation
// mends both, before the wal is opened.
func (l *Log) finishRotation() error {
	meta := new(metadb.BoltMetaDB)
	state, err := meta.Load(l.dir)
	if err == nil && len(state.Segments) > 0 {
		if tail := &state.Segments[len(state.Segments)-1]; tail.SealTime.IsZero() {
			err = l.finishSegment(meta, state, tail)
		}
	}
	return errors.Join(err, meta.Close())
}

func (l *Log) finishSegment(meta *metadb.BoltMetaDB, state types.PersistentState, tail *types.SegmentInfo) error {
	w, err := segment.NewFiler(l.dir, l.vfs).RecoverTail(*tail)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the wal makes it
	}
	if err != nil {
		return err
	}
	last := w.LastIndex()
	closed, indexStart, err := w.Sealed()
	if err = errors.Join(err, w.Close()); err != nil || !closed {
		return err
	}
	path := filepath.Join(l.dir, segment.FileName(*tail))
	whole, err := indexIsWhole(path, int64(indexStart), last-tail.BaseIndex+1)
	if err != nil {
		return err
	}
	if !whole || last == 0 {
		return eraseFrame(path, int64(indexStart))
	}
	tail.SealTime, tail.MaxIndex, tail.IndexStart = time.Now(), last, indexStart
	next := types.SegmentInfo{ID: state.NextSegmentID, BaseIndex: last + 1, MinIndex: last + 1,
		Codec: tail.Codec, CreateTime: time.Now(), SizeLimit: tail.SizeLimit}
	state.Segments = append(state.Segments, next)
	state.NextSegmentID++
	if err := syncFile(path); err != nil {
		return err
	}
	return meta.CommitState(state)
}

// Frames of a segment: kind u8, three zeros, length u32 little endian, payload
// padded to eight bytes. A file header of 32 bytes precedes them.
const (
	segmentHeader = 32
	frameHeader   = 8
	frameEntry    = 1
	frameIndex    = 2
	frameCommit   = 3
)

// indexIsWhole reports whether the index at start lists exactly the first
// entries of the segment.
func indexIsWhole(path string, start int64, entries uint64) (bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	var index []byte // what should be there
	at := int64(segmentHeader)
	for at+frameHeader <= start-frameHeader {
		size := int64(binary.LittleEndian.Uint32(data[at+4:]))
		switch data[at] {
		case frameEntry:
			index = binary.LittleEndian.AppendUint32(index, uint32(at))
		case frameCommit:
			size = 0
		default:
			return false, nil
		}
		at += frameHeader + (size+7)&^7
	}
	end := start + int64(len(index))
	return at == start-frameHeader && data[at] == frameIndex && uint64(len(index)) == 4*entries &&
		int64(binary.LittleEndian.Uint32(data[at+4:])) == int64(len(index)) &&
		end <= int64(len(data)) && slices.Equal(data[start:end], index), nil
}

// eraseFrame makes the segment end before the frame whose payload is at start.
func eraseFrame(path string, start int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(make([]byte, frameHeader), start-frameHeader); err != nil {
		return errors.Join(fmt.Errorf("erase a torn index: %w", err), f.Close())
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
