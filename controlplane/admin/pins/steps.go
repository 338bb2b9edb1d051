package pins

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// pinStep is one step at the home of the org that is left.
type pinStep struct {
	gate.OrgPath
	Body api.PinStep
}

// leaving finds the relocation that a step is about.
func (d *desk) leaving(in *pinStep) (left *registry.Record, err error) {
	d.records.View(func(s *ledger.State) { left = pin.Leaving(s, in.Org) })
	if left == nil || left.Relocation.To != in.Body.To {
		return nil, problem.Conflict("to", in.Body.To+" does not take the place of "+in.Org+" here: read the status again.")
	}
	return left, nil
}

// stepped answers a step with the end of the org's shard.
func (d *desk) stepped(shard controlplane.Shard, held *api.Held) *gate.Answer[api.PinStepped] {
	var info registry.ShardInfo
	d.records.View(func(s *ledger.State) { info, _ = s.Shard(shard) })
	return &gate.Answer[api.PinStepped]{Position: api.FormatPosition(shard, info.Last), Body: api.PinStepped{Held: held}}
}

func (d *desk) beginPin(ctx context.Context, in *pinStep) (*gate.Answer[api.PinStepped], error) {
	org, err := d.records.Get(registry.KindOrg, in.Org)
	if err != nil {
		return nil, err
	}
	shard, target := org.Meta.Shard, controlplane.Shard(in.Body.Shard)
	for tries := 0; ; {
		var left, before *registry.Record
		d.records.View(func(s *ledger.State) {
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
			if r := left.Relocation; records.JurisdictionOf(r.To) != in.Body.To || r.Shard != target {
				return nil, problem.Conflict("to", "The pin of this org is being changed to "+r.To+" already: finish that first.")
			}
			return d.stepped(shard, nil), nil
		case before != nil: // the region that asks may not see it
			return nil, problem.Conflict("to", "The org takes the place of "+before.Relocation.Org+", and that is not finished: finish it first.")
		case err != nil:
			return nil, err
		}
		changes, err := pin.Begin(org, in.Body.To, target, d.cfg.Now())
		if err != nil {
			return nil, err
		}
		point, err := d.records.Commit(ctx, shard, changes...)
		if overtaken(err, &tries) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d.cfg.Audit.PinBegun(records.RequestOf(ctx).Actor, org.Meta.ID, in.Body.To, shard, point)
		return d.stepped(shard, nil), nil
	}
}

func (d *desk) retirePin(ctx context.Context, in *pinStep) (*gate.Answer[api.PinStepped], error) {
	actor := records.RequestOf(ctx).Actor
	for tries := 0; ; {
		left, err := d.leaving(in)
		if err != nil {
			return nil, err
		}
		shard := left.Meta.Shard
		var changes []registry.Change
		var keys []*registry.Record
		d.records.View(func(s *ledger.State) {
			changes = pin.Retire(s, left, d.cfg.Now())
			for _, c := range changes {
				if k, ok := s.Get(registry.KindKey, c.ID); ok && c.Op == registry.OpRevoke {
					keys = append(keys, k)
				}
			}
		})
		if len(changes) == 0 {
			return d.stepped(shard, d.refusing(ctx, in.Org, true)), nil
		}
		d.cfg.Revoke.PushKeys(actor, keys...)
		point, err := d.records.Commit(ctx, shard, changes...)
		if overtaken(err, &tries) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			d.cfg.Audit.KeyRevoked(actor, k.Meta.ID, shard, point)
		}
	}
}

func (d *desk) heldPin(ctx context.Context, in *pinStep) (*gate.Answer[api.PinStepped], error) {
	left, err := d.leaving(in)
	if err != nil {
		return nil, err
	}
	out := d.stepped(left.Meta.Shard, d.refusing(ctx, in.Org, false))
	out.Position = "" // nothing was written
	return out, nil
}

