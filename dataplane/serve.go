package dataplane

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane/apikey"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/caller"
	"ringmain/dataplane/dialect"
	"ringmain/dataplane/policy"
	"ringmain/dataplane/relay"
	"ringmain/dataplane/route"
	"ringmain/dataplane/view"
)

// Endpoints. Metric labels are these, or "other".
const (
	pathChat     = "/v1/chat/completions"
	pathMessages = "/v1/messages"
	pathModels   = "/v1/models"
	pathLive     = "/livez"
	pathReady    = "/readyz"
	pathOther    = "other"
)

// serveAPI is the handler of the client-facing listener.
func (w *Worker) serveAPI(rw http.ResponseWriter, r *http.Request) {
	path := r.URL.Path
	switch {
	case path == pathChat || path == pathMessages:
		x := w.newExchange(rw, r, path)
		if x.allow(http.MethodPost) {
			x.inference()
		}
	case path == pathModels || strings.HasPrefix(path, pathModels+"/"):
		x := w.newExchange(rw, r, pathModels)
		if r.Header.Get("Anthropic-Version") != "" {
			x.dialect = dialect.Anthropic
		}
		if x.allow(http.MethodGet) {
			x.models(strings.TrimPrefix(strings.TrimPrefix(path, pathModels), "/"))
		}
	case path == pathLive || path == pathReady:
		x := w.newExchange(rw, r, path)
		switch {
		case !x.allow(http.MethodGet, http.MethodHead):
		case path == pathReady && !w.ready():
			x.fail(dialect.Fail(dialect.NotReady, "This node is draining, or has no state loaded yet: send requests to another."), 0)
		default:
			x.writeOK("text/plain; charset=utf-8", []byte("ok\n"))
		}
	default:
		x := w.newExchange(rw, r, pathOther)
		x.fail(dialect.Fail(dialect.NotFound, "There is no such endpoint: check the path."), 0)
	}
}

// exchange is one request on its way through this node.
type exchange struct {
	w       *Worker
	rw      http.ResponseWriter
	r       *http.Request
	view    *view.View
	id      string
	arrived time.Time

	endpoint string // as clients name it; a metric label
	dialect  dialect.Dialect
	front    bool   // this node answers the client; else the peer where the request entered
	way      string // idc-route up to this node

	entryRegion []string
	entryNode   string

	caller   caller.Caller
	known    bool // caller is set: what happens is recorded
	asked    policy.Asked
	decision policy.Decision
	decided  bool

	body  *body
	query dialect.Request
	plan  *route.Plan
	model string // asked for, if a route has that name

	deadline time.Time
	left     int // attempts
	attempts int

	answered   bool   // an upstream's answer is passed on
	upstream   string // that answered, or was asked last
	upstreamID string
	served     string  // the model's name there
	remote     *remote // set if another region's node answered
	written    bool    // the head of the answer is out
	values     [8]string
	nvalues    int
	firstToken time.Duration
}

// remote is what an answering peer says of itself, to be shown as it is.
type remote struct {
	region, node []string
	way          string
}

func (w *Worker) newExchange(rw http.ResponseWriter, r *http.Request, endpoint string) *exchange {
	now := time.Now()
	return &exchange{
		w: w, rw: rw, r: r, view: w.cfg.Store.View(), id: newRequestID(now), arrived: now,
		endpoint: endpoint, dialect: dialect.OfPath(r.URL.Path), front: true, way: w.fixed.self,
		entryRegion: w.fixed.region, entryNode: w.setup.Node,
	}
}

func (x *exchange) allow(methods ...string) bool {
	if slices.Contains(methods, x.r.Method) {
		return true
	}
	x.rw.Header()["Allow"] = []string{strings.Join(methods, ", ")}
	x.fail(dialect.Fail(dialect.MethodNotAllowed, "This endpoint takes "+strings.Join(methods, " or ")+"."), 0)
	return false
}

// fail answers with an error of ours. wait is how long an upstream asked us to
// leave it alone; 0 = it did not.
func (x *exchange) fail(e *dialect.Error, wait time.Duration) {
	h := x.rw.Header()
	x.stamp(h)
	x.stampError(h, e.Code, e.Code.Retry(), wait)
	b := e.AppendBody(nil, x.dialect, x.id)
	x.write(e.Code.Status(), x.w.fixed.jsonType, b)
	x.counted(string(e.Code), e.Code.Status())
}

