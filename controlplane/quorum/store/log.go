package quorum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	walfs "github.com/hashicorp/raft-wal/fs"
	"github.com/hashicorp/raft-wal/metadb"
	"github.com/hashicorp/raft-wal/segment"
	"github.com/hashicorp/raft-wal/types"

	"ringmain/controlplane"
	"ringmain/controlplane/quorum/image"
	"ringmain/controlplane/seal"
)

const (
	logCache = 512     // latest entries kept open in memory, for followers and Apply
	sealMax  = 1 << 31 // messages under one data key, half of seal.BoxLimit
)

// sealedLog is raft's log and stable store: raft-wal, with every payload
// sealed and bound to its index, term and type, and every vote bound to its
// key. The wal takes a damaged tail for a torn write and drops it; the witness
// beside it remembers how far the log had got, so that such a loss is noticed.
type sealedLog struct {
	dir, tailPath string
	context       string
	sealer        *seal.Sealer
	logger        hclog.Logger
	vfs           types.VFS   // a seam: tests put a full disk behind it
	fatal         func(error) // called when the log can no longer be trusted
	segmentSize   int

	mu   sync.RWMutex // guards wal against reopening
	wal  *wal.WAL
	tail *os.File // witness; written by the one writer raft has

	box    *seal.Box // for writing
	header []byte    // u16 length | header of box
	seals  int

	boxesMu sync.Mutex
	boxes   map[string]*seal.Box // by header, for reading

	cacheMu sync.RWMutex
	cache   [logCache]*raft.Log

	since atomic.Int64 // when the write under way began, Unix nanoseconds; 0 = none

	stateMu sync.Mutex
	end     uint64             // last index that was acknowledged to raft
	full    error              // why the last append failed, if the disk was full
	broken  bool               // an append failed halfway: reopen before the next one
	base    raft.Log           // index and term of the newest snapshot's end
	install *raft.SnapshotMeta // just installed; nil once DeleteRange took notice
}

var (
	_ raft.LogStore          = (*sealedLog)(nil)
	_ raft.StableStore       = (*sealedLog)(nil)
	_ raft.MonotonicLogStore = (*sealedLog)(nil)
)

// appendError is a failed append. If tried is false nothing reached the disk.
type appendError struct {
	tried bool
	cause error
}

func (e *appendError) Error() string { return "append to the log: " + e.cause.Error() }
func (e *appendError) Unwrap() error { return e.cause }

// damage is the answer to anything in the log that should not be as it is.
func (l *sealedLog) damage(format string, args ...any) error {
	return fmt.Errorf("quorum: the raft log in %s is damaged: %w: while the other nodes of the region have a leader, move this node's whole directory away and start it again; it copies everything from them",
		l.dir, fmt.Errorf(format, args...))
}

