// Package wire carries raft's messages between the control nodes of a region:
// raft's transport, over streams that others opened and handshaked.
//
// It knows where a node is, what a stream that ended means for the message on
// it, and when a node that was away is back. What the messages say is raft's
// business; who is a member, and as what, is its caller's.
package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// Config describes one node's end. All of it is needed.
type Config struct {
	Node  string            // this one
	Addrs map[string]string // where nodes are by configuration, this one included: the first contact

	// Listener yields streams whose handshake is done; it is closed with the
	// Transport. Dial opens one to the node at addr, and must fail if another
	// node answers there: its votes would count twice.
	Listener net.Listener
	Dial     func(ctx context.Context, node, addr string) (net.Conn, error)

	Version byte // answer to Ask
	Logger  hclog.Logger
}

const (
	// Timeout bounds how long a stream takes to open, how long a message and its
	// answer take, but for a snapshot, and how long the middle of one lasts.
	Timeout = 3 * time.Second
	// patience is how long a part of a snapshot may take, to a peer and from one
	// that is heard: longer than a disk may hang before its node stops.
	patience = 2 * Timeout
	kept     = 3 // streams to a peer that raft keeps for later use
)

// Transport is raft's, with what it lacks. Raft keeps streams for later use;
// those to a process that is gone fail at once, and a vote that is lost to one
// costs the region an election timeout: so a message whose stream had ended is
// sent again, and every message may arrive twice, but for InstallSnapshot, whose
// content is read only once. And raft waits up to 10 s between two tries to send
// entries to a node that was away: so they wait here instead, until it is back.
type Transport struct {
	*raft.NetworkTransport
	streams *streams
	book    *book
	away    *away
}

var (
	_ raft.Transport   = (*Transport)(nil)
	_ raft.WithPreVote = (*Transport)(nil)
)

// New has the node listen. Close it, and Cut it.
func New(cfg Config) *Transport {
	b := newBook(&cfg)
	s := newStreams(&cfg, b)
	return &Transport{streams: s, book: b, away: newAway(s.ctx.Done()),
		NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			ServerAddressProvider: b,
			Stream:                s,
			MaxPool:               kept,
			// Pipelining off: in raft 1.7.3 its sender waits for ever on a decoder
			// that gave up, and replication to that peer with it. DESIGN.md has more.
			MaxRPCsInFlight: 1,
			Timeout:         Timeout,
			Logger:          cfg.Logger,
		})}
}

// Follow has the transport know, from now on, where the membership has a node
// ("" if it has none of that name), whether this node leads in a term, and when
// it last heard its leader.
func (t *Transport) Follow(addr func(raft.ServerID) string, leads func(term uint64) bool, contact func() time.Time) {
	t.streams.contact.Store(&contact)
	t.book.follow(addr)
	t.away.follow(func(id raft.ServerID, term uint64) bool { return leads(term) && addr(id) != "" })
}

// Moved is where the node answers, if that is not at replicated, where the
// membership has it; "" otherwise.
func (t *Transport) Moved(id raft.ServerID, replicated string) string {
	return t.book.moved(id, replicated)
}

// Cut ends every stream and refuses new ones: for its peers this node is gone.
func (t *Transport) Cut() { t.streams.cut() }

// dialError is a failure to open a stream: another try would fare no better.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// ended reports whether err is no word about the peer as it is now.
func ended(err error) bool {
	if _, ok := errors.AsType[dialError](err); err == nil || ok {
		return false
	}
	n, ok := errors.AsType[net.Error](err)
	return !ok || !n.Timeout()
}

// again sends until a stream that was not kept has been tried.
func again[Q, A any](send func(raft.ServerID, raft.ServerAddress, *Q, *A) error, id raft.ServerID, addr raft.ServerAddress, ask *Q, answer *A) error {
	err := send(id, addr, ask, answer)
	for left := kept; left > 0 && ended(err); left-- {
		err = send(id, addr, ask, answer)
	}
	return err
}

// AppendEntries implements raft.Transport.
func (t *Transport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, ask *raft.AppendEntriesRequest, answer *raft.AppendEntriesResponse) error {
	if !beat(ask) {
		t.away.wait(id, ask.Term)
	}
	err := again(t.NetworkTransport.AppendEntries, id, addr, ask, answer)
	t.away.note(id, err == nil)
	return err
}

// beat reports whether the message is a heartbeat, which waits for nothing.
func beat(ask *raft.AppendEntriesRequest) bool {
	return ask.PrevLogEntry == 0 && len(ask.Entries) == 0 && ask.LeaderCommitIndex == 0
}

// InstallSnapshot implements raft.Transport.
func (t *Transport) InstallSnapshot(id raft.ServerID, addr raft.ServerAddress, ask *raft.InstallSnapshotRequest, answer *raft.InstallSnapshotResponse, data io.Reader) error {
	if t.away.wait(id, ask.Term) {
		return errOlder
	}
	err := t.NetworkTransport.InstallSnapshot(id, addr, ask, answer, data)
	t.away.note(id, err == nil)
	return err
}

// errOlder has raft open the newest snapshot: while this one waited, others may
// have been taken, and the log cut behind them.
var errOlder = errors.New("the node was away: it gets the newest snapshot")

// RequestVote implements raft.Transport. Who answers is not away: a new leader's
// first entries do not wait for its first heartbeat.
func (t *Transport) RequestVote(id raft.ServerID, addr raft.ServerAddress, ask *raft.RequestVoteRequest, answer *raft.RequestVoteResponse) error {
	err := again(t.NetworkTransport.RequestVote, id, addr, ask, answer)
	if err == nil {
		t.away.note(id, true)
	}
	return err
}

// RequestPreVote implements raft.WithPreVote.
func (t *Transport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, ask *raft.RequestPreVoteRequest, answer *raft.RequestPreVoteResponse) error {
	return again(t.NetworkTransport.RequestPreVote, id, addr, ask, answer)
}

// TimeoutNow implements raft.Transport.
func (t *Transport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, ask *raft.TimeoutNowRequest, answer *raft.TimeoutNowResponse) error {
	return again(t.NetworkTransport.TimeoutNow, id, addr, ask, answer)
}
