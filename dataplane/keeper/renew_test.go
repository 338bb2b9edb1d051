package keeper

import (
	"context"
	"fmt"
	"testing"
	"time"

	"ringmain/dataplane/link"
)

// told reads setups until the one with that certificate comes.
func told(t *testing.T, far *link.Conn, cert string) {
	t.Helper()
	came := make(chan error, 1)
	go func() {
		for {
			m, err := far.Receive()
			if err != nil || m.Type == link.TypeSetup && string(m.Setup.NodeCert) == cert {
				came <- err
				return
			}
		}
	}()
	select {
	case err := <-came:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("the worker was not told of %q", cert)
	}
}

// TestRenewedCertificatesReachTheWorker that runs, once it reads again, and the
// next one; the cluster and the node's name stay.
func TestRenewedCertificatesReachTheWorker(t *testing.T) {
	k := newKeeper(Config{
		Setup: link.Setup{Cluster: "test", Node: "d1", NodeCert: []byte("old")},
		Peers: func() link.Peers { return link.Peers{} }, PeersChanged: make(chan struct{}),
	})
	ctx, cancel := context.WithCancel(t.Context())
	pushed := make(chan struct{})
	go func() { defer close(pushed); k.pushPeers(ctx) }()
	defer func() { cancel(); <-pushed }()
	far, ended := serves(t, k, 1)
	if err := k.setUp(t.Context(), k.current()); err != nil {
		t.Fatal(err)
	}
	told(t, far, "old")
	k.Renew(link.Setup{Cluster: "x", Node: "y", NodeCert: []byte("new")})
	told(t, far, "new")
	if s, _ := k.setupNow(); s.Cluster != "test" || s.Node != "d1" {
		t.Errorf("%+v", s)
	}
	// It reads nothing for a while, and its queue is full.
	w := k.current()
	for w.post(&link.Message{Type: link.TypeState, Frames: [][]byte{make([]byte, 256<<10)}}) {
	}
	k.Renew(link.Setup{NodeCert: []byte("newer")})
	told(t, far, "newer")
	_ = far.Close()
	<-ended
	k.Renew(link.Setup{NodeCert: []byte("newest")}) // nobody reads it
	far, ended = serves(t, k, 2)
	if err := k.setUp(t.Context(), k.current()); err != nil {
		t.Fatal(err)
	}
	told(t, far, "newest")
	_ = far.Close()
	<-ended
}

// TestTheNewestSetupComesLast, however a renewal falls among the first messages
// to a worker.
func TestTheNewestSetupComesLast(t *testing.T) {
	changed := make(chan struct{})
	k := newKeeper(Config{Peers: func() link.Peers { return link.Peers{} }, PeersChanged: changed})
	ctx, cancel := context.WithCancel(t.Context())
	pushed := make(chan struct{})
	go func() { defer close(pushed); k.pushPeers(ctx) }()
	defer func() { cancel(); <-pushed }()
	for i := range 200 {
		want := fmt.Sprint(i)
		far, ended := serves(t, k, uint64(i))
		renewed := make(chan struct{})
		go func() { defer close(renewed); k.Renew(link.Setup{NodeCert: []byte(want)}) }()
		if err := k.setUp(t.Context(), k.current()); err != nil {
			t.Fatal(err)
		}
		<-renewed
		last := ""
		for stop := time.Now().Add(10 * time.Second); last != want && time.Now().Before(stop); {
			m, err := far.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if m.Type == link.TypeSetup {
				last = string(m.Setup.NodeCert)
			}
		}
		// Once pushPeers has heard of the renewal, and of one thing more, it has
		// queued all that comes.
		within(t, "the renewal is noticed", func() bool { return len(k.renewed) == 0 })
		changed <- struct{}{}
		if err := k.current().conn.Deliver(t.Context(), &link.Message{Type: link.TypeDrain}); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := far.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if m.Type == link.TypeDrain {
				break
			}
			if m.Type == link.TypeSetup {
				last = string(m.Setup.NodeCert)
			}
		}
		if last != want {
			t.Fatalf("the last setup is %q, want %q", last, want)
		}
		_ = far.Close()
		<-ended
	}
}
