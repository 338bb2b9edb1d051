package receipts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"ringmain/controlplane/seal"
	"ringmain/dataplane/keeper/disk"
	"ringmain/dataplane/receipt/proof"
)

// A segment's file is the header of a seal.Box and then frames, each
//
//	u32 length of the sealed bytes (big endian) | kind u8 | sealed bytes
//
// whose additional data bind kind and offset in the file, so that no frame can
// be moved. A key frame holds the delegation of the batches after it.
//
// The file of its index is the header of another box, the length of the sealed
// outline as u32, the sealed outline and the sealed pages, bound to their
// numbers. It is not synced: what a crash tears is made again.
const (
	kindKey     = 1
	kindSkipped = 2 // former versions put an index before each batch
	kindBatch   = 3
	kindOutline = 4
	kindPage    = 5

	frameHead = 5
	pageStep  = pageSize + seal.BoxOverhead
)

// maxFrame bounds a frame, in bytes: far more than a worker sends.
const maxFrame = 16 << 20

// headRead is how much of a file is read first: its header, and an outline.
const headRead = 8 << 10

const (
	batchSuffix = ".rcp"
	indexSuffix = ".idx"
)

// segment is one that was ended.
type segment struct {
	fence
	number  int64 // names its files
	index   int64 // bytes of its index's file; 0 = there is none
	changed time.Time
	warned  bool // its index cannot be kept
}

// newest is when the last of it was signed.
func (g *segment) newest() time.Time {
	if g.batches == 0 {
		return g.changed
	}
	return time.UnixMilli(g.signed)
}

// writing is the segment that is being written, with all that its index will hold.
type writing struct {
	segment
	f          *os.File
	box        *seal.Box
	header     int64
	begun      time.Time // when its first batch was signed
	delegation string    // of its last key frame
	keys       []uint32
	entries    []entry
	dirty      bool
}

// footprint is how many bytes it will take on disk, with its index.
func (g *writing) footprint() int64 {
	return g.bytes + g.header + outlineFixed + 4 + seal.BoxOverhead + int64(4*len(g.keys)+indexed(len(g.entries)))
}

// indexed is how many bytes of an index n receipts take.
func indexed(n int) int {
	pages := (n + pageEntries - 1) / pageEntries
	return entrySize*n + pages*(4+seal.BoxOverhead)
}

func (s *Store) path(number int64, suffix string) string {
	return filepath.Join(s.dir, fmt.Sprintf("%019d%s", number, suffix))
}

// context is what the seal of a file is bound to.
func (s *Store) context(path string) string {
	return "receipts/" + s.cfg.Name + "/" + filepath.Base(path)
}

// file is one that was opened to be read.
type file struct {
	*os.File
	box  *seal.Box
	size int64
	head []byte // what was read of it so far, after the header
	at   int64  // where that begins
}

// open opens a file and the box that its header makes.
func (s *Store) open(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // the callers wrap
	}
	x := &file{File: f}
	if err := s.unseal(x, path); err != nil {
		x.done()
		return nil, err
	}
	return x, nil
}

func (s *Store) unseal(x *file, path string) error {
	info, err := x.Stat()
	if err != nil {
		return err //nolint:wrapcheck // the callers wrap
	}
	x.size = info.Size()
	head := make([]byte, min(x.size, headRead))
	if _, err := io.ReadFull(x, head); err != nil {
		return err //nolint:wrapcheck // the callers wrap
	}
	x.box, x.head, err = s.cfg.Sealer.OpenBox(head, s.context(path))
	x.at = int64(len(head) - len(x.head))
	return err //nolint:wrapcheck // names what happened
}

// done closes a file that was only read.
func (x *file) done() { _ = x.Close() }

// take reads and opens n sealed bytes at offset.
func (x *file) take(offset, n int64, kind byte, place int64) ([]byte, error) {
	if n < seal.BoxOverhead || n > maxFrame || offset+n > x.size {
		return nil, seal.ErrTruncated
	}
	var sealed []byte
	if from := offset - x.at; from >= 0 && from+n <= int64(len(x.head)) {
		sealed = x.head[from : from+n]
	} else {
		sealed = make([]byte, n)
		if _, err := x.ReadAt(sealed, offset); err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
	}
	return x.box.Open(nil, sealed, bound(kind, place)) //nolint:wrapcheck // names what happened
}

// frame reads and opens the frame at offset.
func (x *file) frame(offset int64, kind byte) ([]byte, error) {
	var head [frameHead]byte
	if _, err := x.ReadAt(head[:], offset); err != nil {
		return nil, fmt.Errorf("read frame: %w", err)
	}
	if head[4] != kind {
		return nil, seal.ErrTampered
	}
	return x.take(offset+frameHead, int64(binary.BigEndian.Uint32(head[:])), kind, offset)
}

