// Package relay makes one attempt: it asks one upstream, or one peer node, and
// reads the answer far enough to know whether it is one. Which attempt comes
// next is not decided here.
//
// No header of the client's goes upstream but the few that a provider's API
// defines, and none of the provider's comes back: both are lists of what may
// pass. Bodies are held in memory only, and never logged.
package relay

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/relay/h1"
	"ringmain/dataplane/sock"
)

// MaxAnswer bounds a plain answer, in bytes.
const MaxAnswer = 32 << 20

// maxProblem bounds an error body, in bytes.
const maxProblem = 1 << 20

// Timeouts bound one attempt. None may be zero.
type Timeouts struct {
	Connect   time.Duration
	FirstByte time.Duration // from the start until the first event, or the head of a plain answer
	Idle      time.Duration // between two events, or two reads
	Total     time.Duration // what is left of the request's own time
}

// TimeoutsOf takes the timeouts of a route for a stream or a plain answer, with
// the documented defaults. A reasoning model that is asked by chat completions says
// nothing for minutes, at first and in between, and a long answer takes most of an
// hour; a host that is gone is told by the connection. A plain answer's head
// comes when all of it is ready.
func TimeoutsOf(t registry.Timeouts, stream bool) Timeouts {
	ms := func(v uint32, standard time.Duration) time.Duration {
		if v == 0 {
			return standard
		}
		return time.Duration(v) * time.Millisecond
	}
	const quiet = 5 * time.Minute
	if !stream {
		total := ms(t.TotalMS, 10*time.Minute)
		return Timeouts{Connect: ms(t.ConnectMS, defaultConnect), FirstByte: ms(t.FirstByteMS, total), Idle: ms(t.IdleMS, quiet), Total: total}
	}
	return Timeouts{
		Connect: ms(t.ConnectMS, defaultConnect), FirstByte: ms(t.FirstByteMS, quiet), Idle: ms(t.IdleMS, quiet), Total: ms(t.TotalMS, time.Hour),
	}
}

// Config of a Client.
type Config struct {
	// UpstreamRoots verify providers; nil = the system's.
	UpstreamRoots *x509.CertPool
	Identity      *identity.Bundle
	// Locate finds the address of a peer's listener at the moment.
	Locate func(region, node string) (addr string, ok bool)
	// Events bounds the memory of long events, in bytes, over all streams; 0 = 1 GiB.
	Events int64
}

// Client asks upstreams and peers over pooled connections. It is safe for
// concurrent use.
type Client struct {
	cfg       Config
	tls       *tls.Config     // towards providers
	upstreams *http.Transport // of those that speak HTTP/2
	peers     *http.Transport
	endpoints sync.Map   // upstream id -> *endpoint
	making    sync.Mutex // an endpoint
	buffers   sync.Pool
	events    atomic.Int64 // bytes of buffers beyond keepBuffer that streams have
}

const (
	handshake = 5 * time.Second
	idleTime  = 90 * time.Second // for which a connection is kept
	maxIdle   = 1024             // connections kept to a host
)

// New makes a Client. Close it.
func New(cfg Config) *Client {
	cfg.Events = cmp.Or(cfg.Events, 1<<30)
	c := &Client{cfg: cfg}
	c.buffers.New = func() any { b := make([]byte, 0, smallBuffer); return &b }
	c.tls = &tls.Config{
		MinVersion:         tls.VersionTLS12, // providers; our own ends are 1.3 only
		RootCAs:            cfg.UpstreamRoots,
		ClientSessionCache: tls.NewLRUClientSessionCache(256),
	}
	// HTTP/2 alone: net/http prints what comes unasked over HTTP/1.1.
	http2 := new(http.Protocols)
	http2.SetHTTP2(true)
	c.upstreams = &http.Transport{
		DialContext:            dial,
		Protocols:              http2,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleTime,
		TLSHandshakeTimeout:    handshake,
		DisableCompression:     true, // answers are read on the way
		MaxResponseHeaderBytes: 64 << 10,
		WriteBufferSize:        8 << 10,
		ReadBufferSize:         8 << 10,
		TLSClientConfig:        c.tls.Clone(),
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 5 * time.Second},
	}
	c.peers = &http.Transport{
		DialTLSContext:         c.dialPeer,
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        idleTime,
		DisableCompression:     true,
		MaxResponseHeaderBytes: 64 << 10,
		// A peer that is cut off is found out within two seconds, streams or not.
		HTTP2: &http.HTTP2Config{SendPingTimeout: time.Second, PingTimeout: time.Second},
	}
	return c
}

