package h1

import (
	"errors"
	"io"
	"sync"
	"time"

	"ringmain/dataplane/syntax"
)

const (
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
	c *conn

	mu      sync.Mutex
	left    int64 // of the content, if its length was declared
	framing syntax.Chunks
	err     error // io.EOF: all has come
	shut    bool
	expects bool // 100-continue is to be sent before it is read
	chunked bool // never changes
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
		n, err = b.content(p, &b.left)
		if err == nil && b.left == 0 {
			err = io.EOF
		}
	}
	if err != nil {
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

// content reads into p what is known to be content: left bytes are to come.
func (b *body) content(p []byte, left *int64) (n int, err error) {
	if int64(len(p)) > *left {
		p = p[:*left]
	}
	s := &b.c.in
	if s.r == s.w && len(p) >= direct && !b.c.early {
		n, err = b.c.read(p)
	} else {
		if s.r == s.w {
			if err := s.fill(0); err != nil {
				return 0, cut(err)
			}
		}
		n = copy(p, s.pending())
		s.r += n
	}
	*left -= int64(n)
	return n, cut(err)
}

// chunks reads as many chunks as have come and fit.
func (b *body) chunks(p []byte) (n int, err error) {
	s := &b.c.in
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
					return n, nil
				}
				if err := s.fill(0); err != nil {
					return 0, cut(err)
				}
				continue
			}
		}
		if n > 0 && s.r == s.w {
			break
		}
		m, err := b.content(p[n:], &b.framing.Left)
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// cut turns an end that comes too early into what it is.
func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
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
