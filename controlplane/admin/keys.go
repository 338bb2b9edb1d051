package admin

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// defaultGrace is how long the secret before a rotation works if nothing is said.
const defaultGrace = 24 * time.Hour

func (a *API) keys() {
	const tag = "Keys"
	byProject, byPath := gate.ByID(registry.KindProject, "project"), gate.ByID(registry.KindKey, "key")
	gate.Add(a.gate, gate.Operation{
		ID: "list-keys", Method: http.MethodGet, Path: "/projects/{project}/keys", Tag: tag, Summary: "List the keys of a project", Place: byProject,
	}, a.listKeys)
	gate.Add(a.gate, gate.Operation{
		ID: "create-key", Method: http.MethodPost, Path: "/projects/{project}/keys", Tag: tag, Summary: "Create a key", Status: http.StatusCreated, Makes: true, Safe: true, Place: byProject,
		Description: "The answer holds the whole key. Nobody can read it again: only its hash is kept.",
	}, a.createKey)
	gate.Add(a.gate, gate.Operation{
		ID: "get-key", Method: http.MethodGet, Path: "/keys/{key}", Tag: tag, Summary: "Read a key, without its secret", Place: byPath,
	}, func(_ context.Context, in *gate.KeyPath) (*gate.Answer[api.Key], error) {
		return read(a, registry.KindKey, in.Key, records.ShowKey)
	})
	gate.Add(a.gate, gate.Operation{
		ID: "update-key", Method: http.MethodPut, Path: "/keys/{key}", Tag: tag, Summary: "Change a key's name and end", Safe: true, Place: byPath,
	}, a.updateKey)
	gate.Add(a.gate, gate.Operation{
		ID: "rotate-key", Method: http.MethodPost, Path: "/keys/{key}/rotate", Tag: tag, Summary: "Replace a key's secret", Makes: true, Safe: true, Place: byPath,
		Description: "The answer holds the new whole key, once. The old secret goes on working for grace_seconds; one that a rotation before left working ends now.",
	}, a.rotateKey)
	gate.Add(a.gate, gate.Operation{
		ID: "reissue-key", Method: http.MethodPost, Path: "/keys/{key}/reissue", Tag: tag, Summary: "Issue the key that takes the place of one whose org changes its pin", Status: http.StatusCreated, Makes: true, Safe: true, Place: a.reissuePlace,
		Description: "The answer holds the whole new key, once. The old one works until the change is finished.",
	}, a.reissueKey)
	gate.Add(a.gate, gate.Operation{
		ID: "delete-key", Method: http.MethodDelete, Path: "/keys/{key}", Tag: tag, Summary: "Forget a revoked key", Safe: true, Place: byPath,
	}, func(ctx context.Context, in *struct {
		gate.KeyPath
		records.Matching
	}) (*gate.Answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindKey, in.Key, in.Matching)
	})
}

func (a *API) listKeys(_ context.Context, in *struct {
	gate.ProjectPath
	records.Paging
}) (*gate.Answer[api.KeyList], error) {
	if _, err := a.records.Get(registry.KindProject, in.Project); err != nil {
		return nil, err
	}
	var list api.KeyList
	var err error
	list.Items, list.Page, err = records.List(a.records, in.Paging, func(s *ledger.State, after string, limit int) []*registry.Record {
		return s.KeysOf(in.Project, after, limit)
	}, records.ShowKey)
	return &gate.Answer[api.KeyList]{Body: list}, err
}

func (a *API) createKey(ctx context.Context, in *struct {
	gate.ProjectPath
	Body api.KeyInput
}) (*gate.Answer[api.Key], error) {
	project, err := a.records.Get(registry.KindProject, in.Project)
	if err != nil {
		return nil, err
	}
	org, err := a.records.Get(registry.KindOrg, project.Project.Org)
	if err != nil {
		return nil, err
	}
	class := cmp.Or(in.Body.Class, apikey.ClassLive)
	if class != apikey.ClassLive && class != apikey.ClassTest {
		return nil, problem.Invalid("class", "Use live or test.")
	}
	expires, err := a.ending(in.Body.Expires)
	if err != nil {
		return nil, err
	}
	whole, parsed, err := a.records.NewKey(ctx, class, a.records.NewID(ctx, registry.KindKey, org.Org.Jurisdiction, project.Meta.Shard))
	if err != nil {
		return nil, err
	}
	hash, err := a.hash(ctx, whole)
	if err != nil {
		return nil, err
	}
	w, err := a.records.CreateUntold(ctx, &registry.Record{
		Kind: registry.KindKey,
		Meta: registry.Meta{ID: parsed.RecordID(), Shard: project.Meta.Shard},
		Key:  &registry.Key{Project: project.Meta.ID, Name: in.Body.Name, Class: class, Hash: hash, Expires: expires, Hint: parsed.Hint()},
	})
	if err != nil {
		return nil, err
	}
	if records.RequestOf(ctx).Replayed() {
		if apikey.Match(w.Record.Key.Hash, whole.Reveal()) != nil {
			return nil, problem.Conflict(api.HeaderIdempotency,
				"The key that the first request made, "+w.Record.Meta.ID+", was rotated since: its first secret cannot be shown again.")
		}
		hash = w.Record.Key.Hash
		a.audit.KeyShownAgain(records.RequestOf(ctx).Actor, w.Record.Meta.ID)
	} else {
		a.audit.KeyCreated(records.RequestOf(ctx).Actor, w.Record.Meta.ID, project.Meta.ID, w.Record.Meta.Shard, w.Point)
	}
	a.shareVerdict(w.Record, hash, whole)
	key := records.ShowKey(w.Record)
	key.Whole = whole.Reveal() // the one time it is shown
	return gate.Wrote(w, "/admin/v1/keys/"+w.Record.Meta.ID, key), nil
}

