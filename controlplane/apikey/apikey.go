// Package apikey makes, reads and checks API keys: the text format, the hash
// kept at rest and the verdicts kept in memory. It keeps no state, takes time
// and randomness as arguments, and knows nothing of records, requests or logs.
package apikey

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
	"time"

	"ringmain/controlplane"
)

// Classes of key. A test key reaches simulated upstreams only.
const (
	ClassLive = "live"
	ClassTest = "test"
)

// The frozen layout, in bytes:
//
//	idc_<class 4>_<jurisdiction 2-4>_<id 16>_<secret 32><checksum 6>
//
// Every part but the jurisdiction has one length, so the length of the whole
// says where each part begins, and no key exceeds MaxLen.
const (
	prefix      = "idc_"
	classLen    = 4
	minJurLen   = 2
	maxJurLen   = 4
	stampLen    = 6 // creation second, base62, most significant digit first
	idRandomLen = 10
	idLen       = stampLen + idRandomLen
	secretLen   = 32
	sumLen      = 6 // CRC-32 (IEEE) of everything before it, base62, zero padded
	fixedLen    = len(prefix) + classLen + 1 + 1 + idLen + 1 + secretLen + sumLen

	// MinLen and MaxLen bound a whole key, in bytes.
	MinLen = fixedLen + minJurLen
	MaxLen = fixedLen + maxJurLen

	recordPrefix = "key_"
)

// ErrMalformed says that a text is no key of ours: wrong length, alphabet,
// class or checksum. It never says which, since callers show one text for all.
var ErrMalformed = errors.New("not a well-formed API key: copy the whole key again")

// Parsed is the part of a key that may be stored and shown.
type Parsed struct {
	Class        string // ClassLive or ClassTest
	Jurisdiction string // two to four lowercase letters; "any" = unpinned
	ID           string // "<jurisdiction>_<16 base62>"
}

// RecordID is the id of the key's record in the registry.
func (p Parsed) RecordID() string { return recordPrefix + p.ID }

// Created is the second in which the key was made, as its id says. It is the
// maker's claim: a client can invent an id, but not one that is in the registry.
func (p Parsed) Created() time.Time {
	if len(p.ID) < idLen {
		return time.Time{}
	}
	at := len(p.ID) - idLen
	n, err := decode62(p.ID[at : at+stampLen])
	if err != nil {
		return time.Time{}
	}
	return time.Unix(int64(n), 0).UTC() // six base62 digits stay below 2^36
}

// Hint is the last four characters of the id: enough for people to tell keys
// apart, and no part of the secret.
func (p Parsed) Hint() string {
	if len(p.ID) < 4 {
		return p.ID
	}
	return p.ID[len(p.ID)-4:]
}

// FromRecord gives back the Parsed of a stored key, so that NewSecretFor can
// rotate it.
func FromRecord(class, recordID string) (Parsed, error) {
	id, ok := strings.CutPrefix(recordID, recordPrefix)
	jurisdiction, tail, found := strings.Cut(id, "_")
	if !ok || !found || !validClass(class) || !validJurisdiction(jurisdiction) || len(tail) != idLen || !all62(tail) {
		return Parsed{}, fmt.Errorf("apikey: %q of class %q is not the id of a key record", recordID, class)
	}
	return Parsed{Class: class, Jurisdiction: jurisdiction, ID: id}, nil
}

// New makes a key created at the second of at. The same randomness and second
// give the same key.
func New(class, jurisdiction string, at time.Time, random io.Reader) (controlplane.Secret, Parsed, error) {
	if !validClass(class) {
		return controlplane.Secret{}, Parsed{}, fmt.Errorf("apikey: class %q: use %q or %q", class, ClassLive, ClassTest)
	}
	if !validJurisdiction(jurisdiction) {
		return controlplane.Secret{}, Parsed{}, fmt.Errorf("apikey: jurisdiction %q: use two to four lowercase letters", jurisdiction)
	}
	second := at.Unix()
	if second < 0 || second >= pow62(stampLen) {
		return controlplane.Secret{}, Parsed{}, fmt.Errorf("apikey: creation time %v does not fit into a key id", at)
	}
	id := make([]byte, 0, len(jurisdiction)+1+idLen)
	id = append(id, jurisdiction...)
	id = append(id, '_')
	id = append62(id, uint64(second), stampLen)
	id, err := appendRandom(id, idRandomLen, random)
	if err != nil {
		return controlplane.Secret{}, Parsed{}, err
	}
	p := Parsed{Class: class, Jurisdiction: jurisdiction, ID: string(id)}
	whole, err := NewSecretFor(p, random)
	if err != nil {
		return controlplane.Secret{}, Parsed{}, err
	}
	return whole, p, nil
}

