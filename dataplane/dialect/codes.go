// Package dialect is what the OpenAI and Anthropic wire formats have in common for
// the gateway: the tables of endpoints and of error codes, error bodies, content
// that cannot print, and what a plain answer says about itself (usage, refusal).
// Its parts read what comes: jsontext any JSON, request what clients ask, stream
// what providers answer.
//
// All of it is pure: no clock, no goroutine, no network, and it keeps no content
// beyond the call that was handed it.
package dialect

import "strings"

// Dialect is a wire format.
type Dialect uint8

// The two formats clients speak. The zero Dialect is neither.
const (
	OpenAI Dialect = iota + 1
	Anthropic
)

// String gives the name that registry.Upstream.Dialect uses.
func (d Dialect) String() string {
	switch d {
	case OpenAI:
		return "openai"
	case Anthropic:
		return "anthropic"
	}
	return "none"
}

// OfPath is the dialect in which path answers, also with errors: Anthropic
// below /v1/messages, OpenAI everywhere else.
func OfPath(path string) Dialect {
	if rest, ok := strings.CutPrefix(path, "/v1/messages"); ok && (rest == "" || rest[0] == '/') {
		return Anthropic
	}
	return OpenAI
}

// Code is a stable name for why a request failed: the value of idc-error-code.
type Code string

// Every code of the wire contract.
const (
	InvalidJSON              Code = "invalid_json"
	InvalidRequest           Code = "invalid_request"
	InvalidHeader            Code = "invalid_header"
	UnknownRegionHint        Code = "unknown_region_hint"
	StorageNotAllowed        Code = "storage_not_allowed"
	ContextLengthExceeded    Code = "context_length_exceeded"
	InvalidAPIKey            Code = "invalid_api_key"
	WrongJurisdiction        Code = "wrong_jurisdiction"
	ProjectForbidden         Code = "project_forbidden"
	ModelNotAllowed          Code = "model_not_allowed"
	SourceNotAllowed         Code = "source_not_allowed"
	AccountUnverified        Code = "account_unverified"
	AccountSuspended         Code = "account_suspended"
	PlanRequired             Code = "plan_required"
	ProviderKeyRejected      Code = "provider_key_rejected"
	ModelNotFound            Code = "model_not_found"
	NotFound                 Code = "not_found"
	MethodNotAllowed         Code = "method_not_allowed"
	RequestTooLarge          Code = "request_too_large"
	RateLimitExceeded        Code = "rate_limit_exceeded"
	InsufficientQuota        Code = "insufficient_quota"
	UpstreamError            Code = "upstream_error"
	UpstreamTimeout          Code = "upstream_timeout"
	ResidencyUnavailable     Code = "residency_unavailable"
	ZeroRetentionUnavailable Code = "zero_retention_unavailable"
	NoHealthyRoute           Code = "no_healthy_route"
	UpstreamSaturated        Code = "upstream_saturated"
	CapacityShed             Code = "capacity_shed"
	MeteringUnavailable      Code = "metering_unavailable"
	NotReady                 Code = "not_ready"
)

// row is one line of the code table.
type row struct {
	code      Code
	status    int
	openai    string // error.type in the OpenAI dialect
	anthropic string // error.type in the Anthropic dialect
	retry     bool   // x-should-retry
}

// codeTable is the wire contract's table of errors, in its order.
var codeTable = [...]row{
	{InvalidJSON, 400, "invalid_request_error", "invalid_request_error", false},
	{InvalidRequest, 400, "invalid_request_error", "invalid_request_error", false},
	{InvalidHeader, 400, "invalid_request_error", "invalid_request_error", false},
	{UnknownRegionHint, 400, "invalid_request_error", "invalid_request_error", false},
	{StorageNotAllowed, 400, "invalid_request_error", "invalid_request_error", false},
	{ContextLengthExceeded, 400, "invalid_request_error", "invalid_request_error", false},
	{InvalidAPIKey, 401, "authentication_error", "authentication_error", false},
	{WrongJurisdiction, 403, "permission_error", "permission_error", false},
	{ProjectForbidden, 403, "permission_error", "permission_error", false},
	{ModelNotAllowed, 403, "permission_error", "permission_error", false},
	{SourceNotAllowed, 403, "permission_error", "permission_error", false},
	{AccountUnverified, 403, "permission_error", "permission_error", false},
	{AccountSuspended, 403, "permission_error", "permission_error", false},
	{PlanRequired, 403, "permission_error", "permission_error", false},
	{ProviderKeyRejected, 403, "permission_error", "permission_error", false},
	{ModelNotFound, 404, "invalid_request_error", "not_found_error", false},
	{NotFound, 404, "invalid_request_error", "not_found_error", false},
	{MethodNotAllowed, 405, "invalid_request_error", "invalid_request_error", false},
	{RequestTooLarge, 413, "invalid_request_error", "request_too_large", false},
	{RateLimitExceeded, 429, "rate_limit_error", "rate_limit_error", true},
	{InsufficientQuota, 429, "insufficient_quota", "rate_limit_error", false},
	{UpstreamError, 502, "server_error", "api_error", false},
	{UpstreamTimeout, 504, "server_error", "timeout_error", false},
	{ResidencyUnavailable, 503, "server_error", "overloaded_error", true},
	{ZeroRetentionUnavailable, 503, "server_error", "overloaded_error", true},
	{NoHealthyRoute, 503, "server_error", "overloaded_error", true},
	{UpstreamSaturated, 503, "server_error", "overloaded_error", true},
	{CapacityShed, 503, "server_error", "overloaded_error", true},
	{MeteringUnavailable, 503, "server_error", "overloaded_error", true},
	{NotReady, 503, "server_error", "overloaded_error", true},
}

// unknown stands for a code that is not in the table.
var unknown = row{UpstreamError, 502, "server_error", "api_error", false}

func (c Code) row() *row {
	for i := range codeTable {
		if codeTable[i].code == c {
			return &codeTable[i]
		}
	}
	return &unknown
}

// Known reports whether c is in the table.
func (c Code) Known() bool { return c.row() != &unknown }

// Status is the HTTP status of c; 502 for a code that is not in the table.
func (c Code) Status() int { return c.row().status }

// Retry reports whether a client may repeat the request (x-should-retry).
func (c Code) Retry() bool { return c.row().retry }

// Type is error.type of c in dialect d.
func (c Code) Type(d Dialect) string {
	if d == Anthropic {
		return c.row().anthropic
	}
	return c.row().openai
}

// Codes lists every code, in the table's order.
func Codes() []Code {
	all := make([]Code, len(codeTable))
	for i := range codeTable {
		all[i] = codeTable[i].code
	}
	return all
}
