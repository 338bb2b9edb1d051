package apikey

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/crypto/bcrypt"

	"ringmain/controlplane"
)

// Cost is bcrypt's cost for keys: about 46 ms of one core. The secret holds
// 190 random bits, so the cost guards against nothing but a promise broken.
const Cost = 10

// ErrMismatch says that a well-formed key is not the one that was hashed.
var ErrMismatch = errors.New("the API key does not match")

// digest is what bcrypt is fed: 44 characters that depend on every byte of the
// key. bcrypt itself compares no byte past the 72nd and stops at a NUL.
func digest(whole string) []byte {
	sum := sha256.Sum256([]byte(whole))
	return base64.StdEncoding.AppendEncode(nil, sum[:])
}

// Hash gives what is kept at rest: bcrypt of base64(SHA-256(whole key)), with
// a salt of its own. It takes tens of milliseconds of CPU.
func Hash(whole controlplane.Secret) ([]byte, error) {
	key := whole.Reveal()
	if _, err := Parse(key); err != nil {
		return nil, err
	}
	hash, err := bcrypt.GenerateFromPassword(digest(key), Cost)
	if err != nil {
		return nil, fmt.Errorf("apikey: hash: %w", err)
	}
	return hash, nil
}

// Match compares a presented key with a stored hash: nil, ErrMalformed (at
// once, without a hash), ErrMismatch, or an error that says the hash is
// damaged. It takes tens of milliseconds of CPU: bound how many run.
func Match(hash []byte, whole string) error {
	if _, err := Parse(whole); err != nil {
		return err
	}
	err := bcrypt.CompareHashAndPassword(hash, digest(whole))
	if errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
		return ErrMismatch
	}
	if err != nil {
		return fmt.Errorf("apikey: stored hash: %w", err)
	}
	return nil
}

// Verdict is the MAC under which data nodes remember that whole was checked.
// Compare verdicts with hmac.Equal.
func Verdict(verdictKey [32]byte, whole string) [32]byte {
	mac := hmac.New(sha256.New, verdictKey[:])
	mac.Write([]byte(whole))
	var v [32]byte
	mac.Sum(v[:0])
	return v
}

// VerdictKeys derives the verdict keys of now's UTC day and of the day before,
// by HKDF-SHA256. Make verdicts under current; accept both.
func VerdictKeys(clusterSecret []byte, now time.Time) (current, previous [32]byte) {
	day := now.Unix() / 86400
	return verdictKey(clusterSecret, day), verdictKey(clusterSecret, day-1)
}

func verdictKey(clusterSecret []byte, day int64) [32]byte {
	key, err := hkdf.Key(sha256.New, clusterSecret, nil, "ringmain verdict key/1 day "+strconv.FormatInt(day, 10), 32)
	if err != nil {
		// Only FIPS-only mode gets here, with a cluster secret under 14 bytes:
		// going on would mean a guessable verdict key.
		panic("apikey: the cluster secret cannot be used: " + err.Error())
	}
	return [32]byte(key)
}
