package dialect

import (
	"fmt"
	"io"
	"log/slog"
	"unsafe"
)

// Content is bytes that belong to a customer: a prompt, an answer, a part of
// one. It prints as [content] everywhere, and as an address at worst: fmt
// calls no method of a value it finds in an unexported field, follows slices
// always, and pointers under the verbs that do not fit them, so the bytes hang
// on an untyped pointer. The zero Content is empty.
type Content struct {
	at   unsafe.Pointer
	n, c int
}

// Conceal gives b as Content. Both share the memory.
func Conceal(b []byte) Content {
	return Content{unsafe.Pointer(unsafe.SliceData(b)), len(b), cap(b)} //nolint:gosec // G103: the bytes of a slice, kept with its length and room
}

// Bytes gives the bytes, which must not be printed.
func (c Content) Bytes() []byte {
	return unsafe.Slice((*byte)(c.at), c.c)[:c.n] //nolint:gosec // G103: what Conceal took apart
}

// Len is the number of bytes.
func (c Content) Len() int { return c.n }

const contentText = "[content]"

// Format writes "[content]" under every verb.
func (Content) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, contentText) }

// String returns "[content]".
func (Content) String() string { return contentText }

// LogValue returns "[content]".
func (Content) LogValue() slog.Value { return slog.StringValue(contentText) }

// MarshalText returns "[content]", to JSON and every other encoding that asks.
func (Content) MarshalText() ([]byte, error) { return []byte(contentText), nil }
