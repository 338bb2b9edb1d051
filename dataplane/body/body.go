// Package body reads request bodies into memory that is lent and taken back: of
// large bodies only so much at a time.
//
// It does not look at what it reads.
package body

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"ringmain/dataplane/dialect"
)

// Max bounds a request body, in bytes.
const Max = 32 << 20

const (
	smallBody = 8 << 10
	keepBody  = 256 << 10 // larger buffers come in a few sizes of their own
)

// Pool lends memory for request bodies. Of large ones it lends only so
// much at a time: a full house of them would be 128 GiB. They are used again,
// too: clearing and collecting them costs more than scanning what they hold.
type Pool struct {
	rooms sync.Pool
	most  int64
	large atomic.Int64     // bytes lent in large buffers
	kept  atomic.Int64     // of them, see Body.Keep
	spare [kinds]sync.Pool // large buffers, by size
}

// room is memory that is not large.
type room struct{ content dialect.Content }

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

// NewPool lends at most that many bytes in large buffers at once.
func NewPool(most int64) *Pool { return &Pool{most: most} }

// again takes a large buffer back that nobody reads any more.
func (p *Pool) again(buf []byte) {
	if kind := kindOf(int64(cap(buf))); sizeOf(kind) == int64(cap(buf)) {
		p.spare[kind].Put(&buf)
	}
}

// Body is one request's body, in borrowed memory. That goes back when the borrower
// has released the body and nobody else reads it any more; the Body is not used
// again, so that whoever has it still finds nothing in it.
type Body struct {
	hold     dialect.Hold
	pool     *Pool
	room     *room // nil = it went back
	size     int64
	large    int64 // its share of the pool's
	kept     bool  // see Keep
	released bool
}

// Get lends a body to a borrower, who releases it.
func (p *Pool) Get() *Body {
	b := &Body{pool: p}
	var ok bool
	if b.room, ok = p.rooms.Get().(*room); !ok {
		b.room = &room{dialect.Conceal(make([]byte, 0, smallBody))}
	}
	b.hold.Begin((*lender)(b))
	return b
}

// Bytes gives what was read. Nobody prints it. Only the borrower asks, until he
// releases it: it is another request's memory then.
func (b *Body) Bytes() []byte {
	if b.released {
		panic("body: read after it was given back")
	}
	return b.room.content.Bytes()
}

// Len is how many bytes were read. It is known after Release, too.
func (b *Body) Len() int64 { return b.size }

// Whole is all of b, to be sent, for as long as somebody uses it.
func (b *Body) Whole() dialect.Body { return b.Lend(dialect.WholeBody(b.Bytes())) }

// Lend says that parts are of b: whoever reads them keeps it lent.
func (b *Body) Lend(parts dialect.Body) dialect.Body { return parts.Held(&b.hold) }

// Keep reports whether b may stay lent for what is useful and not needed. Large
// bodies that are kept take half of what may be lent at most. It is asked once.
func (b *Body) Keep() bool {
	if b.pool.kept.Add(b.large) > b.pool.most/2 {
		b.pool.kept.Add(-b.large)
		return false
	}
	b.kept = true
	return true
}

// Release says that the borrower will not ask for the bytes again. It may be
// called more than once.
func (b *Body) Release() {
	if b.released {
		return
	}
	b.released = true
	if b.kept {
		b.pool.kept.Add(-b.large)
	}
	b.hold.Release()
}

// lender is a Body, to its Hold.
type lender Body

// TakeBack gives the memory back.
func (b *lender) TakeBack() {
	p, r := b.pool, b.room
	b.room = nil
	buf := r.content.Bytes()
	spoil(buf[:cap(buf)])
	if b.large > 0 {
		p.large.Add(-b.large)
		p.again(buf)
		return
	}
	r.content = dialect.Conceal(buf[:0])
	p.rooms.Put(r)
}

// Why a body was not read.
var (
	ErrTooLarge = dialect.Fail(dialect.RequestTooLarge, "The request body is larger than 32 MiB: send less, or split the request.")
	errTorn     = dialect.Fail(dialect.InvalidRequest, "The request body did not arrive whole: send all of it, at the length that was declared.")
	// ErrNoRoom: all that may be lent in large buffers is.
	ErrNoRoom = dialect.Fail(dialect.CapacityShed, "This node holds as many large request bodies as it may: retry shortly.")
)

// grow gives buf room for want bytes in all.
func (p *Pool) grow(b *Body, buf []byte, want int64) ([]byte, *dialect.Error) {
	if want <= keepBody {
		return append(make([]byte, 0, want), buf...), nil
	}
	kind := min(kindOf(want), kindOf(int64(cap(buf)))+8) // fourfold at most
	want = sizeOf(kind)
	if p.large.Add(want-b.large) > p.most {
		p.large.Add(b.large - want)
		return nil, ErrNoRoom
	}
	b.large = want
	spare, ok := p.spare[kind].Get().(*[]byte)
	if !ok {
		fresh := make([]byte, 0, want)
		spare = &fresh
	}
	more := append((*spare)[:0], buf...)
	if cap(buf) > keepBody {
		p.again(buf)
	}
	return more, nil
}

// Read fills b with the request's body, before anybody upstream is asked: an
// answer that overtakes its request breaks streams. seen is given each part as
// it comes, while it is in the processor's cache; nil = nobody looks.
func (p *Pool) Read(b *Body, r *http.Request, seen io.Writer) *dialect.Error {
	if r.ContentLength > Max {
		return ErrTooLarge
	}
	buf := b.Bytes()[:0]
	defer func() { b.room.content, b.size = dialect.Conceal(buf), int64(len(buf)) }()
	length := r.ContentLength + 1 // one more, to see the end without growing
	if length <= keepBody && length > int64(cap(buf)) {
		buf = make([]byte, 0, length)
	}
	for {
		if have := int64(len(buf)); have == int64(cap(buf)) {
			want := min(4*have, Max+1) // what came earns room, what was declared does not
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
		case len(buf) > Max:
			return ErrTooLarge
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errTorn
		}
	}
}
