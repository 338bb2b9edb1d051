package admin

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
)

// takeoverIn bounds a takeover or move; after it the region may go on with
// what it began, and the list of shards says what came of it.
const takeoverIn = answerIn - time.Second

// ShardPath names a shard in a path.
type ShardPath struct {
	Shard string `path:"shard" doc:"Name of the shard: global, any-<region> or a jurisdiction"`
}

// AtRegion names the region that is to answer.
type AtRegion struct {
	Region string `query:"region" doc:"Region whose own copy is meant; absent = the one that is asked"`
}

// inRegion places a request at the leader of the region in its query.
func inRegion(_ *registry.State, r *http.Request, x *exchange) place {
	if region := r.URL.Query().Get("region"); region != "" {
		return place{region: region}
	}
	return place{region: x.entry}
}

func (a *API) shards(h huma.API) {
	const tag = "Shards"
	add(a, h, operation{
		id: "list-shards", method: http.MethodGet, path: "/shards", tag: tag, summary: "List the shards that a region holds, with their homes and members", place: inRegion,
		description: "As the region's leader knows it: who answered it when, and how far each member's copy is.",
	}, a.listShards)
	add(a, h, operation{
		id: "move-shard", method: http.MethodPost, path: "/shards/{shard}/move", tag: tag, summary: "Make another region the home of a shard whose home answers", place: inRegion,
		description: "The region in the query becomes home. The present home hands over all it has: nothing is lost, and writes are refused for less than a second.",
	}, func(ctx context.Context, in *struct {
		ShardPath
		AtRegion
	}) (*answer[api.ShardMoved], error) {
		return a.takeOver(ctx, in.Shard, func(ctx context.Context, shard controlplane.Shard) (homes.Result, error) {
			a.audit.ShardMoveAsked(exchangeOf(ctx).actor, in.Shard, a.cfg.Region)
			return a.cfg.Homes.Move(ctx, shard)
		})
	})
	add(a, h, operation{
		id: "take-over-shard", method: http.MethodPost, path: "/shards/{shard}/takeover", tag: tag, summary: "Make another region the home of a shard whose home is lost", place: inRegion,
		description: "The region in the query becomes home, with everything that a majority of the shard's regions has. What the former home has beyond that goes into its quarantine when it returns.",
	}, func(ctx context.Context, in *struct {
		ShardPath
		AtRegion
		Body *api.TakeoverInput
	}) (*answer[api.ShardMoved], error) {
		var opts homes.TakeoverOptions
		if in.Body != nil {
			opts = homes.TakeoverOptions{Live: in.Body.Live, Lost: in.Body.Lost, Add: in.Body.Add}
		}
		return a.takeOver(ctx, in.Shard, func(ctx context.Context, shard controlplane.Shard) (homes.Result, error) {
			a.audit.ShardTakeoverAsked(exchangeOf(ctx).actor, in.Shard, a.cfg.Region, opts.Live, opts.Lost, opts.Add)
			return a.cfg.Homes.Takeover(ctx, shard, opts)
		})
	})
}

func (a *API) listShards(_ context.Context, _ *AtRegion) (*answer[api.ShardList], error) {
	var infos []registry.ShardInfo
	quarantined := map[controlplane.Shard]int{}
	a.view(func(s *registry.State) {
		infos = s.Shards()
		for _, info := range infos {
			for range s.Quarantine(info.Shard) {
				quarantined[info.Shard]++
			}
		}
	})
	list := api.ShardList{Region: a.cfg.Region, Items: []api.Shard{}}
	for _, info := range infos {
		list.Items = append(list.Items, a.showShard(info, quarantined[info.Shard]))
	}
	return &answer[api.ShardList]{Body: list}, nil
}

