package quorum

import (
	"context"
	"errors"
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
	dial func(ctx context.Context, addr string) (net.Conn, error)

	ctx  context.Context //nolint:containedctx // ends with cut: raft's Dial has none
	stop context.CancelFunc

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil once cut
}

type peerAddr string

func (peerAddr) Network() string  { return "tcp" }
func (a peerAddr) String() string { return string(a) }

func newStreamLayer(cfg *Config) *streamLayer {
	s := &streamLayer{
		Listener: cfg.Listener,
		addr:     peerAddr(cfg.self().Addr),
		dial:     cfg.Dial,
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

// Dial opens a stream to a peer.
func (s *streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	c, err := s.dial(ctx, strings.TrimPrefix(string(addr), readerMark))
	if err == nil {
		c, err = s.keep(c)
	}
	if err != nil {
		return nil, dialError{err}
	}
	return c, nil
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

// addressBook gives raft the configured address of a node, so that a change
// of configuration takes effect without a change of membership. Nodes that are
// not configured here keep the address they were added with.
type addressBook map[raft.ServerID]raft.ServerAddress

func newAddressBook(peers []Peer) addressBook {
	book := make(addressBook, len(peers))
	for _, p := range peers {
		book[raft.ServerID(p.Node)] = raft.ServerAddress(p.Addr)
	}
	return book
}

// ServerAddr implements raft.ServerAddressProvider. After an error raft goes on
// with the address in its configuration.
func (b addressBook) ServerAddr(id raft.ServerID) (raft.ServerAddress, error) {
	if addr, ok := b[id]; ok {
		return addr, nil
	}
	return "", errAddedLater
}

var errAddedLater = errors.New("not configured here: it was added later")

// of is the address by which s is reached.
func (b addressBook) of(s raft.Server) string {
	if addr, ok := b[s.ID]; ok {
		return string(addr)
	}
	return strings.TrimPrefix(string(s.Address), readerMark)
}
