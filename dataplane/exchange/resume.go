package exchange

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"ringmain/dataplane/admission"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
	"ringmain/dataplane/receipt"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/splice"
)

// replay is what tries that came to nothing cost beside the answer itself.
type replay struct {
	splices int   // times that the stream was continued elsewhere
	in, out int64 // tokens; estimated where the provider gave no figures
}

// leastReplay is a time in which no replay gets level.
const leastReplay = 10 * time.Millisecond

// splices reports whether a broken stream of this request may be continued
// elsewhere: the same request is expected to get the same answer again, and
// asking again has no effect of its own. Only the node that the client speaks
// to does so: it knows what the client has, and what is left of the attempts;
// and not while it sheds load, since this is work that it may leave.
func (x *exchange) splices() bool {
	q := &x.query
	return x.front && x.node.Gate.Step() < admission.StepFrugal && x.endpoint != nil && x.endpoint.Splices && (q.Deterministic || x.walk.Plan.Route.Deterministic) &&
		q.Choices == 1 && !q.Logprobs && !q.ProviderTools && q.Stores == "" && (!q.KeepsAnswer || x.decision.ZeroRetention)
}

// keep notes from now on what the client is given, if that may be of use. Where
// many large requests wait for what may never happen, this one does not.
func (f *flow) keep() {
	if f.x.splices() && f.x.body.Keep() {
		f.have = stream.NewTranscript(splice.Limit)
		f.res.Stream.Keep(f.have)
	}
}

var (
	errDiverged = errors.New("the replay is not the same answer")
	errDeclined = errors.New("the replay was declined")
)

// resumable reports whether the answer may be continued elsewhere should its stream
// break. Once it may not, it never may again, and its request is not needed.
func (f *flow) resumable() bool {
	return !f.have.Off() && !f.refused && !f.res.Stream.State.Refused && !f.x.walk.Spent()
}

// resume continues the answer elsewhere after its stream broke, and reports
// whether it does. The other's stream must have said all that the client has
// before the route's time between two events is over.
func (f *flow) resume(b *relay.Batch) bool {
	x, o := f.x, b.Broken.Outcome
	if !f.resumable() || errors.Is(b.Broken.Cause, errDiverged) || breaker.Classify(o) != breaker.Failure {
		return false
	}
	f.give(b.Forward)
	b.Forward = nil
	f.blame(o)
	x.node.Log.Info("a stream broke and is asked for elsewhere", "request", x.id, "outcome", o.String(), "error", b.Broken.Cause)

	idle := relay.TimeoutsOf(x.walk.Plan.Route.Timeouts, true).Idle
	ctx, cancel := context.WithCancel(x.r.Context())
	late := time.AfterFunc(idle, cancel)
	_ = f.control.SetWriteDeadline(time.Now().Add(f.stall + pulseEvery))
	quiet := x.pulse(f.control, pulseEvery, f.stall)
	defer quiet() // also when a replay panics: nobody else may write then
	before := x.walk.By
	next, result := f.replayed(ctx, time.Now().Add(idle-leastReplay))
	quiet()
	if !late.Stop() && next != nil {
		next, result = x.drop(next), "late"
	}
	x.node.Metrics.splices.WithLabelValues(result).Inc()
	if next == nil || x.r.Context().Err() != nil {
		cancel()
		x.drop(next)
		x.walk.By = before
		if x.clientLeft() {
			f.gone()
		}
		return false
	}
	x.replay.splices++
	x.spent(f.res.Stream)
	f.release()
	f.res, f.from, f.cancel, f.blamed, f.moved = next.res, next, cancel, false, time.Time{}
	return true
}

