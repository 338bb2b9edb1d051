package quorum

import (
	"errors"
	"net"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// transport is raft's, but sends a message again whose stream had ended. Raft
// keeps streams for later use; those to a process that is gone fail at once, and
// a vote that is lost to one costs the region an election timeout. Every message
// sent here may arrive twice. InstallSnapshot is not sent again: its content is
// read only once, and raft begins anew.
type transport struct{ *raft.NetworkTransport }

func newTransport(streams *streamLayer, book raft.ServerAddressProvider, logger hclog.Logger) *transport {
	return &transport{raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		ServerAddressProvider: book,
		Stream:                streams,
		MaxPool:               keptStreams,
		// Pipelining off: in raft 1.7.3 its sender waits for ever on a decoder
		// that gave up, and replication to that peer with it. DESIGN.md has more.
		MaxRPCsInFlight: 1,
		Timeout:         streamTimeout,
		Logger:          logger,
	})}
}

// keptStreams is how many streams to a peer raft keeps for later use.
const keptStreams = 3

// dialError is a failure to open a stream: another try would fare no better.
type dialError struct{ error }

func (e dialError) Unwrap() error { return e.error }

// streamEnded reports whether err is no word about the peer as it is now.
func streamEnded(err error) bool {
	if _, ok := errors.AsType[dialError](err); err == nil || ok {
		return false
	}
	n, ok := errors.AsType[net.Error](err)
	return !ok || !n.Timeout()
}

// again sends until a stream that was not kept has been tried.
func again[Q, A any](send func(raft.ServerID, raft.ServerAddress, *Q, *A) error, id raft.ServerID, addr raft.ServerAddress, ask *Q, answer *A) error {
	err := send(id, addr, ask, answer)
	for left := keptStreams; left > 0 && streamEnded(err); left-- {
		err = send(id, addr, ask, answer)
	}
	return err
}

// AppendEntries implements raft.Transport.
func (t *transport) AppendEntries(id raft.ServerID, addr raft.ServerAddress, ask *raft.AppendEntriesRequest, answer *raft.AppendEntriesResponse) error {
	return again(t.NetworkTransport.AppendEntries, id, addr, ask, answer)
}

// RequestVote implements raft.Transport.
func (t *transport) RequestVote(id raft.ServerID, addr raft.ServerAddress, ask *raft.RequestVoteRequest, answer *raft.RequestVoteResponse) error {
	return again(t.NetworkTransport.RequestVote, id, addr, ask, answer)
}

// RequestPreVote implements raft.WithPreVote.
func (t *transport) RequestPreVote(id raft.ServerID, addr raft.ServerAddress, ask *raft.RequestPreVoteRequest, answer *raft.RequestPreVoteResponse) error {
	return again(t.NetworkTransport.RequestPreVote, id, addr, ask, answer)
}

// TimeoutNow implements raft.Transport.
func (t *transport) TimeoutNow(id raft.ServerID, addr raft.ServerAddress, ask *raft.TimeoutNowRequest, answer *raft.TimeoutNowResponse) error {
	return again(t.NetworkTransport.TimeoutNow, id, addr, ask, answer)
}
