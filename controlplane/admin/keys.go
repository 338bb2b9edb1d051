package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/feed"
	"ringmain/controlplane/registry"
)

// defaultGrace is how long the secret before a rotation works if nothing is said.
const defaultGrace = 24 * time.Hour

// KeyPath names a key in a path.
type KeyPath struct {
	Key string `path:"key" doc:"Id of the key's record: key_..."`
}

func showKey(m api.Meta, k *registry.Key) api.Key {
	return api.Key{
		Meta: m, Project: k.Project, Hint: k.Hint,
		KeyInput: api.KeyInput{Name: k.Name, Class: k.Class, Expires: millisOrNil(k.Expires)},
		Revoked:  millisOrNil(k.Revoked), PrevUntil: millisOrNil(k.PrevUntil),
	}
}

func (a *API) keys(h huma.API) {
	const tag = "Keys"
	byProject, byPath := byID(registry.KindProject, "project"), byID(registry.KindKey, "key")
	add(a, h, operation{
		id: "list-keys", method: http.MethodGet, path: "/projects/{project}/keys", tag: tag, summary: "List the keys of a project", place: byProject,
	}, a.listKeys)
	add(a, h, operation{
		id: "create-key", method: http.MethodPost, path: "/projects/{project}/keys", tag: tag, summary: "Create a key", status: http.StatusCreated, makes: true, safe: true, place: byProject,
		description: "The answer holds the whole key. Nobody can read it again: only its hash is kept.",
	}, a.createKey)
	add(a, h, operation{
		id: "get-key", method: http.MethodGet, path: "/keys/{key}", tag: tag, summary: "Read a key, without its secret", place: byPath,
	}, func(_ context.Context, in *KeyPath) (*answer[api.Key], error) {
		rec, err := a.get(registry.KindKey, in.Key)
		if err != nil {
			return nil, err
		}
		return read(rec, showKey(meta(rec), rec.Key)), nil
	})
	add(a, h, operation{
		id: "update-key", method: http.MethodPut, path: "/keys/{key}", tag: tag, summary: "Change a key's name and end", safe: true, place: byPath,
	}, a.updateKey)
	add(a, h, operation{
		id: "rotate-key", method: http.MethodPost, path: "/keys/{key}/rotate", tag: tag, summary: "Replace a key's secret", makes: true, safe: true, place: byPath,
		description: "The answer holds the new whole key, once. The old secret goes on working for grace_seconds; one that a rotation before left working ends now.",
	}, a.rotateKey)
	add(a, h, operation{
		id: "revoke-key", method: http.MethodPost, path: "/keys/{key}/revoke", tag: tag, summary: "Refuse a key from now on, for good", safe: true, place: byPath,
		description: "Data nodes are told before the change is committed. If the answer is an error, the key may be refused already: repeat the request.",
		early:       a.revokeEarly,
	}, a.revokeKey)
	const all = "Above 100 keys, expect must say how many there are. After an error some may be revoked: repeat the request."
	add(a, h, operation{
		id: "revoke-project-keys", method: http.MethodPost, path: "/projects/{project}/keys/revoke", tag: tag, summary: "Refuse all keys of a project, for good", safe: true, place: byProject,
		description: all,
	}, a.revokeProjectKeys)
	add(a, h, operation{
		id: "revoke-org-keys", method: http.MethodPost, path: "/orgs/{org}/keys/revoke", tag: tag, summary: "Refuse all keys of an org, for good", safe: true, place: byID(registry.KindOrg, "org"),
		description: all,
	}, a.revokeOrgKeys)
	add(a, h, operation{
		id: "delete-key", method: http.MethodDelete, path: "/keys/{key}", tag: tag, summary: "Forget a revoked key", safe: true, place: byPath,
	}, func(ctx context.Context, in *struct {
		KeyPath
		Matching
	}) (*answer[api.Deleted], error) {
		return a.remove(ctx, registry.KindKey, in.Key, in.Matching)
	})
}

