package dataplane

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/relay"
)

// statusGone stands for "the client left first" in records and metrics.
const statusGone = 499

// run asks for an answer and passes it on.
func (x *exchange) run() {
	res, fail := x.ask(x.r.Context())
	switch {
	case fail.gone:
		x.gone(dialect.Usage{}, 0)
	case res == nil && x.front:
		x.refuse(fail.err, fail.wait)
		return
	case res == nil:
		outcome := relay.OutcomeFailed
		if fail.behind {
			outcome = relay.OutcomeBehind
		}
		x.failPeer(outcome, fail.err, fail.wait)
		return
	}
	defer res.Release()
	x.answered = true
	x.firstToken = time.Since(x.arrived)
	switch {
	case res.Stream != nil:
		x.stream(res)
	case res.Status == http.StatusOK:
		x.plain(res)
	default:
		x.problem(res)
	}
}

// gone records that the client left before it had its answer, and does not
// return: a handler that returns without an answer sends an empty 200, and what
// looked like leaving may be a client that only closed its sending side, or
// this worker on its way out.
func (x *exchange) gone(u dialect.Usage, textOut int64) {
	rec := x.record(meter.EndClientGone)
	if !x.written {
		rec.Status = statusGone
	}
	if x.attempts > 0 {
		x.settle(rec, u, textOut)
	} else {
		rec.Source = meter.SourceNone
	}
	if err := x.emit(rec); err != nil {
		x.w.log.Warn("an abandoned answer could not be recorded", "request", x.id, "error", err)
	}
	x.counted("", statusGone)
	panic(http.ErrAbortHandler)
}

// stampAnswer adds to stamp what the entry node needs to know, if it asked.
func (x *exchange) stampAnswer(outcome string) http.Header {
	h := x.rw.Header()
	x.stamp(h)
	if !x.front {
		h[relay.HeaderOutcome] = []string{outcome}
		h[relay.HeaderLeft] = []string{strconv.Itoa(x.attempts)}
		h[relay.HeaderServed] = []string{x.served}
	}
	return h
}

// unmetered refuses an answer that could not be recorded.
func (x *exchange) unmetered(err error) {
	x.w.log.Error("an answer could not be recorded and is withheld", "request", x.id, "error", err)
	if x.front {
		x.fail(errMetering, 0)
	} else {
		x.failPeer(relay.OutcomeFailed, errMetering, 0)
	}
}

// plain passes on a whole answer.
func (x *exchange) plain(res *relay.Result) {
	b := res.Body()
	rec := x.record(meter.EndComplete)
	rec.Refused = res.Answer.Refused
	x.settle(rec, res.Answer.Usage, int64(len(b)))
	if err := x.emit(rec); err != nil {
		x.unmetered(err)
		return
	}
	h := x.stampAnswer(relay.OutcomeAnswer)
	if res.Answer.Refused {
		h[hShouldRetry] = x.w.fixed.no
	}
	x.deliver(res, http.StatusOK, b)
	x.timed()
	x.counted("", http.StatusOK)
}

// deliver writes a plain body of the other side's.
func (x *exchange) deliver(res *relay.Result, status int, b []byte) {
	h := x.rw.Header()
	h[hContentType] = x.w.fixed.jsonType
	h[hContentLen] = x.value(strconv.Itoa(len(b)))
	x.written = true
	x.rw.WriteHeader(status)
	if x.put(b) != nil {
		res.Taint()
	}
}

// quickWrite is a size that the server takes without waiting for the client.
const quickWrite = 2 << 10

// slice is how much of a body the client has WriteStall to take.
const slice = 64 << 10

// put writes a whole body. A client that takes nothing does not keep its place.
func (x *exchange) put(b []byte) error {
	if len(b) <= quickWrite {
		_, err := x.rw.Write(b) //nolint:gosec // G705: JSON or plain text, and declared as such
		return err              //nolint:wrapcheck // only whether it failed matters
	}
	control := http.NewResponseController(x.rw)
	for len(b) > 0 {
		_ = control.SetWriteDeadline(time.Now().Add(x.w.tunables.WriteStall))
		n, err := x.rw.Write(b[:min(len(b), slice)]) //nolint:gosec // G705: as above
		if err != nil {
			return err //nolint:wrapcheck // only whether it failed matters
		}
		b = b[n:]
	}
	_ = control.SetWriteDeadline(time.Time{}) // the connection may be used again
	return nil
}

// timed notes the time to the first token, which a good answer only has.
func (x *exchange) timed() {
	if x.front {
		x.w.metrics.firstToken.WithLabelValues(x.endpoint).Observe(x.firstToken.Seconds())
	}
}

// problem passes on an upstream's refusal of the request itself, as it is.
func (x *exchange) problem(res *relay.Result) {
	code := dialect.InvalidRequest
	if res.Problem.ContextLength {
		code = dialect.ContextLengthExceeded
	}
	if res.Peer != nil {
		if c := dialect.Code(res.Peer.Header.Get(hErrorCode)); c.Known() {
			code = c
		}
	}
	rec := x.record(meter.EndError)
	rec.Status, rec.Code, rec.Refused, rec.Source = res.Status, string(code), res.Problem.Refused, meter.SourceNone
	if err := x.emit(rec); err != nil {
		x.w.log.Warn("an error answer could not be recorded", "request", x.id, "error", err)
	}
	h := x.stampAnswer(relay.OutcomeFinal)
	x.stampError(h, code, res.Peer != nil && code.Retry(), 0)
	if res.Peer != nil {
		if v := res.Peer.Header.Get(hEndpoint); v != "" {
			h[hEndpoint] = []string{v}
		}
	}
	b := res.Body()
	if !strings.HasPrefix(res.ContentType, "application/json") || !dialect.Valid(b) {
		e := dialect.Fail(code, "The upstream refused the request with status "+strconv.Itoa(res.Status)+", without a reason that can be shown.")
		b = e.AppendBody(nil, x.dialect, x.id)
	}
	x.deliver(res, res.Status, b)
	x.counted(string(code), res.Status)
}

