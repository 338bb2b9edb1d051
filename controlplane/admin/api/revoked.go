package api

import "fmt"

// Held says who is known to hold a revocation when the answer is given.
// Regions and data nodes that may not hold the record play no part.
type Held struct {
	Regions        []string `json:"regions" nullable:"false" doc:"Regions that have committed it"`
	RegionsMissing []string `json:"regions_missing,omitempty" doc:"Regions that have not, by their last word"`
	RegionsUnknown []string `json:"regions_unknown,omitempty" doc:"Regions that have not been heard: whether they have it is not known"`
	Nodes          []string `json:"data_nodes" nullable:"false" doc:"Data nodes that say that they have it"`
	NodesMissing   []string `json:"data_nodes_missing,omitempty" doc:"Data nodes that say that they are not so far"`
	NodesUnknown   []string `json:"data_nodes_unknown,omitempty" doc:"Data nodes that are silent: whether they have it is not known"`
}

// All reports whether everybody who may hold it is known to.
func (h *Held) All() bool {
	return len(h.RegionsMissing)+len(h.RegionsUnknown)+len(h.NodesMissing)+len(h.NodesUnknown) == 0
}

// String is such as "held by 2 of 3 regions and 5 of 6 data nodes".
func (h *Held) String() string {
	of := func(have, missing, unknown []string, what string) string {
		return fmt.Sprintf("%d of %d %s", len(have), len(have)+len(missing)+len(unknown), what)
	}
	return "held by " + of(h.Regions, h.RegionsMissing, h.RegionsUnknown, "regions") + " and " +
		of(h.Nodes, h.NodesMissing, h.NodesUnknown, "data nodes")
}

// RevokeInput confirms the revocation of many keys.
type RevokeInput struct {
	Expect *int `json:"expect,omitempty" minimum:"0" doc:"How many keys there are, those revoked before included. Needed above 100; another number is refused with 409, which says the right one"`
}

// RevokedKeys is what came of the revocation of many keys.
type RevokedKeys struct {
	Keys         int    `json:"keys" doc:"How many there are: all of them are revoked"`
	Revoked      int    `json:"revoked" doc:"How many of them this request revoked"`
	Held         *Held  `json:"held"`
	Acknowledged string `json:"acknowledged,omitempty" doc:"How safe the revocations are: region or multi-region"`
}

// Acknowledge says how safe the revocations are.
func (r *RevokedKeys) Acknowledge(level string) { r.Acknowledged = level }
