package importer

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/controlplane/feed/hub"
	"ringmain/internal/testkit/feedkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newNode starts a node with a hub as tune says.
func newNode(ca *feedkit.CA, region, name string, tune func(*hub.Config)) *feedkit.Node {
	return ca.Node(region, name, func(n *feedkit.Node) feedkit.Hub {
		cfg := hub.Config{Cluster: feedkit.Cluster, Region: n.Region, Node: "c1", Source: n, Heartbeat: 50 * time.Millisecond}
		if tune != nil {
			tune(&cfg)
		}
		h, err := hub.Open(context.Background(), cfg)
		if err != nil {
			n.T.Fatal(err)
		}
		return h
	})
}

func hubOf(n *feedkit.Node) *hub.Hub {
	h, ok := n.Hub().(*hub.Hub)
	if !ok {
		n.T.Fatal("another hub")
	}
	return h
}
