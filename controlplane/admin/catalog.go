package admin

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// all lists every record of a kind.
func all(kind registry.Kind) func(*registry.State, string, int) []*registry.Record {
	return func(s *registry.State, after string, limit int) []*registry.Record {
		return s.List(kind, after, limit, nil)
	}
}

// global gives the id and shard of a new upstream or route.
func (a *API) global(ctx context.Context, kind registry.Kind) registry.Meta {
	return registry.Meta{ID: a.newID(ctx, kind, "", controlplane.ShardGlobal), Shard: controlplane.ShardGlobal}
}

// UpstreamPath names an upstream in a path.
type UpstreamPath struct {
	Upstream string `path:"upstream" doc:"Id or name of the upstream"`
}

func (a *API) showUpstream(m api.Meta, u *registry.Upstream) api.Upstream {
	out := api.Upstream{Meta: m, CredentialSet: len(u.Credential) > 0, UpstreamInput: api.UpstreamInput{
		Name: u.Name, Provider: u.Provider, Region: u.Region, Dialect: u.Dialect, BaseURL: u.BaseURL, Auth: u.Auth,
		Terms: api.Terms(u.Terms), Simulated: u.Simulated, Disabled: u.Disabled,
		Endpoints: u.Endpoints, Headers: converted(u.Headers, func(h registry.Header) api.Header { return api.Header(h) }),
		Query: u.Query, Concurrency: u.Concurrency, Dedicated: u.Dedicated,
	}}
	if out.CredentialSet {
		out.CredentialPrint = api.CredentialPrint(m.ID, string(u.Credential))
		a.view(func(s *registry.State) {
			if v, ok := s.Revoked(registry.KindCredential, registry.CredentialID(u.Credential)); ok {
				out.CredentialEnded = millisOrNil(v.At)
			}
		})
	}
	return out
}

// upstreamOf keeps the stored credential if none is given.
func upstreamOf(in api.UpstreamInput, stored []byte) *registry.Upstream {
	if in.Credential != nil {
		stored = []byte(*in.Credential)
	} else if in.Auth == "none" {
		stored = nil
	}
	return &registry.Upstream{
		Name: in.Name, Provider: in.Provider, Region: in.Region, Dialect: in.Dialect, BaseURL: in.BaseURL, Auth: in.Auth,
		Credential: stored, Terms: registry.Terms(in.Terms), Simulated: in.Simulated, Disabled: in.Disabled,
		Endpoints: orNone(in.Endpoints), Headers: converted(in.Headers, func(h api.Header) registry.Header { return registry.Header(h) }),
		Query: in.Query, Concurrency: in.Concurrency, Dedicated: in.Dedicated,
	}
}

// converted is each of list in another type; nil if there is none.
func converted[T, U any](list []T, convert func(T) U) []U {
	var out []U
	for _, v := range list {
		out = append(out, convert(v))
	}
	return out
}

// orNone makes an empty list nil, so that equal records are encoded alike.
func orNone(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list
}