// stream passes on a streamed answer, whole events at a time.
func (x *exchange) stream(res *relay.Result) {
	s := res.Stream
	control := http.NewResponseController(x.rw)
	var moved time.Time // when the write deadline last was
	// HTTP/2 counts the wait for the next event against it, too.
	stall := x.w.tunables.WriteStall + relay.TimeoutsOf(x.plan.Route.Timeouts).Idle + relay.PeerGrace
	for {
		b := s.Next()
		if b.Last != nil {
			x.last(res, control, b)
			return
		}
		if b.Broken != nil {
			x.broken(res, control, b)
		}
		if now := time.Now(); now.Sub(moved) > x.w.tunables.WriteStall/4 {
			_ = control.SetWriteDeadline(now.Add(stall))
			moved = now
		}
		if err := x.pass(b.Forward, control); err != nil {
			res.Taint()
			x.gone(s.State.Usage, s.State.Text)
		}
	}
}

// head sends the head of a streamed answer, once.
func (x *exchange) head() {
	if x.written {
		return
	}
	h := x.stampAnswer(relay.OutcomeAnswer)
	f := &x.w.fixed
	h[hContentType], h["Cache-Control"], h["X-Accel-Buffering"] = f.sseType, f.noCache, f.noBuffer
	x.written = true
	x.rw.WriteHeader(http.StatusOK)
	x.timed()
}

// pass writes events and sends them off.
func (x *exchange) pass(events []byte, control *http.ResponseController) error {
	x.head()
	if len(events) == 0 {
		return nil
	}
	if _, err := x.rw.Write(events); err != nil {
		return err //nolint:wrapcheck // only whether it failed matters
	}
	return control.Flush() //nolint:wrapcheck // only whether it failed matters
}

// last completes a stream: the record is kept before the closing event goes out.
func (x *exchange) last(res *relay.Result, control *http.ResponseController, b relay.Batch) {
	s := res.Stream
	rec := x.record(meter.EndComplete)
	rec.Refused = s.State.Refused
	x.settle(rec, s.State.Usage, s.State.Text)
	if err := x.emit(rec); err != nil {
		if !x.written {
			x.unmetered(err)
			return
		}
		x.w.log.Error("a stream could not be recorded and is not completed", "request", x.id, "error", err)
		_ = x.pass(b.Forward, control)
		x.abort(control, errMetering.AppendEvent(nil, x.dialect, x.id), errMetering.Code)
	}
	x.head()
	_ = control.SetWriteDeadline(time.Now().Add(x.w.tunables.WriteStall))
	_, err := x.rw.Write(b.Forward)
	if err == nil {
		_, err = x.rw.Write(b.Last)
	}
	if err == nil {
		err = control.Flush()
	}
	if err != nil {
		res.Taint()
	}
	_ = control.SetWriteDeadline(time.Time{}) // the connection may be used again
	x.counted("", http.StatusOK)
}

// broken ends a stream that its upstream did not complete: with an error event
// and a broken connection, so that nobody takes what came for a whole answer.
func (x *exchange) broken(res *relay.Result, control *http.ResponseController, b relay.Batch) {
	s := res.Stream
	if b.Broken.Outcome == breaker.ClientGone {
		x.gone(s.State.Usage, s.State.Text)
	}
	x.blame(b.Broken.Outcome)
	e := errorOf(b.Broken.Outcome)
	event := b.Broken.Event // the upstream's own words, if it had any
	if event == nil {
		event = e.AppendEvent(nil, x.dialect, x.id)
	}
	x.w.log.Info("a stream broke", "request", x.id, "outcome", b.Broken.Outcome.String(), "error", b.Broken.Cause)
	rec := x.record(meter.EndTruncated)
	rec.Code, rec.Refused = string(e.Code), s.State.Refused
	x.settle(rec, s.State.Usage, s.State.Text)
	if err := x.emit(rec); err != nil {
		x.w.log.Error("a broken stream could not be recorded", "request", x.id, "error", err)
	}
	if x.pass(b.Forward, control) != nil {
		res.Taint()
	}
	x.abort(control, event, e.Code)
}

// blame tells the circuit of whoever answered that the answer broke.
func (x *exchange) blame(o breaker.Outcome) {
	set, key := x.w.upstreams, breaker.Key{Owner: x.upstream, Part: x.served}
	if x.remote != nil {
		set, key = x.w.peerNodes, breaker.Peer(x.remote.node[0])
		if o != breaker.Transport && o != breaker.Timeout {
			return // the peer passed on what its upstream did
		}
	}
	if ticket, ok := set.Allow(key); ok {
		ticket.Done(o)
	}
}

// abort sends event and breaks the connection, or resets the HTTP/2 stream. It
// does not return.
func (x *exchange) abort(control *http.ResponseController, event []byte, code dialect.Code) {
	_ = control.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := x.rw.Write(event); err == nil { //nolint:gosec // G705: an event stream, and declared as such
		_ = control.Flush()
	}
	x.counted(string(code), http.StatusOK)
	panic(http.ErrAbortHandler)
}
