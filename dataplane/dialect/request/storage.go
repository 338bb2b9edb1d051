package request

import (
	"strconv"
	"strings"

	"ringmain/dataplane/dialect"
)

// StorageAction is what is done, without retention, about a request that asks
// the provider to keep something.
type StorageAction uint8

// Actions.
const (
	Refuse   StorageAction = iota + 1 // storage_not_allowed
	ForceOff                          // the field is rewritten
	Pass                              // looks like storage; passed on, for the reason given
)

func (a StorageAction) String() string {
	switch a {
	case Refuse:
		return "refused"
	case ForceOff:
		return "forced off"
	case Pass:
		return "passed"
	}
	return "none"
}

// StorageRow is one row of the storage table: a field, header, tool or path by
// which something is kept at a provider.
type StorageRow struct {
	Where  string // a path, or the name of a dialect for all of its endpoints
	Field  string // field, header, tool or path
	Values string // which values of it
	Action StorageAction
	Reason string
	Source string // where the provider says so; "" = our own caution
	// Shared: refused with retention too, where the provider's account is not
	// the caller's own. See SharedRefusal.
	Shared bool

	tool string // name in the table of tools
	to   string // with ForceOff, the JSON value that it becomes
}

const (
	openAIData      = "https://developers.openai.com/api/docs/guides/your-data"
	openAICaching   = "https://developers.openai.com/api/docs/guides/prompt-caching#prompt-cache-retention"
	openAIResidency = "https://developers.openai.com/api/docs/guides/data-residency"
	openAIConv      = "https://developers.openai.com/api/docs/guides/conversation-state"
	openAIImages    = "https://developers.openai.com/api/docs/api-reference/images"
	openAIPrompts   = "https://developers.openai.com/api/docs/guides/prompting"
	azureOwnData    = "https://learn.microsoft.com/azure/ai-services/openai/references/on-your-data"
	geminiOpenAI    = "https://ai.google.dev/gemini-api/docs/openai"
	openRouter      = "https://openrouter.ai/docs/api-reference/overview"
	openAIMigrate   = "https://developers.openai.com/api/docs/guides/migrate-to-responses"
	vercelGateway   = "https://vercel.com/docs/ai-gateway/models-and-providers/provider-options"
	vllmTransfer    = "https://docs.vllm.ai/en/latest/features/disagg_prefill/"
	xaiFiles        = "https://docs.x.ai/developers/model-capabilities/imagine/files/outputs"
	xaiDeferred     = "https://docs.x.ai/docs/guides/deferred-chat-completions"
	anthropicData   = "https://platform.claude.com/docs/en/build-with-claude/api-and-data-retention"
)

const (
	chatPath      = "/v1/chat/completions"
	responsesPath = "/v1/responses"
	imagesPath    = "/v1/images"
)

// otherField stands for every field that no list knows.
const otherField = "any other field"

