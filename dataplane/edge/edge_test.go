package edge

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a TLS server behind a guard.
type site struct {
	guard *Guard
	addr  string
	roots *x509.CertPool
}

func open(t *testing.T, l Limits, handler http.HandlerFunc) *site {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(crand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{guard: New(l), roots: x509.NewCertPool()}
	s.roots.AddCert(leaf)
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = raw.Addr().String()
	server := &http.Server{
		Handler: s.guard.Handler(handler), ConnContext: s.guard.ConnContext, ReadHeaderTimeout: time.Minute,
		ErrorLog:  log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(s.guard.Listen(raw), "", "") }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
		s.settles(t, Counts{}, "the server is closed")
	})
	return s
}

func (s *site) client(t *testing.T, from string) *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	tr := &http.Transport{
		ForceAttemptHTTP2: true, DialContext: d.DialContext, MaxConnsPerHost: 1,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: s.roots},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 5 * time.Second}
}

// settles waits until open and silent connections are as in want.
func (s *site) settles(t *testing.T, want Counts, when string) {
	t.Helper()
	var have Counts
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		have = s.guard.Counts()
		if have.Open == want.Open && have.Silent == want.Silent {
			return
		}
	}
	t.Fatalf("%s: %d open and %d silent, want %d and %d", when, have.Open, have.Silent, want.Open, want.Silent)
}

func dial(t *testing.T, addr, from string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: time.Second}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// reset reports whether the server breaks c.
func reset(t *testing.T, c net.Conn) bool {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, syscall.ECONNRESET) // a server that gives it up closes it
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }

func get(t *testing.T, c *http.Client, addr string) error {
	t.Helper()
	resp, err := c.Get("https://" + addr)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

func TestSilentConnectionsHaveTheirOwnLimit(t *testing.T) {
	s := open(t, Limits{Silent: 5}, ok)
	var silent []net.Conn
	for range 5 {
		silent = append(silent, dial(t, s.addr, "127.0.0.2"))
	}
	s.settles(t, Counts{Open: 5, Silent: 5}, "five that say nothing")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.0.2")}, Timeout: time.Second}
	if c, err := d.Dial("tcp", s.addr); err == nil { // else the reset came sooner
		if !reset(t, c) {
			t.Error("silent connection 6 of 5 was taken")
		}
		_ = c.Close()
	}
	if err := get(t, s.client(t, "127.0.0.3"), s.addr); err != nil {
		t.Errorf("another source: %v", err)
	}
	for _, c := range silent { // and the source may come back
		_ = c.Close()
	}
	s.settles(t, Counts{Open: 1}, "after the silent ones ended")
	client := s.client(t, "127.0.0.2")
	if err := get(t, client, s.addr); err != nil {
		t.Errorf("after the silent connections ended: %v", err)
	}
	s.settles(t, Counts{Open: 2}, "one connection of each source")
	if turned := s.guard.Counts().Turned; turned != 1 {
		t.Errorf("%d connections turned away, want 1", turned)
	}
}

func TestConnectionsPerSource(t *testing.T) {
	s := open(t, Limits{Conns: 3}, ok)
	for range 3 {
		if err := get(t, s.client(t, "127.0.0.2"), s.addr); err != nil {
			t.Fatal(err)
		}
	}
	if err := get(t, s.client(t, "127.0.0.2"), s.addr); err == nil {
		t.Error("connection 4 of 3 was served")
	}
	if err := get(t, s.client(t, "127.0.0.3"), s.addr); err != nil {
		t.Errorf("another source: %v", err)
	}
}

func TestRateOfNewConnections(t *testing.T) {
	g := New(Limits{PerSecond: 10})
	now := time.Unix(1_800_000_000, 0)
	try := func(n int) (in int) {
		for range n {
			a, b := net.Pipe()
			if c := g.admit(a, now); c != nil {
				in++
				_ = c.Close()
			}
			_, _ = a.Close(), b.Close()
		}
		return in
	}
	if in := try(100); in != 20 {
		t.Errorf("%d at once, want twice the rate", in)
	}
	now = now.Add(time.Second)
	if in := try(100); in != 10 {
		t.Errorf("%d a second later, want 10", in)
	}
	now = now.Add(time.Hour)
	if in := try(100); in != 20 {
		t.Errorf("%d after a quiet hour, want 20", in)
	}
}

func TestSourcesAreForgotten(t *testing.T) {
	for _, limits := range []Limits{{}, {Wrong: -1}} {
		g := New(limits)
		now := time.Unix(1_800_000_000, 0)
		for i := range 3 * sweepAt {
			now = now.Add(time.Millisecond)
			a, b := net.Pipe()
			c := g.admit(&from{a, net.IPv4(10, byte(i>>16), byte(i>>8), byte(i))}, now)
			if c == nil {
				t.Fatal("turned away")
			}
			_, _ = c.Close(), b.Close()
		}
		if n := g.Counts().Sources; n > sweepAt {
			t.Errorf("%+v: %d sources are kept without a connection", limits, n)
		}
	}
}

type from struct {
	net.Conn
	ip net.IP
}

func (f *from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: f.ip} }

