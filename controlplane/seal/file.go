package seal

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// keyFile is the JSON form of a key-encryption key on disk.
type keyFile struct {
	Format  int    `json:"format"` // 1
	ID      string `json:"id"`     // 16 hex digits
	Version uint32 `json:"version"`
	Key     []byte `json:"key"` // 32 bytes, base64
}

// fileHolder wraps data keys under a key read from a file. Wrapped form:
// format u8 = 1 | key id 8 bytes | version u32 | nonce 12 | ciphertext and tag.
type fileHolder struct {
	head [13]byte // format, id, version
	aead cipher.AEAD
}

const wrapFormat = 1

// CreateKeyFile makes a new key-encryption key and writes it to path, mode
// 0600. It never replaces a file: fs.ErrExist.
func CreateKeyFile(path string) error {
	key := make([]byte, 32+8)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("seal: make key: %w", err)
	}
	text, err := json.Marshal(keyFile{Format: 1, ID: hex.EncodeToString(key[32:]), Version: 1, Key: key[:32]})
	if err != nil {
		return fmt.Errorf("seal: make key: %w", err)
	}
	defer clear(text)
	return createFile(path, append(text, '\n'))
}

// OpenFileHolder reads the key at path, which only its owner may be able to
// read. The key stays in memory for the life of the Holder.
func OpenFileHolder(path string) (Holder, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("seal: open key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("seal: others can read the key %s: chmod 600 it, and replace it if they may have", path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("seal: open key: %w", err)
	}
	defer clear(text)
	holder, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("seal: key %s: %w", path, err)
	}
	return holder, nil
}

func parseKey(text []byte) (Holder, error) {
	var k keyFile
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&k); err != nil {
		// The decoder's own error could quote the key.
		return nil, errors.New("not a key file: restore it from its backup")
	}
	defer clear(k.Key)
	id, err := hex.DecodeString(k.ID)
	if k.Format != 1 {
		return nil, fmt.Errorf("key file format %d: %w", k.Format, ErrUnsupported)
	}
	if err != nil || len(id) != 8 || len(k.Key) != 32 || k.Version == 0 {
		return nil, errors.New("incomplete key file: restore it from its backup")
	}
	block, err := aes.NewCipher(k.Key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, err
	}
	h := &fileHolder{aead: aead}
	h.head[0] = wrapFormat
	copy(h.head[1:], id)
	binary.BigEndian.PutUint32(h.head[9:], k.Version)
	return h, nil
}

func (h *fileHolder) Wrap(dek []byte, context string) ([]byte, error) {
	return h.aead.Seal(bytes.Clone(h.head[:]), nil, dek, h.bound(context)), nil //nolint:gosec // this AEAD draws the nonce itself
}

func (h *fileHolder) Unwrap(wrapped []byte, context string) ([]byte, error) {
	if len(wrapped) < len(h.head) {
		return nil, ErrTampered
	}
	head, sealed := wrapped[:len(h.head)], wrapped[len(h.head):]
	if head[0] != wrapFormat {
		return nil, fmt.Errorf("wrapped key format %d: %w", head[0], ErrUnsupported)
	}
	if !bytes.Equal(head, h.head[:]) {
		return nil, fmt.Errorf("key %x version %d: %w", head[1:9], binary.BigEndian.Uint32(head[9:]), ErrUnknownKey)
	}
	dek, err := h.aead.Open(nil, nil, sealed, h.bound(context))
	if err != nil {
		return nil, ErrTampered
	}
	return dek, nil
}

func (h *fileHolder) bound(context string) []byte {
	return append(bytes.Clone(h.head[:]), context...)
}

// createFile writes data to a new file at path, whole or not at all.
func createFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("seal: write key: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(tmp.Name())) }()
	if _, err := tmp.Write(data); err != nil {
		return errors.Join(fmt.Errorf("seal: write key: %w", err), tmp.Close())
	}
	if err := tmp.Sync(); err != nil {
		return errors.Join(fmt.Errorf("seal: write key: %w", err), tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return fmt.Errorf("seal: write key: %w", err)
	}
	// A link, unlike a rename, fails if path exists.
	if err := os.Link(tmp.Name(), path); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("seal: %s holds a key already: %w", path, fs.ErrExist)
		}
		return fmt.Errorf("seal: write key: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("seal: write key: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
