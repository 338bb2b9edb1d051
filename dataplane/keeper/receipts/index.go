package receipts

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// An index says in which batches of one segment a request may be. It is made
// when the segment is ended and only looked into from then on: a page of it
// answers a question, so that memory does not grow with what is kept. It holds
// nothing that the segment does not, and is made again if it cannot be read.
//
// Before sealing it is an outline
//
//	version u8 | bytes of the segment u64 | receipts u32 | batches u32 | damaged u32
//	| first, last arrival of a request, newest signature i64, Unix milliseconds
//	| key frames u32 | offset u32 of each, ascending | finger u32 that begins each page
//
// and pages of its entries, finger u32 | offset of the batch's frame u32, in
// ascending order; all big endian.
const (
	indexVersion = 1
	outlineFixed = 1 + 8 + 3*4 + 3*8 + 4

	entrySize   = 8
	pageEntries = 512
	pageSize    = pageEntries * entrySize
)

// errIndex means that the bytes are no index of this version: make it again.
var errIndex = errors.New("not an index of receipts of this version")

// finger is what an index keeps of a request: half of its key.
func finger(key uint64) uint32 { return uint32(key >> 32) }

// entry says that a request may be in the batch whose frame is at offset.
type entry struct{ finger, offset uint32 }

func compareEntries(a, b entry) int {
	return cmp.Or(cmp.Compare(a.finger, b.finger), cmp.Compare(a.offset, b.offset))
}

// fence is what memory holds of a segment: enough to know when not to look.
type fence struct {
	bytes       int64 // of the segment's file
	receipts    int
	batches     int
	damaged     int   // batches and ends of files that could not be read when it was scanned
	first, last int64 // arrival of its requests, Unix milliseconds, as their ids say; 0 = no id did
	signed      int64 // when the newest batch was, Unix milliseconds; 0 = there is none
}

// admits reports whether a request that arrived then may be in the segment.
func (f *fence) admits(arrived int64) bool {
	return f.receipts > 0 && f.first <= arrived && arrived <= f.last
}

// widen notes one more batch.
func (f *fence) widen(receipts int, signed, first, last int64) {
	f.batches++
	f.receipts += receipts
	f.signed = max(f.signed, signed)
	if last == 0 { // no id of it can be asked for
		return
	}
	if f.first == 0 || first < f.first {
		f.first = first
	}
	f.last = max(f.last, last)
}

// outline is what an index says before its pages.
type outline struct {
	fence
	keys  []uint32 // offsets of the key frames, ascending
	pages []uint32 // finger of the first entry of each page
}

// keyOf is where the delegation of the batch at offset is.
func keyOf(keys []uint32, offset uint32) (at uint32, ok bool) {
	i, _ := slices.BinarySearch(keys, offset)
	if i == 0 {
		return 0, false
	}
	return keys[i-1], true
}

// encodeIndex gives an outline and its pages. It sorts entries.
func encodeIndex(f fence, keys []uint32, entries []entry) (head []byte, pages [][]byte) {
	slices.SortFunc(entries, compareEntries)
	f.receipts = len(entries)
	head = append(head, indexVersion)
	head = binary.BigEndian.AppendUint64(head, uint64(f.bytes))
	for _, n := range [...]int{f.receipts, f.batches, f.damaged} {
		head = binary.BigEndian.AppendUint32(head, uint32(n))
	}
	for _, at := range [...]int64{f.first, f.last, f.signed} {
		head = binary.BigEndian.AppendUint64(head, uint64(at))
	}
	head = binary.BigEndian.AppendUint32(head, uint32(len(keys)))
	for _, at := range keys {
		head = binary.BigEndian.AppendUint32(head, at)
	}
	for part := range slices.Chunk(entries, pageEntries) {
		head = binary.BigEndian.AppendUint32(head, part[0].finger)
		page := make([]byte, 0, entrySize*len(part))
		for _, e := range part {
			page = binary.BigEndian.AppendUint32(page, e.finger)
			page = binary.BigEndian.AppendUint32(page, e.offset)
		}
		pages = append(pages, page)
	}
	return head, pages
}

// decodeOutline reads what encodeIndex gave, or errIndex.
func decodeOutline(b []byte) (*outline, error) {
	if len(b) < outlineFixed || b[0] != indexVersion {
		return nil, fmt.Errorf("%w: %d bytes", errIndex, len(b))
	}
	o := new(outline)
	o.bytes = int64(binary.BigEndian.Uint64(b[1:]))
	for i, into := range [...]*int{&o.receipts, &o.batches, &o.damaged} {
		*into = int(binary.BigEndian.Uint32(b[9+4*i:]))
	}
	for i, into := range [...]*int64{&o.first, &o.last, &o.signed} {
		*into = int64(binary.BigEndian.Uint64(b[21+8*i:]))
	}
	keys := int(binary.BigEndian.Uint32(b[45:]))
	pages := (o.receipts + pageEntries - 1) / pageEntries
	if rest := len(b) - outlineFixed; o.bytes < 0 || o.batches > o.receipts || keys > rest/4 || rest != 4*(keys+pages) {
		return nil, fmt.Errorf("%w: %d receipts in %d batches under %d keys in %d bytes", errIndex, o.receipts, o.batches, keys, len(b))
	}
	words := make([]uint32, 0, keys+pages)
	for b = b[outlineFixed:]; len(b) > 0; b = b[4:] {
		words = append(words, binary.BigEndian.Uint32(b))
	}
	o.keys, o.pages = words[:keys:keys], words[keys:]
	if !slices.IsSorted(o.keys) || !slices.IsSorted(o.pages) {
		return nil, fmt.Errorf("%w: out of order", errIndex)
	}
	return o, nil
}

// pageBytes is how long page i is.
func (o *outline) pageBytes(i int) int {
	return min(pageSize, entrySize*(o.receipts-i*pageEntries))
}

// pagesOf are the pages that may hold entries of a finger, from first up to end.
func (o *outline) pagesOf(want uint32) (first, end int) {
	first, _ = slices.BinarySearch(o.pages, want)
	for end = first; end < len(o.pages) && o.pages[end] == want; {
		end++
	}
	return max(first-1, 0), end
}

// searchPage appends the offsets that a page has for a finger.
func searchPage(offsets []uint32, page []byte, want uint32) ([]uint32, error) {
	if len(page)%entrySize != 0 {
		return nil, fmt.Errorf("%w: a page of %d bytes", errIndex, len(page))
	}
	for ; len(page) > 0; page = page[entrySize:] {
		if binary.BigEndian.Uint32(page) == want {
			offsets = append(offsets, binary.BigEndian.Uint32(page[4:]))
		}
	}
	return offsets, nil
}
