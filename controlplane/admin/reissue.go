package admin

import (
	"context"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// reissuePlace sends a key to the home of the shard that its org goes to.
func (a *API) reissuePlace(s *ledger.State, r gate.Asked) gate.Place {
	id := r.PathValue("key")
	shard, _ := s.ShardOf(registry.KindKey, id)
	if left := leftOf(s, id); left != nil {
		shard = left.Shard
	}
	return gate.In(shard)
}

// leftOf is the relocation by which a key's org is being left, or nil.
func leftOf(s *ledger.State, key string) *registry.Relocation {
	k, ok := s.Get(registry.KindKey, key)
	if !ok {
		return nil
	}
	p, ok := s.Get(registry.KindProject, k.Key.Project)
	if !ok {
		return nil
	}
	left := pin.Leaving(s, p.Project.Org)
	if left == nil {
		return nil
	}
	return left.Relocation
}

// reissueKey makes the key that takes the place of one whose org is left.
func (a *API) reissueKey(ctx context.Context, in *gate.KeyPath) (*gate.Answer[api.Key], error) {
	old, err := a.records.Get(registry.KindKey, in.Key)
	if err != nil {
		return nil, err
	}
	if old.Key.Revoked != 0 || old.Key.Expires != 0 && old.Key.Expires <= a.cfg.Now().UnixMilli() {
		return nil, problem.Conflict("", "The key has ended: create another in the org that takes its place.")
	}
	var rec *registry.Record
	var id string
	replay := false
	a.records.View(func(s *ledger.State) {
		left := leftOf(s, old.Meta.ID)
		if left == nil {
			err = problem.Conflict("", "The pin of the key's org is not being changed: rotate the key instead.")
			return
		}
		id = registry.NewID(registry.KindKey.Prefix(), records.JurisdictionOf(left.To), a.cfg.Now(), a.cfg.Random)
		id = id[:len(id)-len(registry.Chance(id))] + registry.Chance(old.Meta.ID)
		if made := pin.Successor(s, old, left); made != nil {
			id, replay = made.Meta.ID, true
		}
	})
	if err != nil {
		return nil, err
	}
	once := records.RequestOf(ctx).Once
	taken := problem.Conflict("", "Key "+id+" was issued in its place already: rotate that one to see a secret.")
	if replay && once == nil {
		return nil, taken
	}
	whole, parsed, err := a.records.NewKey(ctx, old.Key.Class, id)
	if err != nil {
		return nil, err
	}
	if replay {
		return a.reissuedBefore(ctx, id, whole, taken)
	}
	hash, err := a.hash(ctx, whole)
	if err != nil {
		return nil, err
	}
	a.records.View(func(s *ledger.State) { rec, err = pin.Reissued(s, old, id, hash, parsed.Hint()) })
	if err != nil {
		return nil, err
	}
	w, err := a.records.CreateUntold(ctx, rec)
	if err != nil {
		return nil, err
	}
	a.audit.KeyReissued(records.RequestOf(ctx).Actor, id, old.Meta.ID, w.Record.Meta.Shard, w.Point)
	a.shareVerdict(w.Record, hash, whole)
	key := records.ShowKey(w.Record)
	key.Whole = whole.Reveal() // the one time it is shown
	return gate.Wrote(w, "/admin/v1/keys/"+id, key), nil
}

// reissuedBefore shows the secret again to a repetition of the request that
// made it.
func (a *API) reissuedBefore(ctx context.Context, id string, whole controlplane.Secret, taken error) (*gate.Answer[api.Key], error) {
	rec, err := a.records.Get(registry.KindKey, id)
	if err != nil {
		return nil, err
	}
	if apikey.Match(rec.Key.Hash, whole.Reveal()) != nil {
		return nil, taken
	}
	a.audit.KeyShownAgain(records.RequestOf(ctx).Actor, id)
	w, err := a.records.Repeated(ctx, rec)
	if err != nil {
		return nil, err
	}
	key := records.ShowKey(w.Record)
	key.Whole = whole.Reveal()
	return gate.Wrote(w, "/admin/v1/keys/"+id, key), nil
}
