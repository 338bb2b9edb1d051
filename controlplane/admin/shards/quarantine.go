package shards

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

func (d *desk) registerQuarantine(g *gate.Gate) {
	const tag = "Shards"
	gate.Add(g, gate.Operation{
		ID: "list-quarantine", Method: http.MethodGet, Path: "/shards/{shard}/quarantine", Tag: tag, Summary: "List the writes that a region keeps in quarantine", Place: gate.InRegion,
		Description: "Writes that a home acknowledged to nobody but itself, or not at all, before another region took the shard over. They have no effect until somebody replays them.",
	}, d.listQuarantine)
	gate.Add(g, gate.Operation{
		ID: "replay-quarantine", Method: http.MethodPost, Path: "/shards/{shard}/quarantine/replay", Tag: tag, Summary: "Write quarantined entries anew, at the shard's present home", Place: gate.InRegion,
		Description: "In their order. An entry whose record is there already leaves the quarantine; one whose record was changed since, or that the rules refuse now, stays.",
	}, d.replayQuarantine)
	gate.Add(g, gate.Operation{
		ID: "discard-quarantine", Method: http.MethodPost, Path: "/shards/{shard}/quarantine/discard", Tag: tag, Summary: "Drop quarantined entries for good", Place: gate.InRegion,
	}, d.discardQuarantine)
	gate.Add(g, gate.Operation{
		ID: "replay-entry", Method: http.MethodPost, Path: "/shards/{shard}/replayed", Tag: tag, Summary: "Write an entry that another region had in quarantine", Internal: true,
		Place: func(_ *ledger.State, r gate.Asked) gate.Place {
			return gate.In(controlplane.Shard(r.PathValue("shard")))
		},
	}, d.replayEntry)
}

// quarantined returns the entries asked for, all of the shard's if ids is nil.
func (d *desk) quarantined(shard string, ids []string) ([]*ledger.Quarantined, error) {
	var all []*ledger.Quarantined
	held := false
	d.records.View(func(s *ledger.State) {
		_, held = s.Shard(controlplane.Shard(shard))
		all = slices.Collect(s.Quarantine(controlplane.Shard(shard)))
	})
	if !held {
		return nil, problem.New(http.StatusNotFound, api.CodeNotFound, "shard", "Region "+d.cfg.Region+" holds no shard of this name: `ringmain shard list --region "+d.cfg.Region+"` shows those that it holds.")
	}
	if ids == nil {
		return all, nil
	}
	byID := map[string]*ledger.Quarantined{}
	for _, q := range all {
		byID[api.FormatPoint(q.Entry.Point())] = q
	}
	picked := make([]*ledger.Quarantined, 0, len(ids))
	for i, id := range ids {
		q, ok := byID[id]
		if !ok {
			return nil, problem.New(http.StatusNotFound, api.CodeNotFound, fmt.Sprintf("ids[%d]", i), "Entry "+id+" is not in the quarantine of region "+d.cfg.Region+": nothing was done. `ringmain quarantine list "+shard+" --region "+d.cfg.Region+"` shows what is.")
		}
		picked = append(picked, q)
	}
	return picked, nil
}

func (d *desk) listQuarantine(_ context.Context, in *struct {
	ShardPath
	gate.AtRegion
}) (*gate.Answer[api.QuarantineList], error) {
	entries, err := d.quarantined(in.Shard, nil)
	if err != nil {
		return nil, err
	}
	list := api.QuarantineList{Region: d.cfg.Region, Items: []api.QuarantinedEntry{}}
	d.records.View(func(s *ledger.State) {
		for _, q := range entries {
			list.Items = append(list.Items, showQuarantined(s, q))
		}
	})
	return &gate.Answer[api.QuarantineList]{Body: list}, nil
}

