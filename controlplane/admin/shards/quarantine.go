package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/registry"
)

func (a *API) quarantine(h huma.API) {
	const tag = "Shards"
	add(a, h, operation{
		id: "list-quarantine", method: http.MethodGet, path: "/shards/{shard}/quarantine", tag: tag, summary: "List the writes that a region keeps in quarantine", place: inRegion,
		description: "Writes that a home acknowledged to nobody but itself, or not at all, before another region took the shard over. They have no effect until somebody replays them.",
	}, a.listQuarantine)
	add(a, h, operation{
		id: "replay-quarantine", method: http.MethodPost, path: "/shards/{shard}/quarantine/replay", tag: tag, summary: "Write quarantined entries anew, at the shard's present home", place: inRegion,
		description: "In their order. An entry whose record is there already leaves the quarantine; one whose record was changed since, or that the rules refuse now, stays.",
	}, a.replayQuarantine)
	add(a, h, operation{
		id: "discard-quarantine", method: http.MethodPost, path: "/shards/{shard}/quarantine/discard", tag: tag, summary: "Drop quarantined entries for good", place: inRegion,
	}, a.discardQuarantine)
	add(a, h, operation{
		id: "replay-entry", method: http.MethodPost, path: "/shards/{shard}/replayed", tag: tag, summary: "Write an entry that another region had in quarantine", internal: true,
		place: func(_ *registry.State, r *http.Request, _ *exchange) place {
			return place{shard: controlplane.Shard(r.PathValue("shard"))}
		},
	}, a.replayEntry)
}

// quarantined returns the entries asked for, all of the shard's if ids is nil.
func (a *API) quarantined(shard string, ids []string) ([]*registry.Quarantined, error) {
	var all []*registry.Quarantined
	held := false
	a.view(func(s *registry.State) {
		_, held = s.Shard(controlplane.Shard(shard))
		all = slices.Collect(s.Quarantine(controlplane.Shard(shard)))
	})
	if !held {
		return nil, problem(http.StatusNotFound, api.CodeNotFound, "shard", "Region "+a.cfg.Region+" holds no shard of this name.")
	}
	if ids == nil {
		return all, nil
	}
	byID := map[string]*registry.Quarantined{}
	for _, q := range all {
		byID[api.FormatPoint(q.Entry.Point())] = q
	}
	picked := make([]*registry.Quarantined, 0, len(ids))
	for i, id := range ids {
		q, ok := byID[id]
		if !ok {
			return nil, problem(http.StatusNotFound, api.CodeNotFound, fmt.Sprintf("ids[%d]", i), "Entry "+id+" is not in the quarantine of region "+a.cfg.Region+".")
		}
		picked = append(picked, q)
	}
	return picked, nil
}

func (a *API) listQuarantine(_ context.Context, in *struct {
	ShardPath
	AtRegion
}) (*answer[api.QuarantineList], error) {
	entries, err := a.quarantined(in.Shard, nil)
	if err != nil {
		return nil, err
	}
	list := api.QuarantineList{Region: a.cfg.Region, Items: []api.QuarantinedEntry{}}
	a.view(func(s *registry.State) {
		for _, q := range entries {
			list.Items = append(list.Items, showQuarantined(s, q))
		}
	})
	return &answer[api.QuarantineList]{Body: list}, nil
}

func showQuarantined(s *registry.State, q *registry.Quarantined) api.QuarantinedEntry {
	out := api.QuarantinedEntry{
		ID: api.FormatPoint(q.Entry.Point()), Shard: string(q.Entry.Shard), Branch: api.FormatPoint(q.Branch), By: q.By.String(),
		Level:   map[registry.Level]string{registry.LevelRegion: api.AcknowledgedRegion, registry.LevelMultiRegion: api.AcknowledgedMultiRegion}[q.Level],
		Changes: []api.QuarantineChange{},
	}
	for i := range q.Entry.Changes {
		out.Changes = append(out.Changes, showChange(s, &q.Entry.Changes[i], q.Branch))
	}
	return out
}

