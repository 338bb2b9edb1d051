package registry

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"iter"
)

// Digester computes what State.Digest computes from pieces that are encoded
// already. Records go in by id, revocations by (kind, id).
type Digester struct{ records, revocations hash.Hash }

// NewDigester returns the Digester of an empty shard.
func NewDigester() *Digester { return &Digester{sha256.New(), sha256.New()} }

// Record adds an encoded record.
func (d *Digester) Record(encoded []byte) { writeCounted(d.records, encoded) }

// Revocation adds a revocation.
func (d *Digester) Revocation(v Revocation) {
	writeCounted(d.revocations, must(Encode(v))) // strings and integers always encode
}

func writeCounted(h hash.Hash, b []byte) {
	n := len(b)
	_, _ = h.Write([]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}) // a hash never fails
	_, _ = h.Write(b)
}

// Sum returns the digest of what was added so far.
func (d *Digester) Sum() [32]byte {
	h := sha256.New()
	_, _ = h.Write([]byte("ringmain shard digest 1\n"))
	_, _ = h.Write(d.records.Sum(nil))
	_, _ = h.Write(d.revocations.Sum(nil))
	return [32]byte(h.Sum(nil))
}

// Clone returns an independent copy.
func (d *Digester) Clone() (*Digester, error) {
	records, err := cloneHash(d.records)
	if err != nil {
		return nil, err
	}
	revocations, err := cloneHash(d.revocations)
	if err != nil {
		return nil, err
	}
	return &Digester{records, revocations}, nil
}

func cloneHash(h hash.Hash) (hash.Hash, error) {
	c, ok := h.(hash.Cloner)
	if !ok {
		return nil, fmt.Errorf("hash %T cannot be cloned", h)
	}
	return c.Clone()
}

// DigestOf is the digest of records by id and revocations by (kind, id). It
// encodes every record: 1 s for a million.
func DigestOf(records iter.Seq[*Record], revocations iter.Seq[Revocation]) [32]byte {
	d := NewDigester()
	for r := range records {
		d.Record(must(EncodeRecord(r))) // it was decoded or checked before: it encodes
	}
	for v := range revocations {
		d.Revocation(v)
	}
	return d.Sum()
}
