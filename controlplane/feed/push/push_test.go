package push_test

import (
	"fmt"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/feed/hub"
	"ringmain/controlplane/feed/push"
	"ringmain/controlplane/identity"
	"ringmain/controlplane/registry"
	"ringmain/internal/testkit/feedkit"
	"ringmain/internal/testkit/feedkit/hubkit"
)

// clientsOf are a control node's clients, one for each region of nodes.
func clientsOf(ca *feedkit.CA, region, node string, nodes [][2]string) func(string) *http.Client {
	clients := make(map[string]*http.Client)
	for _, n := range nodes {
		if clients[n[0]] == nil {
			clients[n[0]] = ca.CallerTo(n[0], region, identity.RoleControl, node).Client
		}
	}
	return func(region string) *http.Client { return clients[region] }
}

// mesh makes one control node per name "region/node", each a peer of the others.
func mesh(ca *feedkit.CA, names ...[2]string) []*feedkit.Node {
	var nodes []*feedkit.Node
	peersOf := func(self int) func() []push.Peer {
		return func() (ps []push.Peer) {
			for i, n := range nodes {
				if i != self {
					ps = append(ps, push.Peer{Region: n.Region, Node: names[i][1], Addr: n.Addr})
				}
			}
			return ps
		}
	}
	for _, name := range names {
		nodes = append(nodes, hubkit.Node(ca, name[0], name[1], nil))
	}
	for i, n := range nodes {
		clients := clientsOf(ca, names[i][0], names[i][1], names)
		n.Open = hubkit.Opener(func(c *hub.Config) { c.Peers, c.HTTP = peersOf(i), clients })
		n.Restart()
	}
	return nodes
}

// TestVerdictsTravel: what a data node found out reaches data nodes of every
// node and region that may know, those that come later too, and is forgotten
// when the key changes.
func TestVerdictsTravel(t *testing.T) {
	ca := feedkit.NewCA(t)
	nodes := mesh(ca, [2]string{"eu-fra", "f1"}, [2]string{"eu-fra", "f2"}, [2]string{"us-east", "u1"}, [2]string{"eu-ber", "b1"})
	histories := map[controlplane.Shard]*feedkit.History{}
	for _, s := range []controlplane.Shard{"eu", "any-eu-fra"} {
		h := feedkit.NewHistory(s, "eu-fra", 5)
		histories[s] = h
		members := []string{"eu-fra", "eu-ber"}
		if s != "eu" {
			members = append(members, "us-east")
		}
		e := h.Open("eu-fra", members...)
		for _, n := range nodes {
			if s != "eu" || n.Region != "us-east" {
				n.Accept(e)
			}
		}
	}
	data := map[string]*feedkit.Caller{}
	twins := make([]*feedkit.Twin, len(nodes))
	for i, n := range nodes {
		if data[n.Region] == nil {
			data[n.Region] = ca.Caller(n.Region, identity.RoleData, "d1")
		}
		twins[i] = feedkit.NewTwin()
		twins[i].Watch(t, data[n.Region], n.Region, func(c *feed.WatchConfig) { c.Verdicts = true }, n)
	}
	h := histories["any-eu-fra"]
	free := feed.Verdict{Key: h.NewKey(), Revision: 2, MAC: [32]byte{1}}
	pinned := feed.Verdict{Key: "key_eu_0000000000000003", Revision: 2, MAC: [32]byte{2}}
	for range 2 { // told twice: no news the second time
		if err := feed.PostVerdicts(t.Context(), data["eu-fra"].Client, "eu-fra", nodes[0].Addr, feedkit.Cluster, []feed.Verdict{free, pinned}); err != nil {
			t.Fatal(err)
		}
	}
	for i, w := range twins {
		feedkit.Eventually(t, w.HasVerdict(free))
		if i != 2 {
			feedkit.Eventually(t, w.HasVerdict(pinned))
		}
	}
	hint := registry.Revocation{Kind: registry.KindKey, ID: "key_eu_0000000000000004", Shard: "eu", At: 7}
	begun := time.Now()
	hubkit.Hub(nodes[3]).Board().PushRevocations([]registry.Revocation{hint})
	for i, w := range twins {
		if i != 2 {
			feedkit.Eventually(t, w.HasHint(hint.ID))
		}
	}
	t.Logf("a hint reached all data nodes in %v", time.Since(begun))
	time.Sleep(3 * push.GatherFor)
	twins[2].Locked(func() {
		if _, told := twins[2].Verdicts[pinned.Key]; told || len(twins[2].Hints) > 0 {
			t.Error("a region that is no member heard of a pinned key")
		}
	})

	// A node that starts anew has both from a peer, and so have its watchers.
	nodes[1].Restart()
	late := feedkit.NewTwin()
	late.Watch(t, data["eu-fra"], "eu-fra", func(c *feed.WatchConfig) { c.Verdicts = true }, nodes[1])
	feedkit.Eventually(t, late.HasVerdict(free))
	feedkit.Eventually(t, late.HasVerdict(pinned))
	feedkit.Eventually(t, late.HasHint(hint.ID))

	// The key is rotated: its verdict is forgotten, a late one is not taken, a new one is.
	h.Keys = nil
	put := h.Entry(registry.Change{Op: registry.OpPut, Record: h.Key(free.Key)})
	fresh := feed.Verdict{Key: free.Key, Revision: put.Seq, MAC: [32]byte{9}}
	stale := feed.Verdict{Key: free.Key, Revision: put.Seq - 1, MAC: [32]byte{8}}
	for _, n := range nodes {
		hubkit.Hub(n).Board().Put(stale)
		n.Accept(put)
		if hubkit.Hub(n).Board().Has(free.Key) {
			t.Error("the verdict outlived the rotation")
		}
		hubkit.Hub(n).Board().PushVerdicts([]feed.Verdict{stale})
		if hubkit.Hub(n).Board().Has(free.Key) {
			t.Error("a late verdict was taken")
		}
	}
	hubkit.Hub(nodes[2]).Board().PushVerdicts([]feed.Verdict{fresh})
	for _, w := range slices.Concat(twins, []*feedkit.Twin{late}) {
		feedkit.Eventually(t, w.HasVerdict(fresh))
	}

	// Revoked: the verdict goes, the hint too once it is committed.
	revoke := h.Entry(registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: free.Key, At: 8})
	n, board := nodes[0], hubkit.Hub(nodes[0]).Board()
	board.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: free.Key, Shard: h.Shard, At: 8}})
	feedkit.Eventually(t, twins[2].HasHint(free.Key))
	if board.Has(free.Key) || board.Hints() != 2 {
		t.Errorf("verdict kept: %v; %d hints", board.Has(free.Key), board.Hints())
	}
	n.Accept(revoke)
	if board.Hints() != 1 {
		t.Errorf("%d hints after the commit", board.Hints())
	}
	board.PushVerdicts([]feed.Verdict{{Key: free.Key, Revision: revoke.Seq + 1}})
	board.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: free.Key, Shard: h.Shard, At: 9}})
	if board.Has(free.Key) || board.Hints() != 1 {
		t.Error("a revoked key's verdict or a committed hint was taken")
	}
}

