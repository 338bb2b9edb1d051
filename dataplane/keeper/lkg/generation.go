package lkg

import (
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
	"ringmain/dataplane/keeper/lkg/safety"
)

// Generation is a new generation while it is written. Give it every frame of a
// watch that began from the empty position.
type Generation struct {
	s       *Store
	number  uint64
	file    *disk.File
	path    string
	tracker *Tracker
	chunk   chunk
	chunks  int
	used    bool // took a frame

	alone    bool   // older generations go
	erasures uint64 // known when this one began
	orgs     orgs
	holds    map[[16]byte]struct{} // what it says that the safety file has
}

var errUnfinished = errors.New("a new generation was begun and not finished")

// Begin starts a new generation, and gives up one that was begun before. The
// present one stays in use until Commit.
func (s *Store) Begin() (*Generation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		s.next.abort()
	}
	if err := s.room(); err != nil {
		return nil, err
	}
	number := s.highest + 1
	g := &Generation{
		s: s, number: number, tracker: NewTracker(nil), orgs: orgs{}, holds: make(map[[16]byte]struct{}),
		path:  filepath.Join(s.dir, fileName(number, 0)+".new"),
		alone: s.erasures > 0, erasures: s.erasures,
	}
	var err error
	g.file, err = s.create(g.path, header{Format: 1, Generation: g.number, Revocations: s.safety.Count(), Alone: g.alone})
	if err != nil {
		return nil, err
	}
	s.next = g
	return g, nil
}

// Append adds a frame. After an error the generation is given up.
func (g *Generation) Append(f *feed.Frame, raw []byte) error {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	if g.file == nil {
		return os.ErrClosed
	}
	if f.Type == feed.FrameVerdicts || f.Type == feed.FrameHeartbeat {
		return nil
	}
	g.used = true
	news, entry, err := g.tracker.See(f)
	if err == nil && news {
		g.orgs.see(f, entry)
		for _, e := range safety.Notable(f, entry) {
			g.holds[e.Key()] = struct{}{}
		}
		g.chunk.add(f.Type, raw)
		if len(g.chunk) >= chunkBytes {
			err = g.spill()
		}
	}
	if err != nil {
		g.abort()
	}
	return err
}

func (g *Generation) spill() error {
	if len(g.chunk) == 0 {
		return nil
	}
	err := g.file.Frame(g.chunk)
	g.chunk = g.chunk[:0]
	g.chunks++
	return err
}

// Commit makes the generation the one that is loaded and appended to. Call it
// once every shard that the server offers is in. It also settles a safety file
// that could not be read: what the full state holds is all there is to know.
// After an error the generation before stays in use.
func (g *Generation) Commit() error {
	s := g.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.file == nil {
		return os.ErrClosed
	}
	final := filepath.Join(s.dir, fileName(g.number, 0))
	err := g.spill()
	if len(g.tracker.open) > 0 {
		err = errors.Join(err, errUnfinished)
	}
	if err == nil {
		err = g.file.Finish()
		if err == nil {
			err = disk.Error(errors.Join(os.Rename(g.path, final), disk.SyncDir(s.dir)))
		}
	}
	if err != nil {
		g.abort()
		return err
	}
	if s.delta != nil {
		_ = s.delta.Abandon() // the generation it belongs to is no longer the newest
		s.delta = nil
	}
	keeps := g.keeps()
	s.generation, s.highest = g.number, g.number
	s.tracker, s.orgs, s.failing, s.next = g.tracker, g.orgs, nil, nil
	s.parts, s.nextPart, s.snapBytes, s.deltaBytes = []part{{0, g.chunks}}, 1, g.file.Size(), 0
	g.file = nil
	if err := s.removeOld(keeps); err != nil {
		s.cfg.Logger.Warn("an old generation could not be removed", "error", err)
	}
	if err := s.safety.Settle(s.generation, s.tracker.position, g.stale()); err != nil {
		s.cfg.Logger.Error("the file of revocations cannot be written; it is kept in memory and tried again", "error", err)
	}
	if keeps == 1 {
		if err := s.removeBad(); err != nil {
			s.cfg.Logger.Warn("a damaged file could not be removed", "error", err)
		}
	}
	return nil
}

// abort marks the present generation as lacking frames: those that went to the
// one given up.
func (g *Generation) abort() {
	if g.file == nil {
		return
	}
	if g.used {
		g.s.fail(errUnfinished)
	}
	_ = g.file.Abandon()  // it is removed
	_ = os.Remove(g.path) // Open removes it otherwise
	g.file, g.s.next = nil, nil
}

// Cursor reads the current generation from its beginning, in pieces: while one
// goroutine appends, another catches up.
type Cursor struct {
	s          *Store
	generation uint64
	at         int // index in parts
	chunks     int // read of that part
	rd         *reader
}

// Cursor returns a cursor at the beginning of the current generation.
func (s *Store) Cursor() *Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Cursor{s: s, generation: s.generation}
}

// Replay emits what was written since the last call, in chunks whose frames are
// only valid during the call. It reports false if a newer generation took over
// in between: start again with a new cursor.
func (c *Cursor) Replay(emit func(frames [][]byte) error) (current bool, err error) {
	for {
		c.s.mu.Lock()
		if c.generation != c.s.generation {
			c.s.mu.Unlock()
			return false, nil
		}
		if c.at >= len(c.s.parts) {
			c.s.mu.Unlock()
			return true, nil
		}
		p := c.s.parts[c.at]
		last := c.at == len(c.s.parts)-1
		c.s.mu.Unlock()
		if err := c.part(p, emit); err != nil {
			return true, err
		}
		if last {
			return true, nil
		}
		c.Close()
		c.at, c.chunks = c.at+1, 0
	}
}

func (c *Cursor) part(p part, emit func(frames [][]byte) error) error {
	if c.rd == nil && c.chunks < p.chunks {
		rd, err := c.s.open(c.generation, p.number)
		if err != nil {
			return err
		}
		c.rd = rd
	}
	for ; c.chunks < p.chunks; c.chunks++ {
		_, frames, err := c.rd.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := emit(frames); err != nil {
			return err
		}
	}
	return nil
}

// Past calls each for every frame on disk, from the oldest generation to the
// one in use: what is newer cannot be read, or must not be. What cannot be read is left out, and is the error in the end.
func (s *Store) Past(each func(*feed.Frame) error) error {
	s.mu.Lock()
	files, err := s.list()
	current, parts := s.generation, slices.Clone(s.parts)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for _, generation := range numbers(files) {
		if generation > current {
			break
		}
		chunks := make(map[int]int, len(parts)) // of the files that are written to
		for _, p := range parts {
			chunks[p.number] = p.chunks
		}
		for _, number := range files[generation] {
			most, known := chunks[number]
			if generation != current || !known {
				most = math.MaxInt
			}
			err = errors.Join(err, s.file(generation, number, most, each))
		}
	}
	return err
}

// file calls each for the frames of a file, as far as its most chunks.
func (s *Store) file(generation uint64, number, most int, each func(*feed.Frame) error) error {
	rd, err := s.open(generation, number)
	if err != nil {
		return err
	}
	defer rd.close()
	for range most {
		_, frames, err := rd.next()
		if errors.Is(err, io.EOF) || errors.Is(err, seal.ErrTruncated) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, raw := range frames {
			f, err := feed.DecodeFrame(raw)
			if err == nil {
				err = each(f)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// Close ends the cursor.
func (c *Cursor) Close() {
	if c.rd != nil {
		c.rd.close()
		c.rd = nil
	}
}
