package pin

import (
	"time"

	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// Phase is how far a change is.
type Phase string

// Phases, in order.
const (
	Begun   Phase = "begun"    // tightened and frozen
	Copied  Phase = "copied"   // the new org is whole: keys are reissued, both work
	Retired Phase = "retired"  // the old keys are revoked; not everybody is known to refuse them
	InForce Phase = "in_force" // everybody refuses them
	Erased  Phase = "erased"   // and the old records are gone

	CutOff Phase = "cut_off" // a takeover undid the beginning: Org is as it was, and Successor is left over
)

// Status is a change of pin as far as one state knows it. Times are Unix
// milliseconds; 0 = not yet, or not known here.
type Status struct {
	Org, Successor                   string
	Phase                            Phase
	Began, Copied, Retired, InForced int64

	Keys []Pair // keys of Org in force, and those that take their place
}

// Pair is a key of the old org, and the one issued for it; nil if none is.
type Pair struct{ Old, New *registry.Record }

// Of returns the change that org, or the org whose place it took, is in; false
// if there is none.
func Of(s *ledger.State, org string, at time.Time) (Status, bool) {
	left, arrived := Leaving(s, org), Arriving(s, org)
	switch {
	case left != nil:
		arrived = Arriving(s, left.Relocation.To)
	case arrived != nil:
		if left = Leaving(s, arrived.Relocation.From); left != nil && left.Relocation.To != org {
			left = nil // another change, that began since
		}
	default:
		if arrived = leftOver(s, org); arrived == nil {
			return Status{}, false
		}
	}
	st := Status{Phase: Begun}
	if left != nil {
		st.Org, st.Successor, st.Began, st.Retired = left.Relocation.Org, left.Relocation.To, left.Meta.Created, left.Relocation.Retired
		st.Keys = pairs(s, left.Relocation, at)
	}
	if arrived != nil {
		st.Org, st.Successor, st.Copied, st.InForced = arrived.Relocation.From, arrived.Relocation.Org, arrived.Relocation.Copied, arrived.Relocation.InForce
	} else if onward := Leaving(s, left.Relocation.To); onward != nil {
		st.Copied, st.InForced = onward.Meta.Created, onward.Meta.Created // at the latest: it was left only after that
	}
	if left == nil && st.InForced == 0 {
		if _, seen := s.Shard(arrived.Relocation.Shard); seen {
			st.Phase = CutOff
			return st, true
		}
	}
	// A copy that a takeover cut off is to be made again.
	lost := false
	if left != nil && st.Copied == 0 {
		_, lost = s.Shard(left.Relocation.Shard)
	}
	for _, f := range []struct {
		is    bool
		phase Phase
	}{
		{st.Copied != 0, Copied}, {st.Retired != 0 && !lost, Retired}, {st.InForced != 0, InForce}, {st.InForced != 0 && left == nil, Erased},
	} {
		if f.is {
			st.Phase = f.phase
		}
	}
	return st, true
}

// leftOver returns the relocation of the last org that was to take org's place
// and is not in force, or nil.
func leftOver(s *ledger.State, org string) *registry.Record {
	all := s.List(registry.KindRelocation, "", 0, func(r *registry.Record) bool {
		return r.Relocation.From == org && r.Relocation.InForce == 0
	})
	if len(all) == 0 {
		return nil
	}
	return all[len(all)-1]
}

// pairs lists the keys in force of an org that is left, each with the one that
// takes its place.
func pairs(s *ledger.State, left *registry.Relocation, at time.Time) []Pair {
	fresh := make(map[string]*registry.Record)
	for k := range keysOf(s, left.To) {
		fresh[registry.Chance(k.Meta.ID)] = k
	}
	var all []Pair
	for k := range keysOf(s, left.Org) {
		if k.Key.Revoked == 0 && (k.Key.Expires == 0 || k.Key.Expires > at.UnixMilli()) {
			all = append(all, Pair{k, fresh[registry.Chance(k.Meta.ID)]})
		}
	}
	return all
}

// Successor is the key that was issued in the place of old, or nil.
func Successor(s *ledger.State, old *registry.Record, left *registry.Relocation) *registry.Record {
	for _, k := range s.KeysOf(registry.Relocated(old.Key.Project, left.To), "", 0) {
		if registry.Chance(k.Meta.ID) == registry.Chance(old.Meta.ID) {
			return k
		}
	}
	return nil
}

// Unissued is how many keys of the old org have no other in their place.
func (st *Status) Unissued() (n int) {
	for _, p := range st.Keys {
		if p.New == nil {
			n++
		}
	}
	return n
}