func showChange(s *registry.State, c *registry.Change, branch controlplane.Point) api.QuarantineChange {
	out := api.QuarantineChange{Present: present(s, c, branch.Seq)}
	switch c.Op {
	case registry.OpPut:
		out.Op, out.Kind, out.ID, out.Name = "put", c.Record.Kind.String(), c.Record.Meta.ID, nameOf(c.Record)
	case registry.OpDelete:
		out.Op, out.Kind, out.ID = "delete", c.Kind.String(), c.ID
	case registry.OpRevoke:
		out.Op, out.Kind, out.ID = "revoke", c.Kind.String(), c.ID
	default:
		return api.QuarantineChange{Op: "open"}
	}
	return out
}

func nameOf(r *registry.Record) string {
	switch {
	case r.Org != nil:
		return r.Org.Name
	case r.Project != nil:
		return r.Project.Name
	case r.Key != nil:
		return r.Key.Name
	case r.Upstream != nil:
		return r.Upstream.Name
	case r.Route != nil:
		return r.Route.Model
	case r.Region != nil:
		return r.Region.Name
	}
	return ""
}

// What the shard has now of what a quarantined change is about.
const (
	presentAbsent  = "absent"
	presentBefore  = "as before" // as it was when the histories parted
	presentSame    = "the same"
	presentChanged = "changed"
	presentRevoked = "revoked"
)

// present compares; revision is the last that both histories have of the record.
func present(s *registry.State, c *registry.Change, revision uint64) string {
	if c.Op == registry.OpRevoke {
		if _, ok := s.Revoked(c.Kind, c.ID); ok {
			return presentRevoked
		}
		return presentAbsent
	}
	kind, id := c.Kind, c.ID
	if c.Op == registry.OpPut {
		kind, id = c.Record.Kind, c.Record.Meta.ID
	}
	rec, ok := s.Get(kind, id)
	switch {
	case c.Op == registry.OpOpen:
		return presentSame
	case !ok:
		return presentAbsent
	case c.Op == registry.OpPut && sameBut(c.Record, rec):
		return presentSame
	case rec.Meta.Revision <= revision:
		return presentBefore
	}
	return presentChanged
}

// sameBut compares all but what the shard itself writes into a record.
func sameBut(r, stored *registry.Record) bool {
	as := *r
	as.Meta = stored.Meta
	same, err := equal(&as, stored)
	return err == nil && same
}

// again is what a replay must do to make c: nothing, if it is made already.
// It overwrites nothing that the present home wrote since the histories parted.
func again(s *registry.State, c registry.Change, revision uint64) (todo []registry.Change, conflict error) {
	found := present(s, &c, revision)
	switch c.Op {
	case registry.OpPut:
		creates := c.IfRevision == 0 || c.IfRevision == registry.RevisionAbsent
		switch {
		case found == presentSame:
			return nil, nil
		case found == presentAbsent && creates:
			c.IfRevision = registry.RevisionAbsent
		case found == presentAbsent:
			return nil, since(c.Record.Kind, c.Record.Meta.ID, "deleted")
		case found == presentBefore:
			rec, _ := s.Get(c.Record.Kind, c.Record.Meta.ID)
			c.IfRevision = rec.Meta.Revision
		default:
			return nil, since(c.Record.Kind, c.Record.Meta.ID, "changed")
		}
	case registry.OpDelete:
		switch found {
		case presentAbsent:
			return nil, nil
		case presentBefore:
			rec, _ := s.Get(c.Kind, c.ID)
			c.IfRevision = rec.Meta.Revision
		default:
			return nil, since(c.Kind, c.ID, "changed")
		}
	case registry.OpRevoke:
		if found == presentRevoked {
			return nil, nil
		}
		c.IfRevision = 0
	default:
		return nil, nil // an epoch that was opened in vain
	}
	return []registry.Change{c}, nil
}

func since(kind registry.Kind, id, what string) error {
	return problem(http.StatusConflict, string(controlplane.RuleConflict), "",
		kind.String()+" "+id+" was "+what+" by the present home since: make the change by hand if it is still wanted, and discard the entry.")
}

func (a *API) discardQuarantine(ctx context.Context, in *struct {
	ShardPath
	AtRegion
	Body api.QuarantineVerdict
}) (*answer[api.QuarantineResult], error) {
	if len(in.Body.IDs) == 0 { // what nobody has looked at is not dropped
		return nil, invalid("ids", "Name the entries to drop, as the list shows them: what came after it stays.")
	}
	entries, err := a.quarantined(in.Shard, in.Body.IDs)
	if err != nil {
		return nil, err
	}
	res := api.QuarantineResult{Items: []api.QuarantineOutcome{}}
	for _, q := range entries {
		res.Items = append(res.Items, api.QuarantineOutcome{ID: api.FormatPoint(q.Entry.Point()), Outcome: "discarded"})
	}
	if err := a.resolve(ctx, registry.VerdictDiscarded, entries...); err != nil {
		return nil, err
	}
	return &answer[api.QuarantineResult]{Body: res}, nil
}

