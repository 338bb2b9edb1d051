package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
)

// pinStep is one step at the home of the org that is left.
type pinStep struct {
	OrgPath
	Body api.PinStep
}

// leaving finds the relocation that a step is about.
func (a *API) leaving(in *pinStep) (left *registry.Record, err error) {
	a.view(func(s *registry.State) { left = pin.Leaving(s, in.Org) })
	if left == nil || left.Relocation.To != in.Body.To {
		return nil, problem(http.StatusConflict, string(controlplane.RuleConflict), "to", in.Body.To+" does not take the place of "+in.Org+" here: read the status again.")
	}
	return left, nil
}

// stepped answers a step with the end of the org's shard.
func (a *API) stepped(shard controlplane.Shard, held *api.Held) *answer[api.PinStepped] {
	var info registry.ShardInfo
	a.view(func(s *registry.State) { info, _ = s.Shard(shard) })
	return &answer[api.PinStepped]{Position: api.FormatPosition(shard, info.Last), Body: api.PinStepped{Held: held}}
}

func (a *API) beginPin(ctx context.Context, in *pinStep) (*answer[api.PinStepped], error) {
	org, err := a.get(registry.KindOrg, in.Org)
	if err != nil {
		return nil, err
	}
	shard, target := org.Meta.Shard, controlplane.Shard(in.Body.Shard)
	for tries := 0; ; {
		var left, before *registry.Record
		a.view(func(s *registry.State) {
			err = pin.Ready(s)
			if left = pin.Leaving(s, in.Org); left != nil {
				return
			}
			if arrived := pin.Arriving(s, in.Org); arrived != nil {
				before = pin.Leaving(s, arrived.Relocation.From)
			}
		})
		switch {
		case left != nil:
			if r := left.Relocation; jurisdictionOf(r.To) != in.Body.To || r.Shard != target {
				return nil, problem(http.StatusConflict, string(controlplane.RuleConflict), "to", "The pin of this org is being changed to "+r.To+" already: finish that first.")
			}
			return a.stepped(shard, nil), nil
		case before != nil: // the region that asks may not see it
			return nil, problem(http.StatusConflict, string(controlplane.RuleConflict), "to", "The org takes the place of "+before.Relocation.Org+", and that is not finished: finish it first.")
		case err != nil:
			return nil, err
		}
		changes, err := pin.Begin(org, in.Body.To, target, a.cfg.Now())
		if err != nil {
			return nil, err
		}
		point, err := a.commit(ctx, shard, changes...)
		if overtaken(err, &tries) {
			continue
		}
		if err != nil {
			return nil, err
		}
		a.audit.PinBegun(exchangeOf(ctx).actor, org.Meta.ID, in.Body.To, shard, point)
		return a.stepped(shard, nil), nil
	}
}

func (a *API) retirePin(ctx context.Context, in *pinStep) (*answer[api.PinStepped], error) {
	actor := exchangeOf(ctx).actor
	for tries := 0; ; {
		left, err := a.leaving(in)
		if err != nil {
			return nil, err
		}
		shard := left.Meta.Shard
		var changes []registry.Change
		var keys []*registry.Record
		a.view(func(s *registry.State) {
			changes = pin.Retire(s, left, a.cfg.Now())
			for _, c := range changes {
				if k, ok := s.Get(registry.KindKey, c.ID); ok && c.Op == registry.OpRevoke {
					keys = append(keys, k)
				}
			}
		})
		if len(changes) == 0 {
			return a.stepped(shard, a.refusing(ctx, in.Org, true)), nil
		}
		a.pushRevocations(actor, keys)
		point, err := a.commit(ctx, shard, changes...)
		if overtaken(err, &tries) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			a.audit.KeyRevoked(actor, k.Meta.ID, shard, point)
		}
	}
}

func (a *API) heldPin(ctx context.Context, in *pinStep) (*answer[api.PinStepped], error) {
	left, err := a.leaving(in)
	if err != nil {
		return nil, err
	}
	out := a.stepped(left.Meta.Shard, a.refusing(ctx, in.Org, false))
	out.Position = "" // nothing was written
	return out, nil
}

