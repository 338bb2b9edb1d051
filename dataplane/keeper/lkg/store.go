package lkg

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
	"ringmain/dataplane/keeper/lkg/safety"
)

// Config says where and how state is kept. All fields without a stated default
// must be set.
type Config struct {
	Dir        string // the node's data directory: files go to Dir/lkg and Dir/safety.log
	Name       string // "<cluster>/<node>", bound into every file: another node's is refused
	Sealer     *seal.Sealer
	DeltaLimit int64        // bytes of deltas after which a new generation is due; 0 = 64 MiB, or the snapshot's size if larger
	Logger     *slog.Logger // nil = discard

	// Revoked is told of each member of the safety file, at Open and when it is
	// new. It must not block, or call the Store. nil = nobody
	Revoked func(registry.Revocation)

	// Load is asked before a generation is read, and may refuse it; Loaded is
	// told when all that is read has been, with the oldest generation there is
	// (none: math.MaxUint64).
	// nil = every generation is read
	Load   func(generation uint64) bool
	Loaded func(oldest uint64)
}

// safetyName is the safety file's, beside the directory of generations.
const safetyName = "safety.log"

// keep is how many generations stay on disk.
const keep = 3

// Store is the state on disk of one node. It is safe for concurrent use; one
// process at a time may have a directory open.
type Store struct {
	cfg    Config
	dir    string
	safety *safety.File

	mu         sync.Mutex
	generation uint64         // that is read and appended to; 0 = none
	parts      []part         // of that generation
	tracker    *Tracker       // over that generation
	delta      *disk.File     // the last part if this process began it; nil = begin one at the next append
	nextPart   int            // number of the delta begun next
	deltaBytes int64          // of all parts but the snapshot
	snapBytes  int64          // of the snapshot
	highest    uint64         // generation number used so far
	failing    error          // the disk took no more: this generation lacks frames
	next       *Generation    // being written
	damage     map[string]int // what was found unreadable, by kind of file
	alone      bool           // the generation that was loaded is to be the only one
	erasures   uint64         // of records that older generations may still hold; 0 = none
	orgs       orgs           // of that generation
}

// part is one file of the current generation.
type part struct {
	number int
	chunks int // that are good
}

// Open looks at every generation from the newest and settles for the first
// that is whole; damaged ones are named in the log, counted and renamed
// "<name>.bad". Its error means that nothing here can be used or may be
// touched: the directory, or a key-encryption key or version that this node
// lacks (seal.ErrUnknownKey, seal.ErrUnsupported).
func Open(cfg Config) (*Store, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Store{cfg: cfg, dir: filepath.Join(cfg.Dir, "lkg"), damage: make(map[string]int), tracker: NewTracker(nil), orgs: orgs{}}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("last known good state: %w", disk.Error(err))
	}
	files, err := s.list()
	if err = errors.Join(err, s.tidy()); err != nil {
		return nil, fmt.Errorf("last known good state: %w", err)
	}
	if s.safety, err = safety.Open(safety.Config{
		Path: filepath.Join(cfg.Dir, safetyName), Context: "safety/" + cfg.Name, Sealer: cfg.Sealer, Logger: cfg.Logger, Revoked: cfg.Revoked,
	}, len(files) > 0); err != nil {
		return nil, fmt.Errorf("last known good state: %w", err)
	}
	if s.safety.Unknown() {
		s.damage["safety"]++
	}
	revocations := 0
	for _, n := range slices.Backward(numbers(files)) {
		s.highest = max(s.highest, n)
		if s.generation != 0 || cfg.Load != nil && !cfg.Load(n) {
			continue
		}
		if revocations, err = s.load(n, files[n]); disk.Foreign(err) {
			return nil, fmt.Errorf("last known good state: %w", err)
		} else if err == nil {
			s.generation = n
		}
	}
	s.safety.Check(revocations, s.tracker.position)
	if s.alone && s.generation == s.highest { // its writer may have died before it removed them
		if err := errors.Join(s.removeOld(1), s.removeBad()); err != nil {
			return nil, fmt.Errorf("last known good state: %w", disk.Error(err))
		}
	}
	if cfg.Loaded != nil {
		cfg.Loaded(append(numbers(files), math.MaxUint64)[0])
	}
	return s, nil
}

