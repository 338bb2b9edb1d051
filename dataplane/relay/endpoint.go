package relay

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/relay/h1"
)

// endpoint is what an upstream's record says, ready to use.
type endpoint struct {
	record *registry.Record
	paths  map[string]path
	header http.Header // the same on every request, for net/http
	host   string      // scheme and host, which the pool's connections go to
	pool   *h1.Pool
}

// path is what is asked for at an upstream, and the part of the request's head
// that is always the same.
type path struct {
	url   *url.URL
	start h1.Start
}

// endpoint finds what the record says, and builds it when the record is new.
// Connections outlive a change of it, unless they go somewhere else.
func (c *Client) endpoint(rec *registry.Record) (*endpoint, error) {
	if e, ok := c.known(rec.Meta.ID); ok && e.record == rec {
		return e, nil
	}
	c.making.Lock()
	defer c.making.Unlock()
	before, ok := c.known(rec.Meta.ID)
	if ok && before.record == rec {
		return before, nil
	}
	e, config, err := c.newEndpoint(rec)
	if err != nil {
		return nil, err
	}
	switch {
	case ok && before.host == e.host:
		e.pool = before.pool
	default:
		if ok {
			before.pool.Close()
		}
		e.pool = h1.NewPool(config)
	}
	c.endpoints.Store(rec.Meta.ID, e)
	return e, nil
}

func (c *Client) known(id string) (*endpoint, bool) {
	e, ok := c.endpoints.Load(id)
	if !ok {
		return nil, false
	}
	return e.(*endpoint), true //nolint:forcetypeassert // only endpoints are stored
}

func (c *Client) newEndpoint(rec *registry.Record) (*endpoint, h1.Config, error) {
	up := rec.Upstream
	fail := func(what string) (*endpoint, h1.Config, error) {
		return nil, h1.Config{}, fmt.Errorf("upstream %s: %s: mend the record", up.Name, what)
	}
	e := &endpoint{record: rec, paths: map[string]path{}, header: http.Header{"User-Agent": ourAgent}}
	for _, h := range up.Headers {
		e.header[http.CanonicalHeaderKey(h.Name)] = []string{h.Value}
	}
	switch secret := string(up.Credential); up.Auth {
	case "bearer":
		e.header["Authorization"] = []string{"Bearer " + secret}
	case "x-api-key":
		e.header["X-Api-Key"] = []string{secret}
	case "api-key":
		e.header["Api-Key"] = []string{secret}
	case "none":
	default:
		return nil, h1.Config{}, fmt.Errorf("upstream %s: auth %q is not known to this version", up.Name, up.Auth)
	}
	base, err := url.Parse(strings.TrimSuffix(up.BaseURL, "/"))
	if err != nil || base.Host == "" || base.RawQuery != "" || base.Scheme != "https" && base.Scheme != "http" {
		return fail("base URL cannot be used")
	}
	root := strings.TrimSuffix(base.Path, "/v1") // clients are given URLs that end so, and records at times too
	var fields []h1.Field
	for name, values := range e.header {
		fields = append(fields, h1.Field{Name: name, Value: values[0]})
	}
	slices.SortFunc(fields, func(a, b h1.Field) int { return strings.Compare(a.Name, b.Name) })
	for _, ep := range dialect.Endpoints() {
		if ep.Stores {
			continue
		}
		u := *base
		u.Path, u.RawPath, u.RawQuery = root+ep.Path, "", up.Query
		start, err := h1.NewStart(http.MethodPost, u.RequestURI(), u.Host, fields...)
		if err != nil {
			return fail("its query, credential or headers hold bytes that cannot be sent")
		}
		e.paths[ep.Path] = path{&u, start}
	}
	e.host = base.Scheme + "://" + base.Host
	config := h1.Config{
		Addr: net.JoinHostPort(base.Hostname(), base.Port()), Dial: dialUpstream,
		Handshake: handshake, MaxIdle: maxIdle, IdleTimeout: idleTime,
	}
	if base.Port() == "" {
		config.Addr = net.JoinHostPort(base.Hostname(), base.Scheme) // by the service's name
	}
	if base.Scheme == "https" {
		config.TLS = c.tls.Clone()
		config.TLS.ServerName = base.Hostname()
		config.TLS.NextProtos = []string{"h2", "http/1.1"}
	}
	return e, config, nil
}

func dialUpstream(ctx context.Context, addr string) (*net.TCPConn, error) {
	conn, err := dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil, &dialError{Err: fmt.Errorf("%s: no TCP", addr)}
	}
	return tcp, nil
}

// The bounds of what a client's own headers may add: a few fields, some twice.
const maxFields = 12

// fields are those of a request that differ from one to the next. Nothing of
// the client's goes on but what is passed, and nothing that the record sets.
func (a *Ask) fields(to []h1.Field, e *endpoint) []h1.Field {
	to = append(to, h1.Field{Name: "Content-Type", Value: a.contentType()}, h1.Field{Name: "Accept", Value: a.accept()})
	version := false
	for _, name := range passed {
		if len(e.header[name]) > 0 {
			continue
		}
		for _, v := range a.Client[name] {
			to = append(to, h1.Field{Name: name, Value: v})
			version = version || name == versionHeader
		}
	}
	if a.Endpoint.Dialect == dialect.Anthropic && !version && len(e.header[versionHeader]) == 0 {
		to = append(to, h1.Field{Name: versionHeader, Value: anthropicVersion})
	}
	return to
}

func (a *Ask) contentType() string {
	if a.ContentType == "" {
		return jsonType[0]
	}
	return a.ContentType
}

func (a *Ask) accept() string {
	switch {
	case a.Streamed && !a.Endpoint.Media:
		return eventType[0]
	case a.Streamed, a.Endpoint.Binary:
		return "*/*"
	}
	return jsonType[0]
}
