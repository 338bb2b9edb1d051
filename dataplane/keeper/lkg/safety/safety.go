// Package safety is the safety file: the revocations and pins that a node has
// heard of, sealed, in one file that is applied over every generation of its
// state. It is only appended to, but for being written anew without what the
// state has made pointless. If it cannot be read it says so, until a full state
// has settled what there is to know.
//
// Generations, frames that neither revoke nor narrow, and who is told may not
// enter it.
package safety

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
)

// Entry is one line of the file: exactly one field is set, but for Spent.
type Entry struct {
	Revocation *registry.Revocation `cbor:"1,keyasint,omitempty"`
	Pin        []byte               `cbor:"2,keyasint,omitempty"` // registry.EncodeRecord of a policy or org that narrows
	Mark       *mark                `cbor:"3,keyasint,omitempty"`
	Dropped    int                  `cbor:"4,keyasint,omitempty"` // how many revocations this file had once, and need not have

	Spent uint64 `cbor:"5,keyasint,omitempty"` // with Revocation: the first generation that says nothing of it, nor of its key
}

// mark notes how far the state on disk was, so that an older copy put in its
// place is noticed.
type mark struct {
	_          struct{} `cbor:",toarray"`
	Generation uint64
	Position   controlplane.Position
}

// maxEntry bounds one entry; a longer torn tail is damage.
const maxEntry = 64 << 10

// Config says where the file is and who hears of it. All fields but Revoked must
// be set.
type Config struct {
	Path    string
	Context string // sealed in: another node's file is refused
	Sealer  *seal.Sealer
	Logger  *slog.Logger

	// Revoked is told of each revocation, at Open and when it is new. It must not
	// block, or call the File. nil = nobody
	Revoked func(registry.Revocation)
}

// File is the safety file, safe for concurrent use. Each start, and each
// generation that makes entries pointless, writes it anew without them; between,
// it is only appended to.
type File struct {
	cfg Config

	mu         sync.Mutex
	file       *disk.File
	written    int     // entries in file
	waiting    []Entry // not in the file: the disk is full, or unknown
	known      map[[16]byte]struct{}
	pins       map[string]uint64 // record id -> revision
	revoked    int
	dropped    int // revocations that were known once
	mark       *mark
	unknown    bool
	rolledBack bool
	unsynced   bool
}

// Open reads the file. used says that this node had state before, so that a
// missing file is damage. Its error is one of disk.Foreign.
func Open(cfg Config, used bool) (*File, error) {
	s := &File{cfg: cfg, known: make(map[[16]byte]struct{}), pins: make(map[string]uint64)}
	entries, err := s.read()
	if errors.Is(err, fs.ErrNotExist) && !used {
		err = nil
	}
	if disk.Foreign(err) {
		return nil, fmt.Errorf("%s: %w", cfg.Path, err)
	}
	if err != nil {
		s.unknown = true
		cfg.Logger.Error("the file of revocations cannot be read: every key is refused with 503 until a control node has sent the full state",
			"file", cfg.Path, "error", err)
	}
	for _, e := range entries {
		s.note(e)
	}
	s.waiting = compact(entries)
	if !s.unknown {
		if err := s.rewrite(); err != nil {
			cfg.Logger.Error("the file of revocations cannot be written; it is kept in memory and tried again", "file", cfg.Path, "error", err)
		}
	}
	return s, nil
}

// compact leaves out marks but the last, pins that a later revision replaced, and
// how many were dropped, which rewrite says anew.
func compact(entries []Entry) []Entry {
	var kept []Entry
	newest := make(map[string]int)
	lastMark := -1
	for i, e := range entries {
		if e.Mark != nil {
			lastMark = i
		}
		if rec, err := registry.DecodeRecord(e.Pin); e.Pin != nil && err == nil {
			newest[rec.Meta.ID] = i
		}
	}
	for i, e := range entries {
		if e.Mark != nil && i != lastMark || e.Dropped > 0 {
			continue
		}
		if rec, err := registry.DecodeRecord(e.Pin); e.Pin != nil && err == nil && newest[rec.Meta.ID] != i {
			continue
		}
		kept = append(kept, e)
	}
	return kept
}

