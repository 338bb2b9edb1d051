package h2

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

const (
	maxFrame   = 16 << 10 // bytes of a frame, in both directions: every client takes that, and no record of TLS holds more
	enough     = 64 << 10 // bytes that wait to be written, beyond which handlers wait
	turns      = 16       // writes that a handler makes for others before somebody else does
	maxControl = 10000    // answers to frames of a client that does not read them
	keepBuffer = 128 << 10
)

var errControl = errors.New("the client asks for answers and does not read them")

// out is what waits to be written, as frames. Whoever adds to it and finds
// nobody writing writes all of it; what others add meanwhile goes out with the
// next write. So answers that are ready together share records and system calls.
type out struct {
	frames  []byte
	buffer  *[]byte // that frames began in; nil = nothing waits
	control int     // frames in it that answer the client's
	heads   bool    // a header block was sent
	writing bool
	by      time.Time // the socket's write deadline; whose turn it is to write knows
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

func borrow() *[]byte { return buffers.Get().(*[]byte) } //nolint:forcetypeassert // only these are put

// giveBack gives a buffer back that grew to b.
func giveBack(buffer *[]byte, b []byte) {
	if cap(b) <= keepBuffer {
		*buffer = b[:0]
		buffers.Put(buffer)
	}
}

func (o *out) frame(kind http2.FrameType, flags http2.Flags, stream uint32, length int) {
	if o.buffer == nil {
		o.buffer = borrow()
		o.frames = *o.buffer
	}
	o.frames = append(o.frames, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	o.frames = binary.BigEndian.AppendUint32(o.frames, stream)
}

func (o *out) settings(all ...http2.Setting) {
	o.frame(http2.FrameSettings, 0, 0, 6*len(all))
	for _, s := range all {
		o.frames = binary.BigEndian.AppendUint16(o.frames, uint16(s.ID))
		o.frames = binary.BigEndian.AppendUint32(o.frames, s.Val)
	}
}

func (o *out) settingsAck() {
	o.control++
	o.frame(http2.FrameSettings, http2.FlagSettingsAck, 0, 0)
}

func (o *out) ping(flags http2.Flags, data [8]byte) {
	o.control++
	o.frame(http2.FramePing, flags, 0, len(data))
	o.frames = append(o.frames, data[:]...)
}

func (o *out) windowUpdate(stream, more uint32) {
	o.control++
	o.frame(http2.FrameWindowUpdate, 0, stream, 4)
	o.frames = binary.BigEndian.AppendUint32(o.frames, more)
}

func (o *out) reset(stream uint32, code http2.ErrCode) {
	o.control++
	o.frame(http2.FrameRSTStream, 0, stream, 4)
	o.frames = binary.BigEndian.AppendUint32(o.frames, uint32(code))
}

func (o *out) goAway(last uint32, code http2.ErrCode, why string) {
	o.frame(http2.FrameGoAway, 0, 0, 8+len(why))
	o.frames = binary.BigEndian.AppendUint32(o.frames, last)
	o.frames = binary.BigEndian.AppendUint32(o.frames, uint32(code))
	o.frames = append(o.frames, why...)
}

// head adds a header block, given in two parts.
func (o *out) head(stream uint32, end bool, block, more []byte) {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	var prefix []byte
	if !o.heads {
		o.heads, prefix = true, noTable
	}
	if len(prefix)+len(block)+len(more) > maxFrame { // rare, and worth a copy
		block = slices.Concat(prefix, block, more)
		prefix, more = nil, nil
		for ; len(block) > maxFrame; block = block[maxFrame:] {
			o.frame(kind, flags, stream, maxFrame)
			o.frames = append(o.frames, block[:maxFrame]...)
			kind, flags = http2.FrameContinuation, 0
		}
	}
	o.frame(kind, flags|http2.FlagHeadersEndHeaders, stream, len(prefix)+len(block)+len(more))
	o.frames = append(append(append(o.frames, prefix...), block...), more...)
}

func (o *out) data(stream uint32, end bool, b []byte) {
	flags := http2.Flags(0)
	if end {
		flags = http2.FlagDataEndStream
	}
	o.frame(http2.FrameData, flags, stream, len(b))
	o.frames = append(o.frames, b...)
}

// flush writes what waits, unless somebody does. The caller holds mu, which is
// given up meanwhile.
func (c *conn) flush() {
	if !c.out.writing {
		c.out.writing = true
		c.write(turns)
	}
}

// flushSoon is flush for those who may not wait for the client.
func (c *conn) flushSoon() {
	if !c.out.writing && len(c.out.frames) > 0 && c.err == nil {
		c.out.writing = true
		c.handOver()
	}
}

// handOver has a goroutine of its own write. The caller holds mu, and wrote until now.
func (c *conn) handOver() {
	c.tasks.Go(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.write(-1)
	})
}

// write writes until nothing waits, or it was somebody's turn often enough.
func (c *conn) write(turns int) {
	o := &c.out
	for ; len(o.frames) > 0 && c.err == nil; turns-- {
		if turns == 0 {
			c.handOver()
			return
		}
		b, buffer := o.frames, o.buffer
		o.frames, o.buffer, o.control = nil, nil, 0
		c.mu.Unlock()
		err := c.send(b)
		giveBack(buffer, b)
		c.mu.Lock()
		if err != nil {
			c.breakOff(err)
		}
		c.fewer.Signal()
		c.next()
	}
	o.writing = false
	c.windUp()
}

// send writes to the socket. The client has between half a stall and a whole one to take it.
func (c *conn) send(b []byte) error {
	if now := time.Now(); c.out.by.Sub(now) < c.limits.stall/2 {
		c.out.by = now.Add(c.limits.stall)
		_ = c.nc.SetWriteDeadline(c.out.by) // a connection that is closed says so when it is written to
	}
	_, err := c.nc.Write(b)
	return err //nolint:wrapcheck // wrapped where it is kept
}

// room waits until some of n bytes of s may be sent, and takes them out of the
// windows. Streams that wait for the connection do so in turn. Nobody waits for
// longer than until latest, a stall from the first wait. The caller holds mu,
// which is given up meanwhile.
func (s *stream) room(n int, latest *time.Time) (int, error) {
	c := s.c
	for {
		mine := s.window > 0
		switch {
		case s.err != nil:
			c.unqueue(s)
			return 0, s.err
		case mine && c.roomy() && (len(c.queue) == 0 || c.queue[0] == s):
			n = int(min(int64(n), c.window, s.window))
			c.window -= int64(n)
			s.window -= int64(n)
			c.unqueue(s)
			return n, nil
		case mine && !s.queued: // before it writes for others, or they have its turns meanwhile
			s.queued = true
			c.queue = append(c.queue, s)
			continue
		case !mine && s.queued:
			c.unqueue(s)
			continue
		case !c.out.writing && len(c.out.frames) > 0:
			c.flush()
			continue
		}
		if latest.IsZero() {
			*latest = time.Now().Add(c.limits.stall)
		}
		by := s.writeBy
		if by.IsZero() {
			by = *latest
		}
		if err := wait(&s.writable, by); err != nil {
			c.unqueue(s)
			return 0, err
		}
	}
}

func (c *conn) roomy() bool { return c.window > 0 && len(c.out.frames) < enough }

// unqueue takes s out of those that wait, and lets the next one have its turn.
func (c *conn) unqueue(s *stream) {
	if s.queued {
		s.queued = false
		i := slices.Index(c.queue, s)
		c.queue = slices.Delete(c.queue, i, i+1)
	}
	c.next()
}

// next wakes the first stream that waits for the connection, if there is room now.
func (c *conn) next() {
	if len(c.queue) > 0 && c.roomy() {
		c.queue[0].writable.Signal()
	}
}