// refusing says who holds the revocations of all keys of an org that is
// retired. A region of which gossip knows no living node may have data nodes
// that nobody heard of, so nothing is known of it.
func (a *API) refusing(ctx context.Context, org string, wait bool) *api.Held {
	var left *registry.Record
	a.view(func(s *registry.State) { left = pin.Leaving(s, org) })
	if left == nil || left.Relocation.Retired == 0 {
		return nil
	}
	point := a.revokedAt(left)
	var held *api.Held
	if wait {
		held = a.held(ctx, left.Meta.Shard, point)
	} else {
		held = a.holders(left.Meta.Shard, point)
	}
	alive := map[string]bool{}
	if a.cfg.Nodes != nil {
		for _, n := range a.cfg.Nodes() {
			alive[n.Region] = alive[n.Region] || n.Alive
		}
	}
	for _, list := range []*[]string{&held.Regions, &held.RegionsMissing} {
		*list = slices.DeleteFunc(*list, func(region string) bool {
			if !alive[region] {
				held.RegionsUnknown = append(held.RegionsUnknown, region)
			}
			return !alive[region]
		})
	}
	return held
}

func (a *API) erasePin(ctx context.Context, in *pinStep) (*answer[api.PinStepped], error) {
	left, err := a.leaving(in)
	if err != nil {
		return nil, err
	}
	for shard, tries := left.Meta.Shard, 0; ; {
		var changes []registry.Change
		a.view(func(s *registry.State) { changes = pin.Erase(s, in.Org) })
		if len(changes) == 0 {
			a.audit.PinErased(exchangeOf(ctx).actor, in.Org, in.Body.To)
			return a.stepped(shard, nil), nil
		}
		if _, err := a.commit(ctx, shard, changes...); err != nil && !overtaken(err, &tries) {
			return nil, err
		}
	}
}

// pinStep has the home of the org's shard do a step, and waits until this copy
// shows it.
func (a *API) pinStep(ctx context.Context, org, step string, in api.PinStep) (api.PinStepped, error) {
	var info registry.ShardInfo
	a.view(func(s *registry.State) {
		if shard, ok := registry.ShardOf(registry.KindOrg, org, s); ok {
			info, _ = s.Shard(shard)
		}
	})
	if info.Home == a.cfg.Region {
		do := map[string]func(context.Context, *pinStep) (*answer[api.PinStepped], error){
			"begin": a.beginPin, "retire": a.retirePin, "erase": a.erasePin, "held": a.heldPin,
		}[step]
		out, err := do(ctx, &pinStep{OrgPath{org}, in})
		if err != nil {
			return api.PinStepped{}, err
		}
		return out.Body, nil
	}
	var out api.PinStepped
	if a.cfg.Forwarder == nil {
		return out, controlplane.ErrUnreachable
	}
	x := exchangeOf(ctx)
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "/admin/v1/orgs/"+org+"/pin/"+step, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(api.HeaderActor, x.actor)
	req.Header.Set(api.HeaderEntry, a.cfg.Region+"/"+a.cfg.Node)
	if x.level.asked && x.level.wanted == registry.LevelRegion {
		req.Header.Set(api.HeaderAcknowledge, api.AcknowledgedRegion)
	}
	resp, err := a.cfg.Forwarder.Forward(ctx, info.Home, req)
	if err != nil {
		return out, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody))
	if err != nil {
		return out, fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
	if resp.StatusCode/100 != 2 {
		p := new(api.Problem)
		if err := json.Unmarshal(b, p); err != nil || p.Code == "" {
			return out, fmt.Errorf("%w: %s answers %d", controlplane.ErrUncertain, info.Home, resp.StatusCode)
		}
		return out, p
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("%w: %w", controlplane.ErrUncertain, err)
	}
	if shard, point, err := api.ParsePosition(resp.Header.Get(api.HeaderPosition)); err == nil {
		if err := a.cfg.Store.Wait(ctx, shard, point); err != nil {
			return out, fmt.Errorf("%w: this region has not heard of the step yet: %w", controlplane.ErrUncertain, err)
		}
	}
	return out, nil
}
