package receipts

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"ringmain/dataplane/receipt/proof"
)

// place is a segment in which something may be.
type place struct {
	*segment
	open          bool     // it is being written: what follows was found in memory
	keys, offsets []uint32 // of its key frames; of batches
}

// places are the segments, newest first, that admit what arrived then, or all.
func (s *Store) places(admitted func(*fence) bool, want uint32) (all []place) {
	s.segs.RLock()
	defer s.segs.RUnlock()
	if g := s.current; g != nil && admitted(&g.fence) {
		p := place{segment: &g.segment, open: true, keys: slices.Clone(g.keys)}
		for _, e := range g.entries {
			if e.finger == want && !slices.Contains(p.offsets, e.offset) {
				p.offsets = append(p.offsets, e.offset)
			}
		}
		all = append(all, p)
	}
	for _, g := range slices.Backward(s.old) {
		if admitted(&g.fence) {
			all = append(all, place{segment: g})
		}
	}
	return all
}

// look fills in where in a segment that was ended a request may be: two reads
// of its index, or one of all the segment if the index is no good.
func (s *Store) look(p *place, want uint32) error {
	try := func() error {
		x, err := s.openIndex(p.number)
		if err != nil {
			return err
		}
		defer x.done()
		p.keys = x.keys
		p.offsets, err = x.find(want)
		return err
	}
	if p.open || try() == nil {
		return nil
	}
	s.files.Lock()
	defer s.files.Unlock()
	cause := try()
	if cause == nil {
		return nil // it was on its way, or somebody else made it
	}
	c, err := s.scan(p.number)
	if err != nil {
		return err
	}
	if !p.warned {
		s.cfg.Logger.Warn("the index of receipts could not be read, and is made again", "segment", s.path(p.number, batchSuffix), "error", cause)
	}
	s.keepIndex(p.segment, c)
	p.keys, p.offsets = c.keys, nil
	for _, e := range c.entries {
		if e.finger == want {
			p.offsets = append(p.offsets, e.offset)
		}
	}
	return nil
}

// Find returns the entry of a request, to be given to the worker; nil if there
// is none. Only segments are looked into that hold requests which arrived
// before and after it, as the ids say.
func (s *Store) Find(requestID string) ([]byte, error) {
	arrived, ok := proof.Arrived(requestID)
	if !ok {
		return nil, nil
	}
	// What waits moves to a segment before it is left out here.
	s.mu.Lock()
	waiting := slices.Clone(s.pending)
	s.mu.Unlock()
	for _, p := range waiting {
		if entry := p.batch.Find(requestID); entry != nil {
			return entry.Encode()
		}
	}
	want := finger(proof.RequestKey(requestID))
	var damage error
	for _, p := range s.places(func(f *fence) bool { return f.admits(arrived.UnixMilli()) }, want) {
		entry, err := s.entry(&p, want, requestID)
		if entry != nil {
			return entry, nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it was removed meanwhile
			s.found.Add(1)
			damage = fmt.Errorf("receipts: segment %s: %w", s.path(p.number, batchSuffix), err)
		}
	}
	return nil, damage
}

// entry looks for a request in one segment.
func (s *Store) entry(p *place, want uint32, requestID string) (entry []byte, err error) {
	if err := s.look(p, want); err != nil || len(p.offsets) == 0 {
		return nil, err
	}
	x, err := s.open(s.path(p.number, batchSuffix))
	if err != nil {
		return nil, err
	}
	defer x.done()
	for _, offset := range slices.Backward(p.offsets) {
		found, failed := x.entry(p.keys, offset, requestID)
		if found != nil {
			return found, nil
		}
		if failed != nil {
			err = fmt.Errorf("batch at %d: %w", offset, failed)
		}
	}
	return nil, err
}

// entry reads one batch and looks the request up in it.
func (x *file) entry(keys []uint32, offset uint32, requestID string) ([]byte, error) {
	bare, err := x.frame(int64(offset), kindBatch)
	if err != nil {
		return nil, err
	}
	batch, err := proof.ParseBatch(bare)
	if err != nil {
		return nil, err //nolint:wrapcheck // Find wraps
	}
	at, ok := keyOf(keys, offset)
	if !ok {
		return nil, errors.New("no delegation stands before it")
	}
	key, err := x.frame(int64(at), kindKey)
	if err != nil {
		return nil, err
	}
	batch.Delegation = string(key)
	entry := batch.Find(requestID)
	if entry == nil {
		return nil, nil
	}
	return entry.Encode() //nolint:wrapcheck // says what failed
}

// maxDelegations bounds what Delegations lists.
const maxDelegations = 256

// Delegations are those by which the batches kept were signed, the newest
// segment's first. One that cannot be read is left out: Find says so of its batches.
func (s *Store) Delegations() (all []string) {
	for _, p := range s.places(func(f *fence) bool { return f.batches > 0 }, 0) {
		if len(all) == maxDelegations {
			break
		}
		all = append(all, s.delegations(&p, all)...)
	}
	return all[:min(len(all), maxDelegations)]
}

// delegations are those of one segment that are not known yet.
func (s *Store) delegations(p *place, known []string) (more []string) {
	if s.look(p, 0) != nil {
		return nil
	}
	x, err := s.open(s.path(p.number, batchSuffix))
	if err != nil {
		return nil
	}
	defer x.done()
	for _, at := range slices.Backward(p.keys) {
		key, err := x.frame(int64(at), kindKey)
		if text := string(key); err == nil && !slices.Contains(known, text) && !slices.Contains(more, text) {
			more = append(more, text)
		}
	}
	return more
}
