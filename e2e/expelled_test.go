package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// A data node is revoked at another region: it stops serving, and stays down
// although it is started again and again; the rest of its region goes on.
func TestRevokedNode(t *testing.T) {
	t.Parallel()
	d := small(t, 18520, "us-east:us,eu-fra:eu", "--data", "2")
	node := d.node(t, 1, "data")
	d.ready(t, node.API, 10*time.Second)
	made(t, d, "node", "revoke", "eu-fra/data/"+node.Name)
	eventually(t, time.Minute, func() error {
		log := d.nodeLog(t, node)
		if n := strings.Count(log, "this node is revoked"); n < 2 {
			return fmt.Errorf("it stopped %d times:\n%s", n, log[max(0, len(log)-3000):])
		}
		return nil
	})
	eventually(t, 30*time.Second, func() error {
		if list := made(t, d, "node", "list", "--region", "eu-fra"); strings.Contains(list, node.Name) {
			return errors.New("gossip knows it: " + list)
		}
		return nil
	})
	other := d.Regions[1].Nodes[len(d.Regions[1].Nodes)-1]
	if other.Name == node.Name || other.Role != "data" {
		t.Fatal(other)
	}
	d.ready(t, other.API, 10*time.Second)
}
