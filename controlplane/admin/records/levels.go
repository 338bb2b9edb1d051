package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
)

// Homes knows how far the other regions hold a shard, and moves shards between
// regions. It answers on the region's leader. homes.Homes is one.
type Homes interface {
	// Confirmed returns once a majority of the shard's members holds the entry at point.
	Confirmed(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error
	// Current returns nil if this region was the shard's home after the call.
	Current(ctx context.Context, shard controlplane.Shard) error
	Reach(shard controlplane.Shard) (homes.Reach, error)
	// Takeover and Move make this region the shard's home.
	Takeover(ctx context.Context, shard controlplane.Shard, opts homes.TakeoverOptions) (homes.Result, error)
	Move(ctx context.Context, shard controlplane.Shard) (homes.Result, error)
}

// level is the acknowledgement that a write waits for.
type level struct {
	wanted registry.Level
	asked  bool // by the caller; otherwise it is the operation's own
}

// levelOf reads the request's header.
func (o operation) levelOf(r *http.Request) (level, error) {
	switch v := r.Header.Values(api.HeaderAcknowledge); {
	case len(v) == 0 && o.safe:
		return level{wanted: registry.LevelMultiRegion}, nil
	case len(v) == 0:
		return level{wanted: registry.LevelRegion}, nil
	case len(v) == 1 && v[0] == api.AcknowledgedRegion:
		return level{wanted: registry.LevelRegion, asked: true}, nil
	case len(v) == 1 && v[0] == api.AcknowledgedMultiRegion:
		return level{wanted: registry.LevelMultiRegion, asked: true}, nil
	}
	return level{}, problem(http.StatusBadRequest, api.CodeInvalidHead, api.HeaderAcknowledge,
		"Use region or multi-region.")
}

// admitted refuses a write before it is made, where its acknowledgement could
// mislead. Revocations are never refused.
func (a *API) admitted(ctx context.Context, shard controlplane.Shard, c registry.Change) error {
	l := exchangeOf(ctx).level
	if a.cfg.Homes == nil || c.Op == registry.OpRevoke {
		return nil
	}
	var members []string
	a.view(func(s *registry.State) {
		info, _ := s.Shard(shard)
		members = info.Members
	})
	if len(members) == 1 {
		if l.asked && l.wanted == registry.LevelMultiRegion {
			return problem(http.StatusUnprocessableEntity, api.CodeInvalid, api.HeaderAcknowledge,
				"Shard "+string(shard)+" is held by region "+members[0]+" alone, so nothing in it can be acknowledged multi-region: ask for region. A sealed backup elsewhere is what survives the loss of that region.")
		}
		return nil
	}
	if l.asked && l.wanted == registry.LevelRegion {
		return nil
	}
	reach, err := a.cfg.Homes.Reach(shard)
	if err != nil {
		return nil //nolint:nilerr // whether this node may write is for the store to say
	}
	if since := reach.Isolated; !since.IsZero() {
		return problem(http.StatusServiceUnavailable, api.CodeIsolated, "", fmt.Sprintf(
			"Region %s has not heard from a majority of the shard's regions since %s. Nothing was written: restore the connection, or write all the same with `%s: region` (`--acknowledge region`); if another region takes the shard over, such a write goes into quarantine.",
			a.cfg.Region, since.UTC().Format(time.RFC3339), api.HeaderAcknowledge))
	}
	return nil
}

// acknowledged is how safe the entry at point is by the time of the answer, at
// most what was asked for. more says that the level asked for may still be
// reached.
func (a *API) acknowledged(ctx context.Context, shard controlplane.Shard, point controlplane.Point) (reached string, more bool) {
	if a.cfg.Homes == nil || exchangeOf(ctx).level.wanted != registry.LevelMultiRegion {
		return api.AcknowledgedRegion, false
	}
	var alone, first bool
	a.view(func(s *registry.State) {
		info, _ := s.Shard(shard)
		alone, first = len(info.Members) == 1, s.Version() < registry.VersionOwnership
	})
	switch {
	case alone:
		return api.AcknowledgedRegion, false
	case first: // regions of the first release confirm nothing: waiting would be in vain
		return api.AcknowledgedRegion, exchangeOf(ctx).level.asked
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.ConfirmIn)
	defer cancel()
	err := a.cfg.Homes.Confirmed(ctx, shard, point)
	if err == nil {
		return api.AcknowledgedMultiRegion, false
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		a.cfg.Logger.Info("a write is not known to be confirmed", "shard", shard, "err", err)
	}
	return api.AcknowledgedRegion, true
}
