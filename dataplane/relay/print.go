package relay

import (
	"fmt"
	"io"
	"log/slog"
)

const contentText = "[content]"

// Format writes "[content]" under every verb.
func (Batch) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, contentText) }

// LogValue returns "[content]".
func (Batch) LogValue() slog.Value { return slog.StringValue(contentText) }

// MarshalText returns "[content]", to every encoding that asks.
func (Batch) MarshalText() ([]byte, error) { return []byte(contentText), nil }

// Format writes how the stream broke, and "[content]" for the event.
func (b Broken) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, b.text()) }

// LogValue is what Format writes.
func (b Broken) LogValue() slog.Value { return slog.StringValue(b.text()) }

// MarshalText is what Format writes.
func (b Broken) MarshalText() ([]byte, error) { return []byte(b.text()), nil }

func (b Broken) text() string { return contentText + " " + b.Outcome.String() }
