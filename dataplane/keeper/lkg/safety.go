package lkg

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
)

// SafetyEntry is one line of the safety file: exactly one field is set, but for Spent.
type SafetyEntry struct {
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

// maxSafetyEntry bounds one entry; a longer torn tail is damage.
const maxSafetyEntry = 64 << 10

// safety is the safety file. Each start, and each generation that makes entries
// pointless, writes it anew without them; between, it is only appended to, with
// a sync after each entry.
type safety struct {
	cfg  *Config
	path string

	mu         sync.Mutex
	file       *sealedFile
	written    int           // entries in file
	waiting    []SafetyEntry // not in the file: the disk is full, or unknown
	known      map[[16]byte]struct{}
	pins       map[string]uint64 // record id -> revision
	revoked    int
	dropped    int // revocations that were known once
	mark       *mark
	unknown    bool
	rolledBack bool
	unsynced   bool
}

const safetyName = "safety.log"

// openSafety reads the file. used says that this node had state before, so
// that a missing file is damage. Its error is one of foreign.
func openSafety(cfg *Config, used bool) (*safety, error) {
	s := &safety{cfg: cfg, path: filepath.Join(cfg.Dir, safetyName), known: make(map[[16]byte]struct{}), pins: make(map[string]uint64)}
	entries, err := s.read()
	if errors.Is(err, fs.ErrNotExist) && !used {
		err = nil
	}
	if foreign(err) {
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	if err != nil {
		s.unknown = true
		cfg.Logger.Error("the file of revocations cannot be read: every key is refused with 503 until a control node has sent the full state",
			"file", s.path, "error", err)
	}
	for _, e := range entries {
		s.note(e)
	}
	s.waiting = compact(entries)
	if !s.unknown {
		if err := s.rewrite(); err != nil {
			cfg.Logger.Error("the file of revocations cannot be written; it is kept in memory and tried again", "file", s.path, "error", err)
		}
	}
	return s, nil
}

// compact leaves out marks but the last, pins that a later revision replaced, and
// how many were dropped, which rewrite says anew.
func compact(entries []SafetyEntry) []SafetyEntry {
	var kept []SafetyEntry
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

func (s *safety) context() string { return "safety/" + s.cfg.Name }

// read returns all entries. A torn last entry, as a crash leaves it, is left
// out: it was never synced, so nothing relied on it.
func (s *safety) read() ([]SafetyEntry, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // opened for reading
	r, err := s.cfg.Sealer.NewReader(f, s.context())
	if err != nil {
		return nil, err
	}
	var entries []SafetyEntry
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if errors.Is(err, seal.ErrTruncated) && len(entries) > 0 {
			info, statErr := f.Stat()
			if statErr != nil || info.Size()-r.Offset() > maxSafetyEntry {
				return entries, errors.Join(err, statErr)
			}
			return entries, nil // also how a file in use looks
		}
		if err != nil {
			return entries, err
		}
		e, err := decodeSafety(b)
		if err != nil {
			return entries, fmt.Errorf("entry %d: %w", len(entries), err)
		}
		entries = append(entries, e)
	}
}

func decodeSafety(b []byte) (e SafetyEntry, err error) {
	return e, cbor.Unmarshal(b, &e)
}

// key tells what e is of; of a mark, and of what cannot be read, nothing.
func (e SafetyEntry) key() (d [16]byte) {
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
func (s *safety) note(e SafetyEntry) bool {
	switch {
	case e.Revocation != nil:
		d := e.key()
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
func (s *safety) rewrite() error {
	tmp := s.path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return diskError(err)
	}
	sf := &sealedFile{f: f}
	sf.w, err = s.cfg.Sealer.NewWriter(sf, s.context())
	entries := s.waiting
	if s.mark == nil {
		// So that a whole file never is without an entry.
		entries = append([]SafetyEntry{{Mark: &mark{}}}, entries...)
	}
	if s.dropped > 0 {
		entries = append([]SafetyEntry{{Dropped: s.dropped}}, entries...)
	}
	for i := 0; i < len(entries) && err == nil; i++ {
		var b []byte
		if b, err = cbor.Marshal(entries[i]); err == nil {
			err = sf.frame(b)
		}
	}
	if err == nil {
		err = errors.Join(sf.sync(), os.Rename(tmp, s.path), syncDir(s.cfg.Dir))
	}
	if err != nil {
		return errors.Join(diskError(err), f.Close(), os.Remove(tmp))
	}
	s.file, s.written, s.waiting = sf, len(entries), nil
	return nil
}

// replace writes entries to a new file, in the place of the present one.
func (s *safety) replace(entries []SafetyEntry) error {
	s.waiting = entries
	s.discard()
	return s.rewrite()
}

// discard lets go of the file, which is replaced.
func (s *safety) discard() {
	if s.file != nil {
		_ = s.file.f.Close() // nothing of it is needed any more
	}
	s.file, s.written = nil, 0
}

// add keeps new entries; durable only after sync.
func (s *safety) add(e SafetyEntry) error {
	if !s.note(e) {
		return nil
	}
	if s.file == nil || len(s.waiting) > 0 {
		s.waiting = append(s.waiting, e)
		return nil
	}
	return s.write(e)
}

func (s *safety) write(e SafetyEntry) error {
	b, err := cbor.Marshal(e)
	if err == nil {
		err = s.file.frame(b)
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
func (s *safety) retry() error {
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
func (s *safety) all() ([]SafetyEntry, error) {
	if s.file == nil {
		return slices.Clone(s.waiting), nil
	}
	entries, err := s.read()
	if len(entries) < s.written {
		return nil, errors.Join(fmt.Errorf("%d of %d entries can be read back", len(entries), s.written), err)
	}
	return append(entries[:s.written], s.waiting...), nil
}

func (s *safety) sync() error {
	if !s.unsynced || s.file == nil {
		return nil
	}
	s.unsynced = false
	return s.file.sync()
}

// count is how many revocations the file has had.
func (s *safety) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revoked + s.dropped
}

func (s *safety) isUnknown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unknown
}

// check compares the file with what the loaded generation says of it.
func (s *safety) check(revocations int, position controlplane.Position) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revoked+s.dropped < revocations && !s.unknown {
		s.unknown = true
		s.cfg.Logger.Error("the file of revocations has lost entries: every key is refused with 503 until a control node has sent the full state",
			"file", s.path, "entries", s.revoked+s.dropped, "expected", revocations)
	}
	if s.mark != nil && !position.Covers(s.mark.Position) {
		s.rolledBack = true
		s.cfg.Logger.Error("the state on disk is older than what this node had: revocations and pins still hold; the feed brings the rest",
			"position", position, "had", s.mark.Position, "generation", s.mark.Generation)
	}
}

// settle ends unknown: a full state has been received, and its revocations and
// pins are among what waits. What is stale by it leaves the file.
func (s *safety) settle(generation uint64, position controlplane.Position, stale func(*SafetyEntry) bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unknown {
		entries, err := s.all()
		if err != nil {
			return err
		}
		s.waiting = compact(entries)
		s.discard()
		if err := os.Rename(s.path, s.path+".bad"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.unknown = false
	}
	err := s.add(SafetyEntry{Mark: &mark{Generation: generation, Position: position.Clone()}})
	return errors.Join(err, s.retry(), s.sync(), s.purge(stale))
}

func (s *safety) close(generation uint64, position controlplane.Position) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil {
		return nil
	}
	err := s.add(SafetyEntry{Mark: &mark{Generation: generation, Position: position.Clone()}})
	err = errors.Join(err, s.sync())
	if len(s.waiting) == 0 && err == nil {
		return s.file.finish()
	}
	return errors.Join(err, s.file.f.Close())
}

// Observe takes from a frame what the safety file must know. sync says that it
// must be on disk on return; otherwise a later call sees to it. Entry is the
// frame's, if it is one.
func (s *Store) Observe(f *feed.Frame, entry *registry.Entry, sync bool) error {
	if erases(entry) {
		s.erased()
	}
	found := notable(f, entry)
	if len(found) == 0 && !sync {
		return nil
	}
	s.safety.mu.Lock()
	defer s.safety.mu.Unlock()
	var err error
	for _, e := range found {
		err = errors.Join(err, s.safety.add(e))
	}
	if sync {
		err = errors.Join(err, s.safety.sync())
	}
	return err
}

// notable is what the safety file must know of a frame.
func notable(f *feed.Frame, entry *registry.Entry) []SafetyEntry {
	switch f.Type {
	case feed.FrameRevocation:
		return []SafetyEntry{{Revocation: f.Revocation}}
	case feed.FrameRecord:
		if rec := narrowing(f.Record); rec != nil {
			return []SafetyEntry{{Pin: f.Record}}
		}
	case feed.FrameEntry:
		return fromEntry(entry)
	default:
	}
	return nil
}

func fromEntry(e *registry.Entry) (found []SafetyEntry) {
	if e == nil {
		return nil
	}
	for i := range e.Changes {
		switch c := &e.Changes[i]; {
		case c.Op == registry.OpRevoke:
			r := registry.Revocation{Kind: c.Kind, ID: c.ID, Shard: e.Shard, At: c.At, Expires: c.Expires}
			found = append(found, SafetyEntry{Revocation: &r})
		case c.Op == registry.OpPut && c.Record != nil && narrows(c.Record):
			rec := *c.Record
			rec.Meta.Shard, rec.Meta.Revision = e.Shard, e.Seq
			if b, err := registry.EncodeRecord(&rec); err == nil {
				found = append(found, SafetyEntry{Pin: b})
			}
		}
	}
	return found
}

// narrowing decodes a record if it may be one that narrows. Keys, of which
// there are many, are told by the first bytes of the deterministic encoding.
func narrowing(b []byte) *registry.Record {
	if len(b) > 2 && b[0]>>5 == 5 && b[1] == 1 && b[2] == byte(registry.KindKey) {
		return nil
	}
	rec, err := registry.DecodeRecord(b)
	if err != nil || !narrows(rec) {
		return nil
	}
	return rec
}

// narrows reports whether stale data without this record could allow what it
// forbids: a policy that pins, forbids retention or confines to the org's own
// pool, and an org that may have given up roaming, which only its later stamp
// tells.
func narrows(r *registry.Record) bool {
	switch {
	case r.Policy != nil:
		return r.Policy.Residency != "" || r.Policy.NoRetention || r.Policy.Dedicated
	case r.Org != nil:
		return !r.Org.Roaming && r.Org.Jurisdiction == controlplane.JurisdictionAny && r.Meta.Updated > r.Meta.Created
	default:
		return false
	}
}

// Safety calls emit for every revocation and pin known, from the file and from
// memory.
func (s *Store) Safety(emit func(SafetyEntry) error) error {
	s.safety.mu.Lock()
	entries, err := s.safety.all()
	s.safety.mu.Unlock()
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
func (s *Store) Retry() error {
	s.safety.mu.Lock()
	defer s.safety.mu.Unlock()
	return errors.Join(s.safety.retry(), s.safety.sync())
}
