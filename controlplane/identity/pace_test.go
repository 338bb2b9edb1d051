package identity

import (
	"crypto/tls"
	"net"
	"sync"
	"testing"
	"time"

	"ringmain/internal/testkit/synckit"
)

// pipes is a listener in memory.
type pipes struct {
	conns chan net.Conn
	ended chan struct{}
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.ended:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.ended) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// A crowd of one protocol is let in at a pace; the first protocol goes ahead of
// whoever waits.
func TestDemuxPacesACrowd(t *testing.T) {
	dir := t.TempDir()
	synckit.Test(t, func(t *testing.T) {
		ca, err := CreateCA(dir, "prod")
		if err != nil {
			t.Fatal(err)
		}
		issued, err := ca.IssueNode(ID{Cluster: "prod", Region: "eu-fra", Role: RoleControl, Node: "c1"}, nil, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		b, err := issued.Bundle()
		if err != nil {
			t.Fatal(err)
		}
		inner := &pipes{conns: make(chan net.Conn), ended: make(chan struct{})}
		d := Listener(inner, b.Server(nil, AllowControl("")), "raft", "h2")
		var taken sync.WaitGroup
		for _, proto := range []string{"raft", "h2"} {
			taken.Go(func() {
				for {
					if _, err := d.For(proto).Accept(); err != nil {
						return
					}
				}
			})
		}
		begun := time.Now()
		dial := func(proto string) time.Duration {
			ours, theirs := net.Pipe()
			inner.conns <- theirs
			c := tls.Client(ours, b.Client([]string{proto}, AllowControl("")))
			if err := c.Handshake(); err != nil {
				t.Error(err)
			}
			took := time.Since(begun)
			_ = ours.Close()
			_ = theirs.Close()
			return took
		}
		const crowd = 50
		var mu sync.Mutex
		var last time.Duration
		var all sync.WaitGroup
		for range crowd {
			all.Go(func() {
				took := dial("h2")
				mu.Lock()
				defer mu.Unlock()
				last = max(last, took)
			})
		}
		synckit.Wait()
		if took := dial("raft"); took > 0 {
			t.Errorf("the first protocol waited %v", took)
		}
		all.Wait()
		if want := (crowd - handshakesAtOnce) * handshakeEvery; last != want {
			t.Errorf("the last of %d was let in after %v, want %v", crowd, last, want)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		taken.Wait()
	})
}
