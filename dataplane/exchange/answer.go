package exchange

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/walk"
)

// statusGone stands for "the client left first" in records and metrics.
const statusGone = 499

// clientLeft reports whether the client did, and not this node.
func (x *exchange) clientLeft() bool { return x.r.Context().Err() != nil && !x.node.ending.Load() }

// run asks for an answer and passes it on.
func (x *exchange) run() {
	res, fail := x.walk.Ask(x.r.Context())
	if fail.Gone && x.node.ending.Load() {
		res, fail = nil, walk.Failure{Err: walk.ErrEnding}
	}
	switch {
	case fail.Gone:
		x.gone(dialect.Answer{}, 0)
	case res == nil && x.front:
		x.refuse(fail.Err, fail.Wait)
		return
	case res == nil:
		outcome := relay.OutcomeFailed
		switch {
		case fail.Behind:
			outcome = relay.OutcomeBehind
		case fail.Final:
			outcome = relay.OutcomeFinal
		}
		x.failPeer(outcome, fail.Err, fail.Wait)
		return
	}
	defer res.Release()
	x.answered = true
	x.firstToken = time.Since(x.arrived)
	if res.Stream == nil { // a whole answer is final, and its upstream is free, whenever the client takes it
		x.body.Release()
		x.walk.Leave()
	}
	switch {
	case res.Stream != nil:
		x.stream(res)
	case res.Status == http.StatusOK:
		x.plain(res)
	default:
		x.problem(res)
	}
}

// gone records that the client left before it had its answer, of which a tells
// what is known, and does not return.
func (x *exchange) gone(a dialect.Answer, textOut int64) {
	rec := x.record(meter.EndClientGone)
	rec.Refused = a.Refused
	if !x.written {
		rec.Status = statusGone
	}
	if x.walk.Attempts > 0 {
		x.settle(rec, a.Usage, textOut)
	} else {
		rec.Source = meter.SourceNone
	}
	x.leave(rec)
}

// leave ends the answer of a client that is gone, and does not return: a handler
// that returns without an answer sends an empty 200, and what looked like
// leaving may be a client that only closed its sending side, or this worker on
// its way out.
func (x *exchange) leave(rec *recording) {
	if err := x.emit(rec); err != nil {
		x.node.Log.Warn("an abandoned answer could not be recorded", "request", x.id, "error", err)
	}
	x.proof.cut = true
	x.counted("", statusGone)
	panic(http.ErrAbortHandler)
}

// stampAnswer adds to stamp what the entry node needs to know, if it asked.
func (x *exchange) stampAnswer(outcome string) http.Header {
	h := x.rw.Header()
	x.stamp(h)
	if !x.front {
		h[relay.HeaderOutcome] = []string{outcome}
		h[relay.HeaderLeft] = []string{strconv.Itoa(x.walk.Attempts)}
		h[relay.HeaderServed] = []string{x.walk.By.Served}
		h[relay.HeaderTried] = x.walk.TriedHeader()
		h[relay.HeaderConfined] = []string{receipt.Confinement(x.node.Confined()).String()}
	}
	return h
}

// unmetered refuses an answer that could not be recorded.
func (x *exchange) unmetered(err error) {
	x.node.Log.Error("an answer could not be recorded and is withheld", "request", x.id, "error", err)
	x.proof.ended, x.recorded = meter.EndError, true
	if x.front {
		x.fail(walk.ErrMetering, 0)
	} else {
		x.failPeer(relay.OutcomeFailed, walk.ErrMetering, 0)
	}
}

// plain passes on a whole answer.
func (x *exchange) plain(res *relay.Result) {
	b := res.Body()
	if len(b) > quickWrite && !x.node.Room() { // the last moment to say so
		x.unmetered(walk.ErrMetering)
		return
	}
	h := x.stampAnswer(relay.OutcomeAnswer)
	if res.Answer.Refused {
		h[hShouldRetry] = x.node.fixed.no
	}
	rec := x.record(meter.EndComplete)
	rec.Refused = res.Answer.Refused
	x.settle(rec, res.Answer.Usage, int64(len(b)))
	if err := x.deliver(res, rec, b); err != nil {
		x.unmetered(err)
		return
	}
	x.timed()
	x.counted("", http.StatusOK)
}

