package gate

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Place is what a request is about. The zero Place is nothing that this node can
// tell: its region answers, if only with a refusal.
type Place struct {
	region string             // its leader answers, whatever it is home of
	shard  controlplane.Shard // "" = none that this node can tell
	node   bool               // the node that is asked, and no other
}

// In is the place of what belongs to shard.
func In(shard controlplane.Shard) Place { return Place{shard: shard} }

// Asked is a request that is to be placed.
type Asked struct {
	*http.Request
	Body  []byte
	Entry string // region where it arrived
}

// Placement finds the place of a request.
type Placement func(*ledger.State, Asked) Place

// ThisNode answers what is about itself.
func ThisNode(*ledger.State, Asked) Place { return Place{node: true} }

// InGlobal places what belongs to the global shard.
func InGlobal(*ledger.State, Asked) Place { return In(controlplane.ShardGlobal) }

// ByID places a request by the id in its path.
func ByID(kind registry.Kind, param string) Placement {
	return func(s *ledger.State, r Asked) Place {
		shard, _ := s.ShardOf(kind, r.PathValue(param))
		return In(shard)
	}
}

// InRegion places a request at the leader of the region in its query.
func InRegion(_ *ledger.State, r Asked) Place {
	if region := r.URL.Query().Get("region"); region != "" {
		return Place{region: region}
	}
	return Place{region: r.Entry}
}

// AtRegion is the query of what InRegion places.
type AtRegion struct {
	Region string `query:"region" doc:"Region whose own copy is meant; absent = the one that is asked"`
}

// verdict says who answers a request about a shard: this node, if regions
// and err are empty.
type verdict struct {
	regions []string // one of them answers, or knows who does
	leader  string   // internal address of the leader, if the region is this one
	orHere  bool     // if they cannot be reached in time, this node's own copy will do
	err     *api.Problem
}

// lead is what the store says of its region's leader. It is asked before the
// state is viewed, since the store may use one lock for both.
type lead struct {
	here bool
	addr string
}

func (g *Gate) lead() lead {
	_, addr, _ := g.cfg.Store.Leader()
	return lead{here: g.cfg.Store.IsLeader(), addr: addr}
}

// decide says who answers a request. A follower's copy is a moment behind what
// its region acknowledged, so reads go to the leader: what was written through
// one node is found at once through the others.
func (g *Gate) decide(s *ledger.State, l lead, p Place, write bool) verdict {
	shard := p.shard
	info, held := s.Shard(shard)
	switch {
	case p.node:
		return verdict{}
	case p.region != "" && p.region != g.cfg.Region:
		if _, ok := s.ByName(registry.KindRegion, p.region); !ok {
			return verdict{err: problem.New(http.StatusNotFound, api.CodeNotFound, "query.region", "There is no region "+strconv.Quote(p.region)+": /admin/v1/regions lists them (`ringmain region list`).")}
		}
		return verdict{regions: []string{p.region}}
	case (held && !write || shard == "") && !l.here && l.addr != "":
		return verdict{regions: []string{g.cfg.Region}, leader: l.addr, orHere: !write}
	case held && !write, shard == "":
		return verdict{}
	case held && info.Home != g.cfg.Region:
		return verdict{regions: []string{info.Home}}
	case held && l.here:
		return verdict{}
	case held:
		return verdict{regions: []string{g.cfg.Region}, leader: l.addr}
	}
	var regions []string
	s.List(registry.KindRegion, "", 0, func(r *registry.Record) bool {
		if controlplane.ShardPinned(r.Region.Jurisdiction) == shard {
			regions = append(regions, r.Region.Name)
		}
		return false
	})
	pinned := shard != controlplane.ShardGlobal && !strings.Contains(string(shard), "-")
	switch {
	case slices.Contains(regions, g.cfg.Region), !pinned:
		// This region will hold it, or nobody can say who does: it is still starting.
		return verdict{err: problem.Of(controlplane.ErrNoLeader)}
	case len(regions) == 0:
		return verdict{err: problem.Invalid("jurisdiction", "No region of this cluster is in jurisdiction "+string(shard)+": /admin/v1/regions lists them.")}
	}
	return verdict{regions: regions}
}

// placed makes the middleware that sends a request to whoever must answer it.
// A node that is itself asked by another never sends further: it says who to ask.
func (g *Gate) placed(o Operation) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		x := exchangeOf(r.Context())
		if x.Actor == "" { // nothing gets past authenticate without one; this does not rely on it
			problem.Write(w, problem.Unauthorized())
			return
		}
		if o.Internal && !x.Forwarded {
			problem.Write(w, notHere())
			return
		}
		var err error
		if o.write() {
			if x.Level, err = records.LevelOf(r, o.Safe); err != nil {
				problem.Write(w, err)
				return
			}
		}
		if o.Makes {
			if x.Once, err = g.cfg.Records.OnceOf(r, x.Actor); err != nil {
				problem.Write(w, err)
				return
			}
		}
		wish := ""
		if !o.write() {
			if wish, err = wishOf(r); err != nil {
				problem.Write(w, err)
				return
			}
		}
		var v verdict
		var p Place
		l := g.lead()
		g.cfg.Store.View(func(s *ledger.State) {
			p = o.Place(s, Asked{r, x.body, x.Entry})
			v = g.decide(s, l, p, o.write() || wish == api.ConsistencyLinearizable)
		})
		if v.orHere && wish == api.ConsistencyStale {
			v = verdict{}
		}
		here := func() {
			if !o.write() {
				if err := g.worth(r.Context(), w, p, wish); err != nil {
					problem.Write(w, err)
					return
				}
			}
			next(ctx)
		}
		switch {
		case v.err != nil:
			problem.Write(w, v.err)
		case len(v.regions) == 0:
			here()
		case x.Forwarded:
			g.redirect(w, v)
		default:
			if o.Early != nil {
				if err := o.Early(r); err != nil {
					problem.Write(w, err)
					return
				}
			}
			g.forward(w, r, x, v, o.write(), here)
		}
	}
}
