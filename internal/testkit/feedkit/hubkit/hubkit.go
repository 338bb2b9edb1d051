// Package hubkit gives feedkit's nodes real hubs, for the tests of the rooms that
// a hub does not need. Tests only.
package hubkit

import (
	"context"
	"time"

	"ringmain/controlplane/feed/hub"
	"ringmain/internal/testkit/feedkit"
)

// Node starts a node whose hub is as tune says; nil leaves it as it is.
func Node(ca *feedkit.CA, region, name string, tune func(*hub.Config)) *feedkit.Node {
	return ca.Node(region, name, Opener(tune))
}

// Opener opens the hub of a node as tune says.
func Opener(tune func(*hub.Config)) func(*feedkit.Node) feedkit.Hub {
	return func(n *feedkit.Node) feedkit.Hub {
		cfg := hub.Config{Cluster: feedkit.Cluster, Region: n.Region, Node: "c1", Source: n, Heartbeat: 50 * time.Millisecond}
		if tune != nil {
			tune(&cfg)
		}
		h, err := hub.Open(context.Background(), cfg)
		if err != nil {
			n.T.Fatal(err)
		}
		return h
	}
}

// Hub is what Opener gave a node.
func Hub(n *feedkit.Node) *hub.Hub {
	h, ok := n.Hub().(*hub.Hub)
	if !ok {
		n.T.Fatal("another hub")
	}
	return h
}
