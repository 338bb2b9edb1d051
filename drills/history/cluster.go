package history

import "ringmain/drills/cluster"

// node is one control node.
type node struct{ region, name, admin string }

func (n node) String() string { return n.region + "/" + n.name }

func controlNodes(c *cluster.Cluster) []node {
	var all []node
	for _, r := range c.Regions {
		for _, n := range r.Nodes {
			if n.Role == "control" {
				all = append(all, node{r.Name, n.Name, n.Admin})
			}
		}
	}
	return all
}
