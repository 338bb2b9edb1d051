// Package shards shows which region writes which records, has another region
// become home, and sees to the writes that a former home alone has.
package shards

import (
	"context"
	"net/http"
	"slices"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/audit"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Store is the region's replicated registry, as this room needs it.
type Store interface {
	ProposeLevel(ctx context.Context, shard controlplane.Shard, level registry.Level, changes []registry.Change) (ledger.Outcome, error)
	// ProposeCommand commits what is no entry of this region's.
	ProposeCommand(ctx context.Context, cmd *registry.Command) (ledger.Outcome, error)
}

// Homes moves shards between regions. It answers on the region's leader.
type Homes interface {
	// Confirmed returns once a majority of the shard's members holds the entry at point.
	Confirmed(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error
	Reach(shard controlplane.Shard) (homes.Reach, error)
	// Takeover and Move make this region the shard's home.
	Takeover(ctx context.Context, shard controlplane.Shard, opts homes.TakeoverOptions) (homes.Result, error)
	Move(ctx context.Context, shard controlplane.Shard) (homes.Result, error)
}

// Config is what Register needs.
type Config struct {
	Region    string
	Records   *records.Records
	Store     Store
	Homes     Homes         // nil moves no shard
	ConfirmIn time.Duration // how long a replayed entry may take to be confirmed
	Audit     audit.Log
}

type desk struct {
	cfg     Config
	records *records.Records
	ask     func(ctx context.Context, region, path string, in, out any) error
}

// Register has g answer the operations of this room.
func Register(g *gate.Gate, cfg Config) {
	d := &desk{cfg, cfg.Records, g.Ask}
	d.register(g)
	d.registerQuarantine(g)
}

// takeoverIn bounds a takeover or move; after it the region may go on with
// what it began, and the list of shards says what came of it.
const takeoverIn = gate.AnswerIn - time.Second

// ShardPath names a shard in a path.
type ShardPath struct {
	Shard string `path:"shard" doc:"Name of the shard: global, any-<region> or a jurisdiction"`
}

func (d *desk) register(g *gate.Gate) {
	const tag = "Shards"
	gate.Add(g, gate.Operation{
		ID: "list-shards", Method: http.MethodGet, Path: "/shards", Tag: tag, Summary: "List the shards that a region holds, with their homes and members", Place: gate.InRegion,
		Description: "As the region's leader knows it: who answered it when, and how far each member's copy is.",
	}, d.listShards)
	gate.Add(g, gate.Operation{
		ID: "move-shard", Method: http.MethodPost, Path: "/shards/{shard}/move", Tag: tag, Summary: "Make another region the home of a shard whose home answers", Place: gate.InRegion,
		Description: "The region in the query becomes home. The present home hands over all it has: nothing is lost, and writes are refused for less than a second.",
	}, func(ctx context.Context, in *struct {
		ShardPath
		gate.AtRegion
	}) (*gate.Answer[api.ShardMoved], error) {
		return d.takeOver(ctx, in.Shard, func(ctx context.Context, shard controlplane.Shard) (homes.Result, error) {
			d.cfg.Audit.ShardMoveAsked(records.RequestOf(ctx).Actor, in.Shard, d.cfg.Region)
			return d.cfg.Homes.Move(ctx, shard)
		})
	})
	gate.Add(g, gate.Operation{
		ID: "take-over-shard", Method: http.MethodPost, Path: "/shards/{shard}/takeover", Tag: tag, Summary: "Make another region the home of a shard whose home is lost", Place: gate.InRegion,
		Description: "The region in the query becomes home, with everything that a majority of the shard's regions has. What the former home has beyond that goes into its quarantine when it returns.",
	}, func(ctx context.Context, in *struct {
		ShardPath
		gate.AtRegion
		Body *api.TakeoverInput
	}) (*gate.Answer[api.ShardMoved], error) {
		var opts homes.TakeoverOptions
		if in.Body != nil {
			opts = homes.TakeoverOptions{Live: in.Body.Live, Lost: in.Body.Lost, Add: in.Body.Add}
		}
		return d.takeOver(ctx, in.Shard, func(ctx context.Context, shard controlplane.Shard) (homes.Result, error) {
			d.cfg.Audit.ShardTakeoverAsked(records.RequestOf(ctx).Actor, in.Shard, d.cfg.Region, opts.Live, opts.Lost, opts.Add)
			return d.cfg.Homes.Takeover(ctx, shard, opts)
		})
	})
}

func (d *desk) listShards(_ context.Context, _ *gate.AtRegion) (*gate.Answer[api.ShardList], error) {
	var infos []registry.ShardInfo
	quarantined := map[controlplane.Shard]int{}
	d.records.View(func(s *ledger.State) {
		infos = s.Shards()
		for _, info := range infos {
			for range s.Quarantine(info.Shard) {
				quarantined[info.Shard]++
			}
		}
	})
	list := api.ShardList{Region: d.cfg.Region, Items: []api.Shard{}}
	for _, info := range infos {
		list.Items = append(list.Items, d.showShard(info, quarantined[info.Shard]))
	}
	return &gate.Answer[api.ShardList]{Body: list}, nil
}

func (d *desk) showShard(info registry.ShardInfo, quarantined int) api.Shard {
	out := api.Shard{
		Shard: string(info.Shard), Home: info.Home, Epoch: info.Epoch.String(), Position: api.FormatPoint(info.Last),
		Confirmed: info.Confirmed, Quarantined: quarantined, SurvivesRegionLoss: len(info.Members) > 1,
		AutomaticTakeover: len(info.Members) > 2, Members: []api.ShardMember{},
	}
	var reach homes.Reach
	if d.cfg.Homes != nil {
		if r, err := d.cfg.Homes.Reach(info.Shard); err == nil { // a follower does not know
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
func (d *desk) takeOver(ctx context.Context, name string, how func(context.Context, controlplane.Shard) (homes.Result, error)) (*gate.Answer[api.ShardMoved], error) {
	shard, actor := controlplane.Shard(name), records.RequestOf(ctx).Actor
	if d.cfg.Homes == nil {
		return nil, problem.New(http.StatusServiceUnavailable, api.CodeNoLeader, "", "This node moves no shards.")
	}
	var held bool
	d.records.View(func(s *ledger.State) { _, held = s.Shard(shard) })
	if !held {
		return nil, problem.New(http.StatusNotFound, api.CodeNotFound, "shard",
			"Region "+d.cfg.Region+" holds no shard of this name, so it cannot become its home: `ringmain shard list` shows who holds what.")
	}
	ctx, cancel := context.WithTimeout(ctx, takeoverIn)
	defer cancel()
	res, err := how(ctx, shard)
	if err != nil {
		return nil, err
	}
	d.cfg.Audit.ShardMoved(actor, name, d.cfg.Region, res.Epoch, res.Lossless)
	return &gate.Answer[api.ShardMoved]{Body: api.ShardMoved{
		Shard: name, Home: d.cfg.Region, Epoch: res.Epoch.String(), Base: api.FormatPoint(res.Base), From: res.From, Copied: res.Copied, Lossless: res.Lossless,
		SealedMillis: res.Sealed.Milliseconds(), OpenedMillis: res.Opened.Milliseconds(), ConfirmedMillis: res.Confirmed.Milliseconds(),
	}}, nil
}
