package hub

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/feedkit"
)

// TestResetBesideOthers: a shard is taken over as a whole while others go on.
// A watcher that has to look again must not lose what it saw at the first look:
// a quiet shard has no later entry by which the gap would show, and a hint and
// a verdict have no successor at all.
func TestResetBesideOthers(t *testing.T) {
	ca := feedkit.NewCA(t)
	var gate sync.RWMutex // held for writing: the stream stands before a heartbeat
	var waiting atomic.Int32
	n := newNode(ca, "eu-fra", "c1", func(c *Config) {
		c.Contact = func() time.Time {
			waiting.Add(1)
			defer waiting.Add(-1)
			gate.RLock()
			defer gate.RUnlock()
			return time.Now()
		}
	})
	feedkit.Fill(n, "any-us-east", "us-east", 3, "us-east", "eu-fra")
	w := feedkit.NewTwin()
	w.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d1"), "eu-fra", func(c *feed.WatchConfig) { c.Verdicts = true }, n)
	w.Same(t, n, "any-us-east")
	hub := hubOf(n)
	// stopped runs f while the stream stands, so that all f does is seen in one look.
	stopped := func(f func()) {
		t.Helper()
		gate.Lock()
		defer gate.Unlock()
		feedkit.Eventually(t, func() string {
			if waiting.Load() == 0 {
				return "no heartbeat is due"
			}
			return ""
		})
		f()
	}
	for i := range 5 {
		shard := controlplane.Shard(fmt.Sprintf("any-quiet%d", i))
		hint := registry.Revocation{Kind: registry.KindKey, ID: fmt.Sprintf("key_any_%016d", 2*i), Shard: "any-us-east", At: 1}
		v := feed.Verdict{Key: fmt.Sprintf("key_any_%016d", 2*i+1), Revision: 1}
		stopped(func() {
			n.Accept(feedkit.NewHistory(shard, "eu-fra", 1).Open("eu-fra", "eu-fra"))
			hub.Board().PushRevocations([]registry.Revocation{hint})
			hub.Board().PushVerdicts([]feed.Verdict{v})
			hub.Reset("any-us-east")
		})
		w.Same(t, n, shard)
		feedkit.Eventually(t, w.HasHint(hint.ID))
		feedkit.Eventually(t, w.HasVerdict(v))
	}
	w.Same(t, n, "any-us-east")
}

// TestHeartbeatIsWhole: a watcher takes what a heartbeat names for all there
// is, so a shard that was reset just now is named too; one that is gone is not,
// and holds nothing up.
func TestHeartbeatIsWhole(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := newNode(ca, "eu-fra", "c1", nil)
	feedkit.Fill(n, "any-eu-fra", "eu-fra", 3, "eu-fra")
	h := feedkit.Fill(n, "eu", "eu-fra", 3, "eu-fra")
	hub := hubOf(n)
	w := &watcher{hub: hub, peer: identity.ID{Region: "eu-fra", Role: identity.RoleControl}, started: true, cursors: make(map[controlplane.Shard]*cursor)}
	hub.Reset("eu", "any-us-east") // as after a raft snapshot, in which the latter is no more
	if at := w.offered(); len(at) != 2 || at["eu"] != h.At {
		t.Errorf("offered %v, want both shards, eu at %v", at, h.At)
	}
	if len(hub.rings) != 2 {
		t.Errorf("%d rings for 2 shards", len(hub.rings))
	}
}

// TestNoStateYet: a node that has heard nothing from its leader is not waited for.
func TestNoStateYet(t *testing.T) {
	ca := feedkit.NewCA(t)
	empty, full := newNode(ca, "eu-fra", "c1", nil), newNode(ca, "eu-fra", "c2", nil)
	feedkit.Fill(full, "any-eu-fra", "eu-fra", 3, "eu-fra", "us-east")
	for _, c := range []struct {
		region, role string
		homed        bool
	}{{"eu-fra", identity.RoleData, false}, {"us-east", identity.RoleControl, true}} {
		k := ca.Caller(c.region, c.role, "x1")
		body, err := feed.Marshal(feed.WatchRequest{Cluster: feedkit.Cluster, Homed: c.homed})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := k.Post("https://"+empty.Addr+feed.PathWatch, "", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "" {
			t.Errorf("%s: %d, retry-after %q; want 503 without", c.role, resp.StatusCode, resp.Header.Get("Retry-After"))
		}
		w := feedkit.NewTwin()
		w.Watch(t, k, "eu-fra", func(cfg *feed.WatchConfig) { cfg.Homed = c.homed }, empty, full)
		w.Same(t, full, "any-eu-fra")
	}
	if empty.Watchers() != 0 {
		t.Errorf("%d watchers wait for nothing", empty.Watchers())
	}
	// It is served as soon as there is something.
	w := feedkit.NewTwin()
	w.Watch(t, ca.Caller("eu-fra", identity.RoleData, "d2"), "eu-fra", nil, empty)
	feedkit.Fill(empty, "any-eu-fra", "eu-fra", 1, "eu-fra")
	w.Same(t, empty, "any-eu-fra")
}
