package h1

import (
	"errors"
	"io"

	"ringmain/dataplane/syntax"
)

// direct is how much must be left of a body, or of a chunk, to be read past the
// buffer into the reader's own memory.
const direct = bufferSize

// body reads an answer's content.
type body struct {
	src     *source
	chunked bool
	toEOF   bool
	left    int64 // of the content, if its length was declared
	framing syntax.Chunks
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
	s := b.src
	for n < len(p) {
		if b.framing.Left == 0 {
			used, ok := b.framing.Next(s.pending())
			s.r += used
			switch {
			case !ok:
				return n, errChunk
			case b.framing.Over:
				return n, io.EOF
			case b.framing.Left == 0:
				if n > 0 {
					if s.gather(0) != nil {
						return n, nil
					}
				} else if err := s.fill(0); err != nil {
					return 0, cut(err)
				}
				continue
			}
		}
		if n > 0 && s.r == s.w && s.gather(0) != nil {
			break
		}
		want := p[n:]
		if int64(len(want)) > b.framing.Left {
			want = want[:b.framing.Left]
		}
		m, err := b.content(want)
		n += m
		b.framing.Left -= int64(m)
		if err != nil {
			return n, cut(err)
		}
	}
	return n, nil
}
