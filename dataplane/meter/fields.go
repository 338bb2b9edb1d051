package meter

import "slices"

// Field describes one field of a Record to the people whose requests it is about.
type Field struct {
	Name        string `json:"name"`
	Type        string `json:"type"` // text, number or truth
	Description string `json:"description"`
}

// Fields is the declared list of all that a Record can hold, in its order. It
// is what customers are told; a test compares it with the Record.
func Fields() []Field { return slices.Clone(fields) }

var fields = []Field{
	{"role", "text", "front: made by the node that answered the client, and what is billed by. witness: made with the same request id by the node in another region that executed the request."},
	{"request_id", "text", "Random id of the request, as given in the idc-request-id header."},
	{"at", "number", "When the request arrived, in milliseconds since 1970 (UTC)."},
	{"endpoint", "text", "Path of the API endpoint, from a fixed list."},
	{"key", "text", "Id of the API key's record. Never the key, nor a part or hash of it."},
	{"org", "text", "Id of the organization that the key belongs to."},
	{"project", "text", "Id of the project that is billed."},
	{"model", "text", "Name of the model that was asked for, if a route has that name."},
	{"served", "text", "The model's name at the provider."},
	{"upstream", "text", "Name of the provider connection that answered, as the operator configured it."},
	{"entry_region", "text", "Region where the request entered."},
	{"entry_node", "text", "Node where the request entered."},
	{"region", "text", "Region where the request was executed."},
	{"node", "text", "Node that executed the request."},
	{"residency", "text", "Jurisdiction that the request was confined to, or unpinned."},
	{"status", "number", "HTTP status of the answer."},
	{"code", "text", "Error code of the answer, from a fixed list."},
	{"streamed", "truth", "Whether the answer was asked for as a stream."},
	{"tokens_in", "number", "Input tokens of the try that gave the answer."},
	{"tokens_out", "number", "Output tokens of the try that gave the answer."},
	{"cache_read", "number", "Input tokens that the provider read from its prompt cache."},
	{"cache_write", "number", "Input tokens that the provider wrote to its prompt cache."},
	{"source", "text", "Where the token counts come from: provider, estimated (four bytes of text a token), or none."},
	{"latency_ms", "number", "Milliseconds from the request's arrival until right before the last byte of the answer."},
	{"first_token_ms", "number", "Milliseconds from the request's arrival until the first token."},
	{"attempts", "number", "How often a provider was asked."},
	{"refused", "truth", "Whether the provider's model or filter refused to answer."},
	{"ended", "text", "How the answer ended: complete; truncated, with an error after its beginning; client_gone, where the client left or took nothing for too long; or error, instead of an answer."},
	{"pool", "text", "Pool of nodes and providers that served the request: standard, zero-retention, or dedicated to the organization."},
	{"retention", "text", "zero: no provider may keep anything of the request. metadata: the provider's terms apply."},
	{"plan", "text", "The organization's plan at the time."},
	{"fallback", "text", "The model that was used instead, if the one asked for could not answer and declares another as its fallback."},
	{"splices", "number", "How often a broken stream was continued by another provider connection."},
	{"replay_in", "number", "Input tokens of tries that broke before the one that gave the answer."},
	{"replay_out", "number", "Output tokens of tries that broke before the one that gave the answer."},
	{"receipt", "text", "Id of the signed receipt of the answer."},
}
