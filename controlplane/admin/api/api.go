// Package api holds what /admin/v1 says on the wire: resources, their inputs,
// problems and header names. Server and client share it, so it imports only
// package controlplane, and does nothing but reading and writing.
package api

import (
	"time"
)

// Header names. Those marked internal are honoured between control nodes only.
const (
	HeaderRequestID = "Ringmain-Request-Id" // on every answer; one sent by the caller is kept if it is well formed
	HeaderPosition  = "Ringmain-Position"   // on acknowledged writes: <shard>=<epoch counter>/<epoch region>.<sequence>
	HeaderVisible   = "Ringmain-Visible"    // on acknowledged writes: "here" if the next read at this node sees it, else "home"
	HeaderErrorCode = "Ringmain-Error-Code" // on every error: Problem.Code
	HeaderAnswered  = "Ringmain-Answered-By"

	HeaderAcknowledge  = "Ringmain-Acknowledge"  // on writes: the level to wait for, region or multi-region
	HeaderAcknowledged = "Ringmain-Acknowledged" // on acknowledged writes: the level reached

	HeaderConsistency = "Ringmain-Consistency" // on reads: linearizable (or an error), or stale (this node's own copy will do); on answers: what it was
	HeaderAge         = "Ringmain-Age"         // on stale answers: seconds since this copy was known to be current

	HeaderIdempotency = "Idempotency-Key"   // on requests that create or rotate: a repetition within ten minutes has the same outcome
	HeaderReplayed    = "Ringmain-Replayed" // "true" on the answer to such a repetition

	HeaderActor  = "Ringmain-Actor"  // internal: who asked, by token name
	HeaderEntry  = "Ringmain-Entry"  // internal: <region>/<node> where the request arrived
	HeaderHome   = "Ringmain-Home"   // internal, on 421: ask a control node of this region
	HeaderLeader = "Ringmain-Leader" // internal, on 421: ask the control node at this internal address
)

// How safe an acknowledged write is.
const (
	AcknowledgedRegion      = "region"       // committed by a majority of the home region's control nodes
	AcknowledgedMultiRegion = "multi-region" // committed in a majority of the regions that hold the shard: every later home has it
)

// What a read is worth.
const (
	ConsistencyLinearizable = "linearizable" // everything acknowledged before the request, anywhere: the shard's home answered, and is its home still
	ConsistencyRegion       = "region"       // everything that this region had committed; what other regions write, as far as it has come
	ConsistencyStale        = "stale"        // this node's own copy, as old as HeaderAge says
)

// InternalPrefix is put before the path when control nodes ask each other.
const InternalPrefix = "/internal/v1/admin"

// Codes of Problem that are not reasons of the registry's rules (invalid,
// not_found, conflict, revision, forbidden).
const (
	CodeUnauthorized = "unauthorized"       // 401: send a valid, unexpired admin token
	CodeInvalidJSON  = "invalid_json"       // 400: the body is no JSON, has a duplicate or unknown field
	CodeInvalid      = "invalid"            // 422: a field is wrong
	CodeInvalidHead  = "invalid_header"     // 400: a header has a value that is not understood
	CodeReused       = "idempotency_reused" // 422: this Idempotency-Key was used for another request
	CodeNotFound     = "not_found"          // 404
	CodeMethod       = "method_not_allowed" // 405
	CodeTooLarge     = "request_too_large"  // 413
	CodeMediaType    = "unsupported_media"  // 415: send application/json
	CodeNotAccept    = "not_acceptable"     // 406: accept application/json
	CodeMisdirected  = "misdirected"        // 421, between control nodes only: another node writes this shard
	CodeNotReady     = "not_ready"          // 503: ask another control node
	CodeTimeout      = "timeout"            // 408: the body did not arrive in time
	CodeNoLeader     = "no_leader"          // 503: nothing was written; retry
	CodeUnreachable  = "unreachable"        // 503: nothing was written; retry later
	CodeOverloaded   = "overloaded"         // 503: nothing was written; retry
	CodeIsolated     = "isolated"           // 503: nothing was written; the home is cut off from the other regions
	CodeTailFull     = "tail_full"          // 503: nothing was written; too much waits for the other regions
	CodeUncertain    = "uncertain"          // 503: it may have been written; read before retrying
	CodeDiskFull     = "disk_full"          // 503: free space on the control nodes' disks
	CodeHomeLives    = "home_lives"         // 409: the shard's home answers: move it instead
	CodeCount        = "count"              // 409: nothing was done; confirm the right number
	CodeMoveAborted  = "move_aborted"       // 409: the former home takes the shard back: try again
	CodeNoMajority   = "no_majority"        // 503: too few of the shard's regions answer
	CodeNotUpgraded  = "not_upgraded"       // 409: nodes of the first release are left, which cannot move shards
	CodeDeposed      = "deposed"            // 409: another region became home before the write was confirmed
	CodeInternal     = "internal"           // 500: a fault of ours; report it with the request id
)

