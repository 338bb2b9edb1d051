package admin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// NodePath names a node in a path.
type NodePath struct {
	Region string `path:"region"`
	Role   string `path:"role" enum:"control,data"`
	Node   string `path:"node"`
}

// TokenPath names a token in a path.
type TokenPath struct {
	Token string `path:"token" doc:"Name of the token at the node that answers for the global shard, or the SHA-256 of its text in hex"`
}

// safety registers the revocation of what is no API key. All of it lives in the
// global shard.
func (a *API) safety(h huma.API) {
	const again = " Data nodes are told before the change is committed. If the answer is an error, it may be refused already: repeat the request."
	add(a, h, operation{
		id: "revoke-upstream-credential", method: http.MethodPost, path: "/upstreams/{upstream}/revoke-credential", tag: "Upstreams",
		summary: "Call no upstream with this one's credential any more, for good", safe: true, place: inGlobal,
		description: "Upstreams that have it are not called until they have another. Answers that are under way go on to their end." + again,
		early:       a.announcing(func(r *http.Request) (revocation, error) { return a.credentialOf(r.PathValue("upstream")) }),
	}, func(ctx context.Context, in *UpstreamPath) (*answer[api.Revoked], error) {
		return a.revoke(ctx, func() (revocation, error) { return a.credentialOf(in.Upstream) })
	})
	nodeAt := func(in NodePath) (revocation, error) { return a.nodeOf(in) }
	add(a, h, operation{
		id: "revoke-node", method: http.MethodPost, path: "/nodes/{region}/{role}/{node}/revoke", tag: "Cluster",
		summary: "Refuse a node by its name, for good", safe: true, place: inGlobal,
		description: "Every node refuses its certificates, closes the connections with it and hears nothing of it in gossip; it stops serving as soon as it hears of it. A name that is revoked cannot be used again: give the machine another." + again,
		early: a.announcing(func(r *http.Request) (revocation, error) {
			return nodeAt(NodePath{r.PathValue("region"), r.PathValue("role"), r.PathValue("node")})
		}),
	}, func(ctx context.Context, in *NodePath) (*answer[api.Revoked], error) {
		return a.revoke(ctx, func() (revocation, error) { return nodeAt(*in) })
	})
	add(a, h, operation{
		id: "list-tokens", method: http.MethodGet, path: "/tokens", tag: "Cluster", summary: "List the operators' tokens that this node knows", place: thisNode,
	}, func(context.Context, *nothing) (*answer[api.TokenList], error) { return a.listTokens(), nil })
	add(a, h, operation{
		id: "revoke-token", method: http.MethodPost, path: "/tokens/{token}/revoke", tag: "Cluster",
		summary: "Refuse an operator's token, for good", safe: true, place: inGlobal,
		description: "The token that asks cannot be revoked with itself." + again,
		early: a.announcing(func(r *http.Request) (revocation, error) {
			return a.tokenOf(r.PathValue("token"), exchangeOf(r.Context()).actor)
		}),
	}, func(ctx context.Context, in *TokenPath) (*answer[api.Revoked], error) {
		return a.revoke(ctx, func() (revocation, error) { return a.tokenOf(in.Token, exchangeOf(ctx).actor) })
	})
}

// revocation is what is to be revoked, and what the answer says beside.
type revocation struct {
	registry.Revocation
	subject   string
	upstreams []string
	unseen    bool
}

func (a *API) revocationOf(kind registry.Kind, id, subject string, expires int64) revocation {
	return revocation{subject: subject, Revocation: registry.Revocation{
		Kind: kind, ID: id, Shard: controlplane.ShardGlobal, At: a.cfg.Now().UnixMilli(), Expires: expires,
	}}
}

func (a *API) credentialOf(upstream string) (revocation, error) {
	rec, err := a.get(registry.KindUpstream, upstream)
	if err != nil {
		return revocation{}, err
	}
	if len(rec.Upstream.Credential) == 0 {
		return revocation{}, problem(http.StatusConflict, string(controlplane.RuleConflict), "",
			"The upstream is called without a credential: disable it, if it is not to be called.")
	}
	r := a.revocationOf(registry.KindCredential, registry.CredentialID(rec.Upstream.Credential), rec.Meta.ID, 0)
	a.view(func(s *registry.State) {
		for _, other := range s.List(registry.KindUpstream, "", 0, nil) {
			if c := other.Upstream.Credential; len(c) > 0 && registry.CredentialID(c) == r.ID {
				r.upstreams = append(r.upstreams, other.Upstream.Name)
			}
		}
	})
	slices.Sort(r.upstreams)
	return r, nil
}

func (a *API) nodeOf(in NodePath) (revocation, error) {
	id := registry.NodeID(in.Region, in.Role, in.Node)
	if _, _, _, ok := registry.ParseNodeID(id); !ok {
		return revocation{}, invalid("node", "Name the node as the configuration does: region, role (control or data) and node, of a-z, 0-9 and '-'.")
	}
	r := a.revocationOf(registry.KindNode, id, in.Region+"/"+in.Role+"/"+in.Node, 0)
	if a.cfg.Nodes != nil {
		r.unseen = !slices.ContainsFunc(a.cfg.Nodes(), func(n api.Node) bool { return n.Region == in.Region && n.Role == in.Role && n.Name == in.Node })
	}
	return r, nil
}

