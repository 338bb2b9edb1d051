// Package proof is what a receipt is made of: facts, their one encoding, the
// batch and its signed checkpoint, keys and who vouches for them, and the
// verifier. It has no clock, no goroutine and no disk.
//
// A leaf holds metadata and salted hashes only. Content has no place here, nor
// do customers' keys, only their ids.
package proof

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"ringmain/controlplane/strict"
)

// Sizes, in bytes.
const (
	SaltSize = 16
	HashSize = 32
)

// Attempt is one try at an upstream, or at a peer node that tried for us.
type Attempt struct {
	Region   string `cbor:"1,keyasint,omitempty" json:"region,omitempty"`
	Node     string `cbor:"2,keyasint,omitempty" json:"node,omitempty"`
	Upstream string `cbor:"3,keyasint,omitempty" json:"upstream,omitempty"`
	Outcome  string `cbor:"4,keyasint,omitempty" json:"outcome,omitempty"` // as breaker.Outcome prints it, or Unused

	// Confinement is that of the peer's worker, as it said when it answered. Left
	// out of attempts that the signing node made itself, and where the peer did
	// not say: it was not reached, broke off, or is of an older release.
	Confinement *Confinement `cbor:"5,keyasint,omitempty" json:"confinement,omitempty"`
}

// Unused is the outcome of an attempt that was answered, where the client was
// given nothing of that answer: it was to continue another, and did not fit.
const Unused = "unused"

// Salt is drawn for one body, so that equal bodies have unequal hashes and no
// table of likely prompts can be made in advance. In JSON it is base64url.
type Salt [SaltSize]byte

// Hash is a hash of 256 bits; of a body, with its salt before it. In JSON it is
// base64url.
type Hash [HashSize]byte

