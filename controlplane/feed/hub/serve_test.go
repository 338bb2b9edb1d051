package hub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
	"ringmain/internal/testkit/feedkit"
)

func TestResumeOrReset(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := newNode(ca, "eu-fra", "c1", func(c *Config) { c.Ring = 8 })
	h := feedkit.Fill(n, "eu", "eu-fra", 30, "eu-fra")
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	w := feedkit.NewTwin()
	stop := w.Watch(t, k, "eu-fra", nil, n)
	w.Same(t, n, "eu")
	if w.Resets != 1 {
		t.Errorf("an empty watcher took %d snapshots", w.Resets)
	}
	_ = stop()
	for range 8 { // as many as the ring holds
		n.Accept(h.Next())
	}
	stop = w.Watch(t, k, "eu-fra", nil, n)
	w.Same(t, n, "eu")
	if w.Resets != 1 {
		t.Error("a watcher within the ring was reset")
	}
	_ = stop()
	for range 9 {
		n.Accept(h.Next())
	}
	stop = w.Watch(t, k, "eu-fra", nil, n)
	w.Same(t, n, "eu")
	if w.Resets != 2 {
		t.Error("a watcher before the ring was not reset")
	}
	_ = stop()
	n.Restart() // an empty ring at the state's position
	w.Watch(t, k, "eu-fra", nil, n)
	for range 4 {
		n.Accept(h.Next())
	}
	w.Same(t, n, "eu")
	if w.Resets != 2 {
		t.Error("a watcher at the position of a restarted node was reset")
	}
	hubOf(n).Reset("eu") // the state took a snapshot over: same point, nothing to send
	n.Accept(h.Next())
	w.Same(t, n, "eu")
	if w.Resets != 2 {
		t.Error("an up-to-date watcher was reset")
	}
}

// TestForkIsReset: the watcher followed a former home whose tail was cut.
func TestForkIsReset(t *testing.T) {
	ca := feedkit.NewCA(t)
	a, b := newNode(ca, "eu-fra", "c1", nil), newNode(ca, "eu-fra", "c2", nil)
	ha := feedkit.NewHistory("eu", "eu-fra", 1)
	hb := feedkit.NewHistory("eu", "eu-fra", 1)
	a.Accept(ha.Open("eu-fra", "eu-fra"))
	b.Accept(hb.Open("eu-fra", "eu-fra"))
	for range 5 {
		a.Accept(ha.Next())
		b.Accept(hb.Next())
	}
	for range 6 {
		a.Accept(ha.Entry(registry.Change{Op: registry.OpPut, Record: ha.Key(ha.NewKey())}))
	}
	b.Accept(hb.Open("eu-fra", "eu-fra"))
	b.Accept(hb.Entry(registry.Change{Op: registry.OpPut, Record: hb.Key(hb.NewKey())}))
	c := newNode(ca, "eu-fra", "c3", nil) // as b, and past the watcher's sequence
	c.Accept(feedkit.NewHistory("eu", "eu-fra", 1).Open("eu-fra", "eu-fra"))
	hc := feedkit.NewHistory("eu", "eu-fra", 1)
	hc.Open("eu-fra", "eu-fra")
	for range 5 {
		c.Accept(hc.Next())
	}
	c.Accept(hc.Open("eu-fra", "eu-fra"))
	for range 20 {
		c.Accept(hc.Next())
	}
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	w := feedkit.NewTwin()
	stop := w.Watch(t, k, "eu-fra", nil, a)
	w.Same(t, a, "eu")
	_ = stop()
	stop = w.Watch(t, k, "eu-fra", nil, b) // higher epoch, lower sequence
	w.Same(t, b, "eu")
	if w.Resets != 2 {
		t.Errorf("%d resets", w.Resets)
	}
	_ = stop()
	other := feedkit.NewTwin()
	stop = other.Watch(t, k, "eu-fra", nil, a)
	other.Same(t, a, "eu")
	_ = stop()
	other.Watch(t, k, "eu-fra", nil, c) // higher epoch, higher sequence
	other.Same(t, c, "eu")
	if other.Resets != 2 {
		t.Errorf("%d resets", other.Resets)
	}
}

