package feed

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

func TestChooser(t *testing.T) {
	c := chooser{shun: time.Minute, failed: map[string]time.Time{}}
	now := time.Unix(1000, 0)
	all := []Target{{"v1:1", 1}, {"r1:1", 0}, {"v2:1", 1}, {"r2:1", 0}}
	last := func(n int) int { return n - 1 }
	is := func(want string, alone bool) {
		t.Helper()
		got, a, ok := c.pick(all, now, last)
		if !ok || got.Addr != want || a != alone {
			t.Errorf("picked %v (alone: %v), want %s", got, a, want)
		}
	}
	if _, _, ok := c.pick(nil, now, last); ok {
		t.Error("picked somebody from nobody")
	}
	is("r2:1", false)
	c.fail(all[3], now)
	is("r1:1", false)
	now = now.Add(time.Second)
	c.fail(all[1], now)
	is("v2:1", false)
	if c.outranked(all[0], all, now) {
		t.Error("readers that failed outrank a voter")
	}
	now = now.Add(time.Second)
	c.fail(all[2], now)
	c.fail(all[0], now)
	is("r2:1", true) // the oldest failure
	now = now.Add(time.Minute - 2*time.Second)
	is("r2:1", false)
	if !c.outranked(all[0], all, now) || c.outranked(all[1], all, now) {
		t.Error("a reader that may be well again is not seen")
	}
	all = all[:1]
	is("v1:1", true)
	if len(c.failed) != 1 {
		t.Errorf("remembers who is gone: %v", c.failed)
	}
}

// TestReadersFirst: watchers are with the reader, go to the voter while the
// reader's copy is old, hear there of a revocation that was pushed, and return.
func TestReadersFirst(t *testing.T) {
	ca := newTestCA(t)
	var stood atomic.Int64
	contact := func(c *HubConfig) {
		c.Contact = func() time.Time {
			if ms := stood.Load(); ms > 0 {
				return time.UnixMilli(ms)
			}
			return time.Now()
		}
	}
	reader, voter := ca.node("eu-fra", "r1", contact), ca.node("eu-fra", "c1", nil)
	h := newHistory("eu", "eu-fra", 1)
	both := func(es ...*registry.Entry) {
		reader.accept(es...)
		voter.accept(es...)
	}
	both(h.open("eu-fra", "eu-fra"))
	const watchers = 20
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	var all []*twin
	for range watchers {
		w := newTwin()
		w.watch(t, k, "eu-fra", func(c *WatchConfig) {
			c.Patience, c.Return = 300*time.Millisecond, 200*time.Millisecond
			c.Targets = func() []Target { return []Target{{voter.addr, 1}, {reader.addr, 0}} }
		})
		all = append(all, w)
	}
	at := func(n *node) {
		t.Helper()
		eventually(t, func() string {
			if got := n.watchers(); got != watchers {
				return fmt.Sprintf("%d watchers of %d; reader %d, voter %d", got, watchers, reader.watchers(), voter.watchers())
			}
			return ""
		})
	}
	at(reader)
	stood.Store(time.Now().UnixMilli())
	at(voter)
	e := h.entry(registry.Change{Op: registry.OpPut, Record: h.key(h.newKey())})
	voter.accept(e) // the reader gets none of it
	hint := registry.Revocation{Kind: registry.KindKey, ID: h.keys[0], Shard: "eu", At: 5}
	voter.hub.Load().PushRevocations([]registry.Revocation{hint})
	for _, w := range all {
		eventually(t, func() string {
			w.mu.Lock()
			defer w.mu.Unlock()
			if !slices.ContainsFunc(w.hints, func(r registry.Revocation) bool { return r.ID == hint.ID }) {
				return "a watcher that moved did not hear of the revocation"
			}
			return ""
		})
	}
	stood.Store(0)
	reader.accept(e)
	at(reader)
}

