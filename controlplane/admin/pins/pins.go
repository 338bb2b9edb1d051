// Package pins drives an org's change of pin: it commits the steps that pin
// returns, has the home of the org that is left do its own, and says how far the
// change is. It runs at the home of the shard that the org goes to; every request
// goes as far as it can, and may be repeated.
package pins

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/admin/api"
	"ringmain/controlplane/admin/audit"
	"ringmain/controlplane/admin/gate"
	"ringmain/controlplane/admin/problem"
	"ringmain/controlplane/admin/records"
	"ringmain/controlplane/admin/revoke"
	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Config is what Register needs.
type Config struct {
	Region  string
	Records *records.Records
	Revoke  *revoke.Desk      // ends the old keys, and knows who refuses them
	Nodes   func() []api.Node // what gossip knows; may be nil
	Now     func() time.Time
	Audit   audit.Log
}

type desk struct {
	cfg     Config
	records *records.Records
	ask     func(ctx context.Context, region, path string, in, out any) error
}

// Register has g answer the operations of this room. Whoever deletes an org asks
// deletable first, at the home of its shard.
func Register(g *gate.Gate, cfg Config) (deletable func(ctx context.Context, org string) error) {
	d := &desk{cfg, cfg.Records, g.Ask}
	d.register(g)
	return d.deletable
}

func (d *desk) register(g *gate.Gate) {
	const tag = "Orgs"
	byOrg := gate.ByID(registry.KindOrg, "org")
	gate.Add(g, gate.Operation{
		ID: "change-org-pin", Method: http.MethodPost, Path: "/orgs/{org}/pin", Tag: tag, Summary: "Change an org's pin, or go on with it", Safe: true, Place: d.pinPlace,
		Description: "Another org takes the org's place in the other jurisdiction: same records, other ids. Repeat the request to go on after an error. Old keys work until finish ends them.",
	}, d.changePin)
	gate.Add(g, gate.Operation{
		ID: "get-org-pin", Method: http.MethodGet, Path: "/orgs/{org}/pin", Tag: tag, Summary: "How far an org's change of pin is", Place: d.pinPlace,
		Description: "By the id of either org; once the old records are erased, by that of the successor.",
	}, d.getPin)
	gate.Add(g, gate.Operation{
		ID: "list-org-pin-keys", Method: http.MethodGet, Path: "/orgs/{org}/pin/keys", Tag: tag, Summary: "List the old keys of an org that changes its pin, and those that take their place", Place: d.pinPlace,
	}, d.listKeys)
	for _, step := range []struct {
		id string
		do func(context.Context, *pinStep) (*gate.Answer[api.PinStepped], error)
	}{{"begin", d.beginPin}, {"retire", d.retirePin}, {"erase", d.erasePin}, {"held", d.heldPin}} {
		gate.Add(g, gate.Operation{
			ID: step.id + "-org-pin", Method: http.MethodPost, Path: "/orgs/{org}/pin/" + step.id, Tag: tag, Internal: true, Safe: true, Place: byOrg,
			Summary: "One step of a change of pin, at the home of the org that is left",
		}, step.do)
	}
}

// pinPlace sends a change of pin to the home of the shard that the org goes
// to: it holds both.
func (d *desk) pinPlace(s *ledger.State, r gate.Asked) gate.Place {
	id := r.PathValue("org")
	shard, _ := s.ShardOf(registry.KindOrg, id)
	org, held := s.Get(registry.KindOrg, id)
	if !held {
		return gate.In(shard)
	}
	if left := pin.Leaving(s, id); left != nil {
		return gate.In(left.Relocation.Shard)
	}
	var in api.PinInput
	begins := r.Method == http.MethodPost && json.Unmarshal(r.Body, &in) == nil && in.To != "" && records.CheckJurisdiction(in.To) == nil
	tightens, loosens := org.Org.Jurisdiction == controlplane.JurisdictionAny, in.To == controlplane.JurisdictionAny
	if begins && tightens != loosens {
		target := d.pinTarget(in)
		from, _ := s.Shard(org.Meta.Shard)
		if to, _ := s.Shard(target); tightens || slices.Contains(from.Members, to.Home) {
			return gate.In(target)
		}
	}
	return gate.In(org.Meta.Shard) // the handler says what is wrong with it
}

// pinTarget is the shard of an org that is pinned as in says.
func (d *desk) pinTarget(in api.PinInput) controlplane.Shard {
	return records.OrgShard(in.To, cmp.Or(in.Region, d.cfg.Region))
}

