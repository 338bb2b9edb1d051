// Package registry holds the words of what is replicated: records and their ids,
// the safety set, changes, entries and commands, each with its one encoding and
// what it must say by itself to be looked at.
//
// The parts that know state are rooms of their own: content (one shard's records),
// rules (what a home accepts), ledger (State and Apply). Nothing here knows which
// records there are; no clock, randomness, logger, disk or network may enter.
// DESIGN.md says why it is so.
package registry

import (
	"fmt"
	"slices"

	"ringmain/controlplane"
)

// Kind names a type of record. New kinds activate by cluster version.
type Kind uint8

// Kinds of record known to format version 1.
const (
	KindOrg Kind = iota + 1
	KindProject
	KindKey
	KindUpstream
	KindRoute
	KindPolicy
	KindRegion
	KindRelocation // from cluster version 3
)

// Meta is common to all records. The home's leader stamps it before proposing;
// Apply reads no clock.
type Meta struct {
	ID       string             `cbor:"1,keyasint" json:"id"`
	Shard    controlplane.Shard `cbor:"2,keyasint" json:"shard"`
	Revision uint64             `cbor:"3,keyasint" json:"revision"` // sequence, in its shard, of the entry that last changed it; set by Apply
	Created  int64              `cbor:"4,keyasint" json:"created"`  // Unix milliseconds
	Updated  int64              `cbor:"5,keyasint" json:"updated"`  // Unix milliseconds
}

// Org is a customer account.
type Org struct {
	Name         string `cbor:"1,keyasint" json:"name"`
	Plan         string `cbor:"2,keyasint" json:"plan"`                        // trial, build, scale, enterprise
	State        string `cbor:"3,keyasint" json:"state"`                       // unverified, verified, suspended
	Jurisdiction string `cbor:"4,keyasint" json:"jurisdiction"`                // two to four lowercase letters; "any" = unpinned
	Roaming      bool   `cbor:"5,keyasint,omitempty" json:"roaming,omitempty"` // unpinned only: a request entered in the EU may leave it
}

// Project is the unit of billing, policy and limits. Its ID carries its org's jurisdiction.
type Project struct {
	Org           string `cbor:"1,keyasint" json:"org"`
	Name          string `cbor:"2,keyasint" json:"name"`
	CrossProvider bool   `cbor:"3,keyasint,omitempty" json:"cross_provider,omitempty"` // another provider than the first upstream's may be asked
	Class         string `cbor:"4,keyasint,omitempty" json:"class,omitempty"`          // interactive (or empty), batch: shed first where capacity is short
}

// Key is an API key: everything but the secret. A revoked key stays revoked.
type Key struct {
	Project   string `cbor:"1,keyasint" json:"project"`
	Name      string `cbor:"2,keyasint" json:"name"`
	Class     string `cbor:"3,keyasint" json:"class"`                          // live, test
	Hash      []byte `cbor:"4,keyasint" json:"-"`                              // bcrypt of base64(SHA-256(whole key))
	PrevHash  []byte `cbor:"5,keyasint,omitempty" json:"-"`                    // the secret before rotation, valid until PrevUntil
	PrevUntil int64  `cbor:"6,keyasint,omitempty" json:"prev_until,omitempty"` // Unix milliseconds
	Expires   int64  `cbor:"7,keyasint,omitempty" json:"expires,omitempty"`    // Unix milliseconds; 0 = never
	Revoked   int64  `cbor:"8,keyasint,omitempty" json:"revoked,omitempty"`    // Unix milliseconds; 0 = in force
	Hint      string `cbor:"9,keyasint" json:"hint"`                           // last four characters of the id part, for people
}

// Terms are what a provider's contract says about one upstream.
type Terms struct {
	Retention   string `cbor:"1,keyasint" json:"retention"`    // zero, or days as "30d"
	PromptCache string `cbor:"2,keyasint" json:"prompt_cache"` // none, memory, disk
	Training    string `cbor:"3,keyasint" json:"training"`     // never (any other value is refused)
	BAA         bool   `cbor:"4,keyasint,omitempty" json:"baa,omitempty"`
	Contract    string `cbor:"5,keyasint" json:"contract"` // SHA-256 of the contract, hex
	Dated       string `cbor:"6,keyasint" json:"dated"`    // YYYY-MM-DD
}

// Header is one header that every request to an upstream carries.
type Header struct {
	Name  string `cbor:"1,keyasint" json:"name"`
	Value string `cbor:"2,keyasint" json:"value"`
}

// Upstream is one provider endpoint in one region.
type Upstream struct {
	Name       string `cbor:"1,keyasint" json:"name"`        // public name, unique; shown in idc-upstream
	Provider   string `cbor:"2,keyasint" json:"provider"`    // openai, anthropic, …
	Region     string `cbor:"3,keyasint" json:"region"`      // ringmain region whose data nodes call it
	Dialect    string `cbor:"4,keyasint" json:"dialect"`     // openai, anthropic
	BaseURL    string `cbor:"5,keyasint" json:"base_url"`    // https; the endpoint path (/v1/…) is appended
	Auth       string `cbor:"6,keyasint" json:"auth"`        // bearer, x-api-key, api-key, none
	Credential []byte `cbor:"7,keyasint,omitempty" json:"-"` // never shown again; sealed wherever it rests
	Terms      Terms  `cbor:"8,keyasint" json:"terms"`
	Simulated  bool   `cbor:"9,keyasint,omitempty" json:"simulated,omitempty"` // the only kind that test keys reach
	Disabled   bool   `cbor:"10,keyasint,omitempty" json:"disabled,omitempty"`

	Endpoints   []string `cbor:"11,keyasint,omitempty" json:"endpoints,omitempty"`   // paths it serves, such as /v1/embeddings; empty = every one of its dialect
	Headers     []Header `cbor:"12,keyasint,omitempty" json:"headers,omitempty"`     // beside our own; never secrets
	Query       string   `cbor:"13,keyasint,omitempty" json:"query,omitempty"`       // beside the endpoint's own, such as api-version=2024-10-21
	Concurrency uint32   `cbor:"14,keyasint,omitempty" json:"concurrency,omitempty"` // most requests at once from one data node; 0 = its adaptive limit alone
	Dedicated   string   `cbor:"15,keyasint,omitempty" json:"dedicated,omitempty"`   // id of the only org that may use it; empty = all
}