// TestNobodyElseIsTold: an address of a region's that a control node of another
// region answers at. What is for the one region never reaches the other, though
// that is a node of the cluster too.
func TestNobodyElseIsTold(t *testing.T) {
	ca := feedkit.NewCA(t)
	stranger := hubkit.Node(ca, "us-east", "u1", nil)
	n := hubkit.Node(ca, "eu-fra", "f1", nil)
	for _, shard := range []controlplane.Shard{"eu", "any-eu-fra"} {
		n.Accept(feedkit.NewHistory(shard, "eu-fra", 5).Open("eu-fra", "eu-fra", "eu-ber"))
	}
	clients := clientsOf(ca, "eu-fra", "f1", [][2]string{{"eu-ber"}})
	n.Open = hubkit.Opener(func(c *hub.Config) {
		c.HTTP = clients
		c.Peers = func() []push.Peer { return []push.Peer{{Region: "eu-ber", Node: "b1", Addr: stranger.Addr}} }
	})
	var told atomic.Int64
	stranger.Heard = func(*http.Request) { told.Add(1) }
	n.Restart()
	before := testutil.ToFloat64(hubkit.Hub(n).Board().Dropped())
	hubkit.Hub(n).Board().PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: "key_eu_0000000000000004", Shard: "eu", At: 7}})
	feedkit.Eventually(t, func() string {
		if testutil.ToFloat64(hubkit.Hub(n).Board().Dropped()) == before {
			return "it is still being tried"
		}
		return ""
	})
	if n := told.Load(); n > 0 {
		t.Errorf("a node of another region was sent %d requests", n)
	}
}

// TestPushNeverBlocks: nobody answers, and the queues are full.
func TestPushNeverBlocks(t *testing.T) {
	ca := feedkit.NewCA(t)
	n := hubkit.Node(ca, "eu-fra", "c1", nil)
	clients := clientsOf(ca, "eu-fra", "c1", [][2]string{{"eu-fra"}})
	n.Open = hubkit.Opener(func(c *hub.Config) {
		c.HTTP = clients
		c.Peers = func() []push.Peer { return []push.Peer{{Region: "eu-fra", Node: "gone", Addr: "127.0.0.1:1"}} }
		c.Verdicts, c.Hints = 100, 100
	})
	n.Restart()
	board := hubkit.Hub(n).Board()
	begun := time.Now()
	for i := range 5000 {
		board.PushVerdicts([]feed.Verdict{{Key: fmt.Sprintf("key_any_%016d", i), Revision: 1}})
		board.PushRevocations([]registry.Revocation{{Kind: registry.KindKey, ID: fmt.Sprintf("key_any_%016d", i+9000), At: 1}})
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("10,000 pushes took %v", took)
	}
	if board.Verdicts() != 100 || board.Hints() != 100 {
		t.Errorf("%d verdicts, %d hints kept", board.Verdicts(), board.Hints())
	}
}
