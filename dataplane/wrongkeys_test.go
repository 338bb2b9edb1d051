package dataplane_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/edge"
	"ringmain/dataplane/link"
)

// nat is us-east, the key of a customer, and makers of keys that are wrong, all
// of them behind one address.
func nat(t *testing.T, limits edge.Limits) (c *cell, key string, wrong func() string) {
	t.Helper()
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) })))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	_, target := r.org("target", "any", "verified", "live")
	key, _ = r.org("acme", "any", "verified", "live")
	tune := patient
	tune.Edge = limits
	c = r.start("us-east", "us", tune)
	r.load()
	return c, key, func() string {
		whole, err := apikey.NewSecretFor(target, rand.Reader)
		if err != nil {
			t.Error(err)
		}
		return whole.Reveal()
	}
}

// TestWrongKeysWait: whoever presents many wrong keys waits for the refusals,
// and a good key from the same address never does.
func TestWrongKeysWait(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%t", http2), func(t *testing.T) {
			c, key, wrong := nat(t, edge.Limits{Wrong: 5, Late: 400 * time.Millisecond, Held: 64})
			good := c.client(http2)
			if got := c.do(good, call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
				t.Fatal(got.body)
			}
			var strangers []*http.Client
			for range 16 { // handshakes take their time on a busy machine
				bad := c.client(http2)
				c.do(bad, call{method: http.MethodGet, path: "/livez"})
				strangers = append(strangers, bad)
			}
			ctx, stop := context.WithTimeout(t.Context(), 2*time.Second)
			defer stop()
			var mu sync.Mutex
			var took []time.Duration
			codes := map[string]int{}
			var flood sync.WaitGroup
			for _, bad := range strangers {
				flood.Go(func() {
					for ctx.Err() == nil {
						began := time.Now()
						got, err := c.try(ctx, bad, call{path: chat, key: wrong(), body: ask("m", false)})
						if err != nil {
							continue // the time is up
						}
						mu.Lock()
						took = append(took, time.Since(began))
						codes[got.header.Get("idc-error-code")]++
						mu.Unlock()
					}
				})
			}
			var goods []time.Duration
			for ctx.Err() == nil {
				began := time.Now()
				if got := c.do(good, call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
					t.Errorf("a good key from the flood's address: %d %s", got.status, got.body)
				}
				goods = append(goods, time.Since(began))
			}
			flood.Wait()
			slices.Sort(took)
			slices.Sort(goods)
			t.Logf("%d refused %v, median %v; %d good, median %v", len(took), codes, took[len(took)/2], len(goods), goods[len(goods)/2])
			// 10 at once, 16 that wait for 0.4 s at most in 2 s, and some that were on their way.
			if n := len(took); n < 20 || n > 10+16*7 {
				t.Errorf("%d wrong keys were refused in 2 s", n)
			}
			if took[len(took)/2] < 300*time.Millisecond {
				t.Errorf("half of the refusals came within %v", took[len(took)/2])
			}
			if most := took[len(took)/2] / 2; goods[len(goods)/2] > most {
				t.Errorf("half of the good answers took more than %v, half as long as the refusals", most)
			}
			// The strangers' alone were counted, with those whose client gave up at the end.
			if n := int(c.metric(t, "ringmain_wrong_keys_total")); n < len(took) || n > len(took)+len(strangers) {
				t.Errorf("%d keys were taken for wrong, %d wrong ones were refused", n, len(took))
			}
			if codes[string(dialect.InvalidAPIKey)]+codes[string(dialect.RateLimitExceeded)] != len(took) {
				t.Errorf("%v", codes)
			}
			poll(t, "nobody to wait", func() bool { return c.metric(t, "ringmain_wrong_keys_waiting") == 0 })
		})
	}
}

// TestWaitingHoldsNoPlace: refusals that wait are no requests under way, and
// neither a drain nor the end waits for long.
func TestWaitingHoldsNoPlace(t *testing.T) {
	c, key, wrong := nat(t, edge.Limits{Wrong: 1, Late: 10 * time.Second, Held: 64})
	var all sync.WaitGroup
	for range 30 {
		client := c.client(true)
		all.Go(func() { _, _ = c.try(t.Context(), client, call{path: chat, key: wrong(), body: ask("m", false)}) })
	}
	poll(t, "refusals that wait", func() bool { return c.metric(t, "ringmain_wrong_keys_waiting") >= 20 })
	poll(t, "their places", func() bool { return c.worker.Health().InFlight == 0 })
	c.fine(t, key)
	began := time.Now()
	c.close()
	all.Wait()
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the end waited for %v", took)
	}
}

