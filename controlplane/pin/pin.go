// Package pin says how an org changes its pin: which changes each step makes,
// and how far a change is. It is pure: no clock, randomness or network; whoever
// calls commits what it returns, at the home of the shard concerned.
package pin

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// batch is how many changes are made at once, below registry.MaxChanges.
const batch = 100

// Begin returns what begins the org's change to jurisdiction, in the shard
// target: it is pinned, if that is tighter than before, and frozen. The error
// is a *controlplane.RuleError.
func Begin(org *registry.Record, jurisdiction string, target controlplane.Shard, at time.Time) ([]registry.Change, error) {
	from := org.Org.Jurisdiction
	switch {
	case from == jurisdiction:
		return nil, controlplane.Refuse(controlplane.RuleInvalid, "to", "%s is of jurisdiction %q already", org.Meta.ID, jurisdiction)
	case from != controlplane.JurisdictionAny && jurisdiction != controlplane.JurisdictionAny:
		return nil, controlplane.Refuse(controlplane.RuleInvalid, "to",
			"an org pinned to %q cannot be pinned to %q at once: nothing lies in both, so either nobody would be served, or more than one pin would hold. Change it to any first, finish that, and change it to %q then",
			from, jurisdiction, jurisdiction)
	}
	id := org.Meta.ID
	to := registry.Relocated(id, registry.NewID(registry.KindOrg.Prefix(), jurisdiction, at, zeros{}))
	ms := at.UnixMilli()
	var changes []registry.Change
	if jurisdiction != controlplane.JurisdictionAny {
		changes = append(changes, registry.Change{Op: registry.OpRevoke, Kind: registry.KindPin, ID: registry.PinID(id, jurisdiction), At: ms})
	}
	return append(changes, registry.Change{Op: registry.OpPut, Record: &registry.Record{
		Kind:       registry.KindRelocation,
		Meta:       registry.Meta{ID: registry.RelocationID(id), Shard: org.Meta.Shard, Created: ms, Updated: ms},
		Relocation: &registry.Relocation{Org: id, To: to, Shard: target},
	}}), nil
}

// Ready returns why the region cannot take part in a change yet.
func Ready(s *ledger.State) error {
	if v := s.Version(); v < registry.VersionSafety {
		return controlplane.Refuse(controlplane.RuleConflict, "to",
			"orgs change their pin from cluster version %d on, and the region is at %d: upgrade all of its nodes", registry.VersionSafety, v)
	}
	return nil
}

// zeros stand for chance: of the id only its second counts.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Leaving returns the relocation by which the org is being left, or nil.
func Leaving(s *ledger.State, org string) *registry.Record {
	if r, ok := s.Relocation(org); ok && r.Relocation.To != "" {
		return r
	}
	return nil
}

// Arriving returns the relocation by which the org took another's place, or nil.
func Arriving(s *ledger.State, org string) *registry.Record {
	if r, ok := s.Relocation(org); ok && r.Relocation.From != "" {
		return r
	}
	return nil
}