// Close drops idle connections. Attempts under way end with their contexts.
func (c *Client) Close() {
	c.endpoints.Range(func(_, e any) bool {
		e.(*endpoint).pool.Close() //nolint:forcetypeassert // only endpoints are stored
		return true
	})
	c.upstreams.CloseIdleConnections()
	c.peers.CloseIdleConnections()
}

// dialError marks a failure to connect: the other side saw no request.
type dialError = h1.DialError

const defaultConnect = 2 * time.Second

func heard(_ context.Context, _, _ string, raw syscall.RawConn) error {
	return sock.Unheard(raw, time.Minute) //nolint:wrapcheck // the dialer says what it did
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	connect := defaultConnect
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok {
		connect = a.connect
	}
	// A host that is gone without a word is noticed within a minute, as is one that
	// takes nothing of a request.
	alive := net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}
	d := net.Dialer{Timeout: connect, KeepAliveConfig: alive, ControlContext: heard}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, &dialError{Err: err}
	}
	return conn, nil
}

// Result is how an attempt ended, or began well. Release it.
type Result struct {
	Outcome    breaker.Outcome
	Status     int           // of the other side; 0 = none came
	Reached    bool          // the request may have been seen
	Silent     bool          // nothing came in time: do not ask the same one again
	RetryAfter time.Duration // as the other side asks; 0 = it does not
	Cause      error         // of a failure, for logs; it holds no content

	ContentType string
	RequestID   string // the provider's
	Answer      dialect.Answer
	Problem     dialect.Problem
	Stream      *Stream // set if the answer is streamed
	Peer        *PeerAnswer

	body    dialect.Content
	attempt *attempt
	client  *Client
	buffer  *[]byte
}

// Body is a plain answer, or the error body to pass on. It is valid until Release.
func (r *Result) Body() []byte { return r.body.Bytes() }

// Format writes the outcome only: a Result holds content.
func (r *Result) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "[content] %s, status %d", r.Outcome, r.Status)
}

// Taint keeps the answer's memory from being used again: a write of it failed,
// and a server may still hold on to what it was given.
func (r *Result) Taint() {
	r.buffer = nil
	if r.Stream != nil {
		r.Stream.tainted = true
	}
}

// Release ends the attempt and gives its memory back.
func (r *Result) Release() {
	if r.Stream != nil {
		r.Stream.close()
	}
	if r.attempt != nil {
		r.attempt.end()
	}
	if r.buffer != nil {
		r.client.putBuffer(r.buffer)
		r.buffer, r.body = nil, dialect.Content{}
	}
}

// wire is err as it may be logged. What net/http says about an answer that it
// cannot read may quote the answer; only what is known not to stays.
func wire(err error) error {
	var dialed *dialError
	var network net.Error
	var cert *tls.CertificateVerificationError
	var own h1.Error
	for _, own := range [...]error{errFirstByte, errIdle, errDeadline, errFinished, context.Canceled, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, own) {
			return err
		}
	}
	if errors.As(err, &own) || errors.As(err, &dialed) || errors.As(err, &network) || errors.As(err, &cert) {
		return err
	}
	if parts := strings.SplitN(err.Error(), "; ", 3); strings.HasPrefix(parts[0], "stream error: stream ID ") && len(parts) > 1 {
		return errors.New(parts[0] + "; " + parts[1]) // what follows may quote a field that could not be read
	}
	return fmt.Errorf("the connection failed, or what came is not HTTP (%T)", err)
}

// ErrNoSockets is the cause where this node can open no more connections. Whoever
// was to be asked is well, and open connections serve on.
var ErrNoSockets = errors.New("this node can open no more connections")

// exhausted reports whether a connection could not be opened for want of files or
// memory here.
func exhausted(err error) bool {
	for _, own := range [...]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, own) {
			return true
		}
	}
	var dns *net.DNSError // keeps the text only
	return errors.As(err, &dns) && (strings.Contains(dns.Err, syscall.EMFILE.Error()) || strings.Contains(dns.Err, syscall.ENFILE.Error()))
}

func (r *Result) fail(err error, o breaker.Outcome) *Result {
	r.Outcome, r.Cause = o, err
	var d *dialError
	r.Reached = !errors.As(err, &d)
	if !r.Reached && exhausted(err) {
		r.Outcome, r.Cause = breaker.Behind, ErrNoSockets
	}
	r.Silent = o == breaker.Timeout && r.Reached
	return r
}

const (
	smallBuffer = 8 << 10
	keepBuffer  = 256 << 10 // larger ones are left to the collector
)

func (c *Client) getBuffer() *[]byte {
	return c.buffers.Get().(*[]byte) //nolint:forcetypeassert // only these are put
}

func (c *Client) putBuffer(b *[]byte) {
	if cap(*b) <= keepBuffer {
		*b = (*b)[:0]
		c.buffers.Put(b)
	}
}