func (a *API) listKeys(_ context.Context, in *struct {
	ProjectPath
	Paging
}) (*answer[api.KeyList], error) {
	if _, err := a.get(registry.KindProject, in.Project); err != nil {
		return nil, err
	}
	var list api.KeyList
	var err error
	list.Items, list.Page, err = page(a, in.Paging, func(s *registry.State, after string, limit int) []*registry.Record {
		return s.KeysOf(in.Project, after, limit)
	}, func(r *registry.Record) api.Key { return showKey(meta(r), r.Key) })
	return &answer[api.KeyList]{Body: list}, err
}

func (a *API) createKey(ctx context.Context, in *struct {
	ProjectPath
	Body api.KeyInput
}) (*answer[api.Key], error) {
	project, err := a.get(registry.KindProject, in.Project)
	if err != nil {
		return nil, err
	}
	org, err := a.get(registry.KindOrg, project.Project.Org)
	if err != nil {
		return nil, err
	}
	class := orDefault(in.Body.Class, apikey.ClassLive)
	if class != apikey.ClassLive && class != apikey.ClassTest {
		return nil, invalid("class", "Use live or test.")
	}
	expires, err := a.ending(in.Body.Expires)
	if err != nil {
		return nil, err
	}
	whole, parsed, err := a.newKey(ctx, class, a.newID(ctx, registry.KindKey, org.Org.Jurisdiction, project.Meta.Shard))
	if err != nil {
		return nil, err
	}
	hash, err := a.hash(ctx, whole)
	if err != nil {
		return nil, err
	}
	w, err := a.create(ctx, &registry.Record{
		Kind: registry.KindKey,
		Meta: registry.Meta{ID: parsed.RecordID(), Shard: project.Meta.Shard},
		Key:  &registry.Key{Project: project.Meta.ID, Name: in.Body.Name, Class: class, Hash: hash, Expires: expires, Hint: parsed.Hint()},
	})
	if err != nil {
		return nil, err
	}
	if o := exchangeOf(ctx).once; o != nil && o.replay {
		if apikey.Match(w.rec.Key.Hash, whole.Reveal()) != nil {
			return nil, problem(http.StatusConflict, string(controlplane.RuleConflict), api.HeaderIdempotency,
				"The key that the first request made, "+w.rec.Meta.ID+", was rotated since: its first secret cannot be shown again.")
		}
		hash = w.rec.Key.Hash
		a.audit.KeyShownAgain(exchangeOf(ctx).actor, w.rec.Meta.ID)
	} else {
		a.audit.KeyCreated(exchangeOf(ctx).actor, w.rec.Meta.ID, project.Meta.ID, w.rec.Meta.Shard, w.point)
	}
	a.shareVerdict(w.rec, hash, whole)
	key := showKey(meta(w.rec), w.rec.Key)
	key.Whole = whole.Reveal() // the one time it is shown
	return wrote(w, "/admin/v1/keys/"+w.rec.Meta.ID, key), nil
}

// ending checks the end of a key; 0 for never.
func (a *API) ending(t *time.Time) (int64, error) {
	if t == nil {
		return 0, nil
	}
	if !t.After(a.cfg.Now()) {
		return 0, invalid("expires", "This time is past: choose a later one, or leave it out for a key that does not end.")
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
	KeyPath
	Matching
	Body api.KeyInput
}) (*answer[api.Key], error) {
	w, err := a.updated(ctx, registry.KindKey, in.Key, in.Matching, func(r *registry.Record) error {
		expires := r.Key.Expires
		if in.Body.Expires == nil || in.Body.Expires.UnixMilli() != expires {
			var err error
			if expires, err = a.ending(in.Body.Expires); err != nil {
				return err
			}
		}
		r.Key.Name, r.Key.Class, r.Key.Expires = in.Body.Name, orDefault(in.Body.Class, r.Key.Class), expires
		return nil
	})
	if err != nil {
		return nil, err
	}
	return wrote(w, "", showKey(meta(w.rec), w.rec.Key)), nil
}

