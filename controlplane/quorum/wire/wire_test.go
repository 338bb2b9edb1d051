package wire

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"ringmain/internal/testkit/memnet"
	"ringmain/internal/testkit/synckit"
)

// TestKeptStreamsOfARestartedPeer: a message that follows a peer's restart
// reaches the new process, although the streams kept from before are dead.
func TestKeptStreamsOfARestartedPeer(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		network := memnet.New()
		asker, _ := openTransport(network, "asker")
		defer func() { _ = asker.Close() }()
		send := func() error {
			return asker.RequestVote("peer", "peer", &raft.RequestVoteRequest{Term: 1}, new(raft.RequestVoteResponse))
		}
		for range 4 {
			peer, stop := openTransport(network, "peer")
			// Several at once, so that several streams are kept.
			sent := make(chan error, kept)
			for range kept {
				go func() { sent <- send() }()
			}
			var held []raft.RPC
			for range kept {
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
			for range kept {
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

func openTransport(network *memnet.Net, name string) (t *Transport, stop func()) {
	t = New(Config{Node: name, Addrs: map[string]string{"asker": "asker", "peer": "peer"},
		Listener: network.Listen(name),
		Dial:     func(ctx context.Context, _, addr string) (net.Conn, error) { return network.Dial(ctx, name, addr) },
		Version:  7, Logger: hclog.NewNullLogger()})
	return t, func() { _ = t.Close(); t.Cut() }
}

// openAlone opens the one that asks; nobody is at "peer".
func openAlone(t *testing.T) (*memnet.Net, *Transport) {
	network := memnet.New()
	asker, stop := openTransport(network, "asker")
	t.Cleanup(stop)
	return network, asker
}

func openPair(t *testing.T) (network *memnet.Net, asker, peer *Transport) {
	network, asker = openAlone(t)
	peer, stop := openTransport(network, "peer")
	t.Cleanup(stop)
	return network, asker, peer
}

// answer answers all that peer is asked, until it is closed.
func answer(peer *Transport, with func(command any) any) {
	for {
		select {
		case rpc := <-peer.Consumer():
			rpc.Respond(with(rpc.Command), nil)
		case <-peer.streams.ctx.Done():
			return
		}
	}
}

// everybody is whom a leader follows.
func everybody(id raft.ServerID) string { return string(id) }

// TestEntriesWaitForANodeThatIsAway: entries for a node that is away are not
// tried over and over, but sent once a heartbeat reached it; and they wait no
// longer than this node leads in their term.
func TestEntriesWaitForANodeThatIsAway(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		network, asker, peer := openPair(t)
		go answer(peer, func(any) any { return &raft.AppendEntriesResponse{Success: true} })
		var leads atomic.Bool
		leads.Store(true)
		asker.Follow(everybody, func(term uint64) bool { return leads.Load() && term == 3 }, time.Now)
		send := func(entries ...*raft.Log) error {
			return asker.AppendEntries("peer", "peer", &raft.AppendEntriesRequest{Term: 3, Entries: entries}, new(raft.AppendEntriesResponse))
		}
		entry := &raft.Log{Index: 1, Term: 3}
		network.Set("asker", "peer", memnet.Cut)
		if err := send(entry); err == nil {
			t.Fatal("a node that is cut off took entries")
		}
		sent := make(chan error, 1)
		go func() { sent <- send(entry) }()
		time.Sleep(time.Minute)
		network.Set("asker", "peer", memnet.Open)
		time.Sleep(time.Minute)
		select {
		case err := <-sent:
			t.Fatalf("nothing had reached the node, and entries were sent: %v", err)
		default:
		}
		if err := send(); err != nil { // a heartbeat
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Error(err)
		}
		network.Set("asker", "peer", memnet.Cut)
		if err := send(entry); err == nil {
			t.Fatal("a node that is cut off took entries")
		}
		go func() { sent <- send(entry) }()
		time.Sleep(time.Second)
		leads.Store(false)
		time.Sleep(2 * lookAgain)
		select {
		case err := <-sent:
			if err == nil {
				t.Error("a node that is cut off took entries")
			}
		default:
			t.Error("entries of a term that is over still wait")
		}
	})
}

// TestVoterIsNotAway: a node that was away under a former leader and answered
// since gets a new leader's first entries at once.
func TestVoterIsNotAway(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		network, asker, peer := openPair(t)
		go answer(peer, func(command any) any {
			if _, votes := command.(*raft.RequestVoteRequest); votes {
				return &raft.RequestVoteResponse{Granted: true}
			}
			return &raft.AppendEntriesResponse{Success: true}
		})
		asker.Follow(everybody, func(uint64) bool { return true }, time.Now)
		send := func(term uint64) error {
			return asker.AppendEntries("peer", "peer", &raft.AppendEntriesRequest{Term: term, Entries: []*raft.Log{{Index: term, Term: term}}}, new(raft.AppendEntriesResponse))
		}
		network.Set("asker", "peer", memnet.Cut)
		if err := send(3); err == nil {
			t.Fatal("a node that is cut off took entries")
		}
		network.Set("asker", "peer", memnet.Open)
		if err := asker.RequestVote("peer", "peer", &raft.RequestVoteRequest{Term: 4}, new(raft.RequestVoteResponse)); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- send(4) }()
		time.Sleep(time.Second)
		select {
		case err := <-sent:
			if err != nil {
				t.Error(err)
			}
		default:
			t.Error("entries wait for a node that has voted")
			_ = asker.AppendEntries("peer", "peer", &raft.AppendEntriesRequest{Term: 4}, new(raft.AppendEntriesResponse)) // a heartbeat
			<-sent
		}
	})
}

