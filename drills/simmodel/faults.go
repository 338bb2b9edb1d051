package simmodel

import "ringmain/drills/simmodel/wire"

// Faults a model name asks for. Every other name gets a good answer. A suffix
// of the model name asks for the same at a chosen place, with the answer of the
// plain name: see splitModel.
const (
	Fault429        = "sim-429"         // 429 with retry-after: 1 (":retry=20s" for another wait)
	Fault500Once    = "sim-500-once"    // 500 the first time a prompt is asked, then good answers
	Fault503        = "sim-503"         // 503
	FaultReset      = "sim-reset"       // the TCP connection (HTTP/2: the stream) is reset before any byte
	FaultSilence    = "sim-silence"     // never answers
	FaultCut        = "sim-cut"         // connection cut half-way; plain: content-length longer than what is sent
	FaultCutClean   = "sim-cut-clean"   // ended cleanly half-way: no [DONE], no message_stop; plain: half the JSON
	FaultStall      = "sim-stall"       // half the answer, then nothing more
	FaultRefusal    = "sim-refusal"     // OpenAI refusal; Anthropic stop_reason "refusal"; a refusal part of a response
	FaultEarlyError = "sim-early-error" // status 200, then an error as the first event; plain: 500
	FaultLateError  = "sim-late-error"  // half the answer, then an error event; plain: 500
	FaultGarbage    = "sim-garbage"     // half the answer, then bytes that are no event; plain: no JSON
)

// Faults lists the model names that fail.
func Faults() []string {
	return []string{
		Fault429, Fault500Once, Fault503, FaultReset, FaultSilence, FaultCut, FaultCutClean, FaultStall,
		FaultRefusal, FaultEarlyError, FaultLateError, FaultGarbage,
	}
}

// Refusals other than FaultRefusal.
const (
	Refusal400    = "sim-refusal-400"    // status 400; OpenAI: code content_filter
	RefusalAzure  = "sim-refusal-azure"  // status 400 with Azure's innererror
	RefusalFinish = "sim-refusal-finish" // half the answer, then finish_reason content_filter or stop_reason refusal
)

// Refusals lists every form in which a model declines.
func Refusals() []string { return []string{FaultRefusal, Refusal400, RefusalAzure, RefusalFinish} }

// Quirks: answers that are odd, or errors that say something particular.
const (
	QuirkNoMark      = "sim-no-mark"      // a whole stream but for [DONE] or message_stop, ended cleanly
	QuirkNoMarkOpen  = "sim-no-mark-open" // the same, but the connection stays open
	QuirkBadEvent    = "sim-bad-event"    // half the answer, an event that is no JSON, the other half
	QuirkHugeHeaders = "sim-huge-headers" // a good answer under 256 KiB of header fields
	QuirkSlowHead    = "sim-slow-head"    // a good answer whose head arrives byte by byte in about 0.5 s (HTTP/2: late)
	QuirkRedirect    = "sim-redirect"     // 302 to RedirectPath, which counts as model "redirected" who follows
	QuirkContext     = "sim-context"      // 400 context_length_exceeded (":window=100": only prompts over 100 tokens)
	QuirkStatus      = "sim-status"       // status 500 (":status=408" for another)
)

// Quirks lists them.
func Quirks() []string {
	return []string{QuirkNoMark, QuirkNoMarkOpen, QuirkBadEvent, QuirkHugeHeaders, QuirkSlowHead, QuirkRedirect, QuirkContext, QuirkStatus}
}

// RedirectPath is where QuirkRedirect sends its client.
const RedirectPath = "/sim/redirected"

// breaks are the faults that act inside an answer, by the suffix that asks for
// them at a chosen event.
var breaks = map[string]string{
	"cut": FaultCut, "end": FaultCutClean, "stall": FaultStall, "error": FaultLateError, "garbage": FaultGarbage, "bad": QuirkBadEvent,
}

var (
	overloaded  = wire.Error{Status: 503, Kind: "overloaded_error", Code: "overloaded", Message: "the simulated provider is overloaded"}
	broken      = wire.Error{Status: 500, Kind: "api_error", Code: "server_error", Message: "the simulated provider failed"}
	oncePrompt  = wire.Error{Status: 500, Kind: "api_error", Code: "server_error", Message: "the simulated provider fails once for each prompt"}
	rateLimited = wire.Error{Status: 429, Kind: "rate_limit_error", Code: "rate_limit_exceeded", Message: "the simulated provider's rate limit is reached"}
	declined    = wire.Error{Status: 400, Kind: "invalid_request_error", Code: "content_filter", Message: "Output blocked by content filtering policy", Param: "prompt"}
	tooLong     = wire.Error{Status: 400, Kind: "invalid_request_error", Code: "context_length_exceeded",
		Message: "prompt is too long: this model's maximum context length is smaller than your messages", Param: "messages"}
)

// declinedAzure is Azure OpenAI's form:
// https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter
func declinedAzure() wire.Error {
	e := declined
	e.Message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
	safe := wire.Object{"filtered": false, "severity": "safe"}
	e.Inner = wire.Object{"code": "ResponsibleAIPolicyViolation", "content_filter_result": wire.Object{
		"hate": safe, "self_harm": safe, "sexual": safe, "violence": wire.Object{"filtered": true, "severity": "high"}}}
	return e
}

// withStatus is the error of a provider that answers with an arbitrary status.
func withStatus(status int) wire.Error {
	e := broken
	e.Status = status
	switch {
	case status == 401:
		e.Kind, e.Code = "authentication_error", "invalid_api_key"
	case status == 403:
		e.Kind, e.Code = "permission_error", "forbidden"
	case status == 404:
		e.Kind, e.Code = "not_found_error", "model_not_found"
	case status == 413:
		e.Kind, e.Code = "request_too_large", "request_too_large"
	case status == 429:
		return rateLimited
	case status < 500:
		e.Kind, e.Code = "invalid_request_error", "invalid_request"
	}
	return e
}

// accountHeaders name the account and the machine behind an answer, as real
// providers do; they are on every one.
var accountHeaders = [][2]string{
	{"openai-organization", "org-simulated-account"}, {"openai-project", "proj_simulated"}, {"openai-version", "2020-10-01"},
	{"openai-processing-ms", "7"}, {"anthropic-organization-id", "5b1c0000-0000-4000-8000-simulated000"},
	{"x-ratelimit-limit-requests", "10000"}, {"x-ratelimit-remaining-requests", "9999"}, {"x-ratelimit-reset-requests", "6ms"},
	{"anthropic-ratelimit-requests-limit", "4000"}, {"anthropic-ratelimit-requests-remaining", "3999"},
	{"azureml-model-session", "d101-simulated"}, {"x-ms-region", "Sim North"}, {"apim-request-id", "00000000-sim"},
	{"cf-ray", "0000000000000000-SIM"}, {"set-cookie", "__cf_bm=simulated; path=/; HttpOnly; Secure"},
	{"server", "simulated"}, {"via", "1.1 simulated"}, {"alt-svc", `h3=":443"; ma=86400`},
}

// AccountHeaders lists the response fields that must not reach our clients.
func AccountHeaders() []string {
	names := make([]string, len(accountHeaders))
	for i, h := range accountHeaders {
		names[i] = h[0]
	}
	return names
}