func (a *API) showShard(info registry.ShardInfo, quarantined int) api.Shard {
	out := api.Shard{
		Shard: string(info.Shard), Home: info.Home, Epoch: info.Epoch.String(), Position: api.FormatPoint(info.Last),
		Confirmed: info.Confirmed, Quarantined: quarantined, SurvivesRegionLoss: len(info.Members) > 1,
		AutomaticTakeover: len(info.Members) > 2, Members: []api.ShardMember{},
	}
	var reach homes.Reach
	if a.cfg.Homes != nil {
		if r, err := a.cfg.Homes.Reach(info.Shard); err == nil { // a follower does not know
			reach = r
			out.Role, out.Confirmed = r.Role, r.Confirmed
			out.IsolatedSince = timeOrNil(r.Isolated)
		}
	}
	for _, name := range info.Members {
		m := api.ShardMember{Region: name}
		if i := slices.IndexFunc(reach.Members, func(r homes.MemberReach) bool { return r.Region == name }); i >= 0 && !reach.Members[i].Heard.IsZero() {
			m.Position, m.Heard = api.FormatPoint(reach.Members[i].Last), timeOrNil(reach.Members[i].Heard)
		}
		out.Members = append(out.Members, m)
	}
	return out
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// takeOver has this region become home of the shard.
func (a *API) takeOver(ctx context.Context, name string, how func(context.Context, controlplane.Shard) (homes.Result, error)) (*answer[api.ShardMoved], error) {
	shard, actor := controlplane.Shard(name), exchangeOf(ctx).actor
	if a.cfg.Homes == nil {
		return nil, problem(http.StatusServiceUnavailable, api.CodeNoLeader, "", "This node moves no shards.")
	}
	var held bool
	a.view(func(s *registry.State) { _, held = s.Shard(shard) })
	if !held {
		return nil, problem(http.StatusNotFound, api.CodeNotFound, "shard",
			"Region "+a.cfg.Region+" holds no shard of this name, so it cannot become its home: `ringmain shard list` shows who holds what.")
	}
	ctx, cancel := context.WithTimeout(ctx, takeoverIn)
	defer cancel()
	res, err := how(ctx, shard)
	if err != nil {
		return nil, err
	}
	a.audit.ShardMoved(actor, name, a.cfg.Region, res.Epoch, res.Lossless)
	return &answer[api.ShardMoved]{Body: api.ShardMoved{
		Shard: name, Home: a.cfg.Region, Epoch: res.Epoch.String(), Base: api.FormatPoint(res.Base), From: res.From, Copied: res.Copied, Lossless: res.Lossless,
		SealedMillis: res.Sealed.Milliseconds(), OpenedMillis: res.Opened.Milliseconds(), ConfirmedMillis: res.Confirmed.Milliseconds(),
	}}, nil
}

// homesProblems say in HTTP what may come of a takeover or move. Nobody can
// repeat these blindly: they are not of class 503.
var homesProblems = []struct {
	err    error
	status int
	code   string
}{
	{homes.ErrHomeLives, http.StatusConflict, api.CodeHomeLives},
	{homes.ErrAlreadyHome, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrNoVersion, http.StatusConflict, api.CodeNotUpgraded},
	{homes.ErrRival, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrBusy, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrMoveAborted, http.StatusConflict, api.CodeMoveAborted},
	{homes.ErrFormerLife, http.StatusConflict, string(controlplane.RuleConflict)},
	{homes.ErrNotMember, http.StatusUnprocessableEntity, api.CodeInvalid},
	{homes.ErrNoMajority, http.StatusServiceUnavailable, api.CodeNoMajority},
	{homes.ErrDeposed, http.StatusConflict, api.CodeDeposed},
}

func explainHomes(err error) *api.Problem {
	for _, h := range homesProblems {
		if errors.Is(err, h.err) {
			text := h.err.Error()
			if errors.Is(err, homes.ErrHomeLives) {
				text = "the shard's home answers: move the shard instead (`ringmain shard move`), or take it all the same, which stops the home's writes, with live: true (`--force`)"
			}
			return problem(h.status, h.code, "", strings.ToUpper(text[:1])+text[1:]+".")
		}
	}
	return nil
}