func (a *API) tokenOf(ref, actor string) (revocation, error) {
	sum, err := hex.DecodeString(ref)
	byHash := err == nil && len(sum) == sha256.Size
	for _, t := range a.cfg.Tokens {
		if t.Name != ref && !(byHash && [sha256.Size]byte(sum) == t.SHA256) {
			continue
		}
		if t.Name == actor {
			return revocation{}, problem(http.StatusConflict, string(controlplane.RuleConflict), "",
				"This is the token that asks. Ask with another, so that somebody can still manage the cluster.")
		}
		return a.revocationOf(registry.KindToken, registry.TokenID(t.SHA256), t.Name, t.Expires.UnixMilli()), nil
	}
	if byHash {
		return a.revocationOf(registry.KindToken, registry.TokenID([sha256.Size]byte(sum)), ref, 0), nil
	}
	return revocation{}, problem(http.StatusNotFound, api.CodeNotFound, "",
		"The node that answers for the global shard knows no token of that name: give the SHA-256 of its text in hex, as GET /admin/v1/tokens lists it.")
}

// announcing tells data nodes while the request is still on its way to the home.
func (a *API) announcing(of func(*http.Request) (revocation, error)) func(*http.Request, *exchange) {
	return func(r *http.Request, x *exchange) {
		if rev, err := of(r); err == nil && a.revokes() == nil {
			a.announce(x.actor, rev)
		}
	}
}

// revokes is an error as long as the region's nodes may not read such a revocation.
func (a *API) revokes() error {
	var version uint64
	a.view(func(s *registry.State) { version = s.Version() })
	if version >= registry.VersionSafety {
		return nil
	}
	return problem(http.StatusConflict, string(controlplane.RuleConflict), "",
		"Nothing was revoked: some node of this region runs a release that cannot read such a revocation. Upgrade all of them, then repeat the request.")
}

func (a *API) announce(actor string, rev revocation) {
	if a.cfg.Revocations == nil {
		return
	}
	var known bool
	a.view(func(s *registry.State) { _, known = s.Revoked(rev.Kind, rev.ID) })
	if !known {
		a.cfg.Revocations.PushRevocations([]registry.Revocation{rev.Revocation})
		a.audit.RevocationPushed(actor, rev.Kind.String(), rev.subject)
	}
}

// revoke commits what of names to the safety set, unless it is there already.
func (a *API) revoke(ctx context.Context, of func() (revocation, error)) (*answer[api.Revoked], error) {
	rev, err := of()
	if err = errors.Join(err, a.revokes()); err != nil {
		return nil, err
	}
	actor := exchangeOf(ctx).actor
	a.announce(actor, rev)
	point, known := a.safetyPoint(rev)
	if !known {
		change := registry.Change{Op: registry.OpRevoke, Kind: rev.Kind, ID: rev.ID, At: rev.At, Expires: rev.Expires}
		if point, err = a.commit(ctx, rev.Shard, change); err != nil {
			return nil, err
		}
		a.audit.Revoked(actor, rev.Kind.String(), rev.subject, rev.Shard, point)
	}
	var now registry.Revocation
	a.view(func(s *registry.State) { now, _ = s.Revoked(rev.Kind, rev.ID) })
	return &answer[api.Revoked]{Position: api.FormatPosition(rev.Shard, point), Body: api.Revoked{
		Kind: rev.Kind.String(), ID: rev.ID, Subject: rev.subject, Revoked: time.UnixMilli(now.At).UTC(), Expires: millisOrNil(now.Expires),
		Upstreams: rev.upstreams, Unseen: rev.unseen, Held: a.held(ctx, rev.Shard, point),
	}}, nil
}

// safetyPoint is where this copy stands, if it holds the revocation.
func (a *API) safetyPoint(rev revocation) (point controlplane.Point, known bool) {
	a.view(func(s *registry.State) {
		info, _ := s.Shard(rev.Shard)
		point = info.Last
		_, known = s.Revoked(rev.Kind, rev.ID)
	})
	return point, known
}

// refusesToken reports whether the token is revoked, as far as this node has
// heard, and since when if that is committed.
func (a *API) refusesToken(sum [sha256.Size]byte) (since int64, refused bool) {
	id := registry.TokenID(sum)
	if a.cfg.Announced != nil {
		refused = a.cfg.Announced(registry.KindToken, id)
	}
	a.view(func(s *registry.State) {
		if v, ok := s.Revoked(registry.KindToken, id); ok {
			since, refused = v.At, true
		}
	})
	return since, refused
}

func (a *API) listTokens() *answer[api.TokenList] {
	list := api.TokenList{Items: []api.Token{}}
	for _, t := range a.cfg.Tokens {
		since, _ := a.refusesToken(t.SHA256)
		list.Items = append(list.Items, api.Token{Name: t.Name, SHA256: hex.EncodeToString(t.SHA256[:]), Expires: t.Expires.UTC(), Revoked: millisOrNil(since)})
	}
	return &answer[api.TokenList]{Body: list}
}
