package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/apikey"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
)

func (a *API) pins(h huma.API) {
	const tag = "Orgs"
	byOrg := byID(registry.KindOrg, "org")
	add(a, h, operation{
		id: "change-org-pin", method: http.MethodPost, path: "/orgs/{org}/pin", tag: tag, summary: "Change an org's pin, or go on with it", safe: true, place: a.pinPlace,
		description: "Another org takes the org's place in the other jurisdiction: same records, other ids. Repeat the request to go on after an error. Old keys work until finish ends them.",
	}, a.changePin)
	add(a, h, operation{
		id: "get-org-pin", method: http.MethodGet, path: "/orgs/{org}/pin", tag: tag, summary: "How far an org's change of pin is", place: a.pinPlace,
		description: "By the id of either org; once the old records are erased, by that of the successor.",
	}, a.getPin)
	add(a, h, operation{
		id: "reissue-key", method: http.MethodPost, path: "/keys/{key}/reissue", tag: "Keys", summary: "Issue the key that takes the place of one whose org changes its pin", status: http.StatusCreated, makes: true, safe: true, place: a.reissuePlace,
		description: "The answer holds the whole new key, once. The old one works until the change is finished.",
	}, a.reissueKey)
	for _, step := range []struct {
		id string
		do func(context.Context, *pinStep) (*answer[api.PinStepped], error)
	}{{"begin", a.beginPin}, {"retire", a.retirePin}, {"erase", a.erasePin}, {"held", a.heldPin}} {
		add(a, h, operation{
			id: step.id + "-org-pin", method: http.MethodPost, path: "/orgs/{org}/pin/" + step.id, tag: tag, internal: true, safe: true, place: byOrg,
			summary: "One step of a change of pin, at the home of the org that is left",
		}, step.do)
	}
}

// pinPlace sends a change of pin to the home of the shard that the org goes
// to: it holds both.
func (a *API) pinPlace(s *registry.State, r *http.Request, x *exchange) place {
	id := r.PathValue("org")
	shard, _ := registry.ShardOf(registry.KindOrg, id, s)
	org, held := s.Get(registry.KindOrg, id)
	if !held {
		return place{shard: shard}
	}
	if left := pin.Leaving(s, id); left != nil {
		return place{shard: left.Relocation.Shard}
	}
	var in api.PinInput
	begins := r.Method == http.MethodPost && json.Unmarshal(x.body, &in) == nil && in.To != "" && checkJurisdiction(in.To) == nil
	tightens, loosens := org.Org.Jurisdiction == controlplane.JurisdictionAny, in.To == controlplane.JurisdictionAny
	if begins && tightens != loosens {
		target := a.pinTarget(in)
		from, _ := s.Shard(org.Meta.Shard)
		if to, _ := s.Shard(target); tightens || slices.Contains(from.Members, to.Home) {
			return place{shard: target}
		}
	}
	return place{shard: org.Meta.Shard} // the handler says what is wrong with it
}

// pinTarget is the shard of an org that is pinned as in says.
func (a *API) pinTarget(in api.PinInput) controlplane.Shard {
	return orgShard(in.To, orDefault(in.Region, a.cfg.Region))
}

// reissuePlace sends a key to the home of the shard that its org goes to.
func (a *API) reissuePlace(s *registry.State, r *http.Request, _ *exchange) place {
	id := r.PathValue("key")
	shard, _ := registry.ShardOf(registry.KindKey, id, s)
	if left := leftOf(s, id); left != nil {
		shard = left.Shard
	}
	return place{shard: shard}
}