// Copy returns the next changes to the shard that left names, of a state that
// holds both shards; none when all is copied. Each call makes what is missing,
// so it goes on wherever the last one ended.
func Copy(s *ledger.State, left *registry.Relocation, at time.Time) ([]registry.Change, error) {
	ms := at.UnixMilli()
	old, ok := s.Get(registry.KindOrg, left.Org)
	if !ok {
		return nil, controlplane.Refuse(controlplane.RuleNotFound, "org", "%s does not exist", left.Org)
	}
	arriving := Arriving(s, left.To)
	if arriving == nil {
		org := *old.Org
		_, rest, _ := strings.Cut(left.To, "_")
		org.Jurisdiction, _, _ = strings.Cut(rest, "_")
		org.Roaming = org.Roaming && org.Jurisdiction == controlplane.JurisdictionAny
		return []registry.Change{
			made(old, left, ms, &registry.Record{Kind: registry.KindOrg, Org: &org}),
			{Op: registry.OpPut, IfRevision: registry.RevisionAbsent, Record: &registry.Record{
				Kind:       registry.KindRelocation,
				Meta:       registry.Meta{ID: registry.RelocationID(left.To), Shard: left.Shard, Created: ms, Updated: ms},
				Relocation: &registry.Relocation{Org: left.To, From: left.Org, Shard: old.Meta.Shard},
			}},
		}, nil
	}
	if arriving.Relocation.Copied != 0 {
		return nil, nil
	}
	var changes []registry.Change
	missing := func(r *registry.Record) bool {
		_, there := s.GetIn(left.Shard, registry.Relocated(r.Meta.ID, left.To))
		return !there && len(changes) < batch
	}
	for _, r := range s.ProjectsOf(left.Org, "", 0) {
		if missing(r) {
			p := *r.Project
			p.Org = left.To
			changes = append(changes, made(r, left, ms, &registry.Record{Kind: registry.KindProject, Project: &p}))
		}
	}
	for _, r := range s.PoliciesOf(left.Org, "", 0) {
		if missing(r) {
			p := *r.Policy
			p.Org = left.To
			if p.Project != "" {
				p.Project = registry.Relocated(p.Project, left.To)
			}
			p.Models = slices.Clone(p.Models)
			changes = append(changes, made(r, left, ms, &registry.Record{Kind: registry.KindPolicy, Policy: &p}))
		}
	}
	if len(changes) == 0 {
		changes = append(changes, Noted(arriving, at, func(r *registry.Relocation) { r.Copied = ms }))
	}
	return changes, nil
}

// made is the creation of r as the copy of old.
func made(old *registry.Record, left *registry.Relocation, ms int64, r *registry.Record) registry.Change {
	r.Meta = registry.Meta{ID: registry.Relocated(old.Meta.ID, left.To), Shard: left.Shard, Created: old.Meta.Created, Updated: ms}
	return registry.Change{Op: registry.OpPut, IfRevision: registry.RevisionAbsent, Record: r}
}

// Noted is the change by which a relocation says one thing more.
func Noted(rel *registry.Record, at time.Time, note func(*registry.Relocation)) registry.Change {
	c, body := *rel, *rel.Relocation
	note(&body)
	c.Relocation, c.Meta.Updated = &body, max(rel.Meta.Updated, at.UnixMilli())
	return registry.Change{Op: registry.OpPut, Record: &c, IfRevision: rel.Meta.Revision}
}

// Reissued returns the record of the key that takes the place of old, by its
// id and hash.
func Reissued(s *ledger.State, old *registry.Record, id string, hash []byte, hint string) (*registry.Record, error) {
	project, ok := s.Get(registry.KindProject, old.Key.Project)
	if !ok {
		return nil, controlplane.Refuse(controlplane.RuleNotFound, "project", "%s does not exist", old.Key.Project)
	}
	left := Leaving(s, project.Project.Org)
	if left == nil {
		return nil, controlplane.Refuse(controlplane.RuleConflict, "key", "the pin of org %s is not being changed: rotate the key instead", project.Project.Org)
	}
	to := left.Relocation
	return &registry.Record{
		Kind: registry.KindKey,
		Meta: registry.Meta{ID: id, Shard: to.Shard},
		Key: &registry.Key{
			Project: registry.Relocated(old.Key.Project, to.To), Name: old.Key.Name, Class: old.Key.Class,
			Hash: hash, Expires: old.Key.Expires, Hint: hint,
		},
	}, nil
}

