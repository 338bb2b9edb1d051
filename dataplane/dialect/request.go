package dialect

import (
	"bytes"
	"unicode/utf8"
)

// Span is a byte range of a body; the zero Span means "not there".
type Span struct{ Start, End int }

// Present reports whether the field is there.
func (s Span) Present() bool { return s.End > s.Start }

// MaxModelName bounds the model name a request may ask for, in bytes.
const MaxModelName = 256

// Request is what a scan found at the top level of a request body. It points
// into the body and copies nothing of it but the model name.
type Request struct {
	Dialect Dialect
	Model   string // decoded
	Stream  bool
	// WantsUsage: the client itself asked for the usage chunk of an OpenAI stream.
	WantsUsage bool

	ModelAt        Span // with its quotes
	StreamAt       Span
	OptionsAt      Span // stream_options
	IncludeUsageAt Span // stream_options.include_usage
	TemperatureAt  Span
	SeedAt         Span
	StoreAt        Span
	optionsEmpty   bool
	optionsNull    bool
}

// Fields of a request that the gateway reads. A second one of the same name,
// also in other case or escaped, is refused: the provider might read the one
// that policy did not see.
const (
	fieldModel = iota
	fieldStream
	fieldOptions
	fieldTemperature
	fieldSeed
	fieldStore
	fieldCount
)

var fieldNames = [fieldCount]string{"model", "stream", "stream_options", "temperature", "seed", "store"}

const includeUsage = "include_usage"

// field gives the index of key in fieldNames, or -1. folded: key differs from
// the name in case only.
func field(key []byte) (index int, folded bool) {
	for i, name := range fieldNames {
		if string(key) == name {
			return i, false
		}
	}
	for i, name := range fieldNames {
		if foldsTo(key, name) {
			return i, true
		}
	}
	return -1, false
}

// foldsTo reports whether key is name in another case, as a provider that
// matches field names without regard to case would see it.
func foldsTo(key []byte, name string) bool {
	// A letter folds to at most three bytes (the Kelvin sign); most keys fail here.
	if len(key) < len(name) || len(key) > 3*len(name) {
		return false
	}
	return bytes.EqualFold(key, []byte(name))
}

// ScanRequest checks that body is one JSON object in UTF-8 and finds the
// fields the gateway reads. It allocates only the model name.
func ScanRequest(d Dialect, body []byte) (Request, *Error) {
	q := Request{Dialect: d}
	var refused *Error
	refuse := func(code Code, param, message string) {
		if refused == nil {
			refused = &Error{Code: code, Message: message, Param: param}
		}
	}
	var seen [fieldCount]bool
	c := cursor{b: body}
	if c.peek() != '{' {
		return q, Fail(InvalidJSON, "The request body must be one JSON object: check that it is complete and not empty.")
	}
	c.object(func(key []byte) {
		f, folded := field(key)
		if f < 0 {
			c.value()
			return
		}
		if folded {
			refuse(InvalidJSON, fieldNames[f], "A field of the request differs from `"+fieldNames[f]+"` in case only: write it in lower case.")
		}
		if seen[f] {
			refuse(InvalidJSON, fieldNames[f], "The field `"+fieldNames[f]+"` is given twice: give it once.")
		}
		seen[f] = true
		switch f {
		case fieldModel:
			c.space()
			start := c.i
			name, ok := c.text()
			q.ModelAt = Span{start, c.i}
			if !ok || len(name) == 0 || len(name) > MaxModelName {
				refuse(InvalidRequest, "model", "`model` must be the name of a model, as a string: list them with GET /v1/models.")
				return
			}
			q.Model = string(name)
		case fieldStream:
			q.StreamAt = c.span()
			switch v := q.StreamAt.of(body); {
			case string(v) == "true":
				q.Stream = true
			case string(v) == "false", string(v) == "null":
			default:
				refuse(InvalidRequest, "stream", "`stream` must be true or false.")
			}
		case fieldOptions:
			q.scanOptions(&c, refuse)
		case fieldTemperature:
			q.TemperatureAt = c.span()
		case fieldSeed:
			q.SeedAt = c.span()
		case fieldStore:
			q.StoreAt = c.span()
		}
	})
	switch {
	case !c.end() || !utf8.Valid(body):
		return q, Fail(InvalidJSON, "The request body is not valid JSON: check it with a JSON parser, encode it in UTF-8 and nest it at most 128 deep.")
	case refused != nil:
		return q, refused
	case !seen[fieldModel]:
		return q, &Error{Code: InvalidRequest, Message: "`model` is missing: name the model to use, as listed by GET /v1/models.", Param: "model"}
	}
	return q, nil
}

func (s Span) of(b []byte) []byte {
	if s.End > len(b) {
		return nil
	}
	return b[s.Start:s.End]
}

func (q *Request) scanOptions(c *cursor, refuse func(Code, string, string)) {
	if c.isNull() {
		q.OptionsAt, q.optionsNull = c.span(), true
		return
	}
	if c.peek() != '{' {
		q.OptionsAt = c.span()
		refuse(InvalidRequest, "stream_options", "`stream_options` must be an object.")
		return
	}
	start := c.i
	q.optionsEmpty = true
	c.object(func(key []byte) {
		q.optionsEmpty = false
		if string(key) != includeUsage && !foldsTo(key, includeUsage) {
			c.value()
			return
		}
		if q.IncludeUsageAt.Present() || string(key) != includeUsage {
			refuse(InvalidJSON, "stream_options", "`stream_options.include_usage` must be given once, in lower case.")
		}
		q.IncludeUsageAt = c.span()
		switch v := q.IncludeUsageAt.of(c.b); {
		case string(v) == "true":
			q.WantsUsage = true
		case string(v) == "false", string(v) == "null":
		default:
			refuse(InvalidRequest, "stream_options", "`stream_options.include_usage` must be true or false.")
		}
	})
	q.OptionsAt = Span{start, c.i}
}
