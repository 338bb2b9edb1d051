package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
	"ringmain/dataplane/relay/h1"
)

// Ask is one attempt at an upstream.
type Ask struct {
	Upstream *registry.Record
	Endpoint *dialect.Endpoint // its path is appended to the upstream's base URL
	// ContentType of the body, as the client gave it; empty = application/json.
	ContentType string
	Streamed    bool
	Choices     int // how many the answer will have; 0 = not known
	// WantsUsage: leave the usage chunk in the stream.
	WantsUsage bool
	Body       dialect.Body
	Client     http.Header // the client's; few of them go on
	Timeouts   Timeouts
}

// Headers of a client that a provider's API defines. Nothing else goes on.
var passed = [...]string{versionHeader, "Anthropic-Beta", "Openai-Beta"}

// MaxPassed bounds these: a head that another node or a provider refuses for its
// size would look like a fault of theirs.
const MaxPassed = 4 << 10

// Passed is how much of a client's headers goes on, in bytes, as HTTP/2 counts it.
func Passed(client http.Header) (n int) {
	for _, name := range passed {
		for _, v := range client[name] {
			n += len(name) + len(v) + 32
		}
	}
	return n
}

const (
	versionHeader    = "Anthropic-Version"
	anthropicVersion = "2023-06-01"
)

var (
	jsonType  = []string{"application/json"}
	eventType = []string{"text/event-stream"}
	ourAgent  = []string{"ringmain"}
)

// Upstream makes the attempt. It returns when the answer is known to be one: a
// plain one in full, a streamed one up to its first event.
func (c *Client) Upstream(ctx context.Context, ask *Ask) *Result {
	r := &Result{client: c}
	e, err := c.endpoint(ask.Upstream)
	if err != nil {
		r.Outcome, r.Cause = breaker.ServerError, err
		return r
	}
	r.attempt = newAttempt(ctx, ask.Timeouts)
	ans, err := c.do(r.attempt, e, ask)
	if errors.Is(err, h1.ErrUpgrade) {
		r.Status = http.StatusSwitchingProtocols
		return r.fail(err, breaker.ServerError)
	}
	if err != nil {
		return r.fail(err, r.attempt.outcome(err))
	}
	r.Reached, r.Status = true, ans.status
	r.RequestID, r.ContentType, r.RetryAfter = ans.requestID, ans.contentType, ans.retryAfter
	if ans.status != http.StatusOK {
		return c.problem(r, ans.body, ans.length)
	}
	if ans.encoding != "" && ans.encoding != "identity" {
		_ = ans.body.Close()
		return r.fail(errors.New("the answer is compressed, which was not asked for"), breaker.ServerError)
	}
	if ask.Streamed && streams(ask.Endpoint, ans.contentType) {
		state := stream.Stream{Dialect: ask.Endpoint.Dialect, Endpoint: ask.Endpoint, WantsUsage: ask.WantsUsage, Choices: ask.Choices}
		return c.stream(r, ans.body, state, ask.Timeouts.Idle)
	}
	return c.plain(r, ans.body, ans.length, ask.Endpoint, ask.Timeouts.Idle)
}

// problem reads an answer that is none.
func (c *Client) problem(r *Result, body io.ReadCloser, length int64) *Result {
	defer func() { _ = body.Close() }()
	r.attempt.expect(5*time.Second, errIdle)
	if err := c.read(r, body, length, maxProblem, 0); err == nil {
		r.Problem = dialect.ReadProblem(r.Body())
	} else if o := r.attempt.outcome(err); o == breaker.ClientGone || o == breaker.Expired {
		return r.fail(err, o)
	}
	r.Outcome = Classify(r.Status, r.Problem)
	r.Cause = fmt.Errorf("the upstream answered with status %d", r.Status)
	return r
}

// Classify says what a status other than 200 means. ClientError and Refused
// are final and passed on as they are.
func Classify(status int, p dialect.Problem) breaker.Outcome {
	switch {
	case p.Refused && status >= 400:
		return breaker.Refused
	case status == http.StatusTooManyRequests, status == 529:
		return breaker.Throttled
	case p.Account && status >= 400, status == http.StatusUnauthorized, status == http.StatusPaymentRequired, status == http.StatusForbidden,
		status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusGone:
		return breaker.Unauthorized // it is our account, or the name we gave the model
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status < 400, status >= 500:
		return breaker.ServerError
	}
	return breaker.ClientError
}

