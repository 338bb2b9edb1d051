package quorum

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// streamLayer carries raft's streams over connections that others opened and
// handshaked. It remembers each one, so that cut can end them all at once.
type streamLayer struct {
	net.Listener
	addr net.Addr // what peers know this node by, whatever the listener says
	dial func(ctx context.Context, node, addr string) (net.Conn, error)
	book *addressBook

	ctx  context.Context //nolint:containedctx // ends with cut: raft's Dial has none
	stop context.CancelFunc

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once cut
}

type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

func newStreamLayer(cfg *Config, book *addressBook) *streamLayer {
	s := &streamLayer{
		Listener: cfg.Listener,
		addr:     peerAddr(cfg.self().Addr),
		dial:     cfg.Dial,
		book:     book,
		conns:    make(map[net.Conn]struct{}),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Addr returns the configured address of this node.
func (s *streamLayer) Addr() net.Addr { return s.addr }

// Accept waits for the next stream from a peer.
func (s *streamLayer) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	kept, err := s.keep(c)
	if err != nil {
		return nil, err
	}
	return &asked{Conn: kept}, nil
}

// Dial opens a stream to the peer that ServerAddr named.
func (s *streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	node, ok := strings.CutPrefix(string(to), nodeMark)
	if !ok {
		return nil, dialError{errUnknownNode}
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.open(ctx, node)
	if err == nil {
		c, err = s.keep(c)
	}
	if err != nil {
		return nil, dialError{err}
	}
	return c, nil
}

// open dials the node where it is believed to be.
func (s *streamLayer) open(ctx context.Context, node string) (net.Conn, error) {
	addr := s.book.find(raft.ServerID(node))
	if addr == "" {
		return nil, errUnknownNode
	}
	c, err := s.dial(ctx, node, addr)
	s.book.dialled(raft.ServerID(node), addr, err == nil)
	return c, err
}

func (s *streamLayer) keep(c net.Conn) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		_ = c.Close() // it was never used
		return nil, net.ErrClosed
	}
	s.conns[c] = struct{}{}
	return &stream{Conn: c, layer: s}, nil
}

// cut ends every stream and refuses new ones: for its peers this node is gone.
func (s *streamLayer) cut() {
	s.stop()
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	s.mu.Unlock()
	_ = s.Listener.Close() // closed twice is fine
	for c := range conns {
		_ = c.Close() // the peers notice, that is all
	}
}

type stream struct {
	net.Conn
	layer *streamLayer
}

// Close ends the stream.
func (s *stream) Close() error {
	s.layer.mu.Lock()
	delete(s.layer.conns, s.Conn)
	s.layer.mu.Unlock()
	return s.Conn.Close()
}
