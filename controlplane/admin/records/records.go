// Package records reads and writes registry records for one management request:
// under its condition, at its level of acknowledgement, once if it carries an
// Idempotency-Key, and with a word to the auditors. It speaks no HTTP but in the
// problems that it returns; what a record may be is for registry to say.
package records

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/audit"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/homes"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Store is the region's replicated registry, as this room needs it.
type Store interface {
	// View runs f with the node's own copy, which f must only read, and not keep.
	View(f func(*ledger.State))
	// ProposeLevel commits changes to a shard. Only the leader of the shard's home
	// succeeds; others get ErrNotLeader, ErrNotHome or ErrNoLeader.
	// The level is what the writer asked for; it is kept with what may yet be undone.
	ProposeLevel(ctx context.Context, shard controlplane.Shard, level registry.Level, changes []registry.Change) (ledger.Outcome, error)
}

// Homes knows how far the other regions hold a shard. It answers on the region's leader.
type Homes interface {
	// Confirmed returns once a majority of the shard's members holds the entry at point.
	Confirmed(ctx context.Context, shard controlplane.Shard, point controlplane.Point) error
	Reach(shard controlplane.Shard) (homes.Reach, error)
}

// Config configures Records.
type Config struct {
	Region        string
	Store         Store
	Homes         Homes         // nil acknowledges "region"
	ConfirmIn     time.Duration // how long an answer waits for other regions to confirm a write
	ClusterSecret []byte        // what Idempotency-Keys draw ids and secrets from
	Now           func() time.Time
	Random        io.Reader
	Audit         audit.Log
	Logger        *slog.Logger
}

// Records are the region's, to read and to write. It starts no goroutine.
type Records struct {
	cfg     Config
	onceKey []byte
	firsts  firsts
}

const writeTries = 16 // of an unconditional update that others overtake

// Open derives what repetitions are known by.
func Open(cfg Config) (*Records, error) {
	key, err := hkdf.Key(sha256.New, cfg.ClusterSecret, nil, "ringmain idempotency/1", sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("admin: the cluster secret cannot be used: %w", err)
	}
	return &Records{cfg: cfg, onceKey: key}, nil
}

// Request is what is known of who asked for what.
type Request struct {
	Actor     string            // token name
	Token     [sha256.Size]byte // hash of the token's text; zero where Forwarded
	Entry     string            // region where the request arrived
	Forwarded bool              // by the control node that was asked
	Level     Level             // of acknowledgement, on writes
	Once      *Once             // nil without Idempotency-Key, and where another node answers
}

// Replayed reports whether the outcome is that of an earlier request.
func (r *Request) Replayed() bool { return r.Once != nil && r.Once.replay }

type requestKey struct{}

// With gives a context that carries r.
func With(ctx context.Context, r *Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// RequestOf is the request that ctx carries; without one nobody is the actor.
func RequestOf(ctx context.Context) *Request {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		return r
	}
	return &Request{}
}

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
		return 0, problem.New(http.StatusBadRequest, api.CodeInvalidHead, "If-Match", `Send the ETag as it was received, such as "42", or *.`)
	}
	return n, nil
}

