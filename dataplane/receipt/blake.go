package receipt

import (
	"encoding/binary"
	"math/bits"

	"lukechampine.com/blake3/guts"
)

// piece is how much of a body one call of the vector code takes, in bytes: as
// many chunks of BLAKE3 as the widest vectors have lanes.
const (
	lanes = guts.MaxSIMD
	piece = lanes * guts.ChunkSize
)

// blake is BLAKE3 as a hash.Hash, in the goroutine that writes. The library's
// own Hasher starts a goroutine for each part of what it is given, which is
// right for a file and wrong for one of a thousand requests.
type blake struct {
	trees [50][8]uint32 // roots of whole subtrees, by their height over pieces
	taken uint64        // pieces in them
	buf   [piece]byte   // what has come since
	n     int
}

func (b *blake) Reset()         { b.taken, b.n = 0, 0 }
func (b *blake) Size() int      { return 32 }
func (b *blake) BlockSize() int { return guts.BlockSize }

// Write adds p. The last piece, which may be the root, waits in buf for more,
// or for Sum.
func (b *blake) Write(p []byte) (int, error) {
	size := len(p)
	for len(p) > 0 {
		switch {
		case b.n == piece:
			b.take(&b.buf)
			b.n = 0
		case b.n == 0 && len(p) > piece:
			b.take((*[piece]byte)(p))
			p = p[piece:]
		default:
			k := copy(b.buf[b.n:], p)
			b.n += k
			p = p[k:]
		}
	}
	return size, nil
}

// take adds a whole piece that is not the last: as adding one to a binary
// number, of whose digits the trees are those that are set.
func (b *blake) take(p *[piece]byte) {
	tree := guts.ChainingValue(guts.CompressBuffer(p, piece, &guts.IV, b.taken*lanes, 0))
	height := 0
	for ; b.taken>>height&1 == 1; height++ {
		tree = guts.ChainingValue(guts.ParentNode(b.trees[height], tree, &guts.IV, 0))
	}
	b.trees[height] = tree
	b.taken++
}

// Sum appends the hash of what was written.
func (b *blake) Sum(dst []byte) []byte {
	root := guts.CompressBuffer(&b.buf, b.n, &guts.IV, b.taken*lanes, 0)
	for left := b.taken; left != 0; left &= left - 1 {
		root = guts.ParentNode(b.trees[bits.TrailingZeros64(left)], guts.ChainingValue(root), &guts.IV, 0)
	}
	root.Flags |= guts.FlagRoot
	out := guts.CompressNode(root)
	for _, w := range out[:8] {
		dst = binary.LittleEndian.AppendUint32(dst, w)
	}
	return dst
}
