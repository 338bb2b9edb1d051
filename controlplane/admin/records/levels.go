package records

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Level is the acknowledgement that a write waits for.
type Level struct {
	wanted registry.Level
	asked  bool // by the caller; otherwise it is the operation's own
}

// LevelOf reads the request's header; without one, a write that is safe waits for
// other regions.
func LevelOf(r *http.Request, safe bool) (Level, error) {
	switch v := r.Header.Values(api.HeaderAcknowledge); {
	case len(v) == 0 && safe:
		return Level{wanted: registry.LevelMultiRegion}, nil
	case len(v) == 0:
		return Level{wanted: registry.LevelRegion}, nil
	case len(v) == 1 && v[0] == api.AcknowledgedRegion:
		return Level{wanted: registry.LevelRegion, asked: true}, nil
	case len(v) == 1 && v[0] == api.AcknowledgedMultiRegion:
		return Level{wanted: registry.LevelMultiRegion, asked: true}, nil
	}
	return Level{}, problem.New(http.StatusBadRequest, api.CodeInvalidHead, api.HeaderAcknowledge,
		"Use region or multi-region.")
}

// RegionOnly reports whether the caller asked for no more than its home region.
func (l Level) RegionOnly() bool { return l.asked && l.wanted == registry.LevelRegion }

// Safely gives a context that waits for other regions, whatever the caller asked for.
func Safely(ctx context.Context) context.Context {
	x := *RequestOf(ctx)
	x.Level = Level{wanted: registry.LevelMultiRegion}
	return With(ctx, &x)
}

// admitted refuses a write before it is made, where its acknowledgement could
// mislead. Revocations are never refused.
func (r *Records) admitted(ctx context.Context, shard controlplane.Shard, c registry.Change) error {
	l := RequestOf(ctx).Level
	if r.cfg.Homes == nil || c.Op == registry.OpRevoke {
		return nil
	}
	var members []string
	r.View(func(s *ledger.State) {
		info, _ := s.Shard(shard)
		members = info.Members
	})
	if len(members) == 1 {
		if l.asked && l.wanted == registry.LevelMultiRegion {
			return problem.New(http.StatusUnprocessableEntity, api.CodeInvalid, api.HeaderAcknowledge,
				"Shard "+string(shard)+" is held by region "+members[0]+" alone, so nothing in it can be acknowledged multi-region: ask for region. A sealed backup elsewhere is what survives the loss of that region.")
		}
		return nil
	}
	if l.RegionOnly() {
		return nil
	}
	reach, err := r.cfg.Homes.Reach(shard)
	if err != nil {
		return nil //nolint:nilerr // whether this node may write is for the store to say
	}
	if since := reach.Isolated; !since.IsZero() {
		return problem.New(http.StatusServiceUnavailable, api.CodeIsolated, "", fmt.Sprintf(
			"Region %s has not heard from a majority of the shard's regions since %s. Nothing was written: restore the connection, or write all the same with `%s: region` (`--acknowledge region`); if another region takes the shard over, such a write goes into quarantine.",
			r.cfg.Region, since.UTC().Format(time.RFC3339), api.HeaderAcknowledge))
	}
	return nil
}

// Acknowledged is how safe the entry at point is by the time of the answer, at
// most what was asked for. more says that the level asked for may still be
// reached.
func (r *Records) Acknowledged(ctx context.Context, shard controlplane.Shard, point controlplane.Point) (reached string, more bool) {
	if r.cfg.Homes == nil || RequestOf(ctx).Level.wanted != registry.LevelMultiRegion {
		return api.AcknowledgedRegion, false
	}
	var alone, first bool
	r.View(func(s *ledger.State) {
		info, _ := s.Shard(shard)
		alone, first = len(info.Members) == 1, s.Version() < registry.VersionOwnership
	})
	switch {
	case alone:
		return api.AcknowledgedRegion, false
	case first: // regions of the first release confirm nothing: waiting would be in vain
		return api.AcknowledgedRegion, RequestOf(ctx).Level.asked
	}
	ctx, cancel := context.WithTimeout(ctx, r.cfg.ConfirmIn)
	defer cancel()
	err := r.cfg.Homes.Confirmed(ctx, shard, point)
	if err == nil {
		return api.AcknowledgedMultiRegion, false
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		r.cfg.Logger.Info("a write is not known to be confirmed", "shard", shard, "err", err)
	}
	return api.AcknowledgedRegion, true
}
