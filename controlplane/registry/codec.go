package registry

import (
	"fmt"

	"ringmain/controlplane"

	"github.com/fxamacker/cbor/v2"
)

var encMode = must(cbor.CoreDetEncOptions().EncMode())

// Decoding is strict: an unknown field, a duplicate key or a trailing byte is
// an error, because skipping part of a command would fork the state.
var decMode = must(cbor.DecOptions{
	DupMapKey:         cbor.DupMapKeyEnforcedAPF,
	ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
	IndefLength:       cbor.IndefLengthForbidden,
	TagsMd:            cbor.TagsForbidden,
	MaxNestedLevels:   16,
	MaxArrayElements:  1 << 20,
	MaxMapPairs:       1 << 16,
}.DecMode())

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Encode returns v in deterministic CBOR: equal values give equal bytes on every
// node.
func Encode(v any) ([]byte, error) { return encMode.Marshal(v) }

// Decode reads what Encode wrote. Anything else is controlplane.ErrUnknownEntry.
func Decode(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", controlplane.ErrUnknownEntry, err)
	}
	return nil
}

// EncodeRecord returns the record in deterministic CBOR.
func EncodeRecord(r *Record) ([]byte, error) { return encMode.Marshal(r) }

// DecodeRecord reads what EncodeRecord wrote.
func DecodeRecord(b []byte) (*Record, error) {
	r := new(Record)
	if err := decMode.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%w: record: %w", controlplane.ErrUnknownEntry, err)
	}
	if err := r.known(); err != nil {
		return nil, err
	}
	return r, nil
}