// storageTable was compared with its sources, and with the fields of
// openai-go v3.96 and anthropic-sdk-go v1.84, in November 2026.
var storageTable = [...]StorageRow{
	{Where: responsesPath, Field: "store", Values: "true, null, absent", Action: ForceOff, Reason: "the answer is kept for 30 days, also where the field is absent", Source: openAIData, to: "false"},
	{Where: chatPath, Field: "store", Values: "true", Action: ForceOff, Reason: "the answer is kept for 30 days", Source: openAIData, to: "false"},
	{Where: chatPath, Field: "store", Values: "null, absent, and the upstream is at api.openai.com or a region of it", Action: ForceOff, Reason: "the answers of newer accounts are kept unless told otherwise; other servers know no such field, and may refuse it", Source: openAIMigrate, to: "false"},
	{Where: responsesPath, Field: "background", Values: "true", Action: Refuse, Reason: "the answer is kept for polling", Source: openAIData, Shared: true},
	{Where: responsesPath, Field: "previous_response_id", Values: "any", Action: Refuse, Reason: "continues an answer that was kept", Source: openAIConv, Shared: true},
	{Where: responsesPath, Field: "conversation", Values: "any", Action: Refuse, Reason: "kept until deleted", Source: openAIData, Shared: true},
	{Where: responsesPath, Field: "item_reference", Values: "in input; also an item that gives its id and no content: one without type, reasoning without encrypted_content, a picture without result", Action: Refuse, Reason: "refers to an item of an answer that was kept", Source: openAIConv, Shared: true},
	{Where: "openai", Field: "prompt_cache_retention", Values: "anything but in_memory", Action: Refuse, Reason: "the cache is written to local storage, for up to 24 hours", Source: openAICaching},
	{Where: "openai", Field: "prompt_cache_options.ttl", Values: "anything but 30m", Action: Refuse, Reason: "a longer life than the default in a cache that may be written to local storage", Source: openAICaching},
	{Where: "openai", Field: "prompt_cache_options.comparison_response_id", Values: "any", Action: Refuse, Reason: "compares with an earlier request, which must have been kept in some form", Shared: true},
	{Where: "openai", Field: "audio", Values: "any", Action: Refuse, Reason: "spoken answers are kept for an hour", Source: openAIData},
	{Where: "openai", Field: "file_id", Values: "anywhere in messages, input, tools, images, mask; also file_ids, vector_store_ids, container, container_id", Action: Refuse, Reason: "files and containers are kept until deleted or expired", Source: openAIData, Shared: true},
	{Where: responsesPath, Field: "prompt", Values: "an object, with the id of one that is kept", Action: Refuse, Reason: "prompts are kept until deleted, and may hold files and tools", Source: openAIPrompts, Shared: true},
	{Where: chatPath, Field: "audio.id", Values: "in messages", Action: Refuse, Reason: "refers to a spoken answer that was kept", Source: openAIData, Shared: true},
	{Where: "openai", Field: "voice.id", Values: "a voice made for the account; also in audio", Action: Refuse, Reason: "the recordings of it are kept until deleted", Shared: true},
	{Where: chatPath, Field: "deferred", Values: "true", Action: Refuse, Reason: "the answer is kept for a day, to be fetched (xAI)", Source: xaiDeferred, Shared: true},
	{Where: chatPath, Field: "data_sources", Values: "any", Action: Refuse, Reason: "searches an index, by an identity that may be the account's own (Azure)", Source: azureOwnData, Shared: true},
	{Where: chatPath, Field: "cached_content", Values: "anywhere in extra_body", Action: Refuse, Reason: "refers to content that is kept as a cache (Google)", Source: geminiOpenAI, Shared: true},
	{Where: responsesPath, Field: "skill_id", Values: "anywhere in tools", Action: Refuse, Reason: "skills are kept until deleted", Shared: true},
	{Where: responsesPath, Field: "tunnel_id", Values: "anywhere in tools", Action: Refuse, Reason: "reaches a server by what the account has set up", Shared: true},
	{Where: responsesPath, Field: "tools: file_search", Action: Refuse, Reason: "vector stores are kept until deleted", Source: openAIData, tool: "file_search"},
	{Where: responsesPath, Field: "tools: code_interpreter", Action: Refuse, Reason: "runs in a container that keeps its files", Source: openAIData, tool: "code_interpreter"},
	{Where: responsesPath, Field: "tools: shell", Values: "environment other than local", Action: Refuse, Reason: "runs in a container that keeps its files", Source: openAIData, tool: "shell"},
	{Where: responsesPath, Field: "tools: mcp", Action: Refuse, Reason: "sends data to third parties, who keep what they like", Source: openAIData, tool: "mcp"},
	{Where: responsesPath, Field: "tools: programmatic_tool_calling", Action: Refuse, Reason: "runs code at the provider; whether it keeps anything is not stated", tool: "programmatic_tool_calling"},
	{Where: "openai", Field: "tools: " + unknownTool, Values: "a type that is not in our table, in both dialects", Action: Refuse, Reason: "nobody has looked at what it keeps", tool: unknownTool},
	{Where: imagesPath, Field: "response_format", Values: "anything but b64_json", Action: Refuse, Reason: "the picture is kept for the link's life, 60 minutes and more", Source: openAIImages},
	{Where: imagesPath, Field: "response_format", Values: "null, absent, unless the upstream knows the model as gpt-image-… or chatgpt-image-…, which give no links and do not take the field", Action: ForceOff, Reason: "other models give links unless told otherwise, and keep the picture for the link's life", Source: openAIImages, to: `"` + inlineFormat + `"`},
	{Where: imagesPath, Field: "storage_options", Values: "any", Action: Refuse, Reason: "the picture is kept as a file, and may be given a public link (xAI)", Source: xaiFiles, Shared: true},
	{Where: "openai", Field: "kv_transfer_params", Values: "any", Action: Refuse, Reason: "names blocks of a cache, and the server that is to give or to have them (vLLM): they may be another caller's", Source: vllmTransfer, Shared: true},
	{Where: "openai", Field: "bootstrap_host", Values: "any", Action: Refuse, Reason: "names the server that gives the cache of the prompt (SGLang)", Shared: true},
	{Where: "openai", Field: "session_params", Values: "any", Action: Refuse, Reason: "continues a session that the server keeps (SGLang)", Shared: true},
	{Where: "openai", Field: "provider", Values: "any, in both dialects", Action: Refuse, Reason: "names who else is to answer (OpenRouter), on terms that nobody has looked at", Source: openRouter},
	{Where: "openai", Field: "providerOptions", Values: "any, in both dialects", Action: Refuse, Reason: "names who else is to answer, and by whose account (Vercel), on terms that nobody has looked at", Source: vercelGateway},
	{Where: "openai", Field: "plugins", Values: "any, in both dialects", Action: Refuse, Reason: "sends content to whom it names, such as search engines and readers of files (OpenRouter)", Source: openRouter},
	{Where: "openai", Field: otherField, Values: "at the top level, in extra_body, or a part of a form, that is neither read here nor in the list below, in both dialects", Action: Refuse, Reason: "nobody has looked at what it keeps"},
	{Where: "openai", Field: "openai-beta", Values: "any", Action: Refuse, Reason: "a header: asks for previews, of which assistants keep their threads; which others keep nothing is not stated"},
	{Where: "anthropic", Field: "container", Values: "any", Action: Refuse, Reason: "containers and skills are kept for up to 30 days", Source: anthropicData, Shared: true},
	{Where: "anthropic", Field: "mcp_servers", Values: "any", Action: Refuse, Reason: "kept as the provider's standard policy has it", Source: anthropicData},
	{Where: "anthropic", Field: "tools: mcp_toolset", Action: Refuse, Reason: "kept as the provider's standard policy has it", Source: anthropicData, tool: "mcp_toolset"},
	{Where: "anthropic", Field: "tools: code_execution", Values: "every version", Action: Refuse, Reason: "containers are kept for up to 30 days", Source: anthropicData, tool: "code_execution_"},
	{Where: "anthropic", Field: "tools: web_search", Values: "versions after 20250305", Action: Refuse, Reason: "filters its results in a container", Source: anthropicData, tool: "web_search_"},
	{Where: "anthropic", Field: "tools: web_fetch", Values: "versions after 20250910", Action: Refuse, Reason: "filters its results in a container", Source: anthropicData, tool: "web_fetch_"},
	{Where: "anthropic", Field: "file_id", Values: "anywhere in messages, system, tools; also container_upload", Action: Refuse, Reason: "files are kept until deleted", Source: anthropicData, Shared: true},
	{Where: "anthropic", Field: "cache_control.ttl", Values: "anything but 5m", Action: Refuse, Reason: "a longer life than the default; the provider says that it is in memory for all of it"},
	{Where: "anthropic", Field: "diagnostics", Values: "any", Action: Refuse, Reason: "compares with an earlier request, whose fingerprint must have been kept", Shared: true},
	{Where: "anthropic", Field: "fallback_credit_token", Values: "any", Action: Refuse, Reason: "compares with an earlier request, whose fingerprint must have been kept"},
	{Where: "anthropic", Field: "anthropic-beta", Values: "anything but the betas listed as passed: files-api, code-execution, skills, mcp-client, message-batches and what we do not know", Action: Refuse, Reason: "a header: turns on features that keep something", Source: anthropicData},
	{Where: "anthropic", Field: "output_config.format", Values: "any; also strict tools", Action: Pass, Reason: "prompt and answer are not kept; the schema is, for up to 24 hours since its last use", Source: anthropicData},
	{Where: "openai", Field: "json_schema", Values: "in response_format and text.format; also strict tools", Action: Pass, Reason: "prompt and answer are not kept; the schema counts as the provider's system data, also where a region was chosen", Source: openAIResidency},
	{Where: "openai", Field: "web_search", Values: "as a tool or web_search_options", Action: Pass, Reason: "covered by zero retention", Source: openAIData},
}

