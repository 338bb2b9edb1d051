package relay

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/stream"
)

// The forward protocol: POST ForwardPath on the peer listener of a data node
// of the chosen region, with the client's own body. Headers carry the rest.
const (
	ForwardPath = "/internal/v1/forward"
	ProbePath   = "/livez"

	HeaderRequestID = "Ringmain-Request-Id"
	HeaderPath      = "Ringmain-Path"           // endpoint the client asked
	HeaderKey       = "Ringmain-Key"            // record id of the key; never the key
	HeaderProject   = "Ringmain-Project"        // record id of the project to bill
	HeaderEntry     = "Ringmain-Entry"          // region/node where the request entered
	HeaderRoute     = "Ringmain-Route"          // way so far, as in idc-route
	HeaderResidency = "Ringmain-Residency"      // pin that the entry decided on; absent = none
	HeaderZero      = "Ringmain-Zero-Retention" // "true": the entry decided on zero retention
	HeaderPool      = "Ringmain-Pool"           // pool that the entry decided on
	HeaderModel     = "Ringmain-Model"          // public name of the model to serve, where it is not the body's: a declared fallback
	HeaderProvider  = "Ringmain-Provider"       // the only provider that may be asked; absent = any that the node's own state allows
	HeaderRetry     = "Ringmain-Retry"          // "true": others were asked for this request before
	HeaderLeft      = "Ringmain-Attempts"       // request: attempts left; answer: attempts made
	HeaderDeadline  = "Ringmain-Deadline-Ms"    // milliseconds left: relative, since clocks differ
	HeaderOutcome   = "Ringmain-Outcome"        // answer: one of the outcomes below
	HeaderCode      = "Ringmain-Code"           // answer: with OutcomeFailed, the code to fail with
	HeaderTried     = "Ringmain-Tried"          // answer: upstream and outcome of each attempt, in turn
	HeaderServed    = "Ringmain-Served-Model"   // answer: the model's name at the upstream
	HeaderConfined  = "Ringmain-Confinement"    // answer: what the node's worker measured of itself last, as proof.Confinement.String

	OutcomeAnswer = "answer" // pass it on
	OutcomeFinal  = "final"  // an error that is the client's to see: pass it on, ask nobody else
	OutcomeFailed = "failed" // the node's upstreams failed: another region may be asked
	OutcomeBehind = "behind" // the node's state lacks a record: ask another node, blame nobody
)

// AskPeer is one attempt at another region's node.
type AskPeer struct {
	Region, Node string
	Endpoint     *dialect.Endpoint
	ContentType  string // of the body, as the client gave it; empty = application/json
	Choices      int    // as in Ask
	Streamed     bool
	WantsUsage   bool
	Body         dialect.Body
	Client       http.Header // the client's; few of them go on
	Forward      http.Header // the headers above, for the request
	Timeouts     Timeouts
}

// PeerAnswer is what a peer says beside the answer itself.
type PeerAnswer struct {
	Outcome  string
	Code     dialect.Code
	Attempts int
	Header   http.Header // the peer's whole answer; take from it only what is ours
}

// PeerGrace is how much longer than a peer we wait between two events: it shall
// speak up before we give up.
const PeerGrace = 5 * time.Second

const peerDomain = ".peer.ringmain.internal"

// dialPeer connects to the node that the host name stands for, wherever its
// listener is at the moment, and makes sure that it is that node.
func (c *Client) dialPeer(ctx context.Context, network, host string) (net.Conn, error) {
	name, _, _ := strings.Cut(host, peerDomain)
	node, region, ok := strings.Cut(name, ".")
	if !ok {
		return nil, &dialError{Err: fmt.Errorf("peer %q: no such name", name)}
	}
	addr, ok := c.cfg.Locate(region, node)
	if !ok {
		return nil, &dialError{Err: fmt.Errorf("peer %s/%s: its address is not known", region, node)}
	}
	raw, err := dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	want := identity.ID{Cluster: c.cfg.Identity.ID().Cluster, Region: region, Role: identity.RoleData, Node: node}
	shake, cancel := context.WithTimeout(ctx, defaultConnect)
	defer cancel()
	conn, err := c.cfg.Identity.Dial(shake, raw, []string{"h2"}, identity.AllowNode(want))
	if err != nil {
		return nil, &dialError{Err: err}
	}
	return conn, nil
}

