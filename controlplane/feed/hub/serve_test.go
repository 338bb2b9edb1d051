package feed

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
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// fill gives n a shard with some history, and returns the history.
func fill(n *node, shard controlplane.Shard, home string, entries int, members ...string) *history {
	h := newHistory(shard, home, 1)
	n.accept(h.open(home, members...))
	for range entries {
		n.accept(h.next())
	}
	return h
}

func TestResumeOrReset(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", func(c *HubConfig) { c.Ring = 8 })
	h := fill(n, "eu", "eu-fra", 30, "eu-fra")
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	w := newTwin()
	stop := w.watch(t, k, "eu-fra", nil, n)
	w.same(t, n, "eu")
	if w.resets != 1 {
		t.Errorf("an empty watcher took %d snapshots", w.resets)
	}
	_ = stop()
	for range 8 { // as many as the ring holds
		n.accept(h.next())
	}
	stop = w.watch(t, k, "eu-fra", nil, n)
	w.same(t, n, "eu")
	if w.resets != 1 {
		t.Error("a watcher within the ring was reset")
	}
	_ = stop()
	for range 9 {
		n.accept(h.next())
	}
	stop = w.watch(t, k, "eu-fra", nil, n)
	w.same(t, n, "eu")
	if w.resets != 2 {
		t.Error("a watcher before the ring was not reset")
	}
	_ = stop()
	n.restart() // an empty ring at the state's position
	w.watch(t, k, "eu-fra", nil, n)
	for range 4 {
		n.accept(h.next())
	}
	w.same(t, n, "eu")
	if w.resets != 2 {
		t.Error("a watcher at the position of a restarted node was reset")
	}
	n.hub.Load().Reset("eu") // the state took a snapshot over: same point, nothing to send
	n.accept(h.next())
	w.same(t, n, "eu")
	if w.resets != 2 {
		t.Error("an up-to-date watcher was reset")
	}
}

// TestForkIsReset: the watcher followed a former home whose tail was cut.
func TestForkIsReset(t *testing.T) {
	ca := newTestCA(t)
	a, b := ca.node("eu-fra", "c1", nil), ca.node("eu-fra", "c2", nil)
	ha := newHistory("eu", "eu-fra", 1)
	hb := newHistory("eu", "eu-fra", 1)
	a.accept(ha.open("eu-fra", "eu-fra"))
	b.accept(hb.open("eu-fra", "eu-fra"))
	for range 5 {
		a.accept(ha.next())
		b.accept(hb.next())
	}
	for range 6 {
		a.accept(ha.entry(registry.Change{Op: registry.OpPut, Record: ha.key(ha.newKey())}))
	}
	b.accept(hb.open("eu-fra", "eu-fra"))
	b.accept(hb.entry(registry.Change{Op: registry.OpPut, Record: hb.key(hb.newKey())}))
	c := ca.node("eu-fra", "c3", nil) // as b, and past the watcher's sequence
	c.accept(newHistory("eu", "eu-fra", 1).open("eu-fra", "eu-fra"))
	hc := newHistory("eu", "eu-fra", 1)
	hc.open("eu-fra", "eu-fra")
	for range 5 {
		c.accept(hc.next())
	}
	c.accept(hc.open("eu-fra", "eu-fra"))
	for range 20 {
		c.accept(hc.next())
	}
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	w := newTwin()
	stop := w.watch(t, k, "eu-fra", nil, a)
	w.same(t, a, "eu")
	_ = stop()
	stop = w.watch(t, k, "eu-fra", nil, b) // higher epoch, lower sequence
	w.same(t, b, "eu")
	if w.resets != 2 {
		t.Errorf("%d resets", w.resets)
	}
	_ = stop()
	other := newTwin()
	stop = other.watch(t, k, "eu-fra", nil, a)
	other.same(t, a, "eu")
	_ = stop()
	other.watch(t, k, "eu-fra", nil, c) // higher epoch, higher sequence
	other.same(t, c, "eu")
	if other.resets != 2 {
		t.Errorf("%d resets", other.resets)
	}
}

// TestTakeover: the new home sends its predecessor's entries on, under its own
// epoch, to a region that lacks them; the former home sends none of the shard.
func TestTakeover(t *testing.T) {
	ca := newTestCA(t)
	fra, ber := ca.node("eu-fra", "c1", nil), ca.node("eu-ber", "c1", nil)
	h := newHistory("eu", "eu-fra", 1)
	both := func(e *registry.Entry) { fra.accept(e); ber.accept(e) }
	both(h.open("eu-fra", "eu-fra", "eu-ber", "eu-par"))
	k := ca.caller("eu-par", identity.RoleControl, "c1")
	homed := func(c *WatchConfig) { c.Homed = true }
	w := newTwin()
	stop := w.watch(t, k, "eu-fra", homed, fra)
	w.same(t, fra, "eu")
	_ = stop()
	at := w.from()["eu"]
	for range 5 {
		both(h.next())
	}
	both(h.open("eu-ber", "eu-fra", "eu-ber", "eu-par"))
	both(h.next())
	w.sender = controlplane.Epoch{}
	stop = w.watch(t, k, "eu-fra", homed, fra)
	eventually(t, func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.beats) < 4 {
			return "no heartbeats"
		}
		return ""
	})
	_ = stop()
	if got := w.from()["eu"]; got != at {
		t.Errorf("the former home took the copy from %v to %v", at, got)
	}
	w.watch(t, k, "eu-ber", homed, ber)
	w.same(t, ber, "eu")
	if want := h.at.Epoch; w.sender != want || w.resets != 1 {
		t.Errorf("an entry came from sender %v, want %v; %d resets", w.sender, want, w.resets)
	}
}