// within says what an error means that came under status 200: what it would have
// meant under the status that it stands for.
func within(p dialect.Problem) breaker.Outcome {
	return Classify(cmp.Or(p.Status, http.StatusInternalServerError), p)
}

// plain reads a whole answer: only then is it known to be one, and until then
// another upstream may still be asked.
func (c *Client) plain(r *Result, body io.ReadCloser, length int64, ep *dialect.Endpoint, idle time.Duration) *Result {
	defer func() { _ = body.Close() }()
	if err := c.read(r, body, length, MaxAnswer, idle); err != nil {
		if errors.Is(err, ErrAnswerTooLarge) {
			return r.fail(err, breaker.ClientError) // it was asked for; the upstream is well
		}
		return r.fail(err, r.attempt.outcome(err))
	}
	r.attempt.rest()
	answer, ok := dialect.ReadAnswer(ep, r.ContentType, r.Body())
	switch {
	case answer.Deep:
		return r.fail(ErrAnswerTooLarge, breaker.ClientError)
	case !ok:
		return c.notOne(r)
	}
	r.Answer = answer
	if answer.Refused {
		r.Outcome = breaker.Refused
	}
	return r
}

// notOne judges a whole answer of status 200 that is none.
func (c *Client) notOne(r *Result) *Result {
	p := dialect.ReadProblem(r.Body())
	o, cause := within(p), errors.New("the answer is not what its dialect defines")
	switch o {
	case breaker.Refused:
		r.Outcome, r.Cause, r.Answer.Refused = o, cause, true
	case breaker.ClientError:
		r.Outcome, r.Cause, r.Status, r.Problem = o, cause, p.Status, p
	default:
		return r.fail(cause, o)
	}
	return r
}

// ErrAnswerTooLarge is the cause where a plain answer is larger than MaxAnswer, or
// nests deeper than is read, or where an event of a stream is larger than it may be.
var ErrAnswerTooLarge = errors.New("the answer is larger, or nests deeper, than this gateway passes on")

// read fills r.body. Each read may take idle; 0 = the clock is set. length is
// what the answer said, -1 = nothing.
func (c *Client) read(r *Result, body io.Reader, length, most int64, idle time.Duration) error {
	if length > most {
		return ErrAnswerTooLarge
	}
	r.buffer = c.getBuffer()
	b := *r.buffer
	if n := length + 1; n > int64(cap(b)) { // one more, to see the end without growing
		b = make([]byte, 0, n)
	}
	for {
		if len(b) == cap(b) {
			b = slices.Grow(b, len(b)+1)
		}
		if idle > 0 {
			r.attempt.expect(idle, errIdle)
		}
		n, err := body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		*r.buffer, r.body = b, dialect.Conceal(b)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read answer: %w", wire(err))
		}
		if int64(len(b)) > most {
			return ErrAnswerTooLarge
		}
	}
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}

// requestID is the provider's name for the request, if it can be shown.
func requestID(h http.Header) string {
	if id := first(h["X-Request-Id"]); id != "" {
		return showable(id)
	}
	return showable(first(h["Request-Id"]))
}

func showable(id string) string {
	if len(id) > 128 {
		return ""
	}
	for i := range len(id) {
		if id[i] <= ' ' || id[i] >= 0x7f {
			return ""
		}
	}
	return id
}

// RetryAfter is how long the headers ask to wait, 0 if they do not say:
// retry-after-ms, or retry-after in seconds or as a date.
func RetryAfter(h http.Header, now time.Time) time.Duration {
	return retryAfter(h.Get("Retry-After-Ms"), h.Get("Retry-After"), now)
}

func retryAfter(exact, v string, now time.Time) time.Duration {
	if ms, err := strconv.ParseFloat(exact, 64); err == nil && ms > 0 && ms < 1e9 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	if s, err := strconv.ParseFloat(v, 64); err == nil && s > 0 && s < 1e6 {
		return time.Duration(s * float64(time.Second))
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
