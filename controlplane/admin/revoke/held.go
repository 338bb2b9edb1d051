package admin

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
)

const (
	confirmAbove = 100                    // keys that one request may revoke without a confirmed count
	heldLook     = 100 * time.Millisecond // at most between looks at who holds a revocation
	heldFirst    = 2 * time.Millisecond   // before the second look; each waits twice as long as the one before
)

// held says who holds the entry at point, which is in this node's copy. It
// waits for those who are on their way to it, up to HeldIn.
func (a *API) held(ctx context.Context, shard controlplane.Shard, point controlplane.Point) *api.Held {
	end := time.NewTimer(a.cfg.HeldIn)
	defer end.Stop()
	var said <-chan struct{}
	for look := heldFirst; ; look = min(2*look, heldLook) {
		if a.cfg.Holders != nil {
			said = a.cfg.Holders.HeldChanged()
		}
		h := a.holders(shard, point)
		if len(h.RegionsMissing)+len(h.NodesMissing) == 0 {
			return h
		}
		select {
		case <-time.After(look):
		case <-said:
		case <-end.C:
			return h
		case <-ctx.Done():
			return h
		}
	}
}

// holders is held as of now. Regions are told by their own words to this home;
// data nodes by what they say, here or in gossip, that their worker was given.
func (a *API) holders(shard controlplane.Shard, point controlplane.Point) *api.Held {
	var info registry.ShardInfo
	a.view(func(s *registry.State) { info, _ = s.Shard(shard) })
	reached := map[string]controlplane.Point{a.cfg.Region: info.Last}
	if a.cfg.Homes != nil {
		// A follower, or a leader that has just begun, knows of nobody.
		if r, err := a.cfg.Homes.Reach(shard); err == nil {
			for _, m := range r.Members {
				reached = withWord(reached, a.cfg.Region, m)
			}
		}
	}
	// A copy that is as far in this very history holds all of it up to there.
	copied := info.Copy()
	has := func(at controlplane.Point) bool {
		return at.Seq >= point.Seq && (at.Epoch == point.Epoch || copied.Holds(at))
	}
	out := &api.Held{Regions: []string{}, Nodes: []string{}}
	for _, region := range info.Members {
		switch at, known := reached[region]; {
		case !known:
			out.RegionsUnknown = append(out.RegionsUnknown, region)
		case has(at):
			out.Regions = append(out.Regions, region)
		default:
			out.RegionsMissing = append(out.RegionsMissing, region)
		}
	}
	if a.cfg.Nodes == nil {
		return out
	}
	for _, n := range a.cfg.Nodes() {
		if n.Role != "data" || !slices.Contains(info.Members, n.Region) {
			continue
		}
		at, known := positionIn(n.Position, shard)
		if a.cfg.Holders != nil {
			if p, ok := a.cfg.Holders.HeldBy(n.Region, n.Name, shard); ok && has(p) {
				at, known = p, true
			}
		}
		switch {
		case !known, !n.Alive:
			out.NodesUnknown = append(out.NodesUnknown, n.Name)
		case has(at):
			out.Nodes = append(out.Nodes, n.Name)
		default:
			out.NodesMissing = append(out.NodesMissing, n.Name)
		}
	}
	return out
}

func withWord(reached map[string]controlplane.Point, own string, m homes.MemberReach) map[string]controlplane.Point {
	if m.Region != own && !m.Heard.IsZero() {
		reached[m.Region] = m.Last
	}
	return reached
}

// positionIn reads how far a node says that it is in a shard.
func positionIn(text string, shard controlplane.Shard) (controlplane.Point, bool) {
	for part := range strings.FieldsSeq(text) {
		if s, p, err := api.ParsePosition(part); err == nil && s == shard {
			return p, true
		}
	}
	return controlplane.Point{}, false
}

// revokedAt is where a revoked key's revocation stands, or later.
func (a *API) revokedAt(rec *registry.Record) controlplane.Point {
	var info registry.ShardInfo
	a.view(func(s *registry.State) { info, _ = s.Shard(rec.Meta.Shard) })
	if epoch, exact := info.Copy().EpochAt(rec.Meta.Revision); exact {
		return controlplane.Point{Epoch: epoch, Seq: rec.Meta.Revision}
	}
	return info.Last
}

func (a *API) revokeProjectKeys(ctx context.Context, in *struct {
	ProjectPath
	Body *api.RevokeInput
}) (*answer[api.RevokedKeys], error) {
	project, err := a.get(registry.KindProject, in.Project)
	if err != nil {
		return nil, err
	}
	return a.revokeAll(ctx, "project "+project.Meta.ID, project.Meta.Shard, in.Body, func(s *registry.State) []*registry.Record {
		return s.KeysOf(project.Meta.ID, "", 0)
	})
}

func (a *API) revokeOrgKeys(ctx context.Context, in *struct {
	OrgPath
	Body *api.RevokeInput
}) (*answer[api.RevokedKeys], error) {
	org, err := a.get(registry.KindOrg, in.Org)
	if err != nil {
		return nil, err
	}
	return a.revokeAll(ctx, "org "+org.Meta.ID, org.Meta.Shard, in.Body, func(s *registry.State) (keys []*registry.Record) {
		for _, p := range s.ProjectsOf(org.Meta.ID, "", 0) {
			keys = append(keys, s.KeysOf(p.Meta.ID, "", 0)...)
		}
		return keys
	})
}

// revokeAll revokes the keys that list gives, in batches. Repeated after a
// failure it goes on with what is left: the count to confirm is of all keys,
// so that it stays the same.
func (a *API) revokeAll(ctx context.Context, of string, shard controlplane.Shard, in *api.RevokeInput, list func(*registry.State) []*registry.Record) (*answer[api.RevokedKeys], error) {
	var keys []*registry.Record
	a.view(func(s *registry.State) { keys = list(s) })
	var expect *int
	if in != nil {
		expect = in.Expect
	}
	left := slices.DeleteFunc(slices.Clone(keys), func(k *registry.Record) bool { return k.Key.Revoked != 0 })
	switch n := len(keys); {
	case expect != nil && *expect != n, expect == nil && n > confirmAbove:
		return nil, problem(http.StatusConflict, api.CodeCount, "expect", fmt.Sprintf(
			"Nothing was revoked: %s has %d keys, %d of them in force. Repeat the request with expect %d if all of them are meant.", of, n, len(left), n))
	}
	actor, now := exchangeOf(ctx).actor, a.cfg.Now().UnixMilli()
	a.pushRevocations(actor, left)
	for batch := range slices.Chunk(left, registry.MaxChanges) {
		changes := make([]registry.Change, len(batch))
		for i, k := range batch {
			changes[i] = registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: k.Meta.ID, At: now, Expires: k.Key.Expires}
		}
		point, err := a.commit(ctx, shard, changes...)
		if err != nil {
			return nil, err
		}
		for _, k := range batch {
			a.audit.KeyRevoked(actor, k.Meta.ID, shard, point)
		}
	}
	point := controlplane.Point{}
	a.view(func(s *registry.State) {
		info, _ := s.Shard(shard)
		point = info.Last
	})
	return &answer[api.RevokedKeys]{
		Position: api.FormatPosition(shard, point),
		Body:     api.RevokedKeys{Keys: len(keys), Revoked: len(left), Held: a.held(ctx, shard, point)},
	}, nil
}