// TestTakeover: the new home sends its predecessor's entries on, under its own
// epoch, to a region that lacks them; the former home sends none of the shard.
func TestTakeover(t *testing.T) {
	ca := feedkit.NewCA(t)
	fra, ber := newNode(ca, "eu-fra", "c1", nil), newNode(ca, "eu-ber", "c1", nil)
	h := feedkit.NewHistory("eu", "eu-fra", 1)
	both := func(e *registry.Entry) { fra.Accept(e); ber.Accept(e) }
	both(h.Open("eu-fra", "eu-fra", "eu-ber", "eu-par"))
	k := ca.Caller("eu-par", identity.RoleControl, "c1")
	homed := func(c *feed.WatchConfig) { c.Homed = true }
	w := feedkit.NewTwin()
	stop := w.Watch(t, k, "eu-fra", homed, fra)
	w.Same(t, fra, "eu")
	_ = stop()
	at := w.From()["eu"]
	for range 5 {
		both(h.Next())
	}
	both(h.Open("eu-ber", "eu-fra", "eu-ber", "eu-par"))
	both(h.Next())
	w.Sender = controlplane.Epoch{}
	stop = w.Watch(t, k, "eu-fra", homed, fra)
	feedkit.Eventually(t, func() string {
		w.Mu.Lock()
		defer w.Mu.Unlock()
		if len(w.Beats) < 4 {
			return "no heartbeats"
		}
		return ""
	})
	_ = stop()
	if got := w.From()["eu"]; got != at {
		t.Errorf("the former home took the copy from %v to %v", at, got)
	}
	w.Watch(t, k, "eu-ber", homed, ber)
	w.Same(t, ber, "eu")
	if want := h.At.Epoch; w.Sender != want || w.Resets != 1 {
		t.Errorf("an entry came from sender %v, want %v; %d resets", w.Sender, want, w.Resets)
	}
}

// TestAheadIsHeld: a node that is behind its watcher takes nothing back.
func TestAheadIsHeld(t *testing.T) {
	ca := feedkit.NewCA(t)
	a, b := newNode(ca, "eu-fra", "c1", nil), newNode(ca, "eu-fra", "c2", nil)
	h := feedkit.NewHistory("eu", "eu-fra", 1)
	var late []*registry.Entry
	for i := range 20 {
		next := h.Next
		if i == 0 {
			next = func() *registry.Entry { return h.Open("eu-fra", "eu-fra") }
		}
		e := next()
		a.Accept(e)
		if i < 10 {
			b.Accept(e)
		} else {
			late = append(late, e)
		}
	}
	other := newNode(ca, "eu-fra", "c3", nil)
	feedkit.Fill(other, "any-eu-fra", "eu-fra", 3, "eu-fra")
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	w := feedkit.NewTwin()
	stop := w.Watch(t, k, "eu-fra", nil, a)
	w.Same(t, a, "eu")
	_ = stop()
	at := w.From()["eu"]
	for i, n := range []*feedkit.Node{b, other} { // one is behind, one knows nothing of the shard
		w.Locked(func() { w.Beats = nil })
		stop = w.Watch(t, k, "eu-fra", nil, n)
		feedkit.Eventually(t, func() string {
			w.Mu.Lock()
			defer w.Mu.Unlock()
			if len(w.Beats) < 3 {
				return "no heartbeats"
			}
			return ""
		})
		if n == b {
			b.Accept(late...)
			b.Accept(h.Next())
			w.Same(t, b, "eu")
			at = w.From()["eu"]
		}
		_ = stop()
		if w.From()["eu"] != at || w.Resets != 1+i { // the other brought a shard of its own
			t.Errorf("at %v after %d resets, want %v after %d", w.From()["eu"], w.Resets, at, 1+i)
		}
	}
	// A server that stays behind is left for another.
	w.Watch(t, k, "eu-fra", func(c *feed.WatchConfig) { c.Patience = 300 * time.Millisecond }, other, b)
	b.Accept(h.Next())
	w.Same(t, b, "eu")
}

func TestAdriftIsLeft(t *testing.T) {
	ca := feedkit.NewCA(t)
	var stood atomic.Int64 // 0: its leader is there
	a := newNode(ca, "eu-fra", "c1", func(c *Config) {
		c.Contact = func() time.Time {
			if ms := stood.Load(); ms > 0 {
				return time.UnixMilli(ms)
			}
			return time.Now()
		}
	})
	b := newNode(ca, "eu-fra", "c2", nil)
	h := feedkit.NewHistory("eu", "eu-fra", 1)
	e := h.Open("eu-fra", "eu-fra")
	a.Accept(e)
	b.Accept(e)
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	w := feedkit.NewTwin()
	stop := func() error { return nil }
	for a.Watchers() == 0 { // where a watch begins is drawn
		_ = stop()
		stop = w.Watch(t, k, "eu-fra", func(c *feed.WatchConfig) { c.Patience = 300 * time.Millisecond }, a, b)
		w.Same(t, a, "eu")
		feedkit.Eventually(t, func() string {
			if a.Watchers()+b.Watchers() != 1 {
				return "not one watcher"
			}
			return ""
		})
	}
	stood.Store(time.Now().UnixMilli())
	b.Accept(h.Next(), h.Next()) // the leader goes on without a
	w.Same(t, b, "eu")
}

