package push_test

import (
	"fmt"
	"net/http"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/identity"
	"ringmain/internal/testkit/feedkit"
	"ringmain/internal/testkit/feedkit/hubkit"
)

// What a data node says that it holds is known at once at every control node
// that may hold the shard, and nobody speaks for another.
func TestHeldTravels(t *testing.T) {
	ca := feedkit.NewCA(t)
	nodes := mesh(ca, [2]string{"eu-fra", "f1"}, [2]string{"eu-fra", "f2"}, [2]string{"us-east", "u1"})
	for shard, members := range map[controlplane.Shard][]string{"eu": {"eu-fra"}, "any-eu-fra": {"eu-fra", "us-east"}} {
		e := feedkit.NewHistory(shard, "eu-fra", 5).Open("eu-fra", members...)
		for _, n := range nodes {
			if shard != "eu" || n.Region != "us-east" {
				n.Accept(e)
			}
		}
	}
	data := ca.Caller("eu-fra", identity.RoleData, "d1")
	at := controlplane.Point{Epoch: controlplane.Epoch{Counter: 1, Region: "eu-fra"}, Seq: 5}
	say := func(as *feedkit.Caller, node *feedkit.Node, held ...feed.Held) error {
		return feed.PostHeld(t.Context(), as.Client, node.Region, node.Addr, feedkit.Cluster, held)
	}
	woken := hubkit.Hub(nodes[2]).Board().HeldChanged()
	if err := say(data, nodes[0], feed.Held{Region: "eu-fra", Node: "d1", Shard: "eu", Point: at}, feed.Held{Region: "eu-fra", Node: "d1", Shard: "any-eu-fra", Point: at},
		feed.Held{Region: "eu-fra", Node: "d2", Shard: "any-eu-fra", Point: at}, feed.Held{Region: "us-east", Node: "d1", Shard: "any-eu-fra", Point: at}); err != nil {
		t.Fatal(err)
	}
	knows := func(n *feedkit.Node, node string, shard controlplane.Shard, want controlplane.Point) func() string {
		return func() string {
			if p, _ := hubkit.Hub(n).Board().HeldBy("eu-fra", node, shard); p != want {
				return fmt.Sprintf("%s knows %s at %v in %s", n.Region, node, p, shard)
			}
			return ""
		}
	}
	for _, n := range nodes {
		feedkit.Eventually(t, knows(n, "d1", "any-eu-fra", at))
	}
	feedkit.Eventually(t, knows(nodes[1], "d1", "eu", at))
	<-woken
	for _, n := range nodes {
		if _, ok := hubkit.Hub(n).Board().HeldBy("eu-fra", "d2", "any-eu-fra"); ok {
			t.Error("a data node spoke for another")
		}
		if _, ok := hubkit.Hub(n).Board().HeldBy("us-east", "d1", "any-eu-fra"); ok {
			t.Error("a data node spoke for another region's")
		}
	}
	if _, ok := hubkit.Hub(nodes[2]).Board().HeldBy("eu-fra", "d1", "eu"); ok {
		t.Error("a region heard of a shard that it must not hold")
	}
	if err := say(data, nodes[0], feed.Held{Region: "eu-fra", Node: "d1", Shard: "any-nowhere", Point: at}); err != nil {
		t.Fatal(err)
	}
	if _, ok := hubkit.Hub(nodes[0]).Board().HeldBy("eu-fra", "d1", "any-nowhere"); ok {
		t.Error("a data node has room taken for shards that do not exist")
	}
	// A control node of another region speaks for its own data nodes only.
	foreign := ca.Caller("us-east", identity.RoleControl, "u1")
	further := at
	further.Seq = 9
	if err := say(foreign, nodes[0], feed.Held{Region: "eu-fra", Node: "d1", Shard: "any-eu-fra", Point: further}); err != nil {
		t.Fatal(err)
	}
	if f := knows(nodes[0], "d1", "any-eu-fra", at)(); f != "" {
		t.Errorf("another region's control node spoke for it: %s", f)
	}
	// Who lost its state says less, and is believed.
	at.Seq = 2
	if err := say(data, nodes[1], feed.Held{Region: "eu-fra", Node: "d1", Shard: "any-eu-fra", Point: at}); err != nil {
		t.Fatal(err)
	}
	feedkit.Eventually(t, knows(nodes[0], "d1", "any-eu-fra", at))
	if err := feed.Post(t.Context(), data.Client, "eu-fra", nodes[0].Addr, feed.PathHeld, feed.Batch{Cluster: feedkit.Cluster, Verdicts: []feed.Verdict{{}}}); err == nil {
		t.Error("verdicts were taken here")
	}
	if err := feed.Post(t.Context(), data.Client, "eu-fra", nodes[0].Addr, feed.PathHeld, feed.Batch{Cluster: "other"}); err == nil {
		t.Errorf("another cluster's: %v", http.StatusForbidden)
	}
}
