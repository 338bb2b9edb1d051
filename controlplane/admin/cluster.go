package admin

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// cluster registers what only describes: nodes and status.
func (a *API) cluster(h huma.API) {
	const tag = "Cluster"
	add(a, h, operation{
		id: "list-nodes", method: http.MethodGet, path: "/nodes", tag: tag, summary: "List the nodes that gossip knows", place: thisNode,
		description: "As this node last heard of them. Advisory: nothing is decided by it.",
	}, func(context.Context, *nothing) (*answer[api.NodeList], error) {
		list := api.NodeList{Items: []api.Node{}}
		if a.cfg.Nodes != nil {
			list.Items = append(list.Items, a.cfg.Nodes()...)
		}
		slices.SortFunc(list.Items, func(x, y api.Node) int {
			return cmp.Or(cmp.Compare(x.Region, y.Region), cmp.Compare(x.Role, y.Role), cmp.Compare(x.Name, y.Name))
		})
		return &answer[api.NodeList]{Body: list}, nil
	})
	add(a, h, operation{
		id: "get-status", method: http.MethodGet, path: "/status", tag: tag, summary: "This node's region, leader and position", place: thisNode,
	}, func(context.Context, *nothing) (*answer[api.Status], error) {
		return &answer[api.Status]{Body: a.status()}, nil
	})
}

func (a *API) status() api.Status {
	leader, _, _ := a.cfg.Store.Leader()
	st := api.Status{
		Cluster: a.cfg.Cluster, Region: a.cfg.Region, Node: a.cfg.Node, Version: a.cfg.Version,
		Leader: leader, Leads: a.cfg.Store.IsLeader(), Shards: []api.ShardStatus{},
	}
	var shards []registry.ShardInfo
	a.view(func(s *registry.State) { shards = s.Shards() })
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