// TestWhoSeesWhat: visibility follows the certificate.
func TestWhoSeesWhat(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := newNode(ca, "eu-fra", "c1", nil)
	feedkit.Fill(n, "eu", "eu-fra", 3, "eu-fra", "eu-ber")
	feedkit.Fill(n, "any-eu-fra", "eu-fra", 3, "eu-fra", "eu-ber", "us-east")
	feedkit.Fill(n, "any-us-east", "us-east", 3, "eu-fra", "eu-ber", "us-east")
	pinned := feed.Verdict{Key: "key_eu_0000000000000001", Revision: 1}
	free := feed.Verdict{Key: "key_any_0000000000000001", Revision: 1}
	hubOf(n).Board().PushVerdicts([]feed.Verdict{pinned, free})
	hubOf(n).Board().PushRevocations([]registry.Revocation{
		{Kind: registry.KindKey, ID: "key_eu_0000000000000002", Shard: "eu", At: 1},
		{Kind: registry.KindKey, ID: "key_any_0000000000000002", Shard: "any-us-east", At: 1}})
	for _, c := range []struct {
		region, role  string
		homed         bool
		want          []controlplane.Shard
		hints, passes int
	}{
		{"eu-fra", identity.RoleData, false, []controlplane.Shard{"any-eu-fra", "any-us-east", "eu"}, 2, 2},
		{"eu-fra", identity.RoleControl, false, []controlplane.Shard{"any-eu-fra", "any-us-east", "eu"}, 2, 2},
		{"eu-ber", identity.RoleControl, true, []controlplane.Shard{"any-eu-fra", "eu"}, 2, 2},
		{"us-east", identity.RoleControl, true, []controlplane.Shard{"any-eu-fra"}, 1, 1},
		{"us-east", identity.RoleControl, false, []controlplane.Shard{"any-eu-fra", "any-us-east"}, 1, 1},
		{"ap-sg", identity.RoleControl, true, nil, 0, 1},
	} {
		w := feedkit.NewTwin()
		stop := w.Watch(t, ca.Caller(c.region, c.role, "x1"), "eu-fra", func(cfg *feed.WatchConfig) { cfg.Homed, cfg.Verdicts = c.homed, true }, n)
		feedkit.Eventually(t, func() string {
			w.Mu.Lock()
			defer w.Mu.Unlock()
			if len(w.Beats) < 3 || w.Arriving != nil {
				return "no heartbeats"
			}
			return ""
		})
		_ = stop()
		var got, offered []controlplane.Shard
		for s := range w.Shards {
			got = append(got, s)
		}
		for s := range w.Beats[2].Position {
			offered = append(offered, s)
		}
		slices.Sort(got)
		slices.Sort(offered)
		if !slices.Equal(got, c.want) || !slices.Equal(offered, c.want) || len(w.Hints) != c.hints || len(w.Verdicts) != c.passes {
			t.Errorf("%s %s homed %v: got %v, offered %v, %d hints, %d verdicts", c.role, c.region, c.homed, got, offered, len(w.Hints), len(w.Verdicts))
		}
	}
}

