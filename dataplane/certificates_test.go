package dataplane_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/link"
	"ringmain/drills/simmodel"
)

// setupOf is what a keeper would send with these certificates.
func setupOf(c *cell, node, server *identity.Issued) *link.Setup {
	return &link.Setup{
		Cluster: cluster, Region: c.region, Node: c.node,
		APICert: server.Chain, APIKey: server.Key, NodeCert: node.Chain, NodeKey: node.Key, Roots: node.Roots,
	}
}

// shown is when the certificate ends that a new connection to the API is shown.
func (c *cell) shown() time.Time {
	c.ring.t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.ring.ca.ServerRoots())
	conn, err := tls.Dial("tcp", c.api, &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13})
	if err != nil {
		c.ring.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	return conn.ConnectionState().PeerCertificates[0].NotAfter
}

// expiry reads the metric of the worker's certificates.
func (c *cell) expiry() map[string]time.Time {
	families, err := c.registry.Gather()
	if err != nil {
		c.ring.t.Error(err)
	}
	out := map[string]time.Time{}
	for _, f := range families {
		if f.GetName() == "ringmain_worker_certificate_expires" {
			for _, m := range f.GetMetric() {
				out[label(m)] = time.Unix(int64(m.GetGauge().GetValue()), 0)
			}
		}
	}
	return out
}

func label(m *dto.Metric) string { return m.GetLabel()[0].GetValue() }

// TestCertificatesAreRenewedUnderLoad: certificates that end while requests and
// streams run are replaced without one of them failing, and everything made
// after that is by the new ones: connections of clients, connections between
// nodes, receipts.
func TestCertificatesAreRenewedUnderLoad(t *testing.T) {
	r := newRing(t)
	r.ttl = 8 * time.Second
	sim := provider(t, simmodel.New(simmodel.Config{Name: "sim"}))
	for _, region := range []string{"us-east", "eu-fra", "ap-sg"} {
		r.upstream("up-"+region, region, "openai", sim, simulated)
		r.route("in-"+region, registry.Target{Upstream: "up-" + region, Model: "sim-chat:tps=200"})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	us, eu := r.start("us-east", "us", patient), r.start("eu-fra", "eu", patient)
	started := time.Now()
	r.load()

	var load sync.WaitGroup
	var answered, loops atomic.Int64
	stop := make(chan struct{})
	for i := range 6 {
		load.Go(func() {
			body := ask([]string{"in-us-east", "in-eu-fra"}[i%2], i%3 > 0)
			cl := us.client(i%2 == 0)
			for first := true; ; first = false {
				select {
				case <-stop:
					return
				default:
				}
				if i >= 4 {
					cl = us.client(true) // a connection for each request
				}
				reply, err := us.try(t.Context(), cl, call{path: chat, key: key, body: body})
				if err != nil || reply.status != 200 || reply.broken != nil {
					t.Errorf("%s: %v %+v", body, err, reply)
					return
				}
				if i >= 4 {
					cl.CloseIdleConnections()
				}
				answered.Add(1)
				if first {
					loops.Add(1)
				}
			}
		})
	}
	poll(t, "load", func() bool { return loops.Load() == 6 || t.Failed() })
	before := us.shown()
	for _, c := range []*cell{us, eu} {
		node, server := c.issue(time.Hour)
		if err := c.worker.Renew(setupOf(c, node, server)); err != nil {
			t.Fatal(err)
		}
	}
	if got := us.shown(); !got.After(before) || !got.Equal(us.expiry()["api"]) {
		t.Errorf("a new connection is shown the certificate to %s, before it was %s, metric %v", got, before, us.expiry())
	}
	renewed := answered.Load()
	poll(t, "the first certificates' end", func() bool { return time.Since(started) > r.ttl+time.Second })
	poll(t, "more load", func() bool { return answered.Load() > renewed+20 || t.Failed() })
	close(stop)
	load.Wait()
	if !time.Now().After(before) {
		t.Fatalf("the first certificate holds until %s: nothing was shown", before)
	}

	for _, model := range []string{"in-us-east", "in-eu-fra"} { // client and receipt
		body := ask(model, false)
		reply := us.do(us.client(true), call{path: chat, key: key, body: body})
		if reply.status != 200 {
			t.Fatalf("%d %s", reply.status, reply.body)
		}
		us.receiptOf(key, reply, body)
	}
	// A node that was not there yet: both ways only by what was renewed.
	r.ttl = time.Hour
	ap := r.start("ap-sg", "apac", patient)
	r.load()
	for _, way := range []struct {
		at    *cell
		model string
	}{{us, "in-ap-sg"}, {ap, "in-us-east"}, {ap, "in-eu-fra"}} {
		if reply := way.at.do(way.at.client(true), call{path: chat, key: key, body: ask(way.model, true)}); reply.status != 200 || reply.broken != nil {
			t.Errorf("%s from %s: %d %s", way.model, way.at.region, reply.status, reply.body)
		}
	}
}

// TestBadCertificatesAreRefused: each of the two is judged alone, and what
// cannot be used leaves what is in use.
func TestBadCertificatesAreRefused(t *testing.T) {
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, newAnswering(answered)))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	first := c.expiry()
	node, server := c.issue(2 * time.Hour)
	other, err := r.ca.IssueNode(identity.ID{Region: "us-east", Role: identity.RoleData, Node: "us-east-d9"}, nil, 2*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r.ca.Now = func() time.Time { return time.Now().Add(-3 * time.Hour) }
	oldNode, oldServer := c.issue(time.Hour)
	r.ca.Now = nil
	for _, tc := range []struct {
		name         string
		node, server *identity.Issued
		api          int // hours to the API's certificate's end afterwards
	}{
		{"keys of others", &identity.Issued{Chain: node.Chain, Key: other.Key, Roots: node.Roots}, &identity.Issued{Chain: server.Chain, Key: node.Key}, 1},
		{"out of date", oldNode, oldServer, 1},
		{"nothing", &identity.Issued{}, &identity.Issued{}, 1},
		{"another node's", other, server, 2}, // the API's is good, and taken alone
		{"no roots", &identity.Issued{Chain: node.Chain, Key: node.Key, Roots: []byte("none")}, server, 2},
		{"a server's as a node's", &identity.Issued{Chain: server.Chain, Key: server.Key, Roots: node.Roots}, oldServer, 2},
	} {
		if err := c.worker.Renew(setupOf(c, tc.node, tc.server)); err == nil {
			t.Errorf("%s: taken", tc.name)
		}
		if got := c.expiry()["node"]; !got.Equal(first["node"]) {
			t.Errorf("%s: the node's certificate ends at %s", tc.name, got)
		}
		if got := c.shown(); int(time.Until(got).Round(time.Hour).Hours()) != tc.api || !got.Equal(c.expiry()["api"]) {
			t.Errorf("%s: the API's certificate ends at %s", tc.name, got)
		}
	}
	if err := c.worker.Renew(setupOf(c, node, server)); err != nil {
		t.Fatal(err)
	}
	sets := fmt.Sprint(c.expiry())
	if err := c.worker.Renew(setupOf(c, node, server)); err != nil || fmt.Sprint(c.expiry()) != sets {
		t.Error(err, sets)
	}
	body := ask("m", false)
	c.receiptOf(key, c.do(c.client(true), call{path: chat, key: key, body: body}), body)
}
