package exchange

import (
	"net/http"
	"strings"

	"ringmain/dataplane/dialect"
	"ringmain/dataplane/relay"
)

var (
	errEncoded   = dialect.Fail(dialect.InvalidRequest, "The request body is compressed (`content-encoding`): send it as it is.")
	errTypes     = dialect.Fail(dialect.InvalidRequest, "The header `content-type` is given more than once: give it once.")
	errPassed    = dialect.Fail(dialect.InvalidHeader, "The headers `anthropic-version`, `anthropic-beta` and `openai-beta` are longer than 4 KiB together: send less.")
	errLongType  = dialect.Fail(dialect.InvalidHeader, "The header `content-type` is longer than 256 bytes: send the type, and of a form its boundary.")
	errJSONOnly  = dialect.Fail(dialect.InvalidRequest, "This endpoint takes JSON: send `content-type: application/json`.")
	errEither    = dialect.Fail(dialect.InvalidRequest, "This endpoint takes JSON, or a form with files: send `content-type: application/json`, or `multipart/form-data` with its boundary.")
	errMultipart = dialect.Fail(dialect.InvalidRequest, "This endpoint takes a form with files: send `content-type: multipart/form-data` with its boundary.")
)

// maxRequestType bounds what a client may call its body: it goes on to other nodes.
const maxRequestType = 256

// form checks how the body is declared, and what headers go on, before any of it is read. The official
// clients always declare it; where nothing is declared, JSON is meant.
func form(ep *dialect.Endpoint, h http.Header) *dialect.Error {
	if enc := h["Content-Encoding"]; len(enc) > 1 || len(enc) == 1 && !strings.EqualFold(enc[0], "identity") {
		return errEncoded
	}
	if relay.Passed(h) > relay.MaxPassed {
		return errPassed
	}
	types := h[hContentType]
	if len(types) > 1 {
		return errTypes
	}
	kind := ""
	if len(types) == 1 {
		if len(types[0]) > maxRequestType {
			return errLongType
		}
		kind, _, _ = strings.Cut(types[0], ";")
		kind = strings.TrimSpace(kind)
	}
	json, multipart := strings.EqualFold(kind, "application/json"), strings.EqualFold(kind, "multipart/form-data")
	switch {
	case ep.Body == dialect.BodyJSON && kind != "" && !json:
		return errJSONOnly
	case ep.Body == dialect.BodyMultipart && !multipart:
		return errMultipart
	case ep.Body == dialect.BodyEither && !json && !multipart:
		return errEither
	}
	return nil
}

// contentType is that of the request, as the scan of its body needs it.
func (x *exchange) contentType() string {
	if types := x.r.Header[hContentType]; len(types) > 0 {
		return types[0]
	}
	return "application/json"
}

// maxContentType bounds what a provider may call its answer.
const maxContentType = 128

// answerType is the type under which a plain answer goes on: JSON, but for
// endpoints whose answers are sound or text, which keep their own.
func (x *exchange) answerType(res *relay.Result) []string {
	if x.endpoint == nil || !x.endpoint.Binary || res.Status != http.StatusOK {
		return x.node.fixed.jsonType
	}
	kind := res.ContentType
	if kind == "" || len(kind) > maxContentType || strings.IndexFunc(kind, func(r rune) bool { return r < ' ' || r > '~' }) >= 0 {
		kind = "application/octet-stream"
	}
	x.rw.Header()["X-Content-Type-Options"] = x.node.fixed.noSniff
	return x.value(kind)
}
