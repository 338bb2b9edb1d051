// Package seal encrypts what ringmain persists: envelope encryption with
// AES-256-GCM, where every box, blob and stream has its own data key, wrapped
// by a Holder that keeps the key-encryption key.
//
// Nothing here knows what is sealed or where it is stored, and no key leaves
// the package unwrapped. TLS and API keys belong elsewhere.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// The header is frozen: every sealed file of every version begins with
//
//	"rmS1" | algorithm u8 | flags u8 | u16 length (big endian) | wrapped data key
const (
	magic      = "rmS1"
	algAES256  = 1 // AES-256-GCM
	flagBox    = 0 // messages with random nonces follow
	flagStream = 1 // numbered frames follow
	fixedLen   = len(magic) + 2
	dekLen     = 32
	tagLen     = 16
	nonceLen   = 12
)

// BoxOverhead is how many bytes Box.Seal adds to a plaintext.
const BoxOverhead = nonceLen + tagLen

// BoxLimit is how many messages one box may seal: random nonces of 96 bits
// stay safely apart up to 2^32 of them. A long writer takes a new box first.
const BoxLimit = 1 << 32

// Errors. Each names the caller's next move.
var (
	// ErrTampered: the bytes were altered, or sealed for another context. Use another copy.
	ErrTampered = errors.New("sealed data was altered or belongs elsewhere: use another copy")
	// ErrTruncated: the data ends before its end mark. Of a log that is being
	// appended to, what was read before this error is good.
	ErrTruncated = errors.New("sealed data ends too early: use another copy")
	// ErrNotSealed: the data does not begin with a sealed header. Check the path.
	ErrNotSealed = errors.New("not a sealed file or value: check the path")
	// ErrUnsupported: a newer version of ringmain sealed this. Upgrade the node.
	ErrUnsupported = errors.New("sealed by a newer version: upgrade this node")
	// ErrUnknownKey: another key-encryption key wrapped this. Restore that key.
	ErrUnknownKey = errors.New("sealed under a key this node does not hold: restore that key")
)

// Holder keeps a key-encryption key and never shows it. The context is bound:
// unwrapping under another one fails with ErrTampered. The wrapped form carries
// the id and version of the key. A Holder is safe for concurrent use.
type Holder interface {
	Wrap(dek []byte, context string) (wrapped []byte, err error)
	Unwrap(wrapped []byte, context string) (dek []byte, err error)
}

// Sealer makes boxes, blobs and streams under one Holder. It is safe for
// concurrent use.
type Sealer struct{ holder Holder }

// New returns a Sealer over h.
func New(h Holder) *Sealer { return &Sealer{holder: h} }

// NewBox makes a data key and returns a box over it with the header that
// reopens it. The context names what the box is for, such as
// "quorum/log/eu-fra": a box opened under another context fails.
func (s *Sealer) NewBox(context string) (*Box, []byte, error) {
	block, prefix, header, err := s.create(flagBox, context)
	if err != nil {
		return nil, nil, err
	}
	box, err := newBox(block, prefix)
	return box, header, err
}

// OpenBox reads the header at the start of data and returns its box and what
// follows the header.
func (s *Sealer) OpenBox(data []byte, context string) (*Box, []byte, error) {
	block, prefix, rest, err := s.open(flagBox, data, context)
	if err != nil {
		return nil, nil, err
	}
	box, err := newBox(block, prefix)
	return box, rest, err
}

// SealBlob seals one value with a data key of its own: header, then one
// message. The aad is bound to it but not stored.
func (s *Sealer) SealBlob(context string, plaintext, aad []byte) ([]byte, error) {
	box, header, err := s.NewBox(context)
	if err != nil {
		return nil, err
	}
	return box.Seal(slices.Grow(header, len(plaintext)+BoxOverhead), plaintext, aad), nil
}

// OpenBlob opens what SealBlob made.
func (s *Sealer) OpenBlob(context string, blob, aad []byte) ([]byte, error) {
	box, sealed, err := s.OpenBox(blob, context)
	if err != nil {
		return nil, err
	}
	return box.Open(nil, sealed, aad)
}

// create makes a data key: its cipher, what every message binds, its header.
func (s *Sealer) create(flags byte, context string) (cipher.Block, []byte, []byte, error) {
	dek := make([]byte, dekLen)
	defer clear(dek)
	if _, err := rand.Read(dek); err != nil {
		return nil, nil, nil, fmt.Errorf("seal: make data key: %w", err)
	}
	wrapped, err := s.holder.Wrap(dek, context)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("seal: wrap data key: %w", err)
	}
	if len(wrapped) > math.MaxUint16 {
		return nil, nil, nil, fmt.Errorf("seal: wrapped data key has %d bytes, at most %d fit", len(wrapped), math.MaxUint16)
	}
	block, err := aes.NewCipher(dek)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("seal: %w", err)
	}
	header := append([]byte(magic), algAES256, flags)
	header = binary.BigEndian.AppendUint16(header, uint16(len(wrapped)))
	return block, boundPrefix(flags, context), append(header, wrapped...), nil
}

