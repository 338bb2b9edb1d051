package dev

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ringmain/cmd/ringmain/internal/dev/door"
	"ringmain/controlplane/identity"
)

// Ready is said once a region's own address answers too: its balancer listens
// some time after it found the first node ready.
func TestReadyIsWhatClientsFind(t *testing.T) {
	opts := Options{Now: time.Now, Shape: Shape{Regions: []RegionShape{{"us-east", "us"}}, Control: 1, Data: 1, Port: 30440}}
	dir := t.TempDir()
	shape, err := prepare(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{opts: opts, shape: shape, dir: dir, nodes: shape.nodes(dir), backends: map[string]*door.Backend{}}
	c.describe()
	if c.roots, err = c.readRoots(); err != nil {
		t.Fatal(err)
	}
	c.probes = door.Client(c.roots)
	defer c.probes.CloseIdleConnections()

	n := c.nodes[1] // its data node
	ca, err := identity.OpenCA(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	issued, err := ca.IssueServer(nil, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(issued.Chain, issued.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", n.api, identity.Public(pair, []string{"http/1.1"}))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"data":[{"id":"m"}]}`)
	})}
	ctx, cancel := context.WithCancel(t.Context())
	b := &door.Backend{Addr: n.api, Check: "https://" + n.api + "/readyz"}
	c.backends[n.name] = b
	var running []chan error
	run := func(f func() error) {
		done := make(chan error, 1)
		running = append(running, done)
		go func() { done <- f() }()
	}
	run(func() error { return b.Watch(ctx, c.probes) })
	run(func() error { _ = server.Serve(l); return nil })
	defer func() {
		cancel()
		_ = server.Close()
		for _, done := range running {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}()

	for deadline := time.Now().Add(10 * time.Second); !b.Ready(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the node is not found ready")
		}
	}
	if err := c.keyServed(ctx); err == nil || !strings.Contains(err.Error(), "us-east: ") {
		t.Errorf("nobody listens at the region's address: %v", err)
	}
	run(func() error {
		return (&door.Balancer{Addr: shape.api(0), Backends: []*door.Backend{b}}).Run(ctx)
	})
	eventually(t, "the region's address", func() error { return c.keyServed(ctx) })
}
