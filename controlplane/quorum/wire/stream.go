package wire

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// streams remembers each one, so that cut can end them all at once.
type streams struct {
	net.Listener
	addr    net.Addr // what peers know this node by, whatever the listener says
	dial    func(ctx context.Context, node, addr string) (net.Conn, error)
	version byte
	book    *book

	ctx  context.Context //nolint:containedctx // ends with cut: raft's Dial has none
	stop context.CancelFunc

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once cut
}

type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

func newStreams(cfg *Config, book *book) *streams {
	s := &streams{
		Listener: cfg.Listener,
		addr:     peerAddr(cfg.Addrs[cfg.Node]),
		dial:     cfg.Dial,
		version:  cfg.Version,
		book:     book,
		conns:    make(map[net.Conn]struct{}),
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Addr returns the configured address of this node.
func (s *streams) Addr() net.Addr { return s.addr }

// Accept waits for the next stream from a peer.
func (s *streams) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	kept, err := s.keep(c)
	if err != nil {
		return nil, err
	}
	return &accepted{Conn: kept, version: s.version}, nil
}

// Dial opens a stream to the peer that ServerAddr named.
func (s *streams) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
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
func (s *streams) open(ctx context.Context, node string) (net.Conn, error) {
	addr := s.book.find(raft.ServerID(node))
	if addr == "" {
		return nil, errUnknownNode
	}
	c, err := s.dial(ctx, node, addr)
	s.book.dialled(raft.ServerID(node), addr, err == nil)
	return c, err
}

func (s *streams) keep(c net.Conn) (net.Conn, error) {
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
func (s *streams) cut() {
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
	layer *streams
}

// Write bounds each part of a message. Raft bounds the whole, which for a
// snapshot may be hours, for as long as its peer is silent.
func (s *stream) Write(b []byte) (int, error) {
	if err := s.SetWriteDeadline(time.Now().Add(Timeout)); err != nil {
		return 0, err
	}
	return s.Conn.Write(b)
}

// Close ends the stream.
func (s *stream) Close() error {
	s.layer.mu.Lock()
	delete(s.layer.conns, s.Conn)
	s.layer.mu.Unlock()
	return s.Conn.Close()
}