// NewSecretFor makes another whole key with the id of p: a rotation.
func NewSecretFor(p Parsed, random io.Reader) (controlplane.Secret, error) {
	whole := make([]byte, 0, MaxLen)
	whole = append(whole, prefix...)
	whole = append(whole, p.Class...)
	whole = append(whole, '_')
	whole = append(whole, p.ID...)
	whole = append(whole, '_')
	whole, err := appendRandom(whole, secretLen, random)
	if err != nil {
		return controlplane.Secret{}, err
	}
	whole = append62(whole, uint64(crc32.ChecksumIEEE(whole)), sumLen)
	if _, err := Parse(string(whole)); err != nil {
		return controlplane.Secret{}, fmt.Errorf("apikey: cannot make a key for id %q of class %q", p.ID, p.Class)
	}
	return controlplane.NewSecret(string(whole)), nil
}

// Parse checks format, length and checksum, and nothing else: a key that
// parses need not exist. The error is always ErrMalformed. It does not allocate.
func Parse(whole string) (Parsed, error) {
	jurLen := len(whole) - fixedLen
	if jurLen < minJurLen || jurLen > maxJurLen || whole[:len(prefix)] != prefix {
		return Parsed{}, ErrMalformed
	}
	// Offsets of the parts; each separator sits right before the next part.
	const class = len(prefix)
	const jur = class + classLen + 1
	id := jur + jurLen + 1
	secret := id + idLen + 1
	sum := secret + secretLen
	p := Parsed{Class: whole[class : class+classLen], Jurisdiction: whole[jur : jur+jurLen], ID: whole[jur : id+idLen]}
	switch {
	case whole[jur-1] != '_', whole[id-1] != '_', whole[secret-1] != '_',
		!validClass(p.Class), !validJurisdiction(p.Jurisdiction),
		!all62(whole[id : id+idLen]), !all62(whole[secret:]):
		return Parsed{}, ErrMalformed
	}
	var want [sumLen]byte
	append62(want[:0], uint64(crc32Of(whole[:sum])), sumLen)
	if string(want[:]) != whole[sum:] {
		return Parsed{}, ErrMalformed
	}
	return p, nil
}

// crc32Of is crc32.ChecksumIEEE of a string: that one takes bytes, and makes
// a copy of the string escape to the heap.
func crc32Of(s string) uint32 {
	crc := ^uint32(0)
	for i := range len(s) {
		crc = crc32.IEEETable[byte(crc)^s[i]] ^ crc>>8
	}
	return ^crc
}

func validClass(class string) bool { return class == ClassLive || class == ClassTest }

func validJurisdiction(j string) bool {
	if len(j) < minJurLen || len(j) > maxJurLen {
		return false
	}
	for i := range len(j) {
		if j[i] < 'a' || j[i] > 'z' {
			return false
		}
	}
	return true
}

// Digits stand in ASCII order, so ids of one jurisdiction sort by creation.
const digits62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func value62(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'Z':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'z':
		return int(c-'a') + 36
	}
	return -1
}

func all62(s string) bool {
	for i := range len(s) {
		if value62(s[i]) < 0 {
			return false
		}
	}
	return true
}

func pow62(n int) int64 {
	p := int64(1)
	for range n {
		p *= 62
	}
	return p
}

// append62 appends the n lowest base62 digits of v, zero padded.
func append62(dst []byte, v uint64, n int) []byte {
	at := len(dst)
	for range n {
		dst = append(dst, '0')
	}
	for i := at + n - 1; i >= at; i-- {
		dst[i] = digits62[v%62]
		v /= 62
	}
	return dst
}

func decode62(s string) (uint64, error) {
	var v uint64
	for i := range len(s) {
		d := value62(s[i])
		if d < 0 {
			return 0, fmt.Errorf("%q is not a base62 digit", s[i])
		}
		v = v*62 + uint64(d)
	}
	return v, nil
}

// appendRandom appends n base62 digits, each equally likely: a byte of 248 or
// more is thrown away, since 256 is no multiple of 62.
func appendRandom(dst []byte, n int, random io.Reader) ([]byte, error) {
	const fair = 256 / 62 * 62
	var buf [secretLen]byte
	defer clear(buf[:])
	for n > 0 {
		chunk := buf[:min(n, len(buf))]
		if _, err := io.ReadFull(random, chunk); err != nil {
			return nil, fmt.Errorf("apikey: read randomness: %w", err)
		}
		for _, b := range chunk {
			if b < fair {
				dst = append(dst, digits62[b%62])
				n--
			}
		}
	}
	return dst, nil
}
