package receipts

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// load looks at every segment, and makes the indexes that are missing, torn, or
// of a file that has changed since: a process that was killed left one.
func (s *Store) load() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err //nolint:wrapcheck // Open wraps
	}
	indexes := map[string]bool{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), batchSuffix)
		number, err := strconv.ParseInt(name, 10, 64)
		if !ok || err != nil {
			continue
		}
		g, err := s.meet(number)
		if err != nil {
			return fmt.Errorf("segment %s: %w", filepath.Join(s.dir, e.Name()), err)
		}
		s.old = append(s.old, g)
		s.lastSeg = max(s.lastSeg, number)
		indexes[name+indexSuffix] = true
	}
	for _, e := range entries { // whose segments are gone, and drafts
		if name := e.Name(); strings.Contains(name, indexSuffix) && !indexes[name] {
			_ = os.Remove(filepath.Join(s.dir, name)) // a few bytes that nobody counts
		}
	}
	slices.SortFunc(s.old, func(a, b *segment) int { return cmp.Compare(a.number, b.number) })
	s.retire(0)
	return nil
}

// meet looks at one segment.
func (s *Store) meet(number int64) (*segment, error) {
	path := s.path(number, batchSuffix)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // load wraps
	}
	g := &segment{number: number, changed: info.ModTime()}
	if x, err := s.openIndex(number); err == nil {
		defer x.done()
		if x.bytes == info.Size() {
			g.fence, g.index = x.fence, x.size
		}
	}
	if g.index == 0 {
		c, err := s.scan(number)
		if err != nil {
			return nil, err
		}
		g.fence = c.fence
		s.files.Lock()
		s.keepIndex(g, c)
		s.files.Unlock()
	}
	if g.damaged > 0 {
		s.damaged += g.damaged
		s.cfg.Logger.Error("receipts on disk are damaged; the others can be fetched", "segment", path, "damaged", g.damaged)
	}
	return g, nil
}

// retire removes segments that are too old, and the oldest while n more bytes
// would not fit.
func (s *Store) retire(n int64) {
	s.files.Lock()
	defer s.files.Unlock()
	s.segs.Lock()
	defer s.segs.Unlock()
	total := n
	for _, g := range s.old {
		total += g.bytes + g.index
	}
	if s.current != nil {
		total += s.current.footprint()
	}
	limit := s.cfg.Now().Add(-s.cfg.Age)
	stuck := false
	// Each by its own age: one that was written while the clock was ahead must
	// not keep those after it.
	s.old = slices.DeleteFunc(s.old, func(g *segment) bool {
		if stuck || total <= s.cfg.Total && !g.newest().Before(limit) {
			return false
		}
		if err := s.remove(g.number); err != nil {
			s.cfg.Logger.Error("old receipts cannot be removed", "segment", s.path(g.number, batchSuffix), "error", err)
			stuck = true
			return false
		}
		total -= g.bytes + g.index
		return true
	})
}

// remove removes a segment and its index: receipts first, since an index alone
// is removed at the next start.
func (s *Store) remove(number int64) (err error) {
	for _, suffix := range [...]string{batchSuffix, indexSuffix} {
		if failed := os.Remove(s.path(number, suffix)); failed != nil && !errors.Is(failed, os.ErrNotExist) {
			err = errors.Join(err, failed)
		}
	}
	return err
}