// TestWaitingSnapshotIsNotSent: a snapshot that waited for a node that was away
// is not sent: raft opens the newest.
func TestWaitingSnapshotIsNotSent(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		_, asker := openAlone(t)
		asker.Follow(everybody, func(uint64) bool { return true }, time.Now)
		asker.away.note("peer", false)
		sent := make(chan error, 1)
		read := false
		go func() {
			sent <- asker.InstallSnapshot("peer", "peer", &raft.InstallSnapshotRequest{Term: 1, Size: 1}, new(raft.InstallSnapshotResponse), readerFunc(func([]byte) (int, error) {
				read = true
				return 0, io.EOF
			}))
		}()
		time.Sleep(time.Minute)
		asker.away.note("peer", true)
		if err := <-sent; !errors.Is(err, errOlder) || read {
			t.Errorf("%v, read: %v", err, read)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// TestStallAmidSnapshot: the middle of a snapshot may be late by as much as a
// disk may hang, at either end, as long as the leader is heard.
func TestStallAmidSnapshot(t *testing.T) {
	const size, stall = 1 << 20, 5 * time.Second
	for _, c := range []struct {
		name             string
		sender, receiver bool // stalls
		heard            bool // the leader is, meanwhile
		arrives          bool
	}{
		{name: "at the receiver", receiver: true, heard: true, arrives: true},
		{name: "at the sender", sender: true, heard: true, arrives: true},
		{name: "at a sender that is not heard", sender: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synckit.Test(t, func(t *testing.T) {
				_, asker, peer := openPair(t)
				begun := time.Now()
				peer.Follow(func(raft.ServerID) string { return "" }, func(uint64) bool { return false }, func() time.Time {
					if c.heard {
						return time.Now()
					}
					return begun
				})
				arrived := make(chan int64, 1)
				go func() {
					rpc := <-peer.Consumer()
					n, _ := io.CopyN(io.Discard, rpc.Reader, size/2)
					if c.receiver {
						time.Sleep(stall)
					}
					rest, _ := io.Copy(io.Discard, rpc.Reader)
					arrived <- n + rest
					rpc.Respond(&raft.InstallSnapshotResponse{Success: true}, nil)
				}()
				left := size
				err := asker.InstallSnapshot("peer", "peer", &raft.InstallSnapshotRequest{Size: size}, new(raft.InstallSnapshotResponse), readerFunc(func(b []byte) (int, error) {
					if c.sender && left == size/2 {
						time.Sleep(stall)
					}
					n := min(len(b), left, 32<<10)
					left -= n
					if n == 0 {
						return 0, io.EOF
					}
					return n, nil
				}))
				if got := <-arrived; (got == size) != c.arrives || (err == nil) != c.arrives {
					t.Errorf("%d of %d bytes arrived: %v", got, size, err)
				}
			})
		})
	}
}

// TestVersionIsAsked: a node says its version; one that is away does not.
func TestVersionIsAsked(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		network, asker := openAlone(t)
		_, stopPeer := openTransport(network, "peer")
		if v, err := asker.Ask(t.Context(), "peer"); v != 7 || err != nil {
			t.Errorf("it says %d, %v", v, err)
		}
		if _, err := asker.Ask(t.Context(), "stranger"); !errors.Is(err, errUnknownNode) {
			t.Errorf("of a stranger: %v", err)
		}
		stopPeer()
		if _, err := asker.Ask(t.Context(), "peer"); err == nil {
			t.Error("a node that is away answered")
		}
	})
}

// TestFirstReleaseDoesNotAnswer: a node of the first release takes the question
// for a raft message that it does not know, and hangs up.
func TestFirstReleaseDoesNotAnswer(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		network, asker := openAlone(t)
		old := network.Listen("peer")
		go func() {
			c, err := old.Accept()
			if err == nil {
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			}
		}()
		if v, err := asker.Ask(t.Context(), "peer"); err == nil {
			t.Errorf("it says %d", v)
		}
	})
}

// TestSnapshotToASilentPeer: a snapshot of any size ends soon if its receiver
// takes no more of it.
func TestSnapshotToASilentPeer(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		network, asker := openAlone(t)
		silent := network.Listen("peer")
		go func() {
			if c, err := silent.Accept(); err == nil {
				_, _ = io.CopyN(io.Discard, c, 1<<20)
				<-t.Context().Done()
			}
		}()
		start := time.Now()
		const size = 1 << 30
		err := asker.InstallSnapshot("peer", "peer", &raft.InstallSnapshotRequest{Size: size}, new(raft.InstallSnapshotResponse), io.LimitReader(zeros{}, size))
		if took := time.Since(start); err == nil || took > 2*Timeout {
			t.Errorf("%v after %s", err, took)
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
