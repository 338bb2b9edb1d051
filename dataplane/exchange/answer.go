package exchange

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
	"ringmain/dataplane/meter"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/walk"
)

// statusGone stands for "the client left first" in records and metrics.
const statusGone = 499

// run asks for an answer and passes it on.
func (x *exchange) run() {
	res, fail := x.walk.Ask(x.r.Context())
	switch {
	case fail.Gone:
		x.gone(dialect.Usage{}, 0)
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
	if x.walk.Attempts > 0 {
		x.settle(rec, u, textOut)
	} else {
		rec.Source = meter.SourceNone
	}
	if err := x.emit(rec); err != nil {
		x.node.Log.Warn("an abandoned answer could not be recorded", "request", x.id, "error", err)
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
		h[relay.HeaderLeft] = []string{strconv.Itoa(x.walk.Attempts)}
		h[relay.HeaderServed] = []string{x.walk.By.Served}
		h[relay.HeaderTried] = x.walk.TriedHeader()
	}
	return h
}

// unmetered refuses an answer that could not be recorded.
func (x *exchange) unmetered(err error) {
	x.node.Log.Error("an answer could not be recorded and is withheld", "request", x.id, "error", err)
	x.proof.ended = meter.EndError
	if x.front {
		x.fail(walk.ErrMetering, 0)
	} else {
		x.failPeer(relay.OutcomeFailed, walk.ErrMetering, 0)
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
		h[hShouldRetry] = x.node.fixed.no
	}
	x.deliver(res, http.StatusOK, b)
	x.timed()
	x.counted("", http.StatusOK)
}

// deliver writes a plain body of the other side's.
func (x *exchange) deliver(res *relay.Result, status int, b []byte) {
	h := x.rw.Header()
	h[hContentType] = x.answerType(res)
	h[hContentLen] = x.value(strconv.Itoa(len(b)))
	x.begun(len(b))
	x.prove(h, status, b)
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
// The last quickWrite bytes stay in the server's buffer until the handler
// returns, so that whoever has the whole answer finds its receipt.
func (x *exchange) put(b []byte) error {
	rest := b[max(0, len(b)-quickWrite):]
	if b = b[:len(b)-len(rest)]; len(b) > 0 {
		control := http.NewResponseController(x.rw)
		for len(b) > 0 {
			_ = control.SetWriteDeadline(time.Now().Add(x.node.WriteStall))
			n, err := x.send(b[:min(len(b), slice)])
			if err != nil {
				return err
			}
			b = b[n:]
		}
		x.unbound(control)
	}
	_, err := x.send(rest)
	return err
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
		x.node.Log.Warn("an error answer could not be recorded", "request", x.id, "error", err)
	}
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
	x.deliver(res, res.Status, b)
	x.counted(string(code), res.Status)
}
