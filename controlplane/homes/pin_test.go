package homes

import (
	"time"

	"ringmain/controlplane/pin"
	"ringmain/controlplane/registry"
	"ringmain/controlplane/registry/ledger"
)

// pin makes a step of an org's change of pin at the region, until that has
// nothing left to do.
func (p *player) pin(step, name string, r *region) string {
	for {
		changes := r.pinStep(step, orgID(name))
		if len(changes) == 0 {
			return "done"
		}
		if said := p.write(changes, r, false); said != "committed" {
			return said
		}
	}
}

// pinStep is what the step would change next, by the region's own copy.
func (r *region) pinStep(step, org string) (changes []registry.Change) {
	now := time.Now()
	r.log.View(func(s *ledger.State) {
		rec, ok := s.Get(registry.KindOrg, org)
		left := pin.Leaving(s, org)
		switch {
		case step == "begin" && ok && left == nil:
			var err error
			if changes, err = pin.Begin(rec, "eu", "eu", now); err != nil {
				r.w.t.Error(err)
			}
		case step == "retire" && left != nil:
			changes = pin.Retire(s, left, now)
		case step == "erase":
			changes = pin.Erase(s, org)
		}
	})
	return changes
}

func (r *region) pinned(name string) (held bool) {
	r.log.View(func(s *ledger.State) { _, held = s.Revoked(registry.KindPin, registry.PinID(orgID(name), "eu")) })
	return held
}

func (r *region) leaving(name string) (left bool) {
	r.log.View(func(s *ledger.State) { left = pin.Leaving(s, orgID(name)) != nil })
	return left
}