// replayed asks for the answer again until one replay is level with what the
// client has, and asks nobody after by. result is for the metrics.
func (f *flow) replayed(ctx context.Context, by time.Time) (next *spliced, result string) {
	x := f.x
	for {
		res, _ := x.walk.AskElsewhere(ctx)
		switch {
		case res == nil:
			return nil, "failed"
		case res.Stream == nil:
			f.refused = res.Outcome == breaker.Refused
			res.Release()
			return nil, "refused"
		}
		s := &spliced{res: res, machine: splice.New(f.have, stream.Stream{Dialect: x.dialect, Endpoint: x.endpoint, Choices: x.query.Choices})}
		b := s.Next()
		if s.machine.Level() { // f.have counts what comes with b as given
			s.first = &b
			return s, "spliced"
		}
		x.spent(res.Stream)
		broken := b.Broken
		if broken.Outcome != breaker.ClientGone && broken.Outcome != breaker.Refused && !errors.Is(broken.Cause, errDiverged) {
			x.walk.Blame(broken.Outcome)
		}
		x.node.Log.Info("a stream could not be continued", "request", x.id, "outcome", broken.Outcome.String(), "error", broken.Cause)
		res.Release()
		switch {
		case broken.Outcome == breaker.Refused || res.Stream.State.Refused:
			f.refused = true
			return nil, "refused"
		case errors.Is(broken.Cause, errDiverged):
			x.unused()
			return nil, "diverged"
		case ctx.Err() != nil || time.Now().After(by):
			return nil, "late"
		}
	}
}

// spent notes the cost of a stream that is not the one the answer is billed by.
func (x *exchange) spent(s *relay.Stream) {
	u := s.State.Usage
	in, out := u.Input, u.Output
	if in == 0 {
		in = dialect.EstimateTokens(x.body.Len())
	}
	if !u.Final {
		out = max(out, dialect.EstimateTokens(s.State.Text))
	}
	x.replay.in += in
	x.replay.out += out
}

// spliced is the stream of a replay, as the continuation of another.
type spliced struct {
	res     *relay.Result
	machine *splice.Machine
	first   *relay.Batch
	out     dialect.Content
}

// Next gives the events that continue the answer. While the replay says what
// the client has already, it reads on; when it is level, it may give none.
func (s *spliced) Next() relay.Batch {
	if s.first != nil {
		b := *s.first
		s.first = nil
		return b
	}
	for {
		level := s.machine.Level()
		b := s.next()
		if len(b.Forward) > 0 || b.Last != nil || b.Broken != nil || s.machine.Level() != level {
			return b
		}
	}
}

func (s *spliced) next() relay.Batch {
	b, out := s.res.Stream.Next(), s.out.Bytes()[:0]
	end := func(o breaker.Outcome, cause error) relay.Batch {
		return relay.Batch{Forward: out, Broken: &relay.Broken{Outcome: o, Cause: cause}}
	}
	for len(b.Forward) > 0 {
		var split stream.Splitter
		n := split.Next(b.Forward)
		part, v := s.machine.Event(b.Forward[:n])
		b.Forward = b.Forward[n:]
		switch v {
		case splice.Wait:
		case splice.Forward:
			out = append(out, part...)
		case splice.Declined:
			return end(breaker.Refused, errDeclined)
		default:
			return end(breaker.ServerError, errDiverged)
		}
	}
	s.out = dialect.Conceal(out)
	switch {
	case b.Broken != nil:
		return end(b.Broken.Outcome, b.Broken.Cause)
	case b.Last != nil:
		part, v := s.machine.Event(b.Last)
		if v != splice.Last {
			return end(breaker.ServerError, errDiverged)
		}
		return relay.Batch{Forward: out, Last: part}
	}
	return relay.Batch{Forward: out}
}

// drop gives up a replay that is level, and gives nil.
func (x *exchange) drop(s *spliced) *spliced {
	if s != nil {
		x.spent(s.res.Stream)
		x.unused()
		s.res.Release()
	}
	return nil
}

// unused notes that the client was given nothing of what was answered last.
func (x *exchange) unused() {
	if n := len(x.walk.Tried); n > 0 {
		x.walk.Tried[n-1].Outcome = receipt.Unused
	}
}

// release ends the present stream.
func (f *flow) release() {
	f.res.Release()
	if f.cancel != nil {
		f.cancel()
	}
}

// pulseEvery is how often a client that waits for a replay hears that it is
// still being served.
const pulseEvery = 5 * time.Second

// pulse sends comments, which no client shows, until the function that it gives
// is called, which may be called again. Nothing else may write to the client until
// that returns. stall is how long the client has for each.
func (x *exchange) pulse(control *http.ResponseController, every, stall time.Duration) (quiet func()) {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			_ = control.SetWriteDeadline(time.Now().Add(stall + every))
			if x.flush([]byte(": keep\n\n"), control) != nil {
				<-stop // the next write finds out, too
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(stop); <-done })
}
