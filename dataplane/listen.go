package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"ringmain/controlplane/identity"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/h1"
	"ringmain/dataplane/h2"
	"ringmain/dataplane/sock"
)

// serverLog takes what net/http logs: about clients that break off mostly,
// which is worth nothing, but also the panics of handlers.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(line, []byte(": panic serving ")) {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, string(bytes.TrimSpace(line)))
	return len(line), nil
}

// server is an http.Server, or one that stands before it.
type server interface {
	ServeTLS(l net.Listener) error
	Shutdown(ctx context.Context) error
	Close() error
}

type standard struct{ *http.Server }

func (s standard) ServeTLS(l net.Listener) error {
	return s.Server.ServeTLS(l, "", "") //nolint:wrapcheck // as it is
}

// strangers is what clients may ask over HTTP/2 before one of them has shown a
// good key: at about 30 KiB each. What is asked then is not read until there is
// room, which for a good key's first request is at once.
var strangers = h2.Strangers{Each: 4, All: 512, Open: 32, OpenAll: 4096}

// unheard is how long a client's host may be gone before its connection is: as long
// as with nothing on its way to it, by keep-alive.
const unheard = 150 * time.Second

// serve starts both servers and the probes.
func (w *Worker) serve(ctx context.Context) {
	ctx, w.stop = context.WithCancel(ctx)
	w.group, ctx = errgroup.WithContext(ctx)
	var requests context.Context
	requests, w.end = context.WithCancel(ctx)
	base := func(net.Listener) context.Context { return requests }
	errorLog := log.New(serverLog{w.log}, "", 0)
	api := &http.Server{
		Handler: w.guard.Handler(http.HandlerFunc(w.node.ServeAPI)), BaseContext: base, ErrorLog: errorLog,
		DisableGeneralOptionsHandler: true, // OPTIONS * is refused as everything else is
		TLSConfig:                    w.certs.api.Server([]string{"h2", "http/1.1", "http/1.0"}),
		ReadHeaderTimeout:            w.tunables.HeaderTimeout, ReadTimeout: w.tunables.BodyTimeout,
		IdleTimeout: w.tunables.IdleTimeout, MaxHeaderBytes: maxHeaderBytes,
		ConnContext: w.guard.ConnContext,
		HTTP2:       &http.HTTP2Config{MaxConcurrentStreams: 250, SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	}
	if !w.setup.StandardHTTP2 {
		api.HTTP2.WriteByteTimeout = w.tunables.WriteStall
		h2.ConfigureWary(api, strangers)
	}
	only2 := new(http.Protocols)
	door := edge.New(edge.Limits{}) // strangers reach the listener for peers too, if they cannot shake hands
	only2.SetHTTP2(true)
	w.peer = &http.Server{
		Handler: door.Handler(http.HandlerFunc(w.node.ServePeer)), BaseContext: base, ErrorLog: errorLog, Protocols: only2,
		ConnContext:       door.ConnContext,
		TLSConfig:         w.certs.node.Server([]string{"h2"}, identity.AllowData("")),
		ReadHeaderTimeout: w.tunables.HeaderTimeout, ReadTimeout: w.tunables.BodyTimeout,
		IdleTimeout: w.tunables.IdleTimeout, MaxHeaderBytes: maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          4096,
			MaxReceiveBufferPerConnection: 16 << 20, MaxReceiveBufferPerStream: 4 << 20,
			SendPingTimeout: 2 * time.Second, PingTimeout: 2 * time.Second,
		},
	}
	w.api = standard{api}
	if !w.setup.StandardHTTP1 {
		w.api = h1.New(api, w.tunables.WriteStall)
	}
	for server, listener := range map[server]net.Listener{w.api: w.guard.Listen(sock.Listen(w.cfg.API, unheard)), standard{w.peer}: door.Listen(w.certs.node.Listen(w.cfg.Peer))} {
		w.group.Go(func() error {
			if err := server.ServeTLS(listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("dataplane: serve on %s: %w", listener.Addr(), err)
			}
			return nil
		})
	}
	w.group.Go(func() error { w.probe(ctx); return nil })
	w.group.Go(func() error { w.watchLoad(ctx); return nil })
	w.group.Go(func() error { w.watchConfinement(ctx); return nil })
	w.group.Go(func() error { // whatever ends ctx ends the servers too
		<-ctx.Done()
		return errors.Join(w.api.Close(), w.peer.Close())
	})
}