// Format writes the name alone under every verb: the credential must not reach
// a log.
func (u Upstream) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "upstream %s", u.Name) }

// endpoints are the paths that upstreams may serve, by dialect.
var endpoints = map[string][]string{
	"openai": {
		"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings",
		"/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations",
		"/v1/images/generations", "/v1/images/edits", "/v1/images/variations",
	},
	"anthropic": {"/v1/messages", "/v1/messages/count_tokens"},
}

// EndpointsOf lists the paths that an upstream of the dialect may serve.
func EndpointsOf(dialect string) []string { return slices.Clone(endpoints[dialect]) }

// Target is one way to serve a model.
type Target struct {
	Upstream string `cbor:"1,keyasint" json:"upstream"`                   // name of the upstream
	Model    string `cbor:"2,keyasint" json:"model"`                      // the model's name there
	Weight   uint32 `cbor:"3,keyasint,omitempty" json:"weight,omitempty"` // within one order; 0 = 1
	Order    uint32 `cbor:"4,keyasint,omitempty" json:"order,omitempty"`  // lower first
}

// Timeouts bound one attempt. Zero values take the defaults in brackets.
type Timeouts struct {
	ConnectMS   uint32 `cbor:"1,keyasint,omitempty" json:"connect_ms,omitempty"`        // [2000]
	FirstByteMS uint32 `cbor:"2,keyasint,omitempty" json:"first_byte_ms,omitempty"`     // [300000]
	IdleMS      uint32 `cbor:"3,keyasint,omitempty" json:"between_events_ms,omitempty"` // [300000]
	TotalMS     uint32 `cbor:"4,keyasint,omitempty" json:"total_ms,omitempty"`          // [600000; streams 3600000]
}

// Route maps a public model name to its upstreams.
type Route struct {
	Model    string   `cbor:"1,keyasint" json:"model"` // public name, unique
	Targets  []Target `cbor:"2,keyasint" json:"targets"`
	Timeouts Timeouts `cbor:"3,keyasint,omitempty" json:"timeouts,omitzero"`

	// Fallbacks are other routes' models, asked in order when every upstream of
	// this one failed or was unhealthy. Theirs are not followed in turn.
	Fallbacks       []string `cbor:"4,keyasint,omitempty" json:"fallbacks,omitempty"`
	ContextFallback string   `cbor:"5,keyasint,omitempty" json:"context_fallback,omitempty"` // another route's model, for prompts too long for this one
	Deterministic   bool     `cbor:"6,keyasint,omitempty" json:"deterministic,omitempty"`    // equal requests get equal answers, byte for byte: a broken stream may be continued elsewhere
}

// Policy narrows what an org (Project empty) or a project may do. Absent
// policy narrows nothing beyond the org's own jurisdiction.
type Policy struct {
	Org         string   `cbor:"1,keyasint" json:"org"`
	Project     string   `cbor:"2,keyasint,omitempty" json:"project,omitempty"`
	Residency   string   `cbor:"3,keyasint,omitempty" json:"residency,omitempty"` // jurisdiction, or empty
	NoRetention bool     `cbor:"4,keyasint,omitempty" json:"no_retention,omitempty"`
	Models      []string `cbor:"5,keyasint,omitempty" json:"models,omitempty"`    // allow-list; empty = all
	Dedicated   bool     `cbor:"6,keyasint,omitempty" json:"dedicated,omitempty"` // the org's own pool only
}

// Region is one failure domain.
type Region struct {
	Name         string `cbor:"1,keyasint" json:"name"`
	Jurisdiction string `cbor:"2,keyasint" json:"jurisdiction"`
	Endpoint     string `cbor:"3,keyasint" json:"endpoint"`                     // https://host[:port] that clients use; named in idc-endpoint
	State        string `cbor:"4,keyasint" json:"state"`                        // active, drained
	Brownout     uint32 `cbor:"5,keyasint,omitempty" json:"brownout,omitempty"` // least degree of load shedding, 1 to 4; 0 = as the nodes measure
}

// Record is one piece of replicated state: exactly one body is set, as Kind says.
type Record struct {
	Kind     Kind      `cbor:"1,keyasint" json:"kind"`
	Meta     Meta      `cbor:"2,keyasint" json:"meta"`
	Org      *Org      `cbor:"3,keyasint,omitempty" json:"org,omitempty"`
	Project  *Project  `cbor:"4,keyasint,omitempty" json:"project,omitempty"`
	Key      *Key      `cbor:"5,keyasint,omitempty" json:"key,omitempty"`
	Upstream *Upstream `cbor:"6,keyasint,omitempty" json:"upstream,omitempty"`
	Route    *Route    `cbor:"7,keyasint,omitempty" json:"route,omitempty"`
	Policy   *Policy   `cbor:"8,keyasint,omitempty" json:"policy,omitempty"`
	Region   *Region   `cbor:"9,keyasint,omitempty" json:"region,omitempty"`

	Relocation *Relocation `cbor:"10,keyasint,omitempty" json:"relocation,omitempty"`
}