// deliver writes a plain body of the other side's, and hands its record over
// before the end of it goes out, which is when it is known whether the client
// took what came before. It does not return if the client is gone, nor if an
// answer that began cannot be recorded. On an error nothing began.
func (x *exchange) deliver(res *relay.Result, rec *recording, b []byte) error {
	lead, end := parted(b)
	status, good := rec.Status, rec.Ended == meter.EndComplete
	x.concluded(&rec.Record)
	taken := !x.clientLeft()
	if taken && len(lead) > 0 {
		x.begin(res, status, b)
		if taken = x.put(lead) == nil; !taken {
			res.Taint()
		}
	}
	rec.LatencyMS = time.Since(x.arrived).Milliseconds()
	if !taken {
		rec.Ended = meter.EndClientGone
		if !x.written {
			rec.Status = statusGone
		}
		x.restate(b)
		x.leave(rec)
	}
	if err := x.emit(rec); err != nil {
		switch {
		case !good:
			x.node.Log.Warn("an error answer could not be recorded", "request", x.id, "error", err)
		case x.written:
			x.node.Log.Error("an answer could not be recorded and is not completed", "request", x.id, "error", err)
			x.proof.ended, x.proof.cut = meter.EndTruncated, true
			x.restate(b)
			x.counted(string(walk.ErrMetering.Code), status)
			panic(http.ErrAbortHandler)
		default:
			return err
		}
	}
	if !x.written {
		x.begin(res, status, b)
	}
	if x.end(end) != nil {
		res.Taint()
	}
	return nil
}

// begin writes the head of the other side's plain body b.
func (x *exchange) begin(res *relay.Result, status int, b []byte) {
	h := x.rw.Header()
	h[hContentType] = x.answerType(res)
	h[hContentLen] = x.value(strconv.Itoa(len(b)))
	x.begun(len(b))
	x.prove(h, status, b)
	x.rw.WriteHeader(status)
}

// quickWrite is a size that the server takes without waiting for the client.
const quickWrite = 2 << 10

// slice is how much of a body the client has WriteStall to take.
const slice = 64 << 10

// parted parts an answer from its end, which stays in the server's buffer until
// the handler returns, so that whoever has the whole answer finds its receipt.
// Of the end nobody here hears whether the client had it.
func parted(b []byte) (lead, end []byte) {
	n := max(0, len(b)-quickWrite)
	return b[:n], b[n:]
}

// whole writes a body of ours.
func (x *exchange) whole(b []byte) error {
	lead, end := parted(b)
	if err := x.put(lead); err != nil {
		return err
	}
	return x.end(end)
}

// put writes what comes before the end. A client that takes nothing does not
// keep its place.
func (x *exchange) put(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	control := http.NewResponseController(x.rw)
	for len(b) > 0 {
		_ = control.SetWriteDeadline(time.Now().Add(x.node.WriteStall))
		part := b[:min(len(b), slice)]
		if err := x.send(part); err != nil {
			return err
		}
		b = b[len(part):]
	}
	x.unbound(control)
	return nil
}

// unbound takes the write deadline back: the connection may be used again. Over
// HTTP/2 the deadline is the stream's, and ends with it.
func (x *exchange) unbound(control *http.ResponseController) {
	if x.r.ProtoMajor == 1 {
		_ = control.SetWriteDeadline(time.Time{})
	}
}

// timed notes the time to the first token, which a good answer only has.
func (x *exchange) timed() {
	if x.front {
		x.node.Metrics.firsts.of(x.path).Observe(x.firstToken.Seconds())
	}
}

// problem passes on an upstream's refusal of the request itself, as it is.
func (x *exchange) problem(res *relay.Result) {
	code := dialect.InvalidRequest
	switch {
	case res.Problem.ContextLength:
		code = dialect.ContextLengthExceeded
	case res.Status == http.StatusRequestEntityTooLarge:
		code = dialect.RequestTooLarge
	}
	if res.Peer != nil {
		if c := dialect.Code(res.Peer.Header.Get(hErrorCode)); c.Known() {
			code = c
		}
	}
	rec := x.record(meter.EndError)
	rec.Status, rec.Code, rec.Refused, rec.Source = res.Status, string(code), res.Problem.Refused, meter.SourceNone
	h := x.stampAnswer(relay.OutcomeFinal)
	x.stampError(h, code, res.Peer != nil && code.Retry(), 0)
	if res.Peer != nil {
		if v := res.Peer.Header.Get(hEndpoint); v != "" {
			h[hEndpoint] = []string{v}
		}
	}
	b := res.Body()
	if !strings.HasPrefix(res.ContentType, "application/json") || !jsontext.Valid(b) {
		e := dialect.Fail(code, "The upstream refused the request with status "+strconv.Itoa(res.Status)+", without a reason that can be shown.")
		b = e.AppendBody(nil, x.dialect, x.id)
	}
	_ = x.deliver(res, rec, b) // of an error answer it gives none
	x.counted(string(code), res.Status)
}