func (a *API) rotateKey(ctx context.Context, in *struct {
	KeyPath
	Matching
	Body *api.RotateInput
}) (*answer[api.Key], error) {
	old, err := a.get(registry.KindKey, in.Key)
	if err != nil {
		return nil, err
	}
	grace := defaultGrace
	if in.Body != nil && in.Body.GraceSeconds != nil {
		grace = time.Duration(*in.Body.GraceSeconds) * time.Second
	}
	whole, done, err := a.rotation(ctx, old)
	if err != nil {
		return nil, err
	}
	if done {
		a.audit.KeyShownAgain(exchangeOf(ctx).actor, old.Meta.ID)
		w, err := a.replayed(old)
		if err != nil {
			return nil, err
		}
		key := showKey(meta(w.rec), w.rec.Key)
		key.Whole = whole.Reveal()
		return wrote(w, "", key), nil
	}
	hash, err := a.hash(ctx, whole)
	if err != nil {
		return nil, err
	}
	w, err := a.update(ctx, registry.KindKey, old.Meta.ID, in.Matching, func(r *registry.Record) error {
		if r.Key.Revoked != 0 {
			return problem(http.StatusConflict, string(controlplane.RuleConflict), "", "The key is revoked, for good: create another.")
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
	a.audit.KeyRotated(exchangeOf(ctx).actor, w.rec.Meta.ID, grace, w.rec.Meta.Shard, w.point)
	a.shareVerdict(w.rec, hash, whole)
	key := showKey(meta(w.rec), w.rec.Key)
	key.Whole = whole.Reveal() // the one time it is shown
	return wrote(w, "", key), nil
}

func (a *API) revokeKey(ctx context.Context, in *KeyPath) (*answer[api.Key], error) {
	rec, err := a.get(registry.KindKey, in.Key)
	if err != nil {
		return nil, err
	}
	actor := exchangeOf(ctx).actor
	a.pushRevocations(actor, []*registry.Record{rec})
	var point controlplane.Point
	if rec.Key.Revoked == 0 {
		change := registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: rec.Meta.ID, At: a.cfg.Now().UnixMilli(), Expires: rec.Key.Expires}
		if point, err = a.commit(ctx, rec.Meta.Shard, change); err != nil {
			return nil, err
		}
		a.audit.KeyRevoked(actor, rec.Meta.ID, rec.Meta.Shard, point)
		if rec, err = a.get(registry.KindKey, rec.Meta.ID); err != nil {
			return nil, err
		}
	} else {
		point = a.revokedAt(rec)
	}
	key := showKey(meta(rec), rec.Key)
	key.Held = a.held(ctx, rec.Meta.Shard, point)
	return wrote(written{rec, point}, "", key), nil
}

// revokeEarly tells data nodes while the request is still on its way to the
// key's home, if this region holds the key.
func (a *API) revokeEarly(r *http.Request, x *exchange) {
	if rec, err := a.get(registry.KindKey, r.PathValue("key")); err == nil {
		a.pushRevocations(x.actor, []*registry.Record{rec})
	}
}

// pushRevocations tells data nodes to refuse those of the keys that are not
// revoked yet.
func (a *API) pushRevocations(actor string, keys []*registry.Record) {
	if a.cfg.Revocations == nil {
		return
	}
	var news []registry.Revocation
	for _, k := range keys {
		if k.Key.Revoked == 0 {
			news = append(news, registry.Revocation{Kind: registry.KindKey, ID: k.Meta.ID, Shard: k.Meta.Shard, At: a.cfg.Now().UnixMilli(), Expires: k.Key.Expires})
		}
	}
	if len(news) == 0 {
		return
	}
	a.cfg.Revocations.PushRevocations(news)
	for _, r := range news {
		a.audit.KeyRevocationPushed(actor, r.ID)
	}
}
