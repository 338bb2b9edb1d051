package gossip

import (
	"io"
	"log/slog"

	"github.com/hashicorp/memberlist"
)

// WithTransport makes a Config that uses t in place of sockets.
func WithTransport(c Config, t func(lan bool) memberlist.NodeAwareTransport) Config {
	c.transport = func(g group) memberlist.NodeAwareTransport { return t(g == lan) }
	return c
}

// Kill ends the node as a crash would: its sockets close, nobody is told.
func (g *Gossip) Kill() error { return g.Close() }

// NewLogWriter is what memberlist's log goes through.
func NewLogWriter(log *slog.Logger) io.Writer { return &logWriter{log: log} }
