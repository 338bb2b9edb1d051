package revoke

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// revocation is what is to be revoked, and what the answer says beside.
type revocation struct {
	registry.Revocation
	subject   string
	upstreams []string
	unseen    bool
}

func (d *Desk) revocationOf(kind registry.Kind, id, subject string, expires int64) revocation {
	return revocation{subject: subject, Revocation: registry.Revocation{
		Kind: kind, ID: id, Shard: controlplane.ShardGlobal, At: d.cfg.Now().UnixMilli(), Expires: expires,
	}}
}

func (d *Desk) credentialOf(upstream string) (revocation, error) {
	rec, err := d.records.Get(registry.KindUpstream, upstream)
	if err != nil {
		return revocation{}, err
	}
	if len(rec.Upstream.Credential) == 0 {
		return revocation{}, problem.Conflict("",
			"The upstream is called without a credential: disable it, if it is not to be called.")
	}
	r := d.revocationOf(registry.KindCredential, registry.CredentialID(rec.Upstream.Credential), rec.Meta.ID, 0)
	d.records.View(func(s *ledger.State) {
		for _, other := range s.List(registry.KindUpstream, "", 0, nil) {
			if c := other.Upstream.Credential; len(c) > 0 && registry.CredentialID(c) == r.ID {
				r.upstreams = append(r.upstreams, other.Upstream.Name)
			}
		}
	})
	slices.Sort(r.upstreams)
	return r, nil
}

// nodeOf names a node. One that gossip does not know is refused by the node that
// was asked: once that has announced it, nobody else may hear of it in gossip.
func (d *Desk) nodeOf(in NodePath, forwarded bool) (revocation, error) {
	id := registry.NodeID(in.Region, in.Role, in.Node)
	if _, _, _, ok := registry.ParseNodeID(id); !ok {
		return revocation{}, problem.Invalid("node", "Name the node as the configuration does: region, role (control or data) and node, of a-z, 0-9 and '-'.")
	}
	r := d.revocationOf(registry.KindNode, id, in.Region+"/"+in.Role+"/"+in.Node, 0)
	if d.cfg.Nodes == nil {
		return r, nil
	}
	var namesakes []string
	r.unseen = true
	for _, n := range d.cfg.Nodes() {
		if n.Name == in.Node {
			namesakes = append(namesakes, n.Region+"/"+n.Role+"/"+n.Name)
			r.unseen = r.unseen && (n.Region != in.Region || n.Role != in.Role)
		}
	}
	if _, known := d.safetyPoint(r); known || d.announced(r.Kind, r.ID) {
		r.unseen = false // gossip hears nothing of it because it is refused
	}
	if !r.unseen || in.Unseen || forwarded {
		return r, nil
	}
	detail := "Nothing was revoked: gossip knows no node " + r.subject + ". "
	if len(namesakes) > 0 {
		detail += "There is " + strings.Join(namesakes, ", ") + ": name that if it is meant. "
	} else {
		detail += "/admin/v1/nodes lists those that it knows (`ringmain node list`). "
	}
	return r, problem.New(http.StatusNotFound, api.CodeNotFound, "", detail+"To refuse the name all the same, for good, repeat the request with unseen=true (`--unseen`).")
}

// tokenOf finds the token that by wants to revoke. Whoever was asked sees to it
// that it is not the one that asks, and names it to the home by its hash.
func (d *Desk) tokenOf(ref string, by *records.Request) (revocation, error) {
	sum, err := hex.DecodeString(ref)
	byHash := err == nil && len(sum) == sha256.Size
	var found []gate.Token
	for _, t := range d.cfg.Tokens {
		twice := slices.ContainsFunc(found, func(f gate.Token) bool { return f.SHA256 == t.SHA256 })
		if !twice && (t.Name == ref || byHash && [sha256.Size]byte(sum) == t.SHA256) {
			found = append(found, t)
		}
	}
	switch {
	case len(found) > 1:
		return revocation{}, problem.Conflict("",
			"Nothing was revoked: several tokens have this name. Give the SHA-256 of its text in hex, as GET /admin/v1/tokens lists it (`ringmain token list`).")
	case len(found) == 1:
		t := found[0]
		if t.SHA256 == by.Token || by.Forwarded && !byHash && t.Name == by.Actor {
			return revocation{}, problem.Conflict("",
				"This is the token that asks. Ask with another, so that somebody can still manage the cluster.")
		}
		return d.revocationOf(registry.KindToken, registry.TokenID(t.SHA256), t.Name, t.Expires.UnixMilli()), nil
	case byHash:
		return d.revocationOf(registry.KindToken, registry.TokenID([sha256.Size]byte(sum)), ref, 0), nil
	}
	return revocation{}, problem.New(http.StatusNotFound, api.CodeNotFound, "",
		"Neither the node that was asked nor the one that answers for the global shard knows a token of that name: give the SHA-256 of its text in hex, as GET /admin/v1/tokens lists it (`ringmain token list`).")
}

// tokenEarly names the token by its hash while the request is still on its way:
// elsewhere the name may mean another, or none.
func (d *Desk) tokenEarly(r *http.Request) error {
	by := records.RequestOf(r.Context())
	rev, err := d.tokenOf(r.PathValue("token"), by)
	if p := (*api.Problem)(nil); errors.As(err, &p) && p.Status == http.StatusNotFound {
		return nil // the home may know the name
	}
	if err != nil {
		return err
	}
	if d.revokes() == nil {
		d.announce(by.Actor, rev)
	}
	_, sum, _ := strings.Cut(rev.ID, "_")
	r.URL.Path, r.URL.RawPath = "/admin/v1/tokens/"+sum+"/revoke", ""
	return nil
}