// read returns all entries. A torn last entry, as a crash leaves it, is left
// out: it was never synced, so nothing relied on it.
func (s *File) read() ([]Entry, error) {
	f, err := os.Open(s.cfg.Path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	r, err := s.cfg.Sealer.NewReader(f, s.cfg.Context)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if errors.Is(err, seal.ErrTruncated) && len(entries) > 0 {
			info, statErr := f.Stat()
			if statErr != nil || info.Size()-r.Offset() > maxEntry {
				return entries, errors.Join(err, statErr)
			}
			return entries, nil // also how a file in use looks
		}
		if err != nil {
			return entries, err
		}
		e, err := decode(b)
		if err != nil {
			return entries, fmt.Errorf("entry %d: %w", len(entries), err)
		}
		entries = append(entries, e)
	}
}

func decode(b []byte) (e Entry, err error) {
	return e, cbor.Unmarshal(b, &e)
}

// Key tells what e is of; of a mark, and of what cannot be read, nothing.
func (e Entry) Key() (d [16]byte) {
	var of []byte
	if e.Revocation != nil {
		of = append([]byte{byte(e.Revocation.Kind)}, e.Revocation.ID...)
	} else if rec, err := registry.DecodeRecord(e.Pin); e.Pin != nil && err == nil {
		of = append([]byte("pin of "), rec.Meta.ID...)
	}
	h := sha256.Sum256(of)
	copy(d[:], h[:])
	return d
}

// note remembers e, and reports whether it says anything new.
func (s *File) note(e Entry) bool {
	switch {
	case e.Revocation != nil:
		d := e.Key()
		if _, ok := s.known[d]; ok {
			return false
		}
		s.known[d] = struct{}{}
		s.revoked++
		if s.cfg.Revoked != nil {
			s.cfg.Revoked(*e.Revocation)
		}
	case e.Pin != nil:
		rec, err := registry.DecodeRecord(e.Pin)
		if err != nil || s.pins[rec.Meta.ID] >= max(1, rec.Meta.Revision) {
			return false
		}
		s.pins[rec.Meta.ID] = rec.Meta.Revision
	case e.Mark != nil:
		s.mark = e.Mark
	case e.Dropped > 0:
		s.dropped = e.Dropped
	}
	return true
}

// rewrite writes all that is known to a new file and puts it in place.
func (s *File) rewrite() error {
	tmp := s.cfg.Path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file, err := disk.Create(tmp, s.cfg.Sealer, s.cfg.Context)
	if err != nil {
		return err
	}
	entries := s.waiting
	if s.mark == nil {
		// So that a whole file never is without an entry.
		entries = append([]Entry{{Mark: &mark{}}}, entries...)
	}
	if s.dropped > 0 {
		entries = append([]Entry{{Dropped: s.dropped}}, entries...)
	}
	for i := 0; i < len(entries) && err == nil; i++ {
		var b []byte
		if b, err = cbor.Marshal(entries[i]); err == nil {
			err = file.Frame(b)
		}
	}
	if err == nil {
		err = errors.Join(file.Sync(), os.Rename(tmp, s.cfg.Path), disk.SyncDir(filepath.Dir(s.cfg.Path)))
	}
	if err != nil {
		return errors.Join(disk.Error(err), file.Abandon(), os.Remove(tmp))
	}
	s.file, s.written, s.waiting = file, len(entries), nil
	return nil
}

// replace writes entries to a new file, in the place of the present one.
func (s *File) replace(entries []Entry) error {
	s.waiting = entries
	s.discard()
	return s.rewrite()
}

// discard lets go of the file, which is replaced.
func (s *File) discard() {
	if s.file != nil {
		_ = s.file.Abandon() // nothing of it is needed any more
	}
	s.file, s.written = nil, 0
}

// add keeps new entries; durable only after sync.
func (s *File) add(e Entry) error {
	if !s.note(e) {
		return nil
	}
	if s.file == nil || len(s.waiting) > 0 {
		s.waiting = append(s.waiting, e)
		return nil
	}
	return s.write(e)
}

func (s *File) write(e Entry) error {
	b, err := cbor.Marshal(e)
	if err == nil {
		err = s.file.Frame(b)
	}
	if err != nil {
		// The stream is lost; a retry writes the file anew from what it held and what waits.
		s.waiting = append(s.waiting, e)
		return err
	}
	s.written++
	s.unsynced = true
	return nil
}

// retry brings what waits for the disk to it.
func (s *File) retry() error {
	if len(s.waiting) == 0 || s.unknown {
		return nil
	}
	entries, err := s.all()
	if err != nil {
		return err
	}
	return s.replace(compact(entries))
}

// all reads the entries in the file back, and adds those that wait.
func (s *File) all() ([]Entry, error) {
	if s.file == nil {
		return slices.Clone(s.waiting), nil
	}
	entries, err := s.read()
	if len(entries) < s.written {
		return nil, errors.Join(fmt.Errorf("%d of %d entries can be read back", len(entries), s.written), err)
	}
	return append(entries[:s.written], s.waiting...), nil
}

