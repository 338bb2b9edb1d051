package receipts

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/receipt/proof"
)

// A segment is the header of a seal.Box and then frames, each
//
//	u32 length of the sealed bytes (big endian) | kind u8 | sealed bytes
//
// whose additional data bind kind and offset in the file, so that no frame can
// be moved. A key frame holds the delegation of the batches after it. A batch
// has an index frame (at u64 milliseconds | offset of its key frame u64 |
// finger u32 of each receipt, ascending) and a batch frame. Start-up reads the
// index frames alone.
const (
	kindKey   = 1
	kindIndex = 2
	kindBatch = 3

	frameHead  = 5
	indexFixed = 16
)

// maxFrame bounds a frame, in bytes: far more than a worker sends.
const maxFrame = 16 << 20

type segment struct {
	path    string
	box     *seal.Box // nil = the header is damaged
	size    int64
	first   time.Time
	last    time.Time // of the newest batch
	batches []stored
	fingers []uint32
	keys    []string // delegations of its key frames

	// Of the segment being written.
	f          *os.File
	delegation string
	keyAt      int64
	dirty      bool
}

// stored says where a batch is.
type stored struct {
	at      int64 // Unix milliseconds
	offset  int64 // of its frame; from 0 to the frame's end it was synced
	key     int64 // offset of its key frame
	fingers int   // of g.fingers: where its own end
}

// finger is what the index keeps of a request: half of its key.
func finger(key uint64) uint32 { return uint32(key >> 32) }

func sealContext(name, segment string) string { return "receipts/" + name + "/" + segment }

const suffix = ".rcp"

// segments are all, oldest first. The caller holds index.
func (s *Store) segments() []*segment {
	if s.current == nil {
		return s.old
	}
	return append(slices.Clip(s.old), s.current)
}

// load reads the index of every segment.
func (s *Store) load() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err //nolint:wrapcheck // Open wraps
	}
	for _, e := range entries {
		number, err := strconv.ParseInt(strings.TrimSuffix(e.Name(), suffix), 10, 64)
		if err != nil || !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		g, damage, err := s.read(e.Name())
		if err != nil {
			return fmt.Errorf("segment %s: %w", filepath.Join(s.dir, e.Name()), err)
		}
		if damage > 0 {
			s.damaged += damage
			s.cfg.Logger.Error("receipts on disk are damaged; the others can be fetched", "segment", g.path, "damaged", damage)
		}
		s.old = append(s.old, g)
		s.lastSeg = max(s.lastSeg, number)
	}
	slices.SortFunc(s.old, func(a, b *segment) int { return cmp.Compare(a.path, b.path) })
	s.retire(0)
	return nil
}

// read indexes one segment. What is torn at its end was never acknowledged, so
// only frames that are whole and do not open count as damage.
func (s *Store) read(name string) (*segment, int, error) {
	g := &segment{path: filepath.Join(s.dir, name)}
	f, err := os.Open(g.path)
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // load wraps
	}
	defer func() { _ = f.Close() }() // opened for reading
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err //nolint:wrapcheck // load wraps
	}
	g.size, g.last = info.Size(), info.ModTime()
	head := make([]byte, min(g.size, 64<<10))
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, 0, err //nolint:wrapcheck // load wraps
	}
	box, rest, err := s.cfg.Sealer.OpenBox(head, sealContext(s.cfg.Name, name))
	switch {
	case errors.Is(err, seal.ErrTruncated):
		return g, 0, nil // it died right after it was made
	case errors.Is(err, seal.ErrTampered), errors.Is(err, seal.ErrNotSealed):
		return g, 1, nil
	case err != nil:
		return nil, 0, err //nolint:wrapcheck // another key or version: load wraps
	}
	g.box = box
	return g, g.scan(f, int64(len(head)-len(rest))), nil
}

// scan reads the index frames from offset on, and returns how many batches or
// ends of segments it could not read.
func (g *segment) scan(f *os.File, offset int64) (damage int) {
	var head [frameHead]byte
	var index []byte // of the batch whose frame is next; nil = none
	var n int64
	for ; ; offset += frameHead + n {
		if _, err := f.ReadAt(head[:], offset); err != nil {
			return damage // the end, or a torn one
		}
		n = int64(binary.BigEndian.Uint32(head[:]))
		kind := head[4]
		switch {
		case n == 0 && kind == 0:
			return damage // zeros of a file that had grown
		case n < seal.BoxOverhead || n > maxFrame || kind < kindKey || kind > kindBatch:
			return damage + 1
		case offset+frameHead+n > g.size:
			return damage
		case kind == kindBatch && index != nil:
			g.add(index, offset)
		}
		wasIndex := index != nil
		index = nil
		switch kind {
		case kindIndex:
			var err error
			if index, err = g.open(f, offset, kindIndex); err != nil || len(index) < indexFixed {
				index = nil
				damage++
			}
		case kindKey:
			if wasIndex {
				damage++ // where its batch should be
			}
			key, err := g.open(f, offset, kindKey)
			if err != nil {
				damage++
				break
			}
			g.keys = append(g.keys, string(key))
		}
	}
}

