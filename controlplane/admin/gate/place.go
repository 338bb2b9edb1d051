package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// place is what a request is about.
type place struct {
	region string             // its leader answers, whatever it is home of
	shard  controlplane.Shard // "" = none that this node can tell: its region answers, if only with a refusal
	node   bool               // the node that is asked, and no other
}

// placement finds the place of a request.
type placement func(s *registry.State, r *http.Request, x *exchange) place

func thisNode(*registry.State, *http.Request, *exchange) place { return place{node: true} }

func inGlobal(*registry.State, *http.Request, *exchange) place {
	return place{shard: controlplane.ShardGlobal}
}

// byID places a request by the id in its path.
func byID(kind registry.Kind, param string) placement {
	return func(s *registry.State, r *http.Request, _ *exchange) place {
		shard, _ := registry.ShardOf(kind, r.PathValue(param), s)
		return place{shard: shard}
	}
}

// byJurisdiction places the creation of an org: pinned orgs where they are
// pinned to, others in the shard of the region where the request arrived.
func byJurisdiction(_ *registry.State, _ *http.Request, x *exchange) place {
	var body struct {
		Jurisdiction string `json:"jurisdiction"`
	}
	if json.Unmarshal(x.body, &body) != nil || body.Jurisdiction != "" && checkJurisdiction(body.Jurisdiction) != nil {
		return place{} // the handler says what is wrong with it
	}
	return place{shard: orgShard(body.Jurisdiction, x.entry)}
}

// byQuery places a list of orgs.
func byQuery(_ *registry.State, r *http.Request, _ *exchange) place {
	if j := r.URL.Query().Get("jurisdiction"); j != "" && j != controlplane.JurisdictionAny {
		return place{shard: controlplane.ShardPinned(j)}
	}
	return place{}
}

func orgShard(jurisdiction, region string) controlplane.Shard {
	if jurisdiction == "" || jurisdiction == controlplane.JurisdictionAny {
		return controlplane.ShardAny(region)
	}
	return controlplane.ShardPinned(jurisdiction)
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

func (a *API) lead() lead {
	_, addr, _ := a.cfg.Store.Leader()
	return lead{here: a.cfg.Store.IsLeader(), addr: addr}
}

// decide says who answers a request. A follower's copy is a moment behind what
// its region acknowledged, so reads go to the leader: what was written through
// one node is found at once through the others.
func (a *API) decide(s *registry.State, l lead, p place, write bool) verdict {
	shard := p.shard
	info, held := s.Shard(shard)
	switch {
	case p.node:
		return verdict{}
	case p.region != "" && p.region != a.cfg.Region:
		if _, ok := s.ByName(registry.KindRegion, p.region); !ok {
			return verdict{err: problem(http.StatusNotFound, api.CodeNotFound, "query.region", "There is no region "+strconv.Quote(p.region)+": /admin/v1/regions lists them.")}
		}
		return verdict{regions: []string{p.region}}
	case (held && !write || shard == "") && !l.here && l.addr != "":
		return verdict{regions: []string{a.cfg.Region}, leader: l.addr, orHere: !write}
	case held && !write, shard == "":
		return verdict{}
	case held && info.Home != a.cfg.Region:
		return verdict{regions: []string{info.Home}}
	case held && l.here:
		return verdict{}
	case held:
		return verdict{regions: []string{a.cfg.Region}, leader: l.addr}
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
	case slices.Contains(regions, a.cfg.Region), !pinned:
		// This region will hold it, or nobody can say who does: it is still starting.
		return verdict{err: explain(controlplane.ErrNoLeader)}
	case len(regions) == 0:
		return verdict{err: invalid("jurisdiction", "No region of this cluster is in jurisdiction "+string(shard)+": /admin/v1/regions lists them.")}
	}
	return verdict{regions: regions}
}

// placed makes the middleware that sends a request to whoever must answer it.
// A node that is itself asked by another never sends further: it says who to ask.
func (a *API) placed(o operation) func(huma.Context, func(huma.Context)) {
	return func(ctx huma.Context, next func(huma.Context)) {
		r, w := humago.Unwrap(ctx)
		x := exchangeOf(r.Context())
		if x.actor == "" { // nothing gets past authenticate without one; this does not rely on it
			writeProblem(w, unauthorized())
			return
		}
		if o.internal && !x.internal {
			writeProblem(w, notHere())
			return
		}
		var err error
		if o.write() {
			if x.level, err = o.levelOf(r); err != nil {
				writeProblem(w, err)
				return
			}
		}
		if o.makes {
			if x.once, err = a.onceOf(r, x); err != nil {
				writeProblem(w, err)
				return
			}
		}
		wish := ""
		if !o.write() {
			if wish, err = wishOf(r); err != nil {
				writeProblem(w, err)
				return
			}
		}
		var v verdict
		var p place
		l := a.lead()
		a.cfg.Store.View(func(s *registry.State) {
			p = o.place(s, r, x)
			v = a.decide(s, l, p, o.write() || wish == api.ConsistencyLinearizable)
		})
		if v.orHere && wish == api.ConsistencyStale {
			v = verdict{}
		}
		here := func() {
			if !o.write() {
				if err := a.worth(r.Context(), w, p, wish); err != nil {
					writeProblem(w, err)
					return
				}
			}
			next(ctx)
		}
		switch {
		case v.err != nil:
			writeProblem(w, v.err)
		case len(v.regions) == 0:
			here()
		case x.internal:
			a.redirect(w, v)
		default:
			if o.early != nil {
				o.early(r, x)
			}
			a.forward(w, r, x, v, o.write(), here)
		}
	}
}

// redirect tells another control node whom to ask instead.
func (a *API) redirect(w http.ResponseWriter, v verdict) {
	if v.regions[0] == a.cfg.Region && v.leader == "" {
		writeProblem(w, controlplane.ErrNoLeader)
		return
	}
	w.Header().Set(api.HeaderHome, v.regions[0])
	if v.leader != "" {
		w.Header().Set(api.HeaderLeader, v.leader)
	}
	writeProblem(w, problem(http.StatusMisdirectedRequest, api.CodeMisdirected, "", "Another control node writes this shard: ask that one."))
}

// Headers that go with a forwarded request and come back with its answer.
var (
	requestHeaders  = []string{"Accept", "Content-Type", "If-Match", api.HeaderIdempotency, api.HeaderAcknowledge, api.HeaderConsistency}
	responseHeaders = []string{"Content-Type", "Etag", "Retry-After", api.HeaderErrorCode, api.HeaderPosition, api.HeaderAnswered, api.HeaderReplayed, api.HeaderAcknowledged, api.HeaderConsistency, api.HeaderAge}
)

// forward sends the whole request to one of regions and passes the answer on.
// Before it passes on an acknowledged write, it waits for this node's own copy,
// so that the caller's next read here sees what was written.
func (a *API) forward(w http.ResponseWriter, r *http.Request, x *exchange, v verdict, write bool, here func()) {
	ctx := r.Context()
	if v.orHere {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, leaderIn)
		defer cancel()
	}
	resp, err := a.ask(w, r.WithContext(ctx), x, v.regions)
	var answer []byte
	if err == nil {
		defer resp.Body.Close()
		if answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer)); err != nil {
			// The answer was cut. A read can simply be repeated; of a write nobody knows.
			err = fmt.Errorf("%w: %w", controlplane.ErrUnreachable, err)
			if write {
				err = fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
			}
		}
	}
	if err != nil {
		a.cfg.Logger.Warn("management request not forwarded", "to", v.regions, "err", err, "request_id", w.Header().Get(api.HeaderRequestID))
		if v.orHere {
			here()
			return
		}
		writeProblem(w, err)
		return
	}
	for _, name := range responseHeaders {
		if v := resp.Header.Get(name); v != "" {
			w.Header().Set(name, v)
		}
	}
	if position := resp.Header.Get(api.HeaderPosition); position != "" {
		w.Header().Set(api.HeaderVisible, a.visible(r.Context(), position))
	}
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer) // the client is gone: nobody to tell
}

