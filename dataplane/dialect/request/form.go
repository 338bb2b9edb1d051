package request

import (
	"bytes"
	"mime"
	"strings"
	"unicode/utf8"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/dialect/jsontext"
)

// maxFormParts bounds the parts of one form.
const maxFormParts = 1000

var (
	errFormType  = dialect.Fail(dialect.InvalidRequest, "This endpoint takes a form: send it as multipart/form-data, with the boundary in the content type and nothing else.")
	errFormShape = dialect.Fail(dialect.InvalidRequest, "The form is not well formed: begin with the boundary, end every line with CRLF, close with the boundary and two hyphens, and send nothing before or after.")
	errFormClash = dialect.Fail(dialect.InvalidRequest, "The boundary of the form occurs inside it: choose another boundary.")
	errFormHead  = dialect.Fail(dialect.InvalidRequest, "A part of the form has a head that cannot be read in one way only: give each part one content-disposition of form-data with a plain name, and do not encode what it holds.")
	errFormParts = dialect.Fail(dialect.InvalidRequest, "The form has too many parts: send at most 1000.")
)

// scanForm reads a form (RFC 7578) strictly: what a lenient reader might take
// for another part, or another name, is refused, since the provider's may be
// lenient. Nothing is copied but the model's name.
func scanForm(q Request, contentType string, body []byte) (Request, *dialect.Error) {
	f := form{q: q, body: body}
	f.q.multipart = true
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "multipart/form-data" || !goodBoundary(params["boundary"]) || !onlyUTF8(params) ||
		strings.ContainsAny(contentType, "*\\") { // encoded or escaped: readers differ on which boundary that is
		return f.q, errFormType
	}
	delimiter := []byte("--" + params["boundary"])
	f.q.delimiter = jsontext.Span{End: len(delimiter)}
	if !bytes.HasPrefix(body, delimiter) {
		return f.q, errFormShape
	}
	at := len(delimiter)
	for parts := 0; ; parts++ {
		rest := body[at:]
		if bytes.HasPrefix(rest, []byte("--")) {
			switch string(rest[2:]) {
			case "", "\r\n", "\r\n\r\n": // an empty line more is what form-data-encoder, of openai-node 4, writes
			default:
				return f.q, errFormShape
			}
			break
		}
		if !bytes.HasPrefix(rest, []byte("\r\n")) {
			return f.q, errFormClash
		}
		if parts == maxFormParts {
			return f.q, errFormParts
		}
		start := at + 2
		k := bytes.Index(body[start:], delimiter)
		if k < 0 {
			return f.q, errFormShape
		}
		end := start + k - 2
		if end < start || string(body[end:end+2]) != "\r\n" {
			return f.q, errFormClash
		}
		if e := f.part(parts+1, jsontext.Span{Start: start, End: end}); e != nil {
			return f.q, e
		}
		at = start + k + len(delimiter)
	}
	if f.seen&fModel == 0 {
		return f.q, missingModel()
	}
	return f.q, nil
}

// onlyUTF8 reports whether the type of a form has no parameter but its boundary
// and UTF-8 as charset. Some servers decode the names of the parts by another
// (Starlette, and with it vLLM), and find other parts.
func onlyUTF8(params map[string]string) bool {
	for name, value := range params {
		if name != "boundary" && (name != "charset" || !strings.EqualFold(value, "utf-8") && !strings.EqualFold(value, "us-ascii")) {
			return false
		}
	}
	return true
}