// ETag is how a revision is written in heads.
func ETag(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// View reads with the node's own copy.
func (r *Records) View(f func(*ledger.State)) { r.cfg.Store.View(f) }

// Get looks a record up in the node's own copy, by id or, for the kinds that
// have unique names, by name.
func (r *Records) Get(kind registry.Kind, ref string) (*registry.Record, error) {
	var rec *registry.Record
	var ok bool
	r.View(func(s *ledger.State) {
		if rec, ok = s.Get(kind, ref); !ok {
			rec, ok = s.ByName(kind, ref)
		}
	})
	if !ok {
		return nil, problem.NotFound(kind.String(), ref)
	}
	return rec, nil
}

// Written is a committed change: the record as it is now, and its place.
type Written struct {
	Record *registry.Record
	Point  controlplane.Point
}

// Commit proposes changes that take effect together.
func (r *Records) Commit(ctx context.Context, shard controlplane.Shard, changes ...registry.Change) (controlplane.Point, error) {
	for _, c := range changes {
		if err := r.admitted(ctx, shard, c); err != nil {
			return controlplane.Point{}, err
		}
	}
	out, err := r.cfg.Store.ProposeLevel(ctx, shard, RequestOf(ctx).Level.wanted, changes)
	if err == nil {
		err = out.Err
	}
	if err != nil {
		return controlplane.Point{}, err
	}
	return out.Points[shard], nil
}

// CreateUntold commits a new record, stamped with the time, unless a request with
// the same Idempotency-Key has done so. The caller tells the auditors: of what has
// a fact of its own.
func (r *Records) CreateUntold(ctx context.Context, rec *registry.Record) (Written, error) {
	once := RequestOf(ctx).Once
	if once != nil && once.replay {
		return r.replayed(rec)
	}
	now := r.cfg.Now().UnixMilli()
	rec.Meta.Created, rec.Meta.Updated = now, now
	point, err := r.Commit(ctx, rec.Meta.Shard, registry.Change{Op: registry.OpPut, Record: rec, IfRevision: registry.RevisionAbsent})
	var rule *controlplane.RuleError
	if once != nil && errors.As(err, &rule) && (rule.Code == controlplane.RuleRevision || rule.Code == controlplane.RuleConflict) {
		if w, again := r.replayed(rec); again == nil {
			once.replay = true // the first request was still under way when this one looked
			return w, nil
		}
	}
	if err != nil {
		return Written{}, err
	}
	stored, err := r.Get(rec.Kind, rec.Meta.ID)
	if err != nil {
		return Written{}, err
	}
	return Written{stored, point}, nil
}

// Create is CreateUntold, told to the auditors.
func (r *Records) Create(ctx context.Context, rec *registry.Record) (Written, error) {
	w, err := r.CreateUntold(ctx, rec)
	if err == nil && !RequestOf(ctx).Replayed() {
		r.cfg.Audit.Created(RequestOf(ctx).Actor, rec.Kind.String(), rec.Meta.ID, rec.Meta.Shard, w.Point)
	}
	return w, err
}

// UpdateUntold replaces the record that ref names by what change makes of a copy.
// Without a condition it starts over when somebody else was faster; an update
// that changes nothing writes nothing.
func (r *Records) UpdateUntold(ctx context.Context, kind registry.Kind, ref string, cond Matching, change func(*registry.Record) error) (Written, error) {
	want, err := cond.revision()
	if err != nil {
		return Written{}, err
	}
	for try := 1; ; try++ {
		old, err := r.Get(kind, ref)
		if err != nil {
			return Written{}, err
		}
		if want != 0 && want != old.Meta.Revision {
			return Written{}, moved(old)
		}
		rec, err := copyOf(old)
		if err != nil {
			return Written{}, err
		}
		if err := change(rec); err != nil {
			return Written{}, err
		}
		if same, err := Equal(rec, old); err != nil {
			return Written{}, err
		} else if same {
			var info registry.ShardInfo
			r.View(func(s *ledger.State) { info, _ = s.Shard(old.Meta.Shard) })
			return Written{old, info.Last}, nil
		}
		rec.Meta.Updated = max(r.cfg.Now().UnixMilli(), old.Meta.Updated)
		point, err := r.Commit(ctx, rec.Meta.Shard, registry.Change{Op: registry.OpPut, Record: rec, IfRevision: old.Meta.Revision})
		var rule *controlplane.RuleError
		if errors.As(err, &rule) && rule.Code == controlplane.RuleRevision && want == 0 {
			if try < writeTries {
				continue
			}
			return Written{}, controlplane.ErrOverloaded // it asked for no revision, so none can be missing
		}
		if err != nil {
			return Written{}, err
		}
		stored, err := r.Get(kind, old.Meta.ID)
		if err != nil {
			return Written{}, err
		}
		return Written{stored, point}, nil
	}
}

// Update is UpdateUntold, told to the auditors.
func (r *Records) Update(ctx context.Context, kind registry.Kind, ref string, cond Matching, change func(*registry.Record) error) (Written, error) {
	w, err := r.UpdateUntold(ctx, kind, ref, cond, change)
	if err == nil {
		r.cfg.Audit.Updated(RequestOf(ctx).Actor, kind.String(), w.Record.Meta.ID, w.Record.Meta.Shard, w.Point)
	}
	return w, err
}

// Remove deletes the record that ref names, tells the auditors, and returns it as it was.
func (r *Records) Remove(ctx context.Context, kind registry.Kind, ref string, cond Matching) (Written, error) {
	want, err := cond.revision()
	if err != nil {
		return Written{}, err
	}
	old, err := r.Get(kind, ref)
	if err != nil {
		return Written{}, err
	}
	if want != 0 && want != old.Meta.Revision {
		return Written{}, moved(old)
	}
	changes := []registry.Change{{Op: registry.OpDelete, Kind: kind, ID: old.Meta.ID, IfRevision: want}}
	if kind == registry.KindOrg {
		r.View(func(s *ledger.State) { // where it came from goes with it
			changes = append(pin.Drop(s, old.Meta.ID, r.cfg.Now()), changes...)
		})
	}
	point, err := r.Commit(ctx, old.Meta.Shard, changes...)
	if err != nil {
		return Written{}, err
	}
	r.cfg.Audit.Deleted(RequestOf(ctx).Actor, kind.String(), old.Meta.ID, old.Meta.Shard, point)
	return Written{old, point}, nil
}

func moved(rec *registry.Record) *api.Problem {
	return problem.New(http.StatusPreconditionFailed, string(controlplane.RuleRevision), "If-Match",
		rec.Meta.ID+" is at revision "+ETag(rec.Meta.Revision)+" now: read it again and repeat the change on that.")
}

// copyOf gives a record that shares nothing with rec, which is immutable.
func copyOf(rec *registry.Record) (*registry.Record, error) {
	b, err := registry.EncodeRecord(rec)
	if err != nil {
		return nil, err
	}
	return registry.DecodeRecord(b)
}

// Equal reports whether two records are encoded alike.
func Equal(a, b *registry.Record) (bool, error) {
	x, err := registry.EncodeRecord(a)
	if err != nil {
		return false, err
	}
	y, err := registry.EncodeRecord(b)
	return string(x) == string(y), err
}

// List reads one page. list must give up to limit records after the id.
func List[T any](r *Records, p Paging, list func(s *ledger.State, after string, limit int) []*registry.Record, show func(*registry.Record) T) ([]T, api.Page, error) {
	after, err := api.ParseCursor(p.Cursor)
	if err != nil {
		return nil, api.Page{}, problem.Invalid("query.cursor", err.Error())
	}
	var recs []*registry.Record
	r.View(func(s *ledger.State) { recs = list(s, after, p.Limit+1) })
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
