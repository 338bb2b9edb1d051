package h1

import (
	"errors"
	"io"

	"ringmain/dataplane/syntax"
)

const (
	// direct is how much must be left of a body, or of a chunk, to be read past
	// the buffer into the reader's own memory.
	direct = bufferSize
	// waste is how many bytes of chunk framing a body may have beyond what its
	// content accounts for: without a bound a server could send next to nothing
	// for ever.
	waste = 16 << 10
)

// body reads an answer's content.
type body struct {
	src     *source
	chunked bool
	toEOF   bool
	left    int64 // of the content, or of the chunk
	edge    bool  // the CRLF after a chunk's content is due
	last    bool  // in the trailer
	excess  int   // framing beyond what is reasonable, in bytes
	trailer int   // bytes
	err     error // once it ended
}

func (b *body) begin(src *source, h *Head) {
	*b = body{src: src, chunked: h.chunked, toEOF: !h.chunked && h.Length < 0}
	switch {
	case h.chunked || b.toEOF:
	case h.Length == 0:
		b.err = io.EOF
	default:
		b.left = h.Length
	}
}

// read gives what has come, and waits only if nothing has. After content it
// returns no error; that comes with the next call.
func (b *body) read(p []byte) (int, error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case len(p) == 0:
		return 0, nil
	}
	var n int
	var err error
	if b.chunked {
		n, err = b.chunks(p)
	} else {
		n, err = b.plain(p)
	}
	if err != nil {
		b.err = err
		if n > 0 {
			err = nil
		}
	}
	return n, err
}

func (b *body) plain(p []byte) (int, error) {
	if !b.toEOF && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.content(p)
	if b.toEOF {
		return n, err
	}
	if b.left -= int64(n); b.left == 0 {
		return n, io.EOF
	}
	return n, cut(err)
}

// cut turns an end that comes too early into what it is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// content reads into p what is known to be content.
func (b *body) content(p []byte) (int, error) {
	s := b.src
	if s.r == s.w {
		if len(p) >= direct {
			return s.from.Read(p)
		}
		if err := s.fill(0); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.pending())
	s.r += n
	return n, nil
}

// chunks reads as many chunks as have come and fit.
func (b *body) chunks(p []byte) (n int, err error) {
	for n < len(p) {
		if b.left == 0 {
			if err := b.next(n == 0); err != nil {
				if errors.Is(err, errNothing) {
					return n, nil
				}
				return n, err
			}
		}
		if n > 0 && b.src.r == b.src.w && b.src.gather(0) != nil {
			break
		}
		want := p[n:]
		if int64(len(want)) > b.left {
			want = want[:b.left]
		}
		m, err := b.content(want)
		n += m
		if b.left -= int64(m); b.left == 0 {
			b.edge = true
		}
		if err != nil {
			return n, cut(err)
		}
	}
	return n, nil
}

// next reads the framing up to the next chunk's content, or to the end: io.EOF.
// With wait false errNothing says that it has not all come; what has is kept.
func (b *body) next(wait bool) error {
	if b.edge {
		line, err := b.src.line(2, wait)
		if err != nil {
			if errors.Is(err, ErrTooLong) {
				err = errChunk
			}
			return cut(err)
		}
		if len(line) > 0 {
			return errChunk
		}
		b.edge = false
	}
	if !b.last {
		line, err := b.src.line(maxLine, wait)
		if err != nil {
			return cut(err)
		}
		size, ok := syntax.ChunkSize(line)
		if !ok {
			return errChunk
		}
		b.left = size
		// A chunk of n bytes accounts for 16 + 2 n bytes of framing.
		b.excess = max(0, b.excess+len(line)+2-16-int(min(2*b.left, waste)))
		if b.excess > waste {
			return errChunk
		}
		if b.left > 0 {
			return nil
		}
		b.last = true
	}
	for {
		line, err := b.src.line(maxLine, wait)
		if err != nil {
			return cut(err)
		}
		if len(line) == 0 {
			return io.EOF
		}
		if b.trailer += len(line) + 2; b.trailer > maxTrailer {
			return ErrTooLong
		}
		if _, _, ok := syntax.Field(line); !ok {
			return errField
		}
	}
}
