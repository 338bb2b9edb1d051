package feed

import (
	"fmt"
	"net/http"
	"testing"

	"ringmain/controlplane"
	"ringmain/controlplane/identity"
)

// What a data node says that it holds is known at once at every control node
// that may hold the shard, and nobody speaks for another.
func TestHeldTravels(t *testing.T) {
	ca := newTestCA(t)
	nodes := mesh(ca, [2]string{"eu-fra", "f1"}, [2]string{"eu-fra", "f2"}, [2]string{"us-east", "u1"})
	for shard, members := range map[controlplane.Shard][]string{"eu": {"eu-fra"}, "any-eu-fra": {"eu-fra", "us-east"}} {
		e := newHistory(shard, "eu-fra", 5).open("eu-fra", members...)
		for _, n := range nodes {
			if shard != "eu" || n.region != "us-east" {
				n.accept(e)
			}
		}
	}
	data := ca.caller("eu-fra", identity.RoleData, "d1")
	at := controlplane.Point{Epoch: controlplane.Epoch{Counter: 1, Region: "eu-fra"}, Seq: 5}
	say := func(as *caller, node *node, held ...Held) error {
		return PostHeld(t.Context(), as.Client, node.region, node.addr, testCluster, held)
	}
	woken := nodes[2].hub.Load().HeldChanged()
	if err := say(data, nodes[0], Held{"eu-fra", "d1", "eu", at}, Held{"eu-fra", "d1", "any-eu-fra", at},
		Held{"eu-fra", "d2", "any-eu-fra", at}, Held{"us-east", "d1", "any-eu-fra", at}); err != nil {
		t.Fatal(err)
	}
	knows := func(n *node, node string, shard controlplane.Shard, want controlplane.Point) func() string {
		return func() string {
			if p, _ := n.hub.Load().HeldBy("eu-fra", node, shard); p != want {
				return fmt.Sprintf("%s knows %s at %v in %s", n.region, node, p, shard)
			}
			return ""
		}
	}
	for _, n := range nodes {
		eventually(t, knows(n, "d1", "any-eu-fra", at))
	}
	eventually(t, knows(nodes[1], "d1", "eu", at))
	<-woken
	for _, n := range nodes {
		if _, ok := n.hub.Load().HeldBy("eu-fra", "d2", "any-eu-fra"); ok {
			t.Error("a data node spoke for another")
		}
		if _, ok := n.hub.Load().HeldBy("us-east", "d1", "any-eu-fra"); ok {
			t.Error("a data node spoke for another region's")
		}
	}
	if _, ok := nodes[2].hub.Load().HeldBy("eu-fra", "d1", "eu"); ok {
		t.Error("a region heard of a shard that it must not hold")
	}
	if err := say(data, nodes[0], Held{"eu-fra", "d1", "any-nowhere", at}); err != nil {
		t.Fatal(err)
	}
	if _, ok := nodes[0].hub.Load().HeldBy("eu-fra", "d1", "any-nowhere"); ok {
		t.Error("a data node has room taken for shards that do not exist")
	}
	// A control node of another region speaks for its own data nodes only.
	foreign := ca.caller("us-east", identity.RoleControl, "u1")
	further := at
	further.Seq = 9
	if err := say(foreign, nodes[0], Held{"eu-fra", "d1", "any-eu-fra", further}); err != nil {
		t.Fatal(err)
	}
	if f := knows(nodes[0], "d1", "any-eu-fra", at)(); f != "" {
		t.Errorf("another region's control node spoke for it: %s", f)
	}
	// Who lost its state says less, and is believed.
	at.Seq = 2
	if err := say(data, nodes[1], Held{"eu-fra", "d1", "any-eu-fra", at}); err != nil {
		t.Fatal(err)
	}
	eventually(t, knows(nodes[0], "d1", "any-eu-fra", at))
	if err := post(t.Context(), data.Client, "eu-fra", nodes[0].addr, PathHeld, Batch{Cluster: testCluster, Verdicts: []Verdict{{}}}); err == nil {
		t.Error("verdicts were taken here")
	}
	if err := post(t.Context(), data.Client, "eu-fra", nodes[0].addr, PathHeld, Batch{Cluster: "other"}); err == nil {
		t.Errorf("another cluster's: %v", http.StatusForbidden)
	}
}