// changePin takes a change of pin as far as it goes. It runs at the home of
// the shard that the org goes to.
func (d *desk) changePin(ctx context.Context, in *struct {
	gate.OrgPath
	Body api.PinInput
}) (*gate.Answer[api.PinChange], error) {
	st, begin, err := d.begun(ctx, in.Org, in.Body)
	if err != nil {
		return nil, err
	}
	if begin != nil {
		var sure bool
		if st, sure, err = d.begin(ctx, st, *begin); err != nil {
			return nil, err
		}
		if !sure {
			return d.waiting(st, nil), nil
		}
		if st, err = d.copied(ctx, st.Org); err != nil {
			return nil, err
		}
	}
	if !in.Body.Finish {
		return d.pinAnswer(st, nil), nil
	}
	var held *api.Held
	if st.Phase == pin.Copied {
		if left := st.Unissued(); left > in.Body.Without {
			return nil, problem.New(http.StatusConflict, api.CodeCount, "without", fmt.Sprintf(
				"Nothing was revoked: %d keys of %s are in force and have no other in their place. Issue those first, or repeat the request with without %d if they may end.", left, st.Org, left))
		}
	}
	if st.Phase == pin.Copied || st.Phase == pin.Retired {
		if !d.sure(ctx, st.Successor) {
			return d.waiting(st, nil), nil
		}
		if held, err = d.enforced(ctx, st); err != nil {
			return nil, err
		}
		st = d.asOfNow(st)
	}
	if st.Phase == pin.InForce {
		if !d.sure(ctx, st.Successor) {
			return d.waiting(st, held), nil
		}
		if _, err := d.pinStep(ctx, st.Org, "erase", api.PinStep{To: st.Successor}); err != nil {
			return nil, err
		}
		st = d.asOfNow(st)
	}
	return d.pinAnswer(st, held), nil
}

// pinStatus is the change that the org, or the one whose place it took, is in.
func (d *desk) pinStatus(org string) (st pin.Status, err error) {
	var ok bool
	d.records.View(func(s *ledger.State) { st, ok = pin.Of(s, org, d.cfg.Now()) })
	if !ok {
		return st, problem.New(http.StatusNotFound, api.CodeNotFound, "", "The pin of org "+org+" is not being changed, and was not: begin with the jurisdiction in `to`.")
	}
	return st, nil
}

// begun returns the change that the org is in; of one that is to be, the org only.
// Until it is copied, begin is the step that begins it.
func (d *desk) begun(ctx context.Context, id string, in api.PinInput) (st pin.Status, begin *api.PinStep, err error) {
	org, err := d.records.Get(registry.KindOrg, id)
	if err != nil {
		return st, nil, err
	}
	var under bool
	var left *registry.Record
	d.records.View(func(s *ledger.State) {
		st, under = pin.Of(s, id, d.cfg.Now())
		left = pin.Leaving(s, st.Org)
	})
	done := under && st.Successor == id && st.Phase == pin.Erased
	asked := in.To != "" && in.To != org.Org.Jurisdiction
	switch {
	case under && st.Phase == pin.CutOff:
		if err := d.cutOff(ctx, st); err != nil {
			return st, nil, err
		}
		return st, nil, problem.Conflict("to", fmt.Sprintf(
			"A takeover undid what began this change. %s is as it was; %s was to take its place and is left over: delete it, and begin again.", st.Org, st.Successor))
	case under && st.Org == id && asked && in.To != records.JurisdictionOf(st.Successor):
		return st, nil, problem.Conflict("to",
			"The pin of this org is being changed to "+records.JurisdictionOf(st.Successor)+" already: finish that first.")
	case under && (!asked || st.Org == id):
		switch {
		case st.Phase != pin.Begun:
		case left == nil: // this region does not hold the shard that is left
			err = problem.NotFound("relocation of org", st.Org)
		default:
			begin = &api.PinStep{To: records.JurisdictionOf(st.Successor), Shard: string(left.Relocation.Shard)}
		}
		return st, begin, err
	case under && !done:
		return st, nil, problem.Conflict("to",
			"The org takes the place of "+st.Org+", and that is not finished: finish it first.")
	case in.To == "":
		return st, nil, problem.Invalid("to", "Name the jurisdiction that the org is to be pinned to, or any.")
	}
	if err := records.CheckJurisdiction(in.To); err != nil {
		return st, nil, err
	}
	target := d.pinTarget(in)
	if _, err := pin.Begin(org, in.To, target, d.cfg.Now()); err != nil {
		return st, nil, err
	}
	var copied *ledger.State // a rehearsal takes long
	d.records.View(func(s *ledger.State) { copied = s.Clone() })
	if info, ok := copied.Shard(target); !ok || info.Home != d.cfg.Region {
		return st, nil, problem.Invalid("to", fmt.Sprintf("Shard %s has no home in jurisdiction %s, where the org is: name a region there, and move that shard home first if it is elsewhere.", target, org.Org.Jurisdiction))
	}
	if err := pin.Rehearse(copied, org, in.To, target, d.cfg.Now()); err != nil {
		return st, nil, err
	}
	return pin.Status{Org: id}, &api.PinStep{To: in.To, Shard: string(target)}, nil
}