// resolve takes entries of one shard out of this region's quarantine.
func (a *API) resolve(ctx context.Context, v registry.Verdict, entries ...*registry.Quarantined) error {
	if len(entries) == 0 {
		return nil
	}
	shard := entries[0].Entry.Shard
	r := &registry.Resolve{Shard: shard, Verdict: v}
	for _, q := range entries {
		r.Entries = append(r.Entries, q.Entry.Point())
	}
	out, err := a.cfg.Store.ProposeCommand(ctx, &registry.Command{Type: registry.CmdResolve, Resolve: r})
	if err == nil {
		err = out.Err
	}
	if err != nil {
		return err
	}
	for _, q := range entries {
		a.audit.QuarantineResolved(exchangeOf(ctx).actor, v == registry.VerdictReplayed, shard, q.Entry.Point())
	}
	return nil
}

func (a *API) replayQuarantine(ctx context.Context, in *struct {
	ShardPath
	AtRegion
	Body api.QuarantineVerdict
}) (*answer[api.QuarantineResult], error) {
	entries, err := a.quarantined(in.Shard, in.Body.IDs)
	if err != nil {
		return nil, err
	}
	res := api.QuarantineResult{Items: []api.QuarantineOutcome{}}
	var seen []revision
	for _, q := range entries {
		outcome := api.QuarantineOutcome{ID: api.FormatPoint(q.Entry.Point())}
		var done replayOutput
		done, err = a.replay(ctx, q, seen)
		outcome.Outcome = done.Outcome
		var p *api.Problem
		switch {
		case err == nil:
			if err := a.resolve(ctx, registry.VerdictReplayed, q); err != nil {
				return nil, err
			}
			if done.Revision > 0 {
				seen = append(seen, revisionsOf(q.Entry, done.Revision)...)
			}
		case errors.As(explain(err), &p) && p.Status < http.StatusInternalServerError:
			outcome.Outcome, outcome.Detail = "refused", p.Error()
		default:
			return nil, err
		}
		res.Items = append(res.Items, outcome)
	}
	return &answer[api.QuarantineResult]{Body: res}, nil
}

// replayInput carries an entry from the region that has it in quarantine to the home.
type replayInput struct {
	Entry  []byte     `json:"entry"`
	Branch uint64     `json:"branch"`         // sequence of the last entry that both histories have
	Seen   []revision `json:"seen,omitempty"` // what was replayed before it
}

// revision is how an earlier entry of the same replay left a record.
type revision struct {
	ID       string `json:"id"`
	Revision uint64 `json:"revision"`
}

type replayOutput struct {
	Outcome  string `json:"outcome"`
	Revision uint64 `json:"revision,omitempty"` // of what was written
}

func revisionsOf(e *registry.Entry, at uint64) (all []revision) {
	for i := range e.Changes {
		id := e.Changes[i].ID
		if r := e.Changes[i].Record; r != nil {
			id = r.Meta.ID
		}
		all = append(all, revision{id, at})
	}
	return all
}

// about keeps what is said of the records that e changes.
func about(e *registry.Entry, seen []revision) (kept []revision) {
	for _, mine := range revisionsOf(e, 0) {
		for _, r := range seen {
			if r.ID == mine.ID {
				kept = append(kept, r)
			}
		}
	}
	return kept
}

// withRevocations adds to e what this region's safety set has of its records:
// elsewhere nobody knows it, if it was revoked in the history that lost, and
// the record must not come back without.
func withRevocations(s *registry.State, e *registry.Entry) *registry.Entry {
	more := *e
	more.Changes = slices.Clone(e.Changes)
	for i := range e.Changes {
		if r := e.Changes[i].Record; r != nil {
			if v, ok := s.Revoked(r.Kind, r.Meta.ID); ok {
				more.Changes = append(more.Changes, registry.Change{Op: registry.OpRevoke, Kind: v.Kind, ID: v.ID, At: v.At, Expires: v.Expires})
			}
		}
	}
	return &more
}

