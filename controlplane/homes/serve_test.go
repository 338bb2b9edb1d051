package homes

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/ownership"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/strict"
	"ringmain/internal/testkit/synckit"
)

// TestWhoseWords: only a control node of this cluster is heard, it speaks for
// its own region, and only about shards that are that region's too. Whatever
// is refused changes nothing.
func TestWhoseWords(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, false, "us", "eu", "ap")
		w.startAll()
		defer w.stopAll()
		w.eventually(30*time.Second, "a home", func() bool { return w.regions[0].role() == "home" })
		w.same(30*time.Second, w.names()...)
		us := w.region("us")
		before, _ := us.copyOf()
		seal := func(cluster string, shard controlplane.Shard, e controlplane.Epoch) message {
			return &sealRequest{Cluster: cluster, Shard: shard, Epoch: e}
		}
		epoch := controlplane.Epoch{Counter: 9, Region: "eu"}
		data := identity.ID{Cluster: testCluster, Region: "us", Role: identity.RoleData, Node: "d1"}
		other := control("eu")
		other.Cluster = "another"
		id := func(i identity.ID) *identity.ID { return &i }
		for _, c := range []struct {
			what   string
			from   *identity.ID
			path   string
			body   any
			status int
		}{
			{"no certificate", nil, pathSeal, seal(testCluster, w.shard, epoch), 403},
			{"a data node", &data, pathSeal, seal(testCluster, w.shard, epoch), 403},
			{"a node of another cluster", &other, pathSeal, seal(testCluster, w.shard, epoch), 403},
			{"a body of another cluster", id(control("eu")), pathSeal, seal("another", w.shard, epoch), 403},
			{"the own region", id(control("us")), pathSeal, seal(testCluster, w.shard, controlplane.Epoch{Counter: 9, Region: "us"}), 403},
			{"an epoch of somebody else", id(control("ap")), pathSeal, seal(testCluster, w.shard, epoch), 403},
			{"a region that is no member", id(control("sa")), pathSeal, seal(testCluster, w.shard, controlplane.Epoch{Counter: 9, Region: "sa"}), 403},
			{"a shard that is not held", id(control("eu")), pathSeal, seal(testCluster, "jp", epoch), 404},
			{"an epoch beyond all counting", id(control("eu")), pathSeal, seal(testCluster, w.shard, controlplane.Epoch{Counter: 1 << 60, Region: "eu"}), 400},
			{"an epoch of the past", id(control("eu")), pathSeal, seal(testCluster, w.shard, controlplane.Epoch{Counter: 1, Region: "eu"}), 409},
			{"a tail that was not reported", id(control("eu")), pathTail, &tailRequest{Cluster: testCluster, Shard: w.shard, Epoch: epoch, Base: before.Last}, 409},
			{"a snapshot that was not reported", id(control("eu")), pathSnapshot, &tailRequest{Cluster: testCluster, Shard: w.shard, Epoch: epoch, Base: before.Last}, 409},
			{"a snapshot for a stranger", id(control("sa")), pathSnapshot, &tailRequest{Cluster: testCluster, Shard: w.shard, Epoch: epoch, Base: before.Last}, 403},
			{"a digest for a stranger", id(control("sa")), pathDigest, &digestRequest{Cluster: testCluster, Shard: w.shard, At: before.Last}, 403},
			{"revocations of a stranger", id(control("sa")), pathRevoke, &revokeRequest{Cluster: testCluster, Shard: w.shard,
				Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: keyID("k"), Shard: w.shard, At: 1}}}, 403},
			{"a promise of a stranger", id(control("sa")), pathWord, &words{Cluster: testCluster, Words: []Word{{Shard: w.shard, Promised: controlplane.Epoch{Counter: 9, Region: "sa"}}}}, 200},
			{"garbage", id(control("eu")), pathWord, "garbage", 400},
			{"an unknown field", id(control("eu")), pathWord, map[int]any{1: testCluster, 99: true}, 400},
			{"too much", id(control("eu")), pathWord, strings.Repeat("x", maxBody), 400},
		} {
			b, err := strict.Marshal(c.body)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "https://us:1"+c.path, bytes.NewReader(b))
			r.TLS = nil
			if c.from != nil {
				r.TLS = certOf(*c.from)
			}
			rec := httptest.NewRecorder()
			us.homes.Load().Handler().ServeHTTP(rec, r)
			if rec.Code != c.status {
				t.Errorf("%s: %d %s, want %d", c.what, rec.Code, strings.TrimSpace(rec.Body.String()), c.status)
			}
			if c.status >= 400 && c.status != 409 && len(strings.TrimSpace(rec.Body.String())) < 10 {
				t.Errorf("%s: it is not said why", c.what)
			}
		}
		time.Sleep(3 * time.Second)
		after, _ := us.copyOf()
		if us.role() != "home" || after.Promised != before.Promised || after.Last != before.Last {
			t.Errorf("something was changed: %+v, before %+v", after, before)
		}
	})
}