func bound(kind byte, place int64) []byte {
	return binary.BigEndian.AppendUint64([]byte{kind}, uint64(place))
}

// contents are what a segment's file was found to hold.
type contents struct {
	fence
	keys    []uint32
	entries []entry
}

// scan reads a segment's file. What is torn at its end was never acknowledged,
// so only frames that are whole and do not open count as damage.
func (s *Store) scan(number int64) (*contents, error) {
	c := new(contents)
	path := s.path(number, batchSuffix)
	x, err := s.open(path)
	switch {
	case errors.Is(err, seal.ErrTruncated): // it died right after it was made
	case errors.Is(err, seal.ErrTampered), errors.Is(err, seal.ErrNotSealed):
		c.damaged = 1
	case err != nil:
		return nil, err
	default:
		defer x.done()
		c.bytes = x.size
		c.frames(x)
		return c, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err //nolint:wrapcheck // the callers wrap
	}
	c.bytes = info.Size()
	return c, nil
}

func (c *contents) frames(x *file) {
	var head [frameHead]byte
	var n int64
	for offset := x.at; ; offset += frameHead + n {
		if _, err := x.ReadAt(head[:], offset); err != nil {
			return // the end, or a torn one
		}
		n = int64(binary.BigEndian.Uint32(head[:]))
		kind := head[4]
		switch {
		case n == 0 && kind == 0:
			return // zeros of a file that had grown
		case n < seal.BoxOverhead || n > maxFrame || kind < kindKey || kind > kindBatch || offset > math.MaxUint32:
			c.damaged++
			return
		case offset+frameHead+n > x.size:
			return
		case kind == kindSkipped:
			continue
		}
		plain, err := x.take(offset+frameHead, n, kind, offset)
		if kind == kindKey {
			c.keys = append(c.keys, uint32(offset))
		} else if err == nil {
			var b *proof.Batch
			if b, err = proof.ParseBatch(plain); err == nil {
				c.entries = c.add(c.entries, b, offset)
			}
		}
		if err != nil {
			c.damaged++
		}
	}
}

// add notes the batch at offset, and appends its entries.
func (f *fence) add(entries []entry, b *proof.Batch, offset int64) []entry {
	first, last := b.Arrivals()
	if last.IsZero() {
		f.widen(b.Len(), b.At.UnixMilli(), 0, 0)
	} else {
		f.widen(b.Len(), b.At.UnixMilli(), first.UnixMilli(), last.UnixMilli())
	}
	b.Requests(func(key uint64) { entries = append(entries, entry{finger(key), uint32(offset)}) })
	return entries
}

// append writes one batch, without syncing it.
func (s *Store) append(b *proof.Batch) error {
	bare, err := b.Bare()
	if err != nil {
		return err
	}
	more := int64(len(bare) + frameHead + seal.BoxOverhead)
	s.retire(more + int64(indexed(b.Len())+len(b.Delegation)) + newSegment)
	if g := s.current; g != nil && (g.bytes+more > s.cfg.Segment || !g.begun.IsZero() && b.At.Sub(g.begun).Abs() > s.cfg.Span) {
		if err := s.sync(); err != nil {
			return err
		}
		s.end()
	}
	if s.current == nil {
		if err := s.begin(); err != nil {
			return err
		}
	}
	g := s.current
	out := s.out[:0]
	newKey := b.Delegation != g.delegation
	if newKey {
		out = g.frame(out, kindKey, []byte(b.Delegation))
	}
	offset := g.bytes + int64(len(out))
	out = g.frame(out, kindBatch, bare)
	s.out = out
	if _, err := g.f.Write(out); err != nil {
		return errors.Join(err, g.f.Truncate(g.bytes)) // others need the room
	}
	s.segs.Lock()
	defer s.segs.Unlock()
	if newKey {
		g.keys = append(g.keys, uint32(g.bytes))
		g.delegation = b.Delegation
	}
	if g.begun.IsZero() {
		g.begun = b.At
	}
	g.bytes += int64(len(out))
	g.dirty = true
	g.entries = g.add(g.entries, b, offset)
	return nil
}

// frame appends a sealed frame to out, which will be written where g ends.
func (g *writing) frame(out []byte, kind byte, plain []byte) []byte {
	at := g.bytes + int64(len(out))
	out = binary.BigEndian.AppendUint32(out, uint32(len(plain)+seal.BoxOverhead))
	return g.box.Seal(append(out, kind), plain, bound(kind, at))
}

// newSegment is more than a segment without batches takes, in bytes.
const newSegment = 1 << 10

