package gate

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// wish is what a reader asks for; "" takes the best that can be had.
func wishOf(r *http.Request) (string, error) {
	switch v := r.Header.Values(api.HeaderConsistency); {
	case len(v) == 0:
		return "", nil
	case len(v) == 1 && (v[0] == api.ConsistencyLinearizable || v[0] == api.ConsistencyStale):
		return v[0], nil
	}
	return "", problem.New(http.StatusBadRequest, api.CodeInvalidHead, api.HeaderConsistency, "Use linearizable or stale.")
}

// worth makes sure of what the answer of a read by this node will be worth,
// and says so in its head. That another region has not become home meanwhile
// takes a word of the others, and is asked only for who wants to know.
func (g *Gate) worth(ctx context.Context, w http.ResponseWriter, p Place, wish string) error {
	if p.node {
		return nil
	}
	reached := api.ConsistencyStale
	if wish != api.ConsistencyStale && g.cfg.Store.IsLeader() {
		ctx, cancel := context.WithTimeout(ctx, leaderIn)
		defer cancel()
		if g.cfg.Store.Read(ctx) == nil {
			reached = api.ConsistencyRegion
			if g.surelyHome(ctx, p.shard, wish) {
				reached = api.ConsistencyLinearizable
			}
		}
	}
	if wish == api.ConsistencyLinearizable && reached != wish {
		if reached == api.ConsistencyRegion {
			return problem.New(http.StatusServiceUnavailable, api.CodeNoMajority, api.HeaderConsistency,
				"Too few of the shard's regions say that this one is its home still: repeat the request, or ask without this header and see in the answer's what it is worth.")
		}
		return controlplane.ErrNoLeader
	}
	w.Header().Set(api.HeaderConsistency, reached)
	if reached == api.ConsistencyStale {
		age := max(0, g.cfg.Now().Sub(g.cfg.Store.Contact()))
		w.Header().Set(api.HeaderAge, strconv.FormatFloat(age.Round(time.Millisecond).Seconds(), 'f', -1, 64))
	}
	return nil
}

// surelyHome reports that nobody else can have written the shard by now.
func (g *Gate) surelyHome(ctx context.Context, shard controlplane.Shard, wish string) bool {
	var home, alone bool
	g.cfg.Store.View(func(s *ledger.State) {
		info, _ := s.Shard(shard)
		home = info.Home == g.cfg.Region
		alone = len(info.Members) == 1 || s.Version() < registry.VersionOwnership // nobody else can take it over
	})
	switch {
	case !home:
		return false
	case g.cfg.Homes == nil || alone:
		return true
	}
	return wish == api.ConsistencyLinearizable && g.cfg.Homes.Current(ctx, shard) == nil
}