// Problem is the body of every error (RFC 9457, application/problem+json).
type Problem struct { //nolint:errname // the RFC calls it so
	Type      string       `json:"type" doc:"urn:ringmain:problem:<code>"`
	Title     string       `json:"title" doc:"The HTTP status in words"`
	Status    int          `json:"status"`
	Code      string       `json:"code" doc:"What kind of problem, for programs"`
	Detail    string       `json:"detail" doc:"What is wrong and what to do, for people"`
	Field     string       `json:"field,omitempty" doc:"Path of the offending field, such as targets[0].upstream"`
	Errors    []FieldError `json:"errors,omitempty" doc:"Every field that is wrong, where more than one was found"`
	RequestID string       `json:"request_id,omitempty"`
}

// FieldError is one wrong field.
type FieldError struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

func (p *Problem) Error() string {
	if p.Field != "" {
		return p.Field + ": " + p.Detail
	}
	return p.Detail
}

// GetStatus is the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType turns JSON's media type into that of problems.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// Meta is common to all resources.
type Meta struct {
	ID           string    `json:"id"`
	Shard        string    `json:"shard" doc:"The group of records it belongs to; one region at a time writes a shard"`
	Revision     uint64    `json:"revision" doc:"Also the ETag; send it as If-Match to change only what you have seen"`
	Created      time.Time `json:"created"`
	Updated      time.Time `json:"updated"`
	Acknowledged string    `json:"acknowledged,omitempty" doc:"On answers to writes: 'region' = committed by a majority of its home region's control nodes; 'multi-region' = committed in a majority of the regions that hold it"`
}

// Acknowledge says how safe the write is.
func (m *Meta) Acknowledge(level string) { m.Acknowledged = level }

// Page is the part of a list answer that says how to go on.
type Page struct {
	NextCursor string `json:"next_cursor,omitempty" doc:"Send as cursor to get the next page; absent on the last"`
}

// OrgInput is what a caller may say about a customer account.
type OrgInput struct {
	Name         string `json:"name" minLength:"1" maxLength:"400"`
	Plan         string `json:"plan,omitempty" doc:"trial (default), build, scale, enterprise"`
	State        string `json:"state,omitempty" doc:"unverified (default), verified, suspended; live keys need verified"`
	Jurisdiction string `json:"jurisdiction,omitempty" doc:"any (default: unpinned), or the jurisdiction that the org's records and traffic never leave. Fixed at creation"`
	Roaming      bool   `json:"roaming,omitempty" doc:"Unpinned orgs only: a request that entered in the EU may leave it"`
}

// Org is a customer account.
type Org struct {
	Meta
	OrgInput
}

// OrgList is one page of orgs.
type OrgList struct {
	Page
	Items     []Org    `json:"items" nullable:"false"`
	NotListed []string `json:"not_listed,omitempty" doc:"Jurisdictions whose pinned orgs this region does not hold: list them with ?jurisdiction="`
}

