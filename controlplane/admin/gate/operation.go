package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

// operation is one line of the API.
type operation struct {
	id, method, path string
	tag, summary     string
	description      string
	status           int // of success; 0 = 200
	place            placement
	safe             bool                           // waits for other regions unless the caller asks for less
	makes            bool                           // creates a record or secret: an Idempotency-Key is honoured
	internal         bool                           // between control nodes only
	early            func(*http.Request, *exchange) // done at the entry node before the request is sent elsewhere
}

func (o operation) write() bool { return o.method != http.MethodGet }

// answer is what every handler gives.
type answer[T any] struct {
	Status   int
	ETag     string `header:"ETag"`
	Location string `header:"Location"`
	Position string `header:"Ringmain-Position"`
	Visible  string `header:"Ringmain-Visible"`
	Replayed string `header:"Ringmain-Replayed"`
	Reached  string `header:"Ringmain-Acknowledged"`
	Body     T
}

type nothing struct{}

// Paging is the query of every list. It is exported, like the paths, because
// huma fills exported fields only.
type Paging struct {
	Cursor string `query:"cursor" doc:"next_cursor of the page before"`
	Limit  int    `query:"limit" default:"100" minimum:"1" maximum:"500" doc:"Records per page"`
}

// Matching is the condition of an update.
type Matching struct {
	IfMatch string `header:"If-Match" doc:"ETag of what you read: the change is refused with 412 if the record moved on. Absent or * = whatever it is now"`
}

// revision is the one asked for; 0 for any.
func (m Matching) revision() (uint64, error) {
	if m.IfMatch == "" || m.IfMatch == "*" {
		return 0, nil
	}
	text, ok := strings.CutPrefix(m.IfMatch, `"`)
	text, ok2 := strings.CutSuffix(text, `"`)
	n, err := strconv.ParseUint(text, 10, 64)
	if !ok || !ok2 || err != nil || n == 0 {
		return 0, problem(http.StatusBadRequest, api.CodeInvalidHead, "If-Match", `Send the ETag as it was received, such as "42", or *.`)
	}
	return n, nil
}

func etag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

const description = `Operators' API of a ringmain cluster. Any control node answers; changes are sent to the leader of the
record's home region. An acknowledged change says how safe it is ("acknowledged") and where in the history it stands
(Ringmain-Position). Errors are RFC 9457 problems: "code" is for programs, "detail" says what to do, "field" where.
Unknown fields and query parameters are refused. PUT replaces: what is left out takes its default.`

// register builds the mux from all operations.
func (a *API) register() error {
	config := huma.DefaultConfig("ringmain admin", "1")
	config.Info.Description = description
	// huma builds its answer at the first request, without a lock: openapi.json is served below instead.
	config.OpenAPIPath, config.DocsPath, config.SchemasPath, config.CreateHooks = "", "", "", nil
	config.RejectUnknownQueryParameters = true
	strict := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}
	config.Formats = map[string]huma.Format{"application/json": strict, "json": strict}
	config.Transformers = []huma.Transformer{transform}
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"admin_token": {Type: "http", Scheme: "bearer"}}
	config.Security = []map[string][]string{{"admin_token": {}}}
	h := humago.New(a.mux, config)
	a.orgs(h)
	a.pins(h)
	a.projects(h)
	a.policies(h)
	a.keys(h)
	a.upstreams(h)
	a.safety(h)
	a.catalog(h)
	a.cluster(h)
	a.shards(h)
	a.quarantine(h)
	a.operations(h)
	// huma describes its own error type everywhere; ours is what is sent.
	schemas := h.OpenAPI().Components.Schemas.Map()
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
	spec, err := json.Marshal(h.OpenAPI())
	if err != nil {
		return fmt.Errorf("admin: OpenAPI description: %w", err)
	}
	a.mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(spec) // the client is gone: nobody to tell
	})
	return nil
}

// transform completes errors, whoever made them.
func transform(ctx huma.Context, _ string, v any) (any, error) {
	_, w := humago.Unwrap(ctx)
	switch e := v.(type) {
	case *huma.ErrorModel:
		return finish(w.Header(), fromHuma(e)), nil
	case *api.Problem:
		return finish(w.Header(), e), nil
	}
	return v, nil
}

// add registers one operation.
func add[I, T any](a *API, h huma.API, o operation, f func(context.Context, *I) (*answer[T], error)) {
	problems := &huma.Response{
		Description: "Problem",
		Content: map[string]*huma.MediaType{"application/problem+json": {
			Schema: h.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem"),
		}},
	}
	huma.Register(h, huma.Operation{
		OperationID: o.id, Method: o.method, Path: "/admin/v1" + o.path,
		Hidden:  o.internal,
		Summary: o.summary, Description: o.description, Tags: []string{o.tag}, DefaultStatus: o.status,
		MaxBodyBytes: MaxBody + 1, BodyReadTimeout: -1, // the body is in memory already
		Middlewares: huma.Middlewares{a.placed(o)},
		Responses:   map[string]*huma.Response{"default": problems},
	}, func(ctx context.Context, in *I) (*answer[T], error) {
		out, err := f(ctx, in)
		if err != nil {
			p := explain(err)
			if p.Status >= http.StatusInternalServerError {
				a.cfg.Logger.Warn("management request failed", "operation", o.id, "err", err)
			}
			return nil, p
		}
		out.Status = cmp.Or(o.status, http.StatusOK)
		if out.Position != "" {
			out.Visible = "here" // this node committed it
			if err := settle(ctx, a, out); err != nil {
				return nil, explain(err)
			}
		}
		if o := exchangeOf(ctx).once; o != nil && o.replay {
			out.Replayed = "true"
		}
		return out, nil
	})
}

