package identity_test

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"ringmain/controlplane/identity"
)

// joined is one connection between a server and a client, both of which keep it.
type joined struct{ server, client net.Conn }

// listening serves b on loopback through a Demux, and passes on what it accepts.
func listening(t *testing.T, b *identity.Bundle) (addr string, accepted <-chan net.Conn) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	anyone := identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))
	d := identity.Listener(b.Listen(inner), b.Server([]string{"x"}, anyone), "x")
	conns := make(chan net.Conn, 8)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := d.For("x").Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	t.Cleanup(func() { _ = d.Close(); <-done })
	return inner.Addr().String(), conns
}

func dial(b *identity.Bundle, addr string) (net.Conn, error) {
	anyone := identity.AnyOf(identity.AllowControl(""), identity.AllowData(""))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return b.Dialer(new(net.Dialer), []string{"x"}, anyone)(ctx, "tcp", addr)
}

func join(t *testing.T, b *identity.Bundle, addr string, accepted <-chan net.Conn) joined {
	t.Helper()
	c, err := dial(b, addr)
	if err != nil {
		t.Fatal(err)
	}
	j := joined{server: <-accepted, client: c}
	t.Cleanup(func() { _, _ = j.server.Close(), j.client.Close() })
	return j
}

// ended waits for the connection to end at this side, as its peer sees it.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var timeout net.Error
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the connection goes on: %v", err)
	}
}

func goesOn(t *testing.T, j joined) {
	t.Helper()
	for _, pair := range [][2]net.Conn{{j.server, j.client}, {j.client, j.server}} {
		if _, err := pair[0].Write([]byte{1}); err != nil {
			t.Errorf("another's connection: %v", err)
		}
		if _, err := io.ReadFull(pair[1], make([]byte, 1)); err != nil {
			t.Errorf("another's connection: %v", err)
		}
	}
}

// Whoever hears of a revocation refuses the node, as its server and as its
// client, and ends what it has with it; others' connections go on.
func TestRevokedNodes(t *testing.T) {
	const cluster = "prod"
	ca := newCA(t, cluster)
	fra1, fra2 := node(cluster, "eu-fra", "data", "eu-fra-d1"), node(cluster, "eu-fra", "data", "eu-fra-d2")
	self := bundle(t, ca, node(cluster, "eu-fra", "control", "eu-fra-c1"))
	one, two := bundle(t, ca, fra1), bundle(t, ca, fra2)

	addr, accepted := listening(t, self)
	oneAddr, oneAccepted := listening(t, one)
	called, stays := join(t, one, addr, accepted), join(t, two, addr, accepted)
	calls := join(t, self, oneAddr, oneAccepted)

	self.Revoke(fra1)
	self.Revoke(fra1)
	ended(t, called.client)
	ended(t, calls.server)
	goesOn(t, stays)
	if c, err := dial(self, oneAddr); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("a revoked node answers: %v, %v", c, err)
	}
	// A TLS 1.3 client hears of the refusal when it reads.
	if c, err := dial(one, addr); err == nil {
		ended(t, c)
		_ = c.Close()
	}
	select {
	case c := <-accepted:
		t.Errorf("%v was accepted", c.RemoteAddr())
	default:
	}
	goesOn(t, join(t, two, addr, accepted))
	select {
	case <-self.Revoked():
		t.Error("another's revocation counts for this node")
	default:
	}
}

// A revoked node notices, and takes no new certificate.
func TestRevokedSelf(t *testing.T) {
	const cluster = "prod"
	ca := newCA(t, cluster)
	id := node(cluster, "eu-fra", "data", "eu-fra-d1")
	b := bundle(t, ca, id)
	issued, err := ca.IssueNode(id, nil, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Replace(issued.Chain, issued.Key, issued.Roots); err != nil {
		t.Fatal(err)
	}
	b.Revoke(id)
	<-b.Revoked()
	if err := b.Replace(issued.Chain, issued.Key, issued.Roots); !errors.Is(err, identity.ErrRevoked) {
		t.Errorf("renewed: %v", err)
	}
}
