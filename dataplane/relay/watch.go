package relay

import (
	"context"
	"errors"
	"sync"
	"time"

	"ringmain/dataplane/breaker"
)

// Causes with which an attempt is cancelled.
var (
	errFirstByte = errors.New("no first byte in time")
	errIdle      = errors.New("nothing between two events for too long")
	errDeadline  = errors.New("the request's deadline passed")
	errFinished  = errors.New("the attempt is over")
)

// attempt is the context of one attempt: it ends when the request's does, when
// the watchdog bites, or when the attempt is over. It is its own context type
// so that the dialer finds the connect timeout without another allocation.
type attempt struct {
	context.Context //nolint:containedctx // it is a context
	cancel          context.CancelCauseFunc
	connect         time.Duration
	client          context.Context //nolint:containedctx // tells a client that left from our own cancelling

	mu       sync.Mutex
	timer    *time.Timer
	start    time.Time
	due      time.Duration // since start
	fires    time.Duration // when timer is set to fire; never after due by much
	deadline time.Duration
	cause    error
}

type attemptKey struct{}

// Value makes the attempt itself findable.
func (a *attempt) Value(key any) any {
	if key == (attemptKey{}) {
		return a
	}
	return a.Context.Value(key)
}

// newAttempt starts the first-byte clock.
func newAttempt(client context.Context, t Timeouts) *attempt {
	a := &attempt{client: client, connect: t.Connect, start: time.Now(), deadline: t.Total, due: t.FirstByte, cause: errFirstByte}
	a.Context, a.cancel = context.WithCancelCause(client)
	if a.deadline <= a.due {
		a.due, a.cause = a.deadline, errDeadline
	}
	a.fires = a.due
	a.mu.Lock()
	defer a.mu.Unlock()
	a.timer = time.AfterFunc(a.due, a.fire)
	return a
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
	if a.due < a.fires {
		a.fires = a.due
		a.timer.Reset(a.due - now)
	}
}

// rest stops the clock but for the deadline: now it is us who take time.
func (a *attempt) rest() { a.expect(a.deadline, errDeadline) }

// end releases everything. It may be called more than once.
func (a *attempt) end() {
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
	switch cause := context.Cause(a.Context); {
	case errors.Is(cause, errFirstByte), errors.Is(cause, errIdle):
		return breaker.Timeout
	case errors.Is(cause, errDeadline):
		return breaker.Expired
	}
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return breaker.Timeout
	}
	return breaker.Transport
}
