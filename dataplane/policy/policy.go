// Package policy decides what a request may do, from the org, the projects and
// the request's own headers: an intersection, in which nothing the request
// says can loosen anything. It is pure, and it runs before the body is read.
package policy

import (
	"net/http"
	"strings"

	"ringmain/controlplane"
	"ringmain/controlplane/registry"
	"ringmain/dataplane/view"
)

// Refusal says why policy turns a request away. Code is one of the wire contract's.
type Refusal struct {
	Code    string
	Message string
	// Jurisdiction, with wrong_jurisdiction, is where the request may enter, and
	// Endpoint the host there; empty = none is known.
	Jurisdiction string
	Endpoint     string
}

// jurisdictionEU is the one whose traffic stays by default, whoever sent it.
const jurisdictionEU = "eu"

// Unpinned is how idc-residency names a request that may run anywhere.
const Unpinned = "unpinned"

// Asked is what a request's own headers ask for.
type Asked struct {
	Project     string // record id of the project to bill; empty = the key's
	RegionHint  string
	Residency   string
	NoRetention bool
}

// ours reports whether name is meant for us, also where it is written as
// environments and proxies write headers: idc_no_retention, x-idc-no-retention,
// x_idc_no_retention. name is canonical.
func ours(name string) bool {
	if len(name) > 2 && name[0] == 'X' && (name[1] == '-' || name[1] == '_') {
		name = name[2:]
	}
	return len(name) > 3 && strings.EqualFold(name[:3], "idc") && (name[3] == '-' || name[3] == '_')
}

// known reports whether name is a request header of ours. Any other that is
// meant for us is refused: a misspelt one would fail open.
func known(name string) bool {
	switch name {
	case "Idc-Project-Id", "Idc-Region-Hint", "Idc-Residency", "Idc-No-Retention", "Idc-Receipt":
		return true
	}
	return false
}

// Parse reads the headers (names in canonical form) strictly: unknown idc- headers, duplicates and any
// value that is not exactly one of those allowed are refused.
func Parse(h http.Header) (Asked, *Refusal) {
	var a Asked
	for name, values := range h {
		if !ours(name) && name != "Openai-Project" {
			continue
		}
		if name != "Openai-Project" && !known(name) {
			return Asked{}, invalid(name, "is not a header of this API: check its spelling")
		}
		if len(values) != 1 {
			return Asked{}, invalid(name, "is given more than once: give it once")
		}
		if refused := a.set(name, values[0]); refused != nil {
			return Asked{}, refused
		}
	}
	if p := h["Openai-Project"]; len(p) == 1 && a.Project != p[0] {
		return Asked{}, invalid("Idc-Project-Id", "and `openai-project` name two projects: name one")
	}
	return a, nil
}

func (a *Asked) set(name, value string) *Refusal {
	switch name {
	case "Idc-Project-Id":
		if !token(value, 64) {
			return invalid(name, "must be the id of a project")
		}
		a.Project = value
	case "Openai-Project":
		if !token(value, 64) {
			return invalid(name, "must be the id of a project")
		}
		if a.Project == "" {
			a.Project = value
		}
	case "Idc-Region-Hint":
		if !token(value, 63) {
			return invalid(name, "must be the name of a region")
		}
		a.RegionHint = value
	case "Idc-Residency":
		if len(value) < 2 || len(value) > 4 || !token(value, 4) || value == controlplane.JurisdictionAny {
			return invalid(name, "must be a jurisdiction such as `eu` or `us`")
		}
		a.Residency = value
	case "Idc-No-Retention":
		if value != "true" {
			return invalid(name, "must be `true`, or be left out")
		}
		a.NoRetention = true
	case "Idc-Receipt":
		if value != "inline" {
			return invalid(name, "must be `inline`, or be left out")
		}
	}
	return nil
}