// ProjectInput is what a caller may say about a project.
type ProjectInput struct {
	Name          string `json:"name" minLength:"1" maxLength:"400"`
	CrossProvider bool   `json:"cross_provider,omitempty" doc:"Another provider than the first upstream's may be asked"`
	Class         string `json:"class,omitempty" doc:"interactive (default), or batch: shed first where capacity is short"`
}

// Project is the unit of billing, policy and limits.
type Project struct {
	Meta
	Org string `json:"org"`
	ProjectInput
}

// ProjectList is one page of projects.
type ProjectList struct {
	Page
	Items []Project `json:"items" nullable:"false"`
}

// KeyInput is what a caller may say about an API key.
type KeyInput struct {
	Name    string     `json:"name" minLength:"1" maxLength:"400"`
	Class   string     `json:"class,omitempty" doc:"live (default) or test; test keys reach simulated models only. Fixed at creation"`
	Expires *time.Time `json:"expires,omitempty" doc:"When the key ends; absent = never"`
}

// Key is an API key without its secret.
type Key struct {
	Meta
	KeyInput
	Project   string     `json:"project"`
	Hint      string     `json:"hint" doc:"Last four characters of the id part of the key"`
	Revoked   *time.Time `json:"revoked,omitempty" doc:"Since when the key is refused; never undone"`
	PrevUntil *time.Time `json:"previous_secret_until,omitempty" doc:"How long the secret before the last rotation still works"`
	Held      *Held      `json:"held,omitempty" doc:"Who holds the revocation: in the answer to revoke only"`
	Whole     string     `json:"key,omitempty" doc:"The whole key: in the answer to create and rotate only, never again"`
}

// KeyList is one page of keys.
type KeyList struct {
	Page
	Items []Key `json:"items" nullable:"false"`
}

// RotateInput asks for another secret.
type RotateInput struct {
	GraceSeconds *int64 `json:"grace_seconds,omitempty" minimum:"0" maximum:"2592000" doc:"How long the old secret still works; default 86400 (a day), 0 = it ends now"`
}

// Terms are what a provider's contract says about one upstream.
type Terms struct {
	Retention   string `json:"retention" doc:"zero, or days as 30d"`
	PromptCache string `json:"prompt_cache" doc:"none, memory, disk"`
	Training    string `json:"training" doc:"never; anything else is refused"`
	BAA         bool   `json:"baa,omitempty"`
	Contract    string `json:"contract" doc:"SHA-256 of the contract, hex"`
	Dated       string `json:"dated" doc:"YYYY-MM-DD"`
}

// Header is one header that every request to an upstream carries.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value" doc:"Shown to whoever may read the upstream: never a credential"`
}

// UpstreamInput is what a caller may say about an upstream.
type UpstreamInput struct {
	Name       string  `json:"name" doc:"Public name, unique; shown to clients in idc-upstream"`
	Provider   string  `json:"provider" doc:"openai, anthropic, ..."`
	Region     string  `json:"region" doc:"Name of the region whose data nodes call it"`
	Dialect    string  `json:"dialect" doc:"openai or anthropic"`
	BaseURL    string  `json:"base_url" doc:"https; the endpoint path (/v1/...) is appended"`
	Auth       string  `json:"auth" doc:"bearer, x-api-key, api-key, none"`
	Credential *string `json:"credential,omitempty" writeOnly:"true" maxLength:"8192" doc:"Write-only. Absent on update = keep what is stored"`
	Terms      Terms   `json:"terms"`
	Simulated  bool    `json:"simulated,omitempty" doc:"The only kind that test keys reach"`
	Disabled   bool    `json:"disabled,omitempty"`

	Endpoints   []string `json:"endpoints,omitempty" doc:"Paths it serves, such as /v1/embeddings; absent = every one of its dialect"`
	Headers     []Header `json:"headers,omitempty" doc:"Sent with every request, beside the gateway's own"`
	Query       string   `json:"query,omitempty" doc:"Added to every request's query, such as api-version=2024-10-21"`
	Concurrency uint32   `json:"concurrency,omitempty" doc:"Most requests at once from one data node; 0 = as the node measures"`
	Dedicated   string   `json:"dedicated,omitempty" doc:"Id of the only org that may use it; absent = all"`
}