func showQuarantined(s *ledger.State, q *ledger.Quarantined) api.QuarantinedEntry {
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

func showChange(s *ledger.State, c *registry.Change, branch controlplane.Point) api.QuarantineChange {
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

func (d *desk) discardQuarantine(ctx context.Context, in *struct {
	ShardPath
	gate.AtRegion
	Body api.QuarantineVerdict
}) (*gate.Answer[api.QuarantineResult], error) {
	if len(in.Body.IDs) == 0 { // what nobody has looked at is not dropped
		return nil, problem.Invalid("ids", "Name the entries to drop, as the list shows them: what came after it stays.")
	}
	entries, err := d.quarantined(in.Shard, in.Body.IDs)
	if err != nil {
		return nil, err
	}
	res := api.QuarantineResult{Items: []api.QuarantineOutcome{}}
	for _, q := range entries {
		res.Items = append(res.Items, api.QuarantineOutcome{ID: api.FormatPoint(q.Entry.Point()), Outcome: "discarded"})
	}
	if err := d.resolve(ctx, registry.VerdictDiscarded, entries...); err != nil {
		return nil, err
	}
	return &gate.Answer[api.QuarantineResult]{Body: res}, nil
}

// resolve takes entries of one shard out of this region's quarantine.
func (d *desk) resolve(ctx context.Context, v registry.Verdict, entries ...*ledger.Quarantined) error {
	if len(entries) == 0 {
		return nil
	}
	shard := entries[0].Entry.Shard
	r := &registry.Resolve{Shard: shard, Verdict: v}
	for _, q := range entries {
		r.Entries = append(r.Entries, q.Entry.Point())
	}
	out, err := d.cfg.Store.ProposeCommand(ctx, &registry.Command{Type: registry.CmdResolve, Resolve: r})
	if err == nil {
		err = out.Err
	}
	if err != nil {
		return err
	}
	for _, q := range entries {
		d.cfg.Audit.QuarantineResolved(records.RequestOf(ctx).Actor, v == registry.VerdictReplayed, shard, q.Entry.Point())
	}
	return nil
}

func (d *desk) replayQuarantine(ctx context.Context, in *struct {
	ShardPath
	gate.AtRegion
	Body api.QuarantineVerdict
}) (*gate.Answer[api.QuarantineResult], error) {
	entries, err := d.quarantined(in.Shard, in.Body.IDs)
	if err != nil {
		return nil, err
	}
	res := api.QuarantineResult{Items: []api.QuarantineOutcome{}}
	var seen []revision
	for _, q := range entries {
		outcome := api.QuarantineOutcome{ID: api.FormatPoint(q.Entry.Point())}
		var done replayOutput
		done, err = d.replay(ctx, q, seen)
		outcome.Outcome = done.Outcome
		var p *api.Problem
		switch {
		case err == nil:
			if err := d.resolve(ctx, registry.VerdictReplayed, q); err != nil {
				return nil, err
			}
			if done.Revision > 0 {
				seen = append(seen, revisionsOf(q.Entry, done.Revision)...)
			}
		case errors.As(problem.Of(err), &p) && p.Status < http.StatusInternalServerError:
			outcome.Outcome, outcome.Detail = "refused", p.Error()
		default:
			return nil, err
		}
		res.Items = append(res.Items, outcome)
	}
	return &gate.Answer[api.QuarantineResult]{Body: res}, nil
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

// replay has the shard's present home write q's changes, and says what it found.
func (d *desk) replay(ctx context.Context, q *ledger.Quarantined, seen []revision) (out replayOutput, err error) {
	var e *registry.Entry
	var home string
	d.records.View(func(s *ledger.State) {
		info, _ := s.Shard(q.Entry.Shard)
		home, e = info.Home, withRevocations(s, q.Entry)
	})
	seen = about(e, seen)
	if home == d.cfg.Region {
		return d.rewrite(ctx, e, q.Branch.Seq, seen)
	}
	enc, err := registry.EncodeEntry(e)
	if err != nil {
		return out, err
	}
	err = d.ask(ctx, home, "/shards/"+url.PathEscape(string(e.Shard))+"/replayed", replayInput{enc, q.Branch.Seq, seen}, &out)
	return out, err
}

func (d *desk) replayEntry(ctx context.Context, in *struct {
	ShardPath
	Body replayInput
}) (*gate.Answer[replayOutput], error) {
	e, err := registry.DecodeEntry(in.Body.Entry)
	if err != nil || string(e.Shard) != in.Shard {
		return nil, problem.Invalid("entry", "This is no entry of shard "+in.Shard+".")
	}
	for i := range e.Changes {
		if c := &e.Changes[i]; c.Op == registry.OpPut && c.Record == nil {
			return nil, problem.Invalid("entry", "A put carries a record.")
		}
	}
	out, err := d.rewrite(ctx, e, in.Body.Branch, in.Body.Seen)
	if err != nil {
		return nil, err
	}
	return &gate.Answer[replayOutput]{Body: out}, nil
}

// rewrite makes e's changes here, at the shard's home, unless they are there
// already: the same entry again changes nothing. Branch is the sequence of the
// last entry before e that this history has too.
func (d *desk) rewrite(ctx context.Context, e *registry.Entry, branch uint64, seen []revision) (out replayOutput, err error) {
	var todo []registry.Change
	var point controlplane.Point
	d.records.View(func(s *ledger.State) {
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
		made, err := d.cfg.Store.ProposeLevel(ctx, e.Shard, registry.LevelMultiRegion, todo)
		if err == nil {
			err = made.Err
		}
		if err != nil {
			return out, err
		}
		point = made.Points[e.Shard]
		out = replayOutput{"replayed", point.Seq}
		d.cfg.Audit.QuarantineReplayed(records.RequestOf(ctx).Actor, e.Shard, e.Point(), point)
	}
	if d.cfg.Homes != nil {
		ctx, cancel := context.WithTimeout(ctx, d.cfg.ConfirmIn)
		defer cancel()
		if err := d.cfg.Homes.Confirmed(ctx, e.Shard, point); err != nil {
			return out, fmt.Errorf("%w: %w", controlplane.ErrUncertain, err) // it stays in quarantine until it is safe
		}
	}
	return out, nil
}