// open is the inverse of create; rest is what follows the header.
func (s *Sealer) open(flags byte, data []byte, context string) (block cipher.Block, prefix, rest []byte, err error) {
	wrapped, rest, err := splitHeader(flags, data)
	if err != nil {
		return nil, nil, nil, err
	}
	dek, err := s.holder.Unwrap(wrapped, context)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("seal: unwrap data key: %w", err)
	}
	defer clear(dek)
	if len(dek) != dekLen {
		return nil, nil, nil, fmt.Errorf("seal: data key has %d bytes, want %d: %w", len(dek), dekLen, ErrTampered)
	}
	if block, err = aes.NewCipher(dek); err != nil {
		return nil, nil, nil, fmt.Errorf("seal: %w", err)
	}
	return block, boundPrefix(flags, context), rest, nil
}

func splitHeader(flags byte, data []byte) (wrapped, rest []byte, err error) {
	n := min(len(data), len(magic))
	switch {
	case string(data[:n]) != magic[:n]:
		return nil, nil, ErrNotSealed
	case len(data) < fixedLen+2:
		return nil, nil, ErrTruncated
	case data[4] != algAES256 || data[5] > flagStream:
		return nil, nil, fmt.Errorf("seal: algorithm %d, flags %#x: %w", data[4], data[5], ErrUnsupported)
	case data[5] != flags:
		return nil, nil, fmt.Errorf("seal: a stream was taken for a box or a box for a stream: %w", ErrTampered)
	}
	end := fixedLen + 2 + int(binary.BigEndian.Uint16(data[fixedLen:]))
	if len(data) < end {
		return nil, nil, ErrTruncated
	}
	return data[fixedLen+2 : end], data[end:], nil
}

// boundPrefix is the part of the additional data that every message of one
// header shares. The wrapped key is left out, so that rotating the
// key-encryption key rewrites headers only.
func boundPrefix(flags byte, context string) []byte {
	prefix := append([]byte(magic), algAES256, flags)
	prefix = binary.BigEndian.AppendUint32(prefix, uint32(len(context)))
	return append(prefix, context...)
}

// Box seals messages under one data key. It is safe for concurrent use.
type Box struct {
	aead   cipher.AEAD // prepends a random nonce by itself
	prefix []byte
}

func newBox(block cipher.Block, prefix []byte) (*Box, error) {
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &Box{aead: aead, prefix: prefix}, nil
}

// Seal appends nonce and ciphertext of plaintext to dst, BoxOverhead bytes
// more than the plaintext. The aad must be given again to open it; put there
// what must not be swapped, such as a record's id. Dst and plaintext must not
// overlap. At most BoxLimit messages.
func (b *Box) Seal(dst, plaintext, aad []byte) []byte {
	return b.aead.Seal(dst, nil, plaintext, b.bound(aad)) //nolint:gosec // this AEAD draws the nonce itself
}

// Open appends the plaintext of sealed to dst, or returns ErrTampered.
func (b *Box) Open(dst, sealed, aad []byte) ([]byte, error) {
	if len(sealed) < BoxOverhead {
		return nil, ErrTruncated
	}
	plain, err := b.aead.Open(dst, nil, sealed, b.bound(aad))
	if err != nil {
		return nil, ErrTampered
	}
	return plain, nil
}

func (b *Box) bound(aad []byte) []byte {
	if len(aad) == 0 {
		return b.prefix
	}
	return append(slices.Clip(b.prefix), aad...)
}

// readHeader reads exactly one stream header from r.
func readHeader(r io.Reader) ([]byte, error) {
	header := make([]byte, fixedLen+2)
	n, err := io.ReadFull(r, header)
	if err = endsEarly(err); err != nil && !errors.Is(err, ErrTruncated) {
		return nil, err
	}
	if m := min(n, len(magic)); string(header[:m]) != magic[:m] {
		return nil, ErrNotSealed
	}
	if err != nil {
		return nil, err
	}
	wrapped := make([]byte, binary.BigEndian.Uint16(header[fixedLen:]))
	if _, err := io.ReadFull(r, wrapped); err != nil {
		return nil, endsEarly(err)
	}
	return slices.Concat(header, wrapped), nil
}

// endsEarly tells a short file from one that cannot be read.
func endsEarly(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}