// TestMembersArePushed: at first, and once they are others; nothing to who did not ask.
func TestMembersArePushed(t *testing.T) {
	ca := newTestCA(t)
	var members atomic.Pointer[string]
	n := ca.node("eu-fra", "c1", func(c *HubConfig) {
		c.Members = func() []byte {
			if m := members.Load(); m != nil {
				return []byte(*m)
			}
			return nil
		}
	})
	fill(n, "eu", "eu-fra", 3, "eu-fra")
	var mu sync.Mutex
	var heard []string
	w, deaf := newTwin(), newTwin()
	k := ca.caller("eu-fra", identity.RoleData, "d1")
	w.watch(t, k, "eu-fra", func(c *WatchConfig) {
		c.Members = func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, string(b))
		}
	}, n)
	deaf.watch(t, k, "eu-fra", nil, n)
	for _, now := range []string{"c1 c2", "c1 c2 c3"} {
		members.Store(&now)
		eventually(t, func() string {
			mu.Lock()
			defer mu.Unlock()
			if len(heard) == 0 || heard[len(heard)-1] != now {
				return fmt.Sprintf("heard %q, want %q", heard, now)
			}
			return ""
		})
	}
	deaf.same(t, n, "eu")
	beats := func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return len(w.beats)
	}
	before := beats()
	eventually(t, func() string {
		if beats() < before+3 {
			return "no heartbeats"
		}
		return ""
	})
	mu.Lock()
	defer mu.Unlock()
	if len(heard) != 2 {
		t.Errorf("told %q: each once is enough", heard)
	}
}

// TestAbreast: a copy is as old as the last question to the leader that it has
// caught up with, also while the leader answers and heartbeats arrive.
func TestAbreast(t *testing.T) {
	ca := newTestCA(t)
	var leads atomic.Bool
	leads.Store(true)
	lead := ca.node("eu-fra", "c1", func(c *HubConfig) { c.Leads = leads.Load })
	own := ca.node("eu-fra", "c2", nil)
	h := newHistory("eu", "eu-fra", 1)
	e := h.open("eu-fra", "eu-fra")
	lead.accept(e)
	var leader atomic.Pointer[string]
	other := "c1"
	leader.Store(&other)
	a := NewAbreast(AbreastConfig{Region: "eu-fra", Node: "c2", Source: own, Every: 5 * time.Millisecond,
		HTTP:   ca.caller("eu-fra", identity.RoleControl, "c2").Client,
		Leader: func() (string, string, bool) { l := leader.Load(); return *l, lead.addr, *l != "" }})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Run(ctx) }()
	defer func() { cancel(); <-done }()
	stands := func(why string) {
		t.Helper()
		eventually(t, func() string { // what was asked before is through
			before := a.Contact()
			time.Sleep(30 * time.Millisecond)
			if a.Contact() != before {
				return "its age does not grow although " + why
			}
			return ""
		})
	}
	follows := func() {
		t.Helper()
		begun := time.Now()
		eventually(t, func() string {
			if !a.Contact().After(begun) {
				return "its copy stays old"
			}
			return ""
		})
	}
	stands("its copy is empty")
	if !a.Contact().IsZero() {
		t.Error("a copy that never was current has an age")
	}
	own.accept(e)
	follows()
	late := h.entry()
	lead.accept(late)
	stands("the last entry does not arrive")
	own.accept(late)
	follows()
	leads.Store(false)
	stands("nobody leads")
	leads.Store(true)
	follows()
	nobody := ""
	leader.Store(&nobody)
	stands("no leader is known")
	self := "c2"
	leader.Store(&self)
	follows()

	// Nobody else is told, and an answer by another node does not count.
	resp, err := ca.caller("us-east", identity.RoleControl, "x1").Get("https://" + lead.addr + PathPosition)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("another region is answered %d", resp.StatusCode)
	}
	if _, err := a.position(t.Context(), "c3", lead.addr); err == nil {
		t.Error("c1's answer was taken for c3's")
	}
	if at, err := a.position(t.Context(), "c1", lead.addr); err != nil || at["eu"].Compare(controlplane.Point{}) <= 0 {
		t.Errorf("position %v, %v", at, err)
	}
}

// TestSpread: many watchers do not wake at once, but for a revocation.
func TestSpread(t *testing.T) {
	n := newTestCA(t).node("eu-fra", "c1", nil)
	h := n.hub.Load()
	w := &watcher{hub: h, hintAt: h.hints.next}
	longest := func(d time.Duration) time.Duration { return d }
	is := func(watchers int, want time.Duration) {
		t.Helper()
		h.mu.Lock()
		h.watchers = watchers
		h.mu.Unlock()
		if got := w.spread(longest); got != want {
			t.Errorf("with %d watchers it waits up to %v, want %v", watchers, got, want)
		}
	}
	is(30, 0)
	is(1000, 30*time.Millisecond)
	is(4096, maxSpread)
	h.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: "key_any_0000000000000001", At: 5}})
	is(1000, 0)
	is(0, 0)
}
