package admin

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// cluster registers what only describes: nodes and status.
func (a *API) cluster() {
	const tag = "Cluster"
	gate.Add(a.gate, gate.Operation{
		ID: "list-nodes", Method: http.MethodGet, Path: "/nodes", Tag: tag, Summary: "List the nodes that gossip knows", Place: gate.ThisNode,
		Description: "As this node last heard of them. Advisory: nothing is decided by it.",
	}, func(context.Context, *gate.Nothing) (*gate.Answer[api.NodeList], error) {
		list := api.NodeList{Items: []api.Node{}}
		if a.cfg.Nodes != nil {
			list.Items = append(list.Items, a.cfg.Nodes()...)
		}
		slices.SortFunc(list.Items, func(x, y api.Node) int {
			return cmp.Or(cmp.Compare(x.Region, y.Region), cmp.Compare(x.Role, y.Role), cmp.Compare(x.Name, y.Name))
		})
		return &gate.Answer[api.NodeList]{Body: list}, nil
	})
	gate.Add(a.gate, gate.Operation{
		ID: "get-status", Method: http.MethodGet, Path: "/status", Tag: tag, Summary: "This node's region, leader and position", Place: gate.ThisNode,
	}, func(context.Context, *gate.Nothing) (*gate.Answer[api.Status], error) {
		return &gate.Answer[api.Status]{Body: a.status()}, nil
	})
}

func (a *API) status() api.Status {
	leader, _, _ := a.cfg.Store.Leader()
	st := api.Status{
		Cluster: a.cfg.Cluster, Region: a.cfg.Region, Node: a.cfg.Node, Version: a.cfg.Version,
		Leader: leader, Leads: a.cfg.Store.IsLeader(), Shards: []api.ShardStatus{},
	}
	var shards []registry.ShardInfo
	a.records.View(func(s *ledger.State) { shards = s.Shards() })
	for _, info := range shards {
		st.Shards = append(st.Shards, api.ShardStatus{
			Shard: string(info.Shard), Home: info.Home, Members: slices.Clone(info.Members), Position: api.FormatPoint(info.Last),
		})
	}
	if a.cfg.Lags == nil {
		return st
	}
	lags := a.cfg.Lags()
	for i, info := range shards {
		if lag, ok := lags[info.Shard]; ok && info.Home != a.cfg.Region {
			heard := lag.Heard.UTC()
			st.Shards[i].Behind, st.Shards[i].LastHeard = &lag.Behind, &heard
		}
	}
	return st
}
