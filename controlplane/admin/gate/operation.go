package gate

import (
	"cmp"
	"context"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
)

// Operation is one line of the API.
type Operation struct {
	ID, Method, Path string // the path is below /admin/v1
	Tag, Summary     string
	Description      string
	Status           int // of success; 0 = 200
	Place            Placement
	Safe             bool // waits for other regions unless the caller asks for less
	Makes            bool // creates a record or secret: an Idempotency-Key is honoured
	Internal         bool // between control nodes only
	// Early is done at the entry node before the request is sent elsewhere. It may
	// change the path; an error is the answer.
	Early func(*http.Request) error
}

func (o Operation) write() bool { return o.Method != http.MethodGet }

// Answer is what every handler gives. Position, of what was written, has the gate
// see how safe it is, and say so. Status is the operation's unless it is set.
type Answer[T any] struct {
	Status   int
	ETag     string `header:"ETag"`
	Location string `header:"Location"`
	Position string `header:"Ringmain-Position"`
	Visible  string `header:"Ringmain-Visible"`
	Replayed string `header:"Ringmain-Replayed"`
	Reached  string `header:"Ringmain-Acknowledged"`
	Body     T
}

// Nothing is the input of an operation without any.
type Nothing struct{}

// transform completes errors, whoever made them.
func transform(ctx huma.Context, _ string, v any) (any, error) {
	_, w := humago.Unwrap(ctx)
	switch e := v.(type) {
	case *huma.ErrorModel:
		return problem.Finish(w.Header(), problem.OfHuma(e)), nil
	case *api.Problem:
		return problem.Finish(w.Header(), e), nil
	}
	return v, nil
}

// Add has f answer an operation.
func Add[I, T any](g *Gate, o Operation, f func(context.Context, *I) (*Answer[T], error)) {
	problems := &huma.Response{
		Description: "Problem",
		Content: map[string]*huma.MediaType{"application/problem+json": {
			Schema: g.huma.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, "Problem"),
		}},
	}
	huma.Register(g.huma, huma.Operation{
		OperationID: o.ID, Method: o.Method, Path: "/admin/v1" + o.Path,
		Hidden:  o.Internal,
		Summary: o.Summary, Description: o.Description, Tags: []string{o.Tag}, DefaultStatus: o.Status,
		MaxBodyBytes: MaxBody + 1, BodyReadTimeout: -1, // the body is in memory already
		Middlewares: huma.Middlewares{g.placed(o)},
		Responses:   map[string]*huma.Response{"default": problems},
	}, func(ctx context.Context, in *I) (*Answer[T], error) {
		out, err := f(ctx, in)
		if err != nil {
			p := problem.Of(err)
			if p.Status >= http.StatusInternalServerError {
				g.cfg.Logger.Warn("management request failed", "operation", o.ID, "err", err)
			}
			return nil, p
		}
		out.Status = cmp.Or(out.Status, o.Status, http.StatusOK)
		if out.Position != "" {
			out.Visible = "here" // this node committed it
			if err := settle(ctx, g, out); err != nil {
				return nil, problem.Of(err)
			}
		}
		if records.RequestOf(ctx).Replayed() {
			out.Replayed = "true"
		}
		return out, nil
	})
}

// settle waits for the acknowledgement asked for, and says which was reached:
// 202 if it is less and may yet become more.
func settle[T any](ctx context.Context, g *Gate, out *Answer[T]) error {
	shard, point, err := api.ParsePosition(out.Position)
	if err != nil {
		return err
	}
	reached, more := g.cfg.Records.Acknowledged(ctx, shard, point)
	out.Reached = reached
	if body, ok := any(&out.Body).(interface{ Acknowledge(level string) }); ok {
		body.Acknowledge(reached)
	}
	if more {
		out.Status = http.StatusAccepted
	}
	return nil
}

// Read answers with body, which shows rec.
func Read[T any](rec *registry.Record, body T) *Answer[T] {
	return &Answer[T]{ETag: records.ETag(rec.Meta.Revision), Body: body}
}

// Wrote answers with body, which shows what was written.
func Wrote[T any](w records.Written, location string, body T) *Answer[T] {
	return &Answer[T]{ETag: records.ETag(w.Record.Meta.Revision), Location: location, Position: api.FormatPosition(w.Record.Meta.Shard, w.Point), Body: body}
}

// Deleted answers that a record is gone.
func Deleted(w records.Written) *Answer[api.Deleted] {
	return &Answer[api.Deleted]{
		Position: api.FormatPosition(w.Record.Meta.Shard, w.Point),
		Body:     api.Deleted{ID: w.Record.Meta.ID, Acknowledged: api.AcknowledgedRegion},
	}
}

// HandleFunc has f answer what is no JSON; it is let in as all others are, and
// must see for itself that there is an actor.
func (g *Gate) HandleFunc(pattern string, f http.HandlerFunc) { g.mux.HandleFunc(pattern, f) }