// TestAheadIsHeld: a node that is behind its watcher takes nothing back.
func TestAheadIsHeld(t *testing.T) {
	ca := newTestCA(t)
	a, b := ca.node("eu-fra", "c1", nil), ca.node("eu-fra", "c2", nil)
	h := newHistory("eu", "eu-fra", 1)
	var late []*registry.Entry
	for i := range 20 {
		next := h.next
		if i == 0 {
			next = func() *registry.Entry { return h.open("eu-fra", "eu-fra") }
		}
		e := next()
		a.accept(e)
		if i < 10 {
			b.accept(e)
		} else {
			late = append(late, e)
		}
	}
	other := ca.node("eu-fra", "c3", nil)
	fill(other, "any-eu-fra", "eu-fra", 3, "eu-fra")
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	w := newTwin()
	stop := w.watch(t, k, "eu-fra", nil, a)
	w.same(t, a, "eu")
	_ = stop()
	at := w.from()["eu"]
	for i, n := range []*node{b, other} { // one is behind, one knows nothing of the shard
		w.locked(func() { w.beats = nil })
		stop = w.watch(t, k, "eu-fra", nil, n)
		eventually(t, func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.beats) < 3 {
				return "no heartbeats"
			}
			return ""
		})
		if n == b {
			b.accept(late...)
			b.accept(h.next())
			w.same(t, b, "eu")
			at = w.from()["eu"]
		}
		_ = stop()
		if w.from()["eu"] != at || w.resets != 1+i { // the other brought a shard of its own
			t.Errorf("at %v after %d resets, want %v after %d", w.from()["eu"], w.resets, at, 1+i)
		}
	}
	// A server that stays behind is left for another.
	w.watch(t, k, "eu-fra", func(c *WatchConfig) { c.Patience = 300 * time.Millisecond }, other, b)
	b.accept(h.next())
	w.same(t, b, "eu")
}

func TestAdriftIsLeft(t *testing.T) {
	ca := newTestCA(t)
	var stood atomic.Int64 // 0: its leader is there
	a := ca.node("eu-fra", "c1", func(c *HubConfig) {
		c.Contact = func() time.Time {
			if ms := stood.Load(); ms > 0 {
				return time.UnixMilli(ms)
			}
			return time.Now()
		}
	})
	b := ca.node("eu-fra", "c2", nil)
	h := newHistory("eu", "eu-fra", 1)
	e := h.open("eu-fra", "eu-fra")
	a.accept(e)
	b.accept(e)
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	w := newTwin()
	stop := func() error { return nil }
	for a.watchers() == 0 { // where a watch begins is drawn
		_ = stop()
		stop = w.watch(t, k, "eu-fra", func(c *WatchConfig) { c.Patience = 300 * time.Millisecond }, a, b)
		w.same(t, a, "eu")
		eventually(t, func() string {
			if a.watchers()+b.watchers() != 1 {
				return "not one watcher"
			}
			return ""
		})
	}
	stood.Store(time.Now().UnixMilli())
	b.accept(h.next(), h.next()) // the leader goes on without a
	w.same(t, b, "eu")
}

// TestWhoSeesWhat: visibility follows the certificate.
func TestWhoSeesWhat(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", nil)
	fill(n, "eu", "eu-fra", 3, "eu-fra", "eu-ber")
	fill(n, "any-eu-fra", "eu-fra", 3, "eu-fra", "eu-ber", "us-east")
	fill(n, "any-us-east", "us-east", 3, "eu-fra", "eu-ber", "us-east")
	pinned := Verdict{Key: "key_eu_0000000000000001", Revision: 1}
	free := Verdict{Key: "key_any_0000000000000001", Revision: 1}
	n.hub.Load().PushVerdicts([]Verdict{pinned, free})
	n.hub.Load().PushRevocations([]registry.Revocation{
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
		w := newTwin()
		stop := w.watch(t, ca.caller(c.region, c.role, "x1"), "eu-fra", func(cfg *WatchConfig) { cfg.Homed, cfg.Verdicts = c.homed, true }, n)
		eventually(t, func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.beats) < 3 || w.arriving != nil {
				return "no heartbeats"
			}
			return ""
		})
		_ = stop()
		var got, offered []controlplane.Shard
		for s := range w.shards {
			got = append(got, s)
		}
		for s := range w.beats[2].Position {
			offered = append(offered, s)
		}
		slices.Sort(got)
		slices.Sort(offered)
		if !slices.Equal(got, c.want) || !slices.Equal(offered, c.want) || len(w.hints) != c.hints || len(w.verdicts) != c.passes {
			t.Errorf("%s %s homed %v: got %v, offered %v, %d hints, %d verdicts", c.role, c.region, c.homed, got, offered, len(w.hints), len(w.verdicts))
		}
	}
}