// settle waits for the acknowledgement asked for, and says which was reached:
// 202 if it is less and may yet become more.
func settle[T any](ctx context.Context, a *API, out *answer[T]) error {
	shard, point, err := api.ParsePosition(out.Position)
	if err != nil {
		return err
	}
	reached, more := a.acknowledged(ctx, shard, point)
	out.Reached = reached
	if body, ok := any(&out.Body).(interface{ Acknowledge(level string) }); ok {
		body.Acknowledge(reached)
	}
	if more {
		out.Status = http.StatusAccepted
	}
	return nil
}

// view reads with the node's own copy.
func (a *API) view(f func(*registry.State)) { a.cfg.Store.View(f) }

// find looks up a record of the kind by id or, for the kinds that have unique
// names, by name.
func find(s *registry.State, kind registry.Kind, ref string) (*registry.Record, bool) {
	if rec, ok := s.Get(kind, ref); ok {
		return rec, true
	}
	return s.ByName(kind, ref)
}

// get is find in the node's own copy.
func (a *API) get(kind registry.Kind, ref string) (*registry.Record, error) {
	var rec *registry.Record
	var ok bool
	a.view(func(s *registry.State) { rec, ok = find(s, kind, ref) })
	if !ok {
		return nil, notFound(kind.String(), ref)
	}
	return rec, nil
}

// written is a committed change: the record as it is now, and its place.
type written struct {
	rec   *registry.Record
	point controlplane.Point
}

func (w written) position() string { return api.FormatPosition(w.rec.Meta.Shard, w.point) }

// commit proposes changes that take effect together.
func (a *API) commit(ctx context.Context, shard controlplane.Shard, changes ...registry.Change) (controlplane.Point, error) {
	for _, c := range changes {
		if err := a.admitted(ctx, shard, c); err != nil {
			return controlplane.Point{}, err
		}
	}
	out, err := a.cfg.Store.ProposeLevel(ctx, shard, exchangeOf(ctx).level.wanted, changes)
	if err == nil {
		err = out.Err
	}
	if err != nil {
		return controlplane.Point{}, err
	}
	return out.Points[shard], nil
}

// create commits a new record, stamped with the time, unless a request with the
// same Idempotency-Key has done so.
func (a *API) create(ctx context.Context, rec *registry.Record) (written, error) {
	once := exchangeOf(ctx).once
	if once != nil && once.replay {
		return a.replayed(rec)
	}
	now := a.cfg.Now().UnixMilli()
	rec.Meta.Created, rec.Meta.Updated = now, now
	point, err := a.commit(ctx, rec.Meta.Shard, registry.Change{Op: registry.OpPut, Record: rec, IfRevision: registry.RevisionAbsent})
	var rule *controlplane.RuleError
	if once != nil && errors.As(err, &rule) && (rule.Code == controlplane.RuleRevision || rule.Code == controlplane.RuleConflict) {
		if w, again := a.replayed(rec); again == nil {
			once.replay = true // the first request was still under way when this one looked
			return w, nil
		}
	}
	if err != nil {
		return written{}, err
	}
	stored, err := a.get(rec.Kind, rec.Meta.ID)
	if err != nil {
		return written{}, err
	}
	return written{stored, point}, nil
}

// created is create, told to the auditors.
func (a *API) created(ctx context.Context, rec *registry.Record) (written, error) {
	w, err := a.create(ctx, rec)
	if o := exchangeOf(ctx).once; err == nil && (o == nil || !o.replay) {
		a.audit.Created(exchangeOf(ctx).actor, rec.Kind.String(), rec.Meta.ID, rec.Meta.Shard, w.point)
	}
	return w, err
}

// update replaces the record that ref names by what change makes of a copy.
// Without a condition it starts over when somebody else was faster; an update
// that changes nothing writes nothing.
func (a *API) update(ctx context.Context, kind registry.Kind, ref string, cond Matching, change func(*registry.Record) error) (written, error) {
	want, err := cond.revision()
	if err != nil {
		return written{}, err
	}
	for try := 1; ; try++ {
		old, err := a.get(kind, ref)
		if err != nil {
			return written{}, err
		}
		if want != 0 && want != old.Meta.Revision {
			return written{}, moved(old)
		}
		rec, err := copyOf(old)
		if err != nil {
			return written{}, err
		}
		if err := change(rec); err != nil {
			return written{}, err
		}
		if same, err := equal(rec, old); err != nil {
			return written{}, err
		} else if same {
			var info registry.ShardInfo
			a.view(func(s *registry.State) { info, _ = s.Shard(old.Meta.Shard) })
			return written{old, info.Last}, nil
		}
		rec.Meta.Updated = max(a.cfg.Now().UnixMilli(), old.Meta.Updated)
		point, err := a.commit(ctx, rec.Meta.Shard, registry.Change{Op: registry.OpPut, Record: rec, IfRevision: old.Meta.Revision})
		var rule *controlplane.RuleError
		if errors.As(err, &rule) && rule.Code == controlplane.RuleRevision && want == 0 {
			if try < writeTries {
				continue
			}
			return written{}, controlplane.ErrOverloaded // it asked for no revision, so none can be missing
		}
		if err != nil {
			return written{}, err
		}
		stored, err := a.get(kind, old.Meta.ID)
		if err != nil {
			return written{}, err
		}
		return written{stored, point}, nil
	}
}

