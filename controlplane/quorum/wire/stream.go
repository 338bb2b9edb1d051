package wire

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
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
	contact atomic.Pointer[func() time.Time] // when the leader was heard last; nil before raft runs

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
	return &accepted{Conn: kept, layer: s}, nil
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

// heardSince reports whether the leader was heard after t, on whatever stream.
func (s *streams) heardSince(t time.Time) bool {
	contact := s.contact.Load()
	return contact != nil && (*contact)().After(t)
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
	until time.Time // when raft's time for the message under way is over; zero = never
}

// SetDeadline bounds a message and its answer.
func (s *stream) SetDeadline(t time.Time) error {
	s.until = t
	return s.Conn.SetDeadline(t)
}

// Write bounds each part of a message too. Raft's bound of the whole may be
// hours for a snapshot, and a silent peer would have them all.
func (s *stream) Write(b []byte) (int, error) {
	until := time.Now().Add(patience)
	if !s.until.IsZero() && s.until.Before(until) {
		until = s.until
	}
	if err := s.SetWriteDeadline(until); err != nil {
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
