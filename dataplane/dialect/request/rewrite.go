package request

import (
	"slices"
	"strings"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// Rewrite is one field that ringmain changes on the way. Everything else of a
// body passes byte for byte.
type Rewrite struct {
	Dialect dialect.Dialect
	Field   string
	Where   string // request, answer
	When    string
	To      string
}

// Rewrites lists every field that is rewritten, and why.
func Rewrites() []Rewrite {
	all := []Rewrite{
		{dialect.OpenAI, "model", "request", "the upstream knows the model by another name", "the upstream's name"},
		{dialect.Anthropic, "model", "request", "the upstream knows the model by another name", "the upstream's name"},
		{dialect.OpenAI, "the form's part model", "request", "the upstream knows the model by another name", "the upstream's name"},
		{dialect.OpenAI, "stream_options.include_usage", "request", "a stream of chat or text completions whose client did not ask for usage; not at api.mistral.ai, which gives it unasked and refuses the field", "true, so that it can be metered"},
		{dialect.OpenAI, "the chunk with empty choices and a usage object", "answer", "the client did not ask for usage", "left out of the stream"},
	}
	for i := range storageTable {
		if row := &storageTable[i]; row.Action == ForceOff {
			all = append(all, Rewrite{dialect.OfPath(row.Where), row.Field, "request", "no retention, on " + row.Where + ", where it is " + row.Values, row.to})
		}
	}
	return all
}

const (
	usageOption  = `"include_usage":true`
	usageOptions = `{` + usageOption + `}`
	usageField   = `,"stream_options":` + usageOptions
	storeField   = `,"store":false`
	inlineFormat = "b64_json"
	inlineField  = `,"response_format":"b64_json"`
	inlinePart   = "\r\nContent-Disposition: form-data; name=\"response_format\"\r\n\r\nb64_json\r\n"
)

// maxEdits bounds the edits of one body: model; usage or the format of pictures; store.
const maxEdits = (dialect.MaxParts - 1) / 2

// edit replaces one range of the body.
type edit struct {
	at   jsontext.Span // Start == End: insert
	with []byte
}

func insert(at int, text string) edit { return edit{jsontext.Span{Start: at, End: at}, []byte(text)} }

// Rewriting says what else than the model's name must change.
type Rewriting struct {
	ZeroRetention bool // force off what would keep anything at the provider
	unasked       bool // the provider tells usage unasked, and refuses to be asked
	storesChats   bool // it keeps chats unless store is false
}

// At notes what is known of whoever answers at a base URL. Mistral tells usage with
// the last chunk of every stream, and answers stream_options with 422
// (https://github.com/openai/openai-agents-python/issues/442). OpenAI keeps chats by
// default; others know no store, and may refuse it, as Azure's older versions do.
func (r Rewriting) At(base string) Rewriting {
	host, _ := strings.CutPrefix(base, "https://")
	if end := strings.IndexAny(host, ":/"); end >= 0 {
		host = host[:end]
	}
	r.unasked = host == "api.mistral.ai"
	r.storesChats = host == "api.openai.com" || strings.HasSuffix(host, ".api.openai.com")
	return r
}

// Upstream gives the body to send to an upstream that knows the model as
// model ("" = as the client does): the client's own bytes, cut only where
// Rewrites says so. The result shares body's memory.
func (q *Request) Upstream(body []byte, model string, how Rewriting) dialect.Body {
	var edits [maxEdits]edit
	n := 0
	add := func(e edit) { edits[n], n = e, n+1 }
	switch {
	case model == "" || model == q.Model:
	case q.multipart:
		add(edit{q.modelAt, []byte(model)})
	default:
		add(edit{q.modelAt, jsontext.AppendString(nil, model)})
	}
	if model == "" {
		model = q.Model
	}
	if q.Endpoint.UsageOption && q.Stream && !q.WantsUsage && !how.unasked {
		switch {
		case q.includeUsageAt.Present():
			add(edit{q.includeUsageAt, []byte("true")})
		case q.optionsNull:
			add(edit{q.optionsAt, []byte(usageOptions)})
		case q.optionsAt.Present() && q.optionsEmpty:
			add(insert(q.optionsAt.Start+1, usageOption))
		case q.optionsAt.Present():
			add(insert(q.optionsAt.Start+1, usageOption+","))
		default:
			add(insert(q.streamAt.End, usageField))
		}
	}
	if how.ZeroRetention && (q.KeepsAnswer || fieldsOf(q.Endpoint)&fStore != 0 && !q.unstored && how.storesChats) {
		if q.storeAt.Present() {
			add(edit{q.storeAt, []byte("false")})
		} else {
			add(insert(q.modelAt.End, storeField))
		}
	}
	if how.ZeroRetention && fieldsOf(q.Endpoint)&fResponseFormat != 0 && !q.inline && !linkless(model) {
		switch {
		case q.multipart && q.formatAt != (jsontext.Span{}):
			add(edit{q.formatAt, []byte(inlineFormat)})
		case q.multipart:
			add(insert(0, string(q.delimiter.Of(body))+inlinePart))
		case q.formatAt.Present():
			add(edit{q.formatAt, []byte(`"` + inlineFormat + `"`)})
		default:
			add(insert(q.modelAt.End, inlineField))
		}
	}
	slices.SortFunc(edits[:n], func(a, b edit) int { return a.at.Start - b.at.Start })
	var out dialect.Body
	at := 0
	for _, e := range edits[:n] {
		out.Add(body[at:e.at.Start])
		out.Add(e.with)
		at = e.at.End
	}
	out.Add(body[at:])
	return out
}

// linkless reports whether an image model, by its provider's name, gives every
// picture within the answer. Such models do not take response_format.
func linkless(model string) bool {
	return strings.HasPrefix(model, "gpt-image-") || strings.HasPrefix(model, "chatgpt-image-")
}
