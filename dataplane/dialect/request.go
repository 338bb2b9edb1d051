package dialect

import (
	"math/bits"
	"mime"
)

// Span is a byte range of a body; the zero Span means "not there".
type Span struct{ Start, End int }

// Present reports whether the field is there.
func (s Span) Present() bool { return s.End > s.Start }

func (s Span) of(b []byte) []byte {
	if s.End > len(b) {
		return nil
	}
	return b[s.Start:s.End]
}

// MaxModelName bounds the model name a request may ask for, in bytes.
const MaxModelName = 256

// Request is what a scan found in a request body. It points into the body and
// copies nothing of it but the model name.
type Request struct {
	Endpoint *Endpoint
	Dialect  Dialect
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
	// Geo: the request says itself in which geography the provider may compute.
	Geo bool

	modelAt        Span // JSON: with its quotes
	streamAt       Span
	optionsAt      Span // stream_options
	includeUsageAt Span // stream_options.include_usage
	storeAt        Span
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
	fieldEnd
)

var fieldNames = [...]string{
	"model", "stream", "stream_options", "temperature", "seed", "store", "background", "previous_response_id",
	"conversation", "prompt_cache_retention", "prompt_cache_options", "audio", "web_search_options", "tools",
	"messages", "input", "system", "container", "mcp_servers", "cache_control", "diagnostics",
	"fallback_credit_token", "inference_geo", "response_format", "stream_format", "images", "mask",
	"n", "best_of", "prompt", "logprobs", "top_logprobs", "include",
	"fallbacks", "models", "voice", "deferred", "data_sources", "extra_body",
}

const (
	plainFields       = fModel | fStream | fFallbacks | fModels
	sampledFields     = plainFields | fOptions | fTemperature | fSeed | fChoices | fLogprobs
	completionsFields = sampledFields | fBestOf | fPrompt
	chatFields        = sampledFields | fTopLogprobs | fStore | fRetention | fCacheOptions | fAudio | fWebSearch | fTools | fMessages | fDeferred |
		fDataSources | fExtraBody
	responsesFields = plainFields | fOptions | fTemperature | fSeed | fStore | fBackground | fPrevious | fConversation |
		fRetention | fCacheOptions | fAudio | fTools | fInput | fTopLogprobs | fInclude | fPrompt
	messagesFields = plainFields | fTemperature | fTools | fMessages | fSystem | fContainer | fMCP | fCacheControl |
		fDiagnostics | fCreditToken | fGeo
	speechFields = plainFields | fStreamFormat | fVoice
	imageFields  = plainFields | fResponseFormat | fImages | fMask
)

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
	if lowerASCII(key) { // folds to nothing but itself
		return 0, false
	}
	for left := f; left != 0; left &= left - 1 {
		if foldsTo(key, left.name()) {
			return left & -left, true
		}
	}
	return 0, false
}

// scan is one pass over a request body.
type scan struct {
	cursor
	q       Request // by value: what a pointer here pointed to would go to the heap
	seen    fieldSet
	refused *Error
}

