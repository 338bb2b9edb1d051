package dialect

import "strings"

// BodyKind is the form of an endpoint's request body.
type BodyKind uint8

// Forms of request body.
const (
	BodyNone      BodyKind = iota // the endpoint is not served, so none is read
	BodyJSON                      // one JSON object
	BodyMultipart                 // multipart/form-data (RFC 7578)
	BodyEither                    // as the client declares it: multipart/form-data, or one JSON object
)

// UsageForm says how an endpoint's answer states what it cost.
type UsageForm uint8

// Forms of usage.
const (
	UsageNone   UsageForm = iota // it states nothing: sound, counts
	UsagePrompt                  // usage.prompt_tokens, completion_tokens
	UsageInput                   // usage.input_tokens, output_tokens
)

// Endpoint is one path that clients may ask, and what the path through the
// gateway needs to know about it. Endpoints are compared by pointer.
type Endpoint struct {
	Path    string
	Dialect Dialect
	Body    BodyKind
	Usage   UsageForm
	// Streams: the answer may be a stream of server-sent events. Elsewhere the
	// scan refuses a request for one.
	Streams bool
	// Binary: the answer may be something else than JSON (sound, text, subtitles).
	Binary bool
	// Media: the answer is heard or seen, or says what was heard. Where a stream is
	// asked for, a provider whose model has none answers whole, as OpenAI's
	// whisper-1 does; and one event may hold a whole picture.
	Media bool
	// Splices: an answer may be continued on another replica after its first byte.
	Splices bool
	// Stores: the endpoint, and everything below it, exists to keep something
	// at the provider. It is never served.
	Stores bool

	// UsageOption: takes stream_options.include_usage.
	UsageOption bool
	// KeepsUnset: the provider keeps the answer unless store is false.
	KeepsUnset bool
}

var endpoints = [...]Endpoint{
	{Path: "/v1/chat/completions", Dialect: OpenAI, Body: BodyJSON, Usage: UsagePrompt, Streams: true, Splices: true, UsageOption: true},
	{Path: "/v1/messages", Dialect: Anthropic, Body: BodyJSON, Usage: UsageInput, Streams: true, Splices: true},
	{Path: "/v1/responses", Dialect: OpenAI, Body: BodyJSON, Usage: UsageInput, Streams: true, Splices: true, KeepsUnset: true},
	{Path: "/v1/completions", Dialect: OpenAI, Body: BodyJSON, Usage: UsagePrompt, Streams: true, Splices: true, UsageOption: true},
	{Path: "/v1/embeddings", Dialect: OpenAI, Body: BodyJSON, Usage: UsagePrompt},
	{Path: "/v1/messages/count_tokens", Dialect: Anthropic, Body: BodyJSON},
	{Path: "/v1/audio/speech", Dialect: OpenAI, Body: BodyJSON, Streams: true, Media: true, Binary: true},
	{Path: "/v1/audio/transcriptions", Dialect: OpenAI, Body: BodyMultipart, Usage: UsageInput, Streams: true, Media: true, Binary: true},
	{Path: "/v1/audio/translations", Dialect: OpenAI, Body: BodyMultipart, Usage: UsageInput, Binary: true},
	{Path: "/v1/images/generations", Dialect: OpenAI, Body: BodyJSON, Usage: UsageInput, Streams: true, Media: true},
	{Path: "/v1/images/edits", Dialect: OpenAI, Body: BodyEither, Usage: UsageInput, Streams: true, Media: true},
	{Path: "/v1/images/variations", Dialect: OpenAI, Body: BodyMultipart, Usage: UsageInput},
	{Path: "/v1/files", Dialect: OpenAI, Stores: true},
	{Path: "/v1/uploads", Dialect: OpenAI, Stores: true},
	{Path: "/v1/batches", Dialect: OpenAI, Stores: true},
	{Path: "/v1/vector_stores", Dialect: OpenAI, Stores: true},
	{Path: "/v1/conversations", Dialect: OpenAI, Stores: true},
	{Path: "/v1/containers", Dialect: OpenAI, Stores: true},
	{Path: "/v1/assistants", Dialect: OpenAI, Stores: true},
	{Path: "/v1/threads", Dialect: OpenAI, Stores: true},
	{Path: "/v1/fine_tuning", Dialect: OpenAI, Stores: true},
	{Path: "/v1/evals", Dialect: OpenAI, Stores: true},
	{Path: "/v1/videos", Dialect: OpenAI, Stores: true},
	{Path: "/v1/skills", Dialect: OpenAI, Stores: true},
	{Path: "/v1/messages/batches", Dialect: Anthropic, Stores: true},
}

// Endpoints lists every endpoint: those that are served, then those that store.
func Endpoints() []*Endpoint {
	all := make([]*Endpoint, len(endpoints))
	for i := range endpoints {
		all[i] = &endpoints[i]
	}
	return all
}

// EndpointOf finds the endpoint of path. ok is false for any other path.
// Endpoints that store stand for everything below them too.
func EndpointOf(path string) (ep *Endpoint, ok bool) {
	for i := range endpoints {
		ep = &endpoints[i]
		if path == ep.Path || ep.Stores && strings.HasPrefix(path, ep.Path) && path[len(ep.Path)] == '/' {
			return ep, true
		}
	}
	return nil, false
}
