package lkg

import (
	"bytes"
	"cmp"
	"errors"
	"hash/maphash"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/keeper/lkg/safety"
)

// erases reports an entry after which an org's records must not be here any
// more: the last of an org that left for another jurisdiction, which deletes
// the relocation beside it.
func erases(e *registry.Entry) bool {
	return e != nil && slices.ContainsFunc(e.Changes, func(c registry.Change) bool {
		return c.Op == registry.OpDelete && c.Kind == registry.KindRelocation
	})
}

// erased notes that a new generation is due, before which nothing may stay.
func (s *Store) erased() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erasures++
}

// orgs is which orgs the frames seen leave, by shard and as hashes. A node that
// was away gets a snapshot in the place of the entries that it missed: what is
// not in that was erased, for all it knows.
type orgs map[controlplane.Shard]map[uint64]bool // true = in the snapshot that is under way

var orgSeed = maphash.MakeSeed()

// orgStart is how each org's record begins in the deterministic encoding, in
// which only the rarest record of another kind has these bytes.
var orgStart = []byte{0xa3, 1, byte(registry.KindOrg), 2, 0xa5, 1}

// see takes a frame, whose entry is e if it is one, and reports whether an org
// is gone without an entry that says so.
func (o orgs) see(f *feed.Frame, e *registry.Entry) (gone bool) {
	held := o[f.Shard]
	if held == nil {
		held = make(map[uint64]bool)
		o[f.Shard] = held
	}
	switch f.Type {
	case feed.FrameReset:
		for org := range held {
			held[org] = false
		}
	case feed.FrameRecord:
		if !bytes.Contains(f.Record, orgStart) {
			return false
		}
		if rec, err := registry.DecodeRecord(f.Record); err == nil && rec.Kind == registry.KindOrg {
			held[maphash.String(orgSeed, rec.Meta.ID)] = true
		}
	case feed.FrameEnd:
		for org, stays := range held {
			if !stays {
				delete(held, org)
				gone = true
			}
		}
	case feed.FrameEntry:
		for i := range e.Changes {
			switch c := &e.Changes[i]; {
			case c.Op == registry.OpPut && c.Record != nil && c.Record.Kind == registry.KindOrg:
				held[maphash.String(orgSeed, c.Record.Meta.ID)] = true
			case c.Op == registry.OpDelete && c.Kind == registry.KindOrg:
				delete(held, maphash.String(orgSeed, c.ID))
			}
		}
	default:
	}
	return gone
}

// within reports whether all of them are among those of all.
func (o orgs) within(all orgs) bool {
	for shard, held := range o {
		for org := range held {
			if _, stays := all[shard][org]; !stays {
				return false
			}
		}
	}
	return true
}

// keeps is how many generations stay once g is in place: g alone, if what was
// erased is not in it.
func (g *Generation) keeps() int {
	if g.alone && g.erasures == g.s.erasures || !g.s.orgs.within(g.orgs) {
		g.s.erasures -= g.erasures
		return 1
	}
	return keep
}

// removeBad removes what was set aside as damaged: it holds what was erased, too.
func (s *Store) removeBad() error {
	bad, err := filepath.Glob(filepath.Join(s.dir, "*.bad"))
	for _, path := range append(bad, filepath.Join(s.cfg.Dir, safetyName+".bad")) {
		if gone := os.Remove(path); !errors.Is(gone, os.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}

// spentAfter is how long after a revoked key's end its revocation is kept though
// the full state has it no more: the control plane forgets it a day after.
const spentAfter = 48 * time.Hour

// stale tells what need not stay in the safety file once g is in place: what the
// full state does not say any more, and no generation is older than. Everything
// is kept if what there is on disk cannot be read. It notes in an entry that it
// is to be asked of again.
func (g *Generation) stale() func(*safety.Entry) bool {
	floor := sync.OnceValues(g.s.floor) // reads a file
	oldest := g.s.oldest()
	ended := time.Now().Add(-spentAfter).UnixMilli()
	return func(e *safety.Entry) bool {
		if _, holds := g.holds[e.Key()]; holds {
			e.Spent = 0
			return false
		}
		if v := e.Revocation; v != nil {
			if v.Kind != registry.KindKey || v.Expires == 0 || v.Expires > ended {
				return false
			}
			// In a generation before this one the key may have had a later end.
			e.Spent = cmp.Or(e.Spent, g.number)
			return oldest >= e.Spent
		}
		rec, err := registry.DecodeRecord(e.Pin)
		if e.Pin == nil || err != nil {
			return false
		}
		position, err := floor()
		if err != nil {
			return false
		}
		then, was := position[rec.Meta.Shard]
		now, is := g.tracker.position[rec.Meta.Shard]
		if !is { // the region no longer holds the shard
			return !was || rec.Meta.Revision <= then.Seq
		}
		return rec.Meta.Revision <= min(then.Seq, now.Seq) // who sent g may be behind
	}
}

// oldest is the oldest generation on disk; 0 if that is not known.
func (s *Store) oldest() uint64 {
	files, err := s.list()
	if err != nil {
		return 0
	}
	return append(numbers(files), s.generation)[0]
}

// floor is how far the oldest snapshot on disk is: no state that this node can
// come back to is before it.
func (s *Store) floor() (controlplane.Position, error) {
	oldest := s.oldest()
	if oldest == s.generation {
		return s.tracker.Position(), nil
	}
	t := NewTracker(nil)
	_, err := s.verify(oldest, 0, t, orgs{})
	return t.position, err
}
