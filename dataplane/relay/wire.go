package relay

import (
	"errors"
	"io"
	"net/http"
	"time"

	"ringmain/dataplane/relay/h1"
)

// answer is what came back, over whichever connection.
type answer struct {
	status      int
	length      int64 // of the body; -1 = not known
	contentType string
	encoding    string
	requestID   string
	retryAfter  time.Duration // of any status but 200
	body        io.ReadCloser
}

// do sends the request and reads the answer's head: over an own connection, or
// over net/http's where the server prefers HTTP/2. Its errors are the
// attempt's to judge, and hold no content.
func (c *Client) do(a *attempt, e *endpoint, ask *Ask) (answer, error) {
	to, ok := e.paths[ask.Endpoint.Path]
	if !ok {
		return answer{}, &dialError{Err: errors.New("the endpoint is not one that is served")}
	}
	var fields [maxFields]h1.Field
	var parts [maxParts][]byte
	req := h1.Request{Start: to.start, Fields: ask.fields(fields[:0], e), Body: ask.Body.AppendParts(parts[:0])}
	resp, err := e.pool.Do(a, &req, a.start.Add(a.due))
	if errors.Is(err, h1.ErrHTTP2) {
		return c.doHTTP2(a, e, ask, to)
	}
	if err != nil {
		return answer{}, wire(a.why(err))
	}
	a.own = resp
	ans := answer{
		status: resp.Status, length: resp.Length, contentType: resp.ContentType, encoding: resp.Encoding,
		requestID: showable(resp.RequestID), body: (*ownBody)(a),
	}
	if resp.RetryAfter != "" || resp.RetryAfterMS != "" {
		ans.retryAfter = retryAfter(resp.RetryAfterMS, resp.RetryAfter, time.Now())
	}
	return ans, nil
}

// maxParts is enough for most bodies.
const maxParts = 16

func (c *Client) doHTTP2(a *attempt, e *endpoint, ask *Ask, to path) (answer, error) {
	a.watch()
	var fields [maxFields]h1.Field
	h := make(http.Header, len(e.header)+maxFields)
	for name, values := range e.header {
		h[name] = values
	}
	for _, f := range ask.fields(fields[:0], e) {
		h[f.Name] = append(h[f.Name], f.Value)
	}
	req := (&http.Request{
		Method: http.MethodPost, URL: to.url, Host: to.url.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: ask.Body.Open(), ContentLength: ask.Body.Len(),
		GetBody: func() (io.ReadCloser, error) { return ask.Body.Open(), nil },
	}).WithContext(a)
	resp, err := c.upstreams.RoundTrip(req)
	if err != nil || resp.ProtoMajor < 2 {
		if a.Err() == nil {
			e.pool.Relearn() // it may have changed its mind
		}
	}
	if err != nil {
		return answer{}, wire(err)
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		_ = resp.Body.Close() // the bare connection, which no context bounds any more
		return answer{}, h1.ErrUpgrade
	}
	ans := answer{
		status: resp.StatusCode, length: resp.ContentLength, contentType: first(resp.Header["Content-Type"]),
		encoding: first(resp.Header["Content-Encoding"]), requestID: requestID(resp.Header), body: resp.Body,
	}
	if resp.StatusCode != http.StatusOK {
		ans.retryAfter = RetryAfter(resp.Header, time.Now())
	}
	return ans, nil
}
