package documents

import (
	"cmp"
	"slices"
	"time"

	"ringmain/controlplane/registry"
)

// Subprocessor is one provider's endpoint to which requests may be sent, with
// the terms that hold there.
type Subprocessor struct {
	Provider     string `json:"provider"`
	Purpose      string `json:"purpose"`
	Region       string `json:"region"`       // whose nodes send requests there
	Jurisdiction string `json:"jurisdiction"` // of that region
	Upstream     string `json:"upstream"`     // as idc-upstream names it
	Retention    string `json:"retention"`    // zero, or days as "30d"
	PromptCache  string `json:"prompt_cache"` // none, memory, disk
	Training     string `json:"training"`
	BAA          bool   `json:"baa"`
	Dedicated    bool   `json:"dedicated"` // serves one customer only
	Simulated    bool   `json:"simulated"` // a model that this service imitates itself, for tests
	Contract     string `json:"contract_sha256"`
	Dated        string `json:"terms_dated"`
}

// Subprocessors is the list as of a moment.
type Subprocessors struct {
	AsOf          time.Time      `json:"as_of"` // of the state that this node holds
	Subprocessors []Subprocessor `json:"subprocessors"`
}

const purpose = "inference with the model that the customer's request names"

// ListSubprocessors writes the list from the upstreams in use. jurisdiction
// gives that of a region, or "" if it is not known.
func ListSubprocessors(upstreams []*registry.Record, jurisdiction func(region string) string, asOf time.Time) Subprocessors {
	s := Subprocessors{AsOf: asOf.UTC(), Subprocessors: []Subprocessor{}}
	for _, rec := range upstreams {
		up := rec.Upstream
		if up.Disabled {
			continue
		}
		s.Subprocessors = append(s.Subprocessors, Subprocessor{
			Provider: up.Provider, Purpose: purpose, Region: up.Region, Jurisdiction: jurisdiction(up.Region), Upstream: up.Name,
			Retention: up.Terms.Retention, PromptCache: up.Terms.PromptCache, Training: up.Terms.Training, BAA: up.Terms.BAA,
			Dedicated: up.Dedicated != "", Simulated: up.Simulated, Contract: up.Terms.Contract, Dated: up.Terms.Dated,
		})
	}
	slices.SortFunc(s.Subprocessors, func(a, b Subprocessor) int {
		return cmp.Or(cmp.Compare(a.Provider, b.Provider), cmp.Compare(a.Region, b.Region), cmp.Compare(a.Upstream, b.Upstream))
	})
	return s
}
