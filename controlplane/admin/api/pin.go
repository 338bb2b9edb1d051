package api

import "time"

// PinInput says what an org's pin becomes, or that the change is to be finished.
type PinInput struct {
	To      string `json:"to,omitempty" doc:"The jurisdiction that the org's records and traffic no longer leave; any = none. Needed to begin a change"`
	Region  string `json:"region,omitempty" doc:"With to any: the region, of the jurisdiction that is left, that the org belongs to afterwards. Default: the one that answers"`
	Finish  bool   `json:"finish,omitempty" doc:"End the overlap: revoke the old keys for good and, once every data node refuses them, erase the old records"`
	Without int    `json:"without,omitempty" minimum:"0" doc:"With finish: how many old keys may end without another in their place; if there are more, the answer is 409"`
}

// Phases of a change of pin.
const (
	PinBegun   = "begun"    // the old org is narrowed and frozen
	PinCopied  = "copied"   // the new org is whole: old and new keys work
	PinRetired = "retired"  // the old keys are revoked, but not everybody is known to refuse them
	PinInForce = "in_force" // every data node refuses them
	PinErased  = "erased"   // and the old records are gone

	PinCutOff = "cut_off" // a takeover undid what began the change: the org is as it was, and its successor is left over
)

// PinChange is an org's change of pin.
type PinChange struct {
	Org                string     `json:"org" doc:"The org that is left"`
	Successor          string     `json:"successor" doc:"The org that takes its place"`
	To                 string     `json:"to" doc:"Jurisdiction of the successor"`
	Phase              string     `json:"phase" doc:"begun, copied (both keys work), retired (the change is pending: see held), in_force, erased; or cut_off: a takeover undid what began it, so the org is as it was, and its successor is left over, to be deleted"`
	Began              *time.Time `json:"began,omitempty"`
	Copied             *time.Time `json:"copied,omitempty"`
	Retired            *time.Time `json:"retired,omitempty"`
	InForce            *time.Time `json:"in_force,omitempty" doc:"Since when every data node refuses the old ids"`
	KeysInForce        int        `json:"keys_in_force" doc:"How many old keys there are"`
	KeysUnissued       int        `json:"keys_unissued" doc:"How many of those have no other in their place"`
	Keys               []PinKey   `json:"keys,omitempty" doc:"100 of them at most, with the keys that take their place; those that have none come first. /orgs/{org}/pin/keys lists all"`
	Held               *Held      `json:"held,omitempty" doc:"While retired: who refuses the old keys, and who is not known to"`
	SurvivesRegionLoss bool       `json:"survives_region_loss" doc:"More than one region holds the successor. If not, nothing of it is acknowledged multi-region, and its traffic has no second home"`
	Acknowledged       string     `json:"acknowledged,omitempty"`
}

// Acknowledge says how safe the last step is.
func (p *PinChange) Acknowledge(level string) { p.Acknowledged = level }

// PinKey is an old key, and the one that takes its place.
type PinKey struct {
	Old     string `json:"old"`
	New     string `json:"new,omitempty" doc:"Absent: none was issued"`
	Name    string `json:"name"`
	Project string `json:"project" doc:"The project that the new key belongs to"`
}

// PinKeyList is one page of an org's old keys.
type PinKeyList struct {
	Page
	Items []PinKey `json:"items" nullable:"false"`
}

// PinStep is what the target's home asks of the home of the org that is left.
type PinStep struct {
	To    string `json:"to" doc:"begin: jurisdiction; then: id of the successor"`
	Shard string `json:"shard,omitempty" doc:"begin: of the successor"`
}

// PinStepped is the answer.
type PinStepped struct {
	Held         *Held  `json:"held,omitempty"`
	Acknowledged string `json:"acknowledged,omitempty"`
}

// Acknowledge says how safe the step is.
func (p *PinStepped) Acknowledge(level string) { p.Acknowledged = level }
