package dataplane_test

import (
	"net/http"
	"os"
	"syscall"
	"testing"

	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/dialect"
)

// TestNoMoreFiles: a node that can open no connection says that it is at capacity.
// No circuit counts that, so that it serves on at once when it can.
func TestNoMoreFiles(t *testing.T) {
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, newAnswering(answered)), simulated)
	r.upstream("other", "us-east", "openai", provider(t, newAnswering(answered)), simulated)
	r.route("m", registry.Target{Upstream: "up", Model: "m"}, registry.Target{Upstream: "other", Model: "m", Order: 1})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", dataplane.Tunables{ProbeEvery: patient.ProbeEvery, DrainGrace: patient.DrainGrace})
	r.load()
	cl := c.client(true)
	if got := c.do(cl, call{path: "/livez"}); got.status != http.StatusOK {
		t.Fatal(got.status)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &before); err != nil {
		t.Fatal(err)
	}
	few := before
	few.Cur = min(few.Cur, 4096)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &before) }()
	var taken []*os.File
	free := func() {
		for _, f := range taken {
			_ = f.Close()
		}
		taken = nil
	}
	defer free()
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		taken = append(taken, f)
	}
	for range 12 {
		c.do(cl, call{path: chat, key: key, body: ask("m", false)}).wantError(t, dialect.OpenAI, dialect.CapacityShed)
	}
	free()
	if got := c.do(cl, call{path: chat, key: key, body: ask("m", false)}); got.status != http.StatusOK || got.header.Get("idc-upstream") != "up" {
		t.Errorf("%d from %q: %s", got.status, got.header.Get("idc-upstream"), got.body)
	}
}