// PeerBase is how PeerTransport knows a node: the URL to put a path behind.
func PeerBase(region, node string) string { return "https://" + node + "." + region + peerDomain }

// PeerTransport carries requests to peers other than forwards.
func (c *Client) PeerTransport() http.RoundTripper { return c.peers }

func peerURL(region, node, path string) *url.URL {
	return &url.URL{Scheme: "https", Host: node + "." + region + peerDomain, Path: path}
}

// Peer makes the attempt. As with Upstream, it returns when the answer is
// known to be one.
func (c *Client) Peer(ctx context.Context, ask *AskPeer) *Result {
	r := &Result{client: c}
	// The peer watches its upstream's first byte; whether the peer itself
	// lives is told by pings.
	t := ask.Timeouts
	t.FirstByte, t.Idle = t.Total, t.Idle+PeerGrace
	r.attempt = newAttempt(ctx, t)
	r.attempt.watch()
	h := ask.Forward
	h["Content-Type"] = jsonType
	if ask.ContentType != "" {
		h["Content-Type"] = []string{ask.ContentType}
	}
	for _, name := range passed {
		if v := ask.Client[name]; len(v) > 0 {
			h[name] = slices.Clone(v)
		}
	}
	u := peerURL(ask.Region, ask.Node, ForwardPath)
	req := (&http.Request{
		Method: http.MethodPost, URL: u, Host: u.Host, Proto: "HTTP/2.0", ProtoMajor: 2,
		Header: h, Body: ask.Body.Open(), ContentLength: ask.Body.Len(),
		GetBody: func() (io.ReadCloser, error) { return ask.Body.Open(), nil },
	}).WithContext(r.attempt)
	resp, err := c.peers.RoundTrip(req)
	if err != nil {
		return r.fail(wire(err), r.attempt.outcome(err))
	}
	r.Reached, r.Status = true, resp.StatusCode
	r.ContentType = resp.Header.Get("Content-Type")
	r.Peer = &PeerAnswer{Outcome: resp.Header.Get(HeaderOutcome), Code: dialect.Code(resp.Header.Get(HeaderCode)), Header: resp.Header}
	r.Peer.Attempts, _ = strconv.Atoi(resp.Header.Get(HeaderLeft))
	switch r.Peer.Outcome {
	case OutcomeAnswer:
		if ask.Streamed && streams(ask.Endpoint, r.ContentType) {
			return c.stream(r, resp.Body, stream.Stream{Dialect: ask.Endpoint.Dialect, Endpoint: ask.Endpoint, WantsUsage: ask.WantsUsage, Choices: ask.Choices}, t.Idle)
		}
		return c.plain(r, resp.Body, resp.ContentLength, ask.Endpoint, t.Idle)
	case OutcomeFinal:
		defer func() { _ = resp.Body.Close() }()
		r.attempt.expect(5*time.Second, errIdle)
		if err := c.read(r, resp.Body, resp.ContentLength, maxProblem, 0); err != nil {
			return r.fail(err, r.attempt.outcome(err))
		}
		r.Problem = dialect.ReadProblem(r.Body())
		r.Outcome = breaker.ClientError
		if r.Problem.Refused {
			r.Outcome = breaker.Refused
		}
		return r
	case OutcomeFailed, OutcomeBehind:
		_ = resp.Body.Close()
		r.Outcome = breaker.Behind
		r.RetryAfter = RetryAfter(resp.Header, time.Now())
		r.Cause = fmt.Errorf("the peer's outcome is %s (%s)", r.Peer.Outcome, r.Peer.Code)
		return r
	default:
		_ = resp.Body.Close()
		return r.fail(fmt.Errorf("the peer answered with status %d outside the protocol", resp.StatusCode), breaker.ServerError)
	}
}

// Probe measures one round trip to a peer's listener.
func (c *Client) Probe(ctx context.Context, region, node string) (time.Duration, error) {
	u := peerURL(region, node, ProbePath)
	req := (&http.Request{Method: http.MethodGet, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	start := time.Now()
	resp, err := c.peers.RoundTrip(req)
	if err != nil {
		if exhausted(err) {
			err = ErrNoSockets
		}
		return 0, fmt.Errorf("probe %s/%s: %w", region, node, err)
	}
	rtt := time.Since(start)
	_, _ = io.CopyN(io.Discard, resp.Body, 1<<10)
	if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("probe %s/%s: status %d: %w", region, node, resp.StatusCode, err)
	}
	return rtt, nil
}
