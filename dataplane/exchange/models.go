package exchange

import (
	"time"

	"ringmain/controlplane/registry"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/route"
)

// models answers GET /v1/models and /v1/models/{id}: the routes that the key
// may use under its policies, and where and how each is served.
func (x *exchange) models(id string) {
	defer x.departs()
	// What a key may use is its own; caches know that of `authorization`, not of `x-api-key`.
	x.rw.Header()["Cache-Control"] = []string{"private, no-store"}
	if e := x.arrive(); e != nil {
		x.fail(e, 0)
		return
	}
	if id != "" {
		if rec, ok := x.view.Route(id); ok {
			if m, ok := x.describe(rec); ok {
				x.writeOK("application/json", dialect.AppendModel(nil, m))
				return
			}
		}
		x.fail(dialect.Fail(dialect.ModelNotFound, "The model is not known: list the models with GET /v1/models."), 0)
		return
	}
	list := make([]dialect.Model, 0, len(x.view.Routes()))
	for _, rec := range x.view.Routes() {
		if m, ok := x.describe(rec); ok {
			list = append(list, m)
		}
	}
	x.writeOK("application/json", dialect.AppendModels(nil, list))
}

func (x *exchange) describe(rec *registry.Record) (dialect.Model, bool) {
	o, ok := route.Offered(x.view, &x.decision, rec.Route)
	created := time.UnixMilli(rec.Meta.Created).UTC()
	return dialect.Model{
		ID: rec.Route.Model, Owner: o.Owner, Created: created.Unix(), Date: created.Format(time.RFC3339),
		Regions: o.Regions, Jurisdictions: o.Jurisdictions, Retention: o.Retention, Endpoints: o.Endpoints,
	}, ok
}
