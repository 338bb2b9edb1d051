package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt trusts the links between its pages: a damaged one can lead it round in
// circles, or make it hand out a page in use as a free one. So CheckPages walks
// a file before bbolt may open it.

const (
	pageHeader = 16 // id u64, kind u16, count u16, overflow u32; in the machine's byte order
	metaSize   = 64 // magic, version, page size, flags u32; root, sequence, free list, end, transaction, checksum u64
	metaMagic  = 0xED0CDAED
	pageBranch = 0x01
	pageLeaf   = 0x02
	pageFree   = 0x10
	minPage    = 1 << 10
	maxPage    = 1 << 16
)

var native = binary.NativeEndian

type pageWalk struct {
	f    io.ReaderAt
	size uint64 // of a page
	end  uint64 // first page number beyond
	seen []bool
}

// CheckPages reads the links of a bbolt file of format version 2 that nobody
// has open. Every page must be in exactly one place: in the tree, in the list
// of free pages, or holding that list.
func CheckPages(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	info, err := f.Stat()
	if err != nil {
		return err
	}
	meta, size, err := readMetas(f)
	if err != nil {
		return err
	}
	w := &pageWalk{f: f, size: size, end: native.Uint64(meta[40:])}
	if w.end < 4 || w.end > uint64(info.Size())/size {
		return fmt.Errorf("it has %d bytes where %d pages of %d should be", info.Size(), w.end, size)
	}
	w.seen = make([]bool, w.end)
	w.seen[0], w.seen[1] = true, true
	if err := w.tree(native.Uint64(meta[16:]), nil, nil); err != nil {
		return err
	}
	if err := w.freeList(native.Uint64(meta[32:])); err != nil {
		return err
	}
	for id, ok := range w.seen {
		if !ok {
			return fmt.Errorf("page %d belongs nowhere", id)
		}
	}
	return nil
}

// readMetas returns the newer of the two metas that are whole, and the page size.
func readMetas(f io.ReaderAt) (meta []byte, size uint64, err error) {
	first := make([]byte, pageHeader+metaSize)
	if _, err := f.ReadAt(first, 0); err != nil {
		return nil, 0, noEOF(err)
	}
	if m := first[pageHeader:]; wholeMeta(m) {
		meta, size = m, uint64(native.Uint32(m[8:]))
	}
	for at := uint64(minPage); at <= maxPage; at *= 2 {
		if size != 0 && at != size {
			continue
		}
		second := make([]byte, pageHeader+metaSize)
		if _, err := f.ReadAt(second, int64(at)); err != nil {
			break
		}
		m := second[pageHeader:]
		if !wholeMeta(m) || uint64(native.Uint32(m[8:])) != at {
			continue
		}
		if meta == nil || native.Uint64(m[48:]) > native.Uint64(meta[48:]) {
			meta = m
		}
		size = at
		break
	}
	if meta == nil || size < minPage || size > maxPage || size&(size-1) != 0 {
		return nil, 0, errors.New("both its first pages are damaged")
	}
	return meta, size, nil
}

func wholeMeta(m []byte) bool {
	sum := fnv.New64a()
	_, _ = sum.Write(m[:metaSize-8])
	return native.Uint32(m) == metaMagic && native.Uint32(m[4:]) == 2 && native.Uint64(m[metaSize-8:]) == sum.Sum64()
}

// read returns page id with its overflow, and claims it.
func (w *pageWalk) read(id uint64) ([]byte, error) {
	if id >= w.end {
		return nil, fmt.Errorf("page %d is beyond the end", id)
	}
	head := make([]byte, pageHeader)
	if _, err := w.f.ReadAt(head, int64(id*w.size)); err != nil {
		return nil, noEOF(err)
	}
	n := uint64(native.Uint32(head[12:])) + 1
	if native.Uint64(head) != id || id+n > w.end {
		return nil, fmt.Errorf("page %d is not itself", id)
	}
	for i := id; i < id+n; i++ {
		if err := w.claim(i); err != nil {
			return nil, err
		}
	}
	page := make([]byte, n*w.size)
	_, err := w.f.ReadAt(page, int64(id*w.size))
	return page, noEOF(err)
}

