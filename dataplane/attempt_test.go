package dataplane_test

import (
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/dataplane"
	"ringmain/dataplane/breaker"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/view"
)

// TestRetryStorm: an upstream that fails every request is asked at most a tenth
// more often than clients ask, and a few times beside.
func TestRetryStorm(t *testing.T) {
	up := newAnswering(status(http.StatusInternalServerError))
	c, key := scripted(t, up.ServeHTTP, dataplane.Tunables{
		ProbeEvery: time.Hour, Upstreams: breaker.Rules{Run: 1 << 30, Least: 1 << 30}, // no circuit helps
	})
	const requests, clients = 600, 20
	begun := time.Now()
	var all sync.WaitGroup
	cl := c.client(true)
	for range clients {
		all.Go(func() {
			for range requests / clients {
				if reply, err := c.try(t.Context(), cl, call{path: chat, key: key, body: ask("m", false)}); err != nil || reply.status != 502 {
					t.Errorf("%+v %v", reply, err)
				}
			}
		})
	}
	all.Wait()
	windows := windowsSince(begun) // each has its own few
	if got, most := up.count("m"), requests+requests/10+10*windows; got > most || got < requests+10 {
		t.Errorf("the upstream was asked %d times for %d requests, at most %d expected, and some repeats", got, requests, most)
	}
}

// windowsSince is in how many of a budget's windows the time since then lies, at
// most: they slide by a second, and so have nine seconds at least.
func windowsSince(begun time.Time) int { return 1 + int(time.Since(begun)/(9*time.Second)) }

// TestFailoverOfAStorm: where all upstreams fail, the second ones are asked for
// a few requests only; where they answer, for all.
func TestFailoverOfAStorm(t *testing.T) {
	for _, well := range []bool{false, true} {
		first, second := newAnswering(status(500)), newAnswering(status(500))
		if well {
			second.answer = answered
		}
		r := newRing(t)
		r.upstream("first", "us-east", "openai", provider(t, first))
		r.upstream("second", "us-east", "openai", provider(t, second))
		r.route("m", registry.Target{Upstream: "first", Model: "m"}, registry.Target{Upstream: "second", Model: "m", Order: 1})
		key, _ := r.org("acme", "any", "verified", "live")
		c := r.start("us-east", "us", dataplane.Tunables{ProbeEvery: time.Hour, Upstreams: breaker.Rules{Run: 1 << 30, Least: 1 << 30}})
		r.load()
		const requests, clients = 300, 10
		begun, good := time.Now(), atomic.Int32{}
		var all sync.WaitGroup
		cl := c.client(true)
		for range clients {
			all.Go(func() {
				for range requests / clients {
					if reply, err := c.try(t.Context(), cl, call{path: chat, key: key, body: ask("m", false)}); err == nil && reply.status == 200 {
						good.Add(1)
					}
				}
			})
		}
		all.Wait()
		windows := windowsSince(begun)
		if well && (good.Load() != requests || second.count("m") != requests) {
			t.Errorf("%d of %d answered, %d by the second", good.Load(), requests, second.count("m"))
		}
		// A failed failover is known when it is over: those under way come on top.
		if most := (10*windows+clients)*10/9 + 1 + 10*windows; !well && second.count("m") > most {
			t.Errorf("the second was asked %d times, at most %d expected", second.count("m"), most)
		}
	}
}

// TestConcurrency: an upstream that is at its limit is passed over; if all are,
// the request is turned away as saturated, and no attempt is made.
func TestConcurrency(t *testing.T) {
	hold, entered := make(chan struct{}), make(chan struct{}, 8)
	slow := newAnswering(func(w http.ResponseWriter, model string) {
		entered <- struct{}{}
		<-hold
		answered(w, model)
	})
	other := newAnswering(answered)
	r := newRing(t)
	limited := func(u *registry.Upstream) { u.Concurrency, u.Provider = 1, "p" }
	r.upstream("slow", "us-east", "openai", provider(t, slow), limited)
	r.upstream("other", "us-east", "openai", provider(t, other), limited)
	r.route("both", registry.Target{Upstream: "slow", Model: "m"}, registry.Target{Upstream: "other", Model: "m", Order: 1})
	r.route("one", registry.Target{Upstream: "slow", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	var first sync.WaitGroup
	first.Go(func() {
		if reply, err := c.try(t.Context(), c.client(true), call{path: chat, key: key, body: ask("one", false)}); err != nil || reply.status != 200 {
			t.Errorf("%+v %v", reply, err)
		}
	})
	<-entered
	if reply := c.do(c.client(true), call{path: chat, key: key, body: ask("both", false)}); reply.status != 200 || reply.header.Get("idc-upstream") != "other" || reply.header.Get("idc-attempts") != "1" {
		t.Errorf("%d %v", reply.status, reply.header)
	}
	reply := c.do(c.client(true), call{path: chat, key: key, body: ask("one", false)})
	reply.wantError(t, dialect.OpenAI, dialect.UpstreamSaturated)
	if reply.header.Get("idc-attempts") != "0" || slow.count("m") != 1 {
		t.Errorf("%v, asked %d", reply.header, slow.count("m"))
	}
	close(hold)
	first.Wait()
	if reply := c.do(c.client(true), call{path: chat, key: key, body: ask("one", false)}); reply.status != 200 {
		t.Errorf("its place was not given back: %d %s", reply.status, reply.body)
	}
}

// TestPausedUpstreams: an upstream that asks to be left alone is left alone
// by the requests that follow, as long as another can serve them.
func TestPausedUpstreams(t *testing.T) {
	limited := newAnswering(func(w http.ResponseWriter, _ string) {
		w.Header().Set("retry-after", "20")
		w.WriteHeader(http.StatusTooManyRequests)
	})
	other := newAnswering(answered)
	r := newRing(t)
	same := func(u *registry.Upstream) { u.Provider = "p" }
	r.upstream("limited", "us-east", "openai", provider(t, limited), same)
	r.upstream("other", "us-east", "openai", provider(t, other), same)
	r.route("m", registry.Target{Upstream: "limited", Model: "m"}, registry.Target{Upstream: "other", Model: "m", Order: 1})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.load()
	for i, attempts := range []string{"2", "1", "1", "1"} {
		reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)})
		if reply.status != 200 || reply.header.Get("idc-attempts") != attempts {
			t.Errorf("%d: %d after %s attempts", i, reply.status, reply.header.Get("idc-attempts"))
		}
	}
	if limited.count("m") != 1 {
		t.Errorf("asked %d times", limited.count("m"))
	}
}