func TestRefused(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := newNode(ca, "eu-fra", "c1", nil)
	feedkit.Fill(n, "eu", "eu-fra", 3, "eu-fra")
	watch := func(cluster string) []byte {
		b, _ := feed.Marshal(feed.WatchRequest{Cluster: cluster})
		return b
	}
	batch, _ := feed.Marshal(feed.Batch{Cluster: feedkit.Cluster, Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: "key_eu_0000000000000001", Shard: "eu"}}})
	for _, c := range []struct {
		region, role, method, path string
		body                       []byte
		want                       int
	}{
		{"us-east", identity.RoleData, "POST", feed.PathWatch, watch(feedkit.Cluster), 403},
		{"us-east", identity.RoleData, "POST", feed.PathVerdicts, batch, 403},
		{"eu-fra", identity.RoleData, "POST", feed.PathWatch, watch("other"), 403},
		{"eu-fra", identity.RoleData, "POST", feed.PathWatch, []byte("{}"), 400},
		{"eu-fra", identity.RoleData, "POST", feed.PathWatch, append(watch(feedkit.Cluster), 0), 400},
		{"eu-fra", identity.RoleData, "POST", feed.PathWatch, make([]byte, feed.MaxBody+1), 413},
		{"eu-fra", identity.RoleData, "POST", feed.PathRevoke, batch, 403},
		{"eu-fra", identity.RoleData, "POST", feed.PathVerdicts, batch, 400},
		{"eu-fra", identity.RoleData, "GET", feed.PathVerdicts, nil, 403},
		{"eu-fra", identity.RoleData, "GET", feed.PathWatch, nil, 405},
		{"us-east", identity.RoleControl, "POST", feed.PathRevoke, batch, 204},
	} {
		req, _ := http.NewRequest(c.method, "https://"+n.Addr+c.path, bytes.NewReader(c.body))
		resp, err := ca.Caller(c.region, c.role, "x1").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s %s %s: %d %s, want %d", c.role, c.region, c.method, c.path, resp.StatusCode, text, c.want)
		}
	}
	if hubOf(n).Board().Announced(registry.KindKey, "key_eu_0000000000000001") {
		t.Error("a region that is no member revoked a pinned key")
	}
}

func TestUnknownEntryEndsWatch(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := newNode(ca, "eu-fra", "c1", nil)
	feedkit.Fill(n, "eu", "eu-fra", 3, "eu-fra")
	calls := 0
	err := feed.Watch(t.Context(), feed.WatchConfig{Cluster: feedkit.Cluster, Region: "eu-fra", Targets: feed.Fixed(n.Addr),
		HTTP: ca.Caller("eu-fra", identity.RoleData, "d1").Client, BackoffMin: time.Millisecond,
		From: func() controlplane.Position { return nil },
		Sink: func(*feed.Frame) error {
			if calls++; calls < 3 {
				return errors.New("try again")
			}
			return fmt.Errorf("entry: %w", controlplane.ErrUnknownEntry)
		}})
	if !errors.Is(err, controlplane.ErrUnknownEntry) || calls != 3 {
		t.Errorf("%v after %d calls", err, calls)
	}
}

// TestSharedSnapshot: a herd takes one encoding.
func TestSharedSnapshot(t *testing.T) {
	ca := feedkit.NewCA(t)
	var views atomic.Int64
	n := newNode(ca, "eu-fra", "c1", nil)
	src := hubOf(n)
	src.cfg.Source = viewFunc(func(f func(*ledger.State)) { views.Add(1); n.View(f) })
	h := feedkit.Fill(n, "eu", "eu-fra", 2000, "eu-fra")
	const herd = 12
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	var twins [herd]*feedkit.Twin
	for i := range twins {
		twins[i] = feedkit.NewTwin()
		twins[i].Watch(t, k, "eu-fra", nil, n)
	}
	for range 20 {
		n.Accept(h.Next())
	}
	for _, w := range twins {
		w.Same(t, n, "eu")
	}
	if got := views.Load(); got > herd+4 { // one each to refresh, and the snapshot's
		t.Errorf("the state was viewed %d times for %d watchers", got, herd)
	}
}

type viewFunc func(func(*ledger.State))

func (v viewFunc) View(f func(*ledger.State)) { v(f) }

// TestAdmission: watchers and snapshots beyond the limits get 503 with Retry-After.
func TestAdmission(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := newNode(ca, "eu-fra", "c1", func(c *Config) { c.Watchers = 2; c.Snapshots = 1 })
	feedkit.Fill(n, "eu", "eu-fra", 3, "eu-fra")
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	ask := func(from controlplane.Position) *http.Response {
		b, _ := feed.Marshal(feed.WatchRequest{Cluster: feedkit.Cluster, From: from})
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+n.Addr+feed.PathWatch, bytes.NewReader(b))
		resp, err := k.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	hub := hubOf(n)
	hub.slots <- struct{}{} // somebody is taking a snapshot
	if r := ask(nil); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit of snapshots: %d %v", r.StatusCode, r.Header)
	}
	at := n.Position()
	for range 2 {
		if r := ask(at); r.StatusCode != http.StatusOK {
			t.Errorf("a watcher that needs no snapshot: %d", r.StatusCode)
		}
	}
	<-hub.slots
	if r := ask(nil); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit of watchers: %d %v", r.StatusCode, r.Header)
	}
}