// refuse notes the first reason to refuse the request.
func (s *scan) refuse(code Code, param, message string) {
	if s.refused == nil {
		s.refused = &Error{Code: code, Message: message, Param: param}
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

// ScanRequest checks that body is of the form that ep takes, and finds the
// fields the gateway reads. contentType is the client's header; it matters
// where ep takes a form. It allocates only the model name.
func ScanRequest(ep *Endpoint, contentType string, body []byte) (Request, *Error) {
	q := Request{Endpoint: ep, Dialect: ep.Dialect, KeepsAnswer: ep.keepsUnset, Choices: 1}
	if ep.Body == BodyMultipart && !isJSON(contentType) {
		return scanForm(q, contentType, body)
	}
	s := scan{cursor: cursor{b: body}, q: q}
	if s.peek() != '{' {
		return q, Fail(InvalidJSON, "The request body must be one JSON object: check that it is complete and not empty.")
	}
	s.object(func(key []byte) {
		f, folded := ep.fields.find(key)
		if f == 0 {
			s.value()
			return
		}
		if folded {
			s.refuse(InvalidJSON, f.name(), "A field of the request differs from `"+f.name()+"` in case only: write it in lower case.")
		}
		if s.seen&f != 0 {
			s.refuse(InvalidJSON, f.name(), "The field `"+f.name()+"` is given twice: give it once.")
		}
		s.seen |= f
		s.field(f)
	})
	switch {
	case !s.end():
		return s.q, Fail(InvalidJSON, "The request body is not valid JSON: check it with a JSON parser, encode it in UTF-8 and nest it at most 128 deep.")
	case s.refused != nil:
		return s.q, s.refused
	case s.seen&fModel == 0:
		return s.q, missingModel()
	}
	return s.q, nil
}

func missingModel() *Error {
	return &Error{Code: InvalidRequest, Message: "`model` is missing: name the model to use, as listed by GET /v1/models.", Param: "model"}
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
		s.space()
		start := s.i
		name, ok := s.text()
		q.modelAt = Span{start, s.i}
		if !ok || len(name) == 0 || len(name) > MaxModelName {
			s.refuse(InvalidRequest, "model", "`model` must be the name of a model, as a string: list them with GET /v1/models.")
			return
		}
		q.Model = string(name)
	case fStream:
		q.streamAt = s.span()
		switch v := q.streamAt.of(s.b); string(v) {
		case "true":
			s.stream()
		case "false", "null":
		default:
			s.refuse(InvalidRequest, "stream", "`stream` must be true or false.")
		}
	case fOptions:
		s.options()
	case fTemperature:
		if isZero(s.span().of(s.b)) {
			q.Deterministic = true
		}
	case fSeed:
		if isInteger(s.span().of(s.b)) {
			q.Deterministic = true
		}
	case fStore:
		q.storeAt = s.span()
		switch v := q.storeAt.of(s.b); string(v) {
		case "false":
			q.KeepsAnswer = false
		case "null":
		default:
			q.KeepsAnswer = true
		}
	case fStreamFormat:
		if v, _ := s.text(); string(v) == "sse" {
			s.stream()
		}
	case fGeo:
		q.Geo = q.Geo || !s.isNull()
		s.value()
	case fWebSearch:
		q.ProviderTools = q.ProviderTools || !s.isNull()
		s.value()
	case fChoices:
		if !s.isNull() && q.Choices != 0 {
			q.Choices = int(min(s.count(), 1<<20))
		} else {
			s.value()
		}
	case fBestOf:
		if !s.isNull() {
			q.Choices = 0
		}
		s.value()
	case fPrompt:
		s.prompt()
	case fLogprobs, fTopLogprobs:
		v := s.span().of(s.b)
		q.Logprobs = q.Logprobs || string(v) != "null" && string(v) != "false"
	case fInclude:
		s.include()
	case fTools:
		s.tools()
	case fInput:
		s.items()
	case fMessages, fSystem, fImages, fMask, fExtraBody:
		s.references()
	case fFallbacks, fModels:
		if !s.isNull() {
			s.refuse(InvalidRequest, f.name(), "`"+f.name()+"` names further models, which would answer unseen by policy and record: leave it out, and ask for one model at a time.")
		}
		s.value()
	default:
		s.storing(f)
	}
}

func (s *scan) stream() {
	s.q.Stream = true
	if !s.q.Endpoint.Streams && s.refused == nil {
		s.refused = errNoStream
	}
}

var errNoStream = &Error{Code: InvalidRequest, Message: "This endpoint answers whole, not as a stream: leave the option out.", Param: "stream"}

// prompt takes the prompt of a text completion: one, as text or tokens, or a
// list; or that of a response, which refers to one that is kept.
func (s *scan) prompt() {
	if s.peek() == '{' {
		s.kept("prompt")
	}
	if s.peek() != '[' {
		s.value()
		return
	}
	s.array(func() {
		if x := s.peek(); x == '"' || x == '[' {
			s.q.Choices = 0
		}
		s.value()
	})
}

// include takes the list of what else the answer is to carry.
func (s *scan) include() {
	if s.peek() != '[' {
		s.value()
		return
	}
	s.array(func() {
		if v, _ := s.text(); string(v) == "message.output_text.logprobs" {
			s.q.Logprobs = true
		}
	})
}

// options takes stream_options.
func (s *scan) options() {
	q := &s.q
	if !q.Endpoint.usageOption { // its options are the provider's business
		s.value()
		return
	}
	if s.isNull() {
		q.optionsAt, q.optionsNull = s.span(), true
		return
	}
	if s.peek() != '{' {
		q.optionsAt = s.span()
		s.refuse(InvalidRequest, "stream_options", "`stream_options` must be an object.")
		return
	}
	start := s.i
	q.optionsEmpty = true
	s.object(func(key []byte) {
		q.optionsEmpty = false
		if string(key) != includeUsage && !foldsTo(key, includeUsage) {
			s.value()
			return
		}
		if q.includeUsageAt.Present() || string(key) != includeUsage {
			s.refuse(InvalidJSON, "stream_options", "`stream_options.include_usage` must be given once, in lower case.")
		}
		q.includeUsageAt = s.span()
		switch v := q.includeUsageAt.of(s.b); string(v) {
		case "true":
			q.WantsUsage = true
		case "false", "null":
		default:
			s.refuse(InvalidRequest, "stream_options", "`stream_options.include_usage` must be true or false.")
		}
	})
	q.optionsAt = Span{start, s.i}
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
