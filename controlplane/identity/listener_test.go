package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/internal/testkit/clockkit"
)

const raftProto = "ringmain-raft/1"

type demux struct {
	*identity.Demux
	client *identity.Bundle
	mu     sync.Mutex
	errs   []error
}

func newDemux(t *testing.T) *demux {
	t.Helper()
	ca := newCA(t, "prod")
	server := bundle(t, ca, node("prod", "eu-fra", "control", "c1"))
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &demux{
		Demux:  identity.Listener(inner, server.Server(nil, identity.AllowControl("eu-fra")), raftProto, "h2"),
		client: bundle(t, ca, node("prod", "eu-fra", "control", "c2")),
	}
	d.OnRefused(func(_ net.Addr, err error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.errs = append(d.errs, err)
	})
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func (d *demux) refusals() []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]error(nil), d.errs...)
}

func (d *demux) dial(protos ...string) (*tls.Conn, error) {
	return tls.Dial("tcp", d.Addr().String(), d.client.Client(protos, identity.AllowControl("")))
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain for: " + what)
		}
	}
}

// A caller must be able to tell that a closed protocol did not get what it
// wrote: in TLS 1.3 a client writes before the server has seen its certificate.
func TestDemuxRefusesAClosedProtocolInTheHandshake(t *testing.T) {
	d := newDemux(t)
	if err := d.For("h2").Close(); err != nil {
		t.Fatal(err)
	}
	if conn, err := d.dial("h2"); err == nil {
		_ = conn.Close()
		t.Error("the handshake for a closed protocol succeeded")
	}
	conn, err := d.dial("h2", raftProto)
	if err != nil {
		t.Fatalf("the protocol that is open: %v", err)
	}
	if got := conn.ConnectionState().NegotiatedProtocol; got != raftProto {
		t.Errorf("negotiated %q, want the open one", got)
	}
	_ = conn.Close()
}

func TestDemuxServesBothProtocols(t *testing.T) {
	d := newDemux(t)
	server := &http.Server{
		ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := identity.PeerID(*r.TLS)
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			_, _ = io.WriteString(w, r.Proto+" "+id.Node)
		}),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(d.For("h2")) }()

	transport := &http.Transport{TLSClientConfig: d.client.Client([]string{"h2"}, identity.AllowControl("")), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("https://" + d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != "HTTP/2.0 c2" {
		t.Errorf("answer %q, %v", body, err)
	}
	_ = resp.Body.Close()

	conn, err := d.dial(raftProto)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	accepted, err := d.For(raftProto).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = accepted.Close() }()
	if _, err := conn.Write([]byte("raft")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(accepted, got); err != nil || string(got) != "raft" {
		t.Errorf("raft stream: %q, %v", got, err)
	}

	// Closing one protocol leaves the other and the accepted connections alone.
	if err := server.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		t.Errorf("Serve: %v", err)
	}
	if late, err := d.dial("h2"); err == nil {
		_ = late.Close()
		t.Error("a closed protocol still accepts")
	}
	again, err := d.dial(raftProto)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	if c, err := d.For(raftProto).Accept(); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
}

func TestDemuxRefuses(t *testing.T) {
	d := newDemux(t)
	if conn, err := d.dial("unknown/1"); err == nil {
		_ = conn.Close()
		t.Error("an unknown protocol was taken")
	}
	if conn, err := d.dial(); err == nil {
		_ = conn.Close()
		t.Error("a connection without a protocol was taken")
	}
	plain, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plain.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(plain)
	_ = plain.Close()
	waitFor(t, "three refusals", func() bool { return len(d.refusals()) == 3 })
	if errs := d.refusals(); !strings.Contains(errors.Join(errs...).Error(), "no protocol") {
		t.Errorf("refusals: %v", errs)
	}
}

// Peers that say nothing hold up nobody, and are cut off after five seconds.
func TestDemuxSilentPeers(t *testing.T) {
	d := newDemux(t)
	start, since := time.Now(), clockkit.Watch(t)
	var silent []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", d.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		silent = append(silent, c)
	}
	conn, err := d.dial(raftProto)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if c, err := d.For(raftProto).Accept(); err != nil {
		t.Fatal(err)
	} else {
		_ = c.Close()
	}
	if took := since(); took > 3*time.Second {
		t.Errorf("a good peer waited %s", took)
	}
	for _, c := range silent {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Fatalf("silent peer: %v", err)
		}
	}
	if took := time.Since(start); took < 4*time.Second || since() > 9*time.Second {
		t.Errorf("silent peers were cut off after %s", took)
	}
}

// Connections that nobody accepts are bounded, and Close ends them.
func TestDemuxBoundsWhatWaits(t *testing.T) {
	d := newDemux(t)
	var open atomic.Int32
	var wg sync.WaitGroup
	for range 80 {
		wg.Go(func() {
			conn, err := d.dial(raftProto)
			if err != nil {
				return
			}
			open.Add(1)
			_, _ = conn.Read(make([]byte, 1)) // ends when the other side closes
			open.Add(-1)
			_ = conn.Close()
		})
	}
	waitFor(t, "16 refusals of 80", func() bool { return len(d.refusals()) == 16 && open.Load() == 64 })
	silent, err := net.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	since := clockkit.Watch(t)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if took := since(); took > 2*time.Second {
		t.Errorf("Close took %s", took)
	}
	wg.Wait()
	for _, l := range []net.Listener{d.For("h2"), d.For(raftProto)} {
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// A listener that fails for a while is asked again.
func TestDemuxOutlivesAcceptErrors(t *testing.T) {
	ca := newCA(t, "prod")
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := identity.Listener(&flaky{Listener: inner}, bundle(t, ca, node("prod", "eu-fra", "control", "c1")).Server(nil, identity.AllowControl("")), "h2")
	defer func() { _ = d.Close() }()
	client := bundle(t, ca, node("prod", "eu-fra", "control", "c2"))
	conn, err := tls.Dial("tcp", inner.Addr().String(), client.Client([]string{"h2"}, identity.AllowControl("")))
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
}

type flaky struct {
	net.Listener
	failed int
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.failed < 4 {
		f.failed++
		return nil, errors.New("too many open files")
	}
	return f.Listener.Accept()
}
