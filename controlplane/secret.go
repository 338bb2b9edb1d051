package controlplane

import (
	"fmt"
	"log/slog"
)

// Secret holds a value that must never be printed or logged. The value sits
// behind a closure because a type with String, Format and MarshalJSON still
// leaks through fmt when it is held in an unexported field of another struct.
// The zero Secret reveals "".
type Secret struct{ reveal func() string }

const sealedText = "[sealed]"

// NewSecret wraps value.
func NewSecret(value string) Secret { return Secret{reveal: func() string { return value }} }

// Reveal returns the wrapped value. Every call site is a place to review.
func (s Secret) Reveal() string {
	if s.reveal == nil {
		return ""
	}
	return s.reveal()
}

// String returns "[sealed]".
func (Secret) String() string { return sealedText }

// GoString returns "[sealed]".
func (Secret) GoString() string { return sealedText }

// Format writes "[sealed]" under every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(sealedText)) }

// LogValue returns "[sealed]".
func (Secret) LogValue() slog.Value { return slog.StringValue(sealedText) }

// MarshalText returns "[sealed]".
func (Secret) MarshalText() ([]byte, error) { return []byte(sealedText), nil }