// Retire returns the next revocations of an org that is left, then the word
// that there are none more to make; nothing when that is said.
func Retire(s *ledger.State, left *registry.Record, at time.Time) []registry.Change {
	if left.Relocation.Retired != 0 {
		return nil
	}
	var changes []registry.Change
	for k := range keysOf(s, left.Relocation.Org) {
		if len(changes) == batch {
			break
		}
		if k.Key.Revoked == 0 {
			changes = append(changes, registry.Change{Op: registry.OpRevoke, Kind: registry.KindKey, ID: k.Meta.ID, At: at.UnixMilli(), Expires: k.Key.Expires})
		}
	}
	if len(changes) == 0 {
		changes = append(changes, Noted(left, at, func(r *registry.Relocation) { r.Retired = at.UnixMilli() }))
	}
	return changes
}

// Erase returns the next deletions of an org whose successor's pin is in force;
// the org and its relocation come last, and after them nothing.
func Erase(s *ledger.State, org string) []registry.Change {
	var changes []registry.Change
	gone := func(r *registry.Record) bool {
		changes = append(changes, registry.Change{Op: registry.OpDelete, Kind: r.Kind, ID: r.Meta.ID})
		return len(changes) < batch
	}
	all := func(records iter.Seq[*registry.Record]) bool {
		for r := range records {
			if !gone(r) {
				return false
			}
		}
		return true
	}
	if !all(keysOf(s, org)) || !all(slices.Values(s.PoliciesOf(org, "", 0))) || !all(slices.Values(s.ProjectsOf(org, "", 0))) || len(changes) > 0 {
		return changes
	}
	if r, ok := s.Relocation(org); ok {
		gone(r)
	}
	if r, ok := s.Get(registry.KindOrg, org); ok {
		gone(r)
	}
	return changes
}

// Drop returns the changes that delete the relocation beside an org that is to be
// deleted; none if there is none. Where a takeover undid the beginning, what was to
// take the org's place says first that it is in force: homes keep it until then, and
// none of them may know more than another of the shard that it came from.
func Drop(s *ledger.State, org string, at time.Time) []registry.Change {
	rel, ok := s.Relocation(org)
	if !ok {
		return nil
	}
	var changes []registry.Change
	if st, _ := Of(s, org, at); st.Phase == CutOff {
		changes = append(changes, Noted(rel, at, func(r *registry.Relocation) {
			r.Copied, r.InForce = cmp.Or(r.Copied, at.UnixMilli()), at.UnixMilli()
		}))
	}
	return append(changes, registry.Change{Op: registry.OpDelete, Kind: rel.Kind, ID: rel.Meta.ID})
}

// Rehearse makes the change on a copy of a state that holds both shards, and
// returns what it would be refused for: before anything is tightened for good.
func Rehearse(s *ledger.State, org *registry.Record, jurisdiction string, target controlplane.Shard, at time.Time) error {
	changes, err := Begin(org, jurisdiction, target, at)
	if err != nil {
		return err
	}
	if err := Ready(s); err != nil {
		return err
	}
	s = s.Clone()
	for shard := org.Meta.Shard; len(changes) > 0; shard = target {
		if err := apply(s, shard, changes); err != nil {
			return err
		}
		if changes, err = Copy(s, Leaving(s, org.Meta.ID).Relocation, at); err != nil {
			return err
		}
	}
	return nil
}

func apply(s *ledger.State, shard controlplane.Shard, changes []registry.Change) error {
	if err := s.Check(shard, changes); err != nil {
		return err
	}
	e, err := s.Next(shard, changes)
	if err != nil {
		return err
	}
	encoded, err := registry.EncodeEntry(e)
	if err != nil {
		return fmt.Errorf("rehearse: %w", err)
	}
	return s.Apply(&registry.Command{Type: registry.CmdEntry, Entries: [][]byte{encoded}}).Err
}

func keysOf(s *ledger.State, org string) iter.Seq[*registry.Record] {
	return func(yield func(*registry.Record) bool) {
		for _, p := range s.ProjectsOf(org, "", 0) {
			for _, k := range s.KeysOf(p.Meta.ID, "", 0) {
				if !yield(k) {
					return
				}
			}
		}
	}
}