// Upstream is one provider endpoint in one region. Credential is never set.
type Upstream struct {
	Meta
	UpstreamInput
	CredentialSet   bool       `json:"credential_set"`
	CredentialEnded *time.Time `json:"credential_revoked,omitempty" doc:"Since when the credential is revoked: the upstream is not called until it has another"`
	CredentialPrint string     `json:"credential_fingerprint,omitempty" doc:"First 16 hex digits of SHA-256(id, newline, credential): tells whether a credential differs, and no more"`
}

// UpstreamList is one page of upstreams.
type UpstreamList struct {
	Page
	Items []Upstream `json:"items" nullable:"false"`
}

// Target is one way to serve a model.
type Target struct {
	Upstream string `json:"upstream" doc:"Name of the upstream"`
	Model    string `json:"model" doc:"The model's name there"`
	Weight   uint32 `json:"weight,omitempty" doc:"Share within one order; 0 = 1"`
	Order    uint32 `json:"order,omitempty" doc:"Lower first"`
}

// Timeouts bound one attempt, in milliseconds. Zero takes the default.
type Timeouts struct {
	ConnectMS   uint32 `json:"connect_ms,omitempty" doc:"Default 2000"`
	FirstByteMS uint32 `json:"first_byte_ms,omitempty" doc:"Until the first event, or a plain answer's head. Default 300000 for streams, since a reasoning model may be silent for minutes: less where a model is quick; total_ms for plain answers, which come when they are whole"`
	IdleMS      uint32 `json:"between_events_ms,omitempty" doc:"Default 300000: less where a model never pauses, since a stream that hangs is noticed no sooner"`
	TotalMS     uint32 `json:"total_ms,omitempty" doc:"From the request's arrival until its answer is whole. Default 600000; 3600000 for streams"`
}

// RouteInput is what a caller may say about a model's route.
type RouteInput struct {
	Model    string   `json:"model" doc:"The public name clients ask for, unique"`
	Targets  []Target `json:"targets" nullable:"false"`
	Timeouts Timeouts `json:"timeouts,omitzero"`

	Fallbacks       []string `json:"fallbacks,omitempty" maxItems:"4" doc:"Models of other routes, asked in order when every upstream of this one failed"`
	ContextFallback string   `json:"context_fallback,omitempty" doc:"Model of another route, asked when a prompt is too long for this one"`
	Deterministic   bool     `json:"deterministic,omitempty" doc:"Equal requests get equal answers, byte for byte: a broken stream may be continued elsewhere"`
}

// Route maps a public model name to its upstreams.
type Route struct {
	Meta
	RouteInput
}

// RouteList is one page of routes.
type RouteList struct {
	Page
	Items []Route `json:"items" nullable:"false"`
}

// PolicyInput narrows what an org (Project empty) or a project may do.
type PolicyInput struct {
	Project     string   `json:"project,omitempty" doc:"Id of the project; absent = the whole org. Fixed at creation"`
	Residency   string   `json:"residency,omitempty" doc:"Jurisdiction that requests must stay in"`
	NoRetention bool     `json:"no_retention,omitempty" doc:"Zero-retention upstreams only"`
	Models      []string `json:"models,omitempty" doc:"Allow-list of public model names; absent = all"`
	Dedicated   bool     `json:"dedicated,omitempty" doc:"Only upstreams and nodes that are dedicated to the org"`
}