// begin begins the change, or finds it begun, and says whether other regions, if
// there are any, hold that: a copy of what a takeover undoes would be left over.
func (d *desk) begin(ctx context.Context, st pin.Status, step api.PinStep) (now pin.Status, sure bool, err error) {
	if st.Phase == pin.Begun {
		ctx = records.Safely(ctx) // nothing is written any more, only waited for
	}
	done, err := d.pinStep(ctx, st.Org, "begin", step)
	if err != nil {
		return st, false, err
	}
	d.records.View(func(s *ledger.State) {
		shard, _ := s.ShardOf(registry.KindOrg, st.Org)
		info, _ := s.Shard(shard)
		sure = len(info.Members) == 1 || done.Acknowledged == api.AcknowledgedMultiRegion
	})
	now, err = d.pinStatus(st.Org)
	return now, sure, err
}

// sure reports whether other regions, if there are any, hold all that the
// successor's shard holds here: what is ended for its sake does not come back.
func (d *desk) sure(ctx context.Context, successor string) bool {
	var info registry.ShardInfo
	d.records.View(func(s *ledger.State) {
		shard, _ := s.ShardOf(registry.KindOrg, successor)
		info, _ = s.Shard(shard)
	})
	_, more := d.records.Acknowledged(records.Safely(ctx), info.Shard, info.Last)
	return !more
}

// waiting answers that the change goes no further until other regions hold what
// was written for it.
func (d *desk) waiting(st pin.Status, held *api.Held) *gate.Answer[api.PinChange] {
	out := d.pinAnswer(st, held)
	out.Status, out.Position, out.Reached = http.StatusAccepted, "", api.AcknowledgedRegion
	out.Body.Acknowledge(out.Reached)
	return out
}

// copied makes this region's shard hold all that the org has in its own.
func (d *desk) copied(ctx context.Context, org string) (pin.Status, error) {
	for tries := 0; ; {
		var changes []registry.Change
		var shard controlplane.Shard
		var err error
		d.records.View(func(s *ledger.State) {
			left := pin.Leaving(s, org)
			if left == nil {
				err = problem.NotFound("relocation of org", org)
				return
			}
			shard = left.Relocation.Shard
			changes, err = pin.Copy(s, left.Relocation, d.cfg.Now())
		})
		if err != nil {
			return pin.Status{}, err
		}
		if len(changes) == 0 {
			return d.pinStatus(org)
		}
		point, err := d.records.Commit(ctx, shard, changes...)
		if overtaken(err, &tries) {
			continue
		}
		if err != nil {
			return pin.Status{}, err
		}
		for _, c := range changes {
			if c.IfRevision == registry.RevisionAbsent {
				d.cfg.Audit.Created(records.RequestOf(ctx).Actor, c.Record.Kind.String(), c.Record.Meta.ID, shard, point)
			}
		}
	}
}

