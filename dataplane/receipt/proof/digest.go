package proof

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"strings"

	"lukechampine.com/blake3"
)

// Algorithm names a hash of bodies; it is the first half of a field's name in
// the facts that a node states: request_sha256, request_blake3.
type Algorithm string

// Algorithms of bodies. Trees, chains and signatures know SHA-256 only.
const (
	SHA256 Algorithm = "sha-256"
	BLAKE3 Algorithm = "blake3"
)

// Digest is the salted hash of one body: the algorithm's, of salt || body.
type Digest struct {
	Algorithm Algorithm
	Salt      Salt
	Hash      Hash
}

// StateRequest notes the hash of the request's body, as it arrived.
func (f *Facts) StateRequest(d Digest) {
	f.RequestSalt = d.Salt
	f.Request, f.RequestBLAKE3 = d.fields()
}

// StateResponse notes the hash of the answer's body, as it was sent.
func (f *Facts) StateResponse(d Digest) {
	f.ResponseSalt = d.Salt
	f.Response, f.ResponseBLAKE3 = d.fields()
}

func (d *Digest) fields() (sha, blake Hash) {
	if d.Algorithm == BLAKE3 {
		return Hash{}, d.Hash
	}
	return d.Hash, Hash{}
}

// digests are what the facts state of a body; none = it was not read.
func digests(salt Salt, sha, blake Hash) (all []Digest) {
	if sha != (Hash{}) {
		all = append(all, Digest{SHA256, salt, sha})
	}
	if blake != (Hash{}) {
		all = append(all, Digest{BLAKE3, salt, blake})
	}
	return all
}

// fits reports whether the digest is that of body.
func (d *Digest) fits(body []byte) bool {
	var h hash.Hash = blake3.New(HashSize, nil)
	if d.Algorithm == SHA256 {
		h = sha256.New()
	}
	_, _ = h.Write(d.Salt[:]) // never fails
	_, _ = h.Write(body)      // never fails
	return Hash(h.Sum(nil)) == d.Hash
}

// byHand is a command for any POSIX shell that prints the digest of file, or of
// its first so many bytes; 0 = all.
func (d *Digest) byHand(file string, first int64) string {
	var salt strings.Builder
	for _, b := range d.Salt {
		fmt.Fprintf(&salt, `\0%03o`, b)
	}
	tool := map[Algorithm]string{SHA256: "sha256sum", BLAKE3: "b3sum"}[d.Algorithm]
	read := "cat"
	if first > 0 {
		read = fmt.Sprintf("head -c %d", first)
	}
	return fmt.Sprintf("{ printf %%b '%s'; %s %s; } | %s", salt.String(), read, file, tool)
}