// MarshalText is base64url without padding.
func (s Salt) MarshalText() ([]byte, error) { return []byte(encode64(s[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (s *Salt) UnmarshalText(b []byte) error { return exactly(s[:], b) }

// MarshalText is base64url without padding.
func (h Hash) MarshalText() ([]byte, error) { return []byte(encode64(h[:])), nil }

// UnmarshalText reads what MarshalText wrote.
func (h *Hash) UnmarshalText(b []byte) error { return exactly(h[:], b) }

func exactly(into, text []byte) error {
	b, err := decode64(string(text))
	if err == nil && len(b) != len(into) {
		err = fmt.Errorf("%d bytes, want %d", len(b), len(into))
	}
	copy(into, b)
	return err
}

// Facts are what a receipt states. The fields mean what they mean in
// meter.Record; the order and the CBOR keys are frozen.
type Facts struct {
	Leaf         string      `cbor:"1,keyasint" json:"leaf"` // names it before it has a place in a batch
	RequestID    string      `cbor:"2,keyasint" json:"request_id"`
	At           int64       `cbor:"3,keyasint" json:"at"` // Unix milliseconds when the request arrived
	Key          string      `cbor:"4,keyasint,omitempty" json:"key,omitempty"`
	Org          string      `cbor:"5,keyasint,omitempty" json:"org,omitempty"`
	Project      string      `cbor:"6,keyasint,omitempty" json:"project,omitempty"`
	Endpoint     string      `cbor:"7,keyasint,omitempty" json:"endpoint,omitempty"`
	Model        string      `cbor:"8,keyasint,omitempty" json:"model,omitempty"`
	Served       string      `cbor:"9,keyasint,omitempty" json:"served,omitempty"`
	EntryRegion  string      `cbor:"10,keyasint,omitempty" json:"entry_region,omitempty"` // of the node that answered the client and signs
	EntryNode    string      `cbor:"11,keyasint,omitempty" json:"entry_node,omitempty"`
	Region       string      `cbor:"12,keyasint,omitempty" json:"region,omitempty"` // where it was executed
	Node         string      `cbor:"13,keyasint,omitempty" json:"node,omitempty"`
	Pool         string      `cbor:"14,keyasint,omitempty" json:"pool,omitempty"`
	Retention    string      `cbor:"15,keyasint,omitempty" json:"retention,omitempty"`
	Residency    string      `cbor:"16,keyasint,omitempty" json:"residency,omitempty"`
	Attempts     []Attempt   `cbor:"17,keyasint,omitempty" json:"attempts,omitempty"` // in order; the last one answered
	Status       int         `cbor:"18,keyasint" json:"status"`
	Streamed     bool        `cbor:"19,keyasint,omitempty" json:"streamed,omitempty"`
	Refused      bool        `cbor:"20,keyasint,omitempty" json:"refused,omitempty"`
	Ended        string      `cbor:"21,keyasint,omitempty" json:"ended,omitempty"`
	Confinement  Confinement `cbor:"22,keyasint" json:"confinement"` // of the signing node's worker, as it measured
	RequestSalt  Salt        `cbor:"23,keyasint" json:"request_salt"`
	Request      Hash        `cbor:"24,keyasint" json:"request_sha256"` // SHA-256(RequestSalt || the body as it arrived); zero = not made
	ResponseSalt Salt        `cbor:"25,keyasint" json:"response_salt"`
	Response     Hash        `cbor:"26,keyasint" json:"response_sha256"`                 // SHA-256(ResponseSalt || the body as it was sent); zero = not made
	Attestation  []byte      `cbor:"27,keyasint,omitempty" json:"attestation,omitempty"` // reserved: nothing fills it yet

	// Of a large body, BLAKE3 instead of SHA-256. Where both are zero no body was read.
	RequestBLAKE3  Hash `cbor:"28,keyasint,omitzero" json:"request_blake3,omitzero"`
	ResponseBLAKE3 Hash `cbor:"29,keyasint,omitzero" json:"response_blake3,omitzero"`

	// Written is how many bytes of an answer that was broken off were written,
	// which is what its hash is of; 0 = it was not, or before its first.
	Written int64 `cbor:"30,keyasint,omitempty" json:"response_bytes,omitempty"`
}

// leafVersion is the first byte of every leaf.
const leafVersion = 1

// MaxLeaf bounds a leaf, in bytes. Names are bounded where they are given out.
const MaxLeaf = 16 << 10

// ErrLeaf says that bytes are no leaf of this version in its one encoding.
var ErrLeaf = errors.New("not a receipt leaf of this version: upgrade the verifier, or fetch the receipt again")

// AppendLeaf appends the leaf: the version byte, then the facts in
// deterministic CBOR (RFC 8949, 4.2.1). It is written by hand since it runs
// once per request; a test compares it with the library's encoding.
func AppendLeaf(b []byte, f *Facts) []byte {
	b = append(b, leafVersion)
	head := len(b)
	n := 9 // the fields that are never left out
	b = append(b, 0xb8, 0)
	text := func(key byte, s string, always bool) {
		if s == "" && !always {
			return
		}
		if !always {
			n++
		}
		b = appendText(appendUint(b, 0, uint64(key)), s)
	}
	flag := func(key byte, v bool) {
		if v {
			n++
			b = append(appendUint(b, 0, uint64(key)), 0xf5)
		}
	}
	text(1, f.Leaf, true)
	text(2, f.RequestID, true)
	b = appendInt(append(b, 3), f.At)
	text(4, f.Key, false)
	text(5, f.Org, false)
	text(6, f.Project, false)
	text(7, f.Endpoint, false)
	text(8, f.Model, false)
	text(9, f.Served, false)
	text(10, f.EntryRegion, false)
	text(11, f.EntryNode, false)
	text(12, f.Region, false)
	text(13, f.Node, false)
	text(14, f.Pool, false)
	text(15, f.Retention, false)
	text(16, f.Residency, false)
	if len(f.Attempts) > 0 {
		n++
		b = appendUint(append(b, 17), 4, uint64(len(f.Attempts)))
		for i := range f.Attempts {
			b = appendAttempt(b, &f.Attempts[i])
		}
	}
	b = appendInt(append(b, 18), int64(f.Status))
	flag(19, f.Streamed)
	flag(20, f.Refused)
	text(21, f.Ended, false)
	b = appendConfinement(append(b, 22), &f.Confinement)
	b = append(appendUint(append(b, 23), 2, SaltSize), f.RequestSalt[:]...)
	b = append(appendUint(append(b, 0x18, 24), 2, HashSize), f.Request[:]...)
	b = append(appendUint(append(b, 0x18, 25), 2, SaltSize), f.ResponseSalt[:]...)
	b = append(appendUint(append(b, 0x18, 26), 2, HashSize), f.Response[:]...)
	if len(f.Attestation) > 0 {
		n++
		b = append(appendUint(append(b, 0x18, 27), 2, uint64(len(f.Attestation))), f.Attestation...)
	}
	if f.RequestBLAKE3 != (Hash{}) {
		n++
		b = append(appendUint(append(b, 0x18, 28), 2, HashSize), f.RequestBLAKE3[:]...)
	}
	if f.ResponseBLAKE3 != (Hash{}) {
		n++
		b = append(appendUint(append(b, 0x18, 29), 2, HashSize), f.ResponseBLAKE3[:]...)
	}
	if f.Written != 0 {
		n++
		b = appendInt(append(b, 0x18, 30), f.Written)
	}
	// The map's length is known now. Up to 23 it takes one byte, not two.
	if n < 24 {
		copy(b[head+1:], b[head+2:])
		b = b[:len(b)-1]
		b[head] = 0xa0 | byte(n)
	} else {
		b[head+1] = byte(n)
	}
	return b
}

func appendAttempt(b []byte, a *Attempt) []byte {
	head, n := len(b), byte(0)
	b = append(b, 0)
	for i, s := range [...]string{a.Region, a.Node, a.Upstream, a.Outcome} {
		if s != "" {
			n++
			b = appendText(append(b, byte(i+1)), s)
		}
	}
	if a.Confinement != nil {
		n++
		b = appendConfinement(append(b, 5), a.Confinement)
	}
	b[head] = 0xa0 | n
	return b
}

func appendConfinement(b []byte, c *Confinement) []byte {
	b = appendInt(append(b, 0xa4, 1), int64(c.Landlock))
	return append(b, 2, simple(c.NoFileWrite), 3, simple(c.NoDump), 4, simple(c.NoSwap))
}

func simple(v bool) byte {
	if v {
		return 0xf5
	}
	return 0xf4
}

// appendUint writes a CBOR head of a major type in its shortest form.
func appendUint(b []byte, major byte, v uint64) []byte {
	major <<= 5
	switch {
	case v < 24:
		return append(b, major|byte(v))
	case v <= 0xff:
		return append(b, major|24, byte(v))
	case v <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(v))
	case v <= 0xffffffff:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(v))
	default:
		return binary.BigEndian.AppendUint64(append(b, major|27), v)
	}
}

func appendInt(b []byte, v int64) []byte {
	if v < 0 {
		return appendUint(b, 1, uint64(-1-v))
	}
	return appendUint(b, 0, uint64(v))
}

func appendText(b []byte, s string) []byte {
	s = strict.Text(s) // or neither CBOR nor JSON could carry it
	return append(appendUint(b, 3, uint64(len(s))), s...)
}

// decodeLeaf reads what AppendLeaf wrote, and nothing that it would write
// otherwise: ErrLeaf.
func decodeLeaf(b []byte) (*Facts, error) {
	if len(b) == 0 || b[0] != leafVersion || len(b) > MaxLeaf {
		return nil, fmt.Errorf("%w: version byte %.1x, %d bytes", ErrLeaf, b, len(b))
	}
	f := new(Facts)
	if err := strict.Unmarshal(b[1:], f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLeaf, err)
	}
	if !bytes.Equal(AppendLeaf(nil, f), b) {
		return nil, fmt.Errorf("%w: not its one encoding", ErrLeaf)
	}
	return f, nil
}
