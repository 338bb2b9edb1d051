package view

import (
	"slices"

	"ringmain/controlplane/registry"
)

// Policy is what the policies of an org and of one of its projects leave
// allowed together. The zero Policy narrows nothing.
type Policy struct {
	Residency   string   // jurisdiction that bytes may not leave; empty = these policies pin nothing
	Conflict    bool     // two pins exclude each other: nothing may serve the request
	NoRetention bool     // zero retention on every request
	Dedicated   bool     // the org's own pool only
	Models      []string // allow-list; nil = every model; empty but not nil = none
}

// Allows reports whether model is on the allow-list.
func (p Policy) Allows(model string) bool {
	return p.Models == nil || slices.Contains(p.Models, model)
}

// narrow adds one policy record to p.
func (p Policy) narrow(r *registry.Policy) Policy {
	switch {
	case r.Residency == "" || r.Residency == p.Residency:
	case p.Residency == "":
		p.Residency = r.Residency
	default:
		p.Conflict = true
	}
	p.NoRetention = p.NoRetention || r.NoRetention
	p.Dedicated = p.Dedicated || r.Dedicated
	switch {
	case len(r.Models) == 0:
	case p.Models == nil:
		p.Models = r.Models
	default:
		both := make([]string, 0, min(len(p.Models), len(r.Models)))
		for _, m := range p.Models {
			if slices.Contains(r.Models, m) {
				both = append(both, m)
			}
		}
		p.Models = both
	}
	return p
}

// Policy returns the policies of org and of project (empty = none) narrowed
// together. The org's own jurisdiction is not in it. Pins from the safety file
// count as long as this copy is older than they are.
func (v *View) Policy(org, project string) Policy {
	var p Policy
	records, _ := v.policies.get(v.seed, org)
	for _, rec := range records {
		if rec.Policy.Project == "" || rec.Policy.Project == project {
			p = p.narrow(rec.Policy)
		}
	}
	for _, pin := range v.pins[org] {
		if pin.Kind == registry.KindPolicy && (pin.Policy.Project == "" || pin.Policy.Project == project) {
			p = p.narrow(&registry.Policy{Residency: pin.Policy.Residency, NoRetention: pin.Policy.NoRetention, Dedicated: pin.Policy.Dedicated})
		}
	}
	return p
}

// Brownout is the least degree of load shedding that the operator forces on
// region, 1 to 4; 0 = none.
func (v *View) Brownout(region string) uint32 {
	if rec, ok := v.Region(region); ok {
		return rec.Region.Brownout
	}
	return 0
}
