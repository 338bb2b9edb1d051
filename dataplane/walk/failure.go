package walk

import (
	"time"

	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/route"
)

// Failure is why nobody answered.
type Failure struct {
	Err    *dialect.Error
	Wait   time.Duration // as the upstream asked; 0 = it did not
	Gone   bool          // the client left
	Behind bool          // only nodes whose state lags were found
	Final  bool          // nobody else is to be asked for this request
}

// What a node says of itself, to its client or to the node that asked it.
var (
	ErrNoRoute = dialect.Fail(dialect.NoHealthyRoute, route.NoRoute().Message)
	ErrBehind  = dialect.Fail(dialect.NotReady, "The regions that can serve this request have not learned of it yet: retry shortly.")
	ErrShed    = dialect.Fail(dialect.CapacityShed, "This node is at capacity: retry shortly.")
	ErrEvents  = dialect.Fail(dialect.CapacityShed, "This node holds as many large pictures of streams as it may: retry shortly.")
	// ErrEnding is for what a node leaves unfinished as it ends.
	ErrEnding   = dialect.Fail(dialect.NotReady, "This node ends and could not finish the request: send it again.")
	ErrPinned   = dialect.Fail(dialect.ResidencyUnavailable, "This request is pinned to a jurisdiction in which nobody can serve it at the moment: it was not sent elsewhere.")
	ErrMetering = dialect.Fail(dialect.MeteringUnavailable, "The request cannot be metered at the moment: retry shortly.")
)

var (
	errUpstream   = dialect.Fail(dialect.UpstreamError, "The upstream failed, and no other may serve this request: the gateway's own retries are used up.")
	errTimeout    = dialect.Fail(dialect.UpstreamTimeout, "The upstream did not answer in time.")
	errSaturated  = dialect.Fail(dialect.UpstreamSaturated, "The upstreams for this model are at their limits: retry shortly.")
	errNoZero     = dialect.Fail(dialect.ZeroRetentionUnavailable, policy.NoZeroRetention().Message)
	errAnswerSize = dialect.Fail(dialect.UpstreamError, "The upstream's answer is larger than 32 MiB, or nests more than 128 deep, the most that is passed on in one piece: ask for less at a time, or for a stream.")
)

// ErrorOf is what the client is told when attempts ended with o.
func ErrorOf(o breaker.Outcome) *dialect.Error {
	switch o {
	case breaker.Throttled:
		return errSaturated
	case breaker.Timeout, breaker.Expired:
		return errTimeout
	default:
		return errUpstream
	}
}