func (w *pageWalk) claim(id uint64) error {
	if id >= w.end || w.seen[id] {
		return fmt.Errorf("page %d is in use twice, or beyond the end", id)
	}
	w.seen[id] = true
	return nil
}

// tree walks the page and all below it.
// tree checks a page and what hangs below it, whose keys begin at low and end
// before high; nil = no end.
func (w *pageWalk) tree(id uint64, low, high []byte) error {
	page, err := w.read(id)
	if err != nil {
		return err
	}
	if err := w.elements(page, low, high); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the content of a page, or of one that sits inside a value.
// Whoever writes finds a row by the order of keys: where they are out of it, a
// row that is deleted stays, and one that is replaced is there twice.
func (w *pageWalk) elements(page, low, high []byte) error {
	kind, count := native.Uint16(page[8:]), int(native.Uint16(page[10:]))
	if pageHeader+count*16 > len(page) {
		return errors.New("it has too many elements")
	}
	if kind != pageBranch && kind != pageLeaf || kind == pageBranch && count == 0 {
		return fmt.Errorf("it is of kind %#x with %d elements", kind, count)
	}
	var child uint64 // of the branch element before, whose keys end where the next begins
	for i := range count {
		e := page[pageHeader+i*16:] // the element; its key and value lie behind it
		var key, value []byte
		var err error
		if kind == pageBranch { // pos u32, key size u32, child u64
			key, _, err = within(e, native.Uint32(e), native.Uint32(e[4:]), 0)
		} else { // flags, pos, key size, value size u32
			key, value, err = within(e, native.Uint32(e[4:]), native.Uint32(e[8:]), native.Uint32(e[12:]))
		}
		switch order := bytes.Compare(key, low); {
		case err != nil:
		case order < 0, order == 0 && i > 0, high != nil && bytes.Compare(key, high) >= 0:
			err = errors.New("a key is out of order")
		case kind == pageBranch && i > 0:
			err = w.tree(child, low, key)
		case kind == pageLeaf && native.Uint32(e)&1 != 0:
			err = w.bucket(value)
		}
		if err != nil {
			return err
		}
		low = key
		if kind == pageBranch {
			child = native.Uint64(e[8:])
		}
	}
	if kind == pageBranch {
		return w.tree(child, low, high)
	}
	return nil
}

func within(e []byte, pos, keySize, valueSize uint32) (key, value []byte, err error) {
	middle := uint64(pos) + uint64(keySize)
	if middle+uint64(valueSize) > uint64(len(e)) {
		return nil, nil, errors.New("an element lies outside")
	}
	return e[pos:middle], e[middle : middle+uint64(valueSize)], nil
}

// bucket follows a bucket's value: root u64, sequence u64, and a page of its
// own behind them if root is zero.
func (w *pageWalk) bucket(value []byte) error {
	if len(value) < 16 {
		return errors.New("a bucket is too short")
	}
	if root := native.Uint64(value); root != 0 {
		return w.tree(root, nil, nil)
	}
	if len(value) < 16+pageHeader || native.Uint16(value[16+8:]) != pageLeaf {
		return errors.New("a bucket is no leaf")
	}
	return w.elements(value[16:], nil, nil)
}

// freeList claims the page that lists the free ones, and those.
func (w *pageWalk) freeList(id uint64) error {
	page, err := w.read(id)
	if err != nil {
		return err
	}
	ids, count := page[pageHeader:], uint64(native.Uint16(page[10:]))
	if count == 0xFFFF {
		count, ids = native.Uint64(ids), ids[8:]
	}
	if native.Uint16(page[8:]) != pageFree || count > uint64(len(ids))/8 {
		return errors.New("the list of free pages is none")
	}
	for i := range count {
		if err := w.claim(native.Uint64(ids[i*8:])); err != nil {
			return err
		}
	}
	return nil
}