// TestFormerLifeSealsNothing: once a region's later life is a member, peers of
// its former one cannot have the shard sealed; the later life can.
func TestFormerLifeSealsNothing(t *testing.T) {
	synckit.Test(t, func(t *testing.T) {
		p := &player{t: t}
		defer func() { p.w.stopAll() }()
		p.play(`
regions us eu ap
write a at us multi
= confirmed
move eu
= home
until us is follower
recover us
until us is outside
wait 3s
takeover eu add us
= home
until us is follower
`)
		us, eu := p.w.region("us"), p.w.region("eu")
		before, _ := eu.copyOf()
		for _, c := range []struct {
			counter uint64
			status  int
		}{{before.Promised.Counter + 1, http.StatusForbidden}, {us.lives(us.log), http.StatusOK}} {
			b, err := strict.Marshal(&sealRequest{Cluster: testCluster, Shard: p.w.shard, Epoch: controlplane.Epoch{Counter: c.counter, Region: "us"}})
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://eu:1"+pathSeal, bytes.NewReader(b))
			r.TLS = certOf(control("us"))
			rec := httptest.NewRecorder()
			eu.homes.Load().Handler().ServeHTTP(rec, r)
			if rec.Code != c.status {
				t.Errorf("epoch %d: %d %s, want %d", c.counter, rec.Code, strings.TrimSpace(rec.Body.String()), c.status)
			}
		}
	})
}

// TestUnknownRegionIsNotAsked: a shard may have a member that this node's
// configuration does not name, and whose nodes it remembers all the same.
func TestUnknownRegionIsNotAsked(t *testing.T) {
	c := newClient(&Config{Addresses: func(string) []string { return []string{"ap:1"} }, HTTP: func(string) *http.Client { return nil }})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.ask(ctx, "ap", pathWord, &words{}, new(words)); err == nil || !strings.Contains(err.Error(), "configuration") {
		t.Errorf("it says %v", err)
	}
}

// TestNotTheLeader: a node that does not lead names who does.
func TestNotTheLeader(t *testing.T) {
	h, err := Open(context.Background(), Config{Cluster: testCluster, Region: "us", Node: "us-c2", Store: follower{},
		Addresses: func(string) []string { return nil }, HTTP: func(string) *http.Client { return http.DefaultClient }})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	b, err := strict.Marshal(&words{Cluster: testCluster})
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://us:1"+pathWord, bytes.NewReader(b))
	r.TLS = certOf(control("eu"))
	rec := httptest.NewRecorder()
	h.Handler().ServeHTTP(rec, r)
	if rec.Code != http.StatusMisdirectedRequest || rec.Header().Get(headerLeader) != "us-c1:9" {
		t.Errorf("%d, leader %q: %s", rec.Code, rec.Header().Get(headerLeader), rec.Body)
	}
}

// follower is the log of a node that does not lead.
type follower struct{ Store }

func (follower) Leading() <-chan bool {
	c := make(chan bool, 1)
	c <- false
	return c
}
func (follower) Leader() (node, addr string, ok bool) { return "us-c1", "us-c1:9", true }

// FuzzDecode: whatever a peer sends is read or refused, and what is read means
// the same when sent on.
func FuzzDecode(f *testing.F) {
	e := controlplane.Epoch{Counter: 2, Region: "eu"}
	p := controlplane.Point{Epoch: controlplane.Epoch{Counter: 1, Region: "us"}, Seq: 7}
	spans := []ownership.Span{{Epoch: p.Epoch, Start: 1, Members: []ownership.Member{{Region: "eu"}, {Region: "us", Since: 3}}}}
	for i, m := range []message{
		&words{Cluster: "c", Words: []Word{{Shard: "eu", Since: 1, Promised: e, Last: p}}},
		&sealRequest{Cluster: "c", Shard: "eu", Epoch: e},
		&report{Shard: "eu", Promised: e, Last: p, Spans: spans, Confirmed: 3},
		&tailRequest{Cluster: "c", Shard: "eu", Epoch: e, Base: p, After: p},
		&tailAnswer{Entries: [][]byte{{1, 2}}},
		&revokeRequest{Cluster: "c", Shard: "eu", Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: "key_eu_1", Shard: "eu", At: 1}}},
		&digestRequest{Cluster: "c", Shard: "eu", At: p},
		&digestAnswer{Digest: make([]byte, 32)},
	} {
		b, err := strict.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(byte(i), b)
		f.Add(byte(i), b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, kind byte, b []byte) {
		fresh := func() message {
			return []message{new(words), new(sealRequest), new(report), new(tailRequest), new(tailAnswer), new(revokeRequest), new(digestRequest), new(digestAnswer)}[kind%8]
		}
		m := fresh()
		if decode(bytes.NewReader(b), maxBody, m) != nil {
			return
		}
		again, err := strict.Marshal(m)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if err := decode(bytes.NewReader(again), maxAnswer, fresh()); err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if r, ok := m.(*report); ok { // a report is reasoned about at once
			c := ownership.Campaign{Self: ownership.Member{Region: "ap"}, Epoch: r.Promised}
			own := ownership.Copy{Promised: r.Promised}
			c.Hear(ownership.Report{From: c.Self, Copy: own}).Hear(ownership.Report{From: ownership.Member{Region: "us"}, Copy: r.copy()}).Next()
			own.Common(r.Last, r.Spans)
		}
	})
}

// TestDecodeBounds: no more is read than is allowed.
func TestDecodeBounds(t *testing.T) {
	endless := io.LimitReader(zeros{}, 1<<40)
	if err := decode(endless, maxBody, new(words)); err == nil {
		t.Error("an endless body was read")
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