// betasPassed are the values of anthropic-beta that go with zero retention.
var betasPassed = [...]struct {
	name   string
	listed bool // anthropicData lists the feature as eligible; else we read it as one that only shapes the answer
}{
	{"advisor-tool-2026-03-01", true},
	{"claude-code-20250219", false}, // names the client
	{"compact-2026-01-12", true},
	{"compact-2026-09-04", true},
	{"computer-use-2024-10-22", true},
	{"computer-use-2025-01-24", true},
	{"computer-use-2025-11-24", true},
	{"context-1m-2025-08-07", true},
	{"context-management-2025-06-27", true},
	{"dev-full-thinking-2025-05-14", false},
	{"effort-2025-11-24", true},
	{"extended-cache-ttl-2025-04-11", false}, // the field it allows is read
	{"fast-mode-2026-02-01", true},
	{"fine-grained-tool-streaming-2025-05-14", true},
	{"interleaved-thinking-2025-05-14", true},
	{"model-context-window-exceeded-2025-08-26", false},
	{"output-128k-2025-02-19", false},
	{"output-300k-2026-03-24", false},
	{"pdfs-2024-09-25", true},
	{"prompt-caching-2024-07-31", true},
	{"structured-outputs-2025-11-13", true},
	{"task-budgets-2026-03-13", false},
	{"thinking-token-count-2026-05-13", false},
	{"token-counting-2024-11-01", true},
	{"token-efficient-tools-2025-02-19", false},
}