func (a *API) upstreams(h huma.API) {
	const tag = "Upstreams"
	add(a, h, operation{
		id: "list-upstreams", method: http.MethodGet, path: "/upstreams", tag: tag, summary: "List upstreams", place: inGlobal,
	}, func(_ context.Context, in *Paging) (*answer[api.UpstreamList], error) {
		var list api.UpstreamList
		var err error
		list.Items, list.Page, err = page(a, *in, all(registry.KindUpstream), func(r *registry.Record) api.Upstream { return a.showUpstream(meta(r), r.Upstream) })
		return &answer[api.UpstreamList]{Body: list}, err
	})
	add(a, h, operation{
		id: "create-upstream", method: http.MethodPost, path: "/upstreams", tag: tag, summary: "Create an upstream", status: http.StatusCreated, makes: true, place: inGlobal,
		description: "The credential can be written and never read: answers say only whether there is one, and its fingerprint.",
	}, func(ctx context.Context, in *struct{ Body api.UpstreamInput }) (*answer[api.Upstream], error) {
		w, err := a.created(ctx, &registry.Record{Kind: registry.KindUpstream, Meta: a.global(ctx, registry.KindUpstream), Upstream: upstreamOf(in.Body, nil)})
		if err != nil {
			return nil, err
		}
		return wrote(w, "/admin/v1/upstreams/"+w.rec.Meta.ID, a.showUpstream(meta(w.rec), w.rec.Upstream)), nil
	})
	add(a, h, operation{
		id: "get-upstream", method: http.MethodGet, path: "/upstreams/{upstream}", tag: tag, summary: "Read an upstream, without its credential", place: inGlobal,
	}, func(_ context.Context, in *UpstreamPath) (*answer[api.Upstream], error) {
		rec, err := a.get(registry.KindUpstream, in.Upstream)
		if err != nil {
			return nil, err
		}
		return read(rec, a.showUpstream(meta(rec), rec.Upstream)), nil
	})
	add(a, h, operation{
		id: "update-upstream", method: http.MethodPut, path: "/upstreams/{upstream}", tag: tag, summary: "Replace an upstream", place: inGlobal,
		description: "Without a credential, the stored one is kept.",
	}, func(ctx context.Context, in *struct {
		UpstreamPath
		Matching
		Body api.UpstreamInput
	}) (*answer[api.Upstream], error) {
		w, err := a.updated(ctx, registry.KindUpstream, in.Upstream, in.Matching, func(r *registry.Record) error {
			r.Upstream = upstreamOf(in.Body, r.Upstream.Credential)
			return nil
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "", a.showUpstream(meta(w.rec), w.rec.Upstream)), nil
	})
	add(a, h, operation{
		id: "delete-upstream", method: http.MethodDelete, path: "/upstreams/{upstream}", tag: tag, summary: "Delete an upstream that no route uses", place: inGlobal,
	}, func(ctx context.Context, in *struct {
		UpstreamPath
		Matching
	}) (*answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindUpstream, in.Upstream, in.Matching)
	})
}

// RoutePath names a route in a path.
type RoutePath struct {
	Route string `path:"route" doc:"Id of the route, or its model's public name (percent-encoded)"`
}

func showRoute(m api.Meta, r *registry.Route) api.Route {
	out := api.Route{Meta: m, RouteInput: api.RouteInput{
		Model: r.Model, Timeouts: api.Timeouts(r.Timeouts), Targets: make([]api.Target, len(r.Targets)),
		Fallbacks: r.Fallbacks, ContextFallback: r.ContextFallback, Deterministic: r.Deterministic,
	}}
	for i, t := range r.Targets {
		out.Targets[i] = api.Target(t)
	}
	return out
}

func routeOf(in api.RouteInput) *registry.Route {
	r := &registry.Route{
		Model: in.Model, Timeouts: registry.Timeouts(in.Timeouts), Targets: make([]registry.Target, len(in.Targets)),
		Fallbacks: orNone(in.Fallbacks), ContextFallback: in.ContextFallback, Deterministic: in.Deterministic,
	}
	for i, t := range in.Targets {
		r.Targets[i] = registry.Target(t)
	}
	return r
}

// catalog registers routes and regions.
func (a *API) catalog(h huma.API) {
	const tag = "Routes"
	add(a, h, operation{
		id: "list-routes", method: http.MethodGet, path: "/routes", tag: tag, summary: "List the routes of models", place: inGlobal,
	}, func(_ context.Context, in *Paging) (*answer[api.RouteList], error) {
		var list api.RouteList
		var err error
		list.Items, list.Page, err = page(a, *in, all(registry.KindRoute), func(r *registry.Record) api.Route { return showRoute(meta(r), r.Route) })
		return &answer[api.RouteList]{Body: list}, err
	})
	add(a, h, operation{
		id: "create-route", method: http.MethodPost, path: "/routes", tag: tag, summary: "Create the route of a model", status: http.StatusCreated, makes: true, place: inGlobal,
	}, func(ctx context.Context, in *struct{ Body api.RouteInput }) (*answer[api.Route], error) {
		w, err := a.created(ctx, &registry.Record{Kind: registry.KindRoute, Meta: a.global(ctx, registry.KindRoute), Route: routeOf(in.Body)})
		if err != nil {
			return nil, err
		}
		return wrote(w, "/admin/v1/routes/"+w.rec.Meta.ID, showRoute(meta(w.rec), w.rec.Route)), nil
	})
	add(a, h, operation{
		id: "get-route", method: http.MethodGet, path: "/routes/{route}", tag: tag, summary: "Read a route", place: inGlobal,
	}, func(_ context.Context, in *RoutePath) (*answer[api.Route], error) {
		rec, err := a.get(registry.KindRoute, in.Route)
		if err != nil {
			return nil, err
		}
		return read(rec, showRoute(meta(rec), rec.Route)), nil
	})
	add(a, h, operation{
		id: "update-route", method: http.MethodPut, path: "/routes/{route}", tag: tag, summary: "Replace a route", place: inGlobal,
	}, func(ctx context.Context, in *struct {
		RoutePath
		Matching
		Body api.RouteInput
	}) (*answer[api.Route], error) {
		w, err := a.updated(ctx, registry.KindRoute, in.Route, in.Matching, func(r *registry.Record) error {
			r.Route = routeOf(in.Body)
			return nil
		})
		if err != nil {
			return nil, err
		}
		return wrote(w, "", showRoute(meta(w.rec), w.rec.Route)), nil
	})
	add(a, h, operation{
		id: "delete-route", method: http.MethodDelete, path: "/routes/{route}", tag: tag, summary: "Delete a route: its model is unknown then", place: inGlobal,
	}, func(ctx context.Context, in *struct {
		RoutePath
		Matching
	}) (*answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindRoute, in.Route, in.Matching)
	})
	a.regions(h)
}

