package hub

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"ringmain/internal/testkit/feedkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newNode starts a node with a hub as tune says.
func newNode(ca *feedkit.CA, region, name string, tune func(*Config)) *feedkit.Node {
	return ca.Node(region, name, opener(tune))
}

func opener(tune func(*Config)) func(*feedkit.Node) feedkit.Hub {
	return func(n *feedkit.Node) feedkit.Hub {
		cfg := Config{Cluster: feedkit.Cluster, Region: n.Region, Node: "c1", Source: n, Heartbeat: 50 * time.Millisecond}
		if tune != nil {
			tune(&cfg)
		}
		h, err := Open(context.Background(), cfg)
		if err != nil {
			n.T.Fatal(err)
		}
		return h
	}
}

func hubOf(n *feedkit.Node) *Hub {
	h, ok := n.Hub().(*Hub)
	if !ok {
		n.T.Fatal("another hub")
	}
	return h
}
