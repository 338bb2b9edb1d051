package syntax

import "bytes"

const (
	maxLine    = 1 << 10 // of a chunk's size with its extensions, in bytes
	maxTrailer = 4 << 10 // in bytes; net/http has the same
	// waste is how many bytes of framing a body may have beyond what its content
	// accounts for: without a bound one could send next to nothing for ever.
	waste = 16 << 10
)

// Chunks reads the framing of a chunked body (RFC 9112, 7.1). The zero value is
// at the body's beginning.
type Chunks struct {
	Left int64 // of a chunk's content: for the caller to read, and to count down
	Over bool  // the body has ended

	edge    bool  // the CRLF after a chunk's content is due
	last    bool  // in the trailer
	excess  int32 // framing beyond what is reasonable, in bytes
	trailer int32 // bytes
}

// Next reads framing from have, which has come and is not read yet, up to a
// chunk's content or the end: used bytes of it. Where it reaches neither, more
// has to come. It takes whole lines only, so what it leaves is less than 1 KiB.
// ok is false for good once the framing is not what it must be. A bare LF is
// not: what one reader takes for a line's end and another does not is how
// messages get mixed up.
func (c *Chunks) Next(have []byte) (used int, ok bool) {
	if c.edge {
		if len(have) < 2 {
			return 0, true
		}
		if have[0] != '\r' || have[1] != '\n' {
			return 0, false
		}
		c.edge, used = false, 2
	}
	for {
		end := bytes.IndexByte(have[used:], '\n')
		switch {
		case end < 0:
			return used, len(have)-used < maxLine
		case end == 0 || end >= maxLine || have[used+end-1] != '\r':
			return used, false
		}
		line := have[used : used+end-1]
		used += end + 1
		switch {
		case !c.last:
			if !c.size(line) {
				return used, false
			}
			if c.Left > 0 {
				return used, true
			}
		case len(line) == 0:
			c.Over = true
			return used, true
		default:
			c.trailer += int32(len(line)) + 2
			if _, _, ok := Field(line); !ok || c.trailer > maxTrailer {
				return used, false
			}
		}
	}
}

// size takes a chunk's first line.
func (c *Chunks) size(line []byte) (ok bool) {
	if c.Left, ok = chunkSize(line); !ok {
		return false
	}
	c.edge, c.last = c.Left > 0, c.Left == 0
	// A chunk of n bytes accounts for 16 + 2 n bytes of framing.
	c.excess = max(0, c.excess+int32(len(line))+2-16-int32(min(2*c.Left, waste)))
	return c.excess <= waste
}

// chunkSize reads a chunk's first line without its end: "1a", perhaps with space
// after it, or else with extensions. A size has 60 bits at most.
func chunkSize(line []byte) (size int64, ok bool) {
	digits := 0
	for ; digits < len(line); digits++ {
		c := line[digits]
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			c = 0xff
		}
		if c == 0xff {
			break
		}
		if digits == 15 {
			return 0, false
		}
		size = size<<4 | int64(c)
	}
	rest := line[digits:]
	if digits == 0 || !IsPrintable(rest) || len(rest) > 0 && rest[0] != ';' && len(Trim(rest)) > 0 {
		return 0, false
	}
	return size, true
}
