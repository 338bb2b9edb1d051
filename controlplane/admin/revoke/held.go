package revoke

import (
	"context"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

const (
	heldLook  = 100 * time.Millisecond // at most between looks at who holds a revocation
	heldFirst = 2 * time.Millisecond   // before the second look; each waits twice as long as the one before
)

// Held says who holds the entry at point, which is in this node's copy. It
// waits for those who are on their way to it, up to HeldIn.
func (d *Desk) Held(ctx context.Context, shard controlplane.Shard, point controlplane.Point) *api.Held {
	end := time.NewTimer(d.cfg.HeldIn)
	defer end.Stop()
	var said <-chan struct{}
	for look := heldFirst; ; look = min(2*look, heldLook) {
		if d.cfg.Holders != nil {
			said = d.cfg.Holders.HeldChanged()
		}
		h := d.HeldNow(shard, point)
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

// HeldNow is Held as of now. Regions are told by their own words to this home;
// data nodes by what they say, here or in gossip, that their worker was given.
func (d *Desk) HeldNow(shard controlplane.Shard, point controlplane.Point) *api.Held {
	var info registry.ShardInfo
	d.records.View(func(s *ledger.State) { info, _ = s.Shard(shard) })
	reached := map[string]controlplane.Point{d.cfg.Region: info.Last}
	if d.cfg.Homes != nil {
		// A follower, or a leader that has just begun, knows of nobody.
		if r, err := d.cfg.Homes.Reach(shard); err == nil {
			for _, m := range r.Members {
				reached = withWord(reached, d.cfg.Region, m)
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
	if d.cfg.Nodes == nil {
		return out
	}
	for _, n := range d.cfg.Nodes() {
		if n.Role != "data" || !slices.Contains(info.Members, n.Region) {
			continue
		}
		at, known := positionIn(n.Position, shard)
		if d.cfg.Holders != nil {
			if p, ok := d.cfg.Holders.HeldBy(n.Region, n.Name, shard); ok && has(p) {
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
