// Package forward asks another control node, over mutual TLS and HTTP/2, to
// answer a management request: it knows addresses, follows "another node leads
// here", waits out an election, and tells what was surely not written from what
// may have been. What a request means it does not know.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/identity"
)

// Config configures a Client.
type Config struct {
	Bundle *identity.Bundle
	// Addresses lists the internal addresses (host:port) of a region's control
	// nodes; empty for a region it does not know. It is asked for every request.
	Addresses func(region string) []string
	Patience  time.Duration // how long an election is waited for; 0 = 3 s
}

const (
	dialIn       = time.Second     // a connection and its handshake, each
	answerIn     = 5 * time.Second // until the answer's headers
	roundPause   = 20 * time.Millisecond
	maxRedirects = 4
)

// Client implements admin.Forwarder. It is safe for concurrent use.
type Client struct {
	cfg Config

	mu      sync.Mutex                 // guards what is below
	regions map[string]*http.Transport // by region: each accepts that region's control nodes only
	leaders map[string]string          // by region: who answered a write last
}

// New makes a Client. It opens no connection until it is used.
func New(cfg Config) *Client {
	if cfg.Patience == 0 {
		cfg.Patience = 3 * time.Second
	}
	return &Client{cfg: cfg, regions: map[string]*http.Transport{}, leaders: map[string]string{}}
}

// Close closes idle connections. The Client must not be used afterwards.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.regions {
		t.CloseIdleConnections()
	}
}

func (c *Client) transport(region string) *http.Transport {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.regions[region]
	if !ok {
		t = &http.Transport{
			DialTLSContext:        c.cfg.Bundle.Dialer(&net.Dialer{Timeout: dialIn, KeepAlive: 5 * time.Second}, []string{"h2"}, identity.AllowControl(region)),
			ForceAttemptHTTP2:     true,
			ResponseHeaderTimeout: answerIn,
			IdleConnTimeout:       time.Minute,
			HTTP2:                 &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 2 * time.Second},
		}
		c.regions[region] = t
	}
	return t
}

func (c *Client) leader(region string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaders[region]
}

func (c *Client) setLeader(region, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaders[region] = addr
}

// Forward asks region's control nodes, the one that led last first, until one
// answers. See admin.Forwarder for the contract.
func (c *Client) Forward(ctx context.Context, region string, r *http.Request) (*http.Response, error) {
	giveUp := time.Now().Add(c.cfg.Patience)
	hint := c.leader(region)
	for redirects := 0; ; {
		round := c.round(ctx, region, hint, r)
		switch {
		case round.resp != nil:
			return round.resp, nil
		case errors.Is(round.err, controlplane.ErrUncertain), errors.Is(round.err, controlplane.ErrUnreachable):
			return nil, round.err
		case round.region != "" && redirects < maxRedirects:
			redirects++
			region, hint = round.region, round.leader
			continue
		case time.Now().After(giveUp):
			return nil, fmt.Errorf("region %s: %w", region, controlplane.ErrNoLeader)
		}
		redirects, hint = 0, ""
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("region %s: %w", region, controlplane.ErrNoLeader)
		case <-time.After(roundPause):
		}
	}
}

// outcome of asking the nodes of one region, each once.
type outcome struct {
	resp           *http.Response
	region, leader string // ask there instead
	err            error
}

// round asks hint, then the region's nodes. Without an answer its error is
// ErrUncertain, ErrUnreachable if no node could be reached, or ErrNoLeader.
func (c *Client) round(ctx context.Context, region, hint string, r *http.Request) outcome {
	addrs := slices.Clone(c.cfg.Addresses(region))
	if hint != "" {
		addrs = slices.Insert(slices.DeleteFunc(addrs, func(a string) bool { return a == hint }), 0, hint)
	}
	result := fmt.Errorf("region %s: %w", region, controlplane.ErrUnreachable)
	for _, addr := range addrs {
		resp, sent, err := c.attempt(ctx, region, addr, r)
		switch {
		case err != nil && sent && r.Method != http.MethodGet:
			return outcome{err: fmt.Errorf("%s: %w: %w", addr, controlplane.ErrUncertain, err)}
		case err != nil:
			continue
		case resp.StatusCode == http.StatusMisdirectedRequest:
			home, leader := resp.Header.Get(api.HeaderHome), resp.Header.Get(api.HeaderLeader)
			drain(resp)
			if home != region || leader != addr {
				return outcome{region: home, leader: leader, err: controlplane.ErrNotLeader}
			}
			result = controlplane.ErrNoLeader
		case resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get(api.HeaderErrorCode) == api.CodeNoLeader:
			drain(resp)
			result = controlplane.ErrNoLeader
		default:
			if r.Method != http.MethodGet {
				c.setLeader(region, addr)
			}
			return outcome{resp: resp}
		}
	}
	return outcome{err: result}
}

// attempt asks one node. sent says that the node may have seen the request.
func (c *Client) attempt(ctx context.Context, region, addr string, r *http.Request) (resp *http.Response, sent bool, err error) {
	var wrote atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { wrote.Store(true) }, // comes before the first byte
	})
	out := r.Clone(ctx)
	out.RequestURI, out.Host = "", ""
	out.URL = &url.URL{
		Scheme: "https", Host: addr, RawQuery: r.URL.RawQuery,
		Path: api.InternalPrefix + r.URL.Path, RawPath: api.InternalPrefix + r.URL.EscapedPath(),
	}
	if r.GetBody != nil {
		if out.Body, err = r.GetBody(); err != nil {
			return nil, false, err
		}
	}
	resp, err = c.transport(region).RoundTrip(out)
	return resp, wrote.Load(), err
}

// drain lets the connection be used again.
func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
}
