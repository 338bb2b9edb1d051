package dialect

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxDepth bounds how deep arrays and objects may nest.
const MaxDepth = 128

// cursor walks a JSON text once, checking it as it goes, UTF-8 too. After the first
// mistake bad is set and every method does nothing, so callers check once.
type cursor struct {
	b     []byte
	i     int
	depth int
	bad   bool
}

func (c *cursor) fail() { c.bad = true }

func (c *cursor) space() {
	for c.i < len(c.b) {
		switch c.b[c.i] {
		case ' ', '\t', '\n', '\r':
			c.i++
		default:
			return
		}
	}
}

// peek gives the next byte after white space, 0 at the end.
func (c *cursor) peek() byte {
	c.space()
	if c.bad || c.i >= len(c.b) {
		return 0
	}
	return c.b[c.i]
}

// eat takes the byte x, or fails.
func (c *cursor) eat(x byte) {
	if c.peek() != x {
		c.fail()
		return
	}
	c.i++
}

const (
	low  = 0x0101010101010101
	high = 0x8080808080808080
)

// near is how far plainRun looks before it takes a string for a long one. In
// code, every few bytes are an escape, and starting to look far costs.
const near = 512

// plainRun gives how many leading bytes of b are neither a quote, a backslash
// nor a control character. It looks at eight bytes at a time. wide has a high
// bit set if any of them is beyond ASCII, or perhaps a byte soon after them.
func plainRun(b []byte) (n int, wide uint64) {
	head := b[:min(len(b), near)]
	for len(head)-n >= 8 {
		w := binary.LittleEndian.Uint64(head[n:])
		wide |= w
		quote := w ^ low*'"'
		slash := w ^ low*'\\'
		// Each term sets the high bit of the bytes that match; a borrow can set
		// it in a byte after the first match only, so the lowest bit is exact.
		hit := ((quote-low)&^quote | (slash-low)&^slash | (w-low*' ')&^w) & high
		if hit != 0 {
			return n + bits.TrailingZeros64(hit)/8, wide & high
		}
		n += 8
	}
	if n == near {
		far, more := longRun(b[n:])
		return n + far, (wide | more) & high
	}
	for n < len(b) && b[n] != '"' && b[n] != '\\' && b[n] >= ' ' {
		wide |= uint64(b[n])
		n++
	}
	return n, wide & high
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

// str takes a string in UTF-8 and gives what stands between its quotes. Beyond
// ASCII nothing of a text can stand elsewhere.
func (c *cursor) str() (raw []byte, escaped bool) {
	c.eat('"')
	if c.bad {
		return nil, false
	}
	start, wide := c.i, uint64(0)
	for {
		n, more := plainRun(c.b[c.i:])
		c.i += n
		wide |= more
		if c.i >= len(c.b) {
			c.fail()
			return nil, false
		}
		switch c.b[c.i] {
		case '"':
			raw = c.b[start:c.i]
			c.i++
			if wide != 0 && !utf8.Valid(raw) {
				c.fail()
				return nil, false
			}
			return raw, escaped
		case '\\':
			escaped = true
			if !c.escape() {
				c.fail()
				return nil, false
			}
		default:
			c.fail()
			return nil, false
		}
	}
}

// escape takes one escape sequence.
func (c *cursor) escape() bool {
	if c.i+1 >= len(c.b) {
		return false
	}
	switch c.b[c.i+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		c.i += 2
		return true
	case 'u':
		if _, ok := hex4(c.b[c.i+2:]); !ok {
			return false
		}
		c.i += 6
		return true
	}
	return false
}

func hex4(b []byte) (rune, bool) {
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

// literal takes the bytes of word.
func (c *cursor) literal(word string) {
	if len(c.b)-c.i < len(word) || string(c.b[c.i:c.i+len(word)]) != word {
		c.fail()
		return
	}
	c.i += len(word)
}

func (c *cursor) digits() {
	start := c.i
	for c.i < len(c.b) && c.b[c.i] >= '0' && c.b[c.i] <= '9' {
		c.i++
	}
	if c.i == start {
		c.fail()
	}
}

func (c *cursor) number() {
	if c.b[c.i] == '-' {
		c.i++
	}
	if c.i < len(c.b) && c.b[c.i] == '0' {
		c.i++
	} else {
		c.digits()
	}
	if c.i < len(c.b) && c.b[c.i] == '.' {
		c.i++
		c.digits()
	}
	if c.i < len(c.b) && (c.b[c.i] == 'e' || c.b[c.i] == 'E') {
		c.i++
		if c.i < len(c.b) && (c.b[c.i] == '+' || c.b[c.i] == '-') {
			c.i++
		}
		c.digits()
	}
}

// value takes any value.
func (c *cursor) value() {
	switch x := c.peek(); {
	case c.bad:
	case x == '{':
		c.object(func([]byte) { c.value() })
	case x == '[':
		c.array(func() { c.value() })
	case x == '"':
		c.str()
	case x == 't':
		c.literal("true")
	case x == 'f':
		c.literal("false")
	case x == 'n':
		c.literal("null")
	case x == '-' || x >= '0' && x <= '9':
		c.number()
	default:
		c.fail()
	}
}

// span takes any value and gives its range without surrounding white space.
func (c *cursor) span() Span {
	c.space()
	start := c.i
	c.value()
	return Span{start, c.i}
}

// object takes an object; each is called with the decoded key and must take
// the value.
func (c *cursor) object(each func(key []byte)) {
	if !c.open('{') {
		return
	}
	if c.peek() == '}' {
		c.close()
		return
	}
	for {
		c.space()
		key, escaped := c.str()
		if escaped {
			key = unescape(key)
		}
		c.eat(':')
		if c.bad {
			return
		}
		each(key)
		if c.peek() != ',' {
			break
		}
		c.i++
	}
	if c.peek() != '}' {
		c.fail()
		return
	}
	c.close()
}

// array takes an array; each must take one element.
func (c *cursor) array(each func()) {
	if !c.open('[') {
		return
	}
	if c.peek() == ']' {
		c.close()
		return
	}
	for {
		each()
		if c.peek() != ',' {
			break
		}
		c.i++
	}
	if c.peek() != ']' {
		c.fail()
		return
	}
	c.close()
}

func (c *cursor) open(x byte) bool {
	c.eat(x)
	if c.depth++; c.depth > MaxDepth {
		c.fail()
	}
	return !c.bad
}

func (c *cursor) close() {
	c.i++
	c.depth--
}

// end reports whether the text held nothing but what was taken.
func (c *cursor) end() bool {
	c.space()
	return !c.bad && c.i == len(c.b)
}

// objectOr takes an object as object does, and any other value whole.
func (c *cursor) objectOr(each func(key []byte)) {
	if c.peek() == '{' {
		c.object(each)
	} else {
		c.value()
	}
}

// text takes a value and gives the decoded string if it is one.
func (c *cursor) text() (s []byte, ok bool) {
	if c.peek() != '"' {
		c.value()
		return nil, false
	}
	raw, escaped := c.str()
	if escaped {
		raw = unescape(raw)
	}
	return raw, !c.bad
}

// count takes a value and gives the whole number, not negative, that it is; else 0.
func (c *cursor) count() int64 {
	n, ok := whole(c.span().of(c.b))
	if c.bad || !ok {
		return 0
	}
	return max(0, n)
}

// whole gives the whole number that v, a JSON value, is, if every reader of
// JSON would read the same: at most 2^53. Some providers write 12 as 12.0.
func whole(v []byte) (n int64, ok bool) {
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

// isNull reports whether the next value is null, without taking it.
func (c *cursor) isNull() bool { return c.peek() == 'n' }

// unescape decodes the inside of a checked JSON string into new memory.
func unescape(raw []byte) []byte { return appendUnescaped(make([]byte, 0, len(raw)), raw) }

// appendUnescaped appends the decoded inside of a checked JSON string. Half a
// surrogate pair becomes U+FFFD.
func appendUnescaped(out, raw []byte) []byte {
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
			r, _ := hex4(raw[i:])
			i += 4
			if utf16.IsSurrogate(r) {
				r2 := rune(-1)
				if len(raw)-i >= 6 && raw[i] == '\\' && raw[i+1] == 'u' {
					r2, _ = hex4(raw[i+2:])
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

// Valid reports whether b is one JSON text in UTF-8, nested at most MaxDepth deep.
func Valid(b []byte) bool {
	c := cursor{b: b}
	c.value()
	return c.end()
}

// lowerASCII reports whether key has neither upper-case letters nor anything
// beyond ASCII, so that no name in lower case folds to it but its own.
func lowerASCII(key []byte) bool {
	for _, c := range key {
		if c >= utf8.RuneSelf || c >= 'A' && c <= 'Z' {
			return false
		}
	}
	return true
}

// foldsTo reports whether key is name in another case, as a provider that
// matches field names without regard to case would see it.
func foldsTo(key []byte, name string) bool {
	// A letter folds to at most three bytes (the Kelvin sign); most keys fail here.
	if len(key) < len(name) || len(key) > 3*len(name) {
		return false
	}
	return bytes.EqualFold(key, []byte(name))
}