// enforced has the old keys revoked, and notes that the pin is in force if
// everybody refuses them; else it returns who is not known to.
func (d *desk) enforced(ctx context.Context, st pin.Status) (*api.Held, error) {
	step, err := d.pinStep(ctx, st.Org, "retire", api.PinStep{To: st.Successor})
	if err != nil {
		return nil, err
	}
	if step.Held == nil || !step.Held.All() {
		return step.Held, nil
	}
	for tries := 0; ; {
		var arrived *registry.Record
		d.records.View(func(s *ledger.State) { arrived = pin.Arriving(s, st.Successor) })
		if arrived == nil || arrived.Relocation.InForce != 0 {
			return step.Held, nil // somebody else did it
		}
		now, shard := d.cfg.Now(), arrived.Meta.Shard
		point, err := d.records.Commit(ctx, shard, pin.Noted(arrived, now, func(r *registry.Relocation) { r.InForce = now.UnixMilli() }))
		if overtaken(err, &tries) {
			continue
		}
		if err == nil {
			d.cfg.Audit.PinInForce(records.RequestOf(ctx).Actor, st.Successor, st.Org, shard, point)
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
func (d *desk) asOfNow(st pin.Status) pin.Status {
	now, err := d.pinStatus(st.Org)
	if err != nil {
		now, err = d.pinStatus(st.Successor)
	}
	if err != nil || now.Org != st.Org { // erased, and its successor is being left or gone
		st.Phase, st.Keys = pin.Erased, nil
		return st
	}
	return now
}

// pinAnswer describes the change, as of this node's copy.
func (d *desk) pinAnswer(st pin.Status, held *api.Held) *gate.Answer[api.PinChange] {
	out := api.PinChange{
		Org: st.Org, Successor: st.Successor, To: records.JurisdictionOf(st.Successor), Phase: string(st.Phase), Held: held,
		Began: records.Millis(st.Began), Copied: records.Millis(st.Copied), Retired: records.Millis(st.Retired), InForce: records.Millis(st.InForced),
	}
	out.KeysInForce, out.KeysUnissued = len(st.Keys), st.Unissued()
	for _, issued := range []bool{false, true} {
		for _, k := range st.Keys {
			if (k.New != nil) == issued && len(out.Keys) < shownKeys {
				out.Keys = append(out.Keys, showPair(k, st.Successor))
			}
		}
	}
	position := ""
	d.records.View(func(s *ledger.State) {
		var target controlplane.Shard
		rec, there := s.Get(registry.KindOrg, st.Successor)
		if left := pin.Leaving(s, st.Org); there {
			target = rec.Meta.Shard
		} else if left != nil {
			target = left.Relocation.Shard
		}
		info, _ := s.Shard(target)
		if out.SurvivesRegionLoss = len(info.Members) > 1; there {
			position = api.FormatPosition(info.Shard, info.Last)
		}
	})
	return &gate.Answer[api.PinChange]{Position: position, Body: out}
}

// shownKeys is how many keys an answer shows that lists none.
const shownKeys = 100

func showPair(k pin.Pair, successor string) api.PinKey {
	p := api.PinKey{Old: k.Old.Meta.ID, Name: k.Old.Key.Name, Project: registry.Relocated(k.Old.Key.Project, successor)}
	if k.New != nil {
		p.New = k.New.Meta.ID
	}
	return p
}

func (d *desk) listKeys(_ context.Context, in *struct {
	gate.OrgPath
	records.Paging
}) (*gate.Answer[api.PinKeyList], error) {
	st, err := d.known(in.Org)
	if err != nil {
		return nil, err
	}
	byOld := make(map[string]pin.Pair, len(st.Keys))
	for _, k := range st.Keys {
		byOld[k.Old.Meta.ID] = k
	}
	ids := slices.Sorted(maps.Keys(byOld))
	var list api.PinKeyList
	list.Items, list.Page, err = records.List(d.records, in.Paging, func(_ *ledger.State, after string, limit int) (olds []*registry.Record) {
		from, _ := slices.BinarySearch(ids, after+"\x00")
		for _, id := range ids[from:min(from+limit, len(ids))] {
			olds = append(olds, byOld[id].Old)
		}
		return olds
	}, func(old *registry.Record) api.PinKey { return showPair(byOld[old.Meta.ID], st.Successor) })
	return &gate.Answer[api.PinKeyList]{Body: list}, err
}

// known is the change that the org is in; the error tells an org that is not from
// one that changes nothing.
func (d *desk) known(org string) (pin.Status, error) {
	st, err := d.pinStatus(org)
	if err != nil {
		if _, missing := d.records.Get(registry.KindOrg, org); missing != nil {
			return st, missing
		}
	}
	return st, err
}

func (d *desk) getPin(ctx context.Context, in *gate.OrgPath) (*gate.Answer[api.PinChange], error) {
	st, err := d.known(in.Org)
	if err != nil {
		return nil, err
	}
	if st.Phase == pin.CutOff {
		if err := d.cutOff(ctx, st); err != nil {
			return nil, err
		}
	}
	var held *api.Held
	if st.Phase == pin.Retired {
		if step, err := d.pinStep(ctx, st.Org, "held", api.PinStep{To: st.Successor}); err == nil {
			held = step.Held
		}
	}
	out := d.pinAnswer(st, held)
	out.Position = ""
	return out, nil
}
