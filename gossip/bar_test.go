package gossip_test

import (
	"slices"
	"testing"
	"time"

	"ringmain/gossip"
	"ringmain/gossip/bulletin"
)

// A node that is barred is heard of no more where that is known, whatever it
// goes on to say, and however often it starts anew; others are not disturbed.
func TestBarredNode(t *testing.T) {
	bubble(t, func(t *testing.T, c *fake) {
		c.region("eu", 4)
		c.region("us", 2)
		c.until(20*time.Second, "everybody agrees", c.agree)
		bad := c.nodes["eu-3"]
		bad.Claim("us", false)
		known := func(g *gossip.Gossip) bool {
			return slices.ContainsFunc(g.Table().Nodes, func(v bulletin.NodeView) bool { return v.Node == "eu-3" })
		}
		for name, g := range c.nodes {
			if name != "eu-3" {
				g.Bar("eu", "eu-3")
				g.Bar("eu", "eu-3")
				if known(g) {
					t.Errorf("%s still knows it", name)
				}
			}
		}
		quiet := func(what string) {
			t.Helper()
			for range 60 {
				time.Sleep(time.Second)
				for name, g := range c.nodes {
					if name != "eu-3" && known(g) {
						t.Fatalf("%s: %s knows it again", what, name)
					}
				}
			}
		}
		bad.Publish(func(d *bulletin.Digest) { d.Ready = true })
		quiet("it goes on")
		c.kill("eu-3")
		c.open("eu", "eu-3")
		c.nodes["eu-3"].Publish(func(d *bulletin.Digest) { d.Ready = true })
		quiet("it starts anew")
		for name, g := range c.nodes {
			for _, other := range []string{"eu-1", "eu-2", "eu-4", "us-1", "us-2"} {
				if name != "eu-3" && !alive(g, other) {
					t.Errorf("%s takes %s for dead", name, other)
				}
			}
		}
		// Nobody bars itself: who is to stop is told in another way.
		c.nodes["eu-1"].Bar("eu", "eu-1")
		if !alive(c.nodes["eu-1"], "eu-1") {
			t.Error("a node does not know itself any more")
		}
	})
}