// refusing says who holds the revocations of all keys of an org that is
// retired. A region of which gossip knows no living node may have data nodes
// that nobody heard of, so nothing is known of it.
func (d *desk) refusing(ctx context.Context, org string, wait bool) *api.Held {
	var left *registry.Record
	d.records.View(func(s *ledger.State) { left = pin.Leaving(s, org) })
	if left == nil || left.Relocation.Retired == 0 {
		return nil
	}
	point := d.cfg.Revoke.At(left)
	var held *api.Held
	if wait {
		held = d.cfg.Revoke.Held(ctx, left.Meta.Shard, point)
	} else {
		held = d.cfg.Revoke.HeldNow(left.Meta.Shard, point)
	}
	alive := map[string]bool{}
	if d.cfg.Nodes != nil {
		for _, n := range d.cfg.Nodes() {
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

func (d *desk) erasePin(ctx context.Context, in *pinStep) (*gate.Answer[api.PinStepped], error) {
	left, err := d.leaving(in)
	if err != nil {
		return nil, err
	}
	for shard, tries := left.Meta.Shard, 0; ; {
		var changes []registry.Change
		d.records.View(func(s *ledger.State) { changes = pin.Erase(s, in.Org) })
		if len(changes) == 0 {
			d.cfg.Audit.PinErased(records.RequestOf(ctx).Actor, in.Org, in.Body.To)
			return d.stepped(shard, nil), nil
		}
		if _, err := d.records.Commit(ctx, shard, changes...); err != nil && !overtaken(err, &tries) {
			return nil, err
		}
	}
}

// cutOff makes sure, at the home of the org that was to be left, that what began
// the change is undone: to a copy that is behind it looks alike, and there the
// successor is no leftover.
func (d *desk) cutOff(ctx context.Context, st pin.Status) error {
	_, err := d.pinStep(ctx, st.Org, "held", api.PinStep{To: st.Successor})
	var p *api.Problem
	switch {
	case err == nil:
		return problem.New(http.StatusServiceUnavailable, api.CodeNotReady, "",
			"This region's copy of the org that is left, "+st.Org+", is behind its home: ask again once it has caught up.")
	case errors.As(err, &p) && p.Status == http.StatusConflict:
		return nil
	}
	return err
}

// deletable refuses an org whose change of pin only looks cut off here.
func (d *desk) deletable(ctx context.Context, org string) error {
	var st pin.Status
	d.records.View(func(s *ledger.State) { st, _ = pin.Of(s, org, d.cfg.Now()) })
	if st.Phase != pin.CutOff || st.Successor != org {
		return nil
	}
	return d.cutOff(ctx, st)
}

// pinStep has the home of the org's shard do a step, and waits until this copy
// shows it.
func (d *desk) pinStep(ctx context.Context, org, step string, in api.PinStep) (api.PinStepped, error) {
	var info registry.ShardInfo
	d.records.View(func(s *ledger.State) {
		if shard, ok := s.ShardOf(registry.KindOrg, org); ok {
			info, _ = s.Shard(shard)
		}
	})
	if info.Home == d.cfg.Region {
		do := map[string]func(context.Context, *pinStep) (*gate.Answer[api.PinStepped], error){
			"begin": d.beginPin, "retire": d.retirePin, "erase": d.erasePin, "held": d.heldPin,
		}[step]
		out, err := do(ctx, &pinStep{gate.OrgPath{Org: org}, in})
		if err != nil {
			return api.PinStepped{}, err
		}
		if shard, point, err := api.ParsePosition(out.Position); err == nil && step == "begin" { // elsewhere the gate does it
			reached, _ := d.records.Acknowledged(ctx, shard, point)
			out.Body.Acknowledge(reached)
		}
		return out.Body, nil
	}
	var out api.PinStepped
	err := d.ask(ctx, info.Home, "/orgs/"+org+"/pin/"+step, in, &out)
	return out, err
}
