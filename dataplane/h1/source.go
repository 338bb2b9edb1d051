package h1

import (
	"errors"
	"sync"
)

const bufferSize = 4 << 10

var errTooLong = errors.New("h1: more came than may be kept")

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
