package h1

import (
	"bytes"
	"io"
)

const (
	bufferSize = 4 << 10
	maxHead    = 64 << 10 // status line, fields and interim answers, in bytes
)

// source is what comes in, and how far it is read. The part of the package
// that knows HTTP reads from one, with or without a connection behind it.
type source struct {
	from  io.Reader
	ready io.Reader // what from can give at once, or errNothing; nil = not known
	buf   []byte
	r, w  int  // buf[r:w] has come and is not read yet
	heard bool // something came, ever
}

func (s *source) pending() []byte { return s.buf[s.r:s.w] }

// gather adds what is there already. It never waits.
func (s *source) gather(most int) error {
	if s.ready == nil {
		return errNothing
	}
	return s.fillFrom(s.ready, most)
}

// fill waits for more. With most > 0 the buffer may grow until it holds most
// bytes that are not read yet; otherwise some must have been read.
func (s *source) fill(most int) error { return s.fillFrom(s.from, most) }

func (s *source) fillFrom(from io.Reader, most int) error {
	if s.r == s.w {
		s.r, s.w = 0, 0
	} else if s.w == len(s.buf) && s.r > 0 {
		s.w = copy(s.buf, s.pending())
		s.r = 0
	}
	if s.w == len(s.buf) {
		if len(s.buf) >= most {
			return errTooLong
		}
		grown := make([]byte, min(2*len(s.buf), most))
		s.w = copy(grown, s.pending())
		s.r, s.buf = 0, grown
	}
	for range 100 {
		n, err := from.Read(s.buf[s.w:])
		s.w += n
		if n > 0 {
			s.heard = true
			return nil // an error comes again with the next read
		}
		if err != nil {
			return err //nolint:wrapcheck // whoever reads knows what it means
		}
	}
	return io.ErrNoProgress
}

// line gives the next line without its CRLF, valid until the following call.
// A line may have most bytes. A bare LF is refused: what one reader takes for
// a line's end and another does not is how answers get mixed up.
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
