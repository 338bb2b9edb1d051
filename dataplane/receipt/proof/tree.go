package proof

import (
	"crypto/sha256"
	"hash"
	"math/bits"
)

// Hashes of RFC 6962, section 2.1.

type node = [HashSize]byte

// leafHasher computes SHA-256(0x00 || leaf) of one leaf after another.
type leafHasher struct {
	h   hash.Hash
	sum node
}

func (l *leafHasher) of(leaf []byte) node {
	if l.h == nil {
		l.h = sha256.New()
	}
	l.h.Reset()
	_, _ = l.h.Write(zero[:]) // never fails
	_, _ = l.h.Write(leaf)    // never fails
	l.h.Sum(l.sum[:0])
	return l.sum
}

var zero [1]byte

func leafHash(leaf []byte) node { return new(leafHasher).of(leaf) }

// nodeHash is SHA-256(0x01 || left || right).
func nodeHash(left, right node) node {
	var b [1 + 2*HashSize]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+HashSize:], right[:])
	return sha256.Sum256(b[:])
}

// split is the largest power of two below n, for n > 1.
func split(n int) int { return 1 << (bits.Len(uint(n-1)) - 1) }

// rootOf is the head of the tree over leaf hashes; there must be one.
func rootOf(leaves []node) node {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := split(len(leaves))
	return nodeHash(rootOf(leaves[:k]), rootOf(leaves[k:]))
}

// pathOf is the audit path of leaf i, from the leaf up (RFC 6962, 2.1.1).
func pathOf(leaves []node, i int) []node {
	if len(leaves) == 1 {
		return nil
	}
	k := split(len(leaves))
	if i < k {
		return append(pathOf(leaves[:k], i), rootOf(leaves[k:]))
	}
	return append(pathOf(leaves[k:], i-k), rootOf(leaves[:k]))
}

// rootFrom is the head that a leaf's hash and path lead to in a tree of n
// leaves (RFC 9162, 2.1.3.2). It is false for a path of the wrong length.
func rootFrom(leaf node, i, n int, path []node) (node, bool) {
	if i < 0 || i >= n {
		return node{}, false
	}
	if n == 1 {
		return leaf, len(path) == 0
	}
	if len(path) == 0 {
		return node{}, false
	}
	sibling := path[len(path)-1]
	k := split(n)
	if i < k {
		below, ok := rootFrom(leaf, i, k, path[:len(path)-1])
		return nodeHash(below, sibling), ok
	}
	below, ok := rootFrom(leaf, i-k, n-k, path[:len(path)-1])
	return nodeHash(sibling, below), ok
}