func TestSourceOfIPv6IsItsNetwork(t *testing.T) {
	a := addressOf(&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:3::4"), Zone: "x"})
	b := addressOf(&net.TCPAddr{IP: net.ParseIP("2001:db8:1:2:ffff::1")})
	c := addressOf(&net.TCPAddr{IP: net.ParseIP("2001:db8:1:3::1")})
	if a != b || a == c {
		t.Errorf("sources %v, %v, %v", a, b, c)
	}
	if v4, mapped := addressOf(&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}), addressOf(&net.TCPAddr{IP: net.ParseIP("::ffff:192.0.2.1")}); v4 != mapped {
		t.Errorf("%v and %v are one", v4, mapped)
	}
}

func TestAgedConnectionIsToldToGo(t *testing.T) {
	s := open(t, Limits{Age: 40 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		if Aged(r.Context(), time.Now()) {
			w.Header().Set("Connection", "close")
		}
		_, _ = io.WriteString(w, r.RemoteAddr)
	})
	client := s.client(t, "127.0.0.2")
	seen := make(map[string]bool)
	for range 20 {
		resp, err := client.Get("https://" + s.addr)
		if err != nil {
			t.Fatalf("a client of an aged connection saw an error: %v", err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		seen[string(b)] = true
		time.Sleep(10 * time.Millisecond)
	}
	if len(seen) < 3 {
		t.Errorf("%d connections in 200 ms at an age of 40 ms", len(seen))
	}
	var ages []time.Duration
	now := time.Unix(1_800_000_000, 0)
	g := New(Limits{})
	for range 1000 {
		a, b := net.Pipe()
		c := g.admit(a, now)
		ages = append(ages, c.aged.Sub(now))
		_, _ = c.Close(), b.Close()
		now = now.Add(time.Millisecond)
	}
	least, most := ages[0], ages[0]
	for _, a := range ages {
		least, most = min(least, a), max(most, a)
	}
	if least < 450*time.Second || most > 750*time.Second || most-least < 200*time.Second {
		t.Errorf("ages from %v to %v, want ten minutes give or take a quarter", least, most)
	}
}

func TestConnectionThatBreaksOffIsClosed(t *testing.T) {
	begun := make(chan struct{}, 100)
	s := open(t, Limits{Aborts: 2}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			begun <- struct{}{}
			<-r.Context().Done()
			Asked(r.Context(), true, time.Now())
			return
		}
		Asked(r.Context(), false, time.Now())
		ok(w, r)
	})
	client := s.client(t, "127.0.0.2")
	for range 30 {
		s.breakOff(t, client, "/slow", begun)
	}
	for end := time.Now().Add(10 * time.Second); s.guard.Counts().Expelled == 0; time.Sleep(time.Millisecond) { // who breaks off is ahead of its counting
		if time.Now().After(end) {
			t.Fatal("a connection that broke off 30 requests of 30 lives on")
		}
	}
	// One that breaks off as much, but less than it lets finish, does not.
	before := s.guard.Counts().Expelled
	client = s.client(t, "127.0.0.3")
	for i := range 60 {
		if i%3 == 2 {
			s.breakOff(t, client, "/slow", begun)
		} else if err := get(t, client, s.addr); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.guard.Counts().Expelled; n != before {
		t.Error("a connection whose requests are mostly answered was closed")
	}
}

// breakOff asks, and takes it back once the server has begun, or has ended it.
func (s *site) breakOff(t *testing.T, client *http.Client, path string, begun <-chan struct{}) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+s.addr+path, nil)
	if err != nil {
		t.Error(err)
		return
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
		}
	}()
	select {
	case <-begun:
	case <-over:
	}
	cancel()
	<-over
}