// openLog opens or creates the log and reads all of it once, so that damage is
// named here and not met later.
func openLog(cfg *Config, vfs types.VFS, fatal func(error)) (l *sealedLog, err error) {
	l = &sealedLog{
		dir:         filepath.Join(cfg.Dir, nameLog),
		tailPath:    filepath.Join(cfg.Dir, nameTail),
		context:     fmt.Sprintf("quorum/log/%s/%s", cfg.Cluster, cfg.Region),
		sealer:      cfg.Sealer,
		logger:      newRaftLogger(cfg.Logger),
		vfs:         vfs,
		fatal:       fatal,
		segmentSize: cfg.Tunables.SegmentBytes,
		boxes:       make(map[string]*seal.Box),
	}
	if l.vfs == nil {
		l.vfs = walfs.New()
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("quorum: raft log: %w", image.DiskError(err))
	}
	if err := l.newBox(); err != nil {
		return nil, err
	}
	if l.wal, err = l.openWAL(); err != nil {
		return nil, err
	}
	if l.tail, err = os.OpenFile(l.tailPath, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("quorum: raft log: %w", image.DiskError(err)), l.wal.Close())
	}
	if err := l.verify(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *sealedLog) openWAL() (w *wal.WAL, err error) {
	// Its meta file is a bbolt file, which panics on some kinds of damage.
	defer func() {
		if r := recover(); r != nil {
			err = l.damage("%v", r)
		}
	}()
	if err := image.CheckPages(filepath.Join(l.dir, metadb.FileName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, l.damage("%s: %w", metadb.FileName, err)
	}
	if err = l.finishRotation(); err == nil {
		w, err = wal.Open(l.dir,
			wal.WithLogger(l.logger),
			wal.WithSegmentSize(l.segmentSize),
			wal.WithSegmentFiler(segment.NewFiler(l.dir, l.vfs)))
	}
	if image.IsFull(err) {
		return nil, fmt.Errorf("quorum: raft log in %s: %w", l.dir, image.DiskError(err))
	}
	if err != nil {
		return nil, l.damage("%w", err)
	}
	return w, nil
}

// verify reads the witness and every entry.
func (l *sealedLog) verify() error {
	first, err := l.wal.FirstIndex()
	if err != nil {
		return l.damage("%w", err)
	}
	last, err := l.wal.LastIndex()
	if err != nil {
		return l.damage("%w", err)
	}
	mark, err := readTail(l.tail)
	if err != nil {
		return l.damage("%s: %w", l.tailPath, err)
	}
	if last < mark {
		return l.damage("it ends at entry %d, but had been written up to %d", last, mark)
	}
	var entry raft.Log
	for i := first; i <= last && last > 0; i++ {
		if err := l.read(i, &entry); err != nil {
			return err
		}
	}
	l.end = last
	return writeTail(l.tail, last)
}

func (l *sealedLog) newBox() error {
	box, header, err := l.sealer.NewBox(l.context)
	if err != nil {
		return fmt.Errorf("quorum: raft log: %w", err)
	}
	l.box, l.seals = box, 0
	l.header = append(binary.BigEndian.AppendUint16(nil, uint16(len(header))), header...)
	return nil
}

// seal returns header and sealed payload in one slice.
func (l *sealedLog) seal(plain, aad []byte) ([]byte, error) {
	if l.seals++; l.seals > sealMax {
		if err := l.newBox(); err != nil {
			return nil, err
		}
	}
	out := make([]byte, len(l.header), len(l.header)+len(plain)+seal.BoxOverhead)
	copy(out, l.header)
	return l.box.Seal(out, plain, aad), nil
}

func (l *sealedLog) open(sealed, aad []byte) ([]byte, error) {
	if len(sealed) < 2 || len(sealed) < 2+int(binary.BigEndian.Uint16(sealed)) {
		return nil, seal.ErrTruncated
	}
	header, rest := sealed[2:2+binary.BigEndian.Uint16(sealed)], sealed[2+binary.BigEndian.Uint16(sealed):]
	box, err := l.boxFor(header)
	if err != nil {
		return nil, err
	}
	return box.Open(nil, rest, aad)
}

func (l *sealedLog) boxFor(header []byte) (*seal.Box, error) {
	l.boxesMu.Lock()
	defer l.boxesMu.Unlock()
	if box, ok := l.boxes[string(header)]; ok {
		return box, nil
	}
	box, rest, err := l.sealer.OpenBox(header, l.context)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, seal.ErrTampered
	}
	if len(l.boxes) >= 64 {
		clear(l.boxes)
	}
	l.boxes[string(header)] = box
	return box, nil
}

func entryAAD(e *raft.Log) []byte {
	aad := make([]byte, 0, 17)
	aad = binary.BigEndian.AppendUint64(aad, e.Index)
	aad = binary.BigEndian.AppendUint64(aad, e.Term)
	return append(aad, byte(e.Type))
}

// IsMonotonic tells raft that the log has no gaps.
func (l *sealedLog) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (l *sealedLog) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.wal.FirstIndex()
}

// LastIndex implements raft.LogStore.
func (l *sealedLog) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.wal.LastIndex()
}

// GetLog implements raft.LogStore.
func (l *sealedLog) GetLog(index uint64, into *raft.Log) error {
	l.cacheMu.RLock()
	hit := l.cache[index%logCache]
	l.cacheMu.RUnlock()
	if hit != nil && hit.Index == index {
		*into = *hit
		return nil
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.read(index, into)
}

func (l *sealedLog) read(index uint64, into *raft.Log) error {
	if err := l.wal.GetLog(index, into); err != nil {
		if errors.Is(err, wal.ErrNotFound) {
			if l.snapshotEnd(index, into) {
				return nil
			}
			return raft.ErrLogNotFound
		}
		return l.damage("entry %d: %w", index, err)
	}
	if into.Index != index {
		return l.damage("entry %d sits where entry %d belongs", into.Index, index)
	}
	plain, err := l.open(into.Data, entryAAD(into))
	if err != nil {
		return l.damage("entry %d: %w", index, err)
	}
	into.Data = plain
	return nil
}

// StoreLog implements raft.LogStore.
func (l *sealedLog) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. It returns once the entries are durable.
func (l *sealedLog) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	sealed := make([]*raft.Log, len(entries))
	for i, e := range entries {
		if len(e.Extensions) > 0 {
			return &appendError{cause: fmt.Errorf("entry %d: %w: it has extensions", e.Index, controlplane.ErrUnknownEntry)}
		}
		data, err := l.seal(e.Data, entryAAD(e))
		if err != nil {
			return &appendError{cause: err}
		}
		sealed[i] = &raft.Log{Index: e.Index, Term: e.Term, Type: e.Type, Data: data, AppendedAt: e.AppendedAt}
	}
	end := entries[len(entries)-1].Index
	if err := l.append(sealed, end); err != nil {
		return err
	}
	l.cacheMu.Lock()
	for _, e := range entries {
		l.cache[e.Index%logCache] = e
	}
	l.cacheMu.Unlock()
	return nil
}

