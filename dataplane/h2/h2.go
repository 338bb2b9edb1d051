// Package h2 is the server side of HTTP/2 for the listener of clients. It takes
// the place of net/http's own, whose goroutines hand every frame over to each
// other: here one goroutine reads a connection, each request has one, and an
// answer is written by the goroutine that makes it. Frames are read, and header
// blocks decoded and checked, by golang.org/x/net/http2.
//
// It knows http.Handler and http.Server, and nothing of what is served. Server
// push, trailers of answers, extended CONNECT and priorities are left out.
package h2

import (
	"cmp"
	"context"
	"crypto/tls"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// server is what the connections of one http.Server share.
type server struct {
	hs     *http.Server
	limits limits

	strangers  Strangers
	unanswered atomic.Int64 // requests of connections that nobody trusts
	open       atomic.Int64 // streams of those

	mu    sync.Mutex
	conns map[*conn]struct{}
	gone  bool // shut down
}

// limits of each connection, from the http.Server's fields, with the defaults in brackets.
type limits struct {
	streams      uint32        // at once [250]
	headers      uint32        // bytes of a request's fields, each with 32 on top [1 MiB]
	connWindow   int64         // bytes of bodies that wait to be read [1 MiB]
	streamWindow int64         // of one body [1 MiB]
	readTimeout  time.Duration // for a request's body [none]
	writeTimeout time.Duration // for an answer [none]
	stall        time.Duration // a client that takes nothing for so long is cut off, or after half of it [60 s]
	idle         time.Duration // without a request: the connection is told to go [none]
	ping         time.Duration // without a frame: a ping is sent [none]
	pong         time.Duration // and its answer is waited for [15 s]
}

// Configure has srv speak HTTP/2 by this package, as its fields say: HTTP2,
// MaxHeaderBytes, ReadTimeout, WriteTimeout, IdleTimeout, ErrorLog (without it,
// the panics of handlers are lost). Shutdown and
// Close mean what they mean with net/http's own. Configure comes before Serve,
// and those fields do not change afterwards.
func Configure(srv *http.Server) { configure(srv) }

func configure(srv *http.Server) *server {
	s := &server{hs: srv, limits: limitsOf(srv), conns: make(map[*conn]struct{})}
	srv.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": s.serve}
	srv.RegisterOnShutdown(s.shutdown)
	return s
}

func limitsOf(srv *http.Server) limits {
	var c http.HTTP2Config
	if srv.HTTP2 != nil {
		c = *srv.HTTP2
	}
	idle := srv.IdleTimeout
	if idle == 0 {
		idle = srv.ReadTimeout
	}
	fields := cmp.Or(srv.MaxHeaderBytes, http.DefaultMaxHeaderBytes)
	return limits{
		streams: uint32(cmp.Or(c.MaxConcurrentStreams, 250)), headers: uint32(fields + 32*typicalFields),
		connWindow: int64(cmp.Or(c.MaxReceiveBufferPerConnection, 1<<20)), streamWindow: int64(cmp.Or(c.MaxReceiveBufferPerStream, 1<<20)),
		readTimeout: srv.ReadTimeout, writeTimeout: srv.WriteTimeout, stall: cmp.Or(c.WriteByteTimeout, time.Minute),
		idle: idle, ping: c.SendPingTimeout, pong: cmp.Or(c.PingTimeout, 15*time.Second),
	}
}

const typicalFields = 10

// serve runs one connection to its end, its handlers included.
func (s *server) serve(_ *http.Server, tc *tls.Conn, h http.Handler) {
	ctx := context.Background()
	if based, ok := h.(interface{ BaseContext() context.Context }); ok { // how net/http hands it over
		ctx = based.BaseContext()
	}
	state := tc.ConnectionState()
	c := newConn(ctx, s, tc, tc.NetConn(), &state, h)
	defer c.cancel()
	if s.add(c) {
		defer s.remove(c)
		c.serve()
	}
}

func (s *server) add(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone {
		s.conns[c] = struct{}{}
	}
	return !s.gone
}

func (s *server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// shutdown tells all connections to go, once their requests are answered.
func (s *server) shutdown() {
	s.mu.Lock()
	s.gone = true
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.retire()
	}
}
