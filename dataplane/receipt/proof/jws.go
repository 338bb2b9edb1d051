package proof

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// All that is signed here is a compact JWS (RFC 7515). Each kind has its own
// typ, so that no statement can pass for one of another kind.
const (
	typReceipt    = "ringmain-receipt+jws"    // the facts themselves: idc-receipt: inline
	typCheckpoint = "ringmain-checkpoint+jws" // over a batch
	typKey        = "ringmain-receipt-key+jws"
)

// b64 is base64url without padding that takes one text per value only.
var b64 = base64.RawURLEncoding.Strict()

func encode64(b []byte) string { return b64.EncodeToString(b) }

// decode64 refuses line breaks too, which the package takes.
func decode64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("base64url with a line break")
	}
	return b64.DecodeString(s) //nolint:wrapcheck // the callers say of what
}

// header is a protected header. There is no other.
type header struct {
	Alg string   `json:"alg"` // EdDSA (Ed25519), or ES256 under a node certificate
	Typ string   `json:"typ"`
	Kid string   `json:"kid,omitempty"` // RFC 7638 thumbprint
	X5c []string `json:"x5c,omitempty"` // the node's certificate, then its issuer's
}

// signed is a parsed JWS whose signature is not verified yet.
type signed struct {
	header    header
	payload   []byte
	input     string // what the signature is over
	signature []byte
}

// marshal gives the one JSON text of v that the verifier takes: fields in
// their order, no spaces, nothing escaped that needs no escape.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("receipt: encode: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

// unmarshal reads into v what marshal made of such a value, and nothing else.
func unmarshal(b []byte, v any) error {
	if err := json.Unmarshal(b, v); err != nil {
		return err //nolint:wrapcheck // the callers say of what
	}
	again, err := marshal(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(again, b) {
		return errors.New("not the text that a node writes")
	}
	return nil
}

// sign makes a JWS with a key that is Ed25519, or ECDSA over P-256.
func sign(key crypto.Signer, h header, payload []byte) (string, error) {
	var hash crypto.Hash
	switch public := key.Public().(type) {
	case ed25519.PublicKey:
		h.Alg = "EdDSA"
	case *ecdsa.PublicKey:
		if public.Curve != elliptic.P256() {
			return "", errors.New("receipt: the node's key is not P-256: issue a certificate over a P-256 key")
		}
		h.Alg, hash = "ES256", crypto.SHA256
	default:
		return "", fmt.Errorf("receipt: the node's key is a %T: issue a certificate over a P-256 key", public)
	}
	head, err := marshal(h)
	if err != nil {
		return "", err
	}
	b := make([]byte, 0, b64.EncodedLen(len(head))+b64.EncodedLen(len(payload))+90)
	b = b64.AppendEncode(b, head)
	b = b64.AppendEncode(append(b, '.'), payload)
	message := b
	if hash != 0 {
		digest := sha256.Sum256(b)
		message = digest[:]
	}
	sig, err := key.Sign(rand.Reader, message, hash)
	if err == nil && hash != 0 {
		sig, err = joseECDSA(sig)
	}
	if err != nil {
		return "", fmt.Errorf("receipt: sign: %w", err)
	}
	return string(b64.AppendEncode(append(b, '.'), sig)), nil
}

// p256HalfOrder is half the order of P-256. Of the two signatures (r, s) and
// (r, -s), which say the same, only that with the lower s is taken.
var p256HalfOrder = new(big.Int).Rsh(elliptic.P256().Params().N, 1)

// joseECDSA turns an ASN.1 signature into the 64 bytes of RFC 7518, 3.4.
func joseECDSA(der []byte) ([]byte, error) {
	var v struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &v); err != nil {
		return nil, err //nolint:wrapcheck // sign says so
	}
	if v.S.Cmp(p256HalfOrder) > 0 {
		v.S.Sub(elliptic.P256().Params().N, v.S)
	}
	out := make([]byte, 64)
	v.R.FillBytes(out[:32])
	v.S.FillBytes(out[32:])
	return out, nil
}

// parseJWS takes a compact JWS apart. Its header must be one that sign writes.
func parseJWS(text, typ string) (*signed, error) {
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return nil, fmt.Errorf("not a compact JWS: %d parts, want 3", len(parts))
	}
	s := &signed{input: text[:len(parts[0])+1+len(parts[1])]}
	head, err := decode64(parts[0])
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if err := unmarshal(head, &s.header); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if s.header.Typ != typ {
		return nil, fmt.Errorf("a JWS of type %q, want %q", s.header.Typ, typ)
	}
	if s.payload, err = decode64(parts[1]); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	if s.signature, err = decode64(parts[2]); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	return s, nil
}

var errSignature = errors.New("the signature does not fit: it was changed, or made with another key")

// verify checks the signature under key.
func (s *signed) verify(key crypto.PublicKey) error {
	ok := false
	switch key := key.(type) {
	case ed25519.PublicKey:
		ok = s.header.Alg == "EdDSA" && len(key) == ed25519.PublicKeySize && ed25519.Verify(key, []byte(s.input), s.signature)
	case *ecdsa.PublicKey:
		if s.header.Alg != "ES256" || key.Curve != elliptic.P256() || len(s.signature) != 64 {
			return errSignature
		}
		half := new(big.Int).SetBytes(s.signature[32:])
		digest := sha256.Sum256([]byte(s.input))
		ok = half.Cmp(p256HalfOrder) <= 0 && ecdsa.Verify(key, digest[:], new(big.Int).SetBytes(s.signature[:32]), half)
	}
	if !ok {
		return errSignature
	}
	return nil
}