func (s *File) sync() error {
	if !s.unsynced || s.file == nil {
		return nil
	}
	s.unsynced = false
	return s.file.Sync()
}

// Count is how many revocations the file has had.
func (s *File) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoked + s.dropped
}

// Unknown reports that the file could not be read, and no full state arrived
// since: nothing may be allowed that it could forbid.
func (s *File) Unknown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unknown
}

// Check compares the file with what the loaded generation says of it.
func (s *File) Check(revocations int, position controlplane.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked+s.dropped < revocations && !s.unknown {
		s.unknown = true
		s.cfg.Logger.Error("the file of revocations has lost entries: every key is refused with 503 until a control node has sent the full state",
			"file", s.cfg.Path, "entries", s.revoked+s.dropped, "expected", revocations)
	}
	if s.mark != nil && !position.Covers(s.mark.Position) {
		s.rolledBack = true
		s.cfg.Logger.Error("the state on disk is older than what this node had: revocations and pins still hold; the feed brings the rest",
			"position", position, "had", s.mark.Position, "generation", s.mark.Generation)
	}
}

// Settle ends Unknown: a full state has been received, and its revocations and
// pins are among what waits. What is stale by it leaves the file.
func (s *File) Settle(generation uint64, position controlplane.Position, stale func(*Entry) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unknown {
		entries, err := s.all()
		if err != nil {
			return err
		}
		s.waiting = compact(entries)
		s.discard()
		if err := os.Rename(s.cfg.Path, s.cfg.Path+".bad"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.unknown = false
	}
	err := s.add(Entry{Mark: &mark{Generation: generation, Position: position.Clone()}})
	return errors.Join(err, s.retry(), s.sync(), s.purge(stale))
}

// Close notes how far the state is, and ends the file.
func (s *File) Close(generation uint64, position controlplane.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := s.add(Entry{Mark: &mark{Generation: generation, Position: position.Clone()}})
	err = errors.Join(err, s.sync())
	if len(s.waiting) == 0 && err == nil {
		return s.file.Finish()
	}
	return errors.Join(err, s.file.Abandon())
}

// Add keeps entries. sync says that they must be on disk on return, with all
// before; otherwise a later call sees to it.
func (s *File) Add(entries []Entry, sync bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for _, e := range entries {
		err = errors.Join(err, s.add(e))
	}
	if sync {
		err = errors.Join(err, s.sync())
	}
	return err
}

// Known calls emit for every revocation and pin known, from the file and from
// memory.
func (s *File) Known(emit func(Entry) error) error {
	s.mu.Lock()
	entries, err := s.all()
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("read the file of revocations back: %w", err)
	}
	for _, e := range entries {
		if e.Revocation == nil && e.Pin == nil {
			continue
		}
		if err := emit(e); err != nil {
			return err
		}
	}
	return nil
}

// Retry brings to disk what did not fit before.
func (s *File) Retry() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.retry(), s.sync())
}

// Stats is a look at a File.
type Stats struct {
	Revocations int  // in it
	Dropped     int  // that were in it once
	Unknown     bool // see File.Unknown
	RolledBack  bool // the state found at Check was older than the node had had
}

// Stats returns what metrics show.
func (s *File) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Revocations: s.revoked, Dropped: s.dropped, Unknown: s.unknown, RolledBack: s.rolledBack}
}

// purge writes the file anew if that changes anything. The caller holds mu.
func (s *File) purge(stale func(*Entry) bool) error {
	if s.file == nil {
		return nil
	}
	entries, err := s.all()
	if err != nil {
		return err
	}
	var kept, gone []Entry
	changed := false
	for _, e := range compact(entries) {
		spent := e.Spent
		if stale(&e) {
			gone = append(gone, e)
			continue
		}
		changed = changed || e.Spent != spent
		kept = append(kept, e)
	}
	if !changed && len(gone) == 0 && len(kept)+1 >= s.written {
		return nil
	}
	for _, e := range gone {
		s.drop(e)
	}
	return s.replace(kept)
}

// drop forgets e.
func (s *File) drop(e Entry) {
	switch {
	case e.Revocation != nil:
		delete(s.known, e.Key())
		s.revoked--
		s.dropped++
	case e.Pin != nil:
		if rec, err := registry.DecodeRecord(e.Pin); err == nil {
			delete(s.pins, rec.Meta.ID)
		}
	}
}
