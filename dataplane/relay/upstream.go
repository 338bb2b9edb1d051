package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
)

// Ask is one attempt at an upstream.
type Ask struct {
	Upstream *registry.Record
	Path     string // /v1/…, appended to the upstream's base URL
	Dialect  dialect.Dialect
	Streamed bool
	// WantsUsage: leave the usage chunk in the stream.
	WantsUsage bool
	Body       dialect.Body
	Client     http.Header // the client's; few of them go on
	Timeouts   Timeouts
}

// endpoint is what an upstream's record says, ready to use.
type endpoint struct {
	record *registry.Record
	url    map[string]*url.URL // by path
	auth   string              // header name; empty = none
	secret []string
}

// paths that an endpoint may be asked for.
var paths = [...]string{"/v1/chat/completions", "/v1/messages"}

func (c *Client) endpoint(rec *registry.Record) (*endpoint, error) {
	if e, ok := c.endpoints.Load(rec.Meta.ID); ok {
		if e := e.(*endpoint); e.record == rec { //nolint:forcetypeassert // only endpoints are stored
			return e, nil
		}
	}
	up := rec.Upstream
	e := &endpoint{record: rec, url: make(map[string]*url.URL, len(paths))}
	for _, p := range paths {
		u, err := url.Parse(strings.TrimSuffix(up.BaseURL, "/") + p)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("upstream %s: base URL cannot be used: mend the record", up.Name)
		}
		e.url[p] = u
	}
	switch up.Auth {
	case "bearer":
		e.auth, e.secret = "Authorization", []string{"Bearer " + string(up.Credential)}
	case "x-api-key":
		e.auth, e.secret = "X-Api-Key", []string{string(up.Credential)}
	case "api-key":
		e.auth, e.secret = "Api-Key", []string{string(up.Credential)}
	case "none":
	default:
		return nil, fmt.Errorf("upstream %s: auth %q is not known to this version", up.Name, up.Auth)
	}
	c.endpoints.Store(rec.Meta.ID, e)
	return e, nil
}

// Headers of a client that a provider's API defines. Nothing else goes on.
var passed = [...]string{"Anthropic-Version", "Anthropic-Beta", "Openai-Beta"}

const anthropicVersion = "2023-06-01"

var (
	jsonType   = []string{"application/json"}
	eventType  = []string{"text/event-stream"}
	ourAgent   = []string{"ringmain"}
	apiVersion = []string{anthropicVersion}
)

func (a *Ask) header(e *endpoint) http.Header {
	h := make(http.Header, 8)
	h["Content-Type"], h["User-Agent"], h["Accept"] = jsonType, ourAgent, jsonType
	if a.Streamed {
		h["Accept"] = eventType
	}
	for _, name := range passed {
		if v := a.Client[name]; len(v) > 0 {
			h[name] = slices.Clone(v)
		}
	}
	if a.Dialect == dialect.Anthropic && h["Anthropic-Version"] == nil {
		h["Anthropic-Version"] = apiVersion
	}
	if e.auth != "" {
		h[e.auth] = e.secret
	}
	return h
}

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
	req := (&http.Request{
		Method: http.MethodPost, URL: e.url[ask.Path], Host: e.url[ask.Path].Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: ask.header(e), Body: ask.Body.Open(), ContentLength: ask.Body.Len(),
		GetBody: func() (io.ReadCloser, error) { return ask.Body.Open(), nil },
	}).WithContext(r.attempt)
	resp, err := c.upstreams.RoundTrip(req)
	if err != nil {
		return r.fail(wire(err), r.attempt.outcome(err))
	}
	r.Reached, r.Status = true, resp.StatusCode
	if resp.StatusCode == http.StatusSwitchingProtocols {
		_ = resp.Body.Close() // the bare connection, which no context bounds any more
		return r.fail(errors.New("the upstream switched protocols, which was not asked for"), breaker.ServerError)
	}
	r.RequestID = requestID(resp.Header)
	r.ContentType = first(resp.Header["Content-Type"])
	if resp.StatusCode != http.StatusOK {
		r.RetryAfter = RetryAfter(resp.Header, time.Now())
		return c.problem(r, resp)
	}
	if enc := first(resp.Header["Content-Encoding"]); enc != "" && enc != "identity" {
		_ = resp.Body.Close()
		return r.fail(errors.New("the answer is compressed, which was not asked for"), breaker.ServerError)
	}
	if ask.Streamed {
		return c.stream(r, resp, dialect.Stream{Dialect: ask.Dialect, WantsUsage: ask.WantsUsage}, ask.Timeouts.Idle)
	}
	return c.plain(r, resp, ask.Dialect, ask.Timeouts.Idle)
}

// problem reads an answer that is none.
func (c *Client) problem(r *Result, resp *http.Response) *Result {
	defer func() { _ = resp.Body.Close() }()
	r.attempt.expect(5*time.Second, errIdle)
	if err := c.read(r, resp, maxProblem, 0); err == nil {
		r.Problem = dialect.ReadProblem(r.body)
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
	case status == http.StatusUnauthorized, status == http.StatusPaymentRequired, status == http.StatusForbidden,
		status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusGone:
		return breaker.Unauthorized // it is our account, or the name we gave the model
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status < 400, status >= 500:
		return breaker.ServerError
	}
	return breaker.ClientError
}

// plain reads a whole answer: only then is it known to be one, and until then
// another upstream may still be asked.
func (c *Client) plain(r *Result, resp *http.Response, d dialect.Dialect, idle time.Duration) *Result {
	defer func() { _ = resp.Body.Close() }()
	if err := c.read(r, resp, MaxAnswer, idle); err != nil {
		if errors.Is(err, errTooLarge) {
			return r.fail(err, breaker.ServerError)
		}
		return r.fail(err, r.attempt.outcome(err))
	}
	r.attempt.rest()
	answer, ok := dialect.ReadAnswer(d, r.body)
	if !ok {
		return r.fail(errors.New("the answer is not what its dialect defines"), breaker.ServerError)
	}
	r.Answer = answer
	if answer.Refused {
		r.Outcome = breaker.Refused
	}
	return r
}

var errTooLarge = errors.New("the answer is larger than this gateway passes on")

// read fills r.body from resp. Each read may take idle; 0 = the clock is set.
func (c *Client) read(r *Result, resp *http.Response, most int64, idle time.Duration) error {
	if resp.ContentLength > most {
		return errTooLarge
	}
	r.buffer = c.getBuffer()
	b := *r.buffer
	if n := resp.ContentLength + 1; n > int64(cap(b)) { // one more, to see the end without growing
		b = make([]byte, 0, n)
	}
	for {
		if len(b) == cap(b) {
			b = slices.Grow(b, len(b)+1)
		}
		if idle > 0 {
			r.attempt.expect(idle, errIdle)
		}
		n, err := resp.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		*r.buffer, r.body = b, b
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read answer: %w", wire(err))
		}
		if int64(len(b)) > most {
			return errTooLarge
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
	id := first(h["X-Request-Id"])
	if id == "" {
		id = first(h["Request-Id"])
	}
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
	if ms, err := strconv.ParseFloat(h.Get("Retry-After-Ms"), 64); err == nil && ms > 0 && ms < 1e9 {
		return time.Duration(ms * float64(time.Millisecond))
	}
	v := h.Get("Retry-After")
	if s, err := strconv.ParseFloat(v, 64); err == nil && s > 0 && s < 1e6 {
		return time.Duration(s * float64(time.Second))
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
