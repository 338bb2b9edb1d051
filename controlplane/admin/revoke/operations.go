package revoke

import (
	"context"
	"net/http"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
)

// NodePath names a node in a path.
type NodePath struct {
	Region string `path:"region"`
	Role   string `path:"role" enum:"control,data"`
	Node   string `path:"node"`
	Unseen bool   `query:"unseen" doc:"Also if gossip knows no node of that name"`
}

// TokenPath names a token in a path.
type TokenPath struct {
	Token string `path:"token" doc:"Name of the token, as the node that is asked knows it, or the SHA-256 of its text in hex"`
}

// Register adds the operations. The revocations of what is no API key live in the
// global shard.
func (d *Desk) Register(g *gate.Gate) {
	byProject := gate.ByID(registry.KindProject, "project")
	gate.Add(g, gate.Operation{
		ID: "revoke-key", Method: http.MethodPost, Path: "/keys/{key}/revoke", Tag: "Keys", Summary: "Refuse a key from now on, for good", Safe: true, Place: gate.ByID(registry.KindKey, "key"),
		Description: "Data nodes are told before the change is committed. If the answer is an error, the key may be refused already: repeat the request.",
		Early:       d.revokeEarly,
	}, d.revokeKey)
	const all = "Above 100 keys, expect must say how many there are. After an error some may be revoked: repeat the request."
	gate.Add(g, gate.Operation{
		ID: "revoke-project-keys", Method: http.MethodPost, Path: "/projects/{project}/keys/revoke", Tag: "Keys", Summary: "Refuse all keys of a project, for good", Safe: true, Place: byProject,
		Description: all,
	}, d.revokeProjectKeys)
	gate.Add(g, gate.Operation{
		ID: "revoke-org-keys", Method: http.MethodPost, Path: "/orgs/{org}/keys/revoke", Tag: "Keys", Summary: "Refuse all keys of an org, for good", Safe: true, Place: gate.ByID(registry.KindOrg, "org"),
		Description: all,
	}, d.revokeOrgKeys)
	const again = " Data nodes are told before the change is committed. If the answer is an error, it may be refused already: repeat the request."
	gate.Add(g, gate.Operation{
		ID: "revoke-upstream-credential", Method: http.MethodPost, Path: "/upstreams/{upstream}/revoke-credential", Tag: "Upstreams",
		Summary: "Call no upstream with this one's credential any more, for good", Safe: true, Place: gate.InGlobal,
		Description: "Upstreams that have it are not called until they have another. Answers that are under way go on to their end." + again,
		Early:       d.announcing(func(r *http.Request) (revocation, error) { return d.credentialOf(r.PathValue("upstream")) }),
	}, func(ctx context.Context, in *struct {
		Upstream string `path:"upstream" doc:"Id or name of the upstream"`
	}) (*gate.Answer[api.Revoked], error) {
		return d.revoke(ctx, func() (revocation, error) { return d.credentialOf(in.Upstream) })
	})
	gate.Add(g, gate.Operation{
		ID: "revoke-node", Method: http.MethodPost, Path: "/nodes/{region}/{role}/{node}/revoke", Tag: "Cluster",
		Summary: "Refuse a node by its name, for good", Safe: true, Place: gate.InGlobal,
		Description: "Every node refuses its certificates, closes the connections with it and hears nothing of it in gossip; it stops serving as soon as it hears of it. A name that is revoked cannot be used again: give the machine another. A name that gossip does not know, at the node that is asked, is refused, unless unseen is true." + again,
		Early:       d.nodeEarly,
	}, func(ctx context.Context, in *NodePath) (*gate.Answer[api.Revoked], error) {
		return d.revoke(ctx, func() (revocation, error) { return d.nodeOf(*in, records.RequestOf(ctx).Forwarded) })
	})
	gate.Add(g, gate.Operation{
		ID: "list-tokens", Method: http.MethodGet, Path: "/tokens", Tag: "Cluster", Summary: "List the operators' tokens that this node knows", Place: gate.ThisNode,
	}, func(context.Context, *gate.Nothing) (*gate.Answer[api.TokenList], error) { return d.listTokens(), nil })
	gate.Add(g, gate.Operation{
		ID: "revoke-token", Method: http.MethodPost, Path: "/tokens/{token}/revoke", Tag: "Cluster",
		Summary: "Refuse an operator's token, for good", Safe: true, Place: gate.InGlobal,
		Description: "The token that asks cannot be revoked with itself." + again,
		Early:       d.tokenEarly,
	}, func(ctx context.Context, in *TokenPath) (*gate.Answer[api.Revoked], error) {
		return d.revoke(ctx, func() (revocation, error) { return d.tokenOf(in.Token, records.RequestOf(ctx)) })
	})
}
