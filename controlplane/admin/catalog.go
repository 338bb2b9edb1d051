package admin

import (
	"cmp"
	"context"
	"net/http"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// all lists every record of a kind.
func all(kind registry.Kind) func(*ledger.State, string, int) []*registry.Record {
	return func(s *ledger.State, after string, limit int) []*registry.Record {
		return s.List(kind, after, limit, nil)
	}
}

// global gives the id and shard of a new upstream or route.
func (a *API) global(ctx context.Context, kind registry.Kind) registry.Meta {
	return registry.Meta{ID: a.records.NewID(ctx, kind, "", controlplane.ShardGlobal), Shard: controlplane.ShardGlobal}
}

// UpstreamPath names an upstream in a path.
type UpstreamPath struct {
	Upstream string `path:"upstream" doc:"Id or name of the upstream"`
}

func (a *API) showUpstream(rec *registry.Record) api.Upstream {
	u := rec.Upstream
	out := api.Upstream{Meta: records.Meta(rec), CredentialSet: len(u.Credential) > 0, UpstreamInput: api.UpstreamInput{
		Name: u.Name, Provider: u.Provider, Region: u.Region, Dialect: u.Dialect, BaseURL: u.BaseURL, Auth: u.Auth,
		Terms: api.Terms(u.Terms), Simulated: u.Simulated, Disabled: u.Disabled,
		Endpoints: u.Endpoints, Headers: converted(u.Headers, func(h registry.Header) api.Header { return api.Header(h) }),
		Query: u.Query, Concurrency: u.Concurrency, Dedicated: u.Dedicated,
	}}
	if out.CredentialSet {
		out.CredentialPrint = api.CredentialPrint(out.ID, string(u.Credential))
		a.records.View(func(s *ledger.State) {
			if v, ok := s.Revoked(registry.KindCredential, registry.CredentialID(u.Credential)); ok {
				out.CredentialEnded = records.Millis(v.At)
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

func (a *API) upstreams() {
	const tag = "Upstreams"
	gate.Add(a.gate, gate.Operation{
		ID: "list-upstreams", Method: http.MethodGet, Path: "/upstreams", Tag: tag, Summary: "List upstreams", Place: gate.InGlobal,
	}, func(_ context.Context, in *records.Paging) (*gate.Answer[api.UpstreamList], error) {
		var list api.UpstreamList
		var err error
		list.Items, list.Page, err = records.List(a.records, *in, all(registry.KindUpstream), a.showUpstream)
		return &gate.Answer[api.UpstreamList]{Body: list}, err
	})
	gate.Add(a.gate, gate.Operation{
		ID: "create-upstream", Method: http.MethodPost, Path: "/upstreams", Tag: tag, Summary: "Create an upstream", Status: http.StatusCreated, Makes: true, Place: gate.InGlobal,
		Description: "The credential can be written and never read: answers say only whether there is one, and its fingerprint.",
	}, func(ctx context.Context, in *struct{ Body api.UpstreamInput }) (*gate.Answer[api.Upstream], error) {
		w, err := a.records.Create(ctx, &registry.Record{Kind: registry.KindUpstream, Meta: a.global(ctx, registry.KindUpstream), Upstream: upstreamOf(in.Body, nil)})
		return wrote(w, err, "/admin/v1/upstreams/", a.showUpstream)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "get-upstream", Method: http.MethodGet, Path: "/upstreams/{upstream}", Tag: tag, Summary: "Read an upstream, without its credential", Place: gate.InGlobal,
	}, func(_ context.Context, in *UpstreamPath) (*gate.Answer[api.Upstream], error) {
		return read(a, registry.KindUpstream, in.Upstream, a.showUpstream)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "update-upstream", Method: http.MethodPut, Path: "/upstreams/{upstream}", Tag: tag, Summary: "Replace an upstream", Place: gate.InGlobal,
		Description: "Without a credential, the stored one is kept.",
	}, func(ctx context.Context, in *struct {
		UpstreamPath
		records.Matching
		Body api.UpstreamInput
	}) (*gate.Answer[api.Upstream], error) {
		w, err := a.records.Update(ctx, registry.KindUpstream, in.Upstream, in.Matching, func(r *registry.Record) error {
			r.Upstream = upstreamOf(in.Body, r.Upstream.Credential)
			return nil
		})
		return wrote(w, err, "", a.showUpstream)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "delete-upstream", Method: http.MethodDelete, Path: "/upstreams/{upstream}", Tag: tag, Summary: "Delete an upstream that no route uses", Place: gate.InGlobal,
	}, func(ctx context.Context, in *struct {
		UpstreamPath
		records.Matching
	}) (*gate.Answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindUpstream, in.Upstream, in.Matching)
	})
}

// RoutePath names a route in a path.
type RoutePath struct {
	Route string `path:"route" doc:"Id of the route, or its model's public name (percent-encoded)"`
}

func showRoute(rec *registry.Record) api.Route {
	r := rec.Route
	out := api.Route{Meta: records.Meta(rec), RouteInput: api.RouteInput{
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
func (a *API) catalog() {
	const tag = "Routes"
	gate.Add(a.gate, gate.Operation{
		ID: "list-routes", Method: http.MethodGet, Path: "/routes", Tag: tag, Summary: "List the routes of models", Place: gate.InGlobal,
	}, func(_ context.Context, in *records.Paging) (*gate.Answer[api.RouteList], error) {
		var list api.RouteList
		var err error
		list.Items, list.Page, err = records.List(a.records, *in, all(registry.KindRoute), showRoute)
		return &gate.Answer[api.RouteList]{Body: list}, err
	})
	gate.Add(a.gate, gate.Operation{
		ID: "create-route", Method: http.MethodPost, Path: "/routes", Tag: tag, Summary: "Create the route of a model", Status: http.StatusCreated, Makes: true, Place: gate.InGlobal,
	}, func(ctx context.Context, in *struct{ Body api.RouteInput }) (*gate.Answer[api.Route], error) {
		w, err := a.records.Create(ctx, &registry.Record{Kind: registry.KindRoute, Meta: a.global(ctx, registry.KindRoute), Route: routeOf(in.Body)})
		return wrote(w, err, "/admin/v1/routes/", showRoute)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "get-route", Method: http.MethodGet, Path: "/routes/{route}", Tag: tag, Summary: "Read a route", Place: gate.InGlobal,
	}, func(_ context.Context, in *RoutePath) (*gate.Answer[api.Route], error) {
		return read(a, registry.KindRoute, in.Route, showRoute)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "update-route", Method: http.MethodPut, Path: "/routes/{route}", Tag: tag, Summary: "Replace a route", Place: gate.InGlobal,
	}, func(ctx context.Context, in *struct {
		RoutePath
		records.Matching
		Body api.RouteInput
	}) (*gate.Answer[api.Route], error) {
		w, err := a.records.Update(ctx, registry.KindRoute, in.Route, in.Matching, func(r *registry.Record) error {
			r.Route = routeOf(in.Body)
			return nil
		})
		return wrote(w, err, "", showRoute)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "delete-route", Method: http.MethodDelete, Path: "/routes/{route}", Tag: tag, Summary: "Delete a route: its model is unknown then", Place: gate.InGlobal,
	}, func(ctx context.Context, in *struct {
		RoutePath
		records.Matching
	}) (*gate.Answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindRoute, in.Route, in.Matching)
	})
	a.regions()
}

// RegionPath names a region in a path.
type RegionPath struct {
	Region string `path:"region" doc:"Name of the region" maxLength:"32"`
}

func (a *API) showRegion(rec *registry.Record) api.Region {
	r := rec.Region
	out := api.Region{Meta: records.Meta(rec), Name: r.Name, RegionInput: api.RegionInput{Jurisdiction: r.Jurisdiction, Endpoint: r.Endpoint, State: r.State, Brownout: r.Brownout}}
	if a.cfg.Published != nil {
		if up, known := a.cfg.Published()[r.Name]; known {
			out.Published = map[bool]string{true: "up", false: "down"}[up]
		}
	}
	return out
}

func (a *API) regions() {
	const tag = "Regions"
	gate.Add(a.gate, gate.Operation{
		ID: "list-regions", Method: http.MethodGet, Path: "/regions", Tag: tag, Summary: "List regions", Place: gate.InGlobal,
	}, func(_ context.Context, in *records.Paging) (*gate.Answer[api.RegionList], error) {
		var list api.RegionList
		var err error
		list.Items, list.Page, err = records.List(a.records, *in, all(registry.KindRegion), a.showRegion)
		return &gate.Answer[api.RegionList]{Body: list}, err
	})
	gate.Add(a.gate, gate.Operation{
		ID: "get-region", Method: http.MethodGet, Path: "/regions/{region}", Tag: tag, Summary: "Read a region", Place: gate.InGlobal,
	}, func(_ context.Context, in *RegionPath) (*gate.Answer[api.Region], error) {
		return read(a, registry.KindRegion, in.Region, a.showRegion)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "put-region", Method: http.MethodPut, Path: "/regions/{region}", Tag: tag, Summary: "Create or replace a region", Place: gate.InGlobal,
		Description: "Describes a region; starting its nodes is another matter.",
	}, a.putRegion)
}

func (a *API) putRegion(ctx context.Context, in *struct {
	RegionPath
	records.Matching
	Body api.RegionInput
}) (*gate.Answer[api.Region], error) {
	region := &registry.Region{Name: in.Region, Jurisdiction: in.Body.Jurisdiction, Endpoint: in.Body.Endpoint, State: cmp.Or(in.Body.State, "active"), Brownout: in.Body.Brownout}
	var w records.Written
	var err error
	if _, missing := a.records.Get(registry.KindRegion, in.Region); missing != nil && in.IfMatch == "" {
		w, err = a.records.Create(ctx, &registry.Record{
			Kind: registry.KindRegion, Meta: registry.Meta{ID: registry.RegionID(in.Region), Shard: controlplane.ShardGlobal}, Region: region,
		})
	} else {
		w, err = a.records.Update(ctx, registry.KindRegion, in.Region, in.Matching, func(r *registry.Record) error {
			r.Region = region
			return nil
		})
	}
	return wrote(w, err, "", a.showRegion)
}
