// Package adminclient asks control nodes by /admin/v1, for the commands and the
// development cluster: it finds one that answers, sends again what may be sent
// again, and says of a write whose answer was lost that nobody knows.
package adminclient

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"ringmain/controlplane/admin/api"
)

// Config configures a Client.
type Config struct {
	Servers []string       // base URLs of admin listeners, in order of preference
	Token   string         // admin token
	Roots   *x509.CertPool // trusted to vouch for the servers; nil = the system's

	Acknowledge string            // level that writes wait for; "" = each operation's own
	Notice      func(text string) // told what the caller should know of a success, and of a long wait; nil = nobody
}

// Client calls /admin/v1. It goes on to the next server when one cannot be
// reached, and stays with the one that answered. It is safe for concurrent use.
type Client struct {
	servers []*url.URL
	token   string
	http    *http.Client
	ack     string
	notice  func(string)
	current atomic.Int32 // index of the server that answered last
}

// ErrNotFound says that nothing bears the given name.
var ErrNotFound = errors.New("not found")

// New checks cfg. It opens no connection until it is used.
func New(cfg Config) (*Client, error) {
	c := &Client{token: cfg.Token, ack: cfg.Acknowledge, notice: cfg.Notice, http: &http.Client{
		Timeout: 20 * time.Second,
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
			TLSHandshakeTimeout: 5 * time.Second,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: cfg.Roots},
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     time.Minute,
		},
		// The API never redirects: whoever does should not get the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, s := range cfg.Servers {
		u, err := url.Parse(strings.TrimSuffix(s, "/"))
		if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" {
			return nil, fmt.Errorf("server %q: want https://host[:port]", s)
		}
		c.servers = append(c.servers, u)
	}
	if len(c.servers) == 0 {
		return nil, errors.New("no server to ask")
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call; path is below /admin/v1, percent-encoded.
type request struct {
	method, path string
	query        url.Values
	ifMatch      string
	body         any    // nil = none
	once         string // Idempotency-Key: the request may be sent again whatever became of it
}

// patience is how long a request is sent again while nobody can answer it: an
// election takes a second or two.
const patience = 10 * time.Second

// call sends r and reads the answer into out. Errors of the API are *api.Problem.
func (c *Client) call(ctx context.Context, r request, out any) error {
	var body []byte
	if r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	defer c.sayWaiting()()
	end := time.Now().Add(patience)
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := c.ask(ctx, r, body, out)
		if !r.again(err) || time.Now().Add(pause).After(end) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return err
		}
	}
}

// sayWaiting gives notice of an answer that takes longer than a second, until the
// function that it returns is called.
func (c *Client) sayWaiting() (stop func()) {
	if c.notice == nil {
		return func() {}
	}
	answered, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-time.After(time.Second):
			c.notice("waiting for an answer")
		case <-answered:
		}
	}()
	return func() {
		close(answered)
		<-done
	}
}

// again reports whether r may be sent again after err, and might succeed.
func (r request) again(err error) bool {
	var p *api.Problem
	if !errors.As(err, &p) {
		return false
	}
	switch p.Code {
	case api.CodeNoLeader, api.CodeOverloaded:
		return true // nothing was written
	case api.CodeUncertain:
		return r.once != "" || r.method == http.MethodGet
	}
	return false
}

// ask tries the servers in turn until one answers.
func (c *Client) ask(ctx context.Context, r request, body []byte, out any) error {
	first := int(c.current.Load())
	var failures []error
	for i := range c.servers {
		at := (first + i) % len(c.servers)
		err := c.try(ctx, c.servers[at], r, body, out)
		var unreached *unreachedError
		if !errors.As(err, &unreached) {
			c.current.Store(int32(at))
			return err
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// unreachedError says that a server did not get the request.
type unreachedError struct {
	server string
	err    error
}

func (e *unreachedError) Error() string {
	return fmt.Sprintf("%s cannot be reached: %v", e.server, e.err)
}
func (e *unreachedError) Unwrap() error { return e.err }

func (c *Client) try(ctx context.Context, server *url.URL, r request, body []byte, out any) error {
	target := server.String() + "/admin/v1" + r.path
	if len(r.query) > 0 {
		target += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.ifMatch != "" {
		req.Header.Set("If-Match", r.ifMatch)
	}
	if c.ack != "" && r.method != http.MethodGet {
		req.Header.Set(api.HeaderAcknowledge, c.ack)
	}
	if r.once != "" {
		req.Header.Set(api.HeaderIdempotency, r.once)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.failure(ctx, server, r, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
	if err != nil {
		return c.failure(ctx, server, r, err)
	}
	if resp.StatusCode >= 300 {
		p := new(api.Problem)
		if json.Unmarshal(answer, p) != nil || p.Code == "" {
			return fmt.Errorf("%s answered %s, and not as a ringmain control node does: check the address", server, resp.Status)
		}
		return p
	}
	if resp.StatusCode == http.StatusAccepted && c.notice != nil {
		c.notice("written at home; the other regions have not confirmed it yet, so it is lost to them if this home is lost now")
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(answer, out); err != nil {
		return fmt.Errorf("%s: answer not understood: %w", server, err)
	}
	return nil
}

// failure tells apart: the server never got the request (another may be
// asked), what may be asked twice (the same), and a write of which nobody knows.
func (c *Client) failure(ctx context.Context, server *url.URL, r request, err error) error {
	var op *net.OpError
	var unknown x509.UnknownAuthorityError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &unknown):
		return fmt.Errorf("%s shows a certificate of an unknown authority: give the cluster's with --ca-file: %w", server, err)
	case errors.As(err, &op) && op.Op == "dial", r.method == http.MethodGet, r.once != "":
		return &unreachedError{server.String(), err}
	}
	return fmt.Errorf("%s did not answer; the change may or may not have been made: read before you repeat it: %w", server, err)
}

func get[T any](ctx context.Context, c *Client, path string) (*T, error) {
	out := new(T)
	return out, c.call(ctx, request{method: http.MethodGet, path: path}, out)
}

func send[T any](ctx context.Context, c *Client, method, path, ifMatch string, body any) (*T, error) {
	out := new(T)
	if err := c.call(ctx, request{method: method, path: path, ifMatch: ifMatch, body: body}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// create is send for requests that make a record or a secret: they may be sent
// again, and are, until somebody answers.
func create[T any](ctx context.Context, c *Client, path string, body any) (*T, error) {
	out := new(T)
	if err := c.call(ctx, request{method: http.MethodPost, path: path, body: body, once: crand.Text()}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// all reads every page of a list.
func all[T any](ctx context.Context, c *Client, path string, query url.Values) (items []T, notListed []string, err error) {
	if query == nil {
		query = url.Values{}
	}
	query.Set("limit", "500")
	for {
		var page struct {
			api.Page
			Items     []T      `json:"items"`
			NotListed []string `json:"not_listed"`
		}
		if err := c.call(ctx, request{method: http.MethodGet, path: path, query: query}, &page); err != nil {
			return nil, nil, err
		}
		items, notListed = append(items, page.Items...), page.NotListed
		if page.NextCursor == "" {
			return items, notListed, nil
		}
		query.Set("cursor", page.NextCursor)
	}
}

func etag(m api.Meta) string { return fmt.Sprintf(`"%d"`, m.Revision) }

func esc(segment string) string { return url.PathEscape(segment) }