func TestRefused(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", nil)
	fill(n, "eu", "eu-fra", 3, "eu-fra")
	watch := func(cluster string) []byte {
		b, _ := encMode.Marshal(WatchRequest{Cluster: cluster})
		return b
	}
	batch, _ := encMode.Marshal(Batch{Cluster: testCluster, Revocations: []registry.Revocation{{Kind: registry.KindKey, ID: "key_eu_0000000000000001", Shard: "eu"}}})
	for _, c := range []struct {
		region, role, method, path string
		body                       []byte
		want                       int
	}{
		{"us-east", identity.RoleData, "POST", PathWatch, watch(testCluster), 403},
		{"us-east", identity.RoleData, "POST", PathVerdicts, batch, 403},
		{"eu-fra", identity.RoleData, "POST", PathWatch, watch("other"), 403},
		{"eu-fra", identity.RoleData, "POST", PathWatch, []byte("{}"), 400},
		{"eu-fra", identity.RoleData, "POST", PathWatch, append(watch(testCluster), 0), 400},
		{"eu-fra", identity.RoleData, "POST", PathWatch, make([]byte, maxBody+1), 413},
		{"eu-fra", identity.RoleData, "POST", PathRevoke, batch, 403},
		{"eu-fra", identity.RoleData, "POST", PathVerdicts, batch, 400},
		{"eu-fra", identity.RoleData, "GET", PathVerdicts, nil, 403},
		{"eu-fra", identity.RoleData, "GET", PathWatch, nil, 405},
		{"us-east", identity.RoleControl, "POST", PathRevoke, batch, 204},
	} {
		req, _ := http.NewRequest(c.method, "https://"+n.addr+c.path, bytes.NewReader(c.body))
		resp, err := ca.caller(c.region, c.role, "x1").Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s %s %s: %d %s, want %d", c.role, c.region, c.method, c.path, resp.StatusCode, text, c.want)
		}
	}
	if n.hub.Load().hints.len() != 0 {
		t.Error("a region that is no member revoked a pinned key")
	}
}

func TestUnknownEntryEndsWatch(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", nil)
	fill(n, "eu", "eu-fra", 3, "eu-fra")
	calls := 0
	err := Watch(t.Context(), WatchConfig{Cluster: testCluster, Region: "eu-fra", Targets: Fixed(n.addr),
		HTTP: ca.caller("eu-fra", identity.RoleData, "d1").Client, BackoffMin: time.Millisecond,
		From: func() controlplane.Position { return nil },
		Sink: func(*Frame) error {
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
	ca := newTestCA(t)
	var views atomic.Int64
	n := ca.node("eu-fra", "c1", nil)
	src := n.hub.Load()
	src.cfg.Source = viewFunc(func(f func(*registry.State)) { views.Add(1); n.View(f) })
	h := fill(n, "eu", "eu-fra", 2000, "eu-fra")
	const herd = 12
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	var twins [herd]*twin
	for i := range twins {
		twins[i] = newTwin()
		twins[i].watch(t, k, "eu-fra", nil, n)
	}
	for range 20 {
		n.accept(h.next())
	}
	for _, w := range twins {
		w.same(t, n, "eu")
	}
	if got := views.Load(); got > herd+4 { // one each to refresh, and the snapshot's
		t.Errorf("the state was viewed %d times for %d watchers", got, herd)
	}
}

type viewFunc func(func(*registry.State))

func (v viewFunc) View(f func(*registry.State)) { v(f) }

// TestAdmission: watchers and snapshots beyond the limits get 503 with Retry-After.
func TestAdmission(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", func(c *HubConfig) { c.Watchers = 2; c.Snapshots = 1 })
	fill(n, "eu", "eu-fra", 3, "eu-fra")
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	ask := func(from controlplane.Position) *http.Response {
		b, _ := encMode.Marshal(WatchRequest{Cluster: testCluster, From: from})
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+n.addr+PathWatch, bytes.NewReader(b))
		resp, err := k.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	hub := n.hub.Load()
	hub.slots <- struct{}{} // somebody is taking a snapshot
	if r := ask(nil); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the limit of snapshots: %d %v", r.StatusCode, r.Header)
	}
	at := n.position()
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
