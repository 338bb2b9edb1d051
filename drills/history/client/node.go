package client

import "ringmain/drills/cluster"

// Node is one control node.
type Node struct {
	Region, Name string
	Admin        string // base URL of its admin listener
}

func (n Node) String() string { return n.Region + "/" + n.Name }

// ControlNodes lists those that a cluster began with.
func ControlNodes(c *cluster.Cluster) []Node {
	var all []Node
	for _, r := range c.Regions {
		for _, n := range r.Nodes {
			if n.Role == "control" {
				all = append(all, Node{r.Name, n.Name, n.Admin})
			}
		}
	}
	return all
}