// goodBoundary reports whether b is a boundary as RFC 2046, section 5.1.1, has
// it, without the space that it allows inside.
func goodBoundary(b string) bool {
	for _, c := range []byte(b) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (c < '0' || c > '9') && strings.IndexByte("'()+_,-./:=?", c) < 0 {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 70
}

// form is one pass over a form.
type form struct {
	q    Request
	body []byte
	seen fieldSet
}

// part reads one part, the nth: its head, an empty line, its value.
func (f *form) part(nth int, at jsontext.Span) *dialect.Error {
	name, file, text, ok := "", false, true, false
	for {
		line, _, found := bytes.Cut(f.body[at.Start:at.End], []byte("\r\n"))
		if !found {
			return errFormHead
		}
		at.Start += len(line) + 2
		if len(line) == 0 {
			break
		}
		key, value, colon := bytes.Cut(line, []byte{':'})
		if !colon || !token(key) || !printable(value) {
			return errFormHead
		}
		switch strings.ToLower(string(key)) {
		case "content-disposition":
			if ok {
				return errFormHead
			}
			if name, file, ok = disposition(string(value)); !ok {
				return errFormHead
			}
		case "content-type":
			text = text && plainText(string(value))
		case "content-transfer-encoding":
			if !unencoded(string(value)) {
				return errFormHead // RFC 7578 has none, and readers differ on whether to undo it
			}
		}
	}
	if !ok {
		return errFormHead
	}
	return f.field(nth, name, at, text && !file)
}

// field reads the value of a part of that name.
func (f *form) field(nth int, name string, at jsontext.Span, plain bool) *dialect.Error {
	if name == "_charset_" {
		return &dialect.Error{Code: dialect.InvalidRequest, Message: "The form names a charset: write its text in UTF-8, and leave the part `_charset_` out.", Param: name}
	}
	base, _, _ := strings.Cut(name, "[") // some readers take model[] for model, or trim it
	base = strings.TrimSpace(base)
	one, folded := (fieldsOf(f.q.Endpoint) & (fModel | fStream | fResponseFormat | fChoices)).find([]byte(base))
	if one == 0 {
		return f.other(nth, name, base)
	}
	folded = folded || base != name
	v := at.Of(f.body)
	switch {
	case folded:
		return &dialect.Error{Code: dialect.InvalidRequest, Message: "A part of the form is named almost as `" + one.name() + "` is: write it exactly so.", Param: one.name()}
	case f.seen&one != 0:
		return &dialect.Error{Code: dialect.InvalidRequest, Message: "The part `" + one.name() + "` is given twice: give it once.", Param: one.name()}
	case !plain || !utf8.Valid(v) || !printable(v):
		return &dialect.Error{Code: dialect.InvalidRequest, Message: "The part `" + one.name() + "` must be one line of plain text in UTF-8, not a file.", Param: one.name()}
	}
	f.seen |= one
	switch one {
	case fModel:
		if len(v) == 0 || len(v) > MaxModelName {
			return &dialect.Error{Code: dialect.InvalidRequest, Message: "`model` must be the name of a model: list them with GET /v1/models.", Param: "model"}
		}
		f.q.Model, f.q.modelAt = string(v), at
	case fStream:
		switch strings.ToLower(string(v)) {
		case "false", "":
		case "true":
			if !f.q.Endpoint.Streams {
				return errNoStream
			}
			f.q.Stream = true
		default:
			return &dialect.Error{Code: dialect.InvalidRequest, Message: "`stream` must be true or false.", Param: "stream"}
		}
	case fChoices:
		n, _ := jsontext.Whole(v)
		f.q.Choices = int(min(max(n, 0), 1<<20))
	case fResponseFormat:
		f.q.formatAt = at
		if f.q.inline = string(v) == inlineFormat; !f.q.inline && f.q.Stores == "" {
			f.q.Stores = one.name()
		}
	}
	return nil
}

// other notes what a part that the gateway does not read may mean. Some readers
// take image[file_id] for a field of an object.
func (f *form) other(nth int, name, base string) *dialect.Error {
	switch one, _ := (fieldsOf(f.q.Endpoint) & plainFields).find([]byte(base)); {
	case one == fFallbacks, one == fModels:
		return furtherModels(one)
	case one == fProvider, one == fPlugins, one == fProviderOptions:
		if f.q.Away == "" {
			f.q.Away = one.name()
		}
		if f.q.Stores == "" {
			f.q.Stores = one.name()
		}
	case strings.Contains(strings.ToLower(name), "file_id"):
		f.kept("file_id")
	case strings.HasPrefix(strings.ToLower(name), fStorageOptions.name()) && fieldsOf(f.q.Endpoint)&fStorageOptions != 0:
		f.kept(fStorageOptions.name())
	case harmlessAt[f.q.Endpoint][base]:
	default:
		if one, folded := (fieldsOf(f.q.Endpoint) & pictureFields).find([]byte(base)); one == 0 || folded {
			f.q.unlisted(nth)
		}
	}
	return nil
}

// kept notes what uses or leaves something in the provider's account.
func (f *form) kept(what string) {
	if f.q.Kept == "" {
		f.q.Kept = what
	}
	if f.q.Stores == "" {
		f.q.Stores = what
	}
}

// disposition reads a content-disposition. ok is false where it is not that of
// a form, or where readers may differ on the name: escaped, encoded, given twice.
func disposition(v string) (name string, file, ok bool) {
	kind, rest, _ := strings.Cut(v, ";")
	if !strings.EqualFold(strings.Trim(kind, " \t"), "form-data") {
		return "", false, false
	}
	named := false
	for rest = strings.Trim(rest, " \t"); rest != ""; {
		key, after, equals := strings.Cut(rest, "=")
		if key = strings.ToLower(strings.Trim(key, " \t")); !equals || !token([]byte(key)) {
			return "", false, false
		}
		value, left, good := parameter(strings.TrimLeft(after, " \t"))
		if !good {
			return "", false, false
		}
		switch {
		case key == "name":
			if named || strings.ContainsAny(value, "\\%") || value == "" {
				return "", false, false
			}
			name, named = value, true
		case strings.HasPrefix(key, "name*"): // RFC 8187, which forms do not use
			return "", false, false
		case strings.HasPrefix(key, "filename"):
			file = true
		}
		left = strings.TrimLeft(left, " \t")
		if left != "" {
			if left[0] != ';' {
				return "", false, false
			}
			left = strings.TrimLeft(left[1:], " \t")
		}
		rest = left
	}
	return name, file, named
}

// parameter takes a quoted string or a token from the front of s. What is
// quoted is given as it stands, backslashes too.
func parameter(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, "; \t")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], end > 0 && !strings.Contains(s[:end], `"`)
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return s[1:i], s[i+1:], true
		}
	}
	return "", "", false
}

// plainText reports whether v is the type of text in UTF-8.
func plainText(v string) bool {
	media, params, err := mime.ParseMediaType(v)
	charset := params["charset"]
	return err == nil && media == "text/plain" &&
		(charset == "" || strings.EqualFold(charset, "utf-8") || strings.EqualFold(charset, "us-ascii"))
}

// unencoded reports whether v, a transfer encoding, says that there is none (RFC
// 2045, section 6.2), as Apache's client 4, Symfony and Ruby's multipart-post do.
func unencoded(v string) bool {
	switch strings.ToLower(strings.Trim(v, " \t")) {
	case "7bit", "8bit", "binary":
		return true
	}
	return false
}

// token reports whether b is a token as HTTP has it (RFC 9110, section 5.6.2).
func token(b []byte) bool {
	for _, c := range b {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(`"(),/:;<=>?@[\]{}`, c) >= 0 {
			return false
		}
	}
	return len(b) > 0
}

// printable reports whether b holds no control character.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
