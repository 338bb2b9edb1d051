package dataplane_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/meter"
	"ringmain/internal/testkit/netkit"
)

// An attempt is a request of which an upstream may have seen something: who
// could not be connected to was not asked.
func TestNoConnectionIsNoAttempt(t *testing.T) {
	good := newAnswering(answered)
	r := newRing(t)
	r.upstream("gone", "us-east", "openai", "http://"+netkit.Address(), simulated)
	r.upstream("good", "us-east", "openai", provider(t, good), simulated)
	r.route("m", registry.Target{Upstream: "gone", Model: "m"}, registry.Target{Upstream: "good", Model: "m", Order: 1})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)})
	if reply.status != http.StatusOK || reply.header.Get("idc-attempts") != "1" {
		t.Errorf("%d after %s attempts: %s", reply.status, reply.header.Get("idc-attempts"), reply.body)
	}
	if rec := c.record(reply.header.Get("idc-request-id")); rec.Attempts != good.count("m") {
		t.Errorf("%d attempts recorded, the providers counted %d", rec.Attempts, good.count("m"))
	}
}

// A client that leaves while the next upstream is connected to leaves no
// attempt there: nobody was asked.
func TestLeftBeforeItWasAsked(t *testing.T) {
	s := &script{takes: []take{{events: chunks("a", "one"), end: "cut"}}}
	mute := listen(t) // it never finishes the handshake
	defer func() { _ = mute.Close() }()
	connected := make(chan net.Conn, 8)
	go func() {
		for {
			conn, err := mute.Accept()
			if err != nil {
				close(connected)
				return
			}
			connected <- conn
		}
	}()
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, s), simulated)
	r.upstream("mute", "us-east", "openai", "https://"+mute.Addr().String(), simulated)
	r.route("m", registry.Target{Upstream: "up", Model: "m"}, registry.Target{Upstream: "mute", Model: "m", Order: 1})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", patient)
	r.load()
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = c.try(ctx, s.listening(c.client(true)), call{path: chat, key: key, body: ask("m", true, `,"temperature":0`)}) // it leaves
	}()
	conn := <-connected
	leave()
	<-left
	defer func() { _ = conn.Close() }()
	var rec *meter.Record
	poll(t, "the record", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, rec = range c.records {
			return true
		}
		return false
	})
	if rec.Attempts != s.asked() || rec.Ended == meter.EndComplete {
		t.Errorf("%d attempts recorded, the providers counted %d: %+v", rec.Attempts, s.asked(), rec)
	}
}
