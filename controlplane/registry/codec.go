package registry

import (
	"fmt"

	"ringmain/controlplane"
	"ringmain/controlplane/strict"
)

// Skipping part of a command would fork the state.
var decMode = strict.Decoder(strict.Bounds{Depth: 16, Elements: 1 << 20, Pairs: 1 << 16})

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Encode returns v in deterministic CBOR: equal values give equal bytes on every
// node.
func Encode(v any) ([]byte, error) { return strict.Marshal(v) }

// Decode reads what Encode wrote. Anything else is controlplane.ErrUnknownEntry.
func Decode(b []byte, v any) error {
	if err := decMode.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: %w", controlplane.ErrUnknownEntry, err)
	}
	return nil
}

// EncodeRecord returns the record in deterministic CBOR.
func EncodeRecord(r *Record) ([]byte, error) { return strict.Marshal(r) }

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