// replay has the shard's present home write q's changes, and says what it found.
func (a *API) replay(ctx context.Context, q *registry.Quarantined, seen []revision) (out replayOutput, err error) {
	var e *registry.Entry
	var home string
	a.view(func(s *registry.State) {
		info, _ := s.Shard(q.Entry.Shard)
		home, e = info.Home, withRevocations(s, q.Entry)
	})
	seen = about(e, seen)
	if home == a.cfg.Region {
		return a.rewrite(ctx, e, q.Branch.Seq, seen)
	}
	enc, err := registry.EncodeEntry(e)
	if err != nil {
		return out, err
	}
	body, err := json.Marshal(replayInput{enc, q.Branch.Seq, seen})
	if err != nil {
		return out, err
	}
	answer, err := a.askRegion(ctx, home, "/admin/v1/shards/"+url.PathEscape(string(e.Shard))+"/replayed", body)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out, fmt.Errorf("%w: region %s: %w", controlplane.ErrUncertain, home, err)
	}
	return out, nil
}

// askRegion posts body to the region's leader in the name of the present actor.
func (a *API) askRegion(ctx context.Context, region, path string, body []byte) ([]byte, error) {
	if a.cfg.Forwarder == nil {
		return nil, controlplane.ErrUnreachable
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://leader.invalid"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(api.HeaderActor, exchangeOf(ctx).actor)
	r.Header.Set(api.HeaderEntry, a.cfg.Region+"/"+a.cfg.Node)
	resp, err := a.cfg.Forwarder.Forward(ctx, region, r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		p := new(api.Problem)
		if json.Unmarshal(answer, p) != nil || p.Code == "" {
			return nil, fmt.Errorf("region %s answers %s: %w", region, resp.Status, controlplane.ErrUnreachable)
		}
		return nil, p
	}
	return answer, nil
}

func (a *API) replayEntry(ctx context.Context, in *struct {
	ShardPath
	Body replayInput
}) (*answer[replayOutput], error) {
	e, err := registry.DecodeEntry(in.Body.Entry)
	if err != nil || string(e.Shard) != in.Shard {
		return nil, invalid("entry", "This is no entry of shard "+in.Shard+".")
	}
	for i := range e.Changes {
		if c := &e.Changes[i]; c.Op == registry.OpPut && c.Record == nil {
			return nil, invalid("entry", "A put carries a record.")
		}
	}
	out, err := a.rewrite(ctx, e, in.Body.Branch, in.Body.Seen)
	if err != nil {
		return nil, err
	}
	return &answer[replayOutput]{Body: out}, nil
}

// rewrite makes e's changes here, at the shard's home, unless they are there
// already: the same entry again changes nothing. Branch is the sequence of the
// last entry before e that this history has too.
func (a *API) rewrite(ctx context.Context, e *registry.Entry, branch uint64, seen []revision) (out replayOutput, err error) {
	var todo []registry.Change
	var point controlplane.Point
	a.view(func(s *registry.State) {
		info, _ := s.Shard(e.Shard)
		point = info.Last
		for i, known := range revisionsOf(e, branch) {
			for _, r := range seen {
				if r.ID == known.ID {
					known.Revision = max(known.Revision, r.Revision)
				}
			}
			var more []registry.Change
			if more, err = again(s, e.Changes[i], known.Revision); err != nil {
				return
			}
			todo = append(todo, more...)
		}
	})
	if err != nil {
		return out, err
	}
	out.Outcome = "already there"
	if len(todo) > 0 {
		made, err := a.cfg.Store.ProposeLevel(ctx, e.Shard, registry.LevelMultiRegion, todo)
		if err == nil {
			err = made.Err
		}
		if err != nil {
			return out, err
		}
		point = made.Points[e.Shard]
		out = replayOutput{"replayed", point.Seq}
		a.audit.QuarantineReplayed(exchangeOf(ctx).actor, e.Shard, e.Point(), point)
	}
	if a.cfg.Homes != nil {
		ctx, cancel := context.WithTimeout(ctx, a.cfg.ConfirmIn)
		defer cancel()
		if err := a.cfg.Homes.Confirmed(ctx, e.Shard, point); err != nil {
			return out, fmt.Errorf("%w: %w", controlplane.ErrUncertain, err) // it stays in quarantine until it is safe
		}
	}
	return out, nil
}
