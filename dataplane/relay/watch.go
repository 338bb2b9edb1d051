package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/relay/h1"
)

// Causes with which an attempt is cancelled.
var (
	errFirstByte = errors.New("no first byte in time")
	errIdle      = errors.New("nothing between two events for too long")
	errDeadline  = errors.New("the request's deadline passed")
	errFinished  = errors.New("the attempt is over")
)

// attempt is the context of one attempt, and its clock. Over an own connection
// the clock is the connection's deadline, and the context the request's; over
// net/http a timer keeps it, and the context ends when the request's does, when
// the timer bites, or when the attempt is over. It is its own context type so
// that the dialer finds the connect timeout without another allocation.
type attempt struct {
	context.Context                 //nolint:containedctx // it is a context
	client          context.Context //nolint:containedctx // tells a client that left from our own cancelling
	connect         time.Duration
	start           time.Time
	deadline        time.Duration // since start

	own *h1.Response // its deadline is moved; nil = the timer's is, if there is one

	cancel context.CancelCauseFunc // nil = no timer
	mu     sync.Mutex              // of what the timer reads
	timer  *time.Timer
	due    time.Duration // since start
	fires  time.Duration // when timer is set to fire; never after due by much
	cause  error
}

type attemptKey struct{}

// Value makes the attempt itself findable.
func (a *attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// AfterFunc hands down what the request's context may do better, see h1.AfterFunc.
func (a *attempt) AfterFunc(f func()) (stop func() bool) { return h1.AfterFunc(a.Context, f) }

// newAttempt starts the first-byte clock. Nothing keeps it yet: a connection
// does, or watch.
func newAttempt(client context.Context, t Timeouts) *attempt {
	a := &attempt{Context: client, client: client, connect: t.Connect, start: time.Now(), deadline: t.Total, due: t.FirstByte, cause: errFirstByte}
	if a.deadline <= a.due {
		a.due, a.cause = a.deadline, errDeadline
	}
	return a
}

// watch makes a timer keep the clock, which cancels the context.
func (a *attempt) watch() {
	a.Context, a.cancel = context.WithCancelCause(a.client)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fires = a.due
	a.timer = time.AfterFunc(a.due-time.Since(a.start), a.fire)
}

func (a *attempt) fire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Since(a.start)
	if now < a.due {
		a.fires = a.due
		a.timer.Reset(a.due - now)
		return
	}
	a.cancel(a.cause)
}

// expect gives the other side d from now before cause cancels the attempt.
// The timer is moved only when it would fire too late: a stream that flows
// costs no timer work for each event.
func (a *attempt) expect(d time.Duration, cause error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Since(a.start)
	a.due, a.cause = now+d, cause
	if a.deadline <= a.due {
		a.due, a.cause = a.deadline, errDeadline
	}
	if a.own != nil {
		a.own.Deadline(a.start.Add(a.due))
	} else if a.timer != nil && a.due < a.fires {
		a.fires = a.due
		a.timer.Reset(a.due - now)
	}
}

// rest stops the clock but for the deadline: now it is us who take time. An own
// connection looks at its clock only while it is read, after expect.
func (a *attempt) rest() {
	if a.own == nil {
		a.expect(a.deadline, errDeadline)
	}
}

// end releases everything. It may be called more than once.
func (a *attempt) end() {
	if a.cancel == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer.Stop()
	a.cancel(errFinished)
}

// outcome says why reading or writing failed.
func (a *attempt) outcome(err error) breaker.Outcome {
	if a.client.Err() != nil {
		return breaker.ClientGone
	}
	for _, cause := range [...]error{context.Cause(a.Context), err} {
		switch {
		case errors.Is(cause, errFirstByte), errors.Is(cause, errIdle):
			return breaker.Timeout
		case errors.Is(cause, errDeadline):
			return breaker.Expired
		}
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return breaker.Timeout
	}
	return breaker.Transport
}

// why is err, of an own connection, in this package's terms.
func (a *attempt) why(err error) error {
	why := err
	switch {
	case errors.Is(err, h1.ErrTimeout):
		why = a.cause
	case errors.Is(err, h1.ErrCanceled) && a.client.Err() != nil:
		why = a.client.Err()
	}
	var d *dialError
	if why != err && errors.As(err, &d) { //nolint:errorlint // it was replaced or not
		return &dialError{Err: why} // nobody saw the request, whatever the reason
	}
	return why
}

// ownBody is the answer that comes over an attempt's own connection.
type ownBody attempt

func (b *ownBody) Read(p []byte) (int, error) {
	n, err := b.own.Read(p)
	if err != nil && err != io.EOF { //nolint:errorlint // it is never wrapped
		err = (*attempt)(b).why(err)
	}
	return n, err
}

func (b *ownBody) Close() error { return b.own.Close() }
