package api

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"ringmain/controlplane"
)

// FormatPoint is how a point of a shard is written: counter/region.sequence.
func FormatPoint(p controlplane.Point) string {
	return fmt.Sprintf("%d/%s.%d", p.Epoch.Counter, p.Epoch.Region, p.Seq)
}

// FormatPosition writes the value of HeaderPosition.
func FormatPosition(shard controlplane.Shard, p controlplane.Point) string {
	return string(shard) + "=" + FormatPoint(p)
}

// ParsePosition reads what FormatPosition wrote.
func ParsePosition(text string) (controlplane.Shard, controlplane.Point, error) {
	shard, point, ok := strings.Cut(text, "=")
	counter, rest, ok2 := strings.Cut(point, "/")
	dot := strings.LastIndexByte(rest, '.')
	if !ok || !ok2 || shard == "" || dot < 0 {
		return "", controlplane.Point{}, fmt.Errorf("%q is not <shard>=<counter>/<region>.<sequence>", text)
	}
	c, err := strconv.ParseUint(counter, 10, 64)
	if err != nil {
		return "", controlplane.Point{}, fmt.Errorf("epoch counter in %q: %w", text, err)
	}
	seq, err := strconv.ParseUint(rest[dot+1:], 10, 64)
	if err != nil {
		return "", controlplane.Point{}, fmt.Errorf("sequence in %q: %w", text, err)
	}
	return controlplane.Shard(shard), controlplane.Point{Epoch: controlplane.Epoch{Counter: c, Region: rest[:dot]}, Seq: seq}, nil
}

// CredentialPrint is Upstream.CredentialPrint for a credential. Provider
// credentials are long and random, so it gives nothing away.
func CredentialPrint(id, credential string) string {
	sum := sha256.Sum256([]byte(id + "\n" + credential))
	return hex.EncodeToString(sum[:8])
}

const cursorVersion = "1:"

// FormatCursor makes the cursor that continues after the record id.
func FormatCursor(id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorVersion + id))
}

// ParseCursor gives the id that a list should continue after; "" for "".
func ParseCursor(cursor string) (string, error) {
	if cursor == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(cursor)
	id, ok := strings.CutPrefix(string(b), cursorVersion)
	if err != nil || !ok {
		return "", fmt.Errorf("cursor %q was not made by this API: take next_cursor of the page before", cursor)
	}
	return id, nil
}