// tidy removes leftovers of generations that were never finished.
func (s *Store) tidy() error {
	leftovers, err := filepath.Glob(filepath.Join(s.dir, "*.new"))
	for _, path := range leftovers {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// list returns the parts on disk of each generation.
func (s *Store) list() (map[uint64][]int, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	files := make(map[uint64][]int)
	for _, e := range entries {
		if n, p, ok := parseName(e.Name()); ok {
			files[n] = append(files[n], p)
			slices.Sort(files[n])
		}
	}
	return files, nil
}

// numbers are the generations of what list returned, the oldest first.
func numbers(files map[uint64][]int) []uint64 { return slices.Sorted(maps.Keys(files)) }

// load verifies a generation and, if its snapshot is whole, makes it the
// current one. Deltas count up to where they are good. It returns how many
// revocations the safety file must hold.
func (s *Store) load(generation uint64, numbers []int) (revocations int, err error) {
	tracker, orgs := NewTracker(nil), orgs{}
	var snap verified
	if len(numbers) == 0 || numbers[0] != 0 {
		err = errors.New("its snapshot is missing")
	} else {
		snap, err = s.verify(generation, 0, tracker, orgs)
	}
	if err == nil && len(tracker.open) > 0 {
		err = errors.New("a shard of it has no end")
	}
	if err != nil {
		if !disk.Foreign(err) {
			s.damage["generation"]++
			s.cfg.Logger.Error("a generation of the last known good state cannot be read; the next older is tried",
				"file", filepath.Join(s.dir, fileName(generation, 0)), "generation", generation, "error", err)
			s.setAside(generation, numbers, err)
		}
		return 0, err
	}
	s.parts, s.tracker, s.orgs, s.deltaBytes = []part{{0, snap.chunks}}, tracker, orgs, 0
	s.snapBytes, revocations = snap.bytes, snap.revocations
	s.erasures, s.alone = snap.erasures, snap.alone
	s.nextPart = 1
	for _, p := range numbers[1:] {
		s.nextPart = p + 1
		d, err := s.verify(generation, p, tracker, orgs)
		tracker.Interrupt()
		if disk.Foreign(err) {
			return 0, err
		}
		s.deltaBytes += d.bytes
		s.erasures += d.erasures
		revocations = max(revocations, d.revocations)
		if d.chunks > 0 {
			s.parts = append(s.parts, part{p, d.chunks})
		}
		switch {
		case err == nil:
		case errors.Is(err, seal.ErrTruncated):
			// How the log of a process that was killed looks. The feed brings the rest.
			s.cfg.Logger.Info("the delta log ends where its writer died", "file", fileName(generation, p), "chunks", d.chunks)
		default:
			s.damage["delta"]++
			s.cfg.Logger.Error("a delta log was cut at a damaged place; the feed will bring the rest",
				"file", filepath.Join(s.dir, fileName(generation, p)), "chunks", d.chunks, "error", err)
		}
		if d.chunks == 0 && err != nil {
			s.setAside(generation, []int{p}, err)
		}
	}
	return revocations, nil
}

// verified is what verify found good.
type verified struct {
	chunks      int
	bytes       int64
	revocations int
	erasures    uint64
	alone       bool
}

// verify reads one file to its end. On an error, what came before counts.
func (s *Store) verify(generation uint64, number int, tracker *Tracker, orgs orgs) (v verified, err error) {
	rd, err := s.open(generation, number)
	if err != nil {
		return v, err
	}
	defer rd.close()
	v.revocations, v.bytes, v.alone = rd.header.Revocations, rd.r.Offset(), rd.header.Alone
	for {
		types, frames, err := rd.next()
		if errors.Is(err, io.EOF) {
			return v, nil
		}
		if err != nil {
			return v, err
		}
		for i, t := range types {
			if t == feed.FrameRecord && !bytes.Contains(frames[i], orgStart) {
				continue // most of the file, and nothing to learn from
			}
			f, err := feed.DecodeFrame(frames[i])
			if err != nil {
				return v, err
			}
			news, entry, err := tracker.See(f)
			if err != nil {
				return v, err
			}
			if gone := news && orgs.see(f, entry); gone || erases(entry) {
				v.erasures++
			}
		}
		v.chunks++
		v.bytes = rd.r.Offset()
	}
}

// setAside renames damaged files, so that nobody reads them again and an
// operator can look at them. What merely could not be opened stays.
func (s *Store) setAside(generation uint64, numbers []int, why error) {
	var unopened *fs.PathError
	if errors.As(why, &unopened) {
		return
	}
	for _, n := range numbers {
		path := filepath.Join(s.dir, fileName(generation, n))
		if err := os.Rename(path, path+".bad"); err != nil {
			s.cfg.Logger.Error("a damaged file could not be set aside", "file", path, "error", err)
		}
	}
}

func (s *Store) context(name string) string { return "lkg/" + s.cfg.Name + "/" + name }

// Observe takes from a frame what the safety file must know. sync says that it
// must be on disk on return; otherwise a later call sees to it. Entry is the
// frame's, if it is one.
func (s *Store) Observe(f *feed.Frame, entry *registry.Entry, sync bool) error {
	if erases(entry) {
		s.erased()
	}
	found := safety.Notable(f, entry)
	if len(found) == 0 && !sync {
		return nil
	}
	return s.safety.Add(found, sync)
}

// Safety calls emit for every revocation and pin known, from the safety file and
// from memory.
func (s *Store) Safety(emit func(safety.Entry) error) error { return s.safety.Known(emit) }

// Retry brings to disk what did not fit before.
func (s *Store) Retry() error { return s.safety.Retry() }

// Position is how far the state on disk is.
func (s *Store) Position() controlplane.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tracker.Position()
}

// Append adds one frame, given decoded and encoded, to the delta log. What the
// disk has already is left out. After an error this generation stays as it is,
// later frames are ignored, and Due asks for a new one.
func (s *Store) Append(f *feed.Frame, raw []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case f.Type == feed.FrameVerdicts || f.Type == feed.FrameHeartbeat:
		return nil // never written to disk
	case s.failing != nil || s.generation == 0:
		return nil
	}
	news, entry, err := s.tracker.See(f)
	if err == nil && !news {
		return nil
	}
	if err == nil && s.orgs.see(f, entry) {
		s.erasures++
	}
	if err == nil && s.delta == nil {
		err = s.beginDelta()
	}
	if err == nil {
		var c chunk
		c.add(f.Type, raw)
		err = s.delta.Frame(c)
	}
	if err != nil {
		s.fail(err)
		return err
	}
	s.deltaBytes += int64(len(raw))
	s.parts[len(s.parts)-1].chunks++
	return nil
}

