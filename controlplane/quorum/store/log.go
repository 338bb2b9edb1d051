package store

import (
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

// Log is raft's log and stable store: raft-wal, with every payload
// sealed and bound to its index, term and type, and every vote bound to its
// key. The wal takes a damaged tail for a torn write and drops it; the witness
// beside it remembers how far the log had got, so that such a loss is noticed.
type Log struct {
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
	_ raft.LogStore          = (*Log)(nil)
	_ raft.StableStore       = (*Log)(nil)
	_ raft.MonotonicLogStore = (*Log)(nil)
)

// AppendError is a failed append. If Tried is false nothing reached the disk.
type AppendError struct {
	Tried bool
	cause error
}

func (e *AppendError) Error() string { return "append to the log: " + e.cause.Error() }
func (e *AppendError) Unwrap() error { return e.cause }

// Damage is the answer to anything in the log that should not be as it is.
func (l *Log) Damage(format string, args ...any) error {
	return fmt.Errorf("quorum: the raft log in %s is damaged: %w: while the other nodes of the region have a leader, move this node's whole directory away and start it again; it copies everything from them",
		l.dir, fmt.Errorf(format, args...))
}

// OpenLog opens or creates the log and reads all of it once, so that damage is
// named here and not met later.
func OpenLog(cfg Config) (l *Log, err error) {
	l = &Log{
		dir:         filepath.Join(cfg.Dir, nameLog),
		tailPath:    filepath.Join(cfg.Dir, nameTail),
		context:     fmt.Sprintf("quorum/log/%s/%s", cfg.Cluster, cfg.Region),
		sealer:      cfg.Sealer,
		logger:      cfg.Logger,
		vfs:         cfg.Files,
		fatal:       cfg.Fatal,
		segmentSize: cfg.SegmentBytes,
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

func (l *Log) openWAL() (w *wal.WAL, err error) {
	// Its meta file is a bbolt file, which panics on some kinds of damage.
	defer func() {
		if r := recover(); r != nil {
			err = l.Damage("%v", r)
		}
	}()
	if err := image.CheckPages(filepath.Join(l.dir, metadb.FileName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, l.Damage("%s: %w", metadb.FileName, err)
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
		return nil, l.Damage("%w", err)
	}
	return w, nil
}

// verify reads the witness and every entry.
func (l *Log) verify() error {
	first, err := l.wal.FirstIndex()
	if err != nil {
		return l.Damage("%w", err)
	}
	last, err := l.wal.LastIndex()
	if err != nil {
		return l.Damage("%w", err)
	}
	mark, err := readTail(l.tail)
	if err != nil {
		return l.Damage("%s: %w", l.tailPath, err)
	}
	if last < mark {
		return l.Damage("it ends at entry %d, but had been written up to %d", last, mark)
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

// IsMonotonic tells raft that the log has no gaps.
func (l *Log) IsMonotonic() bool { return true }

// FirstIndex implements raft.LogStore.
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.wal.FirstIndex()
}

// LastIndex implements raft.LogStore.
func (l *Log) LastIndex() (uint64, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.wal.LastIndex()
}

// GetLog implements raft.LogStore.
func (l *Log) GetLog(index uint64, into *raft.Log) error {
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

func (l *Log) read(index uint64, into *raft.Log) error {
	if err := l.wal.GetLog(index, into); err != nil {
		if errors.Is(err, wal.ErrNotFound) {
			if l.snapshotEnd(index, into) {
				return nil
			}
			return raft.ErrLogNotFound
		}
		return l.Damage("entry %d: %w", index, err)
	}
	if into.Index != index {
		return l.Damage("entry %d sits where entry %d belongs", into.Index, index)
	}
	plain, err := l.open(into.Data, entryAAD(into))
	if err != nil {
		return l.Damage("entry %d: %w", index, err)
	}
	into.Data = plain
	return nil
}

// StoreLog implements raft.LogStore.
func (l *Log) StoreLog(entry *raft.Log) error { return l.StoreLogs([]*raft.Log{entry}) }

// StoreLogs implements raft.LogStore. It returns once the entries are durable.
func (l *Log) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	sealed := make([]*raft.Log, len(entries))
	for i, e := range entries {
		if len(e.Extensions) > 0 {
			return &AppendError{cause: fmt.Errorf("entry %d: %w: it has extensions", e.Index, controlplane.ErrUnknownEntry)}
		}
		data, err := l.seal(e.Data, entryAAD(e))
		if err != nil {
			return &AppendError{cause: err}
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

func (l *Log) append(sealed []*raft.Log, end uint64) error {
	l.since.Store(time.Now().UnixNano())
	defer l.since.Store(0)
	if err := l.repair(); err != nil {
		return l.failed(&AppendError{cause: image.DiskError(err)})
	}
	l.mu.RLock()
	err := l.wal.StoreLogs(sealed)
	l.mu.RUnlock()
	if errors.Is(err, wal.ErrSealed) {
		// The segment before was full and there was no room for the next one.
		// The wal only logs that; nothing was written.
		l.setBroken()
		if err := l.repair(); err != nil {
			return l.failed(&AppendError{cause: image.DiskError(err)})
		}
		l.mu.RLock()
		err = l.wal.StoreLogs(sealed)
		l.mu.RUnlock()
	}
	if err != nil {
		l.setBroken()
		return l.failed(&AppendError{Tried: true, cause: image.DiskError(err)})
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

func (l *Log) failed(err *AppendError) error {
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

func (l *Log) setBroken() {
	l.stateMu.Lock()
	l.broken = true
	l.stateMu.Unlock()
}

// FullDisk says why the last append failed, if for want of space; nil if not.
func (l *Log) FullDisk() error {
	l.stateMu.Lock()
	defer l.stateMu.Unlock()
	return l.full
}

// repair reopens the wal after a failed append, once there is room again, and
// takes back whatever of that append reached the disk: raft was told it failed.
func (l *Log) repair() error {
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
func (l *Log) reopen(end uint64) error {
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
		return l.Damage("it ends at entry %d, but had been written up to %d", last, end)
	case last > end:
		return w.DeleteRange(end+1, last)
	}
	return nil
}

// hasRoom tries to allot what the wal will need.
func (l *Log) hasRoom() error {
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
func (l *Log) DeleteRange(lo, hi uint64) error {
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

func (l *Log) deleteRange(lo, hi uint64) error {
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

// Began is when the write under way began; zero if there is none.
func (l *Log) Began() time.Time {
	if since := l.since.Load(); since != 0 {
		return time.Unix(0, since)
	}
	return time.Time{}
}

// Close releases the files.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.wal.Close(), l.tail.Close())
}
