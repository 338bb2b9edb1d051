package relay

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
)

// Stream is a streamed answer that has begun. It is not safe for concurrent use.
type Stream struct {
	State stream.Stream // what the events said so far

	body    io.ReadCloser
	attempt *attempt
	idle    time.Duration
	client  *Client
	buffer  *[]byte
	split   stream.Splitter
	from    int    // first byte not yet given out
	next    int    // first byte not yet cut into an event
	closing int    // where the event is that closes the answer, if closed
	closed  bool   // it came, and waits for the mark that may follow
	lent    int64  // of Client.events
	begun   bool   // an event that says something was seen
	first   *Batch // read while waiting for that
	tainted bool   // see Result.Taint

	closeBy  time.Time // when a complete answer is closed, whatever its upstream does; zero = it is not complete
	finished bool      // its closing event is our own
	skipped  int
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

// ErrNoRoom is the cause where a long event would take more memory than there
// is for those of all streams. The upstream is well.
var ErrNoRoom = errors.New("this node holds as many long events as it may")

// streams reports whether an answer of that type to ask is a stream, or claims to be.
func streams(ep *dialect.Endpoint, contentType string) bool { return !ep.Media || isSSE(contentType) }

func isSSE(contentType string) bool {
	return strings.HasPrefix(strings.ToLower(contentType), eventType[0])
}

// stream reads the answer up to its first event that says something. A stream
// that breaks before is a failed attempt: nothing has gone to the client.
func (c *Client) stream(r *Result, body io.ReadCloser, state stream.Stream, idle time.Duration) *Result {
	if !isSSE(r.ContentType) {
		_ = body.Close()
		return r.fail(errNoSSE, breaker.ServerError)
	}
	s := &Stream{State: state, body: body, attempt: r.attempt, idle: idle, client: c, buffer: c.getBuffer()}
	r.Stream = s
	for {
		b, spoke := s.take()
		if spoke {
			switch {
			case b.Broken == nil:
			case b.Broken.Outcome == breaker.Refused: // final, and the client's to see
				r.Outcome = breaker.Refused
			case b.Broken.Outcome == breaker.ClientError:
				return s.problem(r, b.Broken)
			default:
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

// problem makes of a stream that says at once that the request is at fault the
// answer which says so by its status.
func (s *Stream) problem(r *Result, b *Broken) *Result {
	r.Outcome, r.Cause = b.Outcome, b.Cause
	r.Status, r.Problem, r.ContentType = s.State.Problem.Status, s.State.Problem, jsonType[0]
	r.Stream, r.buffer, r.body = nil, s.buffer, dialect.Conceal(stream.ErrorBody(b.Event))
	_ = s.body.Close()
	s.giveBack()
	return r
}

// Keep notes in t what the client is given of the stream. It is called before
// the first Next.
func (s *Stream) Keep(t *stream.Transcript) {
	if s.first != nil {
		again := stream.Stream{Dialect: s.State.Dialect, Endpoint: s.State.Endpoint, Transcript: t}
		for b := s.first.Forward; len(b) > 0; {
			var split stream.Splitter
			n := split.Next(b)
			again.Event(b[:n])
			b = b[n:]
		}
	}
	s.State.Transcript = t
}

// Skipped is how many malformed events were left out: nothing can be lost with
// them.
func (s *Stream) Skipped() int { return s.skipped }

// Finished reports whether the closing event is our own, because the upstream
// owed it.
func (s *Stream) Finished() bool { return s.finished }

// How long a complete answer waits for its closing event, and, if the figures
// of what it cost are still to come, for those.
const (
	closingTime = 250 * time.Millisecond
	figuresTime = time.Second
)

// due gives how long the next read may take. over: the answer is complete and
// its closing event is late.
func (s *Stream) due() (wait time.Duration, over bool) {
	if !s.State.Complete() {
		return s.idle, false
	}
	bound := figuresTime
	if s.State.Usage.Final || s.closed { // what closes an answer has the figures, if anything has
		bound = closingTime
	}
	now := time.Now()
	if by := now.Add(bound); s.closeBy.IsZero() || by.Before(s.closeBy) {
		s.closeBy = by
	}
	wait = s.closeBy.Sub(now)
	return wait, wait <= 0
}

// finish closes a complete answer: by what its upstream said last, or in its stead.
func (s *Stream) finish() Batch {
	s.State.Done = true
	closing := s.State.Closing()
	if closing == nil {
		return Batch{Last: s.give(s.next)}
	}
	s.finished = true
	return Batch{Last: closing}
}

// Next gives the next whole events. After Last or Broken it must not be called.
func (s *Stream) Next() Batch {
	if s.first != nil {
		b := *s.first
		s.first = nil
		if len(b.Forward) > 0 || b.Last != nil || b.Broken != nil || !s.closed {
			return b
		}
	}
	for {
		b, _ := s.take()
		if len(b.Forward) > 0 || b.Last != nil || b.Broken != nil {
			return b
		}
		wait, over := s.due()
		if over {
			return s.finish()
		}
		s.attempt.expect(wait, errIdle)
		err := s.read()
		switch {
		case err != nil && s.State.Complete() && s.attempt.outcome(err) != breaker.ClientGone, errors.Is(err, io.EOF) && s.State.Ends():
			return s.finish()
		case err != nil:
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
		if kind == stream.KindIdle {
			s.next += n
			continue
		}
		spoke = spoke || kind != stream.KindSkip
		switch kind {
		case stream.KindContent:
			s.next += n
			continue
		case stream.KindClosing:
			if !s.closed {
				s.closing, s.closed = s.next, true
			}
			s.next += n
			continue
		case stream.KindHidden, stream.KindSkip:
			if kind == stream.KindSkip {
				s.skipped++
			}
			if s.closed {
				b.Forward = s.give(s.closing)
				b.Last = s.finish().Last
				return b, spoke
			}
			b.Forward = s.give(s.next)
			s.next += n
			s.from = s.next
			if len(b.Forward) > 0 && (s.begun || spoke) { // else it is comments that nobody has missed
				return b, spoke
			}
			continue
		case stream.KindLast:
			b.Forward = s.give(s.ready())
			b.Last = s.give(s.next + n)
		case stream.KindError:
			o := within(s.State.Problem)
			if s.State.Refused {
				o = breaker.Refused
			}
			b.Forward, b.Broken = s.give(s.next), &Broken{o, event, errEvent}
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
	b.Forward = s.give(s.ready())
	return b, spoke
}

// ready is where the events end that may go on: what closes an answer waits for
// the mark that may follow, so that the record is kept before it.
func (s *Stream) ready() int {
	if s.closed {
		return s.closing
	}
	return s.next
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
		s.closing -= s.from
		s.from = 0
	}
	switch event := b[s.next:]; {
	case len(b) <= stream.MaxEvent:
	case bytes.HasPrefix(event, []byte("data:")), bytes.HasPrefix(event, []byte("event:")):
		return ErrAnswerTooLarge
	default:
		return errGarbage
	}
	if cap(b)-len(b) < 512 {
		size := min(2*len(b), stream.MaxEvent) + smallBuffer
		if !s.lend(int64(size)) {
			return ErrNoRoom
		}
		b = append(make([]byte, 0, size), b...)
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

// lend counts the memory of a buffer of that size, if it is one that is not kept,
// and reports whether there is so much.
func (s *Stream) lend(size int64) bool {
	if size <= keepBuffer {
		return true
	}
	more := size - s.lent
	if s.client.events.Add(more) > s.client.cfg.Events {
		s.client.events.Add(-more)
		return false
	}
	s.lent = size
	return true
}

func (s *Stream) giveBack() { s.client.events.Add(-s.lent); s.lent = 0 }

func (s *Stream) broken(err error) Batch {
	o := s.attempt.outcome(err)
	switch {
	case errors.Is(err, ErrNoRoom), errors.Is(err, ErrAnswerTooLarge):
		o = breaker.ClientError
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

// close ends the stream. It may be called more than once.
func (s *Stream) close() {
	if s.body == nil {
		return
	}
	if s.State.Done && !s.finished && s.attempt.Err() == nil {
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
	s.body = nil
	s.giveBack()
	if !s.tainted {
		s.client.putBuffer(s.buffer)
		s.tainted = true
	}
}