// ask tries the regions in turn until one can be reached.
func (a *API) ask(w http.ResponseWriter, r *http.Request, x *exchange, regions []string) (*http.Response, error) {
	if a.cfg.Forwarder == nil {
		return nil, controlplane.ErrUnreachable
	}
	header := make(http.Header)
	for _, name := range requestHeaders {
		if v := r.Header.Get(name); v != "" {
			header.Set(name, v)
		}
	}
	header.Set(api.HeaderRequestID, w.Header().Get(api.HeaderRequestID))
	header.Set(api.HeaderActor, x.actor)
	header.Set(api.HeaderEntry, a.cfg.Region+"/"+a.cfg.Node)
	err := controlplane.ErrUnreachable
	for _, region := range regions {
		a.metrics.forwarded.WithLabelValues(region).Inc()
		out := r.Clone(r.Context())
		out.Header, out.ContentLength = header, int64(len(x.body))
		out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(x.body)), nil }
		out.Body, _ = out.GetBody()
		var resp *http.Response
		if resp, err = a.cfg.Forwarder.Forward(r.Context(), region, out); err == nil {
			return resp, nil
		}
		if !errors.Is(err, controlplane.ErrUnreachable) {
			break
		}
	}
	return nil, err
}

// visible waits until this node's copy has reached position, for a second at
// most, and says whether it has.
func (a *API) visible(ctx context.Context, position string) string {
	const here, home = "here", "home"
	shard, point, err := api.ParsePosition(position)
	if err != nil {
		return home
	}
	var held bool
	a.cfg.Store.View(func(s *registry.State) { _, held = s.Shard(shard) })
	if !held {
		return home
	}
	ctx, cancel := context.WithTimeout(ctx, visibleIn)
	defer cancel()
	if a.cfg.Store.Wait(ctx, shard, point) != nil {
		return home
	}
	return here
}