func (s *Store) beginDelta() error {
	number := s.nextPart
	path := filepath.Join(s.dir, fileName(s.generation, number))
	d, err := s.create(path, header{Format: 1, Generation: s.generation, Part: number, Revocations: s.safety.Count()})
	if err != nil {
		return err
	}
	s.delta = d
	s.nextPart++
	s.parts = append(s.parts, part{number: number})
	return nil
}

// fail gives the current generation up for appending.
func (s *Store) fail(err error) {
	s.failing = err
	if s.delta != nil {
		_ = s.delta.Abandon() // its tail is lost anyway
		s.delta = nil
	}
}

// Failing is why the disk takes no deltas; nil = it does.
func (s *Store) Failing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing
}

// maxParts bounds the delta files of one generation: each start of a keeper begins one.
const maxParts = 64

// Due reports whether a new generation should be written: there is none, the
// deltas have outgrown their bound, or the present one lacks frames.
func (s *Store) Due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	limit := s.cfg.DeltaLimit
	if limit <= 0 {
		limit = max(64<<20, s.snapBytes)
	}
	return s.erasures > 0 || s.generation == 0 || s.failing != nil || s.deltaBytes > limit || len(s.parts) > maxParts || s.safety.Unknown()
}

// Sync makes what was appended survive the host. It does not hold up Append.
func (s *Store) Sync() error {
	s.mu.Lock()
	d := s.delta
	dirty := d != nil && d.TakeDirty()
	s.mu.Unlock()
	if !dirty {
		return nil
	}
	err := d.Flush()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || s.delta != d {
		return nil
	}
	s.fail(err)
	return err
}

// Stats is a look at a Store.
type Stats struct {
	Generation   uint64
	DeltaBytes   int64
	Damage       map[string]int // unreadable files found at Open: generation, delta, safety
	safety.Stats                // of the safety file
}

// Stats returns what metrics show.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Generation: s.generation, DeltaBytes: s.deltaBytes, Damage: s.damage, Stats: s.safety.Stats()}
}

// Close ends the files. The state on disk is then good for the next Open.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.next != nil {
		s.next.abort()
	}
	if s.delta != nil {
		err = s.delta.Finish()
		s.delta = nil
	}
	return errors.Join(err, s.safety.Close(s.generation, s.tracker.position))
}

// room reports whether the disk has space for another generation.
func (s *Store) room() error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return nil //nolint:nilerr // then writing will tell
	}
	need := uint64(s.snapBytes+s.deltaBytes) + 64<<10
	if free := st.Bavail * uint64(st.Bsize); free < need {
		return fmt.Errorf("%w: a new generation takes about %d bytes, %d are free", controlplane.ErrDiskFull, need, free)
	}
	return nil
}

// removeOld removes generations beyond so many, oldest first.
func (s *Store) removeOld(keep int) error {
	files, err := s.list()
	if err != nil {
		return err
	}
	all := numbers(files)
	for _, n := range all[:max(0, len(all)-keep)] {
		for _, p := range files[n] {
			if err := os.Remove(filepath.Join(s.dir, fileName(n, p))); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