// updated is update, told to the auditors.
func (a *API) updated(ctx context.Context, kind registry.Kind, ref string, cond Matching, change func(*registry.Record) error) (written, error) {
	w, err := a.update(ctx, kind, ref, cond, change)
	if err == nil {
		a.audit.Updated(exchangeOf(ctx).actor, kind.String(), w.rec.Meta.ID, w.rec.Meta.Shard, w.point)
	}
	return w, err
}

// remove deletes the record that ref names.
func (a *API) remove(ctx context.Context, kind registry.Kind, ref string, cond Matching) (*answer[api.Deleted], error) {
	want, err := cond.revision()
	if err != nil {
		return nil, err
	}
	old, err := a.get(kind, ref)
	if err != nil {
		return nil, err
	}
	if want != 0 && want != old.Meta.Revision {
		return nil, moved(old)
	}
	changes := []registry.Change{{Op: registry.OpDelete, Kind: kind, ID: old.Meta.ID, IfRevision: want}}
	if kind == registry.KindOrg {
		a.view(func(s *registry.State) {
			if rel, ok := s.Relocation(old.Meta.ID); ok { // where it came from goes with it
				changes = append([]registry.Change{{Op: registry.OpDelete, Kind: rel.Kind, ID: rel.Meta.ID}}, changes...)
			}
		})
	}
	point, err := a.commit(ctx, old.Meta.Shard, changes...)
	if err != nil {
		return nil, err
	}
	a.audit.Deleted(exchangeOf(ctx).actor, kind.String(), old.Meta.ID, old.Meta.Shard, point)
	return &answer[api.Deleted]{
		Position: api.FormatPosition(old.Meta.Shard, point),
		Body:     api.Deleted{ID: old.Meta.ID, Acknowledged: api.AcknowledgedRegion},
	}, nil
}

func moved(rec *registry.Record) *api.Problem {
	return problem(http.StatusPreconditionFailed, string(controlplane.RuleRevision), "If-Match",
		rec.Meta.ID+" is at revision "+etag(rec.Meta.Revision)+" now: read it again and repeat the change on that.")
}

// copyOf gives a record that shares nothing with rec, which is immutable.
func copyOf(rec *registry.Record) (*registry.Record, error) {
	b, err := registry.EncodeRecord(rec)
	if err != nil {
		return nil, err
	}
	return registry.DecodeRecord(b)
}

func equal(a, b *registry.Record) (bool, error) {
	x, err := registry.EncodeRecord(a)
	if err != nil {
		return false, err
	}
	y, err := registry.EncodeRecord(b)
	return string(x) == string(y), err
}

// page reads one page. list must give up to limit records after the id.
func page[T any](a *API, p Paging, list func(s *registry.State, after string, limit int) []*registry.Record, show func(*registry.Record) T) ([]T, api.Page, error) {
	after, err := api.ParseCursor(p.Cursor)
	if err != nil {
		return nil, api.Page{}, invalid("query.cursor", err.Error())
	}
	var recs []*registry.Record
	a.view(func(s *registry.State) { recs = list(s, after, p.Limit+1) })
	var next api.Page
	if len(recs) > p.Limit {
		recs = recs[:p.Limit]
		next.NextCursor = api.FormatCursor(recs[p.Limit-1].Meta.ID)
	}
	items := make([]T, len(recs))
	for i, r := range recs {
		items[i] = show(r)
	}
	return items, next, nil
}

func read[T any](rec *registry.Record, body T) *answer[T] {
	return &answer[T]{ETag: etag(rec.Meta.Revision), Body: body}
}

func wrote[T any](w written, location string, body T) *answer[T] {
	return &answer[T]{ETag: etag(w.rec.Meta.Revision), Location: location, Position: w.position(), Body: body}
}

func meta(rec *registry.Record) api.Meta {
	m := rec.Meta
	return api.Meta{ID: m.ID, Shard: string(m.Shard), Revision: m.Revision, Created: millis(m.Created), Updated: millis(m.Updated)}
}

func millis(ms int64) time.Time { return time.UnixMilli(ms).UTC() }

// millisOrNil is nil for 0.
func millisOrNil(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	t := millis(ms)
	return &t
}

func orDefault(value, fallback string) string {
	if value == "" {
		return fallback
	}
	return value
}
