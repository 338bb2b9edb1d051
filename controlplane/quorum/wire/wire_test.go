package quorum

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// TestKeptStreamsOfARestartedPeer: a message that follows a peer's restart
// reaches the new process, although the streams kept from before are dead.
func TestKeptStreamsOfARestartedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := newMemNet()
		asker, _ := openTransport(network, "asker")
		defer func() { _ = asker.Close() }()
		send := func() error {
			return asker.RequestVote("peer", "peer", &raft.RequestVoteRequest{Term: 1}, new(raft.RequestVoteResponse))
		}
		for range 4 {
			peer, stop := openTransport(network, "peer")
			// Several at once, so that several streams are kept.
			sent := make(chan error, keptStreams)
			for range keptStreams {
				go func() { sent <- send() }()
			}
			var held []raft.RPC
			for range keptStreams {
				select {
				case rpc := <-peer.Consumer():
					held = append(held, rpc)
				case err := <-sent:
					t.Fatalf("after the restart: %v", err)
				}
			}
			for _, rpc := range held {
				rpc.Respond(&raft.RequestVoteResponse{Granted: true}, nil)
			}
			for range keptStreams {
				if err := <-sent; err != nil {
					t.Error(err)
				}
			}
			stop()
		}
		if err := send(); err == nil {
			t.Error("a peer that is away answered")
		}
	})
}

func openTransport(network *memNet, name string) (t *transport, stop func()) {
	peers := []Peer{{Node: "asker", Addr: "asker"}, {Node: "peer", Addr: "peer"}}
	cfg := &Config{Node: name, Peers: peers, Listener: network.listen(name)}
	cfg.Dial = func(ctx context.Context, _, addr string) (net.Conn, error) { return network.dial(ctx, name, addr) }
	book := newAddressBook(cfg)
	streams := newStreamLayer(cfg, book)
	t = newTransport(streams, book, newRaftLogger(slog.New(slog.DiscardHandler)))
	return t, func() { _ = t.Close(); streams.cut() }
}
