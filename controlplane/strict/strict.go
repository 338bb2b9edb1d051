// Package strict is CBOR (RFC 8949) in one form: equal values give equal bytes,
// and reading skips nothing, since that could be the part that changes the
// meaning. It does take the same values in another form (keys in another order, a
// number in more bytes than it needs): where only one form may count, as under a
// hash, encode what was read and compare. What the bytes say, and how many of them
// there may be, is for their rooms.
package strict

import "github.com/fxamacker/cbor/v2"

// Bounds are those of a Decoder; 0 takes the library's.
type Bounds struct {
	Depth    int // of nesting
	Elements int // of one array
	Pairs    int // of one map
}

var (
	encoder = func() cbor.EncMode {
		m, err := cbor.CoreDetEncOptions().EncMode()
		if err != nil {
			panic(err) // the options are constant
		}
		return m
	}()
	decoder = Decoder(Bounds{})
)

// Marshal encodes v deterministically.
func Marshal(v any) ([]byte, error) { return encoder.Marshal(v) }

// Unmarshal reads into v what Marshal wrote. It is an error if there is more to it:
// an unknown field, a duplicate key, an indefinite length, a tag, a trailing byte.
func Unmarshal(b []byte, v any) error { return decoder.Unmarshal(b, v) }

// Decoder reads as Unmarshal does, within bounds of its own. It panics on bounds
// that the library does not take, which are constant.
func Decoder(b Bounds) cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		MaxNestedLevels:   b.Depth,
		MaxArrayElements:  b.Elements,
		MaxMapPairs:       b.Pairs,
	}.DecMode()
	if err != nil {
		panic(err)
	}
	return m
}