func (x *exchange) writeOK(contentType string, b []byte) {
	x.stamp(x.rw.Header())
	x.write(http.StatusOK, []string{contentType}, b)
	x.counted("", http.StatusOK)
}

func (x *exchange) write(status int, contentType []string, b []byte) {
	h := x.rw.Header()
	h[hContentType] = contentType
	h[hContentLen] = x.value(strconv.Itoa(len(b)))
	x.written = true
	x.rw.WriteHeader(status)
	_ = x.put(b) // a client that left is noticed elsewhere
}

// counted notes the answer in the metrics. A forwarded request counts as such
// here, and by its endpoint where it entered.
func (x *exchange) counted(code string, status int) {
	endpoint := x.endpoint
	if !x.front {
		endpoint = relay.ForwardPath
	}
	x.w.metrics.answered(endpoint, code, status, time.Since(x.arrived))
}

// identify finds out who asks and what they may do, before the body is read.
func (x *exchange) identify() *dialect.Error {
	key, refused := caller.Presented(x.r.Header)
	var who caller.Caller
	if refused == nil {
		who, refused = x.w.checker.Check(x.view, key, x.r.RemoteAddr)
	}
	if refused != nil {
		if refused.Jurisdiction != "" {
			x.turnAway(refused.Jurisdiction)
		}
		return dialect.Fail(dialect.Code(refused.Code), refused.Message)
	}
	x.caller, x.known = who, true
	asked, bad := policy.Parse(x.r.Header)
	if bad == nil {
		x.asked = asked
		x.decision, bad = policy.Decide(policy.Input{
			View: x.view, Org: x.caller.Org, Project: x.caller.Project, Class: x.caller.Key.Class,
			Asked: asked, EntryJurisdiction: x.w.setup.Jurisdiction,
		})
	}
	if bad != nil {
		if bad.Jurisdiction != "" {
			x.turnAway(bad.Jurisdiction)
		}
		return dialect.Fail(dialect.Code(bad.Code), bad.Message)
	}
	x.decided = true
	return nil
}

// turnAway prepares the refusal of a request that must not have come here: the
// right host is named, and nothing more of the body is taken in.
func (x *exchange) turnAway(jurisdiction string) {
	h := x.rw.Header()
	if endpoint := policy.Endpoint(x.view, jurisdiction); endpoint != "" {
		h[hEndpoint] = []string{endpoint}
	}
	if x.r.ProtoMajor == 1 {
		h["Connection"] = x.w.fixed.connClose
	}
	// Past deadlines make the server's own clean-up read nothing.
	_ = http.NewResponseController(x.rw).SetReadDeadline(time.Unix(1, 0))
}

// models answers GET /v1/models and /v1/models/{id}: the routes that the key
// may use, over either inference endpoint.
func (x *exchange) models(id string) {
	if e := x.identify(); e != nil {
		x.fail(e, 0)
		return
	}
	var list []dialect.Model
	for _, rec := range x.view.Routes() {
		if m, ok := x.describe(rec); ok && (id == "" || id == m.ID) {
			list = append(list, m)
		}
	}
	switch {
	case id == "":
		x.writeOK("application/json", dialect.AppendModels(nil, list))
	case len(list) == 0:
		x.fail(dialect.Fail(dialect.ModelNotFound, "The model is not known: list the models with GET /v1/models."), 0)
	default:
		x.writeOK("application/json", dialect.AppendModel(nil, list[0]))
	}
}

func (x *exchange) describe(rec *registry.Record) (dialect.Model, bool) {
	if !x.decision.AllowsModel(rec.Route.Model) {
		return dialect.Model{}, false
	}
	for i := range rec.Route.Targets {
		up, ok := x.view.Upstream(rec.Route.Targets[i].Upstream)
		if !ok || x.decision.Class == apikey.ClassTest && !up.Upstream.Simulated {
			continue
		}
		created := time.UnixMilli(rec.Meta.Created).UTC()
		return dialect.Model{
			ID: rec.Route.Model, Owner: up.Upstream.Provider,
			Created: created.Unix(), Date: created.Format(time.RFC3339),
		}, true
	}
	return dialect.Model{}, false
}