// begin makes a new segment. No segment of a former run is appended to: its
// end may be torn.
func (s *Store) begin() error {
	s.lastSeg = max(s.lastSeg+1, s.cfg.Now().UnixNano())
	path := s.path(s.lastSeg, batchSuffix)
	box, header, err := s.cfg.Sealer.NewBox(s.context(path))
	if err != nil {
		return err //nolint:wrapcheck // says what failed
	}
	g := &writing{box: box, header: int64(len(header)), entries: s.spare[:0]}
	g.number, g.bytes = s.lastSeg, int64(len(header))
	if g.f, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600); err != nil {
		return err //nolint:wrapcheck // drain wraps
	}
	if _, err = g.f.Write(header); err == nil {
		err = disk.SyncDir(s.dir)
	}
	if err != nil {
		return errors.Join(err, g.f.Close(), os.Remove(path))
	}
	s.segs.Lock()
	defer s.segs.Unlock()
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

// end closes the current segment; its batches stay to be found. An index that
// cannot be written now is made when somebody asks.
func (s *Store) end() {
	g := s.current
	if g == nil {
		return
	}
	_ = g.f.Close() // synced, or written again elsewhere
	old := g.segment
	old.changed = s.cfg.Now()
	s.files.Lock() // who asks meanwhile waits for the index
	defer s.files.Unlock()
	removed := g.batches == 0 && os.Remove(s.path(g.number, batchSuffix)) == nil
	s.segs.Lock()
	s.current, s.spare = nil, g.entries
	if !removed {
		s.old = append(s.old, &old)
	}
	s.segs.Unlock()
	if !removed {
		s.keepIndex(&old, &contents{fence: old.fence, keys: g.keys, entries: g.entries})
	}
}

// keepIndex writes the index of a segment. The caller holds files.
func (s *Store) keepIndex(g *segment, c *contents) {
	size, err := s.writeIndex(g.number, c)
	if err != nil {
		if !g.warned {
			s.cfg.Logger.Warn("no index could be made of a segment of receipts: each question searches all of it until there is room",
				"segment", s.path(g.number, batchSuffix), "error", disk.Error(err))
		}
		g.warned = true
		return
	}
	s.segs.Lock()
	g.index = size
	s.segs.Unlock()
}

func (s *Store) writeIndex(number int64, c *contents) (size int64, err error) {
	path := s.path(number, indexSuffix)
	box, out, err := s.cfg.Sealer.NewBox(s.context(path))
	if err != nil {
		return 0, err //nolint:wrapcheck // says what failed
	}
	head, pages := encodeIndex(c.fence, c.keys, c.entries)
	out = slices.Grow(out, 4+len(head)+seal.BoxOverhead+pageStep*len(pages))
	out = binary.BigEndian.AppendUint32(out, uint32(len(head)+seal.BoxOverhead))
	out = box.Seal(out, head, bound(kindOutline, 0))
	for i, page := range pages {
		out = box.Seal(out, page, bound(kindPage, int64(i)))
	}
	draft := path + ".tmp"
	if err = os.WriteFile(draft, out, 0o600); err == nil {
		err = os.Rename(draft, path)
	}
	if err != nil {
		_ = os.Remove(draft) // it may not be there
		return 0, err        //nolint:wrapcheck // keepIndex says what failed
	}
	return int64(len(out)), nil
}

// index is one that was opened to be looked into.
type index struct {
	*file
	*outline
	pagesAt int64
}

// openIndex opens the index of a segment. Any error but os.ErrNotExist of the
// segment itself means that it has to be made again.
func (s *Store) openIndex(number int64) (*index, error) {
	x, err := s.open(s.path(number, indexSuffix))
	if err != nil {
		return nil, err
	}
	i := &index{file: x}
	if err := i.read(); err != nil {
		x.done()
		return nil, err
	}
	return i, nil
}

func (x *index) read() error {
	if len(x.head) < 4 {
		return seal.ErrTruncated
	}
	n := int64(binary.BigEndian.Uint32(x.head))
	plain, err := x.take(x.at+4, n, kindOutline, 0)
	if err != nil {
		return err
	}
	if x.outline, err = decodeOutline(plain); err != nil {
		return err
	}
	x.pagesAt = x.at + 4 + n
	if want := x.pagesAt + int64(entrySize*x.receipts+seal.BoxOverhead*len(x.pages)); x.size != want {
		return fmt.Errorf("%w: it has %d bytes, and %d by its outline", errIndex, x.size, want)
	}
	return nil
}

// find gives the offsets of the batches in which a request may be.
func (x *index) find(want uint32) (offsets []uint32, err error) {
	first, end := x.pagesOf(want)
	for i := first; i < end; i++ {
		page, err := x.take(x.pagesAt+int64(i)*pageStep, int64(x.pageBytes(i)+seal.BoxOverhead), kindPage, int64(i))
		if err != nil {
			return nil, err
		}
		if offsets, err = searchPage(offsets, page, want); err != nil {
			return nil, err
		}
	}
	return offsets, nil
}
