package h1

import (
	"bytes"
	"errors"
	"sync"
)

const (
	bufferSize = 4 << 10
	maxLine    = 1 << 10 // of a chunk's size with its extensions, in bytes
)

var (
	errTooLong = errors.New("h1: a line is too long")
	errBareLF  = errors.New("h1: a line does not end as it must")
)

// source is what comes in, and how far it is read.
type source struct {
	c    *conn
	buf  *[bufferSize]byte // that data began in; nil = it has no memory
	data []byte
	r, w int // data[r:w] has come and is not read yet
}

var sources = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// release gives the memory back: nothing is kept of what came. At the end of a
// connection it is left to the collector: who reads a body still may be about to
// write to it.
func (s *source) release() {
	if s.buf != nil {
		sources.Put(s.buf)
		s.buf, s.data, s.r, s.w = nil, nil, 0, 0
	}
}

func (s *source) pending() []byte { return s.data[s.r:s.w] }

// fill waits for more. The buffer may grow until it holds most bytes that are
// not read yet.
func (s *source) fill(most int) error {
	switch {
	case s.buf == nil:
		s.buf = sources.Get().(*[bufferSize]byte) //nolint:forcetypeassert // only these are put
		s.data = s.buf[:]
	case s.r == s.w:
		s.r, s.w = 0, 0
	case s.w == len(s.data) && s.r > 0:
		s.w = copy(s.data, s.pending())
		s.r = 0
	}
	if s.c.early {
		s.c.early = false
		s.data[s.w] = s.c.first[0]
		s.w++
		return nil
	}
	if s.w == len(s.data) {
		if len(s.data) >= most {
			return errTooLong
		}
		grown := make([]byte, min(2*len(s.data), most))
		s.w = copy(grown, s.pending())
		s.r, s.data = 0, grown
	}
	n, err := s.c.read(s.data[s.w:])
	s.w += n
	return err
}

// line gives the next line of a body's framing without its CRLF, valid until the
// following call. A bare LF is refused: what one reader takes for a line's end
// and another does not is how requests are smuggled.
func (s *source) line(most int) ([]byte, error) {
	for seen := 0; ; {
		have := s.pending()
		if i := bytes.IndexByte(have[seen:], '\n'); i >= 0 {
			i += seen
			if i+1 > most {
				return nil, errTooLong
			}
			if i == 0 || have[i-1] != '\r' {
				return nil, errBareLF
			}
			s.r += i + 1
			return have[:i-1], nil
		}
		if seen = len(have); seen >= most {
			return nil, errTooLong
		}
		if err := s.fill(most); err != nil {
			return nil, err
		}
	}
}
