package exchange

import (
	"errors"
	"net/http"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/walk"
)

// source is where the events of an answer come from.
type source interface {
	// Next gives the next whole events, as relay.Stream does.
	Next() relay.Batch
}

// flow is a streamed answer on its way to the client.
type flow struct {
	x       *exchange
	res     *relay.Result // whose stream is passed on at the moment
	from    source
	control *http.ResponseController
	moved   time.Time          // when the write deadline last was
	stall   time.Duration      // from one move of the write deadline, how long the client has to take what is written
	have    *stream.Transcript // what the client was given; nil = the answer may not be continued elsewhere
	cancel  func()             // of a replay
	blamed  bool               // the break was told to the circuits
	refused bool               // a replay was declined
}

// stream passes on a streamed answer, whole events at a time. Where it breaks,
// it is continued elsewhere, or ends with an error.
func (x *exchange) stream(res *relay.Result) {
	f := &flow{x: x, res: res, from: res.Stream, control: http.NewResponseController(x.rw)}
	f.stall = x.node.WriteStall
	if x.r.ProtoMajor == 2 && (!x.front || x.node.Setup.StandardHTTP2) { // net/http's counts the wait for the next event, too
		f.stall += relay.TimeoutsOf(x.walk.Plan.Route.Timeouts, true).Idle + relay.PeerGrace
	}
	f.keep()
	defer f.release()
	for {
		if !f.resumable() {
			x.body.Release()
		}
		b := f.from.Next()
		switch {
		case b.Last != nil:
			f.last(b)
			return
		case b.Broken == nil:
			f.give(b.Forward)
		case !f.resume(&b):
			f.broken(b)
		}
	}
}

// give passes events on. It does not return if the client is gone.
func (f *flow) give(events []byte) {
	f.hurry()
	f.final()
	if err := f.x.pass(events, f.control); err != nil {
		f.res.Taint()
		f.gone()
	}
}

// hurry moves the write deadline before a write. What is left of the present one
// may do: over net/http's HTTP/2 each change wakes the connection's own goroutine.
func (f *flow) hurry() {
	if now := time.Now(); now.Sub(f.moved) > f.x.node.WriteStall/4 {
		_ = f.control.SetWriteDeadline(now.Add(f.stall))
		f.moved = now
	}
}

// final says in the head, if that is to come yet, that a refusal is final.
func (f *flow) final() {
	if !f.x.written && (f.refused || f.res.Stream.State.Refused) {
		f.x.rw.Header()[hShouldRetry] = f.x.node.fixed.no
	}
}

// gone ends the answer of a client that left. It does not return.
func (f *flow) gone() {
	s := &f.res.Stream.State
	f.x.gone(dialect.Answer{Usage: s.Usage, Refused: s.Refused || f.refused}, s.Text)
}

// head sends the head of a streamed answer, once.
func (x *exchange) head() {
	if x.written {
		return
	}
	h := x.stampAnswer(relay.OutcomeAnswer)
	f := &x.node.fixed
	h[hContentType], h["Cache-Control"], h["X-Accel-Buffering"] = f.sseType, f.noCache, f.noBuffer
	x.begun(0)
	x.rw.WriteHeader(http.StatusOK)
	x.timed()
}

// pass writes events and sends them off.
func (x *exchange) pass(events []byte, control *http.ResponseController) error {
	x.head()
	if len(events) == 0 {
		return nil
	}
	return x.flush(events, control)
}

// last completes a stream: the record is kept before the closing event goes out,
// and after all that the client might not take.
func (f *flow) last(b relay.Batch) {
	x, s := f.x, f.res.Stream
	f.repaired()
	switch {
	case x.clientLeft():
		f.gone()
	case len(b.Forward)+len(b.Last) > quickWrite:
		if !x.written && !x.node.Room() { // the last moment to say so
			x.unmetered(walk.ErrMetering)
			return
		}
		f.give(b.Forward)
		b.Forward, b.Last = parted(b.Last)
		f.give(b.Forward)
		b.Forward = nil
	}
	rec := x.record(meter.EndComplete)
	rec.Refused = s.State.Refused
	x.settle(rec, s.State.Usage, s.State.Text)
	if err := x.emit(rec); err != nil {
		if !x.written {
			x.unmetered(err)
			return
		}
		x.node.Log.Error("a stream could not be recorded and is not completed", "request", x.id, "error", err)
		x.proof.ended = meter.EndTruncated
		_ = x.pass(b.Forward, f.control)
		x.abort(f.control, f.failure(walk.ErrMetering), walk.ErrMetering.Code)
	}
	f.final()
	x.head()
	f.hurry()
	if x.finish(b.Forward, b.Last, f.control) != nil {
		f.res.Taint()
	}
	x.unbound(f.control)
	x.counted("", http.StatusOK)
}

// repaired counts what the upstream's stream lacked or had too much.
func (f *flow) repaired() {
	s, m := f.res.Stream, f.x.node.Metrics
	if n := s.Skipped(); n > 0 {
		m.repairs.WithLabelValues("skipped").Add(float64(n))
	}
	if s.Finished() {
		m.repairs.WithLabelValues("finished").Inc()
	}
}

// broken ends a stream that its upstream did not complete: with an error event
// and a broken connection, so that nobody takes what came for a whole answer.
func (f *flow) broken(b relay.Batch) {
	x, s := f.x, f.res.Stream
	ends := b.Broken.Outcome == breaker.ClientGone
	if ends && !x.node.ending.Load() {
		f.gone()
	}
	f.repaired()
	e := walk.ErrorOf(b.Broken.Outcome)
	switch {
	case ends:
		e = walk.ErrEnding
	case errors.Is(b.Broken.Cause, relay.ErrNoRoom):
		e = walk.ErrEvents
	}
	if !ends {
		f.blame(b.Broken.Outcome)
	}
	x.node.Log.Info("a stream broke", "request", x.id, "outcome", b.Broken.Outcome.String(), "error", b.Broken.Cause)
	f.give(b.Forward)
	rec := x.record(meter.EndTruncated)
	rec.Code, rec.Refused = string(e.Code), s.State.Refused || f.refused
	x.settle(rec, s.State.Usage, s.State.Text)
	if err := x.emit(rec); err != nil {
		x.node.Log.Error("a broken stream could not be recorded", "request", x.id, "error", err)
	}
	event := b.Broken.Event // the upstream's own words, if it had any
	if event == nil {
		event = f.failure(e)
	}
	x.abort(f.control, event, e.Code)
}

// failure is e as the last event of the stream.
func (f *flow) failure(e *dialect.Error) []byte {
	s := &f.res.Stream.State
	if f.x.replay.splices > 0 {
		s.Sequence = f.have.Sequence()
	}
	return s.AppendFailure(nil, e, f.x.id)
}

// blame tells the circuits once that the present stream broke.
func (f *flow) blame(o breaker.Outcome) {
	if !f.blamed {
		f.blamed = true
		f.x.walk.Blame(o)
	}
}

// abort sends event and breaks the connection, or resets the HTTP/2 stream. It
// does not return.
func (x *exchange) abort(control *http.ResponseController, event []byte, code dialect.Code) {
	_ = control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	_ = x.finish(nil, event, control) // the connection breaks in any case
	x.counted(string(code), http.StatusOK)
	panic(http.ErrAbortHandler)
}
