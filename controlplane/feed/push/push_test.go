package feed

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
)

// mesh makes one control node per name "region/node", each a peer of the others.
func mesh(ca *testCA, names ...[2]string) []*node {
	var nodes []*node
	peersOf := func(self int) func() []Peer {
		return func() (ps []Peer) {
			for i, n := range nodes {
				if i != self {
					ps = append(ps, Peer{Region: n.region, Node: names[i][1], Addr: n.addr})
				}
			}
			return ps
		}
	}
	for _, name := range names {
		nodes = append(nodes, ca.node(name[0], name[1], nil))
	}
	for i, n := range nodes {
		client := ca.caller(names[i][0], identity.RoleControl, names[i][1]).Client
		n.tune = func(c *HubConfig) { c.Peers, c.HTTP = peersOf(i), client }
		n.restart()
	}
	return nodes
}

func (w *twin) hasVerdict(v Verdict) func() string {
	return func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.verdicts[v.Key] != v {
			return fmt.Sprintf("verdict of %s is %+v", v.Key, w.verdicts[v.Key])
		}
		return ""
	}
}

func (w *twin) hasHint(id string) func() string {
	return func() string {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, r := range w.hints {
			if r.ID == id {
				return ""
			}
		}
		return "no hint of " + id
	}
}

// TestVerdictsTravel: what a data node found out reaches data nodes of every
// node and region that may know, those that come later too, and is forgotten
// when the key changes.
func TestVerdictsTravel(t *testing.T) {
	ca := newTestCA(t)
	nodes := mesh(ca, [2]string{"eu-fra", "f1"}, [2]string{"eu-fra", "f2"}, [2]string{"us-east", "u1"}, [2]string{"eu-ber", "b1"})
	histories := map[controlplane.Shard]*history{}
	for _, s := range []controlplane.Shard{"eu", "any-eu-fra"} {
		h := newHistory(s, "eu-fra", 5)
		histories[s] = h
		members := []string{"eu-fra", "eu-ber"}
		if s != "eu" {
			members = append(members, "us-east")
		}
		e := h.open("eu-fra", members...)
		for _, n := range nodes {
			if s != "eu" || n.region != "us-east" {
				n.accept(e)
			}
		}
	}
	data := map[string]*caller{}
	twins := make([]*twin, len(nodes))
	for i, n := range nodes {
		if data[n.region] == nil {
			data[n.region] = ca.caller(n.region, identity.RoleData, "d1")
		}
		twins[i] = newTwin()
		twins[i].watch(t, data[n.region], n.region, func(c *WatchConfig) { c.Verdicts = true }, n)
	}
	h := histories["any-eu-fra"]
	free := Verdict{Key: h.newKey(), Revision: 2, MAC: [32]byte{1}}
	pinned := Verdict{Key: "key_eu_0000000000000003", Revision: 2, MAC: [32]byte{2}}
	for range 2 { // told twice: no news the second time
		if err := PostVerdicts(t.Context(), data["eu-fra"].Client, "eu-fra", nodes[0].addr, testCluster, []Verdict{free, pinned}); err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range twins {
		eventually(t, w.hasVerdict(free))
		if i != 2 {
			eventually(t, w.hasVerdict(pinned))
		}
	}
	hint := registry.Revocation{Kind: registry.KindKey, ID: "key_eu_0000000000000004", Shard: "eu", At: 7}
	begun := time.Now()
	nodes[3].hub.Load().PushRevocations([]registry.Revocation{hint})
	for i, w := range twins {
		if i != 2 {
			eventually(t, w.hasHint(hint.ID))
		}
	}
	t.Logf("a hint reached all data nodes in %v", time.Since(begun))
	time.Sleep(3 * gatherFor)
	twins[2].locked(func() {
		if _, told := twins[2].verdicts[pinned.Key]; told || len(twins[2].hints) > 0 {
			t.Error("a region that is no member heard of a pinned key")
		}
	})

	// A node that starts anew has both from a peer, and so have its watchers.
	nodes[1].restart()
	late := newTwin()
	late.watch(t, data["eu-fra"], "eu-fra", func(c *WatchConfig) { c.Verdicts = true }, nodes[1])
	eventually(t, late.hasVerdict(free))
	eventually(t, late.hasVerdict(pinned))
	eventually(t, late.hasHint(hint.ID))

	// The key is rotated: its verdict is forgotten, a late one is not taken, a new one is.
	h.keys = nil
	put := h.entry(registry.Change{Op: registry.OpPut, Record: h.key(free.Key)})
	fresh := Verdict{Key: free.Key, Revision: put.Seq, MAC: [32]byte{9}}
	stale := Verdict{Key: free.Key, Revision: put.Seq - 1, MAC: [32]byte{8}}
	for _, n := range nodes {
		n.hub.Load().mu.Lock()
		n.hub.Load().verdicts.put(stale.Key, stale)
		n.hub.Load().mu.Unlock()
		n.accept(put)
		if _, ok := n.hub.Load().verdicts.get(free.Key); ok {
			t.Error("the verdict outlived the rotation")
		}
		n.hub.Load().PushVerdicts([]Verdict{stale})
		if _, ok := n.hub.Load().verdicts.get(free.Key); ok {
			t.Error("a late verdict was taken")
		}
	}
	nodes[2].hub.Load().PushVerdicts([]Verdict{fresh})
	for _, w := range slices.Concat(twins, []*twin{late}) {
		eventually(t, w.hasVerdict(fresh))
	}

	// Revoked: the verdict goes, the hint too once it is committed.
	revoke := h.entry(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: free.Key, At: 8})
	n, hub := nodes[0], nodes[0].hub.Load()
	hub.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: free.Key, Shard: h.shard, At: 8}})
	eventually(t, twins[2].hasHint(free.Key))
	if _, ok := hub.verdicts.get(free.Key); ok || hub.hints.len() != 2 {
		t.Errorf("verdict kept: %v; %d hints", ok, hub.hints.len())
	}
	n.accept(revoke)
	if hub.hints.len() != 1 {
		t.Errorf("%d hints after the commit", hub.hints.len())
	}
	hub.PushVerdicts([]Verdict{{Key: free.Key, Revision: revoke.Seq + 1}})
	hub.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: free.Key, Shard: h.shard, At: 9}})
	if _, ok := hub.verdicts.get(free.Key); ok || hub.hints.len() != 1 {
		t.Error("a revoked key's verdict or a committed hint was taken")
	}
}

// TestPushNeverBlocks: nobody answers, and the queues are full.
func TestPushNeverBlocks(t *testing.T) {
	ca := newTestCA(t)
	n := ca.node("eu-fra", "c1", nil)
	client := ca.caller("eu-fra", identity.RoleControl, "c1").Client
	n.tune = func(c *HubConfig) {
		c.HTTP = client
		c.Peers = func() []Peer { return []Peer{{Region: "eu-fra", Node: "gone", Addr: "127.0.0.1:1"}} }
		c.Verdicts, c.Hints = 100, 100
	}
	n.restart()
	hub := n.hub.Load()
	begun := time.Now()
	for i := range 5000 {
		hub.PushVerdicts([]Verdict{{Key: fmt.Sprintf("key_any_%016d", i), Revision: 1}})
		hub.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: fmt.Sprintf("key_any_%016d", i+9000), At: 1}})
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("10,000 pushes took %v", took)
	}
	if hub.verdicts.len() != 100 || hub.hints.len() != 100 {
		t.Errorf("%d verdicts, %d hints kept", hub.verdicts.len(), hub.hints.len())
	}
}
