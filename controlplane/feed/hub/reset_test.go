package feed

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
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// TestResetBesideOthers: a shard is taken over as a whole while others go on.
// A watcher that has to look again must not lose what it saw at the first look:
// a quiet shard has no later entry by which the gap would show, and a hint and
// a verdict have no successor at all.
func TestResetBesideOthers(t *testing.T) {
	ca := newTestCA(t)
	var gate sync.RWMutex // held for writing: the stream stands before a heartbeat
	var waiting atomic.Int32
	n := ca.node("eu-fra", "c1", func(c *HubConfig) {
		c.Contact = func() time.Time {
			waiting.Add(1)
			defer waiting.Add(-1)
			gate.RLock()
			defer gate.RUnlock()
			return time.Now()
		}
	})
	fill(n, "any-us-east", "us-east", 3, "us-east", "eu-fra")
	w := newTwin()
	w.watch(t, ca.caller("eu-fra", identity.RoleData, "d1"), "eu-fra", func(c *WatchConfig) { c.Verdicts = true }, n)
	w.same(t, n, "any-us-east")
	hub := n.hub.Load()
	// stopped runs f while the stream stands, so that all f does is seen in one look.
	stopped := func(f func()) {
		t.Helper()
		gate.Lock()
		defer gate.Unlock()
		eventually(t, func() string {
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
		v := Verdict{Key: fmt.Sprintf("key_any_%016d", 2*i+1), Revision: 1}
		stopped(func() {
			n.accept(newHistory(shard, "eu-fra", 1).open("eu-fra", "eu-fra"))
			hub.keepHints(hub.own(), []registry.Revocation{hint})
			hub.keepVerdicts(hub.own(), []Verdict{v})
			hub.Reset("any-us-east")
		})
		w.same(t, n, shard)
		eventually(t, w.hasHint(hint.ID))
		eventually(t, w.hasVerdict(v))
	}
	w.same(t, n, "any-us-east")
}

// TestHeartbeatIsWhole: a watcher takes what a heartbeat names for all there
// is, so a shard that was reset just now is named too; one that is gone is not,
// and holds nothing up.
func TestHeartbeatIsWhole(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", nil)
	fill(n, "any-eu-fra", "eu-fra", 3, "eu-fra")
	h := fill(n, "eu", "eu-fra", 3, "eu-fra")
	hub := n.hub.Load()
	w := &watcher{hub: hub, peer: hub.own(), started: true, cursors: make(map[controlplane.Shard]*cursor)}
	hub.Reset("eu", "any-us-east") // as after a raft snapshot, in which the latter is no more
	if at := w.offered(); len(at) != 2 || at["eu"] != h.at {
		t.Errorf("offered %v, want both shards, eu at %v", at, h.at)
	}
	if len(hub.rings) != 2 {
		t.Errorf("%d rings for 2 shards", len(hub.rings))
	}
}

// TestNoStateYet: a node that has heard nothing from its leader is not waited for.
func TestNoStateYet(t *testing.T) {
	ca := newTestCA(t)
	empty, full := ca.node("eu-fra", "c1", nil), ca.node("eu-fra", "c2", nil)
	fill(full, "any-eu-fra", "eu-fra", 3, "eu-fra", "us-east")
	for _, c := range []struct {
		region, role string
		homed        bool
	}{{"eu-fra", identity.RoleData, false}, {"us-east", identity.RoleControl, true}} {
		k := ca.caller(c.region, c.role, "x1")
		body, err := encMode.Marshal(WatchRequest{Cluster: testCluster, Homed: c.homed})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := k.Post("https://"+empty.addr+PathWatch, "", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") != "" {
			t.Errorf("%s: %d, retry-after %q; want 503 without", c.role, resp.StatusCode, resp.Header.Get("Retry-After"))
		}
		w := newTwin()
		w.watch(t, k, "eu-fra", func(cfg *WatchConfig) { cfg.Homed = c.homed }, empty, full)
		w.same(t, full, "any-eu-fra")
	}
	if empty.watchers() != 0 {
		t.Errorf("%d watchers wait for nothing", empty.watchers())
	}
	// It is served as soon as there is something.
	w := newTwin()
	w.watch(t, ca.caller("eu-fra", identity.RoleData, "d2"), "eu-fra", nil, empty)
	fill(empty, "any-eu-fra", "eu-fra", 1, "eu-fra")
	w.same(t, empty, "any-eu-fra")
}