// TestTooManyWait: beyond the bound of those that wait the connection ends, and
// a good key from the same address is answered on another, or on a shared one.
func TestTooManyWait(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%t", http2), func(t *testing.T) {
			c, key, wrong := nat(t, edge.Limits{Wrong: 2, Late: 600 * time.Millisecond, Held: 4})
			good := c.client(http2)
			c.do(good, call{path: chat, key: key, body: ask("m", false)})
			strangers := make([]*http.Client, 8) // one connection of HTTP/2 would be read no further
			for i := range strangers {
				strangers[i] = c.client(http2)
			}
			for _, clients := range [][]*http.Client{strangers, {good}} {
				var all sync.WaitGroup
				var mu sync.Mutex
				broken, answered := 0, 0
				for i := range 60 {
					all.Go(func() {
						_, err := c.try(t.Context(), clients[i%len(clients)], call{path: chat, key: wrong(), body: ask("m", false)})
						mu.Lock()
						defer mu.Unlock()
						if err != nil {
							broken++
						} else {
							answered++
						}
					})
				}
				for range 5 {
					if got := c.do(good, call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
						t.Errorf("%d %s", got.status, got.body)
					}
				}
				all.Wait()
				if broken == 0 || answered == 0 {
					t.Errorf("shared=%t: %d without an answer, %d with one", len(clients) == 1, broken, answered)
				}
			}
		})
	}
}

// TestRotatedKeyThatComesFirst: a new secret that is used before its record is
// here is not refused for good: if the record comes while the refusal waits,
// the request is served.
func TestRotatedKeyThatComesFirst(t *testing.T) {
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answerPlain(w) })))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	key, parsed := r.org("acme", "any", "verified", "live")
	tune := patient
	tune.Edge = edge.Limits{Wrong: 1, Late: 5 * time.Second}
	c := r.start("us-east", "us", tune)
	r.load()
	c.fine(t, key)
	fresh, err := apikey.NewSecretFor(parsed, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := c.client(true)
	var flood sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for range 8 { // the owner's address owes for somebody else
		flood.Go(func() { _, _ = c.try(ctx, client, call{path: chat, key: "idc_nonsense", body: ask("m", false)}) })
	}
	poll(t, "refusals that wait", func() bool { return c.metric(t, "ringmain_wrong_keys_waiting") >= 4 })
	answer := make(chan *reply, 1)
	go func() {
		got, err := c.try(t.Context(), client, call{path: chat, key: fresh.Reveal(), body: ask("m", false)})
		if err != nil {
			t.Error(err)
		}
		answer <- got
	}()
	poll(t, "the new secret to be refused, and to wait", func() bool { return c.metric(t, "ringmain_bcrypt_total") >= 2 })
	hash, err := cheapHash(fresh)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(r.state, func(rec *registry.Record) bool { return rec.Meta.ID == parsed.RecordID() })
	rotated, k := *r.state[i], *r.state[i].Key
	rotated.Meta.Revision++
	k.Hash, rotated.Key = hash, &k
	r.state[i] = &rotated
	c.load(r.state)
	if got := <-answer; got == nil || got.status != 200 {
		t.Errorf("%+v", got)
	}
	stop()
	flood.Wait()
}

// TestOwnFaultsDoNotCount: a node that cannot judge keys yet makes nobody wait.
func TestOwnFaultsDoNotCount(t *testing.T) {
	r := newRing(t)
	key, _ := r.org("acme", "any", "verified", "live")
	tune := patient
	tune.Edge = edge.Limits{Wrong: 1, Late: 5 * time.Second}
	c := r.start("us-east", "us", tune) // and loads nothing
	client := c.client(true)
	for range 20 {
		if got := c.do(client, call{path: chat, key: key, body: ask("m", false)}); got.header.Get("idc-error-code") != string(dialect.NotReady) {
			t.Fatalf("%d %s", got.status, got.body)
		}
	}
	if n := c.metric(t, "ringmain_wrong_keys_total"); n != 0 {
		t.Errorf("%v of them count as wrong", n)
	}
}

// TestEdgeLimitsAreRenewed: limits of a newer setup hold at once, and nothing
// that is open breaks.
func TestEdgeLimitsAreRenewed(t *testing.T) {
	c, key, wrong := nat(t, edge.Limits{Wrong: 1000})
	client := c.client(true)
	refuse := func(n int) time.Duration {
		began := time.Now()
		for range n {
			c.do(client, call{path: chat, key: wrong(), body: ask("m", false)})
		}
		return time.Since(began)
	}
	refuse(10)
	c.fine(t, key)
	if late := c.metric(t, "ringmain_wrong_keys_total"); late != 10 {
		t.Errorf("%v wrong keys were counted", late)
	}
	node, server := c.issue(time.Hour)
	setup := setupOf(c, node, server)
	setup.Edge = link.Edge{Wrong: 1, Late: 200 * time.Millisecond}
	if err := c.worker.Renew(setup); err != nil {
		t.Fatal(err)
	}
	if took := refuse(5); took < 600*time.Millisecond {
		t.Errorf("five refusals took %v", took)
	}
	c.fine(t, key)
}