// Policy is a stored PolicyInput.
type Policy struct {
	Meta
	Org string `json:"org"`
	PolicyInput
}

// PolicyList is one page of policies.
type PolicyList struct {
	Page
	Items []Policy `json:"items" nullable:"false"`
}

// RegionInput is what a caller may say about a region.
type RegionInput struct {
	Jurisdiction string `json:"jurisdiction" doc:"Two to four lowercase letters. Fixed at creation"`
	Endpoint     string `json:"endpoint" doc:"https://host[:port] that clients use"`
	State        string `json:"state,omitempty" doc:"active (default) or drained"`
	Brownout     uint32 `json:"brownout,omitempty" maximum:"4" doc:"Least degree of load shedding, 1 to 4, whatever the nodes measure; 0 = as they measure"`
}

// Region is one failure domain.
type Region struct {
	Meta
	Name string `json:"name"`
	RegionInput
	Published string `json:"published,omitempty" doc:"up or down, as most observers outside it say; absent = nobody said"`
}

// RegionList is one page of regions.
type RegionList struct {
	Page
	Items []Region `json:"items" nullable:"false"`
}

// Node is one process as gossip last heard of it. It is advisory.
type Node struct {
	Region   string            `json:"region"`
	Name     string            `json:"name"`
	Role     string            `json:"role" doc:"control or data"`
	Alive    bool              `json:"alive"`
	Ready    bool              `json:"ready"`
	Draining bool              `json:"draining,omitempty"`
	InFlight uint32            `json:"in_flight,omitempty"`
	Capacity uint32            `json:"capacity,omitempty"`
	Pools    []string          `json:"pools,omitempty"`
	API      string            `json:"api,omitempty" doc:"Address that clients reach it at"`
	Position string            `json:"position,omitempty"`
	Breakers map[string]string `json:"breakers,omitempty" doc:"Open ones only"`
	Proven   string            `json:"proven,omitempty" doc:"How far the configuration is that it lives with: <epoch counter>/<epoch region>.<sequence>"`
	Suspects []string          `json:"suspects,omitempty" doc:"Changes on which a process of it died once: <shard>=<counter>/<region>.<sequence>"`
	StateAge uint32            `json:"state_age_seconds,omitempty" doc:"How long a data node has not known that its state is current; 0 = less than ten seconds"`
	LeftOut  []string          `json:"left_out,omitempty" doc:"Changes on which processes of it died twice, and which it does without"`
}

// NodeList is all nodes known.
type NodeList struct {
	Items []Node `json:"items" nullable:"false"`
}

// ShardStatus is one shard as this node's copy has it.
type ShardStatus struct {
	Shard     string     `json:"shard"`
	Home      string     `json:"home" doc:"Region that writes it"`
	Members   []string   `json:"members" nullable:"false" doc:"Regions that hold it"`
	Position  string     `json:"position" doc:"<epoch counter>/<epoch region>.<sequence>"`
	Behind    *uint64    `json:"behind,omitempty" doc:"Entries the home had that this copy had not, when last heard"`
	LastHeard *time.Time `json:"last_heard,omitempty" doc:"When the home was last heard; absent for shards homed here"`
}

// Status is how one control node sees the cluster.
type Status struct {
	Cluster string        `json:"cluster"`
	Region  string        `json:"region"`
	Node    string        `json:"node"`
	Version string        `json:"version,omitempty"`
	Leader  string        `json:"leader,omitempty" doc:"Node that leads this region; absent while there is none"`
	Leads   bool          `json:"leads" doc:"This node leads its region"`
	Shards  []ShardStatus `json:"shards" nullable:"false"`
}

// Deleted acknowledges a deletion.
type Deleted struct {
	ID           string `json:"id"`
	Acknowledged string `json:"acknowledged"`
}

// Acknowledge says how safe the write is.
func (d *Deleted) Acknowledge(level string) { d.Acknowledged = level }
