package edge

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestManySources: what a connection from a new source costs does not grow with
// how many there are, and what is kept of those that were turned away goes.
func TestManySources(t *testing.T) {
	g := New(Limits{Total: 50_000})
	now := time.Unix(1_800_000_000, 0)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	var in []*conn
	for i := range 1_000_000 {
		now = now.Add(20 * time.Microsecond)
		if c := g.admit(&from{a, net.IPv4(byte(i>>24), byte(i>>16), byte(i>>8), byte(i))}, now); c != nil {
			g.mu.Lock()
			c.speak()
			g.mu.Unlock()
			in = append(in, c)
		}
		if most := uint64(3*(i+1) + sweepAt); g.swept > most {
			t.Fatalf("for %d sources %d were looked at again", i+1, g.swept)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	counts := g.Counts()
	t.Logf("a million sources: %d looked at again, %d connections, %d sources kept, %d MiB", g.swept, counts.Open, counts.Sources, (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>20)
	if counts.Open != 50_000 || counts.Sources > 400_000 {
		t.Errorf("%+v", counts)
	}
	for _, c := range in {
		_ = c.Close()
	}
	if c := g.Counts(); c.Open != 0 || c.Silent != 0 {
		t.Errorf("after all were closed: %+v", c)
	}
}

func (s *site) http2(t *testing.T) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// TestPrefaceIsNoRequest: a connection that has said but half of a head, or
// nothing but the preface of HTTP/2, owes its first request still.
func TestPrefaceIsNoRequest(t *testing.T) {
	s := open(t, Limits{}, ok)
	two := s.http2(t)
	if _, err := io.WriteString(two, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := http2.NewFramer(two, two).WriteSettings(); err != nil {
		t.Fatal(err)
	}
	one, err := tls.Dial("tcp", s.addr, &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = one.Close() }()
	if _, err := io.WriteString(one, "GET / HTTP/1.1\r\nHo"); err != nil {
		t.Fatal(err)
	}
	if f, err := http2.NewFramer(io.Discard, two).ReadFrame(); err != nil { // the server is there
		t.Fatal(f, err)
	}
	time.Sleep(100 * time.Millisecond)
	s.settles(t, Counts{Open: 2, Silent: 2}, "two that asked nothing")
	if _, err := io.WriteString(one, "st: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	s.settles(t, Counts{Open: 2, Silent: 1}, "one has asked")
}

// TestUsersWhoPressStop: behind one connection there may be hundreds of users
// who mostly stop what they asked, as completion in an editor does. It is told
// to go, and nothing that runs on it breaks.
func TestUsersWhoPressStop(t *testing.T) {
	end := make(chan struct{})
	var begun sync.Map // by the query of what is asked
	s := open(t, Limits{Aborts: 50}, func(w http.ResponseWriter, r *http.Request) {
		if Aged(r.Context(), time.Now()) {
			w.Header().Set("Connection", "close")
		}
		switch r.URL.Path {
		case "/stopped":
			if one, ok := begun.LoadAndDelete(r.URL.RawQuery); ok {
				close(one.(chan struct{}))
			}
			<-r.Context().Done()
			Asked(r.Context(), true, time.Now())
			panic(http.ErrAbortHandler)
		case "/stream":
			_, _ = io.WriteString(w, "begun ")
			w.(http.Flusher).Flush()
			<-end
			_, _ = io.WriteString(w, "whole")
		default:
			_, _ = io.WriteString(w, r.RemoteAddr)
		}
		Asked(r.Context(), false, time.Now())
	})
	client := s.client(t, "127.0.0.2")
	client.Timeout = 20 * time.Second
	resp, err := client.Get("https://" + s.addr + "/stream")
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for user := range 20 {
		group.Go(func() {
			for i := range 8 {
				one, query := make(chan struct{}), fmt.Sprintf("%d-%d", user, i)
				begun.Store(query, one)
				s.breakOff(t, client, "/stopped?"+query, one)
			}
		})
	}
	group.Wait()
	seen := make(map[string]bool)
	for range 4 {
		resp, err := client.Get("https://" + s.addr + "/")
		if err != nil {
			t.Fatalf("an answered request: %v", err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		seen[string(b)] = true
	}
	close(end)
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil || !bytes.Equal(b, []byte("begun whole")) {
		t.Errorf("the stream beside them: %q, %v", b, err)
	}
	if n := s.guard.Counts().Expelled; n != 0 || len(seen) < 2 {
		t.Errorf("%d connections broken, %d connections used", n, len(seen))
	}
}

// TestSilenceOfManySources: silent connections of many addresses (whoever has a
// /56 of IPv6 has 256) make room for those that ask.
func TestSilenceOfManySources(t *testing.T) {
	s := open(t, Limits{Total: 100}, ok)
	good := s.client(t, "127.0.0.2")
	if err := get(t, good, s.addr); err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(i))}, Timeout: time.Second}
		if c, err := d.Dial("tcp", s.addr); err == nil {
			defer func() { _ = c.Close() }()
		}
	}
	if err := get(t, s.client(t, "127.0.0.3"), s.addr); err != nil {
		t.Errorf("one that asks, after 200 that do not: %v", err)
	}
	if err := get(t, good, s.addr); err != nil {
		t.Errorf("one that had asked before: %v", err)
	}
	if c := s.guard.Counts(); c.Open > 60 || c.Turned < 100 {
		t.Errorf("%+v", c)
	}
}