// TestPeerThatDiesHasSpentItsGrant: what a peer was granted counts when it does
// not say how much of it it made; one attempt is left for somebody else, and
// never more than three are made in all.
func TestPeerThatDiesHasSpentItsGrant(t *testing.T) {
	r := newRing(t)
	up := newAnswering(status(500))
	url := provider(t, up)
	for _, region := range []string{"eu-fra", "ap-sg"} {
		r.upstream("up-"+region, region, "openai", url, func(u *registry.Upstream) { u.Provider = "p" })
	}
	r.route("m", registry.Target{Upstream: "up-eu-fra", Model: "m"}, registry.Target{Upstream: "up-ap-sg", Model: "m"})
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us")
	r.start("ap-sg", "apac")
	// The node of eu-fra takes requests and dies; it answers probes, so that it is nearest.
	granted := make(chan int, 8)
	dying := r.fakePeer("eu-fra", "eu", func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == relay.ProbePath {
			return
		}
		n, _ := strconv.Atoi(req.Header.Get(relay.HeaderLeft))
		granted <- n
		panic(http.ErrAbortHandler)
	})
	r.mu.Lock()
	r.cells["eu-fra"] = dying
	r.mu.Unlock()
	r.load()
	poll(t, "a round trip to eu-fra", func() bool {
		reply := c.do(c.client(true), call{path: chat, key: key, body: ask("m", false), header: map[string]string{"idc-region-hint": "eu-fra"}})
		reply.wantError(t, dialect.OpenAI, dialect.UpstreamError)
		return len(granted) > 0
	})
	if n := <-granted; n != 2 {
		t.Errorf("the peer was granted %d of three attempts, with another region in reserve", n)
	}
	if n := up.count("m"); n != 1 {
		t.Errorf("%d attempts were made after the peer had died with two, want 1", n)
	}
}

// fakePeer is a region's node that is only a peer listener.
func (r *ring) fakePeer(region, jurisdiction string, h http.HandlerFunc) *cell {
	r.t.Helper()
	node, err := r.ca.IssueNode(identity.ID{Region: region, Role: identity.RoleData, Node: region + "-d1"}, []net.IP{net.IPv4(127, 0, 0, 1)}, time.Hour)
	if err != nil {
		r.t.Fatal(err)
	}
	bundle, err := identity.NewBundle(node.Chain, node.Key, node.Roots)
	if err != nil {
		r.t.Fatal(err)
	}
	l := listen(r.t)
	server := &http.Server{Handler: h, TLSConfig: bundle.Server([]string{"h2"}, identity.AllowData("")), ErrorLog: log.New(io.Discard, "", 0)}
	var done sync.WaitGroup
	done.Go(func() { _ = server.ServeTLS(l, "", "") })
	r.t.Cleanup(func() { _ = server.Close(); done.Wait() })
	return &cell{ring: r, region: region, node: region + "-d1", jurisdiction: jurisdiction, store: view.New(view.Config{}), peer: l.Addr().String()}
}

// TestLimitsOfModels: an upstream that turns requests for one model away is not
// thereby closed to those for another.
func TestLimitsOfModels(t *testing.T) {
	const many = 12
	var inside atomic.Int32
	together := make(chan struct{})
	up := newAnswering(func(w http.ResponseWriter, model string) {
		if model == "limited" {
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		if inside.Add(1) == many {
			close(together)
		}
		select {
		case <-together:
			answered(w, model)
		case <-time.After(10 * time.Second):
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, up))
	for _, m := range []string{"limited", "free"} {
		r.route(m, registry.Target{Upstream: "up", Model: m})
	}
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.start("us-east", "us", dataplane.Tunables{ProbeEvery: time.Hour, Upstreams: breaker.Rules{Run: 1 << 30, Least: 1 << 30}})
	r.load()
	cl := c.client(true)
	for range 5 {
		c.do(cl, call{path: chat, key: key, body: ask("limited", false)}).wantError(t, dialect.OpenAI, dialect.UpstreamSaturated)
	}
	var all sync.WaitGroup
	for range many { // more at once than a limit that fell to its floor lets through
		all.Go(func() {
			if reply, err := c.try(t.Context(), cl, call{path: chat, key: key, body: ask("free", false)}); err != nil || reply.status != 200 {
				t.Errorf("%+v %v", reply, err)
			}
		})
	}
	all.Wait()
}
