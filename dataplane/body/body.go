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
	keepBody  = 256 << 10 // larger buffers come in a few sizes of their own
)

// bodyPool lends memory for request bodies. Of large ones it lends only so
// much at a time: a full house of them would be 128 GiB. They are used again,
// too: clearing and collecting them costs more than scanning what they hold.
type bodyPool struct {
	pool  sync.Pool
	most  int64
	large atomic.Int64     // bytes lent in large buffers
	spare [kinds]sync.Pool // large buffers, by size
}

// kinds of large buffers: 512 KiB to 32 MiB, four sizes from each to its double.
const kinds = 25

// sizeOf is the size of a kind, with a page on top: of a body of just that
// size, one more byte is read.
func sizeOf(kind int) int64 { return keepBody/2*int64(4+kind%4)<<(kind/4) + 4<<10 }

// kindOf is the smallest kind that holds n bytes.
func kindOf(n int64) (kind int) {
	for sizeOf(kind) < n {
		kind++
	}
	return kind
}

// keep takes a large buffer back that nobody reads any more.
func (p *bodyPool) keep(buf []byte) {
	if kind := kindOf(int64(cap(buf))); sizeOf(kind) == int64(cap(buf)) {
		p.spare[kind].Put(&buf)
	}
}

// body is one borrowed request body. It goes back when nobody reads it any more.
type body struct {
	content dialect.Content
	large   int64 // its share of the pool's
	hold    *dialect.Hold
}

// bytes gives what was read. Nobody prints it.
func (b *body) bytes() []byte { return b.content.Bytes() }

func (p *bodyPool) get() *body {
	b, ok := p.pool.Get().(*body)
	if !ok {
		b = &body{content: dialect.Conceal(make([]byte, 0, smallBody))}
	}
	b.hold = dialect.NewHold(func() { p.put(b) })
	return b
}

func (p *bodyPool) put(b *body) {
	p.large.Add(-b.large)
	buf := b.bytes()
	if cap(buf) > keepBody {
		p.keep(buf)
		return
	}
	b.content, b.hold = dialect.Conceal(buf[:0]), nil
	p.pool.Put(b)
}

var (
	errTooLarge = dialect.Fail(dialect.RequestTooLarge, "The request body is larger than 32 MiB: send less, or split the request.")
	errBodyRead = dialect.Fail(dialect.InvalidRequest, "The request body did not arrive whole: send all of it, at the length that was declared.")
)

// grow gives buf room for want bytes in all.
func (p *bodyPool) grow(b *body, buf []byte, want int64) ([]byte, *dialect.Error) {
	if want <= keepBody {
		return append(make([]byte, 0, want), buf...), nil
	}
	kind := min(kindOf(want), kindOf(int64(cap(buf)))+8) // fourfold at most
	want = sizeOf(kind)
	if p.large.Add(want-b.large) > p.most {
		p.large.Add(b.large - want)
		return nil, errShed
	}
	b.large = want
	room, ok := p.spare[kind].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, 0, want)
		room = &fresh
	}
	more := append((*room)[:0], buf...)
	if cap(buf) > keepBody {
		p.keep(buf)
	}
	return more, nil
}

// read fills b with the request's body, before anybody upstream is asked: an
// answer that overtakes its request breaks streams. seen is given each part as
// it comes, while it is in the processor's cache; nil = nobody looks.
func (p *bodyPool) read(b *body, r *http.Request, seen io.Writer) *dialect.Error {
	if r.ContentLength > maxBody {
		return errTooLarge
	}
	buf := b.bytes()[:0]
	defer func() { b.content = dialect.Conceal(buf) }()
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
		if seen != nil && n > 0 {
			_, _ = seen.Write(buf[len(buf)-n:]) // never fails
		}
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
