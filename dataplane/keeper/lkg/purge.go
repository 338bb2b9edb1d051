package lkg

import (
	"slices"

	"ringmain/controlplane/registry"
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

// keeps is how many generations stay once g is in place: g alone, if what was
// erased is not in it.
func (g *Generation) keeps() int {
	if g.alone && g.erasures == g.s.erasures {
		g.s.erasures = 0
		return 1
	}
	return keep
}

// forget leaves out of the safety file what only records said that are deleted:
// no key of theirs is left to be confined. The caller holds mu.
func (s *safety) forget(e *registry.Entry) {
	if e == nil {
		return
	}
	for _, c := range e.Changes {
		if c.Op == registry.OpDelete && s.pins[c.ID] != 0 {
			delete(s.pins, c.ID)
			s.forgotten[c.ID] = true
		}
	}
}

// purge writes the file anew without what was forgotten. The caller holds mu.
func (s *safety) purge() error {
	if len(s.forgotten) == 0 || s.file == nil {
		return nil
	}
	entries, err := s.stored()
	if err != nil {
		return err
	}
	s.waiting = slices.DeleteFunc(compact(append(entries, s.waiting...)), func(e SafetyEntry) bool {
		if e.Pin == nil {
			return false
		}
		rec, err := registry.DecodeRecord(e.Pin)
		return err == nil && s.forgotten[rec.Meta.ID] && s.pins[rec.Meta.ID] == 0
	})
	clear(s.forgotten)
	_ = s.file.f.Close() // it is replaced
	s.file, s.written = nil, 0
	return s.rewrite()
}