// nodeEarly looks the node up where the operator does, and tells data nodes while
// the request is still on its way to the home.
func (d *Desk) nodeEarly(r *http.Request) error {
	query := r.URL.Query()
	unseen, _ := strconv.ParseBool(query.Get("unseen"))
	rev, err := d.nodeOf(NodePath{r.PathValue("region"), r.PathValue("role"), r.PathValue("node"), unseen}, false)
	if err != nil {
		return err
	}
	if d.revokes() == nil {
		d.announce(records.RequestOf(r.Context()).Actor, rev)
	}
	query.Del("unseen") // a home of an older release refuses what it does not know
	r.URL.RawQuery = query.Encode()
	return nil
}

// announcing tells data nodes while the request is still on its way to the home.
func (d *Desk) announcing(of func(*http.Request) (revocation, error)) func(*http.Request) error {
	return func(r *http.Request) error {
		if rev, err := of(r); err == nil && d.revokes() == nil {
			d.announce(records.RequestOf(r.Context()).Actor, rev)
		}
		return nil
	}
}

// revokes is an error as long as the region's nodes may not read such a revocation.
func (d *Desk) revokes() error {
	var version uint64
	d.records.View(func(s *ledger.State) { version = s.Version() })
	if version >= registry.VersionSafety {
		return nil
	}
	return problem.Conflict("",
		"Nothing was revoked: some node of this region runs a release that cannot read such a revocation. Upgrade all of them, then repeat the request.")
}

func (d *Desk) announce(actor string, rev revocation) {
	if d.cfg.Sink == nil {
		return
	}
	var known bool
	d.records.View(func(s *ledger.State) { _, known = s.Revoked(rev.Kind, rev.ID) })
	if !known {
		d.cfg.Sink.PushRevocations([]registry.Revocation{rev.Revocation})
		d.cfg.Audit.RevocationPushed(actor, rev.Kind.String(), rev.subject)
	}
}

// revoke commits what of names to the safety set, unless it is there already.
func (d *Desk) revoke(ctx context.Context, of func() (revocation, error)) (*gate.Answer[api.Revoked], error) {
	rev, err := of()
	if err = errors.Join(err, d.revokes()); err != nil {
		return nil, err
	}
	actor := records.RequestOf(ctx).Actor
	d.announce(actor, rev)
	point, known := d.safetyPoint(rev)
	if !known {
		change := registry.Change{Op: registry.OpRevoke, Kind: rev.Kind, ID: rev.ID, At: rev.At, Expires: rev.Expires}
		if point, err = d.records.Commit(ctx, rev.Shard, change); err != nil {
			return nil, err
		}
		d.cfg.Audit.Revoked(actor, rev.Kind.String(), rev.subject, rev.Shard, point)
	}
	var now registry.Revocation
	d.records.View(func(s *ledger.State) { now, _ = s.Revoked(rev.Kind, rev.ID) })
	return &gate.Answer[api.Revoked]{Position: api.FormatPosition(rev.Shard, point), Body: api.Revoked{
		Kind: rev.Kind.String(), ID: rev.ID, Subject: rev.subject, Revoked: time.UnixMilli(now.At).UTC(), Expires: records.Millis(now.Expires),
		Upstreams: rev.upstreams, Unseen: rev.unseen, Held: d.Held(ctx, rev.Shard, point),
	}}, nil
}

// safetyPoint is where this copy stands, if it holds the revocation.
func (d *Desk) safetyPoint(rev revocation) (point controlplane.Point, known bool) {
	d.records.View(func(s *ledger.State) {
		info, _ := s.Shard(rev.Shard)
		point = info.Last
		_, known = s.Revoked(rev.Kind, rev.ID)
	})
	return point, known
}

// announced reports whether this node was told of a revocation before it is committed.
func (d *Desk) announced(kind registry.Kind, id string) bool {
	return d.cfg.Announced != nil && d.cfg.Announced(kind, id)
}

// Refuses reports whether the token is revoked, as far as this node has heard.
func (d *Desk) Refuses(sum [sha256.Size]byte) bool {
	_, refused := d.refusedSince(sum)
	return refused
}

// refusedSince is Refuses, with the time if it is committed.
func (d *Desk) refusedSince(sum [sha256.Size]byte) (since int64, refused bool) {
	id := registry.TokenID(sum)
	refused = d.announced(registry.KindToken, id)
	d.records.View(func(s *ledger.State) {
		if v, ok := s.Revoked(registry.KindToken, id); ok {
			since, refused = v.At, true
		}
	})
	return since, refused
}

func (d *Desk) listTokens() *gate.Answer[api.TokenList] {
	list := api.TokenList{Items: []api.Token{}}
	for _, t := range d.cfg.Tokens {
		since, _ := d.refusedSince(t.SHA256)
		list.Items = append(list.Items, api.Token{Name: t.Name, SHA256: hex.EncodeToString(t.SHA256[:]), Expires: t.Expires.UTC(), Revoked: records.Millis(since)})
	}
	return &gate.Answer[api.TokenList]{Body: list}
}
