// Package jsontext reads JSON where it lies: a cursor walks a text once, strictly,
// copies nothing that is not escaped, and tells where values stand. It knows no
// field of any API.
package jsontext

import "unicode/utf8"

// MaxDepth bounds how deep arrays and objects may nest.
const MaxDepth = 128

// Cursor walks a JSON text once, checking it as it goes, UTF-8 too. After the first
// mistake Bad is set and every method does nothing, so callers check once.
type Cursor struct {
	Data  []byte
	At    int // where in Data it stands
	depth int
	Bad   bool
	Deep  bool // the mistake is that it nests deeper than MaxDepth
	More  int  // levels beyond MaxDepth that it may nest
}

func (c *Cursor) fail() { c.Bad = true }

// whites has the bit of each character that is white space.
const whites uint64 = 1<<' ' | 1<<'\t' | 1<<'\n' | 1<<'\r'

// Space takes white space.
func (c *Cursor) Space() { c.Peek() }

// Peek gives the next byte after white space, 0 at the end.
func (c *Cursor) Peek() byte {
	for !c.Bad && c.At < len(c.Data) {
		x := c.Data[c.At]
		if x > ' ' || whites>>x&1 == 0 {
			return x
		}
		c.At++
	}
	return 0
}

// eat takes the byte x, or fails.
func (c *Cursor) eat(x byte) {
	if c.Peek() != x {
		c.fail()
		return
	}
	c.At++
}

// str takes a string in UTF-8 and gives what stands between its quotes. Beyond
// ASCII nothing of a text can stand elsewhere.
func (c *Cursor) str() (raw []byte, escaped bool) {
	c.eat('"')
	if c.Bad {
		return nil, false
	}
	data, start, wide := c.Data, c.At, uint64(0)
	for {
		end, more := plainRun(data, c.At)
		c.At = end
		wide |= more
		if end >= len(data) {
			c.fail()
			return nil, false
		}
		switch data[end] {
		case '"':
			raw = data[start:end]
			c.At = end + 1
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
func (c *Cursor) escape() bool {
	if c.At+1 >= len(c.Data) {
		return false
	}
	switch c.Data[c.At+1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		c.At += 2
		return true
	case 'u':
		if _, ok := Hex4(c.Data[c.At+2:]); !ok {
			return false
		}
		c.At += 6
		return true
	}
	return false
}

// literal takes the bytes of word.
func (c *Cursor) literal(word string) {
	if len(c.Data)-c.At < len(word) || string(c.Data[c.At:c.At+len(word)]) != word {
		c.fail()
		return
	}
	c.At += len(word)
}

func (c *Cursor) digits() {
	start := c.At
	for c.At < len(c.Data) && c.Data[c.At] >= '0' && c.Data[c.At] <= '9' {
		c.At++
	}
	if c.At == start {
		c.fail()
	}
}

func (c *Cursor) number() {
	if c.Data[c.At] == '-' {
		c.At++
	}
	if c.At < len(c.Data) && c.Data[c.At] == '0' {
		c.At++
	} else {
		c.digits()
	}
	if c.At < len(c.Data) && c.Data[c.At] == '.' {
		c.At++
		c.digits()
	}
	if c.At < len(c.Data) && (c.Data[c.At] == 'e' || c.Data[c.At] == 'E') {
		c.At++
		if c.At < len(c.Data) && (c.Data[c.At] == '+' || c.Data[c.At] == '-') {
			c.At++
		}
		c.digits()
	}
}

// Value takes any value.
func (c *Cursor) Value() {
	switch x := c.Peek(); {
	case c.Bad:
	case x == '{':
		c.Object(func([]byte) { c.Value() })
	case x == '[':
		c.Array(func() { c.Value() })
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

// Span takes any value and gives its range without surrounding white space.
func (c *Cursor) Span() Span {
	c.Space()
	start := c.At
	c.Value()
	return Span{start, c.At}
}

// Object takes an object; each is called with the decoded key and must take
// the value.
func (c *Cursor) Object(each func(key []byte)) {
	if !c.open('{') {
		return
	}
	if c.Peek() == '}' {
		c.close()
		return
	}
	for {
		key, escaped := c.str()
		if escaped {
			key = unescape(key)
		}
		c.eat(':')
		if c.Bad {
			return
		}
		each(key)
		if c.Peek() != ',' {
			break
		}
		c.At++
	}
	if c.Peek() != '}' {
		c.fail()
		return
	}
	c.close()
}

// Array takes an array; each must take one element.
func (c *Cursor) Array(each func()) {
	if !c.open('[') {
		return
	}
	if c.Peek() == ']' {
		c.close()
		return
	}
	for {
		each()
		if c.Peek() != ',' {
			break
		}
		c.At++
	}
	if c.Peek() != ']' {
		c.fail()
		return
	}
	c.close()
}

func (c *Cursor) open(x byte) bool {
	c.eat(x)
	if c.depth++; c.depth > MaxDepth+c.More {
		c.Deep = !c.Bad
		c.fail()
	}
	return !c.Bad
}

func (c *Cursor) close() {
	c.At++
	c.depth--
}

// End reports whether the text held nothing but what was taken.
func (c *Cursor) End() bool {
	c.Space()
	return !c.Bad && c.At == len(c.Data)
}

// ObjectOr takes an object as Object does, and any other value whole.
func (c *Cursor) ObjectOr(each func(key []byte)) {
	if c.Peek() == '{' {
		c.Object(each)
	} else {
		c.Value()
	}
}

// Text takes a value and gives the decoded string if it is one.
func (c *Cursor) Text() (s []byte, ok bool) {
	if c.Peek() != '"' {
		c.Value()
		return nil, false
	}
	raw, escaped := c.str()
	if escaped {
		raw = unescape(raw)
	}
	return raw, !c.Bad
}

// Count takes a value and gives the whole number, not negative, that it is; else 0.
func (c *Cursor) Count() int64 {
	n, ok := Whole(c.Span().Of(c.Data))
	if c.Bad || !ok {
		return 0
	}
	return max(0, n)
}

// IsNull reports whether the next value is null, without taking it.
func (c *Cursor) IsNull() bool { return c.Peek() == 'n' }

// Valid reports whether b is one JSON text in UTF-8, nested at most MaxDepth deep.
func Valid(b []byte) bool {
	c := Cursor{Data: b}
	c.Value()
	return c.End()
}

// Span is a byte range of a body; the zero Span means "not there".
type Span struct{ Start, End int }

// Present reports whether it is there.
func (s Span) Present() bool { return s.End > s.Start }

// Of gives the range of b; nil beyond its end.
func (s Span) Of(b []byte) []byte {
	if s.End > len(b) {
		return nil
	}
	return b[s.Start:s.End]
}

// Quoted takes a string and gives its range, quotes included.
func (c *Cursor) Quoted() Span {
	c.Space()
	start := c.At
	c.str()
	return Span{start, c.At}
}

// Inside gives a cursor at a range that was taken before. It sees nothing behind it.
func Inside(data []byte, s Span) Cursor { return Cursor{Data: data[:s.End], At: s.Start} }

// Says reports whether the value at a range is the string word, however it is
// written.
func Says(data []byte, at Span, word string) bool {
	c := Inside(data, at)
	s, ok := c.Text()
	return ok && string(s) == word
}
