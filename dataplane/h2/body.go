package h2

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

var errShut = errors.New("h2: the request's body was closed")

// incoming is the body of a request.
type incoming struct{ s *stream }

// Read implements io.Reader.
func (in incoming) Read(p []byte) (int, error) {
	s, c := in.s, in.s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.expects && !s.headSent && s.err == nil {
		s.expects = false
		c.out.head(s.id, false, appendStatus(nil, 100), nil)
		c.flushSoon()
	}
	for {
		if s.shut {
			return 0, errShut
		}
		n := s.body.read(p)
		if n > 0 {
			c.freed(s, int64(n))
			c.flushSoon()
		}
		switch {
		case s.endedIn && len(s.body.chunks) == 0:
			return n, io.EOF
		case n > 0 || len(p) == 0:
			return n, nil
		case s.err != nil:
			return 0, s.err
		}
		if err := wait(&s.readable, s.readBy); err != nil {
			return 0, err
		}
	}
}

// Close implements io.Closer. What came and what comes is dropped: it takes
// nothing of the connection's window from other bodies.
func (in incoming) Close() error {
	s := in.s
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.drop()
	return nil
}

// wait waits for cond, or until by; who sets another deadline wakes it.
func wait(cond *sync.Cond, by time.Time) error {
	if by.IsZero() {
		cond.Wait()
		return nil
	}
	left := time.Until(by)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	t := time.AfterFunc(left, func() {
		cond.L.Lock() // so that it waits already
		defer cond.L.Unlock()
		cond.Broadcast()
	})
	defer t.Stop()
	cond.Wait()
	return nil
}

// body is what came of a request's body and was not read.
type body struct {
	chunks []*chunk
	from   int // in the first
}

type chunk struct {
	n int
	b [4 << 10]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

func (b *body) add(p []byte) {
	for len(p) > 0 {
		if n := len(b.chunks); n == 0 || b.chunks[n-1].n == len(b.chunks[n-1].b) {
			fresh := chunks.Get().(*chunk) //nolint:forcetypeassert // only these are put
			fresh.n = 0
			b.chunks = append(b.chunks, fresh)
		}
		last := b.chunks[len(b.chunks)-1]
		n := copy(last.b[last.n:], p)
		last.n += n
		p = p[n:]
	}
}

func (b *body) read(p []byte) (n int) {
	for n < len(p) && len(b.chunks) > 0 {
		first := b.chunks[0]
		m := copy(p[n:], first.b[b.from:first.n])
		n += m
		if b.from += m; b.from == first.n {
			chunks.Put(first)
			b.chunks, b.from = b.chunks[1:], 0
		}
	}
	return n
}

// drop gives up what is left, and says how much it was.
func (b *body) drop() (n int64) {
	for _, k := range b.chunks {
		n += int64(k.n)
		chunks.Put(k)
	}
	n -= int64(b.from)
	*b = body{}
	return n
}
