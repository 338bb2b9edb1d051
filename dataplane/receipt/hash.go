package receipt

import (
	"crypto/fips140"
	"crypto/rand"
	"crypto/sha256"
	"hash"
	"sync"

	"golang.org/x/sys/cpu"

	"ringmain/dataplane/receipt/proof"
)

// Digest is the salted hash of one body; Algorithm is how it was made.
type (
	Digest    = proof.Digest
	Algorithm = proof.Algorithm
)

// Algorithms of bodies.
const (
	SHA256 = proof.SHA256
	BLAKE3 = proof.BLAKE3
)

// large is from where on BLAKE3 is worth it, in bytes: it takes its vectors
// from sixteen pieces of 1 KiB side by side, and of less than a few times that
// SHA-256 in hardware is as fast.
const large = 64 << 10

// vectors says that this machine computes BLAKE3 faster than SHA-256, and may:
// BLAKE3 is not among what FIPS 140 approves.
var vectors = cpu.X86.HasAVX2 && !fips140.Enabled()

// Fastest is the algorithm that takes least for a body of that many bytes; 0 =
// not known.
func Fastest(size int) Algorithm {
	if size >= large && vectors {
		return BLAKE3
	}
	return SHA256
}

// blakes are not kept by a Hasher, which an answer holds to its end: they are
// large, and most of that time it needs none.
var blakes = sync.Pool{New: func() any { return new(blake) }}

// Hasher computes the salted hash of one body as it passes. The zero value is
// ready for Begin; it may be used again for the next body, and then allocates
// nothing. It belongs to one goroutine at a time.
type Hasher struct {
	into hash.Hash // of the body under way
	sha  hash.Hash
	of   Digest
}

// Begin starts a body under a new random salt.
func (h *Hasher) Begin(a Algorithm) {
	h.release()
	if a == BLAKE3 {
		h.into = blakes.Get().(*blake) //nolint:forcetypeassert // only these are put
	} else {
		if h.sha == nil {
			h.sha = sha256.New()
		}
		h.into = h.sha
	}
	h.into.Reset()
	h.of.Algorithm = a
	_, _ = rand.Read(h.of.Salt[:])    // never fails
	_, _ = h.into.Write(h.of.Salt[:]) // never fails
}

// Write adds the body's next bytes. It keeps no reference to them.
func (h *Hasher) Write(b []byte) (int, error) {
	return h.into.Write(b) //nolint:wrapcheck // never fails
}

// Sum ends the body.
func (h *Hasher) Sum() Digest {
	h.into.Sum(h.of.Hash[:0])
	h.release()
	return h.of
}

func (h *Hasher) release() {
	if b, ok := h.into.(*blake); ok {
		blakes.Put(b)
	}
	h.into = nil
}
