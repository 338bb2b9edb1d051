package dataplane

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"ringmain/dataplane/dialect"
)

// maxBody bounds a request body, in bytes.
const maxBody = 32 << 20

const (
	smallBody = 8 << 10
	keepBody  = 256 << 10 // larger buffers are left to the collector
)

// bodyPool lends memory for request bodies. Of large ones it lends only so
// much at a time: a full house of them would be 128 GiB.
type bodyPool struct {
	pool  sync.Pool
	most  int64
	large atomic.Int64 // bytes lent beyond keepBody
}

// body is one borrowed request body. It goes back when nobody reads it any more.
type body struct {
	bytes []byte
	large int64 // its share of the pool's
	hold  *dialect.Hold
}

func (p *bodyPool) get() *body {
	b, ok := p.pool.Get().(*body)
	if !ok {
		b = &body{bytes: make([]byte, 0, smallBody)}
	}
	b.hold = dialect.NewHold(func() { p.put(b) })
	return b
}

func (p *bodyPool) put(b *body) {
	p.large.Add(-b.large)
	if cap(b.bytes) > keepBody {
		return
	}
	b.bytes, b.hold = b.bytes[:0], nil
	p.pool.Put(b)
}

var (
	errTooLarge = dialect.Fail(dialect.RequestTooLarge, "The request body is larger than 32 MiB: send less, or split the request.")
	errBodyRead = dialect.Fail(dialect.InvalidRequest, "The request body did not arrive whole: send all of it, at the length that was declared.")
)

// grow gives buf room for want bytes in all.
func (p *bodyPool) grow(b *body, buf []byte, want int64) ([]byte, *dialect.Error) {
	if want > keepBody {
		if p.large.Add(want-b.large) > p.most {
			p.large.Add(b.large - want)
			return nil, errShed
		}
		b.large = want
	}
	return append(make([]byte, 0, want), buf...), nil
}

// read fills b with the request's body, before anybody upstream is asked: an
// answer that overtakes its request breaks streams.
func (p *bodyPool) read(b *body, r *http.Request) *dialect.Error {
	if r.ContentLength > maxBody {
		return errTooLarge
	}
	buf := b.bytes[:0]
	defer func() { b.bytes = buf }()
	length := r.ContentLength + 1 // one more, to see the end without growing
	if length <= keepBody && length > int64(cap(buf)) {
		buf = make([]byte, 0, length)
	}
	for {
		if have := int64(len(buf)); have == int64(cap(buf)) {
			want := min(4*have, maxBody+1) // what came earns room, what was declared does not
			if length > have {
				want = min(want, length)
			}
			more, refused := p.grow(b, buf, want)
			if refused != nil {
				return refused
			}
			buf = more
		}
		n, err := r.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case len(buf) > maxBody:
			return errTooLarge
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errBodyRead
		}
	}
}
