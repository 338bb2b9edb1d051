// Package request reads the body of a request as far as the gateway must: which
// model, what the provider would keep, what may not pass. It refuses whatever two
// readers might understand differently, and rewrites the few fields that a route
// or policy changes; the rest of a body passes byte for byte.
package request

import (
	"math/bits"
	"mime"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// MaxModelName bounds the model name a request may ask for, in bytes.
const MaxModelName = 256

// Request is what a scan found in a request body. It points into the body and
// copies nothing of it but the model name.
type Request struct {
	Endpoint *dialect.Endpoint
	Dialect  dialect.Dialect
	Model    string // decoded
	Stream   bool
	// WantsUsage: the client itself asked for the usage chunk of an OpenAI stream.
	WantsUsage bool
	// Deterministic: temperature is exactly 0 or a seed is given, so that the
	// same request may be expected to give the same answer.
	Deterministic bool
	// ProviderTools: the provider runs tools of its own for this request, which
	// may have effects and cost each time it is asked.
	ProviderTools bool
	// KeepsAnswer: the provider keeps the answer, unless that is forced off.
	KeepsAnswer bool
	// Stores is the first field that asks the provider to keep something, or to
	// use what it kept, and cannot be forced off; empty if there is none. It is
	// a name of the Storage table.
	Stores string
	// Kept is the first field by which the request uses something that is kept
	// in the provider's account, or leaves something there, to be named by
	// whoever knows its id; empty if there is none. It is a name of the Storage
	// table. See SharedRefusal.
	Kept string
	// Choices is how many answers side by side there will be; 0 = cannot tell.
	Choices int
	// Logprobs: the answer is to carry probabilities, which no two replicas
	// give alike.
	Logprobs bool
	// Unlisted says which field Stores stands for where no list knows it: the
	// first, second and so on of the request. Its name is content.
	Unlisted int
	// Away is the first field by which the request itself says who else is to
	// have content of it, or where; empty if there is none.
	Away string

	modelAt        jsontext.Span // JSON: with its quotes
	streamAt       jsontext.Span
	optionsAt      jsontext.Span // stream_options
	includeUsageAt jsontext.Span // stream_options.include_usage
	storeAt        jsontext.Span
	formatAt       jsontext.Span // response_format of pictures; JSON: with its quotes
	inline         bool          // which asks for them within the answer
	unstored       bool          // store is false
	delimiter      jsontext.Span // of a form
	optionsEmpty   bool
	optionsNull    bool
	multipart      bool
}

// fieldSet is a set of the fields that the gateway reads at the top level of a
// request. A second one of the same name, also in another case or escaped, is
// refused: the provider might read the one that policy did not see.
type fieldSet uint64

const (
	fModel fieldSet = 1 << iota
	fStream
	fOptions
	fTemperature
	fSeed
	fStore
	fBackground
	fPrevious
	fConversation
	fRetention
	fCacheOptions
	fAudio
	fWebSearch
	fTools
	fMessages
	fInput
	fSystem
	fContainer
	fMCP
	fCacheControl
	fDiagnostics
	fCreditToken
	fGeo
	fResponseFormat
	fStreamFormat
	fImages
	fMask
	fChoices
	fBestOf
	fPrompt
	fLogprobs
	fTopLogprobs
	fInclude
	fFallbacks
	fModels
	fVoice
	fDeferred
	fDataSources
	fExtraBody
	fProvider
	fPlugins
	fProviderOptions
	fImage
	fStorageOptions
	fTransfer
	fBootstrap
	fSession
	fieldEnd
)

var fieldNames = [...]string{
	"model", "stream", "stream_options", "temperature", "seed", "store", "background", "previous_response_id",
	"conversation", "prompt_cache_retention", "prompt_cache_options", "audio", "web_search_options", "tools",
	"messages", "input", "system", "container", "mcp_servers", "cache_control", "diagnostics",
	"fallback_credit_token", "inference_geo", "response_format", "stream_format", "images", "mask",
	"n", "best_of", "prompt", "logprobs", "top_logprobs", "include",
	"fallbacks", "models", "voice", "deferred", "data_sources", "extra_body",
	"provider", "plugins", "providerOptions", "image", "storage_options",
	"kv_transfer_params", "bootstrap_host", "session_params",
}

const (
	plainFields       = fModel | fStream | fFallbacks | fModels | fProvider | fPlugins | fProviderOptions
	serverFields      = fTransfer | fBootstrap | fSession // of open servers
	sampledFields     = plainFields | serverFields | fOptions | fTemperature | fSeed | fChoices | fLogprobs
	completionsFields = sampledFields | fBestOf | fPrompt
	chatFields        = sampledFields | fTopLogprobs | fStore | fRetention | fCacheOptions | fAudio | fWebSearch | fTools | fMessages | fDeferred |
		fDataSources | fExtraBody
	responsesFields = plainFields | serverFields | fOptions | fTemperature | fSeed | fStore | fBackground | fPrevious | fConversation |
		fRetention | fCacheOptions | fAudio | fTools | fInput | fTopLogprobs | fInclude | fPrompt
	messagesFields = plainFields | fTemperature | fTools | fMessages | fSystem | fContainer | fMCP | fCacheControl |
		fDiagnostics | fCreditToken | fGeo
	speechFields = plainFields | fStreamFormat | fVoice
	imageFields  = plainFields | fResponseFormat | pictureFields | fStorageOptions | fChoices
	// pictureFields hold pictures: in a form as files.
	pictureFields = fImage | fImages | fMask
)

// fieldsOf is what the scan reads at the top level of a body for ep.
func fieldsOf(ep *dialect.Endpoint) fieldSet {
	switch ep.Path {
	case "/v1/chat/completions":
		return chatFields
	case "/v1/messages", "/v1/messages/count_tokens":
		return messagesFields
	case "/v1/responses":
		return responsesFields
	case "/v1/completions":
		return completionsFields
	case "/v1/embeddings", "/v1/audio/transcriptions", "/v1/audio/translations":
		return plainFields
	case "/v1/audio/speech":
		return speechFields
	case "/v1/images/generations", "/v1/images/edits", "/v1/images/variations":
		return imageFields
	}
	return 0
}

const includeUsage = "include_usage"

// name of the lowest field of the set.
func (f fieldSet) name() string { return fieldNames[bits.TrailingZeros64(uint64(f))] }

// find gives the field of the set that key names; none = 0. folded: key
// differs from the name in case only.
func (f fieldSet) find(key []byte) (one fieldSet, folded bool) {
	for left := f; left != 0; left &= left - 1 {
		if string(key) == left.name() {
			return left & -left, false
		}
	}
	if jsontext.LowerASCII(key) { // folds to nothing but itself
		return 0, false
	}
	for left := f; left != 0; left &= left - 1 {
		if jsontext.FoldsTo(key, left.name()) {
			return left & -left, true
		}
	}
	return 0, false
}

// scan is one pass over a request body.
type scan struct {
	jsontext.Cursor
	q       Request // by value: what a pointer here pointed to would go to the heap
	nth     int     // field of the request, from 1
	seen    fieldSet
	refused *dialect.Error
}

// refuse notes the first reason to refuse the request.
func (s *scan) refuse(code dialect.Code, param, message string) {
	if s.refused == nil {
		s.refused = &dialect.Error{Code: code, Message: message, Param: param}
	}
}

// away notes what has content go where the request says.
func (s *scan) away(what string) {
	if s.q.Away == "" {
		s.q.Away = what
	}
}

// stores notes what asks the provider to keep something.
func (s *scan) stores(what string) {
	if s.q.Stores == "" {
		s.q.Stores = what
	}
}

// kept notes what uses or leaves something in the provider's account.
func (s *scan) kept(what string) {
	if s.q.Kept == "" {
		s.q.Kept = what
	}
	s.stores(what)
}

// Scan checks that body is of the form that ep takes, and finds the
// fields the gateway reads. contentType is the client's header; it matters
// where ep takes a form. It allocates only the model name.
func Scan(ep *dialect.Endpoint, contentType string, body []byte) (Request, *dialect.Error) {
	q := Request{Endpoint: ep, Dialect: ep.Dialect, KeepsAnswer: ep.KeepsUnset, Choices: 1}
	if ep.Body != dialect.BodyJSON && !isJSON(contentType) {
		return scanForm(q, contentType, body)
	}
	s := scan{Cursor: jsontext.Cursor{Data: body}, q: q}
	if s.Peek() != '{' {
		return q, dialect.Fail(dialect.InvalidJSON, "The request body must be one JSON object: check that it is complete and not empty.")
	}
	fields, harmless := fieldsOf(ep), harmlessAt[ep]
	s.Object(func(key []byte) {
		s.nth++
		f, folded := fields.find(key)
		if f == 0 {
			if !harmless[string(key)] {
				s.q.unlisted(s.nth)
			}
			s.Value()
			return
		}
		if folded {
			s.refuse(dialect.InvalidJSON, f.name(), "A field of the request differs from `"+f.name()+"` in case only: write it exactly so.")
		}
		if s.seen&f != 0 {
			s.refuse(dialect.InvalidJSON, f.name(), "The field `"+f.name()+"` is given twice: give it once.")
		}
		s.seen |= f
		s.field(f)
	})
	switch {
	case !s.End():
		return s.q, dialect.Fail(dialect.InvalidJSON, "The request body is not valid JSON: check it with a JSON parser, encode it in UTF-8 and nest it at most 128 deep.")
	case s.refused != nil:
		return s.q, s.refused
	case s.seen&fModel == 0:
		return s.q, missingModel()
	}
	return s.q, nil
}

func missingModel() *dialect.Error {
	return &dialect.Error{Code: dialect.InvalidRequest, Message: "`model` is missing: name the model to use, as listed by GET /v1/models.", Param: "model"}
}

// isJSON reports whether contentType is that of JSON.
func isJSON(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == "application/json"
}

// ContentType is the type under which the body goes upstream: given, the
// client's, for a form, and else that of JSON. Under another type, a provider
// might find other fields in the same bytes.
func (q *Request) ContentType(given string) string {
	if q.multipart {
		return given
	}
	return "application/json"
}

// field takes the value of one field that the endpoint's set holds.
func (s *scan) field(f fieldSet) {
	q := &s.q
	switch f {
	case fModel:
		s.Space()
		start := s.At
		name, ok := s.Text()
		q.modelAt = jsontext.Span{Start: start, End: s.At}
		if !ok || len(name) == 0 || len(name) > MaxModelName {
			s.refuse(dialect.InvalidRequest, "model", "`model` must be the name of a model, as a string: list them with GET /v1/models.")
			return
		}
		q.Model = string(name)
	case fStream:
		q.streamAt = s.Span()
		switch v := q.streamAt.Of(s.Data); string(v) {
		case "true":
			s.stream()
		case "false", "null":
		default:
			s.refuse(dialect.InvalidRequest, "stream", "`stream` must be true or false.")
		}
	case fOptions:
		s.options()
	case fTemperature:
		if isZero(s.Span().Of(s.Data)) {
			q.Deterministic = true
		}
	case fSeed:
		if isInteger(s.Span().Of(s.Data)) {
			q.Deterministic = true
		}
	case fStore:
		q.storeAt = s.Span()
		switch v := q.storeAt.Of(s.Data); string(v) {
		case "false":
			q.KeepsAnswer, q.unstored = false, true
		case "null":
		default:
			q.KeepsAnswer = true
		}
	case fStreamFormat:
		if v, _ := s.Text(); string(v) == "sse" {
			s.stream()
		}
	case fGeo:
		if !s.IsNull() {
			s.away(f.name())
		}
		s.Value()
	case fWebSearch:
		q.ProviderTools = q.ProviderTools || !s.IsNull()
		s.Value()
	case fChoices:
		if !s.IsNull() && q.Choices != 0 {
			q.Choices = int(min(s.Count(), 1<<20))
		} else {
			s.Value()
		}
	case fBestOf:
		if !s.IsNull() {
			q.Choices = 0
		}
		s.Value()
	case fPrompt:
		s.prompt()
	case fLogprobs, fTopLogprobs:
		v := s.Span().Of(s.Data)
		q.Logprobs = q.Logprobs || string(v) != "null" && string(v) != "false"
	case fInclude:
		s.include()
	case fTools:
		s.tools()
	case fInput:
		s.items()
	case fMessages, fSystem, fImage, fImages, fMask:
		s.references()
	case fExtraBody:
		s.extraBody()
	case fFallbacks, fModels:
		if !s.IsNull() {
			if s.refused == nil {
				s.refused = furtherModels(f)
			}
		}
		s.Value()
	default:
		s.storing(f)
	}
}

func furtherModels(f fieldSet) *dialect.Error {
	return &dialect.Error{
		Code: dialect.InvalidRequest, Param: f.name(),
		Message: "`" + f.name() + "` names further models, which would answer unseen by policy and record: leave it out, and ask for one model at a time.",
	}
}

func (s *scan) stream() {
	s.q.Stream = true
	if !s.q.Endpoint.Streams && s.refused == nil {
		s.refused = errNoStream
	}
}

var errNoStream = &dialect.Error{Code: dialect.InvalidRequest, Message: "This endpoint answers whole, not as a stream: leave the option out.", Param: "stream"}

// prompt takes the prompt of a text completion: one, as text or tokens, or a
// list; or that of a response, which refers to one that is kept.
func (s *scan) prompt() {
	if s.Peek() == '{' {
		s.kept("prompt")
	}
	if s.Peek() != '[' {
		s.Value()
		return
	}
	s.Array(func() {
		if x := s.Peek(); x == '"' || x == '[' {
			s.q.Choices = 0
		}
		s.Value()
	})
}

// include takes the list of what else the answer is to carry.
func (s *scan) include() {
	if s.Peek() != '[' {
		s.Value()
		return
	}
	s.Array(func() {
		if v, _ := s.Text(); string(v) == "message.output_text.logprobs" {
			s.q.Logprobs = true
		}
	})
}

// options takes stream_options.
func (s *scan) options() {
	q := &s.q
	if !q.Endpoint.UsageOption { // its options are the provider's business
		s.Value()
		return
	}
	if s.IsNull() {
		q.optionsAt, q.optionsNull = s.Span(), true
		return
	}
	if s.Peek() != '{' {
		q.optionsAt = s.Span()
		s.refuse(dialect.InvalidRequest, "stream_options", "`stream_options` must be an object.")
		return
	}
	start := s.At
	q.optionsEmpty = true
	s.Object(func(key []byte) {
		q.optionsEmpty = false
		if string(key) != includeUsage && !jsontext.FoldsTo(key, includeUsage) {
			s.Value()
			return
		}
		if q.includeUsageAt.Present() || string(key) != includeUsage {
			s.refuse(dialect.InvalidJSON, "stream_options", "`stream_options.include_usage` must be given once, in lower case.")
		}
		q.includeUsageAt = s.Span()
		switch v := q.includeUsageAt.Of(s.Data); string(v) {
		case "true":
			q.WantsUsage = true
		case "false", "null":
		default:
			s.refuse(dialect.InvalidRequest, "stream_options", "`stream_options.include_usage` must be true or false.")
		}
	})
	q.optionsAt = jsontext.Span{Start: start, End: s.At}
}

// isZero reports whether v, a JSON value, is a number that is exactly 0.
func isZero(v []byte) bool {
	for i, c := range v {
		switch {
		case c == '0' || c == '.' || c == '-' && i == 0:
		case c == 'e' || c == 'E':
			return i > 0
		default:
			return false
		}
	}
	return len(v) > 0
}

// isInteger reports whether v, a JSON value, is a whole number in plain digits.
func isInteger(v []byte) bool {
	for i, c := range v {
		if (c < '0' || c > '9') && (c != '-' || i > 0) {
			return false
		}
	}
	return len(v) > 0
}