// RegionPath names a region in a path.
type RegionPath struct {
	Region string `path:"region" doc:"Name of the region" maxLength:"32"`
}

func (a *API) showRegion(m api.Meta, r *registry.Region) api.Region {
	out := api.Region{Meta: m, Name: r.Name, RegionInput: api.RegionInput{Jurisdiction: r.Jurisdiction, Endpoint: r.Endpoint, State: r.State, Brownout: r.Brownout}}
	if a.cfg.Published != nil {
		if up, known := a.cfg.Published()[r.Name]; known {
			out.Published = map[bool]string{true: "up", false: "down"}[up]
		}
	}
	return out
}

func (a *API) regions(h huma.API) {
	const tag = "Regions"
	add(a, h, operation{
		id: "list-regions", method: http.MethodGet, path: "/regions", tag: tag, summary: "List regions", place: inGlobal,
	}, func(_ context.Context, in *Paging) (*answer[api.RegionList], error) {
		var list api.RegionList
		var err error
		list.Items, list.Page, err = page(a, *in, all(registry.KindRegion), func(r *registry.Record) api.Region { return a.showRegion(meta(r), r.Region) })
		return &answer[api.RegionList]{Body: list}, err
	})
	add(a, h, operation{
		id: "get-region", method: http.MethodGet, path: "/regions/{region}", tag: tag, summary: "Read a region", place: inGlobal,
	}, func(_ context.Context, in *RegionPath) (*answer[api.Region], error) {
		rec, err := a.get(registry.KindRegion, in.Region)
		if err != nil {
			return nil, err
		}
		return read(rec, a.showRegion(meta(rec), rec.Region)), nil
	})
	add(a, h, operation{
		id: "put-region", method: http.MethodPut, path: "/regions/{region}", tag: tag, summary: "Create or replace a region", place: inGlobal,
		description: "Describes a region; starting its nodes is another matter.",
	}, a.putRegion)
}

func (a *API) putRegion(ctx context.Context, in *struct {
	RegionPath
	Matching
	Body api.RegionInput
}) (*answer[api.Region], error) {
	region := &registry.Region{Name: in.Region, Jurisdiction: in.Body.Jurisdiction, Endpoint: in.Body.Endpoint, State: orDefault(in.Body.State, "active"), Brownout: in.Body.Brownout}
	var w written
	var err error
	if _, missing := a.get(registry.KindRegion, in.Region); missing != nil && in.IfMatch == "" {
		w, err = a.created(ctx, &registry.Record{
			Kind: registry.KindRegion, Meta: registry.Meta{ID: registry.RegionID(in.Region), Shard: controlplane.ShardGlobal}, Region: region,
		})
	} else {
		w, err = a.updated(ctx, registry.KindRegion, in.Region, in.Matching, func(r *registry.Record) error {
			r.Region = region
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	return wrote(w, "", a.showRegion(meta(w.rec), w.rec.Region)), nil
}