func (l *sealedLog) append(sealed []*raft.Log, end uint64) error {
	l.since.Store(time.Now().UnixNano())
	defer l.since.Store(0)
	if err := l.repair(); err != nil {
		return l.failed(&appendError{cause: image.DiskError(err)})
	}
	l.mu.RLock()
	err := l.wal.StoreLogs(sealed)
	l.mu.RUnlock()
	if errors.Is(err, wal.ErrSealed) {
		// The segment before was full and there was no room for the next one.
		// The wal only logs that; nothing was written.
		l.setBroken()
		if err := l.repair(); err != nil {
			return l.failed(&appendError{cause: image.DiskError(err)})
		}
		l.mu.RLock()
		err = l.wal.StoreLogs(sealed)
		l.mu.RUnlock()
	}
	if err != nil {
		l.setBroken()
		return l.failed(&appendError{tried: true, cause: image.DiskError(err)})
	}
	l.stateMu.Lock()
	l.end, l.full = end, nil
	l.stateMu.Unlock()
	if err := writeTail(l.tail, end); err != nil {
		// The entries are durable; only the guard against later damage lags.
		l.logger.Error("write the witness of the log's end", "error", err)
	}
	return nil
}

func (l *sealedLog) failed(err *appendError) error {
	l.stateMu.Lock()
	defer l.stateMu.Unlock()
	if image.IsFull(err) {
		l.full = err
	} else {
		// After a failed write or sync nobody knows what the disk holds.
		l.fatal(err)
	}
	return err
}

func (l *sealedLog) setBroken() {
	l.stateMu.Lock()
	l.broken = true
	l.stateMu.Unlock()
}

// fullDisk says why the last append failed, if for want of space.
func (l *sealedLog) fullDisk() error {
	l.stateMu.Lock()
	defer l.stateMu.Unlock()
	return l.full
}

// repair reopens the wal after a failed append, once there is room again, and
// takes back whatever of that append reached the disk: raft was told it failed.
func (l *sealedLog) repair() error {
	l.stateMu.Lock()
	broken, end := l.broken, l.end
	l.stateMu.Unlock()
	if !broken {
		return nil
	}
	if err := l.hasRoom(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.reopen(end); err != nil {
		l.fatal(err) // without its wal the node cannot even vote
		return err
	}
	l.stateMu.Lock()
	l.broken = false
	l.stateMu.Unlock()
	return nil
}

// reopen leaves the log ending at end. mu is held.
func (l *sealedLog) reopen(end uint64) error {
	if err := l.wal.Close(); err != nil {
		return err
	}
	w, err := l.openWAL()
	if err != nil {
		return err
	}
	l.wal = w
	last, err := w.LastIndex()
	switch {
	case err != nil:
		return err
	case last < end:
		return l.damage("it ends at entry %d, but had been written up to %d", last, end)
	case last > end:
		return w.DeleteRange(end+1, last)
	}
	return nil
}

// hasRoom tries to allot what the wal will need.
func (l *sealedLog) hasRoom() error {
	const name = "room"
	if err := os.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := l.vfs.Create(l.dir, name, uint64(2*l.segmentSize))
	if err == nil {
		err = f.Close()
	}
	return errors.Join(err, l.vfs.Delete(l.dir, name))
}

// DeleteRange implements raft.LogStore. When it takes the end of the log away
// the witness steps back first, durably.
func (l *sealedLog) DeleteRange(lo, hi uint64) error {
	l.stateMu.Lock()
	meta := l.install
	l.install = nil
	l.stateMu.Unlock()
	keep, restart := l.afterInstall(meta, lo, hi)
	if keep {
		return nil
	}
	if err := l.deleteRange(lo, hi); err != nil {
		return err
	}
	if restart {
		l.fatal(fmt.Errorf("quorum: the leader's snapshot replaced entries %d to %d, which it had never committed: restart this node", meta.Index+1, hi))
	}
	return nil
}

func (l *sealedLog) deleteRange(lo, hi uint64) error {
	if err := l.repair(); err != nil {
		return image.DiskError(err)
	}
	l.cacheMu.Lock()
	l.cache = [logCache]*raft.Log{}
	l.cacheMu.Unlock()
	l.stateMu.Lock()
	end := l.end
	l.stateMu.Unlock()
	first, err := l.FirstIndex()
	if err != nil {
		return err
	}
	switch {
	case hi < end && lo <= first:
		// Raft cuts behind a snapshot of its own. The last entry stays: without
		// its term a leader cannot tell that what follows fits.
		if hi--; hi < first {
			return nil
		}
	case hi >= end:
		end = 0
		if lo > first {
			end = lo - 1
		}
		if err := errors.Join(writeTail(l.tail, end), l.tail.Sync()); err != nil {
			return image.DiskError(err)
		}
	}
	l.mu.RLock()
	err = l.wal.DeleteRange(lo, hi)
	l.mu.RUnlock()
	if err != nil {
		return image.DiskError(err)
	}
	l.stateMu.Lock()
	l.end = end
	l.stateMu.Unlock()
	return nil
}

// Close releases the files.
func (l *sealedLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.wal.Close(), l.tail.Close())
}