func token(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func invalid(name, what string) *Refusal {
	return &Refusal{Code: "invalid_header", Message: "The header `" + strings.ToLower(name) + "` " + what + "."}
}

// Input of Decide. All records belong to View.
type Input struct {
	View    *view.View
	Org     *registry.Record
	Project *registry.Record // the key's
	Class   string           // of the key: live, test
	Asked   Asked

	// EntryJurisdiction is where the request entered.
	EntryJurisdiction string
	// Carried is the pin that the entry node decided on, when another node
	// executes: the stricter of both wins. Empty = none, or this is the entry.
	Carried string
	// CarriedZero and CarriedPool are the same for zero retention and the pool.
	CarriedZero bool
	CarriedPool string
	// Confined: this worker's confinement holds, so that it may serve zero retention.
	Confined bool
	// Up reports whether a region is published as up; nil = all are.
	Up func(region string) bool
}

// Decision is what a request may do.
type Decision struct {
	Billed *registry.Record // project
	Pin    string           // jurisdiction that its bytes may not leave; empty = none
	Class  string
	// CrossProvider: another provider than that of the route's first target may be asked.
	CrossProvider bool
	// ZeroRetention: only upstreams that keep nothing, and nothing that stores.
	ZeroRetention bool
	Pool          string // PoolStandard, PoolZeroRetention, or DedicatedPool of the org
	Plan          string // of the org: trial, build, scale, enterprise
	Batch         bool   // the project's requests can wait
	lists         [2]view.Policy
}

// Pools that every cluster has.
const (
	PoolStandard      = "standard"
	PoolZeroRetention = "zero-retention"
)

// classBatch is the class of projects whose requests can wait.
const classBatch = "batch"

// dedicatedPrefix begins the names of pools that belong to one org.
const dedicatedPrefix = "dedicated:"

// DedicatedPool is the pool that belongs to an org.
func DedicatedPool(org string) string { return dedicatedPrefix + org }

// Dedicated reports whether only the org's own pool may be used.
func (d *Decision) Dedicated() bool { return strings.HasPrefix(d.Pool, dedicatedPrefix) }

// Retention is what is kept of the request, as idc-retention shows it.
func (d *Decision) Retention() string {
	if d.ZeroRetention {
		return "zero"
	}
	return "metadata"
}

// Residency is Pin as idc-residency shows it.
func (d *Decision) Residency() string {
	if d.Pin == "" {
		return Unpinned
	}
	return d.Pin
}

// MayRun reports whether the request may run in jurisdiction.
func (d *Decision) MayRun(jurisdiction string) bool { return d.Pin == "" || d.Pin == jurisdiction }

// AllowsModel reports whether every policy allows model.
func (d *Decision) AllowsModel(model string) bool {
	return d.lists[0].Allows(model) && d.lists[1].Allows(model)
}

// Decide intersects everything that has a say.
func Decide(in Input) (Decision, *Refusal) {
	d := Decision{Billed: in.Project, Class: in.Class}
	org := in.Org.Org
	if id := in.Asked.Project; id != "" && id != in.Project.Meta.ID {
		billed, ok := in.View.Project(id)
		if !ok || billed.Project.Org != in.Org.Meta.ID {
			return Decision{}, &Refusal{Code: "project_forbidden", Message: "The key may not bill this project: name a project of the key's own organisation."}
		}
		d.Billed = billed
	}
	d.CrossProvider = in.Project.Project.CrossProvider && d.Billed.Project.CrossProvider
	d.Plan = org.Plan
	d.Batch = in.Project.Project.Class == classBatch || d.Billed.Project.Class == classBatch
	d.lists[0] = in.View.Policy(in.Org.Meta.ID, in.Project.Meta.ID)
	if d.Billed != in.Project {
		d.lists[1] = in.View.Policy(in.Org.Meta.ID, d.Billed.Meta.ID)
	}
	if r := in.Asked.Residency; r != "" && !exists(in.View, r) {
		return Decision{}, invalid("idc-residency", "names no jurisdiction of this service")
	}
	if h := in.Asked.RegionHint; h != "" {
		if _, ok := in.View.Region(h); !ok {
			return Decision{}, &Refusal{Code: "unknown_region_hint", Message: "`idc-region-hint` names no region of this service: check its spelling, or leave it out."}
		}
	}
	if conflict := d.pin(in, org); conflict {
		return Decision{}, &Refusal{Code: "residency_unavailable", Message: "The pins of organisation, project and request exclude each other: no region may serve this request."}
	}
	if d.Pin != "" && d.Pin != in.EntryJurisdiction { // on any node: the answer would leave by the entry
		return Decision{}, Elsewhere(in.View, d.Pin, in.Up)
	}
	if in.EntryJurisdiction == jurisdictionEU && !(org.Jurisdiction == controlplane.JurisdictionAny && org.Roaming) {
		d.Pin = jurisdictionEU
	}
	if refused := d.pool(in); refused != nil {
		return Decision{}, refused
	}
	return d, nil
}

// pool sets d.ZeroRetention and d.Pool to the strictest that anybody wants.
func (d *Decision) pool(in Input) *Refusal {
	own := DedicatedPool(in.Org.Meta.ID)
	dedicated := d.lists[0].Dedicated || d.lists[1].Dedicated
	d.ZeroRetention = in.Asked.NoRetention || in.CarriedZero || d.lists[0].NoRetention || d.lists[1].NoRetention
	switch in.CarriedPool {
	case "", PoolStandard:
	case PoolZeroRetention:
		d.ZeroRetention = true
	case own:
		dedicated = true
	default: // of another org, or of a later version
		return &Refusal{Code: "no_healthy_route", Message: "The pool that the entry node decided on is not one of this organisation: retry shortly."}
	}
	switch {
	case d.ZeroRetention && !in.Confined:
		return NoZeroRetention()
	case dedicated:
		d.Pool = own
	case d.ZeroRetention:
		d.Pool = PoolZeroRetention
	default:
		d.Pool = PoolStandard
	}
	return nil
}

// NoZeroRetention is the refusal when nothing that keeps nothing can be used.
func NoZeroRetention() *Refusal {
	return &Refusal{Code: "zero_retention_unavailable", Message: "No zero-retention route is available for this request: it was not forwarded."}
}

// Elsewhere is the refusal of a request that is pinned to jurisdiction and
// entered outside: the host to use, or, if no region there is up, that there
// is none at the moment. up is as in Input.
func Elsewhere(v *view.View, jurisdiction string, up func(region string) bool) *Refusal {
	known := false
	for _, r := range v.Regions() {
		if r.Region.Jurisdiction != jurisdiction {
			continue
		}
		known = true
		if r.Region.State == "active" && (up == nil || up(r.Region.Name)) {
			return &Refusal{
				Code: "wrong_jurisdiction", Jurisdiction: jurisdiction, Endpoint: r.Region.Endpoint,
				Message: "This request is pinned to jurisdiction `" + jurisdiction + "` and entered elsewhere: use the host that `idc-endpoint` names.",
			}
		}
	}
	if known {
		return &Refusal{
			Code:    "residency_unavailable",
			Message: "This request is pinned to jurisdiction `" + jurisdiction + "`, of which no region is available at the moment: it was not served elsewhere.",
		}
	}
	return &Refusal{
		Code: "wrong_jurisdiction", Jurisdiction: jurisdiction,
		Message: "This request is pinned to jurisdiction `" + jurisdiction + "` and entered elsewhere: use a host of that jurisdiction.",
	}
}

// pin sets d.Pin to what all pins agree on; where the request entered is none.
func (d *Decision) pin(in Input, org *registry.Org) (conflict bool) {
	add := func(jurisdiction string) {
		switch {
		case jurisdiction == "" || jurisdiction == d.Pin:
		case d.Pin == "":
			d.Pin = jurisdiction
		default:
			conflict = true
		}
	}
	if org.Jurisdiction != controlplane.JurisdictionAny {
		add(org.Jurisdiction)
	}
	for _, p := range d.lists {
		conflict = conflict || p.Conflict
		add(p.Residency)
	}
	add(in.Asked.Residency)
	add(in.Carried)
	return conflict
}

func exists(v *view.View, jurisdiction string) bool {
	for _, r := range v.Regions() {
		if r.Region.Jurisdiction == jurisdiction {
			return true
		}
	}
	return false
}