// TestStrangersTakeNoPlace: on a full node a wrong key is still a wrong key, and
// strangers whose keys are being hashed keep nobody from the one place there is.
func TestStrangersTakeNoPlace(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	r := newRing(t)
	r.upstream("up", "us-east", "openai", provider(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		<-release
		answerPlain(w)
	})))
	r.route("m", registry.Target{Upstream: "up", Model: "m"})
	_, target := r.org("target", "any", "verified", "live")
	key, _ := r.org("acme", "any", "verified", "live")
	c := r.startWith("us-east", "us", 1, patient)
	t.Cleanup(free)
	r.load()
	good := make(chan *reply, 1)
	go func() { good <- c.do(c.client(true), call{path: chat, key: key, body: ask("m", false)}) }()
	<-asked
	for _, h2 := range []bool{false, true} {
		got := c.do(c.client(h2), call{path: chat, key: "idc_nonsense", body: ask("m", false)})
		got.wantError(t, dialect.OpenAI, dialect.InvalidAPIKey)
		got = c.do(c.client(h2), call{path: chat, key: key, body: ask("m", false)})
		got.wantError(t, dialect.OpenAI, dialect.CapacityShed)
	}
	free()
	if got := <-good; got.status != 200 {
		t.Fatal(got.body)
	}
	stop := make(chan struct{})
	var hashed sync.WaitGroup
	for range 4 { // at 80 ms each, some are always being hashed
		hashed.Go(func() {
			client := c.client(false)
			for {
				select {
				case <-stop:
					return
				default:
				}
				wrong, err := apikey.NewSecretFor(target, rand.Reader)
				if err != nil {
					t.Error(err)
					return
				}
				c.do(client, call{path: chat, key: wrong.Reveal(), body: ask("m", false)})
			}
		})
	}
	client := c.client(true)
	for range 50 {
		if got := c.do(client, call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
			t.Errorf("a good key beside strangers: %d %s", got.status, got.body)
		}
	}
	close(stop)
	hashed.Wait()
}

// TestManySourcesTogether: refusals beside those of many are answered at once
// over HTTP/2, and slow their connections down; good keys are served all along,
// on a connection that rested too, which then rests no more.
func TestManySourcesTogether(t *testing.T) {
	c, key, wrong := nat(t, edge.Limits{Wrong: 1000, WrongTotal: 5, Late: 100 * time.Millisecond})
	good := c.client(true)
	c.do(good, call{path: chat, key: key, body: ask("m", false)})
	var strangers []*http.Client
	for i := range byte(8) {
		bad := c.client(true)
		bad.Transport.(*http.Transport).DialContext = (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2+i)}}).DialContext // from where nobody is known
		c.do(bad, call{method: http.MethodGet, path: "/livez"})
		strangers = append(strangers, bad)
	}
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	var refused atomic.Int32
	var flood sync.WaitGroup
	for _, bad := range strangers {
		flood.Go(func() {
			for ctx.Err() == nil {
				if _, err := c.try(ctx, bad, call{path: chat, key: wrong(), body: ask("m", false)}); err == nil {
					refused.Add(1)
				}
			}
		})
	}
	var goods []time.Duration
	for ctx.Err() == nil {
		began := time.Now()
		if got := c.do(good, call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		}
		goods = append(goods, time.Since(began))
	}
	flood.Wait()
	slices.Sort(goods)
	if n := refused.Load(); n < 20 || n > 80 { // 10 at once, and 8 connections that rest for up to 1.5 s
		t.Errorf("%d wrong keys were refused in 3 s", n)
	}
	if half := goods[len(goods)/2]; half > 500*time.Millisecond { // strangers wait a second
		t.Errorf("half of the good answers took more than %v", half)
	}
	if n := c.metric(t, "ringmain_wrong_keys_waiting"); n != 0 {
		t.Errorf("%v wait", n)
	}
	known := strangers[0]
	c.do(known, call{path: chat, key: key, body: ask("m", false)})
	began := time.Now()
	for range 20 {
		if got := c.do(known, call{path: chat, key: key, body: ask("m", false)}); got.status != 200 {
			t.Errorf("%d %s", got.status, got.body)
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("20 good requests on what was a stranger's connection took %v", took)
	}
}