// Storage lists every field, header, tool and path by which a request may have
// something kept at its provider, and what is done about it without retention.
func Storage() []StorageRow {
	all := append([]StorageRow(nil), storageTable[:]...)
	for _, ep := range dialect.Endpoints() {
		if ep.Stores {
			row := StorageRow{Where: ep.Path, Field: "path", Values: "and everything below it", Action: Refuse, Reason: "keeps what it is sent", Source: openAIData}
			if ep.Dialect == dialect.Anthropic {
				row.Source = anthropicData
			} else if ep.Path == "/v1/skills" || ep.Path == "/v1/uploads" || ep.Path == "/v1/containers" {
				row.Source = "" // our reading: not in the provider's table of endpoints
			}
			all = append(all, row)
		}
	}
	for _, beta := range betasPassed {
		row := StorageRow{Where: "anthropic", Field: "anthropic-beta", Values: beta.name, Action: Pass, Reason: "only shapes the answer, as we read it"}
		if beta.listed {
			row.Reason, row.Source = "listed as eligible for zero retention", anthropicData
		}
		all = append(all, row)
	}
	return all
}

// StorageRefusal says why a request may not be served without retention; nil
// if it may. q may be nil where ep was never scanned. header is the client's,
// with canonical names.
func StorageRefusal(ep *dialect.Endpoint, q *Request, header map[string][]string) *dialect.Error {
	if ep.Stores {
		return dialect.Fail(dialect.StorageNotAllowed, "This endpoint keeps data at the provider, and this request is to leave none: send the data with each request instead.")
	}
	if q != nil && q.Stores == otherField {
		return dialect.Fail(dialect.StorageNotAllowed, "Field "+strconv.Itoa(q.Unlisted)+" of the request, counted from its first, is not known here to leave nothing at the provider, and this request is to leave nothing: leave it out.")
	}
	if q != nil && q.Stores != "" {
		param, _, _ := strings.Cut(q.Stores, ":")
		message := "`" + q.Stores + "` has the provider keep data, and this request is to leave none: leave it out."
		if q.Stores == q.Kept && q.Kept != "background" && q.Kept != "deferred" && q.Kept != "storage_options" {
			message = "`" + q.Stores + "` refers to what a provider keeps, and this request is to leave nothing there: send the content itself."
		}
		return &dialect.Error{Code: dialect.StorageNotAllowed, Param: param, Message: message}
	}
	if len(header["Openai-Beta"]) > 0 {
		return dialect.Fail(dialect.StorageNotAllowed, "The header openai-beta may have the provider keep data, and this request is to leave none: leave it out.")
	}
	for _, line := range header["Anthropic-Beta"] {
		for beta := range strings.SplitSeq(line, ",") {
			if !betaPassed(strings.Trim(beta, " \t")) {
				return dialect.Fail(dialect.StorageNotAllowed, "The header anthropic-beta names a feature that keeps data at the provider, or that is not known to keep none, and this request is to leave none: leave it out.")
			}
		}
	}
	return nil
}

// SharedRefusal says why a request may not go to a provider's account that
// several customers share; nil if it may. What one of them left there, whoever
// learns its id could use; and nothing of it can be fetched or deleted through
// the gateway. q comes from Scan.
func SharedRefusal(q *Request) *dialect.Error {
	if q.Kept == "" {
		return nil
	}
	message := "`" + q.Kept + "` uses or leaves something in the provider's account, which customers share here: leave it out, and send what it stands for with the request."
	if q.Kept == "item_reference" {
		message += " Of reasoning, ask for `reasoning.encrypted_content` with `include`, and send that back."
	}
	return &dialect.Error{Code: dialect.StorageNotAllowed, Param: q.Kept, Message: message}
}

// AwayRefusal says why a request may not be pinned to a jurisdiction; nil if it
// may. q comes from Scan.
func AwayRefusal(q *Request) *dialect.Error {
	if q.Away == "" {
		return nil
	}
	param, _, _ := strings.Cut(q.Away, ":")
	return &dialect.Error{
		Code: dialect.InvalidRequest, Param: param,
		Message: "`" + q.Away + "` may have content go elsewhere than to the upstream, outside of the jurisdiction that this request is pinned to: leave it out.",
	}
}

func betaPassed(beta string) bool {
	for i := range betasPassed {
		if beta == betasPassed[i].name {
			return true
		}
	}
	return beta == ""
}
