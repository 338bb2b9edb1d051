package dialect

import (
	"strconv"

	"ringmain/dataplane/dialect/jsontext"
)

// Error is a failure that the client is told about. Message says what to do,
// and holds neither content nor secrets.
type Error struct {
	Code    Code
	Message string
	Param   string // field of the request at fault, in the OpenAI dialect; may be empty
}

func (e *Error) Error() string { return string(e.Code) + ": " + e.Message }

// Fail builds an Error.
func Fail(code Code, message string) *Error { return &Error{Code: code, Message: message} }

// AppendBody appends e as a JSON body in dialect d. requestID appears in the
// Anthropic envelope only: the OpenAI one has no place for it.
func (e *Error) AppendBody(dst []byte, d Dialect, requestID string) []byte {
	if d == Anthropic {
		dst = append(dst, `{"type":"error","error":{"type":`...)
		dst = jsontext.AppendString(dst, e.Code.Type(d))
		dst = append(dst, `,"message":`...)
		dst = jsontext.AppendString(dst, e.Message)
		dst = append(dst, `},"request_id":`...)
		dst = jsontext.AppendString(dst, requestID)
		return append(dst, '}')
	}
	dst = append(dst, `{"error":{"message":`...)
	dst = jsontext.AppendString(dst, e.Message)
	dst = append(dst, `,"type":`...)
	dst = jsontext.AppendString(dst, e.Code.Type(d))
	dst = append(dst, `,"param":`...)
	if e.Param == "" {
		dst = append(dst, "null"...)
	} else {
		dst = jsontext.AppendString(dst, e.Param)
	}
	dst = append(dst, `,"code":`...)
	dst = jsontext.AppendString(dst, string(e.Code))
	return append(dst, "}}"...)
}

// AppendEvent appends e as the event that ends a broken stream. Official
// clients raise an error on it; they would not on a connection that just ends.
func (e *Error) AppendEvent(dst []byte, d Dialect, requestID string) []byte {
	if d == Anthropic {
		dst = append(dst, "event: error\n"...)
	}
	dst = append(dst, "data: "...)
	dst = e.AppendBody(dst, d, requestID)
	return append(dst, "\n\n"...)
}

// Model describes one entry of GET /v1/models. The body satisfies the official
// clients of both dialects: it carries the fields of each.
type Model struct {
	ID      string
	Created int64 // Unix seconds
	Date    string
	Owner   string

	// What it is to the caller, beside what the dialects define.
	Regions, Jurisdictions, Retention, Endpoints []string
}

// AppendModel appends one model object.
func AppendModel(dst []byte, m Model) []byte {
	dst = append(dst, `{"id":`...)
	dst = jsontext.AppendString(dst, m.ID)
	dst = append(dst, `,"object":"model","created":`...)
	dst = strconv.AppendInt(dst, m.Created, 10)
	dst = append(dst, `,"owned_by":`...)
	dst = jsontext.AppendString(dst, m.Owner)
	dst = append(dst, `,"type":"model","display_name":`...)
	dst = jsontext.AppendString(dst, m.ID)
	dst = append(dst, `,"created_at":`...)
	dst = jsontext.AppendString(dst, m.Date)
	dst = appendStrings(append(dst, `,"idc_regions":`...), m.Regions)
	dst = appendStrings(append(dst, `,"idc_jurisdictions":`...), m.Jurisdictions)
	dst = appendStrings(append(dst, `,"idc_retention":`...), m.Retention)
	dst = appendStrings(append(dst, `,"idc_endpoints":`...), m.Endpoints)
	return append(dst, '}')
}

func appendStrings(dst []byte, list []string) []byte {
	dst = append(dst, '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = jsontext.AppendString(dst, s)
	}
	return append(dst, ']')
}

// AppendModels appends the list object.
func AppendModels(dst []byte, models []Model) []byte {
	dst = append(dst, `{"object":"list","data":[`...)
	for i, m := range models {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = AppendModel(dst, m)
	}
	dst = append(dst, `],"has_more":false,"first_id":`...)
	if len(models) == 0 {
		return append(dst, `null,"last_id":null}`...)
	}
	dst = jsontext.AppendString(dst, models[0].ID)
	dst = append(dst, `,"last_id":`...)
	dst = jsontext.AppendString(dst, models[len(models)-1].ID)
	return append(dst, '}')
}