// ending checks the end of a key; 0 for never.
func (a *API) ending(t *time.Time) (int64, error) {
	if t == nil {
		return 0, nil
	}
	if !t.After(a.cfg.Now()) {
		return 0, problem.Invalid("expires", "This time is past: choose a later one, or leave it out for a key that does not end.")
	}
	return t.UnixMilli(), nil
}

// hash hashes as many keys at once as there are processors.
func (a *API) hash(ctx context.Context, whole controlplane.Secret) ([]byte, error) {
	select {
	case a.hashing <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", controlplane.ErrOverloaded, ctx.Err())
	}
	defer func() { <-a.hashing }()
	return a.cfg.Hash(whole)
}

// shareVerdict spares the key's first use a bcrypt. If the record has moved on
// since, the verdict is for a secret that may not be the current one: no verdict.
func (a *API) shareVerdict(rec *registry.Record, hash []byte, whole controlplane.Secret) {
	if a.cfg.Verdicts == nil || string(rec.Key.Hash) != string(hash) {
		return
	}
	current, _ := apikey.VerdictKeys(a.cfg.ClusterSecret, a.cfg.Now())
	a.cfg.Verdicts.PushVerdicts([]feed.Verdict{{
		Key: rec.Meta.ID, Revision: rec.Meta.Revision, MAC: apikey.Verdict(current, whole.Reveal()),
	}})
}

func (a *API) updateKey(ctx context.Context, in *struct {
	gate.KeyPath
	records.Matching
	Body api.KeyInput
}) (*gate.Answer[api.Key], error) {
	w, err := a.records.Update(ctx, registry.KindKey, in.Key, in.Matching, func(r *registry.Record) error {
		expires := r.Key.Expires
		if in.Body.Expires == nil || in.Body.Expires.UnixMilli() != expires {
			var err error
			if expires, err = a.ending(in.Body.Expires); err != nil {
				return err
			}
		}
		r.Key.Name, r.Key.Class, r.Key.Expires = in.Body.Name, cmp.Or(in.Body.Class, r.Key.Class), expires
		return nil
	})
	return wrote(w, err, "", records.ShowKey)
}

func (a *API) rotateKey(ctx context.Context, in *struct {
	gate.KeyPath
	records.Matching
	Body *api.RotateInput
}) (*gate.Answer[api.Key], error) {
	old, err := a.records.Get(registry.KindKey, in.Key)
	if err != nil {
		return nil, err
	}
	grace := defaultGrace
	if in.Body != nil && in.Body.GraceSeconds != nil {
		grace = time.Duration(*in.Body.GraceSeconds) * time.Second
	}
	whole, done, err := a.records.NextSecret(ctx, old)
	if err != nil {
		return nil, err
	}
	if done {
		a.audit.KeyShownAgain(records.RequestOf(ctx).Actor, old.Meta.ID)
		w, err := a.records.Repeated(ctx, old)
		if err != nil {
			return nil, err
		}
		key := records.ShowKey(w.Record)
		key.Whole = whole.Reveal()
		return gate.Wrote(w, "", key), nil
	}
	hash, err := a.hash(ctx, whole)
	if err != nil {
		return nil, err
	}
	w, err := a.records.UpdateUntold(ctx, registry.KindKey, old.Meta.ID, in.Matching, func(r *registry.Record) error {
		if r.Key.Revoked != 0 {
			return problem.Conflict("", "The key is revoked, for good: create another.")
		}
		r.Key.PrevHash, r.Key.PrevUntil = nil, 0
		if grace > 0 {
			r.Key.PrevHash, r.Key.PrevUntil = r.Key.Hash, a.cfg.Now().Add(grace).UnixMilli()
		}
		r.Key.Hash = hash
		return nil
	})
	if err != nil {
		return nil, err
	}
	a.audit.KeyRotated(records.RequestOf(ctx).Actor, w.Record.Meta.ID, grace, w.Record.Meta.Shard, w.Point)
	a.shareVerdict(w.Record, hash, whole)
	key := records.ShowKey(w.Record)
	key.Whole = whole.Reveal() // the one time it is shown
	return gate.Wrote(w, "", key), nil
}