// add notes the batch at offset.
func (g *segment) add(index []byte, offset int64) {
	b := stored{at: int64(binary.BigEndian.Uint64(index)), key: int64(binary.BigEndian.Uint64(index[8:])), offset: offset}
	for p := index[indexFixed:]; len(p) >= 4; p = p[4:] {
		g.fingers = append(g.fingers, binary.BigEndian.Uint32(p))
	}
	b.fingers = len(g.fingers)
	at := time.UnixMilli(b.at)
	if len(g.batches) == 0 {
		g.first = at
	}
	if len(g.batches) == 0 || at.After(g.last) {
		g.last = at
	}
	g.batches = append(g.batches, b)
}

// open reads and opens the frame at offset.
func (g *segment) open(f io.ReaderAt, offset int64, kind byte) ([]byte, error) {
	var head [frameHead]byte
	if _, err := f.ReadAt(head[:], offset); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame || head[4] != kind {
		return nil, seal.ErrTampered
	}
	sealed := make([]byte, n)
	if _, err := f.ReadAt(sealed, offset+frameHead); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	plain, err := g.box.Open(nil, sealed, bound(kind, offset))
	if err != nil {
		return nil, err //nolint:wrapcheck // names what happened
	}
	return plain, nil
}

func bound(kind byte, offset int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, uint64(offset))
}

// frame appends a sealed frame to b, which will be written at offset.
func (g *segment) frame(b []byte, offset int64, kind byte, plain []byte) []byte {
	at := offset + int64(len(b))
	b = binary.BigEndian.AppendUint32(b, uint32(len(plain)+seal.BoxOverhead))
	return g.box.Seal(append(b, kind), plain, bound(kind, at))
}

// append writes one batch, without syncing it.
func (s *Store) append(b *proof.Batch) error {
	bare, err := b.Bare()
	if err != nil {
		return err
	}
	s.retire(int64(len(bare)))
	if g := s.current; g != nil && (g.size+int64(len(bare)) > s.cfg.Segment || !g.first.IsZero() && b.At.Sub(g.first).Abs() > s.cfg.Span) {
		if err := s.sync(); err != nil {
			return err
		}
		s.abandon()
	}
	if s.current == nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	g := s.current
	var out []byte
	keyAt := g.keyAt
	if b.Delegation != g.delegation {
		keyAt = g.size
		out = g.frame(out, g.size, kindKey, []byte(b.Delegation))
	}
	index := binary.BigEndian.AppendUint64(nil, uint64(b.At.UnixMilli()))
	index = binary.BigEndian.AppendUint64(index, uint64(keyAt))
	b.Requests(func(key uint64) { index = binary.BigEndian.AppendUint32(index, finger(key)) })
	out = g.frame(out, g.size, kindIndex, index)
	offset := g.size + int64(len(out))
	out = g.frame(out, g.size, kindBatch, bare)
	if _, err := g.f.Write(out); err != nil {
		return errors.Join(err, g.f.Truncate(g.size)) // others need the room
	}
	s.index.Lock()
	defer s.index.Unlock()
	g.size += int64(len(out))
	if keyAt != g.keyAt {
		g.keys = append(g.keys, b.Delegation)
	}
	g.delegation, g.keyAt, g.dirty = b.Delegation, keyAt, true
	g.add(index, offset)
	return nil
}

// begin makes a new segment. No segment of a former run is appended to: its
// end may be torn.
func (s *Store) begin() error {
	s.lastSeg = max(s.lastSeg+1, s.cfg.Now().UnixNano())
	name := fmt.Sprintf("%019d%s", s.lastSeg, suffix)
	box, header, err := s.cfg.Sealer.NewBox(sealContext(s.cfg.Name, name))
	if err != nil {
		return err //nolint:wrapcheck // says what failed
	}
	g := &segment{path: filepath.Join(s.dir, name), box: box, size: int64(len(header))}
	if g.f, err = os.OpenFile(g.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return err //nolint:wrapcheck // drain wraps
	}
	if _, err = g.f.Write(header); err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return errors.Join(err, g.f.Close(), os.Remove(g.path))
	}
	s.index.Lock()
	defer s.index.Unlock()
	s.current = g
	return nil
}

