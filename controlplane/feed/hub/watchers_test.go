package hub

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/feedkit"
)

// TestReadersFirst: watchers are with the reader, go to the voter while the
// reader's copy is old, hear there of a revocation that was pushed, and return.
func TestReadersFirst(t *testing.T) {
	ca := feedkit.NewCA(t)
	var stood atomic.Int64
	contact := func(c *Config) {
		c.Contact = func() time.Time {
			if ms := stood.Load(); ms > 0 {
				return time.UnixMilli(ms)
			}
			return time.Now()
		}
	}
	reader, voter := newNode(ca, "eu-fra", "r1", contact), newNode(ca, "eu-fra", "c1", nil)
	h := feedkit.NewHistory("eu", "eu-fra", 1)
	both := func(es ...*registry.Entry) {
		reader.Accept(es...)
		voter.Accept(es...)
	}
	both(h.Open("eu-fra", "eu-fra"))
	const watchers = 20
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	var all []*feedkit.Twin
	for range watchers {
		w := feedkit.NewTwin()
		w.Watch(t, k, "eu-fra", func(c *feed.WatchConfig) {
			c.Patience, c.Return = 300*time.Millisecond, 200*time.Millisecond
			c.Targets = func() []feed.Target { return []feed.Target{{Addr: voter.Addr, Rank: 1}, {Addr: reader.Addr}} }
		})
		all = append(all, w)
	}
	at := func(n *feedkit.Node) {
		t.Helper()
		feedkit.Eventually(t, func() string {
			if got := n.Watchers(); got != watchers {
				return fmt.Sprintf("%d watchers of %d; reader %d, voter %d", got, watchers, reader.Watchers(), voter.Watchers())
			}
			return ""
		})
	}
	at(reader)
	stood.Store(time.Now().UnixMilli())
	at(voter)
	e := h.Entry(registry.Change{Op: registry.OpPut, Record: h.Key(h.NewKey())})
	voter.Accept(e) // the reader gets none of it
	hint := registry.Revocation{Kind: registry.KindKey, ID: h.Keys[0], Shard: "eu", At: 5}
	hubOf(voter).Board().PushRevocations([]registry.Revocation{hint})
	for _, w := range all {
		feedkit.Eventually(t, func() string {
			w.Mu.Lock()
			defer w.Mu.Unlock()
			if !slices.ContainsFunc(w.Hints, func(r registry.Revocation) bool { return r.ID == hint.ID }) {
				return "a watcher that moved did not hear of the revocation"
			}
			return ""
		})
	}
	stood.Store(0)
	reader.Accept(e)
	at(reader)
}

// TestMembersArePushed: at first, and once they are others; nothing to who did not ask.
func TestMembersArePushed(t *testing.T) {
	ca := feedkit.NewCA(t)
	var members atomic.Pointer[string]
	n := newNode(ca, "eu-fra", "c1", func(c *Config) {
		c.Members = func() []byte {
			if m := members.Load(); m != nil {
				return []byte(*m)
			}
			return nil
		}
	})
	feedkit.Fill(n, "eu", "eu-fra", 3, "eu-fra")
	var mu sync.Mutex
	var heard []string
	w, deaf := feedkit.NewTwin(), feedkit.NewTwin()
	k := ca.Caller("eu-fra", identity.RoleData, "d1")
	w.Watch(t, k, "eu-fra", func(c *feed.WatchConfig) {
		c.Members = func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			heard = append(heard, string(b))
		}
	}, n)
	deaf.Watch(t, k, "eu-fra", nil, n)
	for _, now := range []string{"c1 c2", "c1 c2 c3"} {
		members.Store(&now)
		feedkit.Eventually(t, func() string {
			mu.Lock()
			defer mu.Unlock()
			if len(heard) == 0 || heard[len(heard)-1] != now {
				return fmt.Sprintf("heard %q, want %q", heard, now)
			}
			return ""
		})
	}
	deaf.Same(t, n, "eu")
	beats := func() int {
		w.Mu.Lock()
		defer w.Mu.Unlock()
		return len(w.Beats)
	}
	before := beats()
	feedkit.Eventually(t, func() string {
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

// TestSpread: many watchers do not wake at once, but for a revocation.
func TestSpread(t *testing.T) {
	n := newNode(feedkit.NewCA(t), "eu-fra", "c1", nil)
	h := hubOf(n)
	w := &watcher{hub: h}
	h.Board().Take(&w.pushed, w.peer, false)
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
	h.Board().PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: "key_any_0000000000000001", At: 5}})
	is(1000, 0)
	is(0, 0)
}
