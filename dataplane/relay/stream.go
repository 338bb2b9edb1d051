package relay

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// Stream is a streamed answer that has begun. It is not safe for concurrent use.
type Stream struct {
	State dialect.Stream // what the events said so far

	body    io.ReadCloser
	attempt *attempt
	idle    time.Duration
	client  *Client
	buffer  *[]byte
	split   dialect.Splitter
	from    int    // first byte not yet given out
	next    int    // first byte not yet cut into an event
	begun   bool   // an event that says something was seen
	first   *Batch // read while waiting for that
	tainted bool   // see Result.Taint
}

// Batch is what Next gives: whole events only. Its bytes are valid until the
// following Next.
type Batch struct {
	Forward []byte // events to pass on as they are; may be empty
	// Last is the event that completes the answer. It is not part of Forward,
	// so that the record can be made before it goes out.
	Last []byte
	// Broken says that the stream ended without being complete.
	Broken *Broken
}

// Broken is how a stream broke.
type Broken struct {
	Outcome breaker.Outcome
	Event   []byte // the upstream's own error event, if that was it
	Cause   error  // holds no content
}

var (
	errCut     = errors.New("the stream ended before it was complete")
	errGarbage = errors.New("the stream holds something that is no event of its dialect")
	errEvent   = errors.New("the upstream reported an error within the stream")
	errNoSSE   = errors.New("a stream was asked for, and something else came")
)

// stream reads the answer up to its first event that says something. A stream
// that breaks before is a failed attempt: nothing has gone to the client.
func (c *Client) stream(r *Result, resp *http.Response, state dialect.Stream, idle time.Duration) *Result {
	if !strings.HasPrefix(strings.ToLower(r.ContentType), eventType[0]) {
		_ = resp.Body.Close()
		return r.fail(errNoSSE, breaker.ServerError)
	}
	s := &Stream{State: state, body: resp.Body, attempt: r.attempt, idle: idle, client: c, buffer: c.getBuffer()}
	r.Stream = s
	for {
		b, spoke := s.take()
		if spoke {
			if b.Broken != nil {
				return r.fail(b.Broken.Cause, b.Broken.Outcome)
			}
			s.begun, s.first = true, &b
			s.attempt.rest()
			return r
		}
		if err := s.read(); err != nil {
			b := s.broken(err)
			return r.fail(b.Broken.Cause, b.Broken.Outcome)
		}
	}
}

// Next gives the next whole events. After Last or Broken it must not be called.
func (s *Stream) Next() Batch {
	if s.first != nil {
		b := *s.first
		s.first = nil
		return b
	}
	for {
		b, _ := s.take()
		if len(b.Forward) > 0 || b.Last != nil || b.Broken != nil {
			return b
		}
		s.attempt.expect(s.idle, errIdle)
		err := s.read()
		if err != nil {
			return s.broken(err)
		}
		s.attempt.rest()
	}
}

// take cuts the events that are in the buffer. spoke: one of them was more
// than a comment or ping; before the first such one nothing is given out.
func (s *Stream) take() (b Batch, spoke bool) {
	buf := *s.buffer
	for {
		n := s.split.Next(buf[s.next:])
		if n == 0 {
			break
		}
		event := buf[s.next : s.next+n]
		kind := s.State.Event(event)
		if kind == dialect.KindIdle {
			s.next += n
			continue
		}
		spoke = true
		switch kind {
		case dialect.KindContent:
			s.next += n
			continue
		case dialect.KindHidden:
			b.Forward = s.give(s.next)
			s.next += n
			s.from = s.next
			if len(b.Forward) > 0 {
				return b, spoke
			}
			continue
		case dialect.KindLast:
			b.Forward, b.Last = s.give(s.next), event
		case dialect.KindError:
			b.Forward, b.Broken = s.give(s.next), &Broken{breaker.ServerError, event, errEvent}
		default:
			b.Forward, b.Broken = s.give(s.next), &Broken{breaker.ServerError, nil, errGarbage}
		}
		s.next += n
		s.from = s.next
		return b, spoke
	}
	if !s.begun && !spoke {
		return Batch{}, false
	}
	b.Forward = s.give(s.next)
	return b, spoke
}

// give takes the bytes up to end out of the buffer.
func (s *Stream) give(end int) []byte {
	b := (*s.buffer)[s.from:end]
	s.from = end
	return b
}

// read adds what comes next to the buffer. What was given out is forgotten.
func (s *Stream) read() error {
	b := *s.buffer
	if s.from > 0 {
		b = b[:copy(b, b[s.from:])]
		s.next -= s.from
		s.from = 0
	}
	if len(b) > dialect.MaxEvent {
		return errGarbage
	}
	if cap(b)-len(b) < 512 {
		b = slices.Grow(b, len(b)+smallBuffer)
	}
	for {
		n, err := s.body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		*s.buffer = b
		if n > 0 {
			return nil // an error comes again with the next read
		}
		if err != nil {
			return err //nolint:wrapcheck // broken turns it into a Batch
		}
	}
}

func (s *Stream) broken(err error) Batch {
	o := s.attempt.outcome(err)
	switch {
	case errors.Is(err, errGarbage):
		o = breaker.ServerError
	case errors.Is(err, io.EOF):
		err = errCut
	default:
		err = wire(err)
	}
	return Batch{Broken: &Broken{Outcome: o, Cause: err}}
}

// drainTime is how long the end of a complete answer is waited for, so that
// its connection can be used again.
const drainTime = 20 * time.Millisecond

func (s *Stream) close() {
	if s.State.Done && s.attempt.Err() == nil {
		s.attempt.expect(drainTime, errFinished)
		var scrap [64]byte
		for range 4 {
			if _, err := s.body.Read(scrap[:]); err != nil {
				break
			}
		}
	}
	s.attempt.end()
	_ = s.body.Close()
	if !s.tainted {
		s.client.putBuffer(s.buffer)
		s.tainted = true
	}
}
