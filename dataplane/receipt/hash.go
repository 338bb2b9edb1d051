package receipt

import (
	"crypto/rand"
	"crypto/sha256"
	"hash"

	"ringmain/dataplane/receipt/proof"
)

// Hasher computes SHA-256(salt || body) of one body as it passes. The zero
// value is ready for Begin; it may be used again for the next body, and then
// allocates nothing. It belongs to one goroutine at a time.
type Hasher struct {
	h    hash.Hash
	salt proof.Salt
	sum  proof.Hash
}

// Begin starts a body under a new random salt.
func (h *Hasher) Begin() {
	if h.h == nil {
		h.h = sha256.New()
	} else {
		h.h.Reset()
	}
	_, _ = rand.Read(h.salt[:]) // never fails
	_, _ = h.h.Write(h.salt[:]) // never fails
}

// Write adds the body's next bytes. It keeps no reference to them.
func (h *Hasher) Write(b []byte) (int, error) {
	return h.h.Write(b) //nolint:wrapcheck // never fails
}

// Sum ends the body: its salt and its hash.
func (h *Hasher) Sum() (proof.Salt, proof.Hash) {
	h.h.Sum(h.sum[:0])
	return h.salt, h.sum
}
