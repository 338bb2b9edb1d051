package h1

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"

	"ringmain/dataplane/syntax"
)

const (
	maxTrailer = 4 << 10 // in bytes
	// waste is how many bytes of chunk framing a body may have beyond what its
	// content accounts for: without a bound a client could send next to nothing
	// for ever.
	waste = 16 << 10
	// direct is how much must be left of a body, or of a chunk, to be read past
	// the buffer into the reader's own memory.
	direct = bufferSize

	drainBytes = 256 << 10   // of a body that its handler did not want, so that the connection can go on
	drainWait  = time.Second // for them
)

var (
	errShut  = errors.New("h1: the request's body was closed")
	errChunk = errors.New("h1: the body's chunks are not what they must be")
)

// body is the body of a request. A goroutine that its handler started may read
// it, and may do so still when the handler is over.
type body struct {
	c       *conn
	chunked bool

	mu      sync.Mutex
	expects bool  // 100-continue is to be sent before it is read
	edge    bool  // the CRLF after a chunk's content is due
	left    int64 // of the content, or of the chunk
	excess  int   // framing beyond what is reasonable, in bytes
	err     error // io.EOF: all has come
	shut    bool
}

// whole reports whether all of it has come. Nobody reads it from then on: what is
// left belongs to linger.
func (b *body) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
	return b.ended()
}

func (b *body) ended() bool { return b.err == io.EOF } //nolint:errorlint // it is set here

// Read implements io.Reader: it gives what has come, and waits only if nothing has.
func (b *body) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read(p)
}

func (b *body) read(p []byte) (n int, err error) {
	switch {
	case b.shut:
		return 0, errShut
	case b.err != nil:
		return 0, b.err
	case len(p) == 0:
		return 0, nil
	}
	if b.expects {
		b.expects = false
		if b.err = b.c.send(goOn, time.Time{}); b.err != nil {
			return 0, b.err
		}
	}
	if b.chunked {
		n, err = b.chunks(p)
	} else {
		n, err = b.content(p)
		if b.left == 0 {
			err = io.EOF
		}
	}
	if err != nil {
		if errors.Is(err, io.EOF) && b.left > 0 {
			err = io.ErrUnexpectedEOF
		}
		if b.err = err; b.ended() {
			b.c.allRead()
		}
	}
	return n, err
}

var goOn = []byte("HTTP/1.1 100 Continue\r\n\r\n")

// Close implements io.Closer.
func (b *body) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.shut = true
	return nil
}

// content reads into p what is known to be content, and is still to come.
func (b *body) content(p []byte) (n int, err error) {
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	s := &b.c.in
	if s.r == s.w && len(p) >= direct && !b.c.early {
		n, err = b.c.read(p)
	} else {
		if s.r == s.w {
			if err := s.fill(0); err != nil {
				return 0, err
			}
		}
		n = copy(p, s.pending())
		s.r += n
	}
	b.left -= int64(n)
	return n, err
}

// chunks reads as many chunks as have come and fit.
func (b *body) chunks(p []byte) (n int, err error) {
	for n < len(p) {
		if b.left == 0 {
			if n > 0 && !b.framed() {
				break
			}
			if err := b.next(); err != nil {
				return n, cut(err)
			}
		}
		if n > 0 && b.c.in.r == b.c.in.w {
			break
		}
		m, err := b.content(p[n:])
		n += m
		b.edge = b.left == 0
		if err != nil {
			return n, cut(err)
		}
	}
	return n, nil
}

// cut turns an end that comes too early into what it is; errOver is the true one.
func cut(err error) error {
	switch {
	case err == errOver: //nolint:errorlint // never wrapped
		return io.EOF
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

var errOver = errors.New("h1: the body is over")

// framed reports whether the framing of the next chunk has come already.
func (b *body) framed() bool {
	have := b.c.in.pending()
	if b.edge {
		if len(have) < 2 {
			return false
		}
		have = have[2:]
	}
	return bytes.IndexByte(have, '\n') >= 0
}

// next reads the framing up to the next chunk's content, or to the end: errOver.
func (b *body) next() error {
	s := &b.c.in
	if b.edge {
		if _, err := s.line(len("\r\n")); err != nil {
			return err
		}
		b.edge = false
	}
	line, err := s.line(maxLine)
	if err != nil {
		return err
	}
	size, ok := syntax.ChunkSize(line)
	if at := bytes.IndexByte(line, ';'); !ok || at > 0 && line[at-1] <= ' ' { // net/http refuses such space
		return errChunk
	}
	// A chunk of n bytes accounts for 16 + 2 n bytes of framing.
	b.excess = max(0, b.excess+len(line)+2-16-int(min(2*size, waste)))
	if b.excess > waste {
		return errChunk
	}
	if b.left = size; size > 0 {
		return nil
	}
	for trailer := 0; ; {
		line, err := s.line(maxLine)
		if err != nil {
			return err
		}
		if len(line) == 0 {
			return errOver
		}
		if trailer += len(line) + 2; trailer > maxTrailer {
			return errTooLong
		}
		if _, _, ok := syntax.Field(line); !ok {
			return errChunk
		}
	}
}

// unasked reports whether a client that waits for 100-continue got none. It gets
// none any more: the answer begins.
func (b *body) unasked() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.expects
	b.expects = false
	return was
}

// drain reads what its handler left of the body, if that is little and comes
// soon. false: some is still to come, and the connection cannot go on.
func (b *body) drain() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil || !b.chunked && b.left > drainBytes {
		return b.ended()
	}
	c, now := b.c, time.Now()
	c.mu.Lock()
	if by := now.Add(drainWait); c.readBy.IsZero() || c.readBy.After(by) {
		c.readBy = by
	}
	c.mu.Unlock()
	b.shut = false
	_, _ = io.CopyN(io.Discard, reader(b.read), drainBytes+1) // what became of it shows in b
	b.shut = true
	return b.ended()
}

type reader func(p []byte) (int, error)

func (f reader) Read(p []byte) (int, error) { return f(p) }
