package jsontext

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	low  = 0x0101010101010101
	high = 0x8080808080808080
)

// near is how far plainRun looks before it takes a string for a long one. In
// code, every few bytes are an escape, and starting to look far costs.
const near = 512

// plainRun gives where in b the run from at of bytes that are neither a quote, a
// backslash nor a control character ends. It looks at eight bytes at a time. wide
// has a high bit set if any of them is beyond ASCII, or perhaps a byte soon after
// them.
func plainRun(b []byte, at int) (end int, wide uint64) {
	last := min(len(b), at+near) - 8
	for at <= last {
		w := binary.LittleEndian.Uint64(b[at : at+8])
		wide |= w
		quote := w ^ low*'"'
		slash := w ^ low*'\\'
		// Each term sets the high bit of the bytes that match; a borrow can set
		// it in a byte after the first match only, so the lowest bit is exact.
		hit := ((quote-low)&^quote | (slash-low)&^slash | (w-low*' ')&^w) & high
		if hit != 0 {
			return at + bits.TrailingZeros64(hit)/8, wide & high
		}
		at += 8
	}
	if len(b)-at >= 8 {
		n, more := longRun(b[at:])
		return at + n, (wide | more) & high
	}
	for at < len(b) && b[at] != '"' && b[at] != '\\' && b[at] >= ' ' {
		wide |= uint64(b[at])
		at++
	}
	return at, wide & high
}

// longRun is plainRun for long strings: three looks at each 4 KiB, two of them
// by the vector instructions of package bytes, take a third of one look's time.
func longRun(b []byte) (n int, wide uint64) {
	for n < len(b) {
		part := b[n:min(len(b), n+4<<10)]
		end := len(part)
		if i := bytes.IndexByte(part, '"'); i >= 0 {
			end = i
		}
		if i := bytes.IndexByte(part[:end], '\\'); i >= 0 {
			end = i
		}
		k, more := printedRun(part[:end])
		wide |= more
		if n += k; k < len(part) {
			break
		}
	}
	return n, wide
}

// printedRun gives how many leading bytes of b are no control characters, and
// wide as plainRun does.
func printedRun(b []byte) (n int, wide uint64) {
	for len(b)-n >= 32 {
		p := (*[32]byte)(b[n:])
		v, w := binary.LittleEndian.Uint64(p[:8]), binary.LittleEndian.Uint64(p[8:16])
		x, y := binary.LittleEndian.Uint64(p[16:24]), binary.LittleEndian.Uint64(p[24:])
		wide |= v | w | x | y
		if ((v-low*' ')&^v|(w-low*' ')&^w|(x-low*' ')&^x|(y-low*' ')&^y)&high != 0 {
			break
		}
		n += 32
	}
	for n < len(b) && b[n] >= ' ' {
		wide |= uint64(b[n])
		n++
	}
	return n, wide
}

// Hex4 reads the four digits of a \u escape.
func Hex4(b []byte) (rune, bool) {
	if len(b) < 4 {
		return 0, false
	}
	var r rune
	for _, x := range b[:4] {
		switch {
		case x >= '0' && x <= '9':
			x -= '0'
		case x >= 'a' && x <= 'f':
			x -= 'a' - 10
		case x >= 'A' && x <= 'F':
			x -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(x)
	}
	return r, true
}

// unescape decodes the inside of a checked JSON string into new memory.
func unescape(raw []byte) []byte { return AppendUnescaped(make([]byte, 0, len(raw)), raw) }

// AppendUnescaped appends the decoded inside of a checked JSON string. Half a
// surrogate pair becomes U+FFFD.
func AppendUnescaped(out, raw []byte) []byte {
	for i := 0; i < len(raw); {
		at := bytes.IndexByte(raw[i:], '\\')
		if at < 0 {
			return append(out, raw[i:]...)
		}
		out = append(out, raw[i:i+at]...)
		i += at + 2
		switch x := raw[i-1]; x {
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r, _ := Hex4(raw[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				r2 := rune(-1)
				if len(raw)-i >= 6 && raw[i] == '\\' && raw[i+1] == 'u' {
					r2, _ = Hex4(raw[i+2:])
				}
				if r = utf16.DecodeRune(r, r2); r != utf8.RuneError {
					i += 6
				}
			}
			out = utf8.AppendRune(out, r)
		default:
			out = append(out, x)
		}
	}
	return out
}

const hex = "0123456789abcdef"

// AppendString appends s as a JSON string; bytes that are not UTF-8 become U+FFFD.
func AppendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
			i++
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			i++
		case c < utf8.RuneSelf:
			dst = append(dst, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
		}
	}
	return append(dst, '"')
}

// Whole gives the whole number that v, a JSON value, is, if every reader of
// JSON would read the same: at most 2^53. Some providers write 12 as 12.0.
func Whole(v []byte) (n int64, ok bool) {
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err == nil {
		return n, max(n, -n) <= 1<<53 && n != math.MinInt64
	}
	if len(v) == 0 || v[0] != '-' && (v[0] < '0' || v[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(string(v), 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return 0, false
	}
	return int64(f), true
}

// LowerASCII reports whether key has neither upper-case letters nor anything
// beyond ASCII, so that no name in lower case folds to it but its own.
func LowerASCII(key []byte) bool {
	for _, c := range key {
		if c >= utf8.RuneSelf || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}

// FoldsTo reports whether key is name in another case, as a provider that
// matches field names without regard to case would see it.
func FoldsTo(key []byte, name string) bool {
	// A letter folds to at most three bytes (the Kelvin sign); most keys fail here.
	if len(key) < len(name) || len(key) > 3*len(name) {
		return false
	}
	return bytes.EqualFold(key, []byte(name))
}