func (s *Store) sync() error {
	g := s.current
	if g == nil || !g.dirty {
		return nil
	}
	g.dirty = false
	return g.f.Sync() //nolint:wrapcheck // drain wraps
}

// abandon ends the current segment; its batches stay to be found.
func (s *Store) abandon() {
	s.index.Lock()
	defer s.index.Unlock()
	g := s.current
	if g == nil {
		return
	}
	s.current = nil
	_ = g.f.Close() // synced, or written again elsewhere
	g.f = nil
	if len(g.batches) == 0 && os.Remove(g.path) == nil {
		return
	}
	s.old = append(s.old, g)
}

// retire removes segments that are too old, and the oldest while n more bytes
// would not fit.
func (s *Store) retire(n int64) {
	s.index.Lock()
	defer s.index.Unlock()
	total := n
	for _, g := range s.segments() {
		total += g.size
	}
	limit := s.cfg.Now().Add(-s.cfg.Age)
	stuck := false
	// Each by its own age: one that was written while the clock was ahead must
	// not keep those after it.
	s.old = slices.DeleteFunc(s.old, func(g *segment) bool {
		if stuck || total <= s.cfg.Total && !g.last.Before(limit) {
			return false
		}
		if err := os.Remove(g.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			s.cfg.Logger.Error("old receipts cannot be removed", "segment", g.path, "error", err)
			stuck = true
			return false
		}
		total -= g.size
		return true
	})
}

// maxDelegations bounds what Delegations lists.
const maxDelegations = 256

// Delegations are those by which the batches kept were signed, the newest
// segment's first.
func (s *Store) Delegations() (all []string) {
	s.index.RLock()
	defer s.index.RUnlock()
	for _, g := range slices.Backward(s.segments()) {
		for _, k := range slices.Backward(g.keys) {
			if len(all) < maxDelegations && !slices.Contains(all, k) {
				all = append(all, k)
			}
		}
	}
	return all
}

// clockSkew is how much later than its id says a request may have arrived, by
// the clock that dates batches.
const clockSkew = 5 * time.Minute

// Find returns the entry of a request, to be given to the worker; nil if there
// is none. No batch is searched that was signed before the request arrived, as
// its id says.
func (s *Store) Find(requestID string) ([]byte, error) {
	arrived, ok := proof.Arrived(requestID)
	if !ok {
		return nil, nil
	}
	want, since := finger(proof.RequestKey(requestID)), arrived.Add(-clockSkew).UnixMilli()
	s.index.RLock()
	defer s.index.RUnlock()
	var damage error
	for _, g := range slices.Backward(s.segments()) {
		if g.last.UnixMilli() < since {
			continue
		}
		for i, b := range slices.Backward(g.batches) {
			from := 0
			if i > 0 {
				from = g.batches[i-1].fingers
			}
			if b.at < since {
				continue
			}
			if _, ok := slices.BinarySearch(g.fingers[from:b.fingers], want); !ok {
				continue
			}
			entry, err := g.entry(b, requestID)
			if entry != nil {
				return entry, nil
			}
			if err != nil {
				s.found.Add(1)
				damage = fmt.Errorf("receipts: segment %s: batch at %d: %w", g.path, b.offset, err)
			}
		}
	}
	return nil, damage
}

// entry reads one batch and looks the request up in it.
func (g *segment) entry(b stored, requestID string) ([]byte, error) {
	f, err := os.Open(g.path)
	if err != nil {
		return nil, err //nolint:wrapcheck // Find wraps
	}
	defer func() { _ = f.Close() }() // opened for reading
	bare, err := g.open(f, b.offset, kindBatch)
	if err != nil {
		return nil, err
	}
	key, err := g.open(f, b.key, kindKey)
	if err != nil {
		return nil, err
	}
	batch, err := proof.ParseBatch(bare)
	if err != nil {
		return nil, err //nolint:wrapcheck // Find wraps
	}
	batch.Delegation = string(key)
	entry := batch.Find(requestID)
	if entry == nil {
		return nil, nil
	}
	return entry.Encode() //nolint:wrapcheck // says what failed
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err //nolint:wrapcheck // the callers wrap
	}
	return errors.Join(d.Sync(), d.Close())
}