// leftOf is the relocation by which a key's org is being left, or nil.
func leftOf(s *registry.State, key string) *registry.Relocation {
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

// changePin takes a change of pin as far as it goes. It runs at the home of
// the shard that the org goes to.
func (a *API) changePin(ctx context.Context, in *struct {
	OrgPath
	Body api.PinInput
}) (*answer[api.PinChange], error) {
	st, err := a.begun(ctx, in.Org, in.Body)
	if err != nil {
		return nil, err
	}
	if st.Phase == pin.Begun {
		if st, err = a.copied(ctx, st.Org); err != nil {
			return nil, err
		}
	}
	if !in.Body.Finish {
		return a.pinAnswer(st, nil), nil
	}
	var held *api.Held
	if st.Phase == pin.Copied {
		if left := st.Unissued(); left > in.Body.Without {
			return nil, problem(http.StatusConflict, api.CodeCount, "without", fmt.Sprintf(
				"Nothing was revoked: %d keys of %s are in force and have no other in their place. Issue those first, or repeat the request with without %d if they may end.", left, st.Org, left))
		}
	}
	if st.Phase == pin.Copied || st.Phase == pin.Retired {
		if held, err = a.enforced(ctx, st); err != nil {
			return nil, err
		}
		st = a.asOfNow(st)
	}
	if st.Phase == pin.InForce {
		if _, err := a.pinStep(ctx, st.Org, "erase", api.PinStep{To: st.Successor}); err != nil {
			return nil, err
		}
		st = a.asOfNow(st)
	}
	return a.pinAnswer(st, held), nil
}

// pinStatus is the change that the org, or the one whose place it took, is in.
func (a *API) pinStatus(org string) (st pin.Status, err error) {
	var ok bool
	a.view(func(s *registry.State) { st, ok = pin.Of(s, org, a.cfg.Now()) })
	if !ok {
		return st, problem(http.StatusNotFound, api.CodeNotFound, "", "The pin of org "+org+" is not being changed, and was not: begin with the jurisdiction in `to`.")
	}
	return st, nil
}

// begun returns the change that the org is in; it begins one if there is none.
func (a *API) begun(ctx context.Context, id string, in api.PinInput) (pin.Status, error) {
	var st pin.Status
	org, err := a.get(registry.KindOrg, id)
	if err != nil {
		return st, err
	}
	var under bool
	a.view(func(s *registry.State) { st, under = pin.Of(s, id, a.cfg.Now()) })
	done := under && st.Successor == id && st.Phase == pin.Erased
	asked := in.To != "" && in.To != org.Org.Jurisdiction
	switch {
	case under && st.Org == id && asked && in.To != jurisdictionOf(st.Successor):
		return st, problem(http.StatusConflict, string(controlplane.RuleConflict), "to",
			"The pin of this org is being changed to "+jurisdictionOf(st.Successor)+" already: finish that first.")
	case under && !asked, under && st.Org == id:
		return st, nil
	case under && !done:
		return st, problem(http.StatusConflict, string(controlplane.RuleConflict), "to",
			"The org takes the place of "+st.Org+", and that is not finished: finish it first.")
	case in.To == "":
		return st, invalid("to", "Name the jurisdiction that the org is to be pinned to, or any.")
	}
	if err := checkJurisdiction(in.To); err != nil {
		return st, err
	}
	target := a.pinTarget(in)
	if _, err := pin.Begin(org, in.To, target, a.cfg.Now()); err != nil {
		return st, err
	}
	var copied *registry.State // a rehearsal takes long
	a.view(func(s *registry.State) { copied = s.Clone() })
	if info, ok := copied.Shard(target); !ok || info.Home != a.cfg.Region {
		return st, invalid("to", fmt.Sprintf("Shard %s has no home in jurisdiction %s, where the org is: name a region there, and move that shard home first if it is elsewhere.", target, org.Org.Jurisdiction))
	}
	if err := pin.Rehearse(copied, org, in.To, target, a.cfg.Now()); err != nil {
		return st, err
	}
	if _, err := a.pinStep(ctx, id, "begin", api.PinStep{To: in.To, Shard: string(target)}); err != nil {
		return st, err
	}
	return a.pinStatus(id)
}

func jurisdictionOf(id string) string {
	_, rest, _ := strings.Cut(id, "_")
	jurisdiction, _, _ := strings.Cut(rest, "_")
	return jurisdiction
}

// copied makes this region's shard hold all that the org has in its own.
func (a *API) copied(ctx context.Context, org string) (pin.Status, error) {
	for tries := 0; ; {
		var changes []registry.Change
		var shard controlplane.Shard
		var err error
		a.view(func(s *registry.State) {
			left := pin.Leaving(s, org)
			if left == nil {
				err = notFound("relocation of org", org)
				return
			}
			shard = left.Relocation.Shard
			changes, err = pin.Copy(s, left.Relocation, a.cfg.Now())
		})
		if err != nil {
			return pin.Status{}, err
		}
		if len(changes) == 0 {
			return a.pinStatus(org)
		}
		point, err := a.commit(ctx, shard, changes...)
		if overtaken(err, &tries) {
			continue
		}
		if err != nil {
			return pin.Status{}, err
		}
		for _, c := range changes {
			if c.IfRevision == registry.RevisionAbsent {
				a.audit.Created(exchangeOf(ctx).actor, c.Record.Kind.String(), c.Record.Meta.ID, shard, point)
			}
		}
	}
}

// enforced has the old keys revoked, and notes that the pin is in force if
// everybody refuses them; else it returns who is not known to.
func (a *API) enforced(ctx context.Context, st pin.Status) (*api.Held, error) {
	step, err := a.pinStep(ctx, st.Org, "retire", api.PinStep{To: st.Successor})
	if err != nil {
		return nil, err
	}
	if step.Held == nil || !step.Held.All() {
		return step.Held, nil
	}
	for tries := 0; ; {
		var arrived *registry.Record
		a.view(func(s *registry.State) { arrived = pin.Arriving(s, st.Successor) })
		if arrived == nil || arrived.Relocation.InForce != 0 {
			return step.Held, nil // somebody else did it
		}
		now, shard := a.cfg.Now(), arrived.Meta.Shard
		point, err := a.commit(ctx, shard, pin.Noted(arrived, now, func(r *registry.Relocation) { r.InForce = now.UnixMilli() }))
		if overtaken(err, &tries) {
			continue
		}
		if err == nil {
			a.audit.PinInForce(exchangeOf(ctx).actor, st.Successor, st.Org, shard, point)
		}
		return step.Held, err
	}
}

// overtaken says to look again after a refusal that somebody else's same step
// may explain: three times, then it is said.
func overtaken(err error, tries *int) bool {
	var rule *controlplane.RuleError
	if !errors.As(err, &rule) {
		*tries = 0
		return false
	}
	*tries++
	return *tries <= 3
}

// asOfNow is how far the same change is by now.
func (a *API) asOfNow(st pin.Status) pin.Status {
	now, err := a.pinStatus(st.Org)
	if err != nil {
		now, err = a.pinStatus(st.Successor)
	}
	if err != nil || now.Org != st.Org { // erased, and its successor is being left or gone
		st.Phase, st.Keys = pin.Erased, nil
		return st
	}
	return now
}

// pinAnswer describes the change, as of this node's copy.
func (a *API) pinAnswer(st pin.Status, held *api.Held) *answer[api.PinChange] {
	out := api.PinChange{
		Org: st.Org, Successor: st.Successor, To: jurisdictionOf(st.Successor), Phase: string(st.Phase), Held: held,
		Began: millisOrNil(st.Began), Copied: millisOrNil(st.Copied), Retired: millisOrNil(st.Retired), InForce: millisOrNil(st.InForced),
	}
	for _, k := range st.Keys {
		p := api.PinKey{Old: k.Old.Meta.ID, Name: k.Old.Key.Name, Project: registry.Relocated(k.Old.Key.Project, st.Successor)}
		if k.New != nil {
			p.New = k.New.Meta.ID
		}
		out.Keys = append(out.Keys, p)
	}
	position := ""
	a.view(func(s *registry.State) {
		if rec, ok := s.Get(registry.KindOrg, st.Successor); ok {
			info, _ := s.Shard(rec.Meta.Shard)
			out.SurvivesRegionLoss = len(info.Members) > 1
			position = api.FormatPosition(info.Shard, info.Last)
		}
	})
	return &answer[api.PinChange]{Position: position, Body: out}
}

func (a *API) getPin(ctx context.Context, in *OrgPath) (*answer[api.PinChange], error) {
	st, err := a.pinStatus(in.Org)
	if err != nil {
		if _, missing := a.get(registry.KindOrg, in.Org); missing != nil {
			return nil, missing
		}
		return nil, err
	}
	var held *api.Held
	if st.Phase == pin.Retired {
		if step, err := a.pinStep(ctx, st.Org, "held", api.PinStep{To: st.Successor}); err == nil {
			held = step.Held
		}
	}
	out := a.pinAnswer(st, held)
	out.Position = ""
	return out, nil
}

// reissueKey makes the key that takes the place of one whose org is left.
func (a *API) reissueKey(ctx context.Context, in *KeyPath) (*answer[api.Key], error) {
	old, err := a.get(registry.KindKey, in.Key)
	if err != nil {
		return nil, err
	}
	if old.Key.Revoked != 0 || old.Key.Expires != 0 && old.Key.Expires <= a.cfg.Now().UnixMilli() {
		return nil, problem(http.StatusConflict, string(controlplane.RuleConflict), "", "The key has ended: create another in the org that takes its place.")
	}
	var rec *registry.Record
	var id string
	replay := false
	a.view(func(s *registry.State) {
		left := leftOf(s, old.Meta.ID)
		if left == nil {
			err = problem(http.StatusConflict, string(controlplane.RuleConflict), "", "The pin of the key's org is not being changed: rotate the key instead.")
			return
		}
		id = registry.NewID(registry.KindKey.Prefix(), jurisdictionOf(left.To), a.cfg.Now(), a.cfg.Random)
		id = id[:len(id)-len(registry.Chance(id))] + registry.Chance(old.Meta.ID)
		if made := pin.Successor(s, old, left); made != nil {
			id, replay = made.Meta.ID, true
		}
	})
	if err != nil {
		return nil, err
	}
	once := exchangeOf(ctx).once
	taken := problem(http.StatusConflict, string(controlplane.RuleConflict), "", "Key "+id+" was issued in its place already: rotate that one to see a secret.")
	if replay && once == nil {
		return nil, taken
	}
	whole, parsed, err := a.newKey(ctx, old.Key.Class, id)
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
	a.view(func(s *registry.State) { rec, err = pin.Reissued(s, old, id, hash, parsed.Hint()) })
	if err != nil {
		return nil, err
	}
	w, err := a.create(ctx, rec)
	if err != nil {
		return nil, err
	}
	a.audit.KeyReissued(exchangeOf(ctx).actor, id, old.Meta.ID, w.rec.Meta.Shard, w.point)
	a.shareVerdict(w.rec, hash, whole)
	key := showKey(meta(w.rec), w.rec.Key)
	key.Whole = whole.Reveal() // the one time it is shown
	return wrote(w, "/admin/v1/keys/"+id, key), nil
}

// reissuedBefore shows the secret again to a repetition of the request that
// made it.
func (a *API) reissuedBefore(ctx context.Context, id string, whole controlplane.Secret, taken error) (*answer[api.Key], error) {
	rec, err := a.get(registry.KindKey, id)
	if err != nil {
		return nil, err
	}
	if apikey.Match(rec.Key.Hash, whole.Reveal()) != nil {
		return nil, taken
	}
	exchangeOf(ctx).once.replay = true
	a.audit.KeyShownAgain(exchangeOf(ctx).actor, id)
	w, err := a.replayed(rec)
	if err != nil {
		return nil, err
	}
	key := showKey(meta(w.rec), w.rec.Key)
	key.Whole = whole.Reveal()
	return wrote(w, "/admin/v1/keys/"+id, key), nil
}
